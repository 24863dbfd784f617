/* Many directories, symlinks and files made in one step. */
#ifndef CK_POPULATE_H
#define CK_POPULATE_H

#include "native.h"

#include <stddef.h>
#include <stdint.h>

/* Make the entries in a directory. `at` gets the place of the one at work; the lowest bit is set if its content is
 * being written. Returns 0 or a negative error number. */
long ck_populate(int directory, const char *entries, int64_t size, int64_t *at);

/* The bytes that an entry takes, up to the next one; 0 if it is malformed or does not fit into `left` bytes. */
static inline uint64_t ck_entry_size(const struct ck_entry *entry, uint64_t left) {
    if (left < sizeof *entry || entry->kind >= CK_ENTRY_KINDS || entry->path_size < 2)
        return 0;
    uint64_t used = sizeof *entry + (uint64_t)entry->path_size + entry->content_size;
    uint64_t rounded = (used + 7) / 8 * 8;
    if (rounded > left)
        return 0;
    const char *path = (const char *)(entry + 1);
    if (path[entry->path_size - 1] != 0)
        return 0;
    if (entry->kind == CK_ENTRY_SYMLINK && (entry->content_size < 2 || path[used - sizeof *entry - 1] != 0))
        return 0;
    return rounded;
}

#endif

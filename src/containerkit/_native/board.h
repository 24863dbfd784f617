/* What the parent writes to a board, for the init to walk: parts that follow each other. */
#ifndef CK_BOARD_H
#define CK_BOARD_H

#include <stddef.h>
#include <string.h>

struct ck_part {
    const void *bytes;
    size_t size;
};

static inline size_t ck_parts_size(const struct ck_part *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].size;
    return size;
}

static inline void ck_append(void *place, const struct ck_part *parts, int count) {
    char *at = place;
    for (int i = 0; i < count; i++) {
        memcpy(at, parts[i].bytes, parts[i].size);
        at += parts[i].size;
    }
}

#endif

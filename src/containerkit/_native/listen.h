/* Reading the outputs of a command, as called from Python. */
#ifndef CK_LISTEN_H
#define CK_LISTEN_H

#include <stddef.h>
#include <stdint.h>

/* The output of one pipe. */
struct ck_heard {
    int32_t fd; /* -1 at the end, or if there is none */
    char *bytes;
    size_t length;
    size_t room;
};

/* Read two pipes until the process of `pidfd` ends, and then what is left in them. Nothing is reaped or closed.
 *
 * `deadline_ns` is a time of CLOCK_MONOTONIC, or -1. At most `limit` bytes are read from both together.
 * Returns 0 at the end, otherwise the reason for returning earlier: -EINTR, -ETIMEDOUT, -EFBIG (there is more than the
 * limit) or another negative error number. The output so far is kept, and the next call continues. */
int ck_listen(int pidfd, struct ck_heard heard[2], size_t limit, int64_t deadline_ns);

/* Free the output. */
void ck_forget(struct ck_heard heard[2]);

#endif

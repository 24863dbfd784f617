/* Hearing out a command, as Python calls it. */
#ifndef CK_LISTEN_H
#define CK_LISTEN_H

#include <stddef.h>
#include <stdint.h>

/* What came out of one pipe. */
struct ck_heard {
    int32_t fd; /* -1 at its end, or where there is none */
    char *bytes;
    size_t length;
    size_t room;
};

/* Read two pipes until the process of `pidfd` has ended, and then what still lies in them; nothing is reaped or closed.
 *
 * `deadline_ns` is a time of CLOCK_MONOTONIC, or -1; no more than `limit` bytes are taken from both together.
 * Returns 0 at the end, else what kept it from coming so far: -EINTR, -ETIMEDOUT, -EFBIG (there is more than the limit),
 * or another negative error number. What was heard until then is kept, and the next call goes on. */
int ck_listen(int pidfd, struct ck_heard heard[2], size_t limit, int64_t deadline_ns);

/* Free what was heard. */
void ck_forget(struct ck_heard heard[2]);

#endif

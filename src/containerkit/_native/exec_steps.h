/* The steps around an exec, and what they share with the walker of child.c. */
#ifndef CK_EXEC_STEPS_H
#define CK_EXEC_STEPS_H

#include "native.h"
#include "syscalls.h"

#include <linux/time_types.h>
#include <poll.h>

#define CK_STRIPPED 1 /* what ck_step_strip returns if another process or thread reports the failures */

__attribute__((noreturn)) static inline void ck_leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

static inline void *ck_next_stack(struct ck_request *request) {
    return request->stacks + (size_t)request->next_stack++ * CK_STACK_BYTES;
}

static inline long ck_has_ended(int pidfd) {
    struct pollfd watched = {pidfd, POLLIN, 0};
    const struct __kernel_timespec now = {0, 0};
    return CK_CALL5(ppoll, &watched, 1, &now, 0, 0);
}

/* Each returns a value, or a negative error number. */
long ck_step_strip(struct ck_request *request, const int32_t *kept, long count, long telling);
long ck_step_hold(struct ck_request *request);
long ck_step_helper(struct ck_request *request, char *words, long count, long pid);
long ck_step_signals(struct ck_request *request);
long ck_step_init(struct ck_request *request, long image, const char *mode, long first);
long ck_step_enter(struct ck_request *request, const struct ck_step *step, const long value[6]);
long ck_step_own_pid(char **variables, long offset);

#endif

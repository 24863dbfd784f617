/* What the files of the parent's side share: spawn.c has it. */
#ifndef CK_PARENT_H
#define CK_PARENT_H

#include "native.h"
#include "spawn.h"

#include <sys/types.h>

/* The stacks of this thread for its next start, or NULL. */
char *ck_stacks(void);

/* The window in which the memory must not be dumpable, see spawn.c. `hide`: it is not, from now on. The first returns
 * what the second takes. */
int ck_enter_window(int hide);
void ck_leave_window(int serial);

/* Build a request for a tape. One allocation, `room`, holds the copy of the data and both vectors. */
int ck_lay(struct ck_request *request, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
           size_t envc, void **room);
void ck_fill_slots(struct ck_request *request, const int64_t *slots, size_t count);

/* Begin a result. Called first. */
void ck_begin(struct ck_result *result);

int64_t ck_now_ns(void);

/* In the first process: see spawn.c. */
void ck_reset_sigchld(void);

/* Move a descriptor above the numbers that the tape assigns to streams and to init. Returns a negative error number if
 * there is none, or if `fd` is none. */
int ck_above_assigned(int fd);

/* Kill a process and wait for it, and close its pidfd, -1 for none. */
void ck_end_process(pid_t pid, int pidfd);

#endif

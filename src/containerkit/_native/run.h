/* A command from its start to its end in one call, as Python calls it. */
#ifndef CK_RUN_H
#define CK_RUN_H

#include "listen.h"
#include "spawn.h"

/* Made by the caller, with zeros where nothing is said below; nothing in it is anybody's once `ck_run` or `ck_resume`
 * returned 0, but for what was heard (`ck_forget`). */
struct ck_run {
    /* In: the slots of the three streams, and that of the pipe to which init reports; -1 for one that is not there. */
    int32_t stream_slots[3];
    int32_t report_slot;
    int64_t owner;       /* who shall own the pipes, or -1 */
    size_t limit;        /* how many bytes are taken from both outputs together */
    int64_t deadline_ns; /* of CLOCK_MONOTONIC, or -1 */
    /* Out. */
    struct ck_result result;
    struct ck_heard heard[2];
    int32_t ends[2]; /* the caller's ends of the outputs, and of the report; -1 once closed */
    int32_t report;
    struct ck_ending ending;
};

/* Start a command as ck_spawn does, with nothing to read and both outputs heard; wait for its end and reap it.
 *
 * Returns 0 when it has ended or when a step failed, which `result` tells. A negative error number otherwise: if
 * `result.pidfd` is not -1 then the command runs, and it is what kept ck_listen from its end. */
int ck_run(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
           size_t slot_count, int proc_fd, int flags, struct ck_run *run);

/* Go on where ck_run came back early. */
int ck_resume(struct ck_run *run);

#endif

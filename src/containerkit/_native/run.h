/* A command from its start to its end, as Python calls it. */
#ifndef CK_RUN_H
#define CK_RUN_H

#include "listen.h"
#include "spawn.h"

/* Made by the caller, with zeros where nothing is said below; nothing in it is anybody's once `ck_see_out` returned
 * 0, but for what was heard (`ck_forget`). */
struct ck_run {
    /* In: the slots of the three streams, and that of the pipe to which init reports; -1 for one that is not there. */
    int32_t stream_slots[3];
    int32_t report_slot;
    int64_t owner;       /* who shall own the pipes, or -1 */
    size_t limit;        /* how many bytes are taken from both outputs together */
    int64_t deadline_ns; /* of CLOCK_MONOTONIC, or -1 */
    int32_t early;       /* 1: done once nothing runs any more, before init has taken its namespaces down */
    int32_t keep;        /* 1: the pidfd stays open, so that another thread may use it until it hears of the end */
    /* Out. */
    struct ck_result result;
    struct ck_heard heard[2];
    int32_t ends[2]; /* the caller's ends of the outputs, and of the report; -1 once closed */
    int32_t report;
    int32_t leaving; /* after an early end: the pidfd of init, which somebody has to reap and close; else -1 */
    int32_t kept;    /* the pidfd that is to stay open, once the command was reaped; else -1 */
    struct ck_ending ending;
    struct ck_held *held; /* a start that waits for its command (CK_HOLD); for ck_go or ck_drop */
};

/* Start a command as ck_spawn does, with nothing to read and both outputs heard.
 *
 * Returns 0 or a negative error number as ck_spawn does. Python then has a look at the signals that came meanwhile, which
 * were blocked or went to other threads, before it is away for long. */
int ck_run(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
           size_t slot_count, int proc_fd, int flags, struct ck_run *run);

/* Let a start that was held go on: with the rest of its tape, and the words of the command.
 *
 * Returns 0 or a negative error number; a failed step is told in `result`, with CK_SECOND added to its index if it is of
 * the rest. After either nothing is left of it. */
int ck_go(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, struct ck_run *run);

/* End a start that is held, and close what it owns. */
void ck_drop(struct ck_run *run);

/* Hear the command out, wait for its end and reap it.
 *
 * Returns 0, or a negative error number: what kept ck_listen from its end. The command runs, and the next call goes on. */
int ck_see_out(struct ck_run *run);

#endif

/* A command from start to end, as called from Python. */
#ifndef CK_RUN_H
#define CK_RUN_H

#include "listen.h"
#include "spawn.h"

/* The caller creates it, with zeros where nothing else is said below. After `ck_see_out` has returned 0 it owns nothing
 * but the output (`ck_forget`). */
struct ck_run {
    /* In: the slots of the three streams, and of the pipe for init's report; -1 for none. */
    int32_t stream_slots[3];
    int32_t report_slot;
    int64_t owner;       /* the uid that owns the pipes, or -1 */
    size_t limit;        /* the maximum number of bytes from both outputs together */
    int64_t deadline_ns; /* of CLOCK_MONOTONIC, or -1 */
    int32_t early;       /* 1: done when nothing runs any more, before init has removed its namespaces */
    int32_t keep;        /* 1: the pidfd stays open, so that another thread can use it until it learns of the end */
    /* Out. */
    struct ck_result result;
    struct ck_heard heard[2];
    int32_t ends[2]; /* the caller's ends of the outputs, and of the report; -1 once closed */
    int32_t report;
    int32_t leaving; /* after an early end: the pidfd of init, which must still be reaped and closed; else -1 */
    int32_t kept;    /* the pidfd that stays open after the command was reaped; else -1 */
    struct ck_ending ending;
    int32_t maker;           /* the process that started it: a forked child must not act on it */
    struct ck_held *held;    /* a start that waits for its command (CK_HOLD), for ck_go or ck_drop */
    struct ck_shared shared; /* of a start that continued, or joined; ck_dispose unmaps it, to keep the start fast */
};

/* Start a command like ck_spawn, without input, to read both outputs.
 *
 * Returns 0 or a negative error number like ck_spawn. Python then checks for signals that arrived in the meantime,
 * which were blocked or went to other threads, before it makes a long call. */
int ck_run(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
           size_t slot_count, int proc_fd, int flags, struct ck_run *run);

/* Let a held start continue with the rest of its tape and the argv of the command.
 *
 * Returns 0 or a negative error number, after which nothing is left of it. If a step fails, `result` says so after
 * ck_see_out has returned 0, with CK_SECOND added to the index. */
int ck_go(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, struct ck_run *run);

/* End a held start, and close what it owns. */
void ck_drop(struct ck_run *run);

/* Read the outputs of the command, wait for its end and reap it.
 *
 * Returns 0, or the negative error number with which ck_listen returned early. The command then runs, and the next call
 * continues. */
int ck_see_out(struct ck_run *run);

/* Free the output and the board. End a start that is still held, because a signal handler raised before anybody owned
 * it. Called by the garbage collector, which runs no Python code for it. */
void ck_dispose(struct ck_run *run);

#endif

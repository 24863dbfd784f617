/* The parent's side of a start, as Python calls it. */
#ifndef CK_SPAWN_H
#define CK_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

enum ck_spawn_flags {
    CK_SHARE_FILES = 1, /* stage 1 opens descriptors for the caller: CLONE_FILES */
    CK_HIDE_MEMORY = 2, /* the child joins a live container: nothing inside may look into the shared memory */
    CK_NO_PROCESS = 4,  /* the tape ends without an exec: reap everything, return no pid */
    CK_HOLD = 8         /* the tape holds the command back: ck_hold alone takes this */
};

struct ck_result {
    int32_t pid;
    int32_t pidfd;
    int32_t failed_index; /* -1: none */
    int32_t error;
    int64_t times_ns[4]; /* CLOCK_MONOTONIC: called, cloned, stage 1 gone, all have exec'd */
};

struct ck_tape {
    const void *steps;
    size_t count;
    const void *data;
    size_t data_size;
};

struct ck_ending {
    int32_t pid;    /* 0: still running (WNOHANG) */
    int32_t code;   /* CLD_* */
    int32_t status; /* exit status or signal */
    int64_t user_us;
    int64_t system_us;
    int64_t maxrss_kib;
    int64_t minor_faults;
    int64_t major_faults;
    int64_t in_blocks;
    int64_t out_blocks;
    int64_t voluntary_switches;
    int64_t involuntary_switches;
};

/* Run a tape. `argv` and `envp` are `argc` and `envc` NUL-terminated strings, one after the other.
 * Returns 0 or a negative error number of the parent's own preparations; a failed step is told in `result`. */
int ck_spawn(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
             size_t slot_count, int proc_fd, int flags, struct ck_result *result);

/* A start that is held in front of its command: it waits in memory of its own. */
struct ck_held;

/* Run a tape as far as its CK_STEP_HOLD, in which it waits for ck_let_go or ck_end. Returns as ck_spawn does. */
int ck_hold(const struct ck_tape *tape, int64_t *slots, size_t slot_count, int proc_fd, int flags,
            struct ck_result *result, struct ck_held **held);

/* Let it go on with another tape; it is freed. Returns as ck_spawn does; after an error, or a failed step, it has ended
 * and its pidfd is closed. */
int ck_let_go(struct ck_held *held, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
              size_t envc, struct ck_result *result);

/* Kill and reap it; it is freed. */
void ck_end(struct ck_held *held, struct ck_result *result);

/* waitid(P_PIDFD) with the resources used. Returns 0 or a negative error number. */
int ck_wait(int pidfd, int options, struct ck_ending *ending);

/* Fill in how a process ended. */
void ck_tell(struct ck_ending *ending, int pid, int code, int status, const struct rusage *usage);

/* 0, or the number of the first step that is malformed plus one. */
size_t ck_check(const struct ck_tape *tape);

#endif

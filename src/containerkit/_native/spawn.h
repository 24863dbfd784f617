/* The parent's side of a start, as called from Python. */
#ifndef CK_SPAWN_H
#define CK_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>

enum ck_spawn_flags {
    CK_SHARE_FILES = 1, /* stage 1 opens descriptors for the caller: CLONE_FILES */
    CK_HIDE_MEMORY = 2, /* the child joins a live container: those inside must not read the shared memory */
    CK_NO_PROCESS = 4,  /* the tape ends without an exec: reap everything, return no pid */
    CK_HOLD = 8,        /* the tape holds the command: only ck_hold accepts this */
    CK_JOIN = 16        /* the first process becomes the command in a live container: see ck_join */
};

struct ck_request;

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
    struct ck_request *beside; /* of a process for which AWAIT waits, see beside.h; NULL for none */
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

/* Run a tape. `argv` and `envp` are `argc` and `envc` NUL-terminated strings that follow each other.
 * Returns 0 or a negative error number of the parent's own preparations. A failed step is reported in `result`. */
int ck_spawn(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
             size_t slot_count, int proc_fd, int flags, struct ck_result *result);

/* A start that is held just before its command. It waits in separate memory. */
struct ck_held;

/* The memory that a command shares with the parent after its start; 0 for none. Nobody else may write to it. */
struct ck_board;
struct ck_shared {
    struct ck_board *board;
    size_t size;
};

/* Run a tape up to its CK_STEP_HOLD, where it waits for ck_let_go or ck_end. Returns like ck_spawn. */
int ck_hold(const struct ck_tape *tape, int64_t *slots, size_t slot_count, int proc_fd, int flags,
            struct ck_result *result, struct ck_held **held);

/* Let it continue with another tape, and free it. Returns like ck_spawn. After an error it has ended and its pidfd is
 * closed. Nobody waits for the exec: when the process has ended, `board` says whether the exec failed. */
int ck_let_go(struct ck_held *held, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
              size_t envc, struct ck_result *result, struct ck_shared *shared);

/* Run a tape whose first step puts the children of the calling thread into the pid namespace of a live container, and
 * whose other steps are those of one process, which becomes the command. Returns like ck_spawn, once the command is in
 * the sealed init. When it has ended, `shared` says whether it failed before its exec. */
int ck_join(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
            size_t slot_count, int proc_fd, struct ck_result *result, struct ck_shared *shared);

/* Copy the failure of a held start, or of a command that joined, to `result`, if there is one. */
void ck_read_board(const struct ck_shared *shared, struct ck_result *result);

/* Unmap it. */
void ck_free_board(struct ck_shared *shared);

/* Kill it, reap it and free it. */
void ck_end(struct ck_held *held, struct ck_result *result);

/* waitid(P_PIDFD) with the resource usage. Returns 0 or a negative error number. */
int ck_wait(int pidfd, int options, struct ck_ending *ending);

/* Fill in how a process ended. */
void ck_tell(struct ck_ending *ending, int pid, int code, int status, const struct rusage *usage);

/* 0, or one plus the number of the first malformed step. */
size_t ck_check(const struct ck_tape *tape);

#endif

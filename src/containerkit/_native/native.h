/* The tape, the steps and the protocol between the parent and its child.
 *
 * A start is one request: a tape of steps, the data that they point into, argv and envp, and slots. The parent makes
 * the first process (stage 1) with clone3(CLONE_VM | CLONE_VFORK); the processes that the tape clones share the memory
 * too, each on a stack of its own, until it execs:
 *
 *   parent                     stage 1                      stage 2 (PID 1 inside)         payload
 *   ------                     -------                      ----------------------         -------
 *   validate, block signals
 *   clone3 ------------------> walks the tape
 *   (suspended: vfork)         CLONE ---------------------> AWAIT (futex, gate 0)
 *                              id maps, mounts as owner
 *                              RELEASE -------------------> goes on: mounts, pivot
 *                              LEAVE                        CLONE ----------------------> credentials, limits
 *   reaps stage 1                                           old root away                 AWAIT (gate 1)
 *                                                           RELEASE --------------------> filter
 *                                                           execveat(init)                execve
 *   reads the error pipe: end of file is success (each process holds a close-on-exec copy of its write end),
 *   8 bytes are a struct ck_failure.
 *
 * If stage 1 dies before RELEASE the parent sets gate 0 to CK_ABORTED, so that stage 2 never waits for nobody. Nobody
 * has to do so for gate 1: when PID 1 dies the kernel kills the payload.
 *
 * A start can be held (CK_STEP_HOLD) where the command is all but exec'd: its process says so in the error pipe, with
 * index CK_HELD, and sleeps at gate 2 until the parent has another request ready, the successor, which it walks then.
 *
 * Stage 2 does not exec before the parent has its pidfd (`watched`): until its exec it ends without a signal, and so
 * nobody's wait(-1) can take it and have its pid given to another process before the pidfd is opened.
 */
#ifndef CK_NATIVE_H
#define CK_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define CK_SLOTS 1024 /* an overlay of 500 layers needs as many */
#define CK_STACKS 4
#define CK_STACK_BYTES (64 * 1024)
#define CK_NO_SLOT 0xFFFF
#define CK_LOWEST_FD 16        /* below it lie the numbers that a start gives away */
#define CK_YIELDS 64           /* how often a process at a gate looks before it sleeps: a wake-up takes longer */
#define CK_WATCHER_NS 50000000 /* how long a child waits for its parent's pidfd */
#define CK_START_MS 20000      /* how long the parent waits for a process that has all it needs to exec */

enum ck_step_kind {
    CK_STEP_CALL,          /* a system call: number in `call`, six arguments */
    CK_STEP_CLONE,         /* arg[0] flags, arg[1] the group for CLONE_INTO_CGROUP; the new process goes on at arg[5] */
    CK_STEP_AWAIT,         /* sleep until RELEASE of gate arg[0] */
    CK_STEP_RELEASE,       /* wake the process in AWAIT */
    CK_STEP_LEAVE,         /* _exit(0) */
    CK_STEP_OPEN_PROC,     /* open arg[1] of process arg[0] with flags arg[2], below the caller's own /proc */
    CK_STEP_HELPER,        /* run the arg[1] strings at arg[0]; "PID" stands for arg[2]; wait for status 0 */
    CK_STEP_SIGNALS,       /* default dispositions, empty mask */
    CK_STEP_STORE_SLOT,    /* write slot arg[1], 32 bits, at offset arg[0] of the data */
    CK_STEP_STORE_ADDRESS, /* write the address of data arg[1], 64 bits, at offset arg[0] of the data */
    CK_STEP_INIT,          /* become the init of sealed memfd arg[0]: argument arg[1] */
    CK_STEP_CLOSE,         /* close the descriptor in slot arg[0], then -1 is there */
    CK_STEP_ENTER,         /* go on in an address space of one's own: exec the init at arg[0], which walks the rest */
    CK_STEP_HOLD,          /* close all but the standard streams, say so, sleep, then walk the successor */
    CK_STEP_KINDS
};

enum ck_argument_kind {
    CK_ARG_INTEGER, /* the value itself */
    CK_ARG_DATA,    /* an offset into the data; its address is passed */
    CK_ARG_SLOT,    /* a slot's number; its value is passed */
    CK_ARG_ARGV,    /* the argument vector of this start */
    CK_ARG_ENVP,    /* the environment vector of this start */
    CK_ARG_KINDS
};

/* 72 bytes; plan.py packs the same layout. */
struct ck_step {
    uint16_t kind;
    uint16_t result; /* the slot that takes the value, or CK_NO_SLOT */
    int32_t call;
    uint8_t argument_kind[6];
    uint8_t skip;        /* steps to leave out when a tolerated error is met */
    uint8_t leap;        /* steps to leave out when it succeeds */
    int16_t tolerate[4]; /* error numbers that count as success; 0 is unused */
    int64_t argument[6];
};

struct ck_failure {
    int32_t index;
    int32_t error;
};

#define CK_HELD (-2)       /* in the place of an index: nothing has failed, the process waits */
#define CK_SECOND 0x100000 /* what is added to the indices of a successor */

#define CK_GATES 2 /* those that AWAIT and RELEASE have */
#define CK_HOLD_GATE 2
enum ck_gate { CK_WAITING = 0, CK_RELEASED = 1, CK_ABORTED = 2 };

/* One start. It lives in the parent and is shared with the children until they exec. */
struct ck_request {
    const struct ck_step *steps;
    uint32_t count;
    char *data; /* a copy of the tape's data: STORE writes into it */
    uint32_t data_size;
    uint32_t argc, envc;
    char **argv; /* the strings lie one after the other, from argv[0] and from envp[0] on */
    char **envp;
    size_t argv_size, envp_size;
    uint32_t slot_count; /* how many slots the tape uses */
    int64_t slots[CK_SLOTS];
    int32_t proc_fd;  /* the caller's /proc */
    int32_t error_fd; /* write end of the error pipe */
    uint32_t gates[CK_GATES + 1];
    uint32_t watched;    /* 1: the parent holds a pidfd of main_pid */
    int32_t main_pid;    /* the process that CLONE made with CLONE_PARENT */
    uint32_t next_stack; /* stacks handed out so far */
    char *stacks;        /* CK_STACKS of CK_STACK_BYTES each */
    int32_t base;        /* added to the index of a step that fails */
    struct ck_request *successor;
};

/* What CK_STEP_ENTER leaves in a memfd: this, then the steps, the data, the strings of argv and of envp. */
struct ck_image {
    uint32_t count;
    uint32_t data_size;
    uint32_t argc;
    uint32_t envc;
    uint32_t slot_count;
    uint32_t reserved;
    int64_t slots[];
};

/* Walk the tape from step `index`; never returns. child.c */
__attribute__((noreturn)) void ck_walk(struct ck_request *request, uint32_t index);

#endif

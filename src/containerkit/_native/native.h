/* The tape, the steps and the protocol between the parent and its child.
 *
 * A start is one request: a tape of steps, the data that they refer to, argv and envp, and slots. The parent creates
 * the first process (stage 1) with clone3(CLONE_VM | CLONE_VFORK). Stage 1 and the processes it clones share the
 * parent's memory, each on its own stack. A process that shares the memory, or has a descriptor of the host, never
 * executes a path that a container controls. The command's process, or the one that clones it, uses ENTER to switch to
 * an address space that contains only the sealed init and the rest of the tape. Before the exec it closes all but the
 * command's own descriptors (STRIP):
 *
 *   parent                     stage 1                      stage 2 (PID 1 inside)         command
 *   ------                     -------                      ----------------------         -------
 *   validate, block signals
 *   clone3 ------------------> walks the tape
 *   (suspended: vfork)         CLONE ---------------------> AWAIT (futex, gate 0)
 *                              id maps, mounts as owner
 *                              RELEASE -------------------> continues: mounts
 *                              network namespace (by a     pivot, detaches the old root
 *                              process of its own), sysfs
 *                              RELEASE (gate 2) ----------> joins it: /sys
 *                              LEAVE                        ENTER: exec of the sealed init,
 *                                                           which shares nothing with the parent
 *   reaps stage 1                                           CLONE ----------------------> credentials
 *                                                                                         AWAIT (gate 1)
 *                                                           RELEASE --------------------> STRIP, filter
 *                                                           INIT: waits until it has      execve
 *   reads the error pipe <--------------------------------- exec'd, then reports
 *
 * End of file means success, 8 bytes are a struct ck_failure. A process after STRIP has no end of the pipe. It stores
 * its failure in memory, and another reports it: PID 1 if that has cloned it, otherwise a thread of its own (the
 * teller), which has the pipe's end in its own descriptor table. The exec kills the teller, which causes the end of
 * file.
 *
 * If stage 1 dies before RELEASE, the parent sets its gates to CK_ABORTED, so that stage 2 does not wait forever. Gate 1
 * does not need this: when PID 1 dies the kernel kills the command.
 *
 * A start can be held (CK_STEP_HOLD) just before the exec of the command. Its process reports this in the error pipe
 * with index CK_HELD, and sleeps at the gate of the board, a memfd shared with the parent. When the parent writes
 * another request to the board, the successor, the process walks that one. A failure is then reported on the board.
 *
 * A command that is only read to its end joins a live container without stage 1 (CK_JOIN). The calling thread clones it
 * into the pid namespace, so that it is the only process, and waits until it is in the sealed init. There is no error
 * pipe and no teller: failures are on the board, where the parent finds them at the end.
 *
 * A process that walks another tape may run beside a start (beside.h). It makes what the start needs only when its
 * command is to run, a network. Stage 2 waits for it while it still shares the memory.
 *
 * Stage 2 does not exec before the parent has its pidfd (`watched`). Until its exec it ends without a signal, so no
 * wait(-1) can reap it and let its pid be reused before the pidfd is opened.
 */
#ifndef CK_NATIVE_H
#define CK_NATIVE_H

#include <stddef.h>
#include <stdint.h>

#define CK_SLOTS 1024 /* an overlay of 500 layers needs this many */
#define CK_STACKS 4
#define CK_STACK_BYTES (64 * 1024)
#define CK_NO_SLOT 0xFFFF
#define CK_OWNER_FD 3          /* init's pidfd of its owner */
#define CK_LET_GO 60           /* the signal before a checkpoint: a staying init stops watching its owner, see init.c */
#define CK_SHUT 61             /* the signal after it and after a restore: nobody inside can inspect the init */
#define CK_LOWEST_FD 16        /* a start assigns the numbers below */
#define CK_LOOKS 400           /* how often a process checks a gate before it sleeps: a wake-up takes longer */
#define CK_MOST_OFFSET 64      /* the highest offset in a string at which OWN_PID writes */
#define CK_TRIES 1000          /* attempts of an openat2 that is disturbed by renames */
#define CK_WATCHER_NS 50000000 /* how long a child waits until its parent has a pidfd */
#define CK_START_MS 20000      /* how long the parent waits for a process that has all it needs to exec */

enum ck_step_kind {
    CK_STEP_CALL,       /* a system call: number in `call`, six arguments */
    CK_STEP_CLONE,      /* arg[0] flags, arg[1] the group for CLONE_INTO_CGROUP; the new process continues at arg[5] */
    CK_STEP_AWAIT,      /* sleep until RELEASE of gate arg[0], or, if that is CK_BESIDE_GATE, until the end of the
                         * process that walks another tape beside this start; it fails if that one has */
    CK_STEP_RELEASE,    /* wake the process in AWAIT */
    CK_STEP_LEAVE,      /* _exit(0) */
    CK_STEP_OPEN_PROC,  /* open arg[1] of process arg[0] with flags arg[2], below the caller's own /proc */
    CK_STEP_HELPER,     /* run the arg[1] strings at arg[0] as argv, "PID" replaced by arg[2]; wait for status 0 */
    CK_STEP_SIGNALS,    /* default dispositions, empty mask */
    CK_STEP_STORE_SLOT, /* write slot arg[1], 32 bits, at offset arg[0] of the data */
    CK_STEP_STORE_ADDRESS, /* write the address of data arg[1], 64 bits, at offset arg[0] of the data */
    CK_STEP_INIT,          /* become the init of sealed memfd arg[0] in mode arg[1]; close descriptors from arg[2] on */
    CK_STEP_CLOSE,         /* close the descriptor in slot arg[0], then set the slot to -1 */
    CK_STEP_ENTER,         /* continue in a separate address space: exec the init at arg[0], which walks the rest, with
                            * the arg[2] descriptors at arg[1]; arg[3]: with a board, for HOLD */
    CK_STEP_HOLD,          /* report it, sleep at the board, then walk the successor */
    CK_STEP_STRIP,         /* close all but the standard streams and the arg[1] descriptors at arg[0], in rising order;
                            * arg[2]: enum ck_telling; arg[3]: the init, for the reference interpreter */
    CK_STEP_LIVES,         /* fail with ESRCH if the process of the pidfd arg[0] has ended */
    CK_STEP_NETLINK,       /* send the arg[2] bytes at arg[1], one message that requests an ack, through socket arg[0];
                            * the error is that of the ack, which stays readable if the step fails */
    CK_STEP_OWN_PID,       /* write the pid of this process, as it sees itself, into the first string of the environment
                            * vector arg[0], from the byte arg[1] on, which has room for it */
    CK_STEP_POPULATE,      /* make the entries in the arg[2] bytes at arg[1], see struct ck_entry, in the directory
                            * arg[0]; the slot arg[3] gets the offset of the current one */
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

/* 72 bytes; packing.py packs the same layout. */
struct ck_step {
    uint16_t kind;
    uint16_t result; /* the slot that takes the value, or CK_NO_SLOT */
    int32_t call;
    uint8_t argument_kind[6];
    uint8_t skip;        /* steps to skip after a tolerated error */
    uint8_t leap;        /* steps to skip after success */
    int16_t tolerate[4]; /* error numbers that count as success; 0 is unused */
    int64_t argument[6];
};

enum ck_entry_kind { CK_ENTRY_DIRECTORY, CK_ENTRY_SYMLINK, CK_ENTRY_FILE, CK_ENTRY_KINDS };

#define CK_ENTRY_WRITING 1 /* added to the offset of an entry while its content is written */

/* What CK_STEP_POPULATE makes. A directory or symlink that exists is left as it is; a file must be new. The path
 * follows, then the content of a file or symlink. Paths and the content of a symlink end in a NUL, which counts. The
 * next entry begins at the next multiple of 8. */
struct ck_entry {
    uint32_t kind;
    uint32_t mode;
    uint32_t path_size;
    uint32_t content_size;
};

struct ck_failure {
    int32_t index;
    int32_t error;
};

#define CK_HELD (-2)       /* in place of an index: nothing has failed, the process waits */
#define CK_NONE (-1)       /* in place of an index: nothing has failed */
#define CK_SECOND 0x100000 /* added to the indices of a successor */

/* The gates of AWAIT and RELEASE. Stage 1 releases the first and the third, PID 1 the second. */
#define CK_GATES 3
#define CK_COMMAND_GATE 1
#define CK_BESIDE_GATE CK_GATES /* of AWAIT only, see beside.h */
enum ck_gate { CK_WAITING = 0, CK_RELEASED = 1, CK_ABORTED = 2 };

/* The gates of a tape that is walked beside its caller: see beside.h. */
enum ck_beside_gate { CK_BESIDE_FIRST = 0, CK_BESIDE_GO_ON = 1, CK_BESIDE_LAST = 2 };

/* How the failure of a process after STRIP is reported. */
enum ck_telling {
    CK_TELL_OUTSIDE, /* by the process that cloned it, or by a thread */
    CK_TELL_ITSELF,  /* by itself: the error pipe stays open, and a later step closes it */
    CK_TELL_MARKED   /* by itself: the exec closes the error pipe, because a filter may forbid a thread */
};

/* The state of a process, for the one that shares its memory and reports. The kernel sets 0 when it execs or ends. */
enum ck_progress { CK_GONE = 0, CK_COMING = 1, CK_HOLDING = 2 };

/* What CK_STEP_ENTER writes to a memfd: this, then the steps from `first` on, the data, the strings of argv and of
 * envp. The successor of a held start has the same layout on the board. */
struct ck_image {
    uint32_t first;
    uint32_t count;
    uint32_t data_size;
    uint32_t argc;
    uint32_t envc;
    uint32_t slot_count;
    int32_t board_fd; /* -1 for none */
    uint32_t reserved;
    int64_t slots[];
};

/* What a held start shares with the parent. The kernel accepts at most 6 MiB of arguments and environment. */
#define CK_BOARD_BYTES (8 * 1024 * 1024)
struct ck_board {
    uint32_t gate;
    struct ck_failure failure;
    uint32_t entered; /* of a command that joins: 1 once it shares no memory with the parent, or has failed */
    struct ck_image successor;
};

/* One start. It is in the parent's memory, shared with the children, until ENTER, and then in the sealed init. */
struct ck_request {
    const struct ck_step *steps;
    uint32_t count;
    char *data; /* a copy of the tape's data: STORE writes into it */
    uint32_t data_size;
    uint32_t argc, envc;
    char **argv; /* the strings follow each other, from argv[0] and from envp[0] on */
    char **envp;
    size_t argv_size, envp_size;
    uint32_t slot_count; /* how many slots the tape uses */
    int64_t slots[CK_SLOTS];
    int32_t proc_fd;  /* the caller's /proc */
    int32_t error_fd; /* write end of the error pipe */
    uint32_t gates[CK_GATES];
    uint32_t watched;          /* 1: the parent holds a pidfd of main_pid */
    int32_t main_pid;          /* the process that CLONE created with CLONE_PARENT */
    uint32_t next_stack;       /* number of stacks in use */
    char *stacks;              /* CK_STACKS of CK_STACK_BYTES each */
    int32_t base;              /* added to the index of a failed step */
    struct ck_failure failure; /* of a process after STRIP */
    uint32_t progress;         /* enum ck_progress, of that process */
    int32_t has_cloned;        /* 1: the walker after ENTER has cloned the command, and reports for it */
    struct ck_board *board;    /* 0 for none */
    int32_t board_fd;          /* of a board that the parent has made, else -1 */
    size_t board_size;
    struct ck_request *beside; /* of the process that walks beside this start, which shares the memory; 0 for none */
    /* In the sealed init, otherwise 0: the function for CK_STEP_INIT, and the request of the board (0: no memory). */
    void (*become_init)(struct ck_request *request, const char *mode);
    struct ck_request *(*await_successor)(struct ck_request *request, void (*wait)(struct ck_board *board));
    char *image; /* in the sealed init: the memory of the tape, whose pages are all in use */
    size_t image_size;
    char *shown; /* the arguments that ps(1) shows: "walk" and its numbers, up to the end of the strings */
};

/* Fill in the head of the image of a request. */
static inline void ck_head(struct ck_image *image, const struct ck_request *request, uint32_t first, int board_fd) {
    *image = (struct ck_image){
        .first = first,
        .count = request->count,
        .data_size = request->data_size,
        .argc = request->argc,
        .envc = request->envc,
        .slot_count = request->slot_count,
        .board_fd = board_fd,
    };
}

/* Tell the parent of a command that joins that it can go on. child.c */
void ck_has_entered(struct ck_board *board);

/* Walk the tape from step `index`; never returns. child.c */
__attribute__((noreturn)) void ck_walk(struct ck_request *request, uint32_t index);

#endif

/* The parent's side of a command that joins a live container. native.h describes the protocol. */
#define _GNU_SOURCE
#include "board.h"
#include "native.h"
#include "parent.h"
#include "spawn.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LOOK_AGAIN_NS 10000000 /* how often the parent checks that the command still lives */

/* Create the board in the caller's memory, with what the command walks in the sealed init, except the slots.
 *
 * It has a file of its own and is not used again: root of a container that may trace its processes can keep it. It is no
 * larger than needed: to unmap whole page tables interrupts all processors. */
static int make_board(struct ck_request *request, const struct ck_tape *tape, const char *argv, const char *envp) {
    uint32_t first = 0;
    while (first < request->count && request->steps[first].kind != CK_STEP_ENTER)
        first++;
    first += first < request->count;
    const struct ck_part parts[] = {
        {request->slots, request->slot_count * sizeof *request->slots},
        {request->steps + first, (request->count - first) * sizeof(struct ck_step)},
        {tape->data, tape->data_size},
        {argv, request->argv_size},
        {envp, request->envp_size},
    };
    size_t size = sizeof(struct ck_board) + ck_parts_size(parts, 5);
    if (size > CK_BOARD_BYTES)
        return -E2BIG;
    int fd = ck_above_assigned(memfd_create("board", MFD_CLOEXEC));
    if (fd < 0)
        return fd;
    request->board_fd = fd;
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    struct ck_board *board = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (board == MAP_FAILED)
        return -errno;
    board->failure.index = CK_NONE;
    ck_head(&board->successor, request, first, -1);
    ck_append(board->successor.slots, parts, 5);
    request->board = board;
    request->board_size = size;
    return 0;
}

#define PIDFD_OF_THREAD O_EXCL              /* PIDFD_THREAD, Linux 6.9 */
#define PIDFD_PID_FOR_CHILDREN _IO(0xFF, 6) /* PIDFD_GET_PID_FOR_CHILDREN_NAMESPACE, Linux 6.11 */

/* The pid namespace of this thread's children. Somebody may have set another than its own. */
static int own_pid_namespace(int proc_fd) {
    int thread = (int)CK_CALL2(pidfd_open, CK_CALL0(gettid), PIDFD_OF_THREAD);
    int own = thread < 0 ? -1 : ioctl(thread, PIDFD_PID_FOR_CHILDREN);
    if (thread >= 0)
        close(thread);
    if (own < 0)
        own = openat(proc_fd, "thread-self/ns/pid_for_children", O_RDONLY | O_CLOEXEC);
    return own < 0 ? -errno : own;
}

/* Return to the namespace `own` for children. If the thread stayed, its next children would be inside. Nothing but a
 * lack of memory can prevent this. */
static void come_back(int own) {
    for (int tries = 0; CK_CALL2(setns, own, CLONE_NEWPID) < 0; tries++) {
        if (tries == CK_TRIES)
            abort();
        CK_CALL0(sched_yield);
    }
}

static void run_joined(void *argument) {
    struct ck_request *request = argument;
    ck_reset_sigchld();
    ck_walk(request, 1);
}

/* The first step of the tape puts the children of the calling thread into the pid namespace. Source: setns(2). */
static long enter_pid_namespace(const struct ck_request *request) {
    const struct ck_step *step = request->steps;
    long value[2];
    for (int i = 0; i < 2; i++)
        value[i] = step->argument_kind[i] == CK_ARG_SLOT ? request->slots[step->argument[i]] : step->argument[i];
    return step->kind == CK_STEP_CALL ? ck_syscall(step->call, value[0], value[1], 0, 0, 0, 0) : -EINVAL;
}

static long clone_inside(struct ck_request *request, int own, int *pidfd, int *joined) {
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_CLEAR_SIGHAND | CLONE_PIDFD,
        .pidfd = (uint64_t)(uintptr_t)pidfd,
        .stack = (uint64_t)(uintptr_t)request->stacks,
        .stack_size = CK_STACK_BYTES,
    };
    request->next_stack = 1;
    long pid = enter_pid_namespace(request);
    *joined = pid >= 0;
    if (*joined) {
        pid = ck_clone3(&args, run_joined, request);
        come_back(own);
    }
    return pid;
}

/* Whether an ended process was killed, as by the stop of its container. It stays to be reaped. */
static int was_killed(int pidfd) {
    siginfo_t info = {0};
    int flags = WEXITED | WNOWAIT | WNOHANG | __WALL;
    return CK_CALL5(waitid, P_PIDFD, pidfd, &info, flags, 0) == 0 && info.si_code == CLD_KILLED &&
           info.si_status == SIGKILL;
}

/* Wait until the command shares no memory with this process. The command itself reports this, from the sealed init: at an
 * exec the kernel wakes waiting processes before it replaces the memory. Root of the container may kill or stop the
 * command before that. */
static void await_entry(struct ck_request *request, int pidfd, struct ck_result *result) {
    struct ck_failure failure = {CK_NONE, 0};
    const struct timespec patience = {0, LOOK_AGAIN_NS};
    struct pollfd watched = {pidfd, POLLIN, 0};
    uint32_t *entered = &request->board->entered;
    int64_t until = result->times_ns[1] + (int64_t)CK_START_MS * 1000000;
    while (!__atomic_load_n(entered, __ATOMIC_ACQUIRE)) {
        CK_CALL4(futex, entered, FUTEX_WAIT, 0, &patience);
        if (__atomic_load_n(entered, __ATOMIC_ACQUIRE))
            break;
        if (poll(&watched, 1, 0) == 1) {
            if (was_killed(pidfd)) /* the process that reaps the command gets this result */
                request->board->failure.index = CK_NONE;
            failure = request->board->failure;
            break;
        }
        if (ck_now_ns() > until) {
            failure = (struct ck_failure){INT_MAX, ETIMEDOUT};
            break;
        }
    }
    if (failure.index < 0)
        failure = request->failure; /* of a step before the init */
    result->failed_index = failure.index;
    result->error = failure.error;
}

/* Returns 0 or a negative error number of the parent's own preparations. */
static int join(struct ck_request *request, struct ck_result *result) {
    int own = own_pid_namespace(request->proc_fd);
    if (own < 0)
        return own;
    int pidfd = -1;
    int joined;
    uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof all);
    int serial = ck_enter_window(1);
    long pid = clone_inside(request, own, &pidfd, &joined);
    result->times_ns[1] = ck_now_ns();
    if (pid > 0)
        await_entry(request, pidfd, result);
    result->times_ns[2] = result->times_ns[3] = ck_now_ns();
    if (pid > 0 && result->failed_index >= 0)
        ck_end_process((pid_t)pid, pidfd);
    ck_leave_window(serial);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
    close(own);
    if (pid > 0 && result->failed_index < 0) {
        result->pid = (int32_t)pid;
        result->pidfd = pidfd;
    } else if (!joined) {
        result->failed_index = 0;
        result->error = (int32_t)-pid;
    }
    return pid < 0 && joined ? (int)pid : 0;
}

int ck_join(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
            size_t slot_count, int proc_fd, struct ck_result *result, struct ck_shared *board) {
    ck_begin(result);
    struct ck_request request = {.proc_fd = proc_fd};
    void *room = NULL;
    request.stacks = ck_stacks();
    int error = request.stacks ? ck_lay(&request, tape, argv, argc, envp, envc, &room) : -ENOMEM;
    request.error_fd = -1;
    if (!error) {
        ck_fill_slots(&request, slots, slot_count);
        error = make_board(&request, tape, argv, envp);
        if (error == -E2BIG) { /* as the exec would say */
            result->failed_index = (int32_t)tape->count - 1;
            result->error = E2BIG;
            error = 0;
        } else if (!error) {
            error = join(&request, result);
        }
        if (request.board_fd >= 0)
            close(request.board_fd);
        *board = (struct ck_shared){request.board, request.board_size};
    }
    free(room);
    return error;
}

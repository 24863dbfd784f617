/* The steps around an exec: when a program is looked up, nothing of the caller can be reached.
 *
 * The contract is that of child.c.
 */
#define _GNU_SOURCE /* AT_EMPTY_PATH */
#include "exec_steps.h"
#include "image.h"
#include "native.h"
#include "syscalls.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/time_types.h>
#include <signal.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif
#ifndef __WALL
#define __WALL 0x40000000
#endif

#define HELPER_ARGUMENTS 32

/* See native.h: the parent must hold a pidfd of the process that it waits for before that process execs. If the parent
 * does not come it may have been killed. Then continue, so that init notices the end of its owner. */
static void await_watcher(struct ck_request *request) {
    const struct __kernel_timespec patience = {0, CK_WATCHER_NS};
    while (request->main_pid && !__atomic_load_n(&request->watched, __ATOMIC_ACQUIRE))
        if (CK_CALL4(futex, &request->watched, FUTEX_WAIT, 0, &patience) == -ETIMEDOUT)
            return;
}

/* Really close the descriptors from `first` to `last`, except one. */
static long close_but(unsigned first, unsigned last, int spared) {
    if (first > last)
        return 0;
    if (spared < 0 || (unsigned)spared < first || (unsigned)spared > last)
        return CK_CALL3(close_range, first, last, 0);
    long result = 0;
    if ((unsigned)spared > first)
        result = CK_CALL3(close_range, first, spared - 1, 0);
    if (result == 0 && (unsigned)spared < last)
        result = CK_CALL3(close_range, spared + 1, last, 0);
    return result;
}

static void run_teller(void *argument) {
    struct ck_request *request = argument;
    while (__atomic_load_n(&request->progress, __ATOMIC_ACQUIRE) == CK_COMING)
        CK_CALL4(futex, &request->progress, FUTEX_WAIT, CK_COMING, 0);
    if (request->failure.index != CK_NONE)
        CK_CALL3(write, request->error_fd, &request->failure, sizeof request->failure);
    ck_leave(127);
}

/* The teller is a thread with its own descriptor table, which still has the error pipe. The kernel wakes it when the
 * process ends without an exec, whatever a filter forbids then. An exec kills it. */
static long start_teller(struct ck_request *request) {
    if (request->next_stack >= CK_STACKS)
        return -EAGAIN;
    request->progress = CK_COMING;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_SYSVSEM | CLONE_THREAD,
        .stack = (uint64_t)(uintptr_t)ck_next_stack(request),
        .stack_size = CK_STACK_BYTES,
    };
    long result = ck_clone3(&args, run_teller, request);
    if (result > 0)
        CK_CALL1(set_tid_address, &request->progress);
    return result;
}

/* Return CK_STRIPPED if another process or thread reports the failures of this process from now on.
 *
 * A program must not be looked up in memory shared with the caller. So there is no STRIP, and no exec, in that
 * memory. */
long ck_step_strip(struct ck_request *request, const int32_t *kept, long count, long telling) {
    if (!request->become_init)
        return -EINVAL;
    unsigned first = 3;
    long result = 0;
    for (long i = 0; i < count && result == 0; i++) {
        if (kept[i] < (int32_t)first)
            continue;
        result = CK_CALL3(fcntl, kept[i], F_SETFD, 0);
        if (result == 0)
            result = close_but(first, (unsigned)kept[i] - 1, request->error_fd);
        first = (unsigned)kept[i] + 1;
    }
    if (result == 0)
        result = close_but(first, ~0U, request->error_fd);
    if (result < 0 || telling != CK_TELL_OUTSIDE)
        return result;
    if (request->error_fd < 0)
        return CK_STRIPPED;
    /* If no thread can be created, the exec itself closes the error pipe, which gives access to nothing. */
    if (!request->has_cloned && start_teller(request) < 0)
        return 0;
    CK_CALL1(close, request->error_fd);
    return CK_STRIPPED;
}

static void set_progress(struct ck_request *request, uint32_t progress) {
    __atomic_store_n(&request->progress, progress, __ATOMIC_RELEASE);
    CK_CALL3(futex, &request->progress, FUTEX_WAKE, 1);
}

static void await_gate(struct ck_board *board) {
    while (__atomic_load_n(&board->gate, __ATOMIC_ACQUIRE) == CK_WAITING)
        CK_CALL4(futex, &board->gate, FUTEX_WAIT, CK_WAITING, 0);
}

/* A process that waits for a long time must not hold descriptors of its parent: a pipe among them would never end. */
long ck_step_hold(struct ck_request *request) {
    const struct ck_failure held = {CK_HELD, 0};
    if (!request->board)
        return -EINVAL;
    CK_CALL3(write, request->error_fd, &held, sizeof held);
    CK_CALL1(close, request->error_fd);
    set_progress(request, CK_HOLDING);
    struct ck_request *successor = request->await_successor(request, await_gate);
    if (!successor)
        return -ENOMEM;
    ck_walk(successor, 0);
}

/* Wait until the command that this process has cloned has exec'd or is held. Report its failure, if any. */
static void see_off(struct ck_request *request) {
    const struct __kernel_timespec patience = {0, CK_WATCHER_NS};
    while (__atomic_load_n(&request->progress, __ATOMIC_ACQUIRE) == CK_COMING)
        if (CK_CALL4(futex, &request->progress, FUTEX_WAIT, CK_COMING, &patience) == -ETIMEDOUT &&
            ck_has_ended(CK_OWNER_FD) == 1)
            ck_leave(137);
    if (request->failure.index == CK_NONE)
        return;
    CK_CALL3(write, request->error_fd, &request->failure, sizeof request->failure);
    ck_leave(127);
}

struct program {
    char *argv[HELPER_ARGUMENTS + 1];
    char pid[CK_DECIMAL_BYTES];
};

static void run_program(void *argument) {
    struct program *program = argument;
    uint64_t none = 0;
    char *envp[] = {0};
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    CK_CALL3(execve, program->argv[0], program->argv, envp);
    ck_leave(127);
}

/* newuidmap and newgidmap: set-user-ID programs that write the maps for unprivileged users. */
long ck_step_helper(struct ck_request *request, char *words, long count, long pid) {
    struct program program;
    if (count > HELPER_ARGUMENTS || request->next_stack >= CK_STACKS)
        return -E2BIG;
    *ck_put_number(program.pid, pid, 1) = 0;
    for (long i = 0; i < count; i++) {
        int is_pid = words[0] == 'P' && words[1] == 'I' && words[2] == 'D' && words[3] == 0;
        program.argv[i] = is_pid ? program.pid : words;
        while (*words++) {
        }
    }
    program.argv[count] = 0;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK,
        .stack = (uint64_t)(uintptr_t)ck_next_stack(request),
        .stack_size = CK_STACK_BYTES,
    };
    long child = ck_clone3(&args, run_program, &program);
    request->next_stack--; /* vfork: the helper no longer uses this stack */
    if (child < 0)
        return child;
    int status = 0;
    while (CK_CALL4(wait4, child, &status, __WALL, 0) == -EINTR) {
    }
    return status == 0 ? 0 : -ECANCELED;
}

/* Reset the dispositions first and the mask last, so that a pending signal has its default effect. SIGKILL and SIGSTOP
 * are refused, which is fine. */
long ck_step_signals(struct ck_request *request) {
    await_watcher(request);
    const struct ck_sigaction standard = {0};
    for (int number = 1; number <= 64; number++)
        CK_CALL4(rt_sigaction, number, &standard, 0, sizeof standard.mask);
    uint64_t none = 0;
    return CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
}

/* The sealed init has nothing left to exec. */
long ck_step_init(struct ck_request *request, long image, const char *mode, long first) {
    if (request->become_init) {
        if (request->has_cloned)
            see_off(request);
        CK_CALL3(close_range, first, ~0U, 0);
        request->become_init(request, mode);
    }
    await_watcher(request);
    char *argv[] = {"init", (char *)mode, 0};
    char *envp[] = {0};
    return CK_CALL5(execveat, image, "", argv, envp, AT_EMPTY_PATH);
}

/* The parent has written the rest of the tape to the board. If the init can't read it, nobody else will say so. */
static long take_board(struct ck_request *request, uint32_t next) {
    struct ck_board *board = request->board;
    for (uint32_t i = 0; i < request->slot_count; i++)
        board->successor.slots[i] = request->slots[i];
    board->failure = (struct ck_failure){(int32_t)next - 1, EPROTO};
    return request->board_fd;
}

/* These survive this exec: the descriptors that the rest of the tape needs, the tape, the board, and the pipe that
 * reports the result. */
long ck_step_enter(struct ck_request *request, const struct ck_step *step, const long value[6]) {
    const int32_t *kept = (const int32_t *)value[1];
    await_watcher(request);
    int joins = request->board_fd >= 0;
    long board = joins ? request->board_fd : value[3] ? ck_make_board(request) : -1;
    if ((joins || value[3]) && board < 0)
        return board;
    long result = CK_CALL3(close_range, 3, ~0U, CLOSE_RANGE_CLOEXEC);
    if (result < 0)
        return result;
    for (long i = 0; i < value[2]; i++)
        if (kept[i] >= 0)
            CK_CALL3(fcntl, kept[i], F_SETFD, 0);
    if (board >= 0)
        CK_CALL3(fcntl, board, F_SETFD, 0);
    uint32_t next = (uint32_t)(step - request->steps) + 1;
    long tape = joins ? take_board(request, next) : ck_write_image(request, next, (int)board);
    if (tape < 0)
        return tape;
    char words[3][CK_DECIMAL_BYTES];
    *ck_put_number(words[0], tape, 1) = 0;
    *ck_put_number(words[1], joins ? 0 : request->error_fd, 1) = 0; /* 0 is a stream: the tape is on the board */
    *ck_put_number(words[2], next, 1) = 0;
    if (!joins)
        CK_CALL3(fcntl, request->error_fd, F_SETFD, 0);
    char *argv[] = {"init", "walk", words[0], words[1], words[2], 0};
    char *envp[] = {0};
    return CK_CALL5(execveat, value[0], "", argv, envp, AT_EMPTY_PATH);
}

/* Only a process that is about to exec knows its pid. The strings are in its own memory: see STRIP. */
long ck_step_own_pid(char **variables, long offset) {
    char digits[CK_DECIMAL_BYTES];
    char *end = ck_put_number(digits, CK_CALL0(getpid), 1);
    char *at = variables[0];
    for (long i = 0; at && i < offset + (end - digits); i++)
        if (at[i] == 0)
            return -EINVAL;
    if (!at)
        return -EINVAL;
    *end = 0;
    at += offset;
    for (const char *from = digits; (*at++ = *from++);) {
    }
    return 0;
}

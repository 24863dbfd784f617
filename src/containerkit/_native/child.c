/* The child's side of a start: it walks the tape and does nothing else.
 *
 * Contract. This code runs in processes that share the memory of a threaded interpreter, each on its own small stack.
 * It takes no lock, allocates nothing and calls no function of libc: it makes only raw system calls (a test compares
 * the undefined symbols of this object with a list). Its only input is the request. Its only outputs are the slots, one
 * struct ck_failure in the error pipe, and the effects of the system calls.
 */
#define _GNU_SOURCE /* AT_EMPTY_PATH, O_CLOEXEC */
#include "image.h"
#include "native.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/netlink.h>
#include <linux/time_types.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC 4
#endif
#ifndef __WALL
#define __WALL 0x40000000
#endif

#define HELPER_ARGUMENTS 32
#define STRIPPED 1
#define DECIMAL_BYTES 24

struct branch {
    struct ck_request *request;
    uint32_t index;
};

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

void ck_has_entered(struct ck_board *board) {
    __atomic_store_n(&board->entered, 1, __ATOMIC_RELEASE);
    CK_CALL3(futex, &board->entered, FUTEX_WAKE, 1);
}

/* After STRIP a process has no error pipe. It stores the failure where another process or thread finds it, and ends
 * alone, which the teller notices. */
__attribute__((noreturn)) static void fail(struct ck_request *request, uint32_t index, long error, int stripped) {
    struct ck_failure failure = {(int32_t)index + request->base, (int32_t)error};
    if (!stripped) {
        CK_CALL3(write, request->error_fd, &failure, sizeof failure);
        leave(127);
    }
    request->failure = failure;
    if (request->board) {
        request->board->failure = failure;
        ck_has_entered(request->board);
    }
    CK_CALL1(exit, 127);
    leave(127);
}

/* Write `value` in decimal. Return the address after its last digit. */
static char *decimal(char *at, int64_t value) {
    char digits[DECIMAL_BYTES];
    int count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value > 0);
    while (count > 0)
        *at++ = digits[--count];
    return at;
}

static long resolve(const struct ck_request *request, const struct ck_step *step, int which) {
    int64_t value = step->argument[which];
    switch (step->argument_kind[which]) {
    case CK_ARG_DATA:
        return (long)(request->data + value);
    case CK_ARG_SLOT:
        return (long)request->slots[value];
    case CK_ARG_ARGV:
        return (long)request->argv;
    case CK_ARG_ENVP:
        return (long)request->envp;
    default:
        return (long)value;
    }
}

static void *next_stack(struct ck_request *request) {
    return request->stacks + (size_t)request->next_stack++ * CK_STACK_BYTES;
}

static void run_branch(void *argument) {
    /* The cloning process may be gone before we read this again, so copy it. */
    struct branch branch = *(struct branch *)argument;
    ck_walk(branch.request, branch.index);
}

/* In the sealed init, the process that clones the command reports its failures: see STRIP.
 *
 * With CLONE_PARENT the new process is a child of the process that requested the start. clone3 then accepts no exit
 * signal. */
static long step_clone(struct ck_request *request, const struct ck_step *step) {
    if (request->next_stack >= CK_STACKS)
        return -EAGAIN;
    char *stack = next_stack(request);
    /* Passed on the new stack itself, which outlives this frame. */
    struct branch *branch = (struct branch *)(void *)stack;
    branch->request = request;
    branch->index = (uint32_t)step->argument[5];
    uint64_t flags = (uint64_t)step->argument[0];
    if (request->become_init) {
        flags |= CLONE_CHILD_CLEARTID;
        request->has_cloned = 1;
        request->progress = CK_COMING;
    }
    struct clone_args args = {
        .flags = flags | CLONE_VM,
        .child_tid = (uint64_t)(uintptr_t)&request->progress,
        .exit_signal = (flags & CLONE_PARENT) ? 0 : SIGCHLD,
        .stack = (uint64_t)(uintptr_t)stack,
        .stack_size = CK_STACK_BYTES,
        .cgroup = (flags & CLONE_INTO_CGROUP) ? (uint64_t)resolve(request, step, 1) : 0,
    };
    long pid = ck_clone3(&args, run_branch, branch);
    if (pid > 0 && (flags & CLONE_PARENT))
        request->main_pid = (int32_t)pid;
    return pid;
}

/* No sched_yield: on a busy machine the scheduler puts who yields behind all others. The futex is not private: in the reference interpreter its word is in memory shared between address spaces. */
static long step_await(uint32_t *gate) {
    uint32_t state;
    for (int patience = CK_LOOKS; (state = __atomic_load_n(gate, __ATOMIC_ACQUIRE)) == CK_WAITING; patience--)
        if (patience > 0)
            ck_relax();
        else
            CK_CALL4(futex, gate, FUTEX_WAIT, CK_WAITING, 0);
    if (state == CK_ABORTED)
        leave(127);
    return 0;
}

/* See native.h: the parent must hold a pidfd of the process that it waits for before that process execs. If the parent
 * does not come it may have been killed. Then continue, so that init notices the end of its owner. */
static void await_watcher(struct ck_request *request) {
    const struct __kernel_timespec patience = {0, CK_WATCHER_NS};
    while (request->main_pid && !__atomic_load_n(&request->watched, __ATOMIC_ACQUIRE))
        if (CK_CALL4(futex, &request->watched, FUTEX_WAIT, 0, &patience) == -ETIMEDOUT)
            return;
}

static long step_release(uint32_t *gate) {
    __atomic_store_n(gate, CK_RELEASED, __ATOMIC_RELEASE);
    CK_CALL3(futex, gate, FUTEX_WAKE, 1);
    return 0;
}

/* --- The end of a tape: when a program is looked up, nothing of the caller can be reached ------------------------- */

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
    leave(127);
}

/* The teller is a thread with its own descriptor table, which still has the error pipe. The kernel wakes it when the
 * process ends without an exec, whatever a filter forbids then. An exec kills it. */
static long start_teller(struct ck_request *request) {
    if (request->next_stack >= CK_STACKS)
        return -EAGAIN;
    request->progress = CK_COMING;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_SYSVSEM | CLONE_THREAD,
        .stack = (uint64_t)(uintptr_t)next_stack(request),
        .stack_size = CK_STACK_BYTES,
    };
    long result = ck_clone3(&args, run_teller, request);
    if (result > 0)
        CK_CALL1(set_tid_address, &request->progress);
    return result;
}

/* Return STRIPPED if another process or thread reports the failures of this process from now on.
 *
 * A program must not be looked up in memory shared with the caller. So there is no STRIP, and no exec, in that
 * memory. */
static long step_strip(struct ck_request *request, const int32_t *kept, long count, long telling) {
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
        return STRIPPED;
    /* If no thread can be created, the exec itself closes the error pipe, which gives access to nothing. */
    if (!request->has_cloned && start_teller(request) < 0)
        return 0;
    CK_CALL1(close, request->error_fd);
    return STRIPPED;
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
static long step_hold(struct ck_request *request) {
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

static long has_ended(int pidfd) {
    struct pollfd watched = {pidfd, POLLIN, 0};
    const struct __kernel_timespec now = {0, 0};
    return CK_CALL5(ppoll, &watched, 1, &now, 0, 0);
}

/* Wait until the command that this process has cloned has exec'd or is held. Report its failure, if any. */
static void see_off(struct ck_request *request) {
    const struct __kernel_timespec patience = {0, CK_WATCHER_NS};
    while (__atomic_load_n(&request->progress, __ATOMIC_ACQUIRE) == CK_COMING)
        if (CK_CALL4(futex, &request->progress, FUTEX_WAIT, CK_COMING, &patience) == -ETIMEDOUT &&
            has_ended(CK_OWNER_FD) == 1)
            leave(137);
    if (request->failure.index == CK_NONE)
        return;
    CK_CALL3(write, request->error_fd, &request->failure, sizeof request->failure);
    leave(127);
}

static long step_open_proc(struct ck_request *request, long pid, const char *name, long flags) {
    char path[DECIMAL_BYTES + 64];
    char *at = decimal(path, pid);
    *at++ = '/';
    for (int left = 60; *name && left > 0; left--)
        *at++ = *name++;
    *at = 0;
    return CK_CALL4(openat, request->proc_fd, path, flags | O_CLOEXEC, 0);
}

struct program {
    char *argv[HELPER_ARGUMENTS + 1];
    char pid[DECIMAL_BYTES];
};

static void run_program(void *argument) {
    struct program *program = argument;
    uint64_t none = 0;
    char *envp[] = {0};
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    CK_CALL3(execve, program->argv[0], program->argv, envp);
    leave(127);
}

/* newuidmap and newgidmap: set-user-ID programs that write the maps for unprivileged users. */
static long step_helper(struct ck_request *request, char *words, long count, long pid) {
    struct program program;
    if (count > HELPER_ARGUMENTS || request->next_stack >= CK_STACKS)
        return -E2BIG;
    *decimal(program.pid, pid) = 0;
    for (long i = 0; i < count; i++) {
        int is_pid = words[0] == 'P' && words[1] == 'I' && words[2] == 'D' && words[3] == 0;
        program.argv[i] = is_pid ? program.pid : words;
        while (*words++) {
        }
    }
    program.argv[count] = 0;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK,
        .stack = (uint64_t)(uintptr_t)next_stack(request),
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
static long step_signals(void) {
    const struct ck_sigaction standard = {0};
    for (int number = 1; number <= 64; number++)
        CK_CALL4(rt_sigaction, number, &standard, 0, sizeof standard.mask);
    uint64_t none = 0;
    return CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
}

/* The sealed init has nothing left to exec. */
static long step_init(struct ck_request *request, long image, const char *mode, long first) {
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
static long step_enter(struct ck_request *request, const struct ck_step *step, const long value[6]) {
    const int32_t *kept = (const int32_t *)value[1];
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
    char words[3][DECIMAL_BYTES];
    *decimal(words[0], tape) = 0;
    *decimal(words[1], joins ? 0 : request->error_fd) = 0; /* 0 is a stream: it says that the tape is on the board */
    *decimal(words[2], next) = 0;
    if (!joins)
        CK_CALL3(fcntl, request->error_fd, F_SETFD, 0);
    char *argv[] = {"init", "walk", words[0], words[1], words[2], 0};
    char *envp[] = {0};
    return CK_CALL5(execveat, value[0], "", argv, envp, AT_EMPTY_PATH);
}

static long step_store(struct ck_request *request, const struct ck_step *step) {
    char *at = request->data + step->argument[0];
    long value = resolve(request, step, 1);
    if (step->kind == CK_STEP_STORE_SLOT)
        *(int32_t *)(void *)at = (int32_t)value;
    else
        *(int64_t *)(void *)at = (int64_t)value;
    return 0;
}

/* The slot of a closed descriptor becomes -1. After a failed start, the descriptors in slots must still be closed. */
static long step_close(struct ck_request *request, const struct ck_step *step) {
    long result = CK_CALL1(close, request->slots[step->argument[0]]);
    request->slots[step->argument[0]] = -1;
    return result;
}

/* openat2 below a root returns EAGAIN while any process renames something. openat2(2) says to try again. */
static long step_call(long call, const long value[6]) {
    long result;
    int tries = CK_TRIES;
    do {
        result = ck_syscall(call, value[0], value[1], value[2], value[3], value[4], value[5]);
    } while (result == -EAGAIN && call == SYS_openat2 && --tries > 0);
    return result;
}

static int tolerated(const struct ck_step *step, long error) {
    for (int i = 0; i < 4; i++)
        if (step->tolerate[i] == error)
            return 1;
    return 0;
}

/* Answers that are no ack, those of RTM_GET*, are dropped. The ack of what fails stays: the caller reads the kernel's
 * own words from it. Source: netlink(7). */
static long step_netlink(const struct ck_step *step, int socket, const char *message, long size) {
    struct {
        struct nlmsghdr header;
        struct nlmsgerr ack;
    } answer;
    long result = CK_CALL6(sendto, socket, message, size, 0, 0, 0);
    while (result >= 0) {
        result = CK_CALL6(recvfrom, socket, &answer, sizeof answer, MSG_PEEK, 0, 0);
        if (result < (long)sizeof answer.header)
            return result < 0 ? result : -EBADMSG;
        int is_ack = answer.header.nlmsg_type == NLMSG_ERROR;
        if (is_ack && answer.ack.error && !tolerated(step, -answer.ack.error))
            return answer.ack.error;
        result = CK_CALL6(recvfrom, socket, &answer, sizeof answer, 0, 0, 0);
        if (is_ack)
            return answer.ack.error;
    }
    return result;
}

/* Only a process that is about to exec knows its pid. The strings are in its own memory: see STRIP. */
static long step_own_pid(char **variables, long offset) {
    char digits[DECIMAL_BYTES];
    char *end = decimal(digits, CK_CALL0(getpid));
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

static long perform(struct ck_request *request, const struct ck_step *step) {
    if (step->kind == CK_STEP_CLONE)
        return step_clone(request, step);
    if (step->kind == CK_STEP_CLOSE)
        return step_close(request, step);
    if (step->kind == CK_STEP_STORE_SLOT || step->kind == CK_STEP_STORE_ADDRESS)
        return step_store(request, step);
    long value[6];
    for (int i = 0; i < 6; i++)
        value[i] = resolve(request, step, i);
    switch (step->kind) {
    case CK_STEP_CALL:
        return step_call(step->call, value);
    case CK_STEP_AWAIT:
        return step_await(&request->gates[value[0]]);
    case CK_STEP_RELEASE:
        return step_release(&request->gates[value[0]]);
    case CK_STEP_OPEN_PROC:
        return step_open_proc(request, value[0], (const char *)value[1], value[2]);
    case CK_STEP_HELPER:
        return step_helper(request, (char *)value[0], value[1], value[2]);
    case CK_STEP_SIGNALS:
        await_watcher(request);
        return step_signals();
    case CK_STEP_INIT:
        return step_init(request, value[0], (const char *)value[1], value[2]);
    case CK_STEP_ENTER:
        await_watcher(request);
        return step_enter(request, step, value);
    case CK_STEP_HOLD:
        return step_hold(request);
    case CK_STEP_LIVES: {
        long ended = has_ended((int)value[0]);
        return ended > 0 ? -ESRCH : ended;
    }
    case CK_STEP_NETLINK:
        return step_netlink(step, (int)value[0], (const char *)value[1], value[2]);
    case CK_STEP_OWN_PID:
        return request->become_init ? step_own_pid((char **)value[0], value[1]) : -EINVAL;
    case CK_STEP_STRIP:
        return step_strip(request, (const int32_t *)value[0], value[1], value[2]);
    default:
        leave(0);
    }
}

void ck_walk(struct ck_request *request, uint32_t index) {
    int stripped = request->error_fd < 0; /* for this process only: another may walk the same request */
    for (; index < request->count; index++) {
        const struct ck_step *step = &request->steps[index];
        long result = perform(request, step);
        if (result < 0 && result > -4096) {
            if (!tolerated(step, -result))
                fail(request, index, -result, stripped);
            index += step->skip;
        } else {
            index += step->leap;
            stripped |= step->kind == CK_STEP_STRIP && result == STRIPPED;
        }
        if (step->result != CK_NO_SLOT)
            request->slots[step->result] = result;
    }
    leave(0);
}

/* The child's side of a start: it walks the tape, nothing else.
 *
 * Contract. This code runs in processes that share the memory of a threaded interpreter, each on a small stack of its
 * own. It takes no lock, allocates nothing and calls nothing of libc: raw system calls only (a test holds the undefined
 * symbols of this object against an allow-list). Its only input is the request, its only outputs are the slots, one
 * struct ck_failure in the error pipe, and what the kernel was asked to do.
 */
#define _GNU_SOURCE /* AT_EMPTY_PATH, O_CLOEXEC */
#include "native.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/time_types.h>
#include <signal.h>
#include <sys/uio.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#endif
#ifndef __WALL
#define __WALL 0x40000000
#endif

#define HELPER_ARGUMENTS 32
#define DECIMAL_BYTES 24

struct branch {
    struct ck_request *request;
    uint32_t index;
};

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

__attribute__((noreturn)) static void fail(struct ck_request *request, uint32_t index, long error) {
    struct ck_failure failure = {(int32_t)index + request->base, (int32_t)error};
    CK_CALL3(write, request->error_fd, &failure, sizeof failure);
    leave(127);
}

/* Write `value` in decimal; return the address past its last digit. */
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
    /* The cloning process may be gone before we look twice: copy what it handed us. */
    struct branch branch = *(struct branch *)argument;
    ck_walk(branch.request, branch.index);
}

/* CLONE_PARENT keeps the new process a child of the one that asked for the start; clone3 then refuses an exit signal. */
static long step_clone(struct ck_request *request, const struct ck_step *step) {
    if (request->next_stack >= CK_STACKS)
        return -EAGAIN;
    char *stack = next_stack(request);
    /* Handed over on the new stack itself, which outlives this frame. */
    struct branch *branch = (struct branch *)(void *)stack;
    branch->request = request;
    branch->index = (uint32_t)step->argument[5];
    uint64_t flags = (uint64_t)step->argument[0];
    struct clone_args args = {
        .flags = flags | CLONE_VM,
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

/* The futex is not private: in the reference interpreter its word lies in memory shared between address spaces. */
static long step_await(uint32_t *gate) {
    uint32_t state;
    for (int patience = CK_YIELDS; (state = __atomic_load_n(gate, __ATOMIC_ACQUIRE)) == CK_WAITING; patience--)
        if (patience > 0)
            CK_CALL0(sched_yield);
        else
            CK_CALL4(futex, gate, FUTEX_WAIT, CK_WAITING, 0);
    if (state == CK_ABORTED)
        leave(127);
    return 0;
}

/* See native.h: the process that the parent is going to wait for is held by a pidfd before it execs. A parent that does
 * not come may have been killed: then go on, so that init sees its owner's end. */
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

/* What waits for long must hold nothing of its parent's: a pipe of it would never come to its end. */
static long step_hold(struct ck_request *request) {
    const struct ck_failure held = {CK_HELD, 0};
    long result = CK_CALL3(close_range, 3, request->error_fd - 1, 0);
    if (result == 0)
        result = CK_CALL3(close_range, request->error_fd + 1, ~0U, 0);
    if (result < 0)
        return result;
    CK_CALL3(write, request->error_fd, &held, sizeof held);
    uint32_t *gate = &request->gates[CK_HOLD_GATE];
    while (__atomic_load_n(gate, __ATOMIC_ACQUIRE) == CK_WAITING)
        CK_CALL4(futex, gate, FUTEX_WAIT, CK_WAITING, 0);
    ck_walk(request->successor, 0);
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

/* newuidmap and newgidmap: set-uid programs that write the maps which an ordinary user may not. */
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
    request->next_stack--; /* vfork: the helper is off this stack now */
    if (child < 0)
        return child;
    int status = 0;
    while (CK_CALL4(wait4, child, &status, __WALL, 0) == -EINTR) {
    }
    return status == 0 ? 0 : -ECANCELED;
}

/* Dispositions first, the mask last: a pending signal then meets its default. SIGKILL and SIGSTOP refuse, rightly. */
static long step_signals(void) {
    const struct ck_sigaction standard = {0};
    for (int number = 1; number <= 64; number++)
        CK_CALL4(rt_sigaction, number, &standard, 0, sizeof standard.mask);
    uint64_t none = 0;
    return CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
}

static long step_init(long image, const char *mode) {
    char *argv[] = {"init", (char *)mode, 0};
    char *envp[] = {0};
    return CK_CALL5(execveat, image, "", argv, envp, AT_EMPTY_PATH);
}

/* Write the rest of the start, as it stands, where a program finds it that shares no memory with us: struct ck_image. */
static long write_image(struct ck_request *request) {
    struct ck_image head = {request->count, request->data_size, request->argc, request->envc, request->slot_count, 0};
    struct iovec parts[] = {
        {&head, sizeof head},
        {request->slots, request->slot_count * sizeof *request->slots},
        {(void *)(uintptr_t)request->steps, request->count * sizeof *request->steps},
        {request->data, request->data_size},
        {request->argv[0], request->argv_size},
        {request->envp[0], request->envp_size},
    };
    size_t size = 0;
    for (int i = 0; i < 6; i++)
        size += parts[i].iov_len;
    long tape = CK_CALL2(memfd_create, "tape", MFD_NOEXEC_SEAL);
    if (tape == -EINVAL) /* before Linux 6.3 */
        tape = CK_CALL2(memfd_create, "tape", 0);
    if (tape < 0)
        return tape;
    long written = CK_CALL3(writev, tape, parts, 6);
    return written < 0 ? written : (size_t)written == size ? tape : -ENOSPC;
}

/* Two descriptors must outlive this exec: the tape, and the pipe that tells how it went on. */
static long step_enter(struct ck_request *request, const struct ck_step *step, long image) {
    long tape = write_image(request);
    if (tape < 0)
        return tape;
    char words[3][DECIMAL_BYTES];
    *decimal(words[0], tape) = 0;
    *decimal(words[1], request->error_fd) = 0;
    *decimal(words[2], step - request->steps + 1) = 0;
    CK_CALL3(fcntl, request->error_fd, F_SETFD, 0);
    char *argv[] = {"init", "walk", words[0], words[1], words[2], 0};
    char *envp[] = {0};
    return CK_CALL5(execveat, image, "", argv, envp, AT_EMPTY_PATH);
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

/* A slot whose descriptor is closed says so: what is left in the slots of a failed start is what must still be closed. */
static long step_close(struct ck_request *request, const struct ck_step *step) {
    long result = CK_CALL1(close, request->slots[step->argument[0]]);
    request->slots[step->argument[0]] = -1;
    return result;
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
        return ck_syscall(step->call, value[0], value[1], value[2], value[3], value[4], value[5]);
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
        await_watcher(request);
        return step_init(value[0], (const char *)value[1]);
    case CK_STEP_ENTER:
        await_watcher(request);
        return step_enter(request, step, value[0]);
    case CK_STEP_HOLD:
        return step_hold(request);
    default:
        leave(0);
    }
}

static int tolerated(const struct ck_step *step, long error) {
    for (int i = 0; i < 4; i++)
        if (step->tolerate[i] == error)
            return 1;
    return 0;
}

void ck_walk(struct ck_request *request, uint32_t index) {
    for (; index < request->count; index++) {
        const struct ck_step *step = &request->steps[index];
        long result = perform(request, step);
        if (result < 0 && result > -4096) {
            if (!tolerated(step, -result))
                fail(request, index, -result);
            index += step->skip;
        } else {
            index += step->leap;
        }
        if (step->result != CK_NO_SLOT)
            request->slots[step->result] = result;
    }
    leave(0);
}

/* The child's side of a start: it walks the tape and does nothing else. The steps around an exec are in exec_steps.c.
 *
 * Contract. This code runs in processes that share the memory of a threaded interpreter, each on its own small stack.
 * It takes no lock, allocates nothing and calls no function of libc: it makes only raw system calls (a test checks
 * that the objects have no undefined symbols). Its only input is the request. Its only outputs are the slots, one
 * struct ck_failure in the error pipe, and the effects of the system calls.
 */
#define _GNU_SOURCE /* O_CLOEXEC */
#include "exec_steps.h"
#include "native.h"
#include "populate.h"
#include "syscalls.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/netlink.h>
#include <signal.h>
#include <sys/socket.h>

struct branch {
    struct ck_request *request;
    uint32_t index;
};

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
        ck_leave(127);
    }
    request->failure = failure;
    if (request->board) {
        request->board->failure = failure;
        ck_has_entered(request->board);
    }
    CK_CALL1(exit, 127);
    ck_leave(127);
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
    char *stack = ck_next_stack(request);
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

/* No sched_yield: on a busy machine the scheduler puts who yields behind all others. The futex is not private: in the
 * reference interpreter its word is in memory shared between address spaces. */
static long step_await(uint32_t *gate) {
    uint32_t state;
    for (int patience = CK_LOOKS; (state = __atomic_load_n(gate, __ATOMIC_ACQUIRE)) == CK_WAITING; patience--)
        if (patience > 0)
            ck_relax();
        else
            CK_CALL4(futex, gate, FUTEX_WAIT, CK_WAITING, 0);
    if (state == CK_ABORTED)
        ck_leave(127);
    return 0;
}

/* In the sealed init that process can't be seen. */
static long await_beside(const struct ck_request *request) {
    struct ck_request *other = request->beside;
    if (request->become_init)
        return -EINVAL;
    if (!other)
        return 0;
    for (int patience = CK_LOOKS; __atomic_load_n(&other->progress, __ATOMIC_ACQUIRE) == CK_COMING; patience--)
        if (patience > 0)
            ck_relax();
        else
            CK_CALL4(futex, &other->progress, FUTEX_WAIT, CK_COMING, 0);
    return other->gates[CK_BESIDE_LAST] == CK_RELEASED ? 0 : -ECANCELED;
}

static long step_release(uint32_t *gate) {
    __atomic_store_n(gate, CK_RELEASED, __ATOMIC_RELEASE);
    CK_CALL3(futex, gate, FUTEX_WAKE, 1);
    return 0;
}

static long step_open_proc(struct ck_request *request, long pid, const char *name, long flags) {
    char path[CK_DECIMAL_BYTES + 64];
    char *at = ck_put_number(path, pid, 1);
    *at++ = '/';
    for (int left = 60; *name && left > 0; left--)
        *at++ = *name++;
    *at = 0;
    return CK_CALL4(openat, request->proc_fd, path, flags | O_CLOEXEC, 0);
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

/* Answers that are not acks, those of RTM_GET*, are dropped. The ack of a failure stays in the socket: the caller reads
 * the kernel's message from it. Source: netlink(7). */
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
        return value[0] == CK_BESIDE_GATE ? await_beside(request) : step_await(&request->gates[value[0]]);
    case CK_STEP_RELEASE:
        return step_release(&request->gates[value[0]]);
    case CK_STEP_OPEN_PROC:
        return step_open_proc(request, value[0], (const char *)value[1], value[2]);
    case CK_STEP_HELPER:
        return ck_step_helper(request, (char *)value[0], value[1], value[2]);
    case CK_STEP_SIGNALS:
        return ck_step_signals(request);
    case CK_STEP_INIT:
        return ck_step_init(request, value[0], (const char *)value[1], value[2]);
    case CK_STEP_ENTER:
        return ck_step_enter(request, step, value);
    case CK_STEP_HOLD:
        return ck_step_hold(request);
    case CK_STEP_LIVES: {
        long ended = ck_has_ended((int)value[0]);
        return ended > 0 ? -ESRCH : ended;
    }
    case CK_STEP_NETLINK:
        return step_netlink(step, (int)value[0], (const char *)value[1], value[2]);
    case CK_STEP_OWN_PID:
        return request->become_init ? ck_step_own_pid((char **)value[0], value[1]) : -EINVAL;
    case CK_STEP_POPULATE:
        return ck_populate((int)value[0], (const char *)value[1], value[2], &request->slots[step->argument[3]]);
    case CK_STEP_STRIP:
        return ck_step_strip(request, (const int32_t *)value[0], value[1], value[2]);
    default:
        ck_leave(0);
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
            stripped |= step->kind == CK_STEP_STRIP && result == CK_STRIPPED;
        }
        if (step->result != CK_NO_SLOT)
            request->slots[step->result] = result;
    }
    ck_leave(0);
}

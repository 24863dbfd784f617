/* The parent's side of a start: the protocol is drawn in native.h. */
#define _GNU_SOURCE
#include "spawn.h"
#include "native.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096

/* --- Stacks: one mapping per thread, kept for its next start ------------------------------------------------------ */

static pthread_key_t stacks_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread char *thread_stacks;

static const size_t stacks_bytes = (size_t)CK_STACKS * CK_STACK_BYTES + PAGE;

static char *map_stacks(void) {
    char *mapping = mmap(NULL, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    mprotect(mapping, PAGE, PROT_NONE); /* the lowest stack grows into this */
    return mapping;
}

static void free_stacks(void *mapping) { munmap(mapping, stacks_bytes); }

static char *own_stacks(void) {
    if (!thread_stacks) {
        thread_stacks = map_stacks();
        pthread_setspecific(stacks_key, thread_stacks);
    }
    return thread_stacks;
}

/* --- Dumpability --------------------------------------------------------------------------------------------------
 * A change of credentials in a child clears the flag of the memory that it shares with us (commit_creds() in
 * kernel/cred.c), and a child that joins a live container must be out of reach of those inside for as long as it maps
 * our heap. Both make windows that may overlap between threads: the first in notes the flag, the last out restores it.
 *
 * An ordinary user's child is reached through /proc/PID/uid_map, which belongs to root while the flag is off; there
 * one start at a time holds the whole window.
 */
static pthread_mutex_t window_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t unprivileged_lock = PTHREAD_MUTEX_INITIALIZER;
static int window_depth;
static int window_dumpable;

static void after_fork(void) {
    pthread_mutex_init(&window_lock, NULL);
    pthread_mutex_init(&unprivileged_lock, NULL);
    if (window_depth > 0 && window_dumpable == 1)
        prctl(PR_SET_DUMPABLE, 1);
    window_depth = 0;
}

static void initialise(void) {
    pthread_key_create(&stacks_key, free_stacks);
    pthread_atfork(NULL, NULL, after_fork);
}

static int enter_window(int hide) {
    int serial = geteuid() != 0;
    if (serial)
        pthread_mutex_lock(&unprivileged_lock);
    pthread_mutex_lock(&window_lock);
    if (window_depth++ == 0)
        window_dumpable = prctl(PR_GET_DUMPABLE);
    if (hide)
        prctl(PR_SET_DUMPABLE, 0);
    pthread_mutex_unlock(&window_lock);
    return serial;
}

static void leave_window(int serial) {
    pthread_mutex_lock(&window_lock);
    if (--window_depth == 0 && window_dumpable == 1)
        prctl(PR_SET_DUMPABLE, 1);
    pthread_mutex_unlock(&window_lock);
    if (serial)
        pthread_mutex_unlock(&unprivileged_lock);
}

/* --- The request -------------------------------------------------------------------------------------------------- */

static int valid_argument(const struct ck_step *step, int which, size_t data_size) {
    int64_t value = step->argument[which];
    switch (step->argument_kind[which]) {
    case CK_ARG_DATA:
        return value >= 0 && (size_t)value < data_size;
    case CK_ARG_SLOT:
        return value >= 0 && value < CK_SLOTS;
    default:
        return step->argument_kind[which] < CK_ARG_KINDS;
    }
}

static int valid_step(const struct ck_step *step, const struct ck_tape *tape) {
    if (step->kind >= CK_STEP_KINDS || (step->result != CK_NO_SLOT && step->result >= CK_SLOTS))
        return 0;
    for (int i = 0; i < 6; i++)
        if (!valid_argument(step, i, tape->data_size))
            return 0;
    if (step->kind == CK_STEP_CLONE)
        return step->argument[5] >= 0 && (size_t)step->argument[5] < tape->count;
    if (step->kind == CK_STEP_CLOSE)
        return step->argument_kind[0] == CK_ARG_SLOT;
    if (step->kind == CK_STEP_AWAIT || step->kind == CK_STEP_RELEASE)
        return step->argument_kind[0] == CK_ARG_INTEGER && step->argument[0] >= 0 && step->argument[0] < CK_GATES;
    if (step->kind == CK_STEP_STORE_SLOT || step->kind == CK_STEP_STORE_ADDRESS) {
        size_t width = step->kind == CK_STEP_STORE_SLOT ? 4 : 8;
        return step->argument[0] >= 0 && (size_t)step->argument[0] + width <= tape->data_size;
    }
    return 1;
}

size_t ck_check(const struct ck_tape *tape) {
    const struct ck_step *steps = tape->steps;
    const char *data = tape->data;
    if (tape->data_size > 0 && data[tape->data_size - 1] != 0)
        return 1; /* a string without its end */
    for (size_t i = 0; i < tape->count; i++)
        if (!valid_step(&steps[i], tape))
            return i + 1;
    return 0;
}

/* Let a vector point to strings that lie one after the other; return their size. */
static size_t point(char **vector, char *strings, size_t count) {
    char *at = strings;
    for (size_t i = 0; i < count; i++) {
        vector[i] = at;
        at += strlen(at) + 1;
    }
    vector[count] = NULL;
    return (size_t)(at - strings);
}

/* Lay a tape in a request. One allocation: the data's copy, then both vectors. */
static int lay(struct ck_request *request, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
               size_t envc, void **room) {
    size_t data_bytes = (tape->data_size + 15) & ~(size_t)15;
    *room = malloc(data_bytes + (argc + envc + 2) * sizeof(char *));
    if (!*room)
        return -ENOMEM;
    request->steps = tape->steps;
    request->count = (uint32_t)tape->count;
    request->data_size = (uint32_t)tape->data_size;
    request->argc = (uint32_t)argc;
    request->envc = (uint32_t)envc;
    request->data = *room;
    memcpy(request->data, tape->data, tape->data_size);
    request->argv = (char **)(void *)(request->data + data_bytes);
    request->envp = request->argv + argc + 1;
    request->argv_size = point(request->argv, (char *)(uintptr_t)argv, argc);
    request->envp_size = point(request->envp, (char *)(uintptr_t)envp, envc);
    return 0;
}

static void fill_slots(struct ck_request *request, const int64_t *slots, size_t count) {
    request->slot_count = (uint32_t)(count < CK_SLOTS ? count : CK_SLOTS);
    for (size_t i = 0; i < CK_SLOTS; i++)
        request->slots[i] = i < request->slot_count ? slots[i] : -1;
}

static int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void reap(pid_t pid) {
    while (wait4(pid, NULL, __WALL, NULL) < 0 && errno == EINTR) {
    }
}

/* CLONE_CLEAR_SIGHAND leaves ignored signals ignored. With SIGCHLD among them the kernel would reap the command before
 * PID 1 does, and nobody would know its status. */
static void run_stage(void *request) {
    const struct ck_sigaction standard = {0};
    CK_CALL4(rt_sigaction, SIGCHLD, &standard, 0, sizeof standard.mask);
    ck_walk(request, 0);
}

/* Stage 1 holds this thread until it has exec'd or ended (CLONE_VFORK). */
static long clone_stage(struct ck_request *request, int flags) {
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_CLEAR_SIGHAND | ((flags & CK_SHARE_FILES) ? CLONE_FILES : 0),
        .stack = (uint64_t)(uintptr_t)request->stacks,
        .stack_size = CK_STACK_BYTES,
    };
    request->next_stack = 1;
    return ck_clone3(&args, run_stage, request);
}

/* End of file means that every process of the start has exec'd or left; one that is held says so (`good` is then the
 * size of its word). A short read is as bad as a report, and so is silence: one who is root in a live container can stop
 * a process that joins it. */
static void read_failure(int error_read, ssize_t good, struct ck_result *result) {
    struct pollfd watched = {error_read, POLLIN, 0};
    int ready;
    do {
        ready = poll(&watched, 1, CK_START_MS);
    } while (ready < 0 && errno == EINTR);
    if (ready == 0) {
        result->failed_index = INT_MAX;
        result->error = ETIMEDOUT;
        return;
    }
    struct ck_failure failure;
    ssize_t got;
    do {
        got = read(error_read, &failure, sizeof failure);
    } while (got < 0 && errno == EINTR);
    if (got == good && (got == 0 || failure.index == CK_HELD))
        return;
    int told = got == sizeof failure && failure.index >= 0;
    result->failed_index = told ? failure.index : 0;
    result->error = told ? failure.error : EPROTO;
}

static void set(uint32_t *word, uint32_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
    CK_CALL3(futex, word, FUTEX_WAKE, INT_MAX); /* PID 1 and the command may both wait for `watched` */
}

/* Kill a process and wait for it. Where there is no pidfd it has not exec'd yet or is stage 1: nobody else has reaped it,
 * and the number is still its own. */
static void end_process(pid_t pid, int pidfd) {
    if (pidfd < 0) {
        kill(pid, SIGKILL);
        reap(pid);
        return;
    }
    CK_CALL4(pidfd_send_signal, pidfd, SIGKILL, 0, 0);
    while (CK_CALL5(waitid, P_PIDFD, pidfd, 0, WEXITED | __WALL, 0) == -EINTR) {
    }
    close(pidfd);
}

/* A start whose processes all leave; they may have our own descriptors (CK_SHARE_FILES), the error pipe among them. */
static void finish_without_process(struct ck_request *request, pid_t stage, int error_pipe[2],
                                   struct ck_result *result) {
    reap(stage);
    if (request->main_pid) {
        if (request->gates[0] == CK_WAITING)
            set(&request->gates[0], CK_ABORTED);
        set(&request->watched, 1);
        reap(request->main_pid);
    }
    result->times_ns[2] = now_ns();
    close(error_pipe[1]);
    read_failure(error_pipe[0], 0, result);
    result->times_ns[3] = now_ns();
}

static void finish(struct ck_request *request, pid_t stage, int flags, int error_pipe[2], struct ck_result *result) {
    close(error_pipe[1]);
    pid_t pid = request->main_pid ? request->main_pid : stage;
    int pidfd = -1;
    if (request->main_pid) {
        reap(stage);
        if (request->gates[0] == CK_WAITING)
            set(&request->gates[0], CK_ABORTED);
        pidfd = (int)CK_CALL2(pidfd_open, pid, 0);
        if (pidfd < 0)
            kill(pid, SIGKILL); /* it has not exec'd: unreaped, so the number is still its own */
        set(&request->watched, 1);
    }
    result->times_ns[2] = now_ns();
    read_failure(error_pipe[0], (flags & CK_HOLD) ? (ssize_t)sizeof(struct ck_failure) : 0, result);
    result->times_ns[3] = now_ns();
    if (!request->main_pid && result->failed_index < 0)
        pidfd = (int)CK_CALL2(pidfd_open, pid, 0);
    if (pidfd < 0 && result->failed_index < 0) {
        result->failed_index = INT_MAX;
        result->error = -pidfd;
    }
    if (result->failed_index >= 0) {
        end_process(pid, pidfd);
        return;
    }
    result->pid = pid;
    result->pidfd = pidfd;
}

static int open_error_pipe(int error_pipe[2]) {
    if (pipe2(error_pipe, O_CLOEXEC) < 0)
        return -errno;
    /* Above the numbers that the tape gives to streams and to init. */
    if (error_pipe[1] < CK_LOWEST_FD) {
        int moved = fcntl(error_pipe[1], F_DUPFD_CLOEXEC, CK_LOWEST_FD);
        int error = errno == EINVAL ? EMFILE : errno; /* the limit lies below: fcntl(2) */
        close(error_pipe[1]);
        if (moved < 0) {
            close(error_pipe[0]);
            return -error;
        }
        error_pipe[1] = moved;
    }
    return 0;
}

/* Returns the read end of the error pipe, for the caller to close, or a negative error number. */
static int start(struct ck_request *request, int flags, struct ck_result *result) {
    int error_pipe[2];
    int error = open_error_pipe(error_pipe);
    if (error)
        return error;
    request->error_fd = error_pipe[1];
    uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof all);
    int serial = enter_window(flags & CK_HIDE_MEMORY);
    long stage = clone_stage(request, flags);
    result->times_ns[1] = now_ns();
    if (stage < 0)
        close(error_pipe[1]);
    else if (flags & CK_NO_PROCESS)
        finish_without_process(request, (pid_t)stage, error_pipe, result);
    else
        finish(request, (pid_t)stage, flags, error_pipe, result);
    leave_window(serial);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
    if (stage >= 0)
        return error_pipe[0];
    close(error_pipe[0]);
    return (int)stage;
}

static void begin(struct ck_result *result) {
    pthread_once(&once, initialise);
    *result = (struct ck_result){.failed_index = -1, .pidfd = -1};
    result->times_ns[0] = now_ns();
}

int ck_spawn(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
             size_t slot_count, int proc_fd, int flags, struct ck_result *result) {
    begin(result);
    struct ck_request request = {.proc_fd = proc_fd};
    void *room = NULL;
    int error = own_stacks() ? lay(&request, tape, argv, argc, envp, envc, &room) : -ENOMEM;
    if (!error) {
        request.stacks = thread_stacks + PAGE;
        fill_slots(&request, slots, slot_count);
        int error_read = start(&request, flags, result);
        if (error_read >= 0)
            close(error_read);
        else
            error = error_read;
        memcpy(slots, request.slots, request.slot_count * sizeof *slots);
    }
    free(room);
    return error;
}

/* --- Starts that are held ----------------------------------------------------------------------------------------- */

struct ck_held {
    struct ck_request request;
    struct ck_request successor;
    void *room[2]; /* of each of the two */
    char *stacks;
    int error_read;
};

static void free_held(struct ck_held *held) {
    free(held->room[0]);
    free(held->room[1]);
    if (held->stacks)
        free_stacks(held->stacks);
    free(held);
}

int ck_hold(const struct ck_tape *tape, int64_t *slots, size_t slot_count, int proc_fd, int flags,
            struct ck_result *result, struct ck_held **held) {
    begin(result);
    struct ck_held *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    made->stacks = map_stacks();
    int error = made->stacks ? lay(&made->request, tape, "", 0, "", 0, &made->room[0]) : -ENOMEM;
    if (!error) {
        made->request.proc_fd = proc_fd;
        made->request.stacks = made->stacks + PAGE;
        made->request.successor = &made->successor;
        fill_slots(&made->request, slots, slot_count);
        made->error_read = start(&made->request, flags, result);
        if (made->error_read < 0)
            error = made->error_read;
        else if (result->failed_index >= 0)
            close(made->error_read);
    }
    if (error || result->failed_index >= 0)
        free_held(made);
    else
        *held = made;
    return error;
}

int ck_let_go(struct ck_held *held, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
              size_t envc, struct ck_result *result) {
    struct ck_request *successor = &held->successor;
    int error = lay(successor, tape, argv, argc, envp, envc, &held->room[1]);
    if (error) {
        ck_end(held, result);
        return error;
    }
    successor->proc_fd = -1;
    successor->error_fd = held->request.error_fd;
    successor->next_stack = CK_STACKS; /* a CLONE in what is left would find none */
    successor->base = CK_SECOND;
    fill_slots(successor, NULL, 0);
    set(&held->request.gates[CK_HOLD_GATE], CK_RELEASED);
    read_failure(held->error_read, 0, result);
    if (result->failed_index >= 0) {
        ck_end(held, result);
        return 0;
    }
    close(held->error_read);
    free_held(held);
    return 0;
}

void ck_end(struct ck_held *held, struct ck_result *result) {
    end_process(result->pid, result->pidfd);
    result->pidfd = -1;
    close(held->error_read);
    free_held(held);
}

void ck_tell(struct ck_ending *ending, int pid, int code, int status, const struct rusage *usage) {
    *ending = (struct ck_ending){
        .pid = pid,
        .code = code,
        .status = status,
        .user_us = usage->ru_utime.tv_sec * 1000000 + usage->ru_utime.tv_usec,
        .system_us = usage->ru_stime.tv_sec * 1000000 + usage->ru_stime.tv_usec,
        .maxrss_kib = usage->ru_maxrss,
        .minor_faults = usage->ru_minflt,
        .major_faults = usage->ru_majflt,
        .in_blocks = usage->ru_inblock,
        .out_blocks = usage->ru_oublock,
        .voluntary_switches = usage->ru_nvcsw,
        .involuntary_switches = usage->ru_nivcsw,
    };
}

/* The raw call: libc's waitid does not give the rusage. EINTR goes back to Python, which runs its signal handlers. */
int ck_wait(int pidfd, int options, struct ck_ending *ending) {
    siginfo_t info = {0};
    struct rusage usage = {0};
    long result = CK_CALL5(waitid, P_PIDFD, pidfd, &info, options | __WALL, &usage);
    if (result < 0)
        return (int)result;
    ck_tell(ending, info.si_pid, info.si_code, info.si_status, &usage);
    return 0;
}

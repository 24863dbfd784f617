/* The parent's side of a start. native.h describes the protocol. */
#define _GNU_SOURCE
#include "spawn.h"
#include "board.h"
#include "native.h"
#include "parent.h"
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

/* --- Stacks: one mapping per thread, reused by its next start ----------------------------------------------------- */

static pthread_key_t stacks_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread char *thread_stacks;

static const size_t stacks_bytes = (size_t)CK_STACKS * CK_STACK_BYTES + PAGE;

static char *map_stacks(void) {
    char *mapping = mmap(NULL, stacks_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    mprotect(mapping, PAGE, PROT_NONE); /* a guard page below the lowest stack */
    return mapping;
}

static void free_stacks(void *mapping) { munmap(mapping, stacks_bytes); }

char *ck_stacks(void) {
    if (!thread_stacks) {
        thread_stacks = map_stacks();
        pthread_setspecific(stacks_key, thread_stacks);
    }
    return thread_stacks ? thread_stacks + PAGE : NULL;
}

/* --- Dumpability --------------------------------------------------------------------------------------------------
 * A change of credentials in a child clears this flag of the memory that it shares with us (commit_creds() in
 * kernel/cred.c). A child that joins a live container must not be accessible to those inside while it maps our heap.
 * Both cause windows that may overlap between threads: the first thread saves the flag, the last one restores it.
 *
 * For the child of an unprivileged user /proc/PID/uid_map is written, which belongs to root while the flag is cleared.
 * So only one start at a time may hold the window then.
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

int ck_enter_window(int hide) {
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

void ck_leave_window(int serial) {
    pthread_mutex_lock(&window_lock);
    if (--window_depth == 0 && window_dumpable == 1)
        prctl(PR_SET_DUMPABLE, 1);
    pthread_mutex_unlock(&window_lock);
    if (serial)
        pthread_mutex_unlock(&unprivileged_lock);
}

/* --- The request -------------------------------------------------------------------------------------------------- */

/* Let a vector point to strings that follow each other. Return their total size. */
static size_t point(char **vector, char *strings, size_t count) {
    char *at = strings;
    for (size_t i = 0; i < count; i++) {
        vector[i] = at;
        at += strlen(at) + 1;
    }
    vector[count] = NULL;
    return (size_t)(at - strings);
}

/* Build a request for a tape. One allocation holds the copy of the data and both vectors. */
int ck_lay(struct ck_request *request, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
           size_t envc, void **room) {
    size_t data_bytes = (tape->data_size + 15) & ~(size_t)15;
    *room = malloc(data_bytes + (argc + envc + 2) * sizeof(char *));
    if (!*room)
        return -ENOMEM;
    request->failure.index = CK_NONE;
    request->board_fd = -1;
    request->beside = tape->beside;
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

void ck_fill_slots(struct ck_request *request, const int64_t *slots, size_t count) {
    request->slot_count = (uint32_t)(count < CK_SLOTS ? count : CK_SLOTS);
    for (size_t i = 0; i < CK_SLOTS; i++)
        request->slots[i] = i < request->slot_count ? slots[i] : -1;
}

int64_t ck_now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void reap(pid_t pid) {
    while (wait4(pid, NULL, __WALL, NULL) < 0 && errno == EINTR) {
    }
}

/* CLONE_CLEAR_SIGHAND leaves ignored signals ignored. If SIGCHLD were ignored, the kernel would reap the command before
 * PID 1 does, and its status would be lost. */
void ck_reset_sigchld(void) {
    const struct ck_sigaction standard = {0};
    CK_CALL4(rt_sigaction, SIGCHLD, &standard, 0, sizeof standard.mask);
}

static void run_stage(void *request) {
    ck_reset_sigchld();
    ck_walk(request, 0);
}

/* Stage 1 suspends this thread until it has exec'd or ended (CLONE_VFORK). */
static long clone_stage(struct ck_request *request, int flags) {
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_CLEAR_SIGHAND | ((flags & CK_SHARE_FILES) ? CLONE_FILES : 0),
        .stack = (uint64_t)(uintptr_t)request->stacks,
        .stack_size = CK_STACK_BYTES,
    };
    request->next_stack = 1;
    return ck_clone3(&args, run_stage, request);
}

/* End of file means that every process of the start has exec'd or exited. A held one reports itself (`good` is then the
 * size of its report). A short read is treated as a failure, and so is silence: root of a live container can stop a
 * process that joins it. */
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

/* Stage 1 is gone: what it has not released, nobody will. */
static void abort_gates(struct ck_request *request) {
    for (int gate = 0; gate < CK_GATES; gate++)
        if (gate != CK_COMMAND_GATE && request->gates[gate] == CK_WAITING)
            set(&request->gates[gate], CK_ABORTED);
}

/* Kill a process and wait for it. Without a pidfd it has not exec'd yet or is stage 1: nobody else can have reaped it,
 * so the pid is still its own. */
void ck_end_process(pid_t pid, int pidfd) {
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

/* For a start whose processes all exit. They may share our own descriptors (CK_SHARE_FILES), including the error
 * pipe. */
static void finish_without_process(struct ck_request *request, pid_t stage, int error_pipe[2],
                                   struct ck_result *result) {
    reap(stage);
    if (request->main_pid) {
        abort_gates(request);
        set(&request->watched, 1);
        reap(request->main_pid);
    }
    result->times_ns[2] = ck_now_ns();
    close(error_pipe[1]);
    read_failure(error_pipe[0], 0, result);
    result->times_ns[3] = ck_now_ns();
}

static void finish(struct ck_request *request, pid_t stage, int flags, int error_pipe[2], struct ck_result *result) {
    close(error_pipe[1]);
    pid_t pid = request->main_pid ? request->main_pid : stage;
    int pidfd = -1;
    if (request->main_pid) {
        reap(stage);
        abort_gates(request);
        pidfd = (int)CK_CALL2(pidfd_open, pid, 0);
        if (pidfd < 0)
            kill(pid, SIGKILL); /* it has not exec'd and is unreaped, so the pid is still its own */
        set(&request->watched, 1);
    }
    result->times_ns[2] = ck_now_ns();
    read_failure(error_pipe[0], (flags & CK_HOLD) ? (ssize_t)sizeof(struct ck_failure) : 0, result);
    result->times_ns[3] = ck_now_ns();
    if (!request->main_pid && result->failed_index < 0)
        pidfd = (int)CK_CALL2(pidfd_open, pid, 0);
    if (pidfd < 0 && result->failed_index < 0) {
        result->failed_index = INT_MAX;
        result->error = -pidfd;
    }
    if (result->failed_index >= 0) {
        ck_end_process(pid, pidfd);
        return;
    }
    result->pid = pid;
    result->pidfd = pidfd;
}

/* Move a descriptor above the numbers that the tape assigns to streams and to init. Returns a negative error number if
 * there is none, or if `fd` is none. */
int ck_above_assigned(int fd) {
    if (fd >= CK_LOWEST_FD)
        return fd;
    int moved = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, CK_LOWEST_FD);
    int error = errno == EINVAL && fd >= 0 ? EMFILE : errno; /* the limit is below that number: fcntl(2) */
    if (fd >= 0)
        close(fd);
    return moved < 0 ? -error : moved;
}

static int open_error_pipe(int error_pipe[2]) {
    if (pipe2(error_pipe, O_CLOEXEC) < 0)
        return -errno;
    error_pipe[1] = ck_above_assigned(error_pipe[1]);
    if (error_pipe[1] >= 0)
        return 0;
    close(error_pipe[0]);
    return error_pipe[1];
}

/* Return the read end of the error pipe, which the caller must close, or a negative error number. */
static int start(struct ck_request *request, int flags, struct ck_result *result) {
    int error_pipe[2];
    int error = open_error_pipe(error_pipe);
    if (error)
        return error;
    request->error_fd = error_pipe[1];
    uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof all);
    int serial = ck_enter_window(flags & CK_HIDE_MEMORY);
    long stage = clone_stage(request, flags);
    result->times_ns[1] = ck_now_ns();
    if (stage < 0)
        close(error_pipe[1]);
    else if (flags & CK_NO_PROCESS)
        finish_without_process(request, (pid_t)stage, error_pipe, result);
    else
        finish(request, (pid_t)stage, flags, error_pipe, result);
    ck_leave_window(serial);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
    if (stage >= 0)
        return error_pipe[0];
    close(error_pipe[0]);
    return (int)stage;
}

void ck_begin(struct ck_result *result) {
    pthread_once(&once, initialise);
    *result = (struct ck_result){.failed_index = -1, .pidfd = -1};
    result->times_ns[0] = ck_now_ns();
}

int ck_spawn(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
             size_t slot_count, int proc_fd, int flags, struct ck_result *result) {
    ck_begin(result);
    struct ck_request request = {.proc_fd = proc_fd};
    void *room = NULL;
    request.stacks = ck_stacks();
    int error = request.stacks ? ck_lay(&request, tape, argv, argc, envp, envc, &room) : -ENOMEM;
    if (!error) {
        ck_fill_slots(&request, slots, slot_count);
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

/* --- Held starts -------------------------------------------------------------------------------------------------- */

struct ck_held {
    struct ck_request request;
    void *room;
    char *stacks;
};

static void free_held(struct ck_held *held) {
    free(held->room);
    if (held->stacks)
        free_stacks(held->stacks);
    struct ck_shared shared = {held->request.board, CK_BOARD_BYTES};
    ck_free_board(&shared);
    free(held);
}

void ck_free_board(struct ck_shared *shared) {
    if (shared->board)
        munmap(shared->board, shared->size);
    shared->board = NULL;
}

int ck_hold(const struct ck_tape *tape, int64_t *slots, size_t slot_count, int proc_fd, int flags,
            struct ck_result *result, struct ck_held **held) {
    ck_begin(result);
    struct ck_held *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    made->stacks = map_stacks();
    int error = made->stacks ? ck_lay(&made->request, tape, "", 0, "", 0, &made->room) : -ENOMEM;
    if (!error) {
        made->request.proc_fd = proc_fd;
        made->request.stacks = made->stacks + PAGE;
        ck_fill_slots(&made->request, slots, slot_count);
        int error_read = start(&made->request, flags, result);
        if (error_read < 0)
            error = error_read;
        else
            close(error_read);
    }
    if (error || result->failed_index >= 0)
        free_held(made);
    else
        *held = made;
    return error;
}

static size_t strings_size(const char *strings, size_t count) {
    const char *at = strings;
    while (count--)
        at += strlen(at) + 1;
    return (size_t)(at - strings);
}

/* Write a tape to a board in the form that ck_enter reads. Return 0, or -E2BIG if it does not fit. */
static int write_successor(struct ck_board *board, const struct ck_tape *tape, const char *argv, size_t argc,
                           const char *envp, size_t envc) {
    struct ck_image *image = &board->successor;
    *image = (struct ck_image){
        .count = (uint32_t)tape->count,
        .data_size = (uint32_t)tape->data_size,
        .argc = (uint32_t)argc,
        .envc = (uint32_t)envc,
        .board_fd = -1,
    };
    const struct ck_part parts[] = {
        {tape->steps, tape->count * sizeof(struct ck_step)},
        {tape->data, tape->data_size},
        {argv, strings_size(argv, argc)},
        {envp, strings_size(envp, envc)},
    };
    if (ck_parts_size(parts, 4) > CK_BOARD_BYTES - sizeof *board)
        return -E2BIG;
    ck_append(image->slots, parts, 4);
    return 0;
}

int ck_let_go(struct ck_held *held, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
              size_t envc, struct ck_result *result, struct ck_shared *shared) {
    struct ck_board *board = held->request.board;
    int error = write_successor(board, tape, argv, argc, envp, envc);
    if (error) {
        ck_end(held, result);
        return error;
    }
    *shared = (struct ck_shared){board, CK_BOARD_BYTES};
    set(&board->gate, CK_RELEASED);
    held->request.board = NULL;
    free_held(held);
    return 0;
}

void ck_end(struct ck_held *held, struct ck_result *result) {
    ck_end_process(result->pid, result->pidfd);
    result->pidfd = -1;
    free_held(held);
}

void ck_read_board(const struct ck_shared *shared, struct ck_result *result) {
    const struct ck_board *board = shared->board;
    if (board && board->failure.index >= 0) {
        result->failed_index = board->failure.index;
        result->error = board->failure.error;
    }
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

/* The raw call, because libc's waitid does not return the rusage. EINTR is returned to Python, which runs its signal
 * handlers. */
int ck_wait(int pidfd, int options, struct ck_ending *ending) {
    siginfo_t info = {0};
    struct rusage usage = {0};
    long result = CK_CALL5(waitid, P_PIDFD, pidfd, &info, options | __WALL, &usage);
    if (result < 0)
        return (int)result;
    ck_tell(ending, info.si_pid, info.si_code, info.si_status, &usage);
    return 0;
}

/* The parent's side of a start. native.h describes the protocol. */
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
#include <sys/ioctl.h>
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

static char *own_stacks(void) {
    if (!thread_stacks) {
        thread_stacks = map_stacks();
        pthread_setspecific(stacks_key, thread_stacks);
    }
    return thread_stacks;
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
static int lay(struct ck_request *request, const struct ck_tape *tape, const char *argv, size_t argc, const char *envp,
               size_t envc, void **room) {
    size_t data_bytes = (tape->data_size + 15) & ~(size_t)15;
    *room = malloc(data_bytes + (argc + envc + 2) * sizeof(char *));
    if (!*room)
        return -ENOMEM;
    request->failure.index = CK_NONE;
    request->board_fd = -1;
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

/* CLONE_CLEAR_SIGHAND leaves ignored signals ignored. If SIGCHLD were ignored, the kernel would reap the command before
 * PID 1 does, and its status would be lost. */
static void reset_sigchld(void) {
    const struct ck_sigaction standard = {0};
    CK_CALL4(rt_sigaction, SIGCHLD, &standard, 0, sizeof standard.mask);
}

static void run_stage(void *request) {
    reset_sigchld();
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
        abort_gates(request);
        pidfd = (int)CK_CALL2(pidfd_open, pid, 0);
        if (pidfd < 0)
            kill(pid, SIGKILL); /* it has not exec'd and is unreaped, so the pid is still its own */
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

/* Move a descriptor above the numbers that the tape assigns to streams and to init. Returns a negative error number if
 * there is none, or if `fd` is none. */
static int above_assigned(int fd) {
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
    error_pipe[1] = above_assigned(error_pipe[1]);
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

/* --- Boards ------------------------------------------------------------------------------------------------------- */

struct part {
    const void *bytes;
    size_t size;
};

static size_t parts_size(const struct part *parts, int count) {
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].size;
    return size;
}

static void append(void *place, const struct part *parts, int count) {
    char *at = place;
    for (int i = 0; i < count; i++) {
        memcpy(at, parts[i].bytes, parts[i].size);
        at += parts[i].size;
    }
}

/* --- Commands that join a live container --------------------------------------------------------------------------- */

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
    const struct part parts[] = {
        {request->slots, request->slot_count * sizeof *request->slots},
        {request->steps + first, (request->count - first) * sizeof(struct ck_step)},
        {tape->data, tape->data_size},
        {argv, request->argv_size},
        {envp, request->envp_size},
    };
    size_t size = sizeof(struct ck_board) + parts_size(parts, 5);
    if (size > CK_BOARD_BYTES)
        return -E2BIG;
    int fd = above_assigned(memfd_create("board", MFD_CLOEXEC));
    if (fd < 0)
        return fd;
    request->board_fd = fd;
    if (ftruncate(fd, (off_t)size) < 0)
        return -errno;
    struct ck_board *board = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (board == MAP_FAILED)
        return -errno;
    board->failure.index = CK_NONE;
    board->successor = (struct ck_image){
        .first = first,
        .count = request->count,
        .data_size = request->data_size,
        .argc = request->argc,
        .envc = request->envc,
        .slot_count = request->slot_count,
        .board_fd = -1,
    };
    append(board->successor.slots, parts, 5);
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
    reset_sigchld();
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

/* Wait until the command shares no memory with this process. It says so itself, from the sealed init: what the kernel
 * does at an exec to wake others, it does before the memory is changed. Root of the container may kill or stop the
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
            failure = request->board->failure;
            break;
        }
        if (now_ns() > until) {
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
    int serial = enter_window(1);
    long pid = clone_inside(request, own, &pidfd, &joined);
    result->times_ns[1] = now_ns();
    if (pid > 0)
        await_entry(request, pidfd, result);
    result->times_ns[2] = result->times_ns[3] = now_ns();
    if (pid > 0 && result->failed_index >= 0)
        end_process((pid_t)pid, pidfd);
    leave_window(serial);
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
    begin(result);
    struct ck_request request = {.proc_fd = proc_fd};
    void *room = NULL;
    int error = own_stacks() ? lay(&request, tape, argv, argc, envp, envc, &room) : -ENOMEM;
    request.error_fd = -1;
    if (!error) {
        request.stacks = thread_stacks + PAGE;
        fill_slots(&request, slots, slot_count);
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
    begin(result);
    struct ck_held *made = calloc(1, sizeof *made);
    if (!made)
        return -ENOMEM;
    made->stacks = map_stacks();
    int error = made->stacks ? lay(&made->request, tape, "", 0, "", 0, &made->room) : -ENOMEM;
    if (!error) {
        made->request.proc_fd = proc_fd;
        made->request.stacks = made->stacks + PAGE;
        fill_slots(&made->request, slots, slot_count);
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
    const struct part parts[] = {
        {tape->steps, tape->count * sizeof(struct ck_step)},
        {tape->data, tape->data_size},
        {argv, strings_size(argv, argc)},
        {envp, strings_size(envp, envc)},
    };
    if (parts_size(parts, 4) > CK_BOARD_BYTES - sizeof *board)
        return -E2BIG;
    append(image->slots, parts, 4);
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
    end_process(result->pid, result->pidfd);
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

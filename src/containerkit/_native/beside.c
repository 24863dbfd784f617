/* A tape that is walked beside the caller, in a process of its own: see beside.h and native.h. */
#define _GNU_SOURCE
#include "beside.h"
#include "native.h"
#include "parent.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define LOOK_AGAIN_NS 10000000 /* how often the caller checks that the process still lives */

struct ck_beside {
    struct ck_request request;
    void *room;
    pid_t pid; /* 0: there is none, or it was reaped */
    pid_t maker;
    size_t opened_count;
    uint16_t opened[CK_BESIDE_OPENED];
};

/* Below it: a guard page, then the stack. */
static const size_t below = PAGE + CK_STACK_BYTES;

struct ck_beside *ck_beside_new(void) {
    size_t size = below + sizeof(struct ck_beside);
    char *mapping = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED)
        return NULL;
    mprotect(mapping, PAGE, PROT_NONE);
    return (struct ck_beside *)(void *)(mapping + below);
}

static void run_beside(void *request) { ck_walk(request, 0); }

/* Without an error pipe the walker stores a failure in the request. The kernel sets `progress` to CK_GONE and wakes a
 * waiter when the process ends, however it ends. */
static long clone_beside(struct ck_beside *beside) {
    struct ck_request *request = &beside->request;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_FILES | CLONE_CLEAR_SIGHAND | CLONE_CHILD_CLEARTID,
        .child_tid = (uint64_t)(uintptr_t)&request->progress,
        .stack = (uint64_t)(uintptr_t)((char *)beside - CK_STACK_BYTES),
        .stack_size = CK_STACK_BYTES,
    };
    request->stacks = (char *)beside - CK_STACK_BYTES;
    request->next_stack = CK_STACKS; /* it clones nothing */
    request->error_fd = -1;
    request->progress = CK_COMING;
    uint64_t all = ~(uint64_t)0;
    uint64_t mask;
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, &mask, sizeof all);
    long pid = ck_clone3(&args, run_beside, request);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &mask, 0, sizeof mask);
    return pid;
}

int ck_beside_begin(struct ck_beside *beside, const struct ck_tape *tape, const int64_t *slots, size_t slot_count,
                    const uint16_t *opened, size_t opened_count, int proc_fd) {
    if (opened_count > CK_BESIDE_OPENED)
        return -E2BIG;
    int error = ck_lay(&beside->request, tape, "", 0, "", 0, &beside->room);
    if (error)
        return error;
    memcpy(beside->opened, opened, opened_count * sizeof *opened);
    beside->request.proc_fd = proc_fd;
    beside->maker = getpid();
    ck_fill_slots(&beside->request, slots, slot_count);
    long pid = clone_beside(beside);
    if (pid < 0)
        return (int)pid;
    beside->pid = (pid_t)pid;
    beside->opened_count = opened_count;
    return 0;
}

static void copy_slots(const struct ck_beside *beside, int64_t *slots) {
    memcpy(slots, beside->request.slots, beside->request.slot_count * sizeof *slots);
}

int ck_beside_await(struct ck_beside *beside, int64_t *slots) {
    struct ck_request *request = &beside->request;
    const struct timespec patience = {0, LOOK_AGAIN_NS};
    uint32_t *gate = &request->gates[CK_BESIDE_FIRST];
    while (__atomic_load_n(gate, __ATOMIC_ACQUIRE) == CK_WAITING &&
           __atomic_load_n(&request->progress, __ATOMIC_ACQUIRE) == CK_COMING)
        CK_CALL4(futex, gate, FUTEX_WAIT, CK_WAITING, &patience);
    if (__atomic_load_n(gate, __ATOMIC_ACQUIRE) != CK_RELEASED)
        return -ECANCELED;
    copy_slots(beside, slots);
    return 0;
}

static void set_gate(struct ck_beside *beside, int gate, uint32_t value) {
    __atomic_store_n(&beside->request.gates[gate], value, __ATOMIC_RELEASE);
    CK_CALL3(futex, &beside->request.gates[gate], FUTEX_WAKE, 1);
}

int ck_beside_go_on(struct ck_beside *beside, const void *data, size_t size) {
    if (size != beside->request.data_size)
        return -EINVAL;
    memcpy(beside->request.data, data, size);
    set_gate(beside, CK_BESIDE_GO_ON, CK_RELEASED);
    return 0;
}

static void reap(struct ck_beside *beside) {
    if (beside->request.gates[CK_BESIDE_GO_ON] == CK_WAITING)
        set_gate(beside, CK_BESIDE_GO_ON, CK_ABORTED);
    while (beside->pid && wait4(beside->pid, NULL, __WALL, NULL) < 0 && errno == EINTR) {
    }
    beside->pid = 0;
}

int ck_beside_take(struct ck_beside *beside, int slot) {
    for (size_t i = 0; i < beside->opened_count; i++)
        if (beside->opened[i] == slot) {
            beside->opened[i] = beside->opened[--beside->opened_count];
            return (int)beside->request.slots[slot];
        }
    return -EBADF;
}

void ck_beside_end(struct ck_beside *beside, int64_t *slots, struct ck_result *result) {
    const struct ck_failure *failure = &beside->request.failure;
    reap(beside);
    ck_begin(result);
    copy_slots(beside, slots);
    if (failure->index >= 0) {
        result->failed_index = failure->index;
        result->error = failure->error;
    } else if (beside->request.gates[CK_BESIDE_LAST] != CK_RELEASED) {
        result->failed_index = INT_MAX;
        result->error = ECANCELED;
    }
}

/* In a forked child all of it is a copy, and the process is not its child. */
void ck_beside_dispose(struct ck_beside *beside) {
    if (beside->pid && beside->maker == getpid())
        reap(beside);
    for (size_t i = 0; i < beside->opened_count; i++) {
        int64_t fd = beside->opened[i] < CK_SLOTS ? beside->request.slots[beside->opened[i]] : -1;
        if (fd >= 0 && beside->maker == getpid())
            close((int)fd);
    }
    free(beside->room);
    munmap((char *)beside - below, below + sizeof *beside);
}

struct ck_request *ck_beside_request(struct ck_beside *beside) { return &beside->request; }

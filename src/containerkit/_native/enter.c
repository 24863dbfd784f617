/* The walker as a program of its own: `init walk TAPE ERROR INDEX`.
 *
 * A process that shares its memory can't join a time namespace (setns(2) wants it alone in its address space), so a
 * start that must do so execs the sealed init in the midst of the tape, and goes on from here: the same steps, from a
 * memfd, in an address space of its own.
 */
#define _GNU_SOURCE
#include "enter.h"
#include "native.h"
#include "syscalls.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

static int64_t number(const char *text) {
    int64_t value = 0;
    while (*text >= '0' && *text <= '9')
        value = value * 10 + (*text++ - '0');
    return value;
}

__attribute__((noreturn)) static void give_up(int error_fd, int index, long error) {
    struct ck_failure failure = {index, (int32_t)error};
    CK_CALL3(write, error_fd, &failure, sizeof failure);
    for (;;)
        CK_CALL1(exit_group, 127);
}

static int failed(long result) { return result < 0 && result > -4096; }

static char *fill(char **vector, char *strings, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        vector[i] = strings;
        while (*strings++) {
        }
    }
    vector[count] = 0;
    return strings;
}

void ck_enter(char **argv) {
    int tape = (int)number(argv[2]);
    int error_fd = (int)number(argv[3]);
    int index = (int)number(argv[4]);
    struct stat status;
    CK_CALL3(fcntl, error_fd, F_SETFD, FD_CLOEXEC);
    long result = CK_CALL2(fstat, tape, &status);
    if (failed(result))
        give_up(error_fd, index, -result);
    long at = ck_syscall(SYS_mmap, 0, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, tape, 0);
    if (failed(at))
        give_up(error_fd, index, -at);
    CK_CALL1(close, tape);
    struct ck_image *image = (struct ck_image *)at;
    long vectors = ck_syscall(SYS_mmap, 0, (image->argc + image->envc + 2) * sizeof(char *), PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (failed(vectors))
        give_up(error_fd, index, -vectors);

    struct ck_request request;
    char *steps = (char *)(image->slots + image->slot_count);
    request.steps = (const struct ck_step *)(void *)steps;
    request.count = image->count;
    request.data = steps + image->count * sizeof(struct ck_step);
    request.argv = (char **)vectors;
    request.envp = request.argv + image->argc + 1;
    fill(request.envp, fill(request.argv, request.data + image->data_size, image->argc), image->envc);
    for (uint32_t i = 0; i < CK_SLOTS; i++)
        request.slots[i] = i < image->slot_count ? image->slots[i] : -1;
    request.proc_fd = -1;
    request.error_fd = error_fd;
    for (int gate = 0; gate <= CK_GATES; gate++)
        request.gates[gate] = CK_RELEASED;
    request.main_pid = 0;
    request.base = 0;
    request.successor = 0;
    request.next_stack = CK_STACKS; /* there are none: a CLONE from here on fails */
    request.stacks = 0;
    ck_walk(&request, (uint32_t)index);
}

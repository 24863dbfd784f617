/* The walker as a program of its own: `init walk TAPE ERROR INDEX`.
 *
 * A program that a container controls is looked up by a process that has nothing of the caller. A start execs the
 * sealed init in the middle of the tape and continues here with the same steps, from a memfd, in a separate address
 * space. Starts that join a time namespace do the same, because setns(2) requires it.
 */
#define _GNU_SOURCE
#include "enter.h"
#include "native.h"
#include "syscalls.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

__attribute__((noreturn)) static void give_up(int error_fd, int index, long error) {
    struct ck_failure failure = {index, (int32_t)error};
    if (error_fd > 0)
        CK_CALL3(write, error_fd, &failure, sizeof failure);
    for (;;)
        CK_CALL1(exit_group, 127);
}

static int failed(long result) { return result < 0 && result > -4096; }

/* Return the address of mapped memory, or a negative error number. */
static long map(long size, int protection, int flags, int fd) {
    return ck_syscall(SYS_mmap, 0, size, protection, flags, fd, 0);
}

static char *fill(char **vector, char *strings, uint32_t count, size_t *size) {
    char *at = strings;
    for (uint32_t i = 0; i < count; i++) {
        vector[i] = at;
        while (*at++) {
        }
    }
    vector[count] = 0;
    *size = (size_t)(at - strings);
    return at;
}

#define VECTOR_ROOM 512

/* All memory that is written to: the init itself has no writable segment. */
struct memory {
    char stacks[CK_STACKS * CK_STACK_BYTES];
    struct ck_request request, successor;
    char *vectors[VECTOR_ROOM]; /* of the successor, so that it needs no allocation */
};

/* Build a request from an image, with `room` for its vectors. If that is too small or 0, the memory is mapped here.
 * Returns 0 or a negative error number. */
static long lay(struct ck_request *request, struct ck_image *image, char **room) {
    long vectors = (long)room;
    if (!room || image->argc + image->envc + 2 > VECTOR_ROOM)
        vectors = map((image->argc + image->envc + 2) * sizeof(char *), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (failed(vectors))
        return vectors;
    char *steps = (char *)(image->slots + image->slot_count);
    size_t steps_size = (image->count - image->first) * sizeof(struct ck_step);
    /* Each step keeps its number. Those before the first one are never accessed. */
    request->steps = (const struct ck_step *)((uintptr_t)steps - image->first * sizeof(struct ck_step));
    request->count = image->count;
    request->data = steps + steps_size;
    request->data_size = image->data_size;
    request->argc = image->argc;
    request->envc = image->envc;
    request->argv = (char **)vectors;
    request->envp = request->argv + image->argc + 1;
    char *envp = fill(request->argv, request->data + image->data_size, image->argc, &request->argv_size);
    fill(request->envp, envp, image->envc, &request->envp_size);
    request->slot_count = image->slot_count;
    for (uint32_t i = 0; i < image->slot_count && i < CK_SLOTS; i++)
        request->slots[i] = image->slots[i];
    request->failure.index = CK_NONE;
    return 0;
}

/* The memory is touched before the wait, so that no page fault occurs after it. */
static struct ck_request *await_successor(struct ck_request *request, void (*wait)(struct ck_board *board)) {
    struct memory *memory = (struct memory *)(void *)request->stacks;
    struct ck_request *successor = &memory->successor;
    memory->vectors[0] = 0;
    successor->proc_fd = successor->error_fd = successor->board_fd = -1;
    successor->base = CK_SECOND;
    successor->board = request->board;
    successor->next_stack = CK_STACKS; /* a CLONE in the rest of the tape would find no stack */
    wait(request->board);
    return failed(lay(successor, &request->board->successor, memory->vectors)) ? 0 : successor;
}

static long map_board(struct ck_request *request, int board_fd) {
    if (board_fd < 0)
        return 0;
    long board = map(CK_BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, board_fd);
    if (failed(board))
        return board;
    request->board = (struct ck_board *)board;
    return CK_CALL1(close, board_fd);
}

/* Return the image of a start: a file of its own, or the board of a command that joins, on which its failures are found
 * from then on. A negative number is an error. */
static long find_image(struct ck_request *request, int tape) {
    struct stat status;
    if (request->error_fd < 0) {
        long result = map_board(request, tape);
        return failed(result) ? result : (long)&request->board->successor;
    }
    long result = CK_CALL2(fstat, tape, &status);
    if (failed(result))
        return result;
    result = map(status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, tape);
    request->image = (char *)result;
    request->image_size = (size_t)status.st_size;
    CK_CALL1(close, tape);
    return result;
}

/* `init walk TAPE ERROR INDEX`: 0 as the error pipe says that the tape is a board. */
void ck_enter(char **argv, void (*become_init)(struct ck_request *request, const char *mode)) {
    int error_fd = (int)ck_parse(argv[3]);
    int index = (int)ck_parse(argv[4]);
    /* A process that joins a live container must not be accessible to those inside while it has other descriptors. */
    CK_CALL5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    if (error_fd > 0)
        CK_CALL3(fcntl, error_fd, F_SETFD, FD_CLOEXEC);
    long memory = map(sizeof(struct memory), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
    if (failed(memory))
        give_up(error_fd, index, -memory);

    struct ck_request *request = &((struct memory *)memory)->request;
    request->stacks = (char *)memory;
    request->proc_fd = request->board_fd = -1;
    request->error_fd = error_fd > 0 ? error_fd : -1;
    request->shown = argv[1];
    request->become_init = become_init;
    request->await_successor = await_successor;
    for (int gate = 0; gate < CK_GATES; gate++)
        request->gates[gate] = gate == CK_COMMAND_GATE ? CK_WAITING : CK_RELEASED; /* those of stage 1 are passed */
    long at = find_image(request, (int)ck_parse(argv[2]));
    if (failed(at))
        give_up(error_fd, index, -at);
    struct ck_image *image = (struct ck_image *)at;
    int joins = request->error_fd < 0;
    long result = lay(request, image, joins ? ((struct memory *)memory)->vectors : 0);
    if (!failed(result) && !joins)
        result = map_board(request, image->board_fd);
    if (failed(result))
        give_up(error_fd, index, -result);
    if (joins) {
        request->board->failure.index = CK_NONE;
        ck_has_entered(request->board);
    }
    ck_walk(request, (uint32_t)index);
}

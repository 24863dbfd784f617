/* What a process passes to the sealed init when it enters it. The contract is that of child.c. */
#define _GNU_SOURCE
#include "image.h"
#include "native.h"
#include "syscalls.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/uio.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8
#endif

static long memory_file(const char *name) {
    long file = CK_CALL2(memfd_create, name, MFD_NOEXEC_SEAL);
    return file == -EINVAL ? CK_CALL2(memfd_create, name, 0) : file; /* before Linux 6.3 */
}

long ck_write_image(struct ck_request *request, uint32_t first, int board_fd) {
    struct ck_image head;
    ck_head(&head, request, first, board_fd);
    struct iovec parts[] = {
        {&head, sizeof head},
        {request->slots, request->slot_count * sizeof *request->slots},
        {(void *)(uintptr_t)(request->steps + first), (request->count - first) * sizeof *request->steps},
        {request->data, request->data_size},
        {request->argv[0], request->argv_size},
        {request->envp[0], request->envp_size},
    };
    size_t size = 0;
    for (int i = 0; i < 6; i++)
        size += parts[i].iov_len;
    long tape = memory_file("tape");
    if (tape < 0)
        return tape;
    long written = CK_CALL3(writev, tape, parts, 6);
    return written < 0 ? written : (size_t)written == size ? tape : -ENOSPC;
}

long ck_make_board(struct ck_request *request) {
    long board = memory_file("board");
    if (board < 0)
        return board;
    long result = CK_CALL2(ftruncate, board, CK_BOARD_BYTES);
    if (result == 0)
        result = ck_syscall(SYS_mmap, 0, CK_BOARD_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, board, 0);
    if (result < 0 && result > -4096)
        return result;
    request->board = (struct ck_board *)result;
    request->board->failure.index = CK_NONE;
    return board;
}

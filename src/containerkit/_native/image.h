/* What a process passes to the sealed init when it enters it. */
#ifndef CK_IMAGE_H
#define CK_IMAGE_H

#include <stdint.h>

struct ck_request;

/* Write the rest of the start in its present state (struct ck_image) for a program that shares no memory with us.
 * Returns the descriptor of a memfd, or a negative error number. */
long ck_write_image(struct ck_request *request, uint32_t first, int board_fd);

/* Create the board, and map it for the parent too: this process still shares the parent's memory. Returns its
 * descriptor, or a negative error number. */
long ck_make_board(struct ck_request *request);

#endif

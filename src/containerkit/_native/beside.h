/* A tape that is walked beside the caller, as called from Python.
 *
 * A process of its own walks it, which shares the memory and the descriptors of the caller. Three gates belong to it:
 * the process opens the first one when the slots have what the caller needs for a start, waits at the second one for
 * ck_beside_go_on, and opens the third one at the end of its tape. A start whose tape has AWAIT of CK_BESIDE_GATE waits
 * for the end of the process. */
#ifndef CK_BESIDE_H
#define CK_BESIDE_H

#include "spawn.h"

#include <stdint.h>

#define CK_BESIDE_OPENED 8 /* the maximum number of slots for descriptors */

struct ck_beside;

/* Return memory for one, or NULL. It is freed by ck_beside_dispose. */
struct ck_beside *ck_beside_new(void);

/* Begin. `opened` are the numbers of the slots in which the tape opens descriptors. Returns 0 or a negative error
 * number. The tape's data is copied. */
int ck_beside_begin(struct ck_beside *beside, const struct ck_tape *tape, const int64_t *slots, size_t slot_count,
                    const uint16_t *opened, size_t opened_count, int proc_fd);

/* Wait until the first gate is open, and copy the slots. Returns -ECANCELED if the process ended before. */
int ck_beside_await(struct ck_beside *beside, int64_t *slots);

/* Replace the data of the tape, which differs only in what the steps after the second gate refer to, and open that gate.
 * Returns -EINVAL if its size differs. */
int ck_beside_go_on(struct ck_beside *beside, const void *data, size_t size);

/* Wait for the end of the process, and copy the slots. A process that was not told to go on ends at once. `result` has
 * the failed step, or ECANCELED if the process was killed. May be called twice. */
void ck_beside_end(struct ck_beside *beside, int64_t *slots, struct ck_result *result);

/* After its end: return the descriptor in a slot, which the caller owns from now on. */
int ck_beside_take(struct ck_beside *beside, int slot);

/* What a start waits for: `beside` of its tape. */
struct ck_request *ck_beside_request(struct ck_beside *beside);

/* Free it. Wait for the process if it may still run, and close the descriptors that nobody has taken. */
void ck_beside_dispose(struct ck_beside *beside);

#endif

/* Measures the steps of a tape. steps.py builds it with a copy of child.c that calls timed_perform() where the original
 * calls perform(). It is not part of the product.
 */
#define _GNU_SOURCE
#include "native.h"

static long timed_perform(struct ck_request *request, const struct ck_step *step);

#include "timed_child.c"

#define STEPS 1024

/* CLOCK_MONOTONIC in nanoseconds by step; the children share this memory until they exec. */
int64_t ck_began[STEPS], ck_ended[STEPS];

static int64_t read_clock(void) {
    struct {
        int64_t seconds, nanoseconds;
    } time;
    CK_CALL2(clock_gettime, 1, &time);
    return time.seconds * 1000000000 + time.nanoseconds;
}

/* A step that does not return, an exec or an exit, has no duration. */
static long timed_perform(struct ck_request *request, const struct ck_step *step) {
    long index = step - request->steps;
    if (index >= STEPS)
        return perform(request, step);
    ck_began[index] = ck_ended[index] = read_clock();
    long result = perform(request, step);
    ck_ended[index] = read_clock();
    return result;
}

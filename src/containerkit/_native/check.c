/* Checks that a tape is well formed, because the child relies on it. */
#include "native.h"
#include "populate.h"
#include "spawn.h"

#include <stddef.h>
#include <stdint.h>

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

/* Whether a step's list of descriptor numbers, 32 bits each, lies within the data. */
static int valid_list(const struct ck_step *step, int list, int count, const struct ck_tape *tape) {
    if (step->argument_kind[count] != CK_ARG_INTEGER)
        return 0;
    if (step->argument[count] == 0)
        return 1;
    return step->argument_kind[list] == CK_ARG_DATA && step->argument[count] > 0 &&
           (uint64_t)step->argument[count] <= (tape->data_size - (size_t)step->argument[list]) / sizeof(int32_t);
}

/* Whether the entries of a step lie within the data, and each is well formed. */
static int valid_entries(const struct ck_step *step, const struct ck_tape *tape) {
    if (step->argument_kind[1] != CK_ARG_DATA || step->argument[1] % 8 != 0 ||
        step->argument_kind[2] != CK_ARG_INTEGER || step->argument_kind[3] != CK_ARG_SLOT || step->argument[2] < 0 ||
        (uint64_t)step->argument[2] > tape->data_size - (size_t)step->argument[1])
        return 0;
    uint64_t left = (uint64_t)step->argument[2];
    const char *at = (const char *)tape->data + step->argument[1];
    while (left > 0) {
        uint64_t taken = ck_entry_size((const struct ck_entry *)(const void *)at, left);
        if (taken == 0)
            return 0;
        at += taken;
        left -= taken;
    }
    return 1;
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
        return step->argument_kind[0] == CK_ARG_INTEGER && step->argument[0] >= 0 &&
               step->argument[0] < CK_GATES + (step->kind == CK_STEP_AWAIT);
    if (step->kind == CK_STEP_ENTER)
        return valid_list(step, 1, 2, tape);
    if (step->kind == CK_STEP_STRIP)
        return valid_list(step, 0, 1, tape);
    if (step->kind == CK_STEP_NETLINK)
        return step->argument_kind[1] == CK_ARG_DATA && step->argument_kind[2] == CK_ARG_INTEGER &&
               step->argument[2] >= 0 && (uint64_t)step->argument[2] <= tape->data_size - (size_t)step->argument[1];
    if (step->kind == CK_STEP_POPULATE)
        return valid_entries(step, tape);
    if (step->kind == CK_STEP_OWN_PID)
        return step->argument_kind[0] == CK_ARG_ENVP && step->argument_kind[1] == CK_ARG_INTEGER &&
               step->argument[1] >= 0 && step->argument[1] < CK_MOST_OFFSET;
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
        return 1; /* a string without a terminating NUL */
    for (size_t i = 0; i < tape->count; i++)
        if (!valid_step(&steps[i], tape))
            return i + 1;
    return 0;
}

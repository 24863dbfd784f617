/* The interface of calls.c for Python. */
#ifndef CK_CALLS_H
#define CK_CALLS_H

#include <stdint.h>

int64_t ck_call(int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);
int64_t ck_fork(const void *arguments, uint64_t size);

#endif

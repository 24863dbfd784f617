/* What compilers may call to copy and clear, even in a program without libc. */
#include <stddef.h>

void *memcpy(void *target, const void *source, size_t size) {
    unsigned char *to = target;
    const unsigned char *from = source;
    while (size--)
        *to++ = *from++;
    return target;
}

void *memset(void *target, int value, size_t size) {
    unsigned char *at = target;
    while (size--)
        *at++ = (unsigned char)value;
    return target;
}

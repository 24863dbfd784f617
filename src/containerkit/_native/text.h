/* Text in memory without libc: decimal numbers, and strings that end with a zero byte. */
#ifndef CK_TEXT_H
#define CK_TEXT_H

#include <stddef.h>

#define CK_DECIMAL_BYTES 24 /* enough for any number, with its zero byte */

static inline size_t ck_length(const char *text) {
    size_t size = 0;
    while (text[size])
        size++;
    return size;
}

/* Copy a string without its zero byte. Return the address after its last character. */
static inline char *ck_put_text(char *at, const char *text) {
    while (*text)
        *at++ = *text++;
    return at;
}

/* Write a number in decimal, with at least the given number of digits. Return the address after its last digit. */
static inline char *ck_put_number(char *at, unsigned long number, int digits) {
    char reversed[CK_DECIMAL_BYTES];
    int count = 0;
    do {
        reversed[count++] = (char)('0' + number % 10);
        number /= 10;
    } while (number || count < digits);
    while (count)
        *at++ = reversed[--count];
    return at;
}

/* Write a stem and a number as one string. */
static inline void ck_name(char *name, const char *stem, unsigned long number) {
    *ck_put_number(ck_put_text(name, stem), number, 1) = 0;
}

/* Return the number whose decimal digits the text begins with. */
static inline unsigned long ck_parse(const char *text) {
    unsigned long number = 0;
    while (*text >= '0' && *text <= '9')
        number = number * 10 + (unsigned long)(*text++ - '0');
    return number;
}

#endif

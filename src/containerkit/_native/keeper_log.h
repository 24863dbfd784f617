/* The logs of a detached container. */
#ifndef CK_KEEPER_LOG_H
#define CK_KEEPER_LOG_H

#include <stddef.h>

#define CK_LOGS_FD 4 /* the directory of the logs */
#define CK_READ_SIZE 65536

extern struct ck_log {
    unsigned long most_bytes; /* of one log */
    unsigned long most_logs;
    unsigned long number; /* of the current log */
    unsigned long lost;   /* bytes of output that could not be written */
    long file;            /* the current log, or a negative number */
} ck_log;

/* Log output of the command, at most CK_READ_SIZE bytes. A whole line is a record with the mark F, a part of one has
 * the mark P. */
void ck_log_output(const char *read, size_t size, int is_stderr);

/* Log a record of the keeper itself, at most 120 bytes: the text after the time. */
void ck_log_note(const char *text);

/* Write the time in the format of RFC 3339, with nanoseconds. Return the address after it. */
char *ck_put_now(char *at);

#endif

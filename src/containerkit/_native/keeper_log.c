/* The logs of a detached container: what its command writes, as records with the time and the stream, in files that
 * are rotated by size. Source: the log format of Kubernetes' CRI.
 */
#include "keeper_log.h"
#include "syscalls.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PREFIX_SIZE 40 /* of a record: "2026-01-02T03:04:05.000000000Z stdout F " */

struct ck_log ck_log = {.file = -1};

static char outgoing[CK_READ_SIZE + 4096];

/* The date is computed in years that begin in March, whose last day is the leap day, and in eras of 400 years. */
char *ck_put_now(char *at) {
    struct timespec now;
    CK_CALL2(clock_gettime, CLOCK_REALTIME, &now);
    unsigned long days = (unsigned long)now.tv_sec / 86400 + 719468, second = (unsigned long)now.tv_sec % 86400;
    unsigned long era = days / 146097, of_era = days % 146097;
    unsigned long year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
    unsigned long of_year = of_era - (365 * year + year / 4 - year / 100), month = (5 * of_year + 2) / 153;
    unsigned long day = of_year - (153 * month + 2) / 5 + 1;
    month = month < 10 ? month + 3 : month - 9;
    at = ck_put_number(at, era * 400 + year + (month <= 2), 4);
    *at++ = '-';
    at = ck_put_number(at, month, 2);
    *at++ = '-';
    at = ck_put_number(at, day, 2);
    *at++ = 'T';
    at = ck_put_number(at, second / 3600, 2);
    *at++ = ':';
    at = ck_put_number(at, second / 60 % 60, 2);
    *at++ = ':';
    at = ck_put_number(at, second % 60, 2);
    *at++ = '.';
    at = ck_put_number(at, (unsigned long)now.tv_nsec, 9);
    *at++ = 'Z';
    return at;
}

static int open_log(void) {
    char name[40];
    if (ck_log.file >= 0)
        return 1;
    ck_name(name, "log.", ck_log.number);
    ck_log.file = CK_CALL4(openat, CK_LOGS_FD, name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600);
    return ck_log.file >= 0;
}

static void rotate(void) {
    char name[40];
    CK_CALL1(close, ck_log.file);
    ck_log.file = -1;
    ck_log.number++;
    if (ck_log.number > ck_log.most_logs) {
        ck_name(name, "log.", ck_log.number - ck_log.most_logs);
        CK_CALL3(unlinkat, CK_LOGS_FD, name, 0);
    }
}

static unsigned long log_size(void) {
    long size = CK_CALL3(lseek, ck_log.file, 0, SEEK_END); /* another process may have truncated it */
    return size < 0 ? 0 : (unsigned long)size;
}

/* Append records. Returns how many bytes of them are in the log. An incomplete record at the end is undone, and no other:
 * a reader may have read the complete ones already. */
static size_t append(const char *records, size_t size) {
    if (!open_log())
        return 0;
    unsigned long before = log_size();
    if (before && before + size > ck_log.most_bytes) {
        rotate();
        if (!open_log())
            return 0;
        before = log_size();
    }
    size_t done = 0;
    while (done < size) {
        long written = CK_CALL3(write, ck_log.file, records + done, size - done);
        if (written == -EINTR)
            continue;
        if (written <= 0) {
            while (done && records[done - 1] != '\n')
                done--;
            CK_CALL2(ftruncate, ck_log.file, before + done);
            break;
        }
        done += (size_t)written;
    }
    return done;
}

/* Return the number of bytes of output in records. */
static size_t output_in(const char *records, size_t size) {
    size_t found = 0, at = 0;
    while (at < size) {
        int whole = records[at + PREFIX_SIZE - 2] == 'F';
        at += PREFIX_SIZE;
        for (; records[at] != '\n'; at++)
            found++;
        at++;
        found += (size_t)whole; /* its newline */
    }
    return found;
}

/* Append records of output, and before them a note on what was lost. */
static void append_or_count(const char *records, size_t size) {
    char note[128];
    size_t done = 0;
    if (ck_log.lost) {
        char *at = ck_put_text(ck_put_now(note), " stderr F containerkit: ");
        at =
            ck_put_text(ck_put_number(at, ck_log.lost, 1), " bytes of output are lost: the log could not be written\n");
        if (append(note, (size_t)(at - note)))
            ck_log.lost = 0;
    }
    if (!ck_log.lost)
        done = append(records, size);
    ck_log.lost += output_in(records + done, size - done);
}

void ck_log_output(const char *read, size_t size, int is_stderr) {
    char prefix[PREFIX_SIZE + 8];
    size_t head = (size_t)(ck_put_text(ck_put_now(prefix), is_stderr ? " stderr " : " stdout ") - prefix);
    size_t filled = 0;
    while (size) {
        size_t line = 0, most = sizeof outgoing - filled;
        if (most < head + 4096) {
            append_or_count(outgoing, filled);
            filled = 0;
            most = sizeof outgoing;
        }
        most -= head + 3;
        while (line < size && line < most && read[line] != '\n')
            line++;
        int whole = line < size && read[line] == '\n';
        memcpy(outgoing + filled, prefix, head);
        filled += head;
        outgoing[filled++] = whole ? 'F' : 'P';
        outgoing[filled++] = ' ';
        memcpy(outgoing + filled, read, line);
        filled += line;
        outgoing[filled++] = '\n';
        line += (size_t)whole;
        read += line;
        size -= line;
    }
    append_or_count(outgoing, filled);
}

void ck_log_note(const char *text) {
    char line[160];
    append(line, (size_t)(ck_put_text(ck_put_now(line), text) - line));
}

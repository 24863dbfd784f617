/* Read the outputs of a command until it ends. cffi releases the GIL before this runs. */
#define _GNU_SOURCE
#include "listen.h"
#include "syscalls.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 65536

/* Milliseconds until the deadline, rounded up, so that poll does not return too early. */
static int left_ms(int64_t deadline_ns) {
    if (deadline_ns < 0)
        return -1;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int64_t left = (deadline_ns - (int64_t)now.tv_sec * 1000000000 - now.tv_nsec + 999999) / 1000000;
    return left < 0 ? 0 : left > INT_MAX ? INT_MAX : (int)left;
}

static int make_room(struct ck_heard *heard) {
    if (heard->room - heard->length >= CHUNK)
        return 0;
    size_t room = heard->room ? heard->room * 2 : CHUNK;
    char *bytes = realloc(heard->bytes, room);
    if (!bytes)
        return -ENOMEM;
    heard->bytes = bytes;
    heard->room = room;
    return 0;
}

/* Read once, at most `most` bytes. Return the number of bytes, 0 at the end of the pipe. */
static ssize_t hear(struct ck_heard *heard, size_t most) {
    if (most == 0)
        return -EFBIG;
    int error = make_room(heard);
    if (error)
        return error;
    ssize_t got = read(heard->fd, heard->bytes + heard->length, most < CHUNK ? most : CHUNK);
    if (got < 0)
        return -errno;
    heard->length += (size_t)got;
    return got;
}

/* A process that the command left behind may write forever: read only what is in the pipe now. */
static int drain(struct ck_heard heard[2], size_t limit) {
    for (int i = 0; i < 2; i++) {
        int left = 0;
        if (heard[i].fd >= 0 && ioctl(heard[i].fd, FIONREAD, &left) < 0)
            return -errno;
        while (left > 0) {
            size_t allowed = limit - heard[0].length - heard[1].length;
            ssize_t got = hear(&heard[i], (size_t)left < allowed ? (size_t)left : allowed);
            if (got < 0)
                return (int)got;
            if (got == 0)
                break;
            left -= (int)got;
        }
    }
    return 0;
}

/* A signal that arrived after Python's last check does not wake poll. So return from time to time to let Python
 * check. */
#define LOOK_AGAIN_MS 200

static int runs_handlers(void) { return getpid() == (pid_t)CK_CALL0(gettid); }

int ck_listen(int pidfd, struct ck_heard heard[2], size_t limit, int64_t deadline_ns) {
    struct pollfd watched[] = {{heard[0].fd, POLLIN, 0}, {heard[1].fd, POLLIN, 0}, {pidfd, POLLIN, 0}};
    int handles = runs_handlers();
    for (;;) {
        int left = left_ms(deadline_ns);
        int is_cut = (left < 0 || left > LOOK_AGAIN_MS) && handles;
        int ready = poll(watched, 3, is_cut ? LOOK_AGAIN_MS : left);
        if (ready < 0)
            return -errno;
        if (ready == 0 && is_cut)
            return -EINTR;
        if (watched[2].revents)
            return drain(heard, limit);
        for (int i = 0; i < 2; i++) {
            if (!watched[i].revents)
                continue;
            /* A pipe at its end has only POLLHUP. */
            ssize_t got = watched[i].revents & POLLIN ? hear(&heard[i], limit - heard[0].length - heard[1].length) : 0;
            if (got < 0)
                return (int)got;
            if (got == 0)
                heard[i].fd = watched[i].fd = -1;
        }
        if (deadline_ns >= 0 && left_ms(deadline_ns) == 0)
            return -ETIMEDOUT;
    }
}

void ck_forget(struct ck_heard heard[2]) {
    for (int i = 0; i < 2; i++) {
        free(heard[i].bytes);
        heard[i] = (struct ck_heard){.fd = -1};
    }
}

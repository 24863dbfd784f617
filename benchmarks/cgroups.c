/* The groups of a start, created, joined and removed in C: the floor for benchmarks/cgroups.py.
 *
 * Arguments: the number of a descriptor, then the base directories of the hierarchies, each followed by "file=value"
 * words that are written there. Requests arrive on the descriptor, a Unix datagram socket:
 *   "whole"               create the groups, let a child join them, remove them
 *   "join" + descriptors  let a child write "0" to the passed descriptors
 * The answer is the time of the work in nanoseconds, without the child's start and end.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LARGEST = 16 };

static const char *const name = "containerkit-floor";

static uint64_t now(void) {
    struct timespec at;

    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static void must(int done, const char *what) {
    if (done < 0) {
        perror(what);
        exit(1);
    }
}

/* Let a child join and end. Return the time of the joining. */
static uint64_t join(const int *files, int count) {
    uint64_t taken = 0;
    int pipes[2];
    pid_t child;

    must(pipe2(pipes, O_CLOEXEC), "pipe2");
    child = fork();
    must(child, "fork");
    if (child == 0) {
        uint64_t began = now();

        for (int i = 0; i < count; i++)
            must((int)write(files[i], "0", 1), "join");
        taken = now() - began;
        must((int)write(pipes[1], &taken, sizeof taken), "write");
        _exit(0);
    }
    must((int)read(pipes[0], &taken, sizeof taken), "read");
    must(waitpid(child, NULL, 0), "waitpid");
    close(pipes[0]);
    close(pipes[1]);
    return taken;
}

static uint64_t whole(char **words, int count, const int *bases) {
    int files[LARGEST], joined = 0, group = -1;
    uint64_t began = now(), taken;

    for (int i = 0; i < count; i++) {
        char *value = strchr(words[i], '=');

        if (value == NULL) {
            if (group >= 0)
                close(group);
            must(mkdirat(bases[i], name, 0755), words[i]);
            group = openat(bases[i], name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
            must(group, words[i]);
            files[joined] = openat(group, "cgroup.procs", O_WRONLY | O_CLOEXEC);
            must(files[joined++], "cgroup.procs");
            continue;
        }
        char file[64];
        int fd;

        snprintf(file, sizeof file, "%.*s", (int)(value - words[i]), words[i]);
        fd = openat(group, file, O_WRONLY | O_CLOEXEC);
        must(fd, file);
        must((int)write(fd, value + 1, strlen(value + 1)), file);
        close(fd);
    }
    close(group);
    taken = now() - began;
    taken += join(files, joined);
    began = now();
    for (int i = 0; i < joined; i++)
        close(files[i]);
    for (int i = 0; i < count; i++)
        if (bases[i] >= 0)
            must(unlinkat(bases[i], name, AT_REMOVEDIR), words[i]);
    return taken + now() - began;
}

int main(int argc, char **argv) {
    int bases[LARGEST * 4], channel;

    if (argc < 2 || argc > LARGEST * 4)
        return 2;
    channel = atoi(argv[1]);
    argv++, argc--;
    for (int i = 1; i < argc; i++)
        bases[i - 1] = strchr(argv[i], '=') ? -1 : open(argv[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (;;) {
        char request[16] = "", control[CMSG_SPACE(LARGEST * sizeof(int))];
        struct iovec text = {request, sizeof request - 1};
        struct msghdr message = {
            .msg_iov = &text, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        int files[LARGEST], count = 0;
        uint64_t taken;

        if (recvmsg(channel, &message, 0) <= 0)
            return 0;
        if (CMSG_FIRSTHDR(&message) != NULL) {
            count = (int)((CMSG_FIRSTHDR(&message)->cmsg_len - CMSG_LEN(0)) / sizeof(int));
            memcpy(files, CMSG_DATA(CMSG_FIRSTHDR(&message)), (size_t)count * sizeof(int));
        }
        taken = strcmp(request, "whole") == 0 ? whole(argv + 1, argc - 1, bases) : join(files, count);
        for (int i = 0; i < count; i++)
            close(files[i]);
        must((int)send(channel, &taken, sizeof taken, 0), "send");
    }
}

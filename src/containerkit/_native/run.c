/* A command from its start to its end, in two calls: see run.h. */
#define _GNU_SOURCE
#include "run.h"
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* What init writes: struct report in init.c. */
struct report {
    int status;
    int reserved;
    struct rusage usage;
};

static void close_one(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Move a descriptor out of the way of the numbers that a start gives away. */
static int lift(int fd, int lowest) {
    if (fd < 0 || fd >= lowest)
        return fd;
    int lifted = fcntl(fd, F_DUPFD_CLOEXEC, lowest);
    int error = errno;
    close(fd);
    errno = error;
    return lifted;
}

static int open_pipe(int *ours, int *theirs, int flags, int lowest) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC | flags) < 0)
        return -errno;
    *ours = ends[0];
    *theirs = lift(ends[1], lowest);
    return *theirs < 0 ? -errno : 0;
}

/* The three streams lie above their own numbers, the report above all that a start gives away. */
static int open_streams(struct ck_run *run, int theirs[4]) {
    theirs[0] = lift(open("/dev/null", O_RDWR | O_CLOEXEC), 3);
    if (theirs[0] < 0)
        return -errno;
    for (int i = 0; i < 2; i++) {
        int error = open_pipe(&run->ends[i], &theirs[1 + i], 0, 3);
        if (error)
            return error;
        if (run->owner >= 0 && fchown(theirs[1 + i], (uid_t)run->owner, (gid_t)-1) < 0)
            return -errno;
    }
    /* Nobody waits at it: init writes once and ends. */
    return run->report_slot < 0 ? 0 : open_pipe(&run->report, &theirs[3], O_NONBLOCK, CK_LOWEST_FD);
}

static void close_ours(struct ck_run *run) {
    close_one(&run->ends[0]);
    close_one(&run->ends[1]);
    close_one(&run->report);
}

/* Init tells of the command; where it could not, it was killed, and with it the command. */
static void take_report(struct ck_run *run) {
    struct report report;
    struct ck_ending *ending = &run->ending;
    if (read(run->report, &report, sizeof report) != sizeof report) {
        ending->code = CLD_KILLED;
        ending->status = SIGKILL;
        return;
    }
    int exited = WIFEXITED(report.status);
    ck_tell(ending, ending->pid, exited ? CLD_EXITED : CLD_KILLED,
            exited ? WEXITSTATUS(report.status) : WTERMSIG(report.status), &report.usage);
}

int ck_see_out(struct ck_run *run) {
    int error = ck_listen(run->result.pidfd, run->heard, run->limit, run->deadline_ns);
    if (error)
        return error;
    do {
        error = ck_wait(run->result.pidfd, WEXITED, &run->ending);
    } while (error == -EINTR);
    if (error)
        return error;
    if (run->report >= 0)
        take_report(run);
    close_one(&run->result.pidfd);
    close_ours(run);
    return 0;
}

int ck_run(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
           size_t slot_count, int proc_fd, int flags, struct ck_run *run) {
    int theirs[4] = {-1, -1, -1, -1};
    run->result = (struct ck_result){.failed_index = -1, .pidfd = -1};
    run->ends[0] = run->ends[1] = run->report = -1;
    int error = open_streams(run, theirs);
    if (!error) {
        for (int i = 0; i < 3; i++)
            if (run->stream_slots[i] >= 0)
                slots[run->stream_slots[i]] = theirs[i];
        if (run->report_slot >= 0)
            slots[run->report_slot] = theirs[3];
        error = ck_spawn(tape, argv, argc, envp, envc, slots, slot_count, proc_fd, flags, &run->result);
    }
    for (int i = 0; i < 4; i++)
        close_one(&theirs[i]);
    if (error || run->result.failed_index >= 0) {
        close_ours(run);
        return error;
    }
    run->heard[0] = (struct ck_heard){.fd = run->ends[0]};
    run->heard[1] = (struct ck_heard){.fd = run->ends[1]};
    return 0;
}

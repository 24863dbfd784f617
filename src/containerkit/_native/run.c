/* A command from start to end, in two calls: see run.h. */
#define _GNU_SOURCE
#include "run.h"
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

/* The report that init writes: struct report in init.c. */
struct report {
    int status;
    int alone;
    struct rusage usage;
};

static void close_one(int *fd) {
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* Move a descriptor above the numbers that a start assigns. */
static int lift(int fd, int lowest) {
    if (fd < 0 || fd >= lowest)
        return fd;
    int lifted = fcntl(fd, F_DUPFD_CLOEXEC, lowest);
    int error = errno == EINVAL ? EMFILE : errno; /* the limit is below that number: fcntl(2) */
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

/* The three streams are above their own numbers, the report is above all numbers that a start assigns. */
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
    /* Nobody blocks on it: init writes once and ends. */
    return run->report_slot < 0 ? 0 : open_pipe(&run->report, &theirs[3], O_NONBLOCK, CK_LOWEST_FD);
}

static void close_ours(struct ck_run *run) {
    close_one(&run->ends[0]);
    close_one(&run->ends[1]);
    close_one(&run->report);
}

/* Init reports the end of the command. If it could not, it was killed, and with it the command. Returns whether nothing
 * but init, on its way out, still runs. */
static int take_report(struct ck_run *run) {
    struct report report;
    struct ck_ending *ending = &run->ending;
    ending->pid = run->result.pid;
    if (read(run->report, &report, sizeof report) != sizeof report) {
        ending->code = CLD_KILLED;
        ending->status = SIGKILL;
        return 0;
    }
    int exited = WIFEXITED(report.status);
    ck_tell(ending, ending->pid, exited ? CLD_EXITED : CLD_KILLED,
            exited ? WEXITSTATUS(report.status) : WTERMSIG(report.status), &report.usage);
    return report.alone;
}

/* Nothing waits for the end of init, which removes its namespaces. The pidfd stays open until init is reaped. */
static int see_off(struct ck_run *run) {
    int error = ck_listen(run->report, run->heard, run->limit, run->deadline_ns);
    if (error)
        return error;
    int alone = take_report(run);
    close_one(&run->report);
    if (!alone)
        return 0;
    run->leaving = run->result.pidfd;
    run->result.pidfd = -1;
    return 0;
}

static int reap(struct ck_run *run, struct ck_ending *ending) {
    int error;
    do {
        error = ck_wait(run->result.pidfd, WEXITED, ending);
    } while (error == -EINTR);
    return error;
}

int ck_see_out(struct ck_run *run) {
    struct ck_ending of_init;
    int early = run->early && run->report >= 0;
    int error = early ? see_off(run) : ck_listen(run->result.pidfd, run->heard, run->limit, run->deadline_ns);
    if (!error && run->result.pidfd >= 0)
        error = reap(run, early ? &of_init : &run->ending);
    if (error)
        return error;
    if (run->report >= 0)
        take_report(run);
    ck_read_board(&run->shared, &run->result); /* it is unmapped later, when the run is freed */
    if (run->keep) {
        run->kept = run->result.pidfd;
        run->result.pidfd = -1;
    }
    close_one(&run->result.pidfd);
    close_ours(run);
    return 0;
}

int ck_run(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
           size_t slot_count, int proc_fd, int flags, struct ck_run *run) {
    int theirs[4] = {-1, -1, -1, -1};
    run->result = (struct ck_result){.failed_index = -1, .pidfd = -1};
    run->ends[0] = run->ends[1] = run->report = run->leaving = run->kept = -1;
    run->held = NULL;
    run->shared = (struct ck_shared){NULL, 0};
    run->maker = getpid();
    int error = open_streams(run, theirs);
    if (!error) {
        for (int i = 0; i < 3; i++)
            if (run->stream_slots[i] >= 0)
                slots[run->stream_slots[i]] = theirs[i];
        if (run->report_slot >= 0)
            slots[run->report_slot] = theirs[3];
        if (flags & CK_HOLD)
            error = ck_hold(tape, slots, slot_count, proc_fd, flags, &run->result, &run->held);
        else if (flags & CK_JOIN)
            error = ck_join(tape, argv, argc, envp, envc, slots, slot_count, proc_fd, &run->result, &run->shared);
        else
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

int ck_go(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc,
          struct ck_run *run) {
    struct ck_held *held = run->held;
    run->held = NULL;
    int error = ck_let_go(held, tape, argv, argc, envp, envc, &run->result, &run->shared);
    if (run->result.pidfd < 0)
        close_ours(run);
    return error;
}

void ck_drop(struct ck_run *run) {
    ck_end(run->held, &run->result);
    run->held = NULL;
    close_ours(run);
}

void ck_dispose(struct ck_run *run) {
    if (run->held && run->maker == getpid())
        ck_drop(run);
    ck_free_board(&run->shared);
    ck_forget(run->heard);
}

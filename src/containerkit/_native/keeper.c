/* The keeper of a detached container: the process that remains when the caller has ended.
 *
 * It is static, without libc, and started from a sealed memfd. The Python process that has started the container
 * becomes the keeper by execve. So it is the owner that the container's init watches, and the parent of the command.
 * When it dies for any reason, the container dies. It receives:
 *
 *   fd 3  the directory of the record        fd 6  a pidfd of the command
 *   fd 4  the directory of the logs          fd 7  the output of the command: a pipe, or the master of its terminal
 *   fd 5  a pidfd of the init                fd 8  its standard error, if that is a separate pipe
 *   fd 9  the lock of the record, held as long as the keeper lives
 *   fd 10 a pidfd of its child that serves the network, if there is one
 *   fd 11 a socket; when it closes, that process knows that the keeper has ended
 *   further descriptors: locks that it holds for the container, and the write end of the command's stdin
 *
 * argv[1..11]: the number of this start; the delay before a restart, in ms; the maximum size of one log, in bytes; the
 * maximum number of logs; the number of the current log; 1 if the record is removed with the container; the interval of
 * health checks in ms, 0 for none; their interval in the start period until one has passed, in ms; the length of that
 * period, in ms; the descriptor of the command's standard input, which is closed at SIGUSR1, 0 for none; the
 * interpreter. argv[12..]: directories of control groups to remove, the inner ones first.
 *
 * Each health check is run by a separate interpreter, which ends with the check, so that the keeper stays small.
 *
 * The record of the end is written to "exit.new", whose blocks are already allocated, and renamed to "exit.N". So it
 * can be written even if the filesystem is full. Source: pidfd_open(2), renameat(2).
 */
#include "keeper_log.h"
#include "syscalls.h"
#include "text.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define RECORD 3
#define INIT 5
#define COMMAND 6
#define OUTPUT 7
#define LOCK 9
#define ATTENDANT 10
#define LIFE 11
#define GRACE_MS 5000   /* less than a stop waits for this process */
#define MOST_READS 1024 /* more than a pipe or a terminal can hold, even if each read gets little */

static struct {
    unsigned long run, delay_ms, removes, check_ms, first_check_ms, start_period_ms, input;
    char *interpreter;
    char **groups, **environment;
    int signals, asked_to_end, has_attendant, has_errors;
    int check, check_passed; /* a pidfd of the health check that runs, or a negative number; whether one has passed */
    unsigned long began_ms, next_check_ms;
} keeper = {.check = -1};

static char incoming[CK_READ_SIZE];

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

/* Read once. Returns 0 at the end of a stream, when no process can write to it any more. */
static int take(int fd) {
    long size = CK_CALL3(read, fd, incoming, sizeof incoming);
    if (size > 0)
        ck_log_output(incoming, (size_t)size, fd != OUTPUT);
    return size > 0 || size == -EAGAIN || size == -EINTR;
}

/* After the container has ended: read the rest. A process elsewhere may still write, if it was sent a copy of the
 * descriptor, so the number of reads is limited. */
static void drain(void) {
    for (int fd = OUTPUT; fd <= OUTPUT + keeper.has_errors; fd++) {
        struct pollfd left = {fd, POLLIN, 0};
        struct timespec none = {0, 0};
        for (int reads = 0; reads < MOST_READS; reads++)
            if (CK_CALL5(ppoll, &left, 1, &none, 0, 0) <= 0 || !(left.revents & POLLIN) || !take(fd))
                break;
    }
}

/* --- The end */

/* Wait until a pidfd reports the end of its process, even if signals interrupt the wait. */
static void wait_for(int pidfd) {
    struct pollfd ends = {pidfd, POLLIN, 0};
    while (CK_CALL5(ppoll, &ends, 1, 0, 0, 0) == -EINTR)
        ;
}

/* Wait until the init has ended, and reap all children. The init ends only after all processes of its pid namespace have
 * been reaped. Source: pid_namespaces(7). */
static void wait_for_init(void) {
    struct pollfd ended = {INIT, POLLIN, 0};
    struct rusage usage;
    long ends;
    do {
        struct timespec pause = {0, 2000000};
        while (CK_CALL4(wait4, -1, 0, WNOHANG | __WALL, &usage) > 0)
            ;
        ends = CK_CALL5(ppoll, &ended, 1, &pause, 0, 0);
    } while (ends == 0 || ends == -EINTR);
    while (CK_CALL4(wait4, -1, 0, WNOHANG | __WALL, &usage) > 0)
        ;
}

/* Return whether a report says that the kernel has killed a process of the group: "oom_kill N" with another N than 0. */
static int tells_of_a_kill(const char *group, const char *report) {
    static const char wanted[] = "oom_kill ";
    char path[512], content[1024];
    size_t matched = 0;
    if (ck_length(group) > sizeof path - 32)
        return 0;
    *ck_put_text(ck_put_text(path, group), report) = 0;
    long file = CK_CALL4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (file < 0)
        return 0;
    long size = CK_CALL3(read, file, content, sizeof content);
    CK_CALL1(close, file);
    for (long at = 0; at < size; at++) {
        if (matched == sizeof wanted - 1)
            return content[at] != '0';
        matched = content[at] == wanted[matched] ? matched + 1 : content[at] == wanted[0];
    }
    return 0;
}

static int out_of_memory(void) {
    for (char **group = keeper.groups; *group; group++)
        if (tells_of_a_kill(*group, "/memory.events") || tells_of_a_kill(*group, "/memory.oom_control"))
            return 1;
    return 0;
}

static void write_end(int status, const struct rusage *usage) {
    char text[256], name[40];
    char *at = ck_put_number(ck_put_text(text, "status "), (unsigned long)(unsigned int)status, 1);
    at = ck_put_now(ck_put_text(at, " finished "));
    at = ck_put_number(ck_put_text(at, " oom "), (unsigned long)out_of_memory(), 1);
    at = ck_put_number(ck_put_text(at, " user_us "),
                       (unsigned long)(usage->ru_utime.tv_sec * 1000000 + usage->ru_utime.tv_usec), 1);
    at = ck_put_number(ck_put_text(at, " system_us "),
                       (unsigned long)(usage->ru_stime.tv_sec * 1000000 + usage->ru_stime.tv_usec), 1);
    at = ck_put_number(ck_put_text(at, " lost "), ck_log.lost, 1);
    *at++ = '\n';
    long file = CK_CALL4(openat, RECORD, "exit.new", O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file < 0)
        return;
    ck_name(name, "exit.", keeper.run);
    if (CK_CALL4(pwrite64, file, text, at - text, 0) == at - text && CK_CALL2(ftruncate, file, at - text) == 0)
        CK_CALL4(renameat, RECORD, "exit.new", RECORD, name);
    CK_CALL1(close, file);
}

/* Append an event to the stream that all of a user's containers share. The file "event" of the record contains its other
 * fields. A single write keeps the line together. */
static void tell(const char *action, const char *name, unsigned long value) {
    char line[4096], *at;
    long file = CK_CALL4(openat, RECORD, "event", O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (file < 0)
        return;
    at = ck_put_text(ck_put_text(ck_put_text(ck_put_now(line), " event F {\"action\": \""), action), "\", ");
    long size = CK_CALL3(read, file, at, sizeof line - 512);
    CK_CALL1(close, file);
    if (size <= 0)
        return;
    at += size;
    if (name)
        at = ck_put_number(ck_put_text(ck_put_text(ck_put_text(at, ", \""), name), "\": "), value, 1);
    at = ck_put_text(at, "}\n");
    file = CK_CALL4(openat, RECORD, "../../events/current", O_WRONLY | O_APPEND | O_CLOEXEC, 0);
    if (file < 0)
        return;
    CK_CALL3(write, file, line, at - line);
    CK_CALL1(close, file);
}

static void tell_end(int status) {
    if (out_of_memory())
        tell("oom", 0, 0);
    tell("die", "exit_code", (unsigned long)(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff));
}

static void remove_groups(void) {
    struct timespec pause = {0, 2000000};
    for (char **group = keeper.groups; *group; group++)
        for (int tries = 0; tries < 250 && CK_CALL3(unlinkat, AT_FDCWD, *group, AT_REMOVEDIR) == -EBUSY; tries++)
            CK_CALL2(nanosleep, &pause, 0);
}

/* Exec the interpreter, which starts the container again or removes its record. It inherits the record, the logs and
 * the lock. Descriptors held for the ended container are closed. */
static void become_python(const char *what) {
    char *argv[] = {
        keeper.interpreter, (char *)"-sP", (char *)"-m", (char *)"containerkit.detached.resumed", (char *)what, 0};
    uint64_t none = 0;
    CK_CALL3(close_range, INIT, LOCK - 1, 0);
    CK_CALL3(close_range, LOCK + 1, ~0U, 0);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
    CK_CALL3(execve, keeper.interpreter, argv, keeper.environment);
}

static int stopped_by_hand(void) { return CK_CALL4(faccessat, RECORD, "stopped", 0, 0) == 0; }

/* Return the digit in the file "policy": 0 never, 1 on failure, 2 always. It may change while the container runs. */
static int policy(void) {
    char digit = '0';
    long file = CK_CALL4(openat, RECORD, "policy", O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0);
    if (file >= 0) {
        CK_CALL3(read, file, &digit, 1);
        CK_CALL1(close, file);
    }
    return digit - '0';
}

/* Whether it must be started again. The delay before that ends at once if it is stopped in the meantime, or if this
 * process is asked to end. */
static int restarts(int status) {
    struct pollfd asked = {keeper.signals, POLLIN, 0};
    struct timespec wait = {(long)(keeper.delay_ms / 1000), (long)(keeper.delay_ms % 1000) * 1000000};
    struct signalfd_siginfo info;
    int wanted = keeper.asked_to_end ? 0 : policy();
    if (wanted == 0 || (wanted == 1 && status == 0) || stopped_by_hand())
        return 0;
    if (CK_CALL5(ppoll, &asked, 1, &wait, 0, 0) > 0 && CK_CALL3(read, keeper.signals, &info, sizeof info) > 0 &&
        info.ssi_signo != SIGUSR1)
        return 0;
    return !stopped_by_hand();
}

/* --- Health checks, and the process that serves the network */

static unsigned long milliseconds(void) {
    struct timespec now;
    CK_CALL2(clock_gettime, CLOCK_MONOTONIC, &now);
    return (unsigned long)now.tv_sec * 1000 + (unsigned long)now.tv_nsec / 1000000;
}

static void schedule_check(void) {
    unsigned long now = milliseconds();
    int starting = !keeper.check_passed && now - keeper.began_ms < keeper.start_period_ms;
    keeper.next_check_ms = now + (starting ? keeper.first_check_ms : keeper.check_ms);
}

/* Start a check. It inherits only descriptor 3, the record, and not the lock. */
static void start_check(void) {
    char *argv[] = {keeper.interpreter, (char *)"-sP", (char *)"-m", (char *)"containerkit.detached.check", 0};
    uint64_t none = 0;
    int pidfd = -1;
    long keeper_pid = CK_CALL0(getpid);
    long pid = CK_CALL5(clone, CLONE_PIDFD | SIGCHLD, 0, &pidfd, 0, 0);
    if (pid == 0) {
        CK_CALL5(prctl, PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
        if (CK_CALL0(getppid) != keeper_pid)
            leave(1);
        CK_CALL3(close_range, RECORD + 1, ~0U, 0);
        CK_CALL4(rt_sigprocmask, SIG_SETMASK, &none, 0, sizeof none);
        CK_CALL3(execve, keeper.interpreter, argv, keeper.environment);
        leave(127);
    }
    if (pid < 0)
        schedule_check();
    else
        keeper.check = pidfd;
}

/* Reap a check that has ended, or kill it first. */
static void end_check(int kill) {
    siginfo_t info;
    if (keeper.check < 0)
        return;
    if (kill)
        CK_CALL4(pidfd_send_signal, keeper.check, SIGKILL, 0, 0);
    memset(&info, 0, sizeof info);
    wait_for(keeper.check);
    CK_CALL5(waitid, P_PIDFD, keeper.check, &info, WEXITED, 0);
    if (info.si_code == CLD_EXITED && info.si_status == 0)
        keeper.check_passed = 1;
    CK_CALL1(close, keeper.check);
    keeper.check = -1;
    schedule_check();
}

/* End the process that serves the network, and wait for its end, which frees its ports. */
static void end_attendant(void) {
    struct pollfd ends = {ATTENDANT, POLLIN, 0};
    struct timespec grace = {GRACE_MS / 1000, GRACE_MS % 1000 * 1000000};
    siginfo_t info;
    if (!keeper.has_attendant)
        return;
    CK_CALL1(close, LIFE);
    if (CK_CALL5(ppoll, &ends, 1, &grace, 0, 0) <= 0)
        CK_CALL4(pidfd_send_signal, ATTENDANT, SIGKILL, 0, 0);
    wait_for(ATTENDANT);
    CK_CALL5(waitid, P_PIDFD, ATTENDANT, &info, WEXITED, 0);
}

__attribute__((noreturn)) static void finish(void) {
    struct rusage usage = {0};
    siginfo_t info;
    int status = SIGKILL;
    end_check(1);
    memset(&info, 0, sizeof info);
    CK_CALL4(pidfd_send_signal, INIT, SIGKILL, 0, 0);
    wait_for(COMMAND); /* it is in the init's pid namespace, and ends with it */
    /* __WALL, because before its exec it has no exit signal. */
    if (CK_CALL5(waitid, P_PIDFD, COMMAND, &info, WEXITED | __WALL, &usage) == 0)
        status = info.si_code == CLD_EXITED ? info.si_status << 8 : info.si_status;
    wait_for_init();
    drain();
    write_end(status, &usage);
    tell_end(status);
    end_attendant();
    remove_groups();
    if (restarts(status))
        become_python("again");
    if (keeper.removes)
        become_python("remove");
    leave(0);
}

static const char network_ended[] =
    " stderr F containerkit: the process that serves its network has ended, so it is ended, too\n";

static void end_input(void) {
    if (keeper.input)
        CK_CALL1(close, keeper.input);
    keeper.input = 0;
}

/* Wait for an event, at most until the next health check is due. */
static void wait_for_any(struct pollfd *watched, unsigned count) {
    struct timespec left = {0, 0};
    int idle = keeper.check_ms && keeper.check < 0;
    if (idle) {
        unsigned long now = milliseconds(), wait = keeper.next_check_ms > now ? keeper.next_check_ms - now : 0;
        left = (struct timespec){(long)(wait / 1000), (long)(wait % 1000) * 1000000};
    }
    watched[5].fd = keeper.check;
    if (CK_CALL5(ppoll, watched, count, idle ? &left : 0, 0, 0) == 0 && idle)
        start_check();
}

__attribute__((noreturn)) static void keep(void) {
    uint64_t asked = 1ULL << (SIGTERM - 1) | 1ULL << (SIGHUP - 1) | 1ULL << (SIGINT - 1) | 1ULL << (SIGUSR1 - 1),
             all = ~(uint64_t)0;
    struct signalfd_siginfo info;

    keeper.has_errors = CK_CALL3(fcntl, OUTPUT + 1, F_GETFD, 0) >= 0;
    keeper.has_attendant = CK_CALL3(fcntl, ATTENDANT, F_GETFD, 0) >= 0; /* before the number can be reused */
    /* A container can read its own output first, or discard that of its terminal, after this process was told of it. */
    for (int fd = OUTPUT; fd <= OUTPUT + keeper.has_errors; fd++)
        CK_CALL3(fcntl, fd, F_SETFL, O_NONBLOCK);
    CK_CALL5(prctl, PR_SET_NAME, "ck-keeper", 0, 0, 0);
    /* The command of a health check that is killed is reaped here, even if process 1 of this system reaps nothing. */
    CK_CALL5(prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
    keeper.signals = (int)CK_CALL4(signalfd4, -1, &asked, sizeof asked, SFD_NONBLOCK | SFD_CLOEXEC);
    keeper.began_ms = milliseconds();
    schedule_check();
    struct pollfd watched[] = {
        {OUTPUT, POLLIN, 0},
        {keeper.has_errors ? OUTPUT + 1 : -1, POLLIN, 0},
        {COMMAND, POLLIN, 0},
        {INIT, POLLIN, 0},
        {keeper.signals, POLLIN, 0},
        {-1, POLLIN, 0},
        {keeper.has_attendant ? ATTENDANT : -1, POLLIN, 0},
    };
    for (;;) {
        wait_for_any(watched, 7);
        for (int i = 0; i < 2; i++)
            if (watched[i].revents && !take(watched[i].fd))
                watched[i].fd = -1; /* poll ignores it */
        while (watched[4].revents && CK_CALL3(read, keeper.signals, &info, sizeof info) > 0) {
            if (info.ssi_signo == SIGUSR1) {
                end_input();
                continue;
            }
            keeper.asked_to_end = 1; /* for example at a shutdown: the container ends too */
            finish();
        }
        if (watched[2].revents || watched[3].revents)
            finish();
        if (watched[6].revents) {
            ck_log_note(network_ended);
            finish();
        }
        if (watched[5].revents)
            end_check(0);
    }
}

__attribute__((noreturn, used)) static void start(long *stack) {
    long argc = stack[0];
    char **argv = (char **)(stack + 1);
    unsigned long *numbers[] = {
        &keeper.run,     &keeper.delay_ms, &ck_log.most_bytes,     &ck_log.most_logs,       &ck_log.number,
        &keeper.removes, &keeper.check_ms, &keeper.first_check_ms, &keeper.start_period_ms, &keeper.input};
    if (argc < 12)
        leave(126);
    for (int i = 0; i < 10; i++)
        *numbers[i] = ck_parse(argv[i + 1]);
    keeper.interpreter = argv[11];
    keeper.groups = argv + 12;
    keeper.environment = argv + argc + 1;
    keep();
}

/* The entry point: pass the initial stack (argc, argv, envp) to start(). */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl start\n\tbrk #0\n");
#endif

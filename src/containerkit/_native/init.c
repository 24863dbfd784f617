/* PID 1 of a container: reaps, forwards, and dies when its owner does.
 *
 * Static, without libc, started from a sealed memfd, so that nothing of the host's files can be reached through
 * /proc/1/exe. What it is handed:
 *
 *   fd 3  a pidfd of the owner: readable once the owner has ended, however it ended
 *   fd 4  where the fate of the command is written (mode "run" only)
 *   argv[1]  "run": the first child, pid 2, is the command; its end is the container's end
 *            "stay": no command; the container lives until it is killed or its owner ends
 *            "walk": no init at all, but the rest of a tape: see enter.c
 *
 * When PID 1 exits the kernel kills all that is left in the pid namespace. Source: pid_namespaces(7), signalfd(2).
 */
#include "enter.h"
#include "syscalls.h"

#include <errno.h>
#include <linux/prctl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#define OWNER 3
#define REPORT 4
#define COMMAND 2

struct report {
    int status; /* as wait4 gives it */
    int alone;  /* 1: the command has left no process behind */
    struct rusage usage;
};

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

/* Take every child that has ended; the command's end is everybody's. */
static void reap(int has_command) {
    struct report report = {0};
    long pid;
    while ((pid = CK_CALL4(wait4, -1, &report.status, WNOHANG | __WALL, &report.usage)) > 0) {
        if (has_command && pid == COMMAND) {
            do {
                pid = CK_CALL4(wait4, -1, 0, WNOHANG | __WALL, 0);
            } while (pid > 0);
            report.alone = pid == -ECHILD;
            CK_CALL3(write, REPORT, &report, sizeof report);
            leave(0);
        }
    }
}

static void on_signal(int signals, int has_command) {
    struct signalfd_siginfo info;
    while (CK_CALL3(read, signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD)
            continue;
        if (has_command)
            CK_CALL2(kill, COMMAND, info.ssi_signo);
        else if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
            leave(128 + (int)info.ssi_signo);
    }
}

__attribute__((noreturn, used)) static void start(long *stack) {
    char **argv = (char **)(stack + 1);
    if (stack[0] > 1 && argv[1][0] == 'w')
        ck_enter(argv);
    int has_command = stack[0] > 1 && argv[1][0] == 'r';
    uint64_t all = ~(uint64_t)0;

    CK_CALL5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    CK_CALL5(prctl, PR_SET_NAME, "init", 0, 0, 0);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
    int signals = (int)CK_CALL4(signalfd4, -1, &all, sizeof all, SFD_NONBLOCK | SFD_CLOEXEC);
    if (signals < 0)
        leave(126);
    struct pollfd watched[] = {{signals, POLLIN, 0}, {OWNER, POLLIN, 0}};
    for (;;) {
        reap(has_command); /* before the first sleep too: a child may have ended already */
        CK_CALL5(ppoll, watched, 2, 0, 0, 0);
        if (watched[1].revents)
            leave(137);
        if (watched[0].revents)
            on_signal(signals, has_command);
    }
}

/* The entry point: hand the initial stack (argc, argv, envp) to start(). */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl start\n\tbrk #0\n");
#endif

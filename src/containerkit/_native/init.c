/* PID 1 of a container: it reaps processes, forwards signals, and ends when its owner does.
 *
 * It is static, without libc, and started from a sealed memfd, so /proc/1/exe gives no access to the host's files. It
 * receives:
 *
 *   fd 3  a pidfd of the owner: readable once the owner has ended, however it ended
 *   fd 4  a pipe for the report of the command's end (mode "run" only)
 *   argv[1]  "run": the first child, pid 2, is the command; when it ends the container ends
 *            "stay": no command; the container exists until it is killed or its owner ends
 *            "walk": continue a tape, at whose end it may become the init: see enter.c
 *            "guard": not an init: it runs outside and watches the owner for an init that no longer does
 *
 * When PID 1 exits the kernel kills all other processes in the pid namespace. Source: pid_namespaces(7), signalfd(2).
 */
#include "enter.h"
#include "native.h"
#include "syscalls.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

#define OWNER CK_OWNER_FD
#define REPORT 4
#define GUARDED 4
#define COMMAND 2

struct report {
    int status; /* as returned by wait4 */
    int alone;  /* 1: the command has left no process behind */
    struct rusage usage;
};

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

/* Reap every child that has ended. The end of the command ends the container. */
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

/* Processes inside can send any signal to PID 1. It obeys only its owner, who is outside its pid namespace. A process
 * that queues a signal can claim any sender, but not with SI_USER. Source: rt_sigqueueinfo(2), do_rt_sigqueueinfo() in
 * kernel/signal.c. */
static int is_from_owner(const struct signalfd_siginfo *info) {
    return info->ssi_code == SI_USER && info->ssi_pid == 0;
}

extern char __executable_start[];

/* Replace this program's own mapping with a copy in anonymous memory. A checkpoint could not restore a mapping of the
 * file of the running program. The copy has the same bytes at the same addresses. Its size is in the header: without
 * data of its own the program ends before the linker's symbol _end, which lies a page further. */
static void copy_program(void) {
    const Elf64_Ehdr *header = (const Elf64_Ehdr *)__executable_start;
    const Elf64_Phdr *loaded = (const Elf64_Phdr *)(__executable_start + header->e_phoff);
    size_t size = (size_t)(loaded->p_vaddr + loaded->p_memsz - (unsigned long)__executable_start);
    long made = CK_CALL6(mmap, 0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (made < 0)
        return;
    volatile char *copy = (char *)made;
    for (size_t i = 0; i < size; i++)
        copy[i] = __executable_start[i];
    CK_CALL3(mprotect, copy, size, PROT_READ | PROT_EXEC);
    CK_CALL5(mremap, copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, __executable_start);
}

/* Used before a checkpoint, which can't contain a pidfd of a process outside. A pipe on which nothing ever arrives
 * takes its place. The restore replaces both of its ends with a pidfd of the new owner. Until then another process
 * watches the owner. Root of its user namespace can inspect it only if it is dumpable. */
static void let_go_of_owner(void) {
    int ends[2];
    copy_program();
    CK_CALL5(prctl, PR_SET_DUMPABLE, 1, 0, 0, 0);
    if (CK_CALL2(pipe2, ends, O_CLOEXEC) < 0)
        return;
    for (int i = 0; i < 2; i++) {
        CK_CALL3(dup3, ends[i], OWNER + i, O_CLOEXEC);
        CK_CALL1(close, ends[i]);
    }
}

static void on_signal(int signals, int has_command) {
    struct signalfd_siginfo info;
    while (CK_CALL3(read, signals, &info, sizeof info) == sizeof info) {
        if (info.ssi_signo == SIGCHLD || !is_from_owner(&info))
            continue;
        if (has_command)
            CK_CALL2(kill, COMMAND, info.ssi_signo);
        else if (info.ssi_signo == CK_LET_GO)
            let_go_of_owner();
        else if (info.ssi_signo == CK_SHUT)
            CK_CALL5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
        else if (info.ssi_signo == SIGTERM || info.ssi_signo == SIGINT)
            leave(128 + (int)info.ssi_signo);
    }
}

/* A container can name /proc/self/exe as an interpreter, which is this program while a command is looked up. */
__attribute__((noreturn)) static void refuse(void) {
    static const char said[] = "containerkit: the sealed init of a container is not an interpreter\n";
    CK_CALL3(write, 2, said, sizeof said - 1);
    leave(126);
}

/* Outside: fd 3 is a pidfd of the owner, fd 4 a pidfd of an init. When the owner ends, the init and everything in its
 * pid namespace are killed. */
__attribute__((noreturn)) static void guard(void) {
    uint64_t all = ~(uint64_t)0;
    struct pollfd watched[] = {{OWNER, POLLIN, 0}, {GUARDED, POLLIN, 0}};

    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
    CK_CALL5(prctl, PR_SET_NAME, "guard", 0, 0, 0);
    CK_CALL3(close_range, 0, OWNER - 1, 0);
    CK_CALL3(close_range, GUARDED + 1, ~0U, 0);
    while (!watched[1].revents) {
        CK_CALL5(ppoll, watched, 2, 0, 0, 0);
        if (watched[0].revents) {
            CK_CALL4(pidfd_send_signal, GUARDED, SIGKILL, 0, 0);
            break;
        }
    }
    leave(0);
}

__attribute__((noreturn)) static void serve(int has_command) {
    uint64_t all = ~(uint64_t)0;

    if (CK_CALL4(pidfd_send_signal, OWNER, 0, 0, 0) == -EBADF)
        refuse();
    CK_CALL5(prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    CK_CALL5(prctl, PR_SET_NAME, "init", 0, 0, 0);
    CK_CALL4(rt_sigprocmask, SIG_SETMASK, &all, 0, sizeof all);
    int signals = (int)CK_CALL4(signalfd4, -1, &all, sizeof all, SFD_NONBLOCK | SFD_CLOEXEC);
    if (signals < 0)
        leave(126);
    struct pollfd watched[] = {{signals, POLLIN, 0}, {OWNER, POLLIN, 0}};
    for (;;) {
        reap(has_command); /* also before the first sleep: a child may have ended already */
        CK_CALL5(ppoll, watched, 2, 0, 0, 0);
        if (watched[1].revents)
            leave(137);
        if (watched[0].revents)
            on_signal(signals, has_command);
    }
}

static int is_run(const char *mode) { return mode[0] == 'r'; }

/* From now on ps(1) shows the arguments of the init, not those of the walker. The tape is unmapped if no command shares
 * it: if it contains the files of a root, it would make PID 1 the largest process, which the kernel kills first when
 * memory runs out. The parent already knows that the container runs, and does not wait for this. */
static void become_init(struct ck_request *request, const char *mode) {
    int has_command = is_run(mode);
    char *at = request->shown;
    for (int left = 4; left > 0; at++) {
        left -= *at == 0;
        *at = *mode ? *mode++ : 0;
    }
    if (!request->has_cloned)
        CK_CALL2(munmap, request->image, request->image_size);
    serve(has_command);
}

__attribute__((noreturn, used)) static void start(long *stack) {
    char **argv = (char **)(stack + 1);
    if (stack[0] == 5 && argv[1][0] == 'w')
        ck_enter(argv, become_init);
    if (stack[0] == 2 && argv[1][0] == 'g')
        guard();
    serve(stack[0] > 1 && is_run(argv[1]));
}

/* The entry point: pass the initial stack (argc, argv, envp) to start(). */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl start\n\tbrk #0\n");
#endif

/* What a process can do to another of its user: "strangers ATTACK PID [ARGUMENT ...]" tries one thing and says what came
 * of it, as attacks.c does: "done", or the name of the error.
 *
 * "strangers stranger" is the other one. It makes a shared memory segment, a semaphore, a queue of each kind, prints their
 * ids, and waits for the end of its input; SIGUSR2 stays pending in it, so that who looks can tell whether it came.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long failed(long result) {
    return result < 0 ? -errno : 0;
}

/* An error that comes after the question whether it is allowed. */
static long allowed(long result) {
    return result < 0 && (errno == EPERM || errno == EACCES || errno == ENOSYS) ? -errno : 0;
}

static const char *queue_name(int pid) {
    static char name[64];
    snprintf(name, sizeof name, "/containerkit-stranger-%d", pid);
    return name;
}

static int stranger(void) {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigprocmask(SIG_BLOCK, &blocked, NULL);
    int memory = shmget(IPC_PRIVATE, 4096, IPC_CREAT | 0600);
    int semaphore = semget(IPC_PRIVATE, 1, IPC_CREAT | 0600);
    int queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    mqd_t posix = mq_open(queue_name(getpid()), O_RDWR | O_CREAT, 0600, NULL);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    printf("%d %d %d %d %lu\n", memory, semaphore, queue, posix >= 0, (unsigned long)page);
    fflush(stdout);
    while (read(0, &(char){0}, 1) > 0)
        ;
    shmctl(memory, IPC_RMID, NULL);
    semctl(semaphore, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    mq_unlink(queue_name(getpid()));
    return 0;
}

/* --- Limits and schedules ----------------------------------------------------------------------------------------- */

static long limit(long pid) {
    struct rlimit none = {0, 0};
    return failed(syscall(SYS_prlimit64, pid, RLIMIT_CPU, &none, NULL));
}

static long read_limit(long pid) {
    struct rlimit found;
    return failed(syscall(SYS_prlimit64, pid, RLIMIT_CPU, NULL, &found));
}

static long affinity(long pid) {
    unsigned long mask = 1;
    return failed(syscall(SYS_sched_setaffinity, pid, sizeof mask, &mask));
}

static long scheduler(long pid) {
    struct sched_param parameter = {0};
    return failed(syscall(SYS_sched_setscheduler, pid, SCHED_IDLE, &parameter));
}

static long parameter(long pid) {
    struct sched_param parameter = {0};
    return failed(syscall(SYS_sched_setparam, pid, &parameter));
}

static long attributes(long pid) {
    /* size, policy, flags (two words), niceness: one below the stranger's, which is ours, would be refused in any case */
    uint32_t words[12] = {48, SCHED_BATCH, 0, 0, (uint32_t)getpriority(PRIO_PROCESS, 0)};
    return failed(syscall(SYS_sched_setattr, pid, words, 0));
}

/* --- Signals ------------------------------------------------------------------------------------------------------ */

static long queued(long number, long pid, long tid) {
    siginfo_t info = {.si_signo = SIGUSR2, .si_code = SI_QUEUE, .si_pid = getpid(), .si_uid = getuid()};
    return failed(number == SYS_rt_sigqueueinfo ? syscall(number, pid, SIGUSR2, &info)
                                                : syscall(number, pid, tid, SIGUSR2, &info));
}

static long by_pidfd(long pid) {
    int at = (int)syscall(SYS_pidfd_open, pid, 0);
    return at < 0 ? -errno : failed(syscall(SYS_pidfd_send_signal, at, SIGUSR2, NULL, 0));
}

/* By a socket whose owner it is made, when something can be read from it. */
static long by_owner(long pid, int wide) {
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) < 0)
        return -errno;
    struct f_owner_ex owner = {F_OWNER_PID, (pid_t)pid};
    if ((wide ? fcntl(ends[0], F_SETOWN_EX, &owner) : fcntl(ends[0], F_SETOWN, pid)) < 0)
        return -errno;
    if (fcntl(ends[0], F_SETSIG, SIGUSR2) < 0 || fcntl(ends[0], F_SETFL, O_ASYNC) < 0)
        return -errno;
    return failed(write(ends[1], "x", 1));
}

/* --- Memory and descriptors --------------------------------------------------------------------------------------- */

static long read_memory(long pid, unsigned long address) {
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)address, 1};
    return failed(process_vm_readv((pid_t)pid, &here, 1, &there, 1, 0));
}

static long write_memory(long pid, unsigned long address) {
    struct iovec here = {"x", 1}, there = {(void *)address, 1};
    return failed(process_vm_writev((pid_t)pid, &here, 1, &there, 1, 0));
}

static long of_proc(long pid, const char *name, int flags) {
    char path[64], byte;
    snprintf(path, sizeof path, "/proc/%ld/%s", pid, name);
    int at = open(path, flags);
    if (at < 0)
        return -errno;
    return flags == O_RDONLY ? failed(read(at, &byte, 1)) : flags == O_WRONLY ? failed(write(at, "1", 1)) : 0;
}

static long descriptor(long pid) {
    int at = (int)syscall(SYS_pidfd_open, pid, 0);
    return at < 0 ? -errno : failed(syscall(SYS_pidfd_getfd, at, 0, 0));
}

static long move_pages(long pid, unsigned long address) {
    void *page = (void *)address;
    int node = 0, status;
    return allowed(syscall(SYS_move_pages, pid, 1, &page, &node, &status, 2 /* MPOL_MF_MOVE */));
}

static long migrate_pages(long pid) {
    unsigned long nodes = 1;
    return allowed(syscall(SYS_migrate_pages, pid, 8, &nodes, &nodes));
}

static long robust_list(long pid) {
    void *head;
    size_t length;
    return failed(syscall(SYS_get_robust_list, pid, &head, &length));
}

static long core_cookie(long pid) {
    if (prctl(62 /* PR_SCHED_CORE */, 1 /* CREATE */, 0, 0, 0) < 0)
        return -errno;
    return failed(prctl(62, 2 /* SHARE_TO */, pid, 0, 0));
}

/* --- What has a number or a name ---------------------------------------------------------------------------------- */

static long shared_memory(int id) {
    return shmat(id, NULL, 0) == (void *)-1 ? -errno : 0;
}

static long semaphore(int id) {
    struct sembuf up = {0, 1, 0};
    return failed(semop(id, &up, 1));
}

static long message(int id) {
    struct {
        long type;
        char text;
    } sent = {1, 'x'};
    return failed(msgsnd(id, &sent, 1, IPC_NOWAIT));
}

static long watch(const char *path) {
    return failed(inotify_add_watch(inotify_init1(0), path, IN_ALL_EVENTS));
}

#define IS(text) (strcmp(name, text) == 0)

static long try_numbers(const char *name, long pid, unsigned long more) {
    if (IS("limit"))
        return limit(pid);
    if (IS("limit-wide")) /* bits that the kernel does not look at */
        return limit(pid | 1L << 40);
    if (IS("read-limit"))
        return read_limit(pid);
    if (IS("affinity"))
        return affinity(pid);
    if (IS("read-affinity"))
        return failed(syscall(SYS_sched_getaffinity, pid, sizeof more, &more));
    if (IS("scheduler"))
        return scheduler(pid);
    if (IS("parameter"))
        return parameter(pid);
    if (IS("attributes"))
        return attributes(pid);
    if (IS("priority"))
        return failed(setpriority(PRIO_PROCESS, (id_t)pid, 19));
    if (IS("priority-wide"))
        return failed(syscall(SYS_setpriority, 1L << 40, pid | 1L << 40, 19));
    if (IS("priority-group"))
        return failed(setpriority(PRIO_PGRP, (id_t)getpgid((pid_t)pid), 19));
    if (IS("priority-user"))
        return failed(setpriority(PRIO_USER, 0, 19));
    if (IS("read-priority"))
        return failed(getpriority(PRIO_PROCESS, (id_t)pid));
    if (IS("io-priority"))
        return failed(syscall(SYS_ioprio_set, 1, pid, 3 << 13));
    if (IS("io-priority-group"))
        return failed(syscall(SYS_ioprio_set, 2, getpgid((pid_t)pid), 3 << 13));
    if (IS("io-priority-user"))
        return failed(syscall(SYS_ioprio_set, 3, getuid(), 3 << 13));
    return 1;
}

static long try_signals(const char *name, long pid) {
    if (IS("kill"))
        return failed(kill((pid_t)pid, SIGUSR2));
    if (IS("kill-group"))
        return failed(kill(-getpgid((pid_t)pid), SIGUSR2));
    if (IS("kill-all")) {
        signal(SIGUSR2, SIG_IGN);
        return failed(kill(-1, SIGUSR2));
    }
    if (IS("tkill"))
        return failed(syscall(SYS_tkill, pid, SIGUSR2));
    if (IS("tgkill"))
        return failed(syscall(SYS_tgkill, pid, pid, SIGUSR2));
    if (IS("queue"))
        return queued(SYS_rt_sigqueueinfo, pid, 0);
    if (IS("queue-thread"))
        return queued(SYS_rt_tgsigqueueinfo, pid, pid);
    if (IS("pidfd"))
        return by_pidfd(pid);
    if (IS("owner"))
        return by_owner(pid, 0);
    if (IS("owner-ex"))
        return by_owner(pid, 1);
    return 1;
}

static long try_memory(const char *name, long pid, unsigned long more) {
    if (IS("read-memory"))
        return read_memory(pid, more);
    if (IS("write-memory"))
        return write_memory(pid, more);
    if (IS("environ") || IS("maps"))
        return of_proc(pid, name, O_RDONLY);
    if (IS("mem"))
        return of_proc(pid, name, O_RDWR);
    if (IS("fd"))
        return of_proc(pid, "fd/0", O_PATH);
    if (IS("root"))
        return of_proc(pid, "root/", O_PATH);
    if (IS("oom_score_adj"))
        return of_proc(pid, name, O_WRONLY);
    if (IS("trace"))
        return failed(ptrace(PTRACE_SEIZE, pid, 0, 0));
    if (IS("descriptor"))
        return descriptor(pid);
    if (IS("compare"))
        return failed(syscall(SYS_kcmp, pid, getpid(), KCMP_FILES, 0, 0) < 0 ? -1 : 0);
    if (IS("move-pages"))
        return move_pages(pid, more);
    if (IS("migrate-pages"))
        return migrate_pages(pid);
    if (IS("robust-list"))
        return robust_list(pid);
    if (IS("core-cookie"))
        return core_cookie(pid);
    return 1;
}

static long try_names(const char *name, const char *text) {
    int id = atoi(text);
    if (IS("shared-memory"))
        return shared_memory(id);
    if (IS("shared-memory-removed"))
        return failed(shmctl(id, IPC_RMID, NULL));
    if (IS("semaphore"))
        return semaphore(id);
    if (IS("semaphore-set"))
        return failed(semctl(id, 0, SETVAL, 0));
    if (IS("message"))
        return message(id);
    if (IS("message-removed"))
        return failed(msgctl(id, IPC_RMID, NULL));
    if (IS("posix-queue"))
        return failed(mq_open(queue_name(id), O_RDWR));
    if (IS("posix-queue-removed"))
        return failed(syscall(SYS_mq_unlink, queue_name(id) + 1)); /* glibc has another error for EPERM */
    if (IS("watch"))
        return watch(text);
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 3)
        return stranger();
    const char *name = argv[1];
    long pid = atol(argv[2]);
    unsigned long more = argc > 3 ? strtoul(argv[3], NULL, 0) : 0;
    long result = try_numbers(name, pid, more);
    result = result == 1 ? try_signals(name, pid) : result;
    result = result == 1 ? try_memory(name, pid, more) : result;
    result = result == 1 ? try_names(name, argv[2]) : result;
    if (result == 1)
        fprintf(stderr, "no such attack\n");
    else
        puts(result == 0 ? "done" : strerrorname_np((int)-result));
    return result == 1 ? 99 : 0;
}

/* Attacks on a container from inside: "attacks NAME [ARGUMENT ...]" tries one and says what came of it.
 *
 * It prints "done" when the kernel let it, the name of the error when not; an attack that can tell more prints that.
 * Tests compile it, statically, and put it into a container.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/netlink.h>
#include <linux/perf_event.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static long failed(long result) {
    return result < 0 ? -errno : 0;
}

#include "attack_calls.h"
#include "attack_files.h"

/* --- Processes and users ------------------------------------------------------------------------------------------ */

static long attach(char **argv) {
    pid_t pid = (pid_t)atoi(argv[0]);
    if (ptrace(PTRACE_SEIZE, pid, NULL, NULL) < 0)
        return -errno;
    ptrace(PTRACE_DETACH, pid, NULL, NULL);
    return 0;
}

static long read_memory(char **argv) {
    char content[16];
    struct iovec here = {content, sizeof content}, there = {(void *)(uintptr_t)strtoull(argv[1], NULL, 0), sizeof content};
    return failed(process_vm_readv((pid_t)atoi(argv[0]), &here, 1, &there, 1, 0));
}

static long signal_process(char **argv) {
    return failed(kill((pid_t)atoi(argv[0]), atoi(argv[1])));
}

static long who(char **argv) {
    (void)argv;
    gid_t groups[64];
    int count = getgroups(64, groups);
    printf("%d %d %d %d", getuid(), geteuid(), getgid(), getegid());
    for (int i = 0; i < count; i++)
        printf(" %d", groups[i]);
    return putchar('\n'), 1;
}

static long drop_groups(char **argv) {
    (void)argv;
    return failed(setgroups(0, NULL));
}

static long become(char **argv) {
    return failed(setuid((uid_t)strtoul(argv[0], NULL, 10)));
}

/* forks LIMIT: how many children can be had at once, up to a limit. */
static long forks(char **argv) {
    int limit = atoi(argv[0]), made = 0;
    for (; made < limit; made++) {
        pid_t pid = fork();
        if (pid < 0)
            break;
        if (pid == 0) {
            pause();
            _exit(0);
        }
    }
    printf("%d %s\n", made, made < limit ? strerrorname_np(errno) : "all");
    fflush(stdout);
    signal(SIGTERM, SIG_IGN);
    kill(0, SIGTERM);
    return 1;
}

/* opens LIMIT: how many descriptors can be had, having raised the limit as far as it goes. */
static long opens(char **argv) {
    int limit = atoi(argv[0]), made = 0;
    struct rlimit rlimit;
    getrlimit(RLIMIT_NOFILE, &rlimit);
    rlimit.rlim_cur = rlimit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &rlimit);
    while (made < limit && open("/dev/null", O_RDONLY) >= 0)
        made++;
    return printf("%d %s\n", made, made < limit ? strerrorname_np(errno) : "all"), 1;
}

static long raise_limit(char **argv) {
    (void)argv;
    struct rlimit rlimit;
    getrlimit(RLIMIT_CORE, &rlimit);
    rlimit.rlim_cur = rlimit.rlim_max = RLIM_INFINITY;
    return failed(setrlimit(RLIMIT_CORE, &rlimit));
}

/* eat MIB: touch so much memory. */
static long eat(char **argv) {
    size_t bytes = (size_t)atoi(argv[0]) << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    for (size_t at = 0; at < bytes; at += 4096)
        memory[at] = 1;
    return 0;
}

static long crash(char **argv) {
    (void)argv;
    abort();
}

/* secret HEX: does any process hold these bytes in memory that can be read from here? For some seconds. */
static long secret(char **argv) {
    size_t length = strlen(argv[0]) / 2, found = 0, opened = 0;
    unsigned char wanted[64];
    char path[64], line[256];
    static char content[1 << 20];
    for (size_t i = 0; i < length && i < sizeof wanted; i++)
        sscanf(argv[0] + 2 * i, "%2hhx", &wanted[i]);
    for (time_t end = time(NULL) + atoi(argv[1]); time(NULL) < end && !found;)
        for (int pid = 1; pid < 3000 && !found; pid++) {
            snprintf(path, sizeof path, "/proc/%d/maps", pid);
            FILE *maps = pid == getpid() ? NULL : fopen(path, "r");
            if (!maps)
                continue;
            snprintf(path, sizeof path, "/proc/%d/mem", pid);
            int memory = open(path, O_RDONLY);
            opened += memory >= 0;
            unsigned long from, to;
            while (memory >= 0 && fgets(line, sizeof line, maps) && sscanf(line, "%lx-%lx rw", &from, &to) == 2)
                for (; from < to; from += sizeof content - 64) {
                    size_t room = to - from < sizeof content ? to - from : sizeof content;
                    ssize_t got = pread(memory, content, room, (off_t)from);
                    if (got > 0 && memmem(content, (size_t)got, wanted, length))
                        found++;
                }
            if (memory >= 0)
                close(memory);
            fclose(maps);
        }
    return puts(found ? "found" : opened ? "looked" : "blind"), 1;
}

/* --- Network and inter-process communication ---------------------------------------------------------------------- */

static long abstract_socket(char **argv) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path + 1, argv[0], sizeof address.sun_path - 2);
    int at = socket(AF_UNIX, SOCK_STREAM, 0);
    return failed(connect(at, (void *)&address, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(argv[0]))));
}

static long make_socket(char **argv) {
    return failed(socket(atoi(argv[0]), atoi(argv[1]), argv[2] ? atoi(argv[2]) : 0));
}

static long connect_tcp(char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[0]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return failed(connect(socket(AF_INET, SOCK_STREAM, 0), (void *)&address, sizeof address));
}

/* Bring lo down by netlink: what an administrator of the network can do. */
static long set_link(char **argv) {
    (void)argv;
    struct {
        struct nlmsghdr head;
        struct ifinfomsg link;
    } request = {{sizeof request, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, 1, 0}, {.ifi_index = 1, .ifi_change = IFF_UP}};
    struct {
        struct nlmsghdr head;
        struct nlmsgerr error;
        char rest[256];
    } answer;
    int at = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    if (at < 0 || send(at, &request, sizeof request, 0) < 0 || recv(at, &answer, sizeof answer, 0) < 0)
        return -errno;
    return answer.error.error;
}

static long interfaces(char **argv) {
    (void)argv;
    struct if_nameindex *all = if_nameindex();
    if (!all)
        return -errno;
    for (struct if_nameindex *each = all; each->if_index; each++)
        printf("%s ", each->if_name);
    return putchar('\n'), 1;
}

static long find_shared_memory(char **argv) {
    return failed(shmget((key_t)strtol(argv[0], NULL, 0), 0, 0));
}

/* push_input CHARACTER: put it into the terminal at stdin as if it had been typed. */
static long push_input(char **argv) {
    return failed(ioctl(0, TIOCSTI, argv[0]));
}

/* take-terminal TEXT: make the terminal on stdin the controlling one of the own session, then push. */
static long take_terminal(char **argv) {
    return ioctl(0, TIOCSCTTY, 0) < 0 ? -errno : push_input(argv);
}

static long push_linux(char **argv) {
    (void)argv;
    char paste[16] = {3};
    return failed(ioctl(0, TIOCLINUX, paste));
}

static long push_input_wide(char **argv) {
    return failed(syscall(SYS_ioctl, 0L, (1L << 32) | TIOCSTI, argv[0]));
}

/* --- Threads ------------------------------------------------------------------------------------------------------ */

static void *write_in_thread(void *argv) {
    return (void *)write_file(argv);
}

static long write_from_thread(char **argv) {
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, write_in_thread, argv) != 0)
        return -EAGAIN;
    pthread_join(thread, &result);
    return (long)result;
}

static long nested(char **argv);

static const struct {
    const char *name;
    long (*run)(char **argv);
} attacks[] = {
    {"abstract-socket", abstract_socket},
    {"add-key", add_key},
    {"attach", attach},
    {"become", become},
    {"bpf-map", bpf_map},
    {"break-out", break_out},
    {"call", any_call},
    {"change-mode", change_mode},
    {"clone", namespaces_by_clone},
    {"clone-mount", clone_mount},
    {"clone3", namespaces_by_clone3},
    {"connect-tcp", connect_tcp},
    {"crash", crash},
    {"create-file", create_file},
    {"drop-groups", drop_groups},
    {"eat", eat},
    {"find-shared-memory", find_shared_memory},
    {"forks", forks},
#if defined(__x86_64__)
    {"i386-entry", i386_entry},
    {"numbers", numbers},
    {"x32-entry", x32_entry},
#endif
    {"interfaces", interfaces},
    {"io-uring", io_uring},
    {"join", join},
    {"make-device", make_device},
    {"make-set-id", make_set_id},
    {"make-socket", make_socket},
    {"mount-tmpfs", mount_tmpfs},
    {"mount-type", mount_type},
    {"nested", nested},
    {"new-mount-api", new_mount_api},
    {"opens", opens},
    {"perf-event", perf_event},
    {"pivot", pivot},
    {"push-input", push_input},
    {"push-input-wide", push_input_wide},
    {"push-linux", push_linux},
    {"raise-limit", raise_limit},
    {"read-file", read_file},
    {"read-key", read_key},
    {"read-memory", read_memory},
    {"remount-writable", remount_writable},
    {"secret", secret},
    {"set-capability", set_capability},
    {"set-id", set_id},
    {"set-link", set_link},
    {"shocker", shocker},
    {"signal", signal_process},
    {"take-terminal", take_terminal},
    {"unmount", unmount},
    {"unshare", namespaces_by_unshare},
    {"userfaultfd", fault_handler},
    {"who", who},
    {"write-file", write_file},
    {"write-from-thread", write_from_thread},
};

#define NO_ATTACK 2

static long try(char **argv) {
    for (size_t i = 0; argv[0] && i < sizeof attacks / sizeof *attacks; i++)
        if (strcmp(attacks[i].name, argv[0]) == 0)
            return attacks[i].run(argv + 1);
    return NO_ATTACK;
}

/* nested ATTACK [ARGUMENT ...]: as root with all capabilities of a user and mount namespace made here. */
static long nested(char **argv) {
    return unshare(CLONE_NEWUSER | CLONE_NEWNS) < 0 ? -errno : try(argv);
}

int main(int argc, char **argv) {
    (void)argc;
    long result = try(argv + 1);
    if (result == NO_ATTACK)
        fprintf(stderr, "no such attack\n");
    else if (result <= 0)
        puts(result == 0 ? "done" : strerrorname_np((int)-result));
    return result == NO_ATTACK ? 99 : 0;
}

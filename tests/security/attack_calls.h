/* Part of attacks.c: attacks that are single system calls. */

/* call NUMBER [ARGUMENT ...]: any system call with numbers for arguments; prints its result. */
static long any_call(char **argv) {
    long words[7] = {0};
    for (int i = 0; i < 7 && argv[i]; i++)
        words[i] = strtol(argv[i], NULL, 0);
    return failed(syscall(words[0], words[1], words[2], words[3], words[4], words[5], words[6]));
}

static long io_uring(char **argv) {
    (void)argv;
    char parameters[256] = {0};
    return failed(syscall(SYS_io_uring_setup, 4, parameters));
}

static long fault_handler(char **argv) {
    (void)argv;
    return failed(syscall(SYS_userfaultfd, UFFD_USER_MODE_ONLY));
}

static long bpf_map(char **argv) {
    (void)argv;
    union bpf_attr map = {.map_type = BPF_MAP_TYPE_ARRAY, .key_size = 4, .value_size = 4, .max_entries = 1};
    return failed(syscall(SYS_bpf, BPF_MAP_CREATE, &map, sizeof map));
}

static long perf_event(char **argv) {
    (void)argv;
    struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .config = PERF_COUNT_SW_TASK_CLOCK};
    event.exclude_kernel = event.exclude_hv = 1;
    return failed(syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
}

static long add_key(char **argv) {
    (void)argv;
    return failed(syscall(SYS_add_key, "user", "attack", "x", 1, -3)); /* KEY_SPEC_SESSION_KEYRING */
}

/* read_key NAME: find a key from the session keyring on, and print what it holds. */
static long read_key(char **argv) {
    char content[256] = {0};
    long key = syscall(SYS_request_key, "user", argv[0], NULL, 0);
    if (key < 0)
        return -errno;
    if (syscall(SYS_keyctl, 11, key, content, sizeof content - 1, 0) < 0) /* KEYCTL_READ */
        return -errno;
    return puts(content), 1;
}

static long namespaces_by_clone(char **argv) {
    long pid = syscall(SYS_clone, strtol(argv[0], NULL, 0) | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        _exit(0);
    return failed(pid);
}

static long namespaces_by_clone3(char **argv) {
    struct clone_args args = {.flags = (uint64_t)strtol(argv[0], NULL, 0), .exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    return failed(pid);
}

static long namespaces_by_unshare(char **argv) {
    return failed(unshare((int)strtol(argv[0], NULL, 0)));
}

static long join(char **argv) {
    int at = open(argv[0], O_RDONLY | O_CLOEXEC);
    return at < 0 ? -errno : failed(setns(at, 0));
}

#if defined(__x86_64__)
/* getppid by the 32-bit entry: a filter that looks at numbers only takes 64 for another call. */
static long i386_entry(char **argv) {
    (void)argv;
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(64L) : "memory", "r8", "r9", "r10", "r11");
    return result < 0 ? result : 0;
}

static long x32_entry(char **argv) {
    (void)argv;
    return failed(syscall(0x40000000 + SYS_getppid));
}
#endif

#if defined(__x86_64__)
#define MAGIC 0x5ec3L

static long raw(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* numbers ENTRY LAST: call every number by the entry "native", "int80" or "x32", and print what came of each.
 *
 * A second filter keeps a call that the first lets through from being made: without a tracer it ends in ENOSYS. That is
 * weaker than any error that the first gives, so that is what is seen.
 */
static long numbers(char **argv) {
    static char text[1 << 17];
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[5])),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, MAGIC, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRACE),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    long last = atol(argv[1]), at = 0;
    int own = strcmp(argv[0], "native") == 0, x32 = strcmp(argv[0], "x32") == 0;
    for (long number = 0; number <= last; number++) {
        if (own && (number == 335 || number == 336))
            continue; /* uretprobe and uprobe pass every filter, and kill who calls them like this */
        int status = 0;
        pid_t child = own && number ? 0 : fork();
        if (child) {
            waitpid(child, &status, 0);
            if (own)
                return 1;
            at += sprintf(text + at, "%ld %d\n", number, WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status));
            continue;
        }
        if (!own || number == 0) {
            prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            if (raw(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, (long)&program, 0, 0, MAGIC) < 0)
                abort();
        }
        long result = -1;
        if (own || x32)
            result = raw(number | (x32 ? 0x40000000 : 0), 0, 0, 0, 0, 0, 0);
        else
            __asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(0), "c"(0), "d"(0), "S"(0), "D"(0) : "memory");
        if (!own)
            raw(SYS_exit_group, -result & 0xFF, 0, 0, 0, 0, MAGIC);
        at += sprintf(text + at, "%ld %ld\n", number, -result);
    }
    raw(SYS_write, 1, (long)text, at, 0, 0, MAGIC);
    raw(SYS_exit_group, 0, 0, 0, 0, 0, MAGIC);
    return 1;
}
#endif

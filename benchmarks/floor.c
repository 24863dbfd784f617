/* The floors with which containerkit is compared: the cost of the kernel when it is called from C.
 *
 *   floor INIT DIRECTORY        serve: a request is one line on stdin, its words separated by tabs; so is the answer on
 * stdout
 *
 *     spawn PROGRAM WORD...  vfork, exec, wait
 *     twin WISH,WISH...      the C twin of containerkit.run() (twin.c); the wishes are listed below and in floor.h
 *     filter HEX             the BPF program that twins with the wish `security` install from now on
 *
 * INIT is containerkit's own PID 1, DIRECTORY a root filesystem with the programs /true and /static. The answer is the
 * time from the call until the last process was reaped and the last pipe read, in nanoseconds, or `failed REQUEST`.
 */
#include "floor.h"

static const struct {
    const char *name;
    int flag;
} wishes[] = {{"host", HOST}, {"init", INIT},         {"net", NET},      {"pooled", POOLED},
              {"time", TIME}, {"security", SECURITY}, {"static", STATIC}};

static int spawn(char **words) {
    int status = -1;
    pid_t pid = vfork();
    if (pid == 0) {
        execvp(words[0], words);
        _exit(127);
    }
    waitpid(pid, &status, 0);
    return status == 0;
}

static int wishes_of(char *text) {
    int flags = 0;
    for (char *word = strtok(text, ","); word; word = strtok(NULL, ",")) {
        int known = 0;
        for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
            if (!strcmp(word, wishes[i].name))
                known = wishes[i].flag;
        if (!known)
            return -1;
        flags |= known;
    }
    return flags;
}

static int load_filter(const char *hex) {
    static struct sock_filter program[4096];
    size_t bytes = strlen(hex) / 2;
    if (bytes > sizeof program || bytes % sizeof *program)
        return 0;
    for (size_t i = 0; i < bytes; i++) {
        unsigned value;
        if (sscanf(hex + 2 * i, "%2x", &value) != 1)
            return 0;
        ((unsigned char *)program)[i] = (unsigned char)value;
    }
    ready.filter = (struct sock_fprog){(unsigned short)(bytes / sizeof *program), program};
    return 1;
}

static void answer(FILE *to, char **words) {
    int64_t began = now_ns();
    int good = 0;
    if (!strcmp(words[0], "spawn") && words[1]) {
        good = spawn(words + 1);
    } else if (!strcmp(words[0], "twin") && words[1]) {
        now.wishes = wishes_of(words[1]);
        began = now_ns();
        good = now.wishes >= 0 && twin();
        if (prctl(PR_GET_DUMPABLE) != 1)
            prctl(PR_SET_DUMPABLE, 1);
    } else if (!strcmp(words[0], "filter") && words[1]) {
        good = load_filter(words[1]);
    }
    int64_t taken = now_ns() - began;
    if (good)
        fprintf(to, "%lld\n", (long long)taken);
    else
        fprintf(to, "failed %s\n", words[0]);
    fflush(to);
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: floor INIT DIRECTORY\n");
        return 2;
    }
    prepare(argv[1], argv[2]);
    /* The requests use other descriptors. Spawned programs get an empty file as standard streams: some runtimes change
     * their owner to the container's user, which must not happen to the machine's /dev/null. */
    FILE *from = fdopen(fcntl(0, F_DUPFD_CLOEXEC, 64), "r");
    FILE *to = fdopen(fcntl(1, F_DUPFD_CLOEXEC, 64), "w");
    int nothing = checked(memfd_create("nothing", MFD_CLOEXEC), "memfd_create");
    for (int fd = 0; fd < 2; fd++)
        check(dup2(nothing, fd), "dup2");
    fprintf(to, "ready\n");
    fflush(to);
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, from) > 0) {
        char *words[256] = {NULL};
        size_t count = 0;
        line[strcspn(line, "\n")] = 0;
        for (char *word = strtok(line, "\t"); word && count < 255; word = strtok(NULL, "\t"))
            words[count++] = word;
        if (count)
            answer(to, words);
    }
    return 0;
}

/* The front end of the OCI command: state, start, kill and delete without an interpreter.
 *
 * It is static, without libc. pip installs it, and the verb "launcher" copies it to where an engine looks for the
 * runtime; the block `ck_launch` says what it executes. It does what the Python modules of the verbs do in the usual
 * case. Everything else is handed over by execve to Python, which begins from the beginning: other verbs, options that
 * are not known here, records that are
 * not wholly understood, hooks, all errors. So there is one text of each message, and one place for each rare case.
 *
 * A verb may be handed over as long as it has had no effect that Python would not have or repeat. After `start` has
 * connected to the gate that is no longer so: then Python gets the descriptors of the directory and of the gate.
 */
#include "front.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>

#define LAUNCH_SIZE 8192
#define FAILED 1
#define INTERRUPTED 130

/* The path of the interpreter and the program that it runs, each with a null byte at its end, then a word if the program
 * reads from the front end's own file. If the path begins with "./", it is that of a program in the front end's own
 * directory, which needs no other program. The block is written by front.py, which finds it by its first words. It must
 * not be constant for the compiler. */
__attribute__((used)) char ck_launch[LAUNCH_SIZE] = "containerkit-oci: the front end is not configured\n";

__attribute__((noreturn)) static void leave(int status) {
    for (;;)
        CK_CALL1(exit_group, status);
}

/* --- texts */

int ck_is(struct ck_text text, const char *other) {
    for (size_t i = 0; i < text.size; i++)
        if (!other[i] || text.at[i] != other[i])
            return 0;
    return !other[text.size];
}

int ck_equals(const char *one, const char *other) { return ck_is((struct ck_text){one, ck_length(one)}, other); }

int ck_begins(const char *text, const char *with) {
    while (*with)
        if (*text++ != *with++)
            return 0;
    return 1;
}

char *ck_put(char *at, const char *text, size_t size) {
    memcpy(at, text, size);
    return at + size;
}

/* --- the hand-over */

static int has_streams(void) {
    for (int fd = 0; fd < 3; fd++)
        if (CK_CALL3(fcntl, fd, F_GETFD, 0) < 0)
            return 0;
    return 1;
}

static struct {
    long argc;
    char **argv, **envp;
} given;

static void complain(const char *interpreter, long error, const char *hint) {
    char text[CK_PATH_SIZE + 256], *at = text;
    size_t size = ck_length(interpreter);
    at = CK_PUT(at, "containerkit-oci: exec ");
    at = ck_put(at, interpreter, size < CK_PATH_SIZE ? size : CK_PATH_SIZE);
    at = CK_PUT(at, ": error ");
    at = ck_put_number(at, (unsigned long)-error, 1);
    at = CK_PUT(at, " (hint: ");
    at = ck_put_text(at, hint);
    at = CK_PUT(at, ")\n");
    CK_CALL3(write, 2, text, at - text);
}

/* Write the path of a program in our own directory, wherever a symlink to us is. Returns a negative error number. */
static long beside(char path[CK_PATH_SIZE], const char *name) {
    long size = CK_CALL4(readlinkat, AT_FDCWD, "/proc/self/exe", path, CK_PATH_SIZE);
    while (size > 0 && path[size - 1] != '/')
        size--;
    if (size <= 0)
        return size < 0 ? size : -ENOENT;
    size_t length = ck_length(name);
    if ((size_t)size + length >= CK_PATH_SIZE)
        return -ENAMETOOLONG;
    *ck_put(path + size, name, length) = 0;
    return 0;
}

/* Open ourselves for the interpreter, which reads its bytecode there and closes the descriptor. Writes its number, nothing
 * if a standard stream is missing, whose place it would take. */
static void open_own_file(char *word) {
    long fd = has_streams() ? CK_CALL4(openat, AT_FDCWD, "/proc/self/exe", O_RDONLY, 0) : -1;
    if (fd >= 0)
        *ck_put_number(word, (unsigned long)fd, 1) = 0;
}

/* Become the interpreter. `resume` has descriptors for the end of `start`, or negative numbers. */
__attribute__((noreturn)) static void hand_over(const int resume[2]) {
    const char *interpreter = ck_launch, *program = interpreter + ck_length(interpreter) + 1;
    const char *words[given.argc + 7], *hint = "write the launcher again, with an interpreter that is there";
    char resumed[64] = "", own[32] = "", path[CK_PATH_SIZE];
    int is_beside = ck_begins(interpreter, "./");
    long count = 0, error;

    if (*interpreter != '/' && !is_beside) {
        CK_CALL3(write, 2, interpreter, ck_length(interpreter));
        leave(FAILED);
    }
    if (resume[0] >= 0) {
        char *at = ck_put_number(resumed, (unsigned long)resume[0], 1);
        *at++ = ',';
        *ck_put_number(at, (unsigned long)resume[1], 1) = 0;
        for (int i = 0; i < 2; i++)
            CK_CALL3(fcntl, resume[i], F_SETFD, 0);
    }
    if (is_beside) {
        hint = "install containerkit again, or write the launcher: python -m containerkit.oci launcher FILE";
        error = beside(path, interpreter + 2);
        interpreter = error < 0 ? "/proc/self/exe" : path;
        words[count++] = interpreter;
    } else {
        words[count++] = interpreter;
        words[count++] = "-IS";
        words[count++] = "-c";
        words[count++] = program;
        if (*(program + ck_length(program) + 1)) {
            open_own_file(own);
            words[count++] = own;
        }
        error = 0;
    }
    words[count++] = resumed;
    for (long i = 1; i < given.argc; i++)
        words[count++] = given.argv[i];
    words[count] = 0;
    complain(interpreter, error < 0 ? error : CK_CALL3(execve, interpreter, words, given.envp), hint);
    leave(FAILED);
}

/* --- the command line */

enum kind { ROOT, LOG, FORMAT, MANAGER, IGNORED, SWITCH };

static const struct {
    const char *name;
    enum kind kind;
} options[] = {
    {"root", ROOT},        {"log", LOG},      {"log-format", FORMAT}, {"cgroup-manager", MANAGER},
    {"rootless", IGNORED}, {"criu", IGNORED}, {"debug", SWITCH},      {"systemd-cgroup", SWITCH},
};

/* Take the value of an option. Returns 0 for one that Python has to judge. */
static int take_value(struct ck_call *call, enum kind kind, const char *value) {
    switch (kind) {
    case ROOT:
        call->root = value;
        return 1;
    case LOG:
        call->log = value;
        return 1;
    case FORMAT:
        return ck_equals(value, "text") || ck_equals(value, "json");
    case MANAGER:
        return ck_equals(value, "cgroupfs") || ck_equals(value, "systemd") || ck_equals(value, "disabled");
    case IGNORED:
        return 1;
    case SWITCH:
        return 0;
    }
    return 0;
}

/* Read the option at argv[at]. Returns the number of words that it takes, 0 for one that is not understood. */
static int take_option(struct ck_call *call, long at) {
    const char *name = given.argv[at] + 1, *value;
    size_t size = 0;
    name += *name == '-';
    while (name[size] && name[size] != '=')
        size++;
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (!ck_is((struct ck_text){name, size}, options[i].name))
            continue;
        if (options[i].kind == SWITCH)
            return name[size] == 0;
        value = name[size] ? name + size + 1 : at + 1 < given.argc ? given.argv[at + 1] : 0;
        if (!value || !take_value(call, options[i].kind, value))
            return 0;
        return name[size] ? 1 : 2;
    }
    return 0;
}

static int is_id(const char *name) {
    if (!*name || *name == '.' || ck_length(name) > 1024)
        return 0;
    for (const char *at = name; *at; at++)
        if (!((*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z') || (*at >= '0' && *at <= '9') || *at == '_' ||
              *at == '+' || *at == '-' || *at == '.'))
            return 0;
    return 1;
}

/* Whether a word is a switch, by its name or first letter. */
static int is_switch(const char *word, const char *name) {
    if (*word++ != '-')
        return 0;
    if (word[0] == name[0] && !word[1])
        return 1;
    return ck_equals(word + (*word == '-'), name);
}

/* Read the global options, the verb, and its options and arguments. Returns 0 unless all are understood. */
static int read_words(struct ck_call *call) {
    const char *arguments[2] = {0, 0};
    int count = 0, taken;
    long at = 1;
    for (; at < given.argc && given.argv[at][0] == '-'; at += taken)
        if (!(taken = take_option(call, at)))
            return 0;
    if (at == given.argc)
        return 0;
    call->verb = given.argv[at++];
    int is_kill = ck_equals(call->verb, "kill"), is_delete = ck_equals(call->verb, "delete");
    for (; at < given.argc; at++) {
        const char *word = given.argv[at];
        if (is_delete && is_switch(word, "force"))
            call->force = 1;
        else if (is_kill && is_switch(word, "all"))
            call->all = 1;
        else if (*word == '-' || count == 1 + is_kill)
            return 0;
        else
            arguments[count++] = word;
    }
    call->name = arguments[0];
    call->signal = arguments[1];
    return count > 0 && is_id(call->name);
}

static const char *environment(const char *name) {
    size_t size = ck_length(name);
    for (char **each = given.envp; *each; each++)
        if (ck_begins(*each, name) && (*each)[size] == '=')
            return *each + size + 1;
    return "";
}

/* Whether a path is absolute and has no part that Python would normalize. */
static int is_plain(const char *path) {
    if (*path != '/')
        return 0;
    for (; *path == '/'; path++) {
        const char *part = path + 1;
        while (path[1] && path[1] != '/')
            path++;
        struct ck_text name = {part, (size_t)(path + 1 - part)};
        if (!name.size || ck_is(name, ".") || ck_is(name, ".."))
            return 0;
    }
    return 1;
}

static int in_first_user_namespace(void) {
    static const char all[] = "0 0 4294967295";
    char map[128], *at = map;
    long fd = CK_CALL4(openat, AT_FDCWD, "/proc/self/uid_map", O_RDONLY | O_CLOEXEC, 0), size = 0;
    if (fd >= 0)
        size = CK_CALL3(read, fd, map, sizeof map);
    CK_CALL1(close, fd);
    for (long i = 0; i < size && map[i] != '\n'; i++) /* fields are padded with spaces */
        if (map[i] != ' ' || (at > map && at[-1] != ' '))
            *at++ = map[i];
    return ck_is((struct ck_text){map, (size_t)(at - map)}, all);
}

/* Name the container's directory below the root that was given, or below the default one of oci/store.py. The default
 * of root in a user namespace, and of users without a session, is for Python. */
static int name_directory(struct ck_call *call) {
    static const char below[] = "/containerkit/oci";
    const char *root = call->root, *session = environment("XDG_RUNTIME_DIR"), *add = "";
    if (!root) {
        int is_root = CK_CALL0(geteuid) == 0;
        if (is_root ? *session && !in_first_user_namespace() : !*session)
            return 0;
        root = is_root ? "/run" : session;
        add = below;
    }
    size_t size = ck_length(root), more = ck_length(add), name = ck_length(call->name);
    if (!is_plain(root) || size + more + name + 2 > sizeof call->path)
        return 0;
    char *at = ck_put(call->path, root, size);
    at = ck_put(at, add, more);
    *at++ = '/';
    *ck_put(at, call->name, name) = 0;
    return 1;
}

/* Open the log as Python does at the beginning of each call. Only errors and warnings are written to it. */
int ck_open_log(const struct ck_call *call) {
    static int is_open;
    if (is_open || !call->log || !*call->log)
        return 1;
    long fd = CK_CALL4(openat, AT_FDCWD, call->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0)
        return 0;
    is_open = CK_CALL3(write, fd, "", 0) == 0;
    CK_CALL1(close, fd);
    return is_open;
}

__attribute__((noreturn)) static void interrupted(void) { leave(INTERRUPTED); }

/* End at an interrupt as Python does: with a status, not by the signal. */
static void catch_interrupts(void) {
    struct ck_sigaction old = {0}, caught = {0};
    CK_CALL4(rt_sigaction, SIGINT, 0, &old, sizeof old.mask);
    if (old.handler == SIG_IGN)
        return;
    caught.handler = (void *)interrupted;
    caught.restorer = (void *)interrupted; /* never used: the handler does not return */
    caught.flags = 0x04000000;             /* SA_RESTORER */
    CK_CALL4(rt_sigaction, SIGINT, &caught, 0, sizeof caught.mask);
}

__attribute__((noreturn, used)) static void start(long *stack) {
    static struct ck_call call;
    int outcome = CK_HAND_OVER, resume[2] = {-1, -1};

    given.argc = stack[0];
    given.argv = (char **)(stack + 1);
    given.envp = given.argv + given.argc + 1;
    if (given.argc > 1 && has_streams() && read_words(&call) && name_directory(&call)) {
        catch_interrupts();
        if (ck_equals(call.verb, "state"))
            outcome = ck_state(&call);
        else if (ck_equals(call.verb, "start"))
            outcome = ck_start(&call, resume);
        else if (ck_equals(call.verb, "kill"))
            outcome = ck_kill(&call);
        else if (ck_equals(call.verb, "delete"))
            outcome = ck_delete(&call);
    }
    if (outcome == CK_DONE)
        leave(0);
    hand_over(resume);
}

/* The entry point: pass the initial stack (argc, argv, envp) to start(). */
#if defined(__x86_64__)
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n\thlt\n");
#else
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl start\n\tbrk #0\n");
#endif

/* The verbs of the front end: what oci/state.py, start.py, kill.py and delete.py do when all is well. Each condition
 * that they report as an error, and each that is rare, is for Python. */
#define _GNU_SOURCE
#include "front.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>

#define STAT_SIZE 4096
#define LISTING_SIZE 8192
#define START_TIME_FIELD 22
#define KILL_PATIENCE_MS 500
#define REMOVE_ROUNDS 5
#define DIRECTORY (O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
#define GATE "gate"
#define SEALED "/memfd:init"

enum status { CREATED, RUNNING, PAUSED, STOPPED, UNKNOWN };

struct entry {
    int fd; /* the container's directory, and its lock */
    struct ck_record record;
};

static struct entry entry;
static char content[CK_RECORD_SIZE], printed[2 * CK_RECORD_SIZE];

/* --- the record */

static int open_directory(const struct ck_call *call) {
    return (int)CK_CALL4(openat, AT_FDCWD, call->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0);
}

static long read_file(int directory, const char *name, char *buffer, size_t size) {
    long fd = CK_CALL4(openat, directory, name, O_RDONLY | O_CLOEXEC, 0), got = 1;
    size_t sum = 0;
    if (fd < 0)
        return fd;
    while (got > 0 && sum < size) {
        got = CK_CALL3(read, fd, buffer + sum, size - sum);
        sum += got > 0 ? (size_t)got : 0;
    }
    CK_CALL1(close, fd);
    return got < 0 ? got : (long)sum;
}

/* Read the record. Only one that create has completed is understood. */
static int read_entry(void) {
    long size = read_file(entry.fd, "state.json", content, sizeof content);
    return size > 0 && size < (long)sizeof content && ck_read_record(content, (size_t)size, &entry.record) &&
           ck_is(entry.record.phase, "created");
}

/* Open the record with its lock, and read it. The former holder of the lock may have deleted the container. */
static int open_locked(const struct ck_call *call, int how) {
    struct stat found;
    entry.fd = open_directory(call);
    return entry.fd >= 0 && CK_CALL2(flock, entry.fd, how) == 0 &&
           CK_CALL4(newfstatat, entry.fd, "", &found, AT_EMPTY_PATH) == 0 && found.st_nlink > 0 && read_entry();
}

/* Terminate a path of the record in a buffer. A path with escapes is for Python to decode. */
static const char *path_of(struct ck_text text, char *buffer) {
    if (text.size >= CK_PATH_SIZE)
        return 0;
    for (size_t i = 0; i < text.size; i++)
        if (text.at[i] == '\\')
            return 0;
    *ck_put(buffer, text.at, text.size) = 0;
    return buffer;
}

/* --- the first process */

/* The 22nd field. The second one is a name in parentheses, which may itself contain any letter. */
static unsigned long parse_start_time(const char *text, size_t size) {
    const char *at = text + size, *end = text + size;
    unsigned long ticks = 0;
    while (at > text && at[-1] != ')')
        at--;
    if (at == text || end - at < 2 || at[1] == 'Z' || at[1] == 'X')
        return 0;
    at++;
    for (int field = 3; field < START_TIME_FIELD; field++) {
        while (at < end && *at != ' ')
            at++;
        at += at < end;
    }
    while (at < end && *at >= '0' && *at <= '9')
        ticks = ticks * 10 + (unsigned long)(*at++ - '0');
    return ticks;
}

static char *put_process(char *at, const char *rest) {
    at = CK_PUT(at, "/proc/");
    at = ck_put_number(at, (unsigned long)entry.record.pid, 1);
    return ck_put(at, rest, ck_length(rest) + 1);
}

/* Whether exactly the recorded process is alive. Source: proc_pid_stat(5). */
static int is_alive(void) {
    char path[64], text[STAT_SIZE];
    put_process(path, "/stat");
    long size = read_file(AT_FDCWD, path, text, sizeof text);
    return size > 0 && parse_start_time(text, (size_t)size) == (unsigned long)entry.record.start_time;
}

/* Whether the process still executes the tape. A killed start may have left the gate behind. */
static int waits(void) {
    char path[64], target[sizeof SEALED - 1];
    put_process(path, "/exe");
    long size = CK_CALL4(readlinkat, AT_FDCWD, path, target, sizeof target);
    return size < 0 || (size == sizeof target && ck_is((struct ck_text){target, sizeof target}, SEALED));
}

static int has_gate(void) {
    struct stat found;
    return CK_CALL4(newfstatat, entry.fd, GATE, &found, 0) == 0;
}

static enum status frozen_status(void) {
    char path[CK_PATH_SIZE], text[64];
    if (!entry.record.freezer.size)
        return RUNNING;
    if (!path_of(entry.record.freezer, path))
        return UNKNOWN;
    long fd = CK_CALL4(openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return RUNNING;
    long size = CK_CALL3(read, fd, text, sizeof text);
    CK_CALL1(close, fd);
    if (size > 0 && text[size - 1] == '\n')
        size--;
    struct ck_text word = {text, size > 0 ? (size_t)size : 0};
    return ck_is(word, "FROZEN") || ck_is(word, "FREEZING") || ck_is(word, "1") ? PAUSED : RUNNING;
}

static enum status status_of(void) {
    if (!is_alive())
        return STOPPED;
    return has_gate() && waits() ? CREATED : frozen_status();
}

/* Signal the recorded process by a pidfd, so that a reused pid can't be hit. Returns the pidfd. */
static long send_signal(int signal) {
    long pidfd = CK_CALL2(pidfd_open, entry.record.pid, 0);
    if (pidfd < 0)
        return pidfd;
    long result = is_alive() ? CK_CALL4(pidfd_send_signal, pidfd, signal, 0, 0) : -ESRCH;
    if (result >= 0)
        return pidfd;
    CK_CALL1(close, pidfd);
    return result;
}

static int is_version_1(const char *freezer) {
    size_t size = ck_length(freezer), end = sizeof ".state" - 1;
    return size >= end && ck_equals(freezer + size - end, ".state");
}

/* A frozen process of version 1 does not die. A missing group is not an error. */
static void thaw(const char *freezer) {
    const char *word = is_version_1(freezer) ? "THAWED" : "0";
    long fd = *freezer ? CK_CALL4(openat, AT_FDCWD, freezer, O_WRONLY | O_CLOEXEC, 0) : -1;
    if (fd < 0)
        return;
    CK_CALL3(write, fd, word, ck_length(word));
    CK_CALL1(close, fd);
}

/* --- control groups */

/* Open the directory above a group. Returns a descriptor and the group's name, or a negative error number. */
static long open_above(struct ck_text group, char *path, const char **name) {
    size_t split = group.size;
    if (!group.size || *group.at != '/' || !path_of(group, path))
        return -EINVAL;
    while (path[--split] != '/')
        ;
    if (!split || split == group.size - 1)
        return -EINVAL;
    path[split] = 0;
    *name = path + split + 1;
    return CK_CALL4(openat, AT_FDCWD, path, DIRECTORY, 0);
}

/* Whether a group has neither processes nor groups below it, which the number of its links tells, or is missing. */
static int is_empty(struct ck_text group) {
    char path[CK_PATH_SIZE], pids[16];
    const char *name;
    struct stat found;
    long above = open_above(group, path, &name);
    if (above < 0)
        return above == -ENOENT;
    int fd = (int)CK_CALL4(openat, above, name, DIRECTORY, 0);
    CK_CALL1(close, above);
    if (fd < 0)
        return fd == -ENOENT;
    int result = CK_CALL4(newfstatat, fd, "", &found, AT_EMPTY_PATH) == 0 && found.st_nlink == 2 &&
                 read_file(fd, "cgroup.procs", pids, sizeof pids) == 0;
    CK_CALL1(close, fd);
    return result;
}

/* --- state */

static char *put_text(char *at, const char *before, struct ck_text text) {
    at = ck_put_text(at, before);
    at = ck_put(at, text.at, text.size);
    *at++ = '"';
    return at;
}

static char *put_annotations(char *at) {
    const struct ck_record *record = &entry.record;
    if (!record->annotation_count)
        return CK_PUT(at, "{}");
    for (size_t i = 0; i < record->annotation_count; i++) {
        at = put_text(at, i ? ",\n    \"" : "{\n    \"", record->annotations[i].name);
        at = put_text(at, ": \"", record->annotations[i].value);
    }
    return CK_PUT(at, "\n  }");
}

int ck_state(struct ck_call *call) {
    static const char *const names[] = {"created", "running", "paused", "stopped"};
    const struct ck_record *record = &entry.record;
    char *at = printed;

    entry.fd = open_directory(call);
    if (entry.fd < 0 || !read_entry())
        return CK_HAND_OVER;
    enum status status = status_of();
    if (status == UNKNOWN || !ck_open_log(call))
        return CK_HAND_OVER;
    at = put_text(at, "{\n  \"ociVersion\": \"", record->version);
    at = put_text(at, ",\n  \"id\": \"", (struct ck_text){call->name, ck_length(call->name)});
    at = CK_PUT(at, ",\n  \"pid\": ");
    at = ck_put_number(at, status == STOPPED ? 0 : (unsigned long)record->pid, 1);
    at = put_text(at, ",\n  \"status\": \"", (struct ck_text){names[status], ck_length(names[status])});
    at = put_text(at, ",\n  \"bundle\": \"", record->bundle);
    at = put_text(at, ",\n  \"rootfs\": \"", record->rootfs);
    at = put_text(at, ",\n  \"created\": \"", record->created);
    at = put_text(at, ",\n  \"owner\": \"", record->owner);
    at = CK_PUT(at, ",\n  \"annotations\": ");
    at = put_annotations(at);
    at = CK_PUT(at, "\n}\n");
    /* Python ignores the signal, and reports the error. */
    struct ck_sigaction ignored = {SIG_IGN, 0, 0, 0};
    CK_CALL4(rt_sigaction, SIGPIPE, &ignored, 0, sizeof ignored.mask);
    return CK_CALL3(write, 1, printed, at - printed) < 0 ? CK_HAND_OVER : CK_DONE;
}

/* --- start */

static int connect_to_gate(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char *at = CK_PUT(address.sun_path, "/proc/self/fd/");
    at = ck_put_number(at, (unsigned long)entry.fd, 1);
    ck_put(at, "/" GATE, sizeof "/" GATE);
    long gate = CK_CALL3(socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (gate >= 0 && CK_CALL3(connect, gate, &address, sizeof address) < 0) {
        CK_CALL1(close, gate);
        return -1;
    }
    return (int)gate;
}

int ck_start(struct ck_call *call, int resume[2]) {
    char told;
    if (!open_locked(call, LOCK_EX) || status_of() != CREATED)
        return CK_HAND_OVER;
    if (entry.record.has_start_hooks || entry.record.notifies || !ck_open_log(call))
        return CK_HAND_OVER;
    int gate = connect_to_gate();
    if (gate < 0)
        return CK_HAND_OVER;
    /* After this Python can't start again from the beginning. It gets both descriptors, with the unread bytes of the gate. */
    long size = CK_CALL6(recvfrom, gate, &told, 1, MSG_PEEK, 0, 0);
    if (size == 0 || size == -ECONNRESET) {
        long result = CK_CALL3(unlinkat, entry.fd, GATE, 0);
        if (result == 0 || result == -ENOENT)
            return CK_DONE;
    }
    resume[0] = entry.fd;
    resume[1] = gate;
    return CK_HAND_OVER;
}

/* --- kill */

static const char *const signals[] = {
    "HUP",  "INT",  "QUIT", "ILL",    "TRAP",   "ABRT",  "BUS",  "FPE",  "KILL", "USR1", "SEGV",
    "USR2", "PIPE", "ALRM", "TERM",   "STKFLT", "CHLD",  "CONT", "STOP", "TSTP", "TTIN", "TTOU",
    "URG",  "XCPU", "XFSZ", "VTALRM", "PROF",   "WINCH", "IO",   "PWR",  "SYS",
};

/* Returns -1 for what is less usual. */
static int parse_signal(const char *text) {
    int number = 0;
    if (!text)
        return SIGTERM;
    if (*text >= '0' && *text <= '9') {
        for (size_t i = 0; text[i]; i++) {
            if (i == 2 || text[i] < '0' || text[i] > '9')
                return -1;
            number = number * 10 + (text[i] - '0');
        }
        return number <= 64 ? number : -1;
    }
    text += ck_begins(text, "SIG") ? 3 : 0;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++)
        if (ck_equals(text, signals[i]))
            return (int)i + 1;
    return -1;
}

/* The signals that end no process by default. Source: signal(7). */
static int is_lasting(int signal) {
    static const unsigned char lasting[] = {0, SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGTTIN, SIGTTOU, SIGURG, SIGWINCH};
    for (size_t i = 0; i < sizeof lasting; i++)
        if (lasting[i] == signal)
            return 1;
    return 0;
}

/* The kernel ignores signals with their default effect for the first process of a pid namespace. So one whose program
 * does not run yet gets SIGKILL, unless it is being started. Returns the signal to send, or -1. */
static int signal_for_waiting(int signal) {
    long result = CK_CALL2(flock, entry.fd, LOCK_EX | LOCK_NB);
    if (result == -EWOULDBLOCK)
        return signal;
    if (result < 0)
        return -1;
    enum status status = status_of();
    return status == UNKNOWN ? -1 : status == CREATED ? SIGKILL : signal;
}

/* What an engine does with --all once the first process has ended, if that left nothing. The rest is for Python. */
static int kill_nobody(const struct ck_call *call, int signal, const char *freezer) {
    for (size_t i = 0; i < entry.record.group_count; i++)
        if (!is_empty(entry.record.groups[i]))
            return CK_HAND_OVER;
    if (!ck_open_log(call))
        return CK_HAND_OVER;
    if (signal == SIGKILL)
        thaw(freezer);
    return CK_DONE;
}

int ck_kill(struct ck_call *call) {
    char freezer[CK_PATH_SIZE];
    int signal = parse_signal(call->signal);
    if (signal < 0)
        return CK_HAND_OVER;
    entry.fd = open_directory(call);
    if (entry.fd < 0 || !read_entry() || !path_of(entry.record.freezer, freezer))
        return CK_HAND_OVER;
    enum status status = status_of();
    if (call->all)
        return status == STOPPED ? kill_nobody(call, signal, freezer) : CK_HAND_OVER;
    if (status == UNKNOWN || status == STOPPED || (entry.record.joins_pid && signal == SIGKILL) || !ck_open_log(call))
        return CK_HAND_OVER;
    if (status == CREATED && !is_lasting(signal))
        signal = signal_for_waiting(signal);
    if (signal < 0 || send_signal(signal) < 0)
        return CK_HAND_OVER;
    if (signal == SIGKILL && is_version_1(freezer))
        thaw(freezer);
    return CK_DONE;
}

/* --- delete */

/* Kill the first process, and wait until it has ended. Returns 0 if that takes long. */
static int kill_and_wait(const char *freezer) {
    struct timespec patience = {KILL_PATIENCE_MS / 1000, KILL_PATIENCE_MS % 1000 * 1000000L};
    if (!is_alive())
        return 1;
    long pidfd = send_signal(SIGKILL);
    if (pidfd < 0)
        return pidfd == -ESRCH;
    thaw(freezer);
    struct pollfd ended = {(int)pidfd, POLLIN, 0};
    long result = CK_CALL5(ppoll, &ended, 1, &patience, 0, 0);
    CK_CALL1(close, pidfd);
    return result == 1;
}

/* Remove one control group. The kernel refuses one that contains processes or groups, and these are for Python, which
 * kills and removes them. Just after the end of the last process it may refuse as well. */
static int remove_group(struct ck_text group) {
    char path[CK_PATH_SIZE];
    const char *name;
    struct timespec pause = {0, 1000000};
    long above = open_above(group, path, &name), result = 0;
    if (above < 0)
        return above == -ENOENT;
    for (int round = 0; round < REMOVE_ROUNDS; round++) {
        result = CK_CALL3(unlinkat, above, name, AT_REMOVEDIR);
        if (result != -EBUSY)
            break;
        CK_CALL2(nanosleep, &pause, 0);
    }
    CK_CALL1(close, above);
    return result == 0 || result == -ENOENT;
}

struct name {
    uint64_t inode;
    int64_t next;
    unsigned short size;
    unsigned char type;
    char text[];
};

enum { SOCKET_TYPE = 12, FILE_TYPE = 8 };

static int is_dots(const char *name) { return ck_equals(name, ".") || ck_equals(name, ".."); }

/* Remove the record: its files, then its directory. Nothing is removed if it has anything but files and sockets. */
static int remove_record(const struct ck_call *call) {
    static _Alignas(struct name) char listing[LISTING_SIZE], end[LISTING_SIZE];
    const struct name *name;
    long size = CK_CALL3(getdents64, entry.fd, listing, sizeof listing);
    if (size < 0 || CK_CALL3(getdents64, entry.fd, end, sizeof end) != 0)
        return 0;
    for (long at = 0; at < size; at += name->size) {
        name = (const struct name *)(listing + at);
        if (name->type != FILE_TYPE && name->type != SOCKET_TYPE && !is_dots(name->text))
            return 0;
    }
    for (long at = 0; at < size; at += name->size) {
        name = (const struct name *)(listing + at);
        if (!is_dots(name->text) && CK_CALL3(unlinkat, entry.fd, name->text, 0) < 0)
            return 0;
    }
    return CK_CALL3(unlinkat, AT_FDCWD, call->path, AT_REMOVEDIR) == 0;
}

int ck_delete(struct ck_call *call) {
    static const struct ck_record empty;
    const struct ck_record *record = &entry.record;
    char freezer[CK_PATH_SIZE];

    if (call->force) { /* without the lock: a call that waits for the container may hold it */
        entry.fd = open_directory(call);
        if (entry.fd == -ENOENT) /* no error: engines do this to be sure */
            return ck_open_log(call) ? CK_DONE : CK_HAND_OVER;
        if (entry.fd < 0 || !read_entry() || record->joins_pid || !path_of(record->freezer, freezer) ||
            !ck_open_log(call) || !kill_and_wait(freezer))
            return CK_HAND_OVER;
        CK_CALL1(close, entry.fd);
        entry.record = empty;
    }
    if (!open_locked(call, LOCK_EX | LOCK_NB) || record->unit.size || record->has_resctrl || record->has_poststop)
        return CK_HAND_OVER;
    if (is_alive() || !ck_open_log(call))
        return CK_HAND_OVER;
    for (size_t i = 0; i < record->group_count; i++)
        if (!remove_group(record->groups[i]))
            return CK_HAND_OVER;
    return remove_record(call) ? CK_DONE : CK_HAND_OVER;
}

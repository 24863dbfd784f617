/* The part of the C code that Python sees. cffi reads this file, and the compiler checks it against the
 * declarations. */

/* --- spawn.c --- */
#define CK_SLOTS ...
#define CK_SHARE_FILES ...
#define CK_HIDE_MEMORY ...
#define CK_NO_PROCESS ...
#define CK_HOLD ...
#define CK_JOIN ...
#define CK_SECOND ...

struct ck_result {
    int32_t pid;
    int32_t pidfd;
    int32_t failed_index;
    int32_t error;
    int64_t times_ns[4];
    ...;
};

struct ck_request;

struct ck_tape {
    const void *steps;
    size_t count;
    const void *data;
    size_t data_size;
    struct ck_request *beside;
    ...;
};

struct ck_ending {
    int32_t pid;
    int32_t code;
    int32_t status;
    int64_t user_us;
    int64_t system_us;
    int64_t maxrss_kib;
    int64_t minor_faults;
    int64_t major_faults;
    int64_t in_blocks;
    int64_t out_blocks;
    int64_t voluntary_switches;
    int64_t involuntary_switches;
    ...;
};

int ck_spawn(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
             size_t slot_count, int proc_fd, int flags, struct ck_result *result);
int ck_wait(int pidfd, int options, struct ck_ending *ending);
size_t ck_check(const struct ck_tape *tape);

/* --- beside.c --- */
struct ck_beside;

struct ck_beside *ck_beside_new(void);
int ck_beside_begin(struct ck_beside *beside, const struct ck_tape *tape, const int64_t *slots, size_t slot_count,
                    const uint16_t *opened, size_t opened_count, int proc_fd);
int ck_beside_await(struct ck_beside *beside, int64_t *slots);
int ck_beside_go_on(struct ck_beside *beside, const void *data, size_t size);
void ck_beside_end(struct ck_beside *beside, int64_t *slots, struct ck_result *result);
int ck_beside_take(struct ck_beside *beside, int slot);
struct ck_request *ck_beside_request(struct ck_beside *beside);
void ck_beside_dispose(struct ck_beside *beside);

/* --- listen.c --- */
struct ck_heard {
    int32_t fd;
    char *bytes;
    size_t length;
    ...;
};

int ck_listen(int pidfd, struct ck_heard *heard, size_t limit, int64_t deadline_ns);
void ck_forget(struct ck_heard *heard);

/* --- run.c --- */
struct ck_held;
struct ck_shared {
    ...;
};

struct ck_run {
    int32_t stream_slots[3];
    int32_t report_slot;
    int64_t owner;
    size_t limit;
    int64_t deadline_ns;
    int32_t early;
    int32_t keep;
    struct ck_result result;
    struct ck_heard heard[2];
    int32_t ends[2];
    int32_t report;
    int32_t leaving;
    int32_t kept;
    struct ck_ending ending;
    struct ck_held *held;
    struct ck_shared shared;
    ...;
};

int ck_run(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, int64_t *slots,
           size_t slot_count, int proc_fd, int flags, struct ck_run *run);
int ck_see_out(struct ck_run *run);
void ck_dispose(struct ck_run *run);
int ck_go(const struct ck_tape *tape, const char *argv, size_t argc, const char *envp, size_t envc, struct ck_run *run);
void ck_drop(struct ck_run *run);

/* --- calls.c --- */
int64_t ck_call(int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);
int64_t ck_fork(const void *arguments, uint64_t size);

/* --- copy.c --- */
struct ck_copying {
    const char *paths;
    const char *shown;
    const char *private_names;
    size_t most;
    size_t largest;
    char *bytes;
    size_t length;
    ...;
};

int ck_copy(struct ck_copying *copying);
void ck_copied(struct ck_copying *copying);

/* The front end of the OCI command: what its parts share. See front.c. */
#ifndef CK_FRONT_H
#define CK_FRONT_H

#include "syscalls.h"
#include "text.h"

/* The version of the record that this program knows; FORMAT in oci/store.py. It changes with the meaning of the record
 * and with what state, start, kill or delete do, because this program may be older than the package. */
#define CK_FORMAT 1

#define CK_RECORD_SIZE 65536
#define CK_MANY 128
#define CK_PATH_SIZE 4096

/* What a part returns: the verb is done, or Python has to do it from the beginning. Then it has had no effect yet, or
 * only effects that Python would have in the same place. */
enum ck_outcome { CK_DONE, CK_HAND_OVER };

/* The inside of a JSON string, as it is written: ASCII, with escapes. */
struct ck_text {
    const char *at;
    size_t size;
};

struct ck_member {
    struct ck_text name, value;
};

struct ck_record {
    unsigned long found; /* a bit for each member that was there */
    struct ck_text version, phase, bundle, rootfs, created, owner, freezer, unit;
    long format, pid, start_time;
    int joins_pid, has_start_hooks, has_poststop, notifies, has_resctrl;
    struct ck_member annotations[CK_MANY];
    struct ck_text groups[CK_MANY];
    size_t annotation_count, group_count;
};

struct ck_call {
    const char *verb, *root, *name, *log;
    const char *signal; /* the second argument, or null */
    int force, all;
    char path[CK_PATH_SIZE]; /* of the container's directory */
};

/* front_record.c: Read a record. Returns 0 unless it has the known format and each of its members is understood. */
int ck_read_record(const char *text, size_t size, struct ck_record *record);

/* front_verbs.c: Returns an outcome. `resume` is set to the descriptors of the container's directory and of the gate
 * if only the end of `start` is left to Python. */
int ck_state(struct ck_call *call);
int ck_start(struct ck_call *call, int resume[2]);
int ck_kill(struct ck_call *call);
int ck_delete(struct ck_call *call);

/* front.c */
int ck_equals(const char *one, const char *other);
int ck_is(struct ck_text text, const char *other);
int ck_begins(const char *text, const char *with);
char *ck_put(char *at, const char *text, size_t size);
#define CK_PUT(at, literal) ck_put(at, literal, sizeof literal - 1)
int ck_open_log(const struct ck_call *call);

#endif

/* Reads the record of a container as oci/store.py writes it, and nothing else: no spaces, no escape that Python's
 * encoder would not write, no member twice, no member that is not known. Whatever it does not accept is for Python. */
#include "front.h"

#define DEPTH 8
#define DIGITS 18

struct cursor {
    const char *at, *end;
};

static int take(struct cursor *from, char letter) {
    if (from->at == from->end || *from->at != letter)
        return 0;
    from->at++;
    return 1;
}

static int take_word(struct cursor *from, const char *word) {
    struct cursor tried = *from;
    while (*word)
        if (!take(&tried, *word++))
            return 0;
    *from = tried;
    return 1;
}

static int is_digit(char letter) { return letter >= '0' && letter <= '9'; }

static int hexadecimal(char letter) {
    if (is_digit(letter))
        return letter - '0';
    return letter >= 'a' && letter <= 'f' ? letter - 'a' + 10 : -1;
}

/* The rest of an escape. Python's encoder writes \uXXXX only for what has no shorter form. */
static int take_escape(struct cursor *from) {
    static const char plain[] = "\"\\bfnrt";
    int code = 0;
    for (const char *each = plain; *each; each++)
        if (take(from, *each))
            return 1;
    if (!take(from, 'u') || from->end - from->at < 4)
        return 0;
    for (int i = 0; i < 4; i++) {
        int digit = hexadecimal(*from->at++);
        if (digit < 0)
            return 0;
        code = code * 16 + digit;
    }
    if (code == '\b' || code == '\f' || code == '\n' || code == '\r' || code == '\t')
        return 0;
    return code < ' ' || code > '~';
}

static int take_text(struct cursor *from, struct ck_text *text) {
    if (!take(from, '"'))
        return 0;
    text->at = from->at;
    while (from->at < from->end) {
        char letter = *from->at;
        if (letter == '"') {
            text->size = (size_t)(from->at++ - text->at);
            return 1;
        }
        if (letter < ' ' || letter > '~')
            return 0;
        from->at++;
        if (letter == '\\' && !take_escape(from))
            return 0;
    }
    return 0;
}

static int take_number(struct cursor *from, long *number) {
    const char *first = from->at;
    *number = 0;
    while (from->at < from->end && is_digit(*from->at) && from->at - first < DIGITS)
        *number = *number * 10 + (*from->at++ - '0');
    return from->at > first && (*first != '0' || from->at == first + 1);
}

static int take_boolean(struct cursor *from, int *value) {
    *value = take_word(from, "true");
    return *value || take_word(from, "false");
}

/* After a value in a list or object: 1 if another one follows, 0 at the end, -1 if neither is there. */
static int follows(struct cursor *from, char close) {
    if (take(from, ','))
        return 1;
    return take(from, close) ? 0 : -1;
}

/* A list of texts and numbers, and lists of them. */
static int skip_list(struct cursor *from, int depth) {
    struct ck_text text;
    long number;
    int more;
    if (!take(from, '['))
        return take_text(from, &text) || take_number(from, &number);
    if (take(from, ']'))
        return 1;
    do {
        if (depth == DEPTH || !skip_list(from, depth + 1))
            return 0;
        more = follows(from, ']');
    } while (more == 1);
    return more == 0;
}

static int same(struct ck_text one, struct ck_text other) {
    if (one.size != other.size)
        return 0;
    for (size_t i = 0; i < one.size; i++)
        if (one.at[i] != other.at[i])
            return 0;
    return 1;
}

static int take_annotations(struct cursor *from, struct ck_record *record) {
    int more;
    if (!take(from, '{'))
        return 0;
    if (take(from, '}'))
        return 1;
    do {
        struct ck_member *member = record->annotations + record->annotation_count;
        if (record->annotation_count == CK_MANY || !take_text(from, &member->name) || !take(from, ':') ||
            !take_text(from, &member->value))
            return 0;
        for (size_t i = 0; i < record->annotation_count; i++)
            if (same(record->annotations[i].name, member->name))
                return 0;
        record->annotation_count++;
        more = follows(from, '}');
    } while (more == 1);
    return more == 0;
}

static int take_texts(struct cursor *from, struct ck_text *texts, size_t *count) {
    int more;
    *count = 0;
    if (!take(from, '['))
        return 0;
    if (take(from, ']'))
        return 1;
    do {
        if (*count == CK_MANY || !take_text(from, texts + *count))
            return 0;
        ++*count;
        more = follows(from, ']');
    } while (more == 1);
    return more == 0;
}

static int take_hooks(struct cursor *from, struct ck_record *record) {
    struct ck_text kinds[CK_MANY];
    size_t count;
    if (!take_texts(from, kinds, &count))
        return 0;
    for (size_t i = 0; i < count; i++) {
        if (ck_is(kinds[i], "startContainer") || ck_is(kinds[i], "poststart"))
            record->has_start_hooks = 1;
        else if (ck_is(kinds[i], "poststop"))
            record->has_poststop = 1;
        else
            return 0;
    }
    return 1;
}

enum kind { TEXT, NUMBER, BOOLEAN, LIST, ANNOTATIONS, GROUPS, HOOKS, PRESENT };

#define AT(member) offsetof(struct ck_record, member)

static const struct {
    const char *name;
    enum kind kind;
    size_t place;
    int optional;
} members[] = {
    {"format", NUMBER, AT(format), 0},
    {"notifies", BOOLEAN, AT(notifies), 1},
    {"ociVersion", TEXT, AT(version), 0},
    {"phase", TEXT, AT(phase), 0},
    {"creator", LIST, 0, 1},
    {"bundle", TEXT, AT(bundle), 0},
    {"rootfs", TEXT, AT(rootfs), 0},
    {"created", TEXT, AT(created), 0},
    {"owner", TEXT, AT(owner), 0},
    {"annotations", ANNOTATIONS, 0, 0},
    {"groups", GROUPS, 0, 0},
    {"freezer", TEXT, AT(freezer), 0},
    {"unit", TEXT, AT(unit), 1},
    {"joinsPid", BOOLEAN, AT(joins_pid), 0},
    {"hooks", HOOKS, 0, 0},
    {"pid", NUMBER, AT(pid), 0},
    {"start_time", NUMBER, AT(start_time), 0},
    {"resctrl", PRESENT, AT(has_resctrl), 1},
    {"steps", LIST, 0, 1},
};

#define COUNT (sizeof members / sizeof *members)

static int take_value(struct cursor *from, size_t number, struct ck_record *record) {
    void *place = (char *)record + members[number].place;
    switch (members[number].kind) {
    case TEXT:
        return take_text(from, place);
    case NUMBER:
        return take_number(from, place);
    case BOOLEAN:
        return take_boolean(from, place);
    case LIST:
        return skip_list(from, 0);
    case ANNOTATIONS:
        return take_annotations(from, record);
    case GROUPS:
        return take_texts(from, record->groups, &record->group_count);
    case HOOKS:
        return take_hooks(from, record);
    case PRESENT:
        *(int *)place = 1;
        return skip_list(from, 0);
    }
    return 0;
}

static int take_member(struct cursor *from, struct ck_record *record) {
    struct ck_text name;
    if (!take_text(from, &name) || !take(from, ':'))
        return 0;
    for (size_t i = 0; i < COUNT; i++) {
        if (!ck_is(name, members[i].name))
            continue;
        if (record->found & 1UL << i)
            return 0;
        record->found |= 1UL << i;
        return take_value(from, i, record);
    }
    return 0;
}

int ck_read_record(const char *text, size_t size, struct ck_record *record) {
    struct cursor from = {text, text + size};
    int more;
    if (!take(&from, '{'))
        return 0;
    do {
        if (!take_member(&from, record))
            return 0;
        more = follows(&from, '}');
    } while (more == 1);
    if (more < 0 || from.at != from.end)
        return 0;
    for (size_t i = 0; i < COUNT; i++)
        if (!members[i].optional && !(record->found & 1UL << i))
            return 0;
    return record->format == CK_FORMAT && record->pid > 0 && record->pid <= 0x7fffffff && record->start_time > 0;
}

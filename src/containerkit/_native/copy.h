/* Reads the files, directories and symlinks of the machine that a root filesystem of the container copies. */
#ifndef CK_COPY_H
#define CK_COPY_H

#include <stddef.h>

/* What is to be read, and what was. A list is a row of strings; an empty one ends it. */
struct ck_copying {
    const char *paths;         /* the absolute paths to copy, directories with their content */
    const char *shown;         /* the directories, each with a slash at its end, that the container shows completely */
    const char *private_names; /* what is left out of directories */
    size_t most;               /* how many symlinks and files are copied at most */
    size_t largest;            /* the bytes of a file that is copied at most */
    char *bytes;               /* entries as of CK_STEP_POPULATE, each directory before its content */
    size_t length;
    size_t room;
};

/* Read all that everybody may read. What is missing, unreadable or changes meanwhile is left out. A symlink stays one if
 * it leads into a shown directory, or nowhere in one; otherwise the file that it leads to is copied. Returns 0 or a
 * negative error number: ENOMEM, EMFILE, ENFILE. ck_copied frees the entries in both cases. */
int ck_copy(struct ck_copying *copying);
void ck_copied(struct ck_copying *copying);

#endif

/* The walker as a program of its own. */
#ifndef CK_ENTER_H
#define CK_ENTER_H

struct ck_request;

/* Walk the rest of a tape. `become_init` performs CK_STEP_INIT and does not return. */
__attribute__((noreturn)) void ck_enter(char **argv, void (*become_init)(struct ck_request *request, const char *mode));

#endif

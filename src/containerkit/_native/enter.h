/* The walker as a program of its own. */
#ifndef CK_ENTER_H
#define CK_ENTER_H

__attribute__((noreturn)) void ck_enter(char **argv);

#endif

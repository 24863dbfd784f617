/* System calls for direct use from Python: the compiled half of calls.py.
 *
 * Two functions are enough. calls.py lays out every structure for the kernel, and a test compares each layout with the
 * compiler's, so a new call needs no new C. Both return the kernel's result: a value or a negative error number.
 * Neither changes errno.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "calls.h"
#include "syscalls.h"

/* The limited API of old versions hides it, but it is part of the stable ABI since 3.7. */
extern void PyOS_BeforeFork(void);
extern void PyOS_AfterFork_Parent(void);
extern void PyOS_AfterFork_Child(void);

/* cffi releases the GIL before this runs: other threads continue while the kernel works. */
int64_t ck_call(int64_t number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
    return ck_syscall((long)number, (long)a, (long)b, (long)c, (long)d, (long)e, (long)f);
}

/* clone3 like fork: both processes return, the child with 0.
 *
 * Unlike any other call it must hold the GIL: the child gets a copy of the lock, and would otherwise wait forever for a
 * thread that does not exist in it. Python's own hooks then prepare the child as after os.fork.
 */
int64_t ck_fork(const void *arguments, uint64_t size) {
    PyGILState_STATE state = PyGILState_Ensure();
    PyOS_BeforeFork();
    int64_t pid = ck_syscall(SYS_clone3, (long)arguments, (long)size, 0, 0, 0, 0);
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    PyGILState_Release(state);
    return pid;
}

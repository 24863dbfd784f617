/* Raw system calls without errno, locks and libc. The result is a value or a negative error number. */
#ifndef CK_SYSCALLS_H
#define CK_SYSCALLS_H

#include <linux/sched.h>
#include <stdint.h>
#include <sys/syscall.h>

#if defined(__x86_64__)

static inline long ck_syscall(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

/* clone3 with the stack in `args`. The child calls run(argument), which must not return. */
static inline long ck_clone3(struct clone_args *args, void (*run)(void *), void *argument) {
    long result;
    register void (*entry)(void *) __asm__("r12") = run;
    register void *handed __asm__("r13") = argument;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jnz 1f\n\t"
                     "xor %%ebp, %%ebp\n\t" /* marks the outermost frame for stack unwinders */
                     "mov %%r13, %%rdi\n\t"
                     "call *%%r12\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone3), "D"(args), "S"(sizeof *args), "r"(entry), "r"(handed)
                     : "rcx", "r11", "memory");
    return result;
}

static inline void ck_relax(void) { __asm__ volatile("pause" ::: "memory"); }

#elif defined(__aarch64__)

static inline void ck_relax(void) { __asm__ volatile("yield" ::: "memory"); }

static inline long ck_syscall(long number, long a, long b, long c, long d, long e, long f) {
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
}

static inline long ck_clone3(struct clone_args *args, void (*run)(void *), void *argument) {
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    register void (*entry)(void *) __asm__("x19") = run;
    register void *handed __asm__("x20") = argument;
    __asm__ volatile("svc #0\n\t"
                     "cbnz x0, 1f\n\t"
                     "mov x29, #0\n\t"
                     "mov x0, x20\n\t"
                     "blr x19\n\t"
                     "brk #0\n"
                     "1:"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(entry), "r"(handed)
                     : "memory");
    return x0;
}

#else
#error "containerkit knows the system call convention of x86_64 and aarch64 only"
#endif

/* The kernel's struct sigaction, which differs from libc's. */
struct ck_sigaction {
    void *handler;
    unsigned long flags;
    void *restorer;
    uint64_t mask;
};

#define CK_CALL0(name) ck_syscall(SYS_##name, 0, 0, 0, 0, 0, 0)
#define CK_CALL1(name, a) ck_syscall(SYS_##name, (long)(a), 0, 0, 0, 0, 0)
#define CK_CALL2(name, a, b) ck_syscall(SYS_##name, (long)(a), (long)(b), 0, 0, 0, 0)
#define CK_CALL3(name, a, b, c) ck_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define CK_CALL4(name, a, b, c, d) ck_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define CK_CALL5(name, a, b, c, d, e) ck_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define CK_CALL6(name, a, b, c, d, e, f)                                                                               \
    ck_syscall(SYS_##name, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

#endif

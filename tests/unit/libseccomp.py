"""libseccomp through ctypes, used as an oracle by the tests."""

import ctypes
import os
import tempfile

ALLOW, ERRNO, KILL_PROCESS, KILL_THREAD, LOG, TRAP, TRACE = (
    0x7FFF0000, 0x00050000, 0x80000000, 0, 0x7FFC0000, 0x00030000, 0x7FF00000,
)  # fmt: skip
OPS = {"ne": 1, "lt": 2, "le": 3, "eq": 4, "ge": 5, "gt": 6, "masked_eq": 7}
TOKENS = {
    "x86": 0x40000003, "x86_64": 0xC000003E, "x32": 0x4000003E, "arm": 0x40000028, "aarch64": 0xC00000B7,
    "riscv64": 0xC00000F3, "ppc64le": 0xC0000015, "ppc64": 0x80000015, "ppc": 0x14, "s390x": 0x80000016, "s390": 0x16,
    "mips": 0x8, "mipsel": 0x40000008, "mips64": 0x80000008, "mipsel64": 0xC0000008, "mips64n32": 0xA0000008,
    "mipsel64n32": 0xE0000008,
}  # fmt: skip


class Comparison(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def load():
    """Return the library, or None if it is not installed."""
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = [ctypes.c_uint32]
    library.seccomp_release.argtypes = [ctypes.c_void_p]
    library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_arch_remove.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
    library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
    library.seccomp_rule_add_array.argtypes = [
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.POINTER(Comparison),
    ]  # fmt: skip
    library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    library.seccomp_syscall_resolve_name_arch.argtypes = [ctypes.c_uint32, ctypes.c_char_p]
    library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
    return library


def export(library, default, rules, architectures, native="x86_64"):
    """Compile with libseccomp.

    Args:
        rules: (name, action value, [(argument, op, value, mask)]).
        architectures: names besides the native one.
    """
    context = library.seccomp_init(default)
    assert context
    try:
        if native != "x86_64":
            assert library.seccomp_arch_remove(context, TOKENS["x86_64"]) == 0  # only one byte order at a time
            assert library.seccomp_arch_add(context, TOKENS[native]) == 0
        for each in architectures:
            assert library.seccomp_arch_add(context, TOKENS[each]) in (0, -17)
        assert library.seccomp_attr_set(context, 2, KILL_PROCESS) == 0  # SCMP_FLTATR_ACT_BADARCH
        for name, action, conditions in rules:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number == -1 or action == default:  # __NR_SCMP_ERROR: unknown to this libseccomp
                continue
            array = (Comparison * max(1, len(conditions)))()
            for at, (argument, op, value, mask) in enumerate(conditions):
                array[at] = Comparison(argument, OPS[op], *((mask, value) if op == "masked_eq" else (value, 0)))
            rc = library.seccomp_rule_add_array(context, action, number, len(conditions), array)
            assert rc == 0, (name, rc, conditions)
        with tempfile.TemporaryFile() as file:
            assert library.seccomp_export_bpf(context, file.fileno()) == 0
            return os.pread(file.fileno(), 1 << 20, 0)
    finally:
        library.seccomp_release(context)

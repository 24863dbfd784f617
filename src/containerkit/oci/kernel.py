"""System calls of the runtime itself, through the compiled module, and processes that execute a tape."""

from __future__ import annotations

import os
import sys
from errno import EINTR, EINVAL
from stat import S_ISREG
from struct import pack

from containerkit._native import constants as k
from containerkit._native._lib import ffi, lib
from containerkit.oci.errors import RuntimeFailure, StepError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.oci.tape import Tape

__all__ = [
    "call",
    "filesystem_of",
    "mount_setattr",
    "open_inside",
    "open_proc",
    "open_regular",
    "open_tree",
    "pidfd_getfd",
    "refused",
    "sealed_init",
    "spawn",
]

_MORE_CALLS = {
    "x86_64": {"fstatfs": 138},
    "aarch64": {"fstatfs": 44},
}.get(k.MACHINE, {})
_STATFS_BYTES = 256
DEVPTS_SUPER_MAGIC, PROC_SUPER_MAGIC = 0x1CD1, 0x9FA0
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_SHARE_FILES, _HIDE_MEMORY, _NO_PROCESS = 1, 2, 4


def call(name: str, *args: int | bytes | bytearray) -> int:
    """Make a system call.

    Raises:
        OSError: the kernel refused it.
    """
    held = []
    words = [0] * 6
    for position, argument in enumerate(args):
        if isinstance(argument, int):
            words[position] = argument & _MASK
        else:
            held.append(ffi.from_buffer(argument))
            words[position] = int(ffi.cast("uintptr_t", held[-1]))
    result = -EINTR
    while result == -EINTR:
        result = lib.ck_call(k.SYSTEM_CALLS.get(name) or _MORE_CALLS[name], *words)
    if result < 0:
        raise OSError(-result, os.strerror(-result), name)
    return int(result)


def refused(operation: str, error: OSError, target: str, hint: str = "") -> StepError:
    """Return the error of a call that failed."""
    return StepError(operation, error.errno or 0, target, hint)


def open_tree(path: str | bytes, *, directory: int = k.AT_FDCWD, recursive: bool = False) -> int:
    """Clone a mount into a detached tree. Source: open_tree(2)."""
    flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | (k.AT_RECURSIVE if recursive else 0)
    if not path:
        flags |= k.AT_EMPTY_PATH
    return call("open_tree", directory, os.fsencode(path) + b"\0", flags)


def mount_setattr(
    tree: int, *, set_flags: int = 0, clear: int = 0, propagation: int = 0, userns: int = 0, recursive: bool = False
) -> None:
    """Change the attributes of a mount or tree. Source: mount_setattr(2)."""
    content = pack("=QQQQ", set_flags, clear, propagation, userns)
    flags = k.AT_EMPTY_PATH | (k.AT_RECURSIVE if recursive else 0)
    call("mount_setattr", tree, b"\0", flags, content, len(content))


def open_inside(root: int, path: str | bytes, flags: int, *, plain: bool = False) -> int:
    """Open a path that can't lead out of ``root``. Source: openat2(2).

    Args:
        root: a directory.
        path: resolved from there, even if it is absolute.
        flags: those of open(2).
        plain: a symlink on the path is an error.

    Raises:
        OSError: it does not exist.
    """
    resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS | (k.RESOLVE_NO_SYMLINKS if plain else 0)
    how = pack("=QQQ", flags | k.O_CLOEXEC, 0, resolve)
    inner = os.fsencode(path).lstrip(b"/") or b"."
    return call("openat2", root, inner + b"\0", how, len(how))


def open_regular(root: int, path: str | bytes, *, plain: bool = False) -> int:
    """Open a regular file below ``root`` for reading.

    Its type is checked before it is opened, because opening a device or a pipe of the image can have effects.

    Raises:
        OSError: it does not exist, or is not a regular file.
    """
    at = open_inside(root, path, k.O_PATH, plain=plain)
    try:
        if not S_ISREG(os.fstat(at).st_mode):
            raise OSError(EINVAL, os.strerror(EINVAL), os.fsdecode(path))
        return os.open(f"/proc/self/fd/{at}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(at)


def open_proc() -> int:
    """Open the procfs at the runtime's /proc, through which labels and kernel parameters are written.

    Raises:
        RuntimeFailure: something else is mounted there.

    Source: CVE-2019-19921, CVE-2025-52881.
    """
    fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if filesystem_of(fd) != PROC_SUPER_MAGIC:
        os.close(fd)
        raise RuntimeFailure("/proc of the host is not a procfs: mount -t proc proc /proc")
    return fd


def filesystem_of(fd: int) -> int:
    """Return the magic number of a file's filesystem. Source: f_type in statfs(2)."""
    found = bytearray(_STATFS_BYTES)
    call("fstatfs", fd, found)
    return int.from_bytes(found[:8], sys.byteorder)


def pidfd_getfd(pidfd: int, number: int) -> int:
    """Duplicate a descriptor of another process. Source: pidfd_getfd(2)."""
    return call("pidfd_getfd", pidfd, number, 0)


def sealed_init() -> int:
    """Return a sealed memfd with the static init. Nobody can change it, and only its owner can read it.

    A process that has exec'd a file it can't read is not dumpable, so no process inside can read its memory.

    Source: memfd_create(2), F_ADD_SEALS in fcntl(2), would_dump() in fs/exec.c.
    """
    import fcntl

    from containerkit import _native

    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create("init", flags | 0x10)  # MFD_EXEC, since Linux 6.3
    except OSError:
        fd = os.memfd_create("init", flags)
    os.fchmod(fd, 0o111)
    source = os.open(os.path.join(os.path.dirname(_native.__file__), "init"), os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(fd, source, None, 1 << 20):
            pass
    finally:
        os.close(source)
    fcntl.fcntl(fd, 1033, 0x0F)  # F_ADD_SEALS: seal, shrink, grow, write
    return fd


def spawn(
    tape: Tape,
    argv: Sequence[bytes] = (),
    envp: Sequence[bytes] = (),
    *,
    share_files: bool = False,
    no_process: bool = False,
    hides: bool = False,
) -> tuple[int, int, list[int]]:
    """Execute a tape in a new process that shares memory, until it has exec'd.

    Args:
        tape: the steps.
        argv: the argument vector of its exec.
        envp: the environment of its exec.
        share_files: whether the tape opens descriptors for this process.
        no_process: whether the tape ends without an exec.
        hides: whether to prevent that running processes read the shared memory.

    Returns:
        pid, pidfd and the slots at the end.

    Raises:
        StepError: a step failed. Its process has ended.
    """
    steps, data = tape.encode()
    held_steps, held_data = ffi.from_buffer(steps), ffi.from_buffer(data)
    packed = ffi.new("struct ck_tape *", (held_steps, len(tape), held_data, len(data)))
    if bad := lib.ck_check(packed):
        raise ValueError(f"step {bad - 1} of the tape is malformed")
    slots = ffi.new("int64_t[]", [-1] * tape.slot_count)
    result = ffi.new("struct ck_result *")
    words = b"".join([word + b"\0" for word in argv]) + b"\0"
    variables = b"".join([word + b"\0" for word in envp]) + b"\0"
    flags = (_SHARE_FILES if share_files else 0) | (_NO_PROCESS if no_process else 0) | (_HIDE_MEMORY if hides else 0)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        error = lib.ck_spawn(
            packed, words, len(argv), variables, len(envp), slots, tape.slot_count, proc, flags, result
        )
    finally:
        os.close(proc)
    if error:
        raise StepError("clone", -error)
    if result.failed_index >= 0:
        index = result.failed_index
        name, target, hint = tape.names[index] if index < len(tape) else ("pidfd_open", "", "")
        raise StepError(name, result.error, target, hint)
    return result.pid, result.pidfd, list(slots)

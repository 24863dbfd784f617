"""The boundary to the kernel: the tape's interpreters, PID 1, and the system calls for direct use.

Only this package imports the compiled module. Where there is none the reference interpreter takes its place, with a
warning: it forks the interpreter, which is slow and unsafe beside threads that hold locks.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # typing takes longer to import than a container to start
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from containerkit._native.outcome import (
        CALLER,
        HIDE_MEMORY,
        HOLD,
        NO_PROCESS,
        SECOND,
        SHARE_FILES,
        SLOTS,
        Ending,
        Outcome,
    )

__all__ = [
    "CALLER",
    "HIDE_MEMORY",
    "HOLD",
    "NO_PROCESS",
    "SECOND",
    "SHARE_FILES",
    "SLOTS",
    "Ending",
    "Outcome",
    "high",
    "init_image",
    "interpreter",
    "proc",
]

_cache: dict[str, Any] = {}


def __getattr__(name: str) -> object:
    """Load what :mod:`.outcome` defines on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from containerkit._native import outcome

    value = globals()[name] = getattr(outcome, name)
    return value


def interpreter() -> ModuleType:
    """Return the module that walks tapes: ``compiled``, or ``reference`` where that can't be imported.

    The environment variable ``CONTAINERKIT_INTERPRETER=reference`` asks for the latter. Both give ``Program``,
    ``wait`` and ``NAME``.
    """
    if "interpreter" not in _cache:
        _cache["interpreter"] = _choose()
    module: ModuleType = _cache["interpreter"]
    return module


def _choose() -> ModuleType:
    if os.environ.get("CONTAINERKIT_INTERPRETER") == "reference":
        from containerkit._native import reference

        return reference
    try:
        from containerkit._native import compiled
    except ImportError as error:
        import warnings

        from containerkit._native import reference

        warnings.warn(
            f"containerkit runs without its compiled module ({error}): each start forks the whole interpreter",
            RuntimeWarning,
            stacklevel=4,
        )
        return reference
    return compiled


def proc() -> int:
    """Return a descriptor of the caller's /proc, opened once.

    Raises:
        OSError: there is no procfs at /proc.
    """
    if "proc" not in _cache:
        fd = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.stat("self/ns", dir_fd=fd)
        except OSError:
            os.close(fd)
            raise
        return _keep("proc", fd)
    descriptor: int = _cache["proc"]
    return descriptor


def init_image() -> int:
    """Return a sealed memfd that holds the static init, made once.

    Raises:
        FileNotFoundError: the program was not built.
    """
    if "init" not in _cache:
        return _keep("init", _seal("init", os.path.join(os.path.dirname(__file__), "init")))
    descriptor: int = _cache["init"]
    return descriptor


def _keep(name: str, fd: int) -> int:
    """Keep a descriptor that was just made, unless another thread was sooner."""
    fd = high(fd)
    kept: int = _cache.setdefault(name, fd)
    if kept != fd:
        os.close(fd)
    return kept


LOWEST = 16
"""Below it lie the numbers that a start gives away: the standard streams, and what init is handed."""


def high(fd: int) -> int:
    """Return the descriptor, moved above the numbers that a start gives away.

    Raises:
        OSError: no more descriptors; it is closed.
    """
    if fd < 0 or fd >= LOWEST:
        return fd
    import fcntl
    from errno import EINVAL, EMFILE

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST)
    except OSError as error:
        if error.errno == EINVAL:  # the limit lies below: fcntl(2)
            raise OSError(EMFILE, os.strerror(EMFILE)) from None
        raise
    finally:
        os.close(fd)


def _seal(name: str, path: str) -> int:
    """Copy a program to a memfd that nobody can change. Source: memfd_create(2), F_ADD_SEALS in fcntl(2)."""
    import fcntl

    with open(path, "rb") as file:
        content = file.read()
    executable = 0x10  # MFD_EXEC, since Linux 6.3
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        fd = os.memfd_create(name, flags | executable)
    except OSError:
        fd = os.memfd_create(name, flags)
    os.fchmod(fd, 0o555)
    os.write(fd, content)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return fd

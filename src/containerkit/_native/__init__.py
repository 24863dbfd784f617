"""The interface to the kernel: the interpreters of the tape, PID 1, and the system calls for direct use.

Only this package imports the compiled module. If that is missing, the reference interpreter is used with a warning: it
forks the whole Python process, which is slow, and unsafe if other threads hold locks.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing typing takes longer than starting a container
if TYPE_CHECKING:
    from types import ModuleType
    from typing import Any

    from containerkit._native.outcome import (
        CALLER,
        HIDE_MEMORY,
        HOLD,
        JOIN,
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
    "JOIN",
    "NO_PROCESS",
    "SECOND",
    "SHARE_FILES",
    "SLOTS",
    "Ending",
    "Outcome",
    "high",
    "init_image",
    "interpreter",
    "keeper_image",
]

_cache: dict[str, Any] = {}


def __getattr__(name: str) -> object:
    """Import what :mod:`.outcome` defines on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from containerkit._native import outcome

    value = globals()[name] = getattr(outcome, name)
    return value


def interpreter() -> ModuleType:
    """Return the module that runs tapes: ``compiled``, or ``reference`` if that can't be imported.

    The environment variable ``CONTAINERKIT_INTERPRETER=reference`` selects the latter. Both have ``Program``, ``wait``
    and ``NAME``.
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


def init_image() -> int:
    """Return a sealed memfd that contains the static init. It is made once.

    Raises:
        FileNotFoundError: the init was not built.
    """
    if "init" not in _cache:
        return _keep("init", _seal("init", os.path.join(os.path.dirname(__file__), "init")))
    descriptor: int = _cache["init"]
    return descriptor


def keeper_image() -> int:
    """Return a new sealed memfd that contains the keeper of detached containers. Each keeper needs its own.

    Raises:
        FileNotFoundError: the program was not built.
    """
    return _seal("keeper", os.path.join(os.path.dirname(__file__), "keeper"))


def _keep(name: str, fd: int) -> int:
    """Store a descriptor that was just made, unless another thread has stored one."""
    fd = high(fd)
    kept: int = _cache.setdefault(name, fd)
    if kept != fd:
        os.close(fd)
    return kept


LOWEST = 16
"""Lower numbers are assigned by a start: to the standard streams, and to descriptors for init."""


def high(fd: int) -> int:
    """Move a descriptor above the numbers that a start assigns, and return it.

    Raises:
        OSError: there is no free descriptor. The given one is closed.
    """
    if fd < 0 or fd >= LOWEST:
        return fd
    import fcntl
    from errno import EINVAL, EMFILE

    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST)
    except OSError as error:
        if error.errno == EINVAL:  # the limit is below that number: fcntl(2)
            raise OSError(EMFILE, os.strerror(EMFILE)) from None
        raise
    finally:
        os.close(fd)


def _seal(name: str, path: str) -> int:
    """Copy a program to a memfd that can't be changed. Source: memfd_create(2), F_ADD_SEALS in fcntl(2)."""
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

"""CRIU, the program that writes processes to disk and restores them: its path, its arguments, its messages.

The OCI command and the library's checkpoints both use its command line. CRIU calls *external* what its images do not
contain: mounts and files of the host, and namespaces that others created. Each is named when the images are written,
and provided when the processes are restored.

Source: criu(8); https://criu.org/External_bind_mounts, https://criu.org/Inheriting_FDs_on_restore.
"""

from __future__ import annotations

import os
from stat import S_ISCHR, S_ISFIFO, S_ISSOCK

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "NAMESPACE_KEYS",
    "external",
    "failure",
    "file_key",
    "find",
    "inherit",
    "is_terminal",
    "logged",
    "mount_of",
    "stream",
]

NAMESPACE_KEYS = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}
"""CRIU's name for a kind of namespace, and the key if it is external."""

_PTS_MAJORS = range(136, 144)
_LOG_TAIL_BYTES = 16_384
_SHOWN_ERRORS = 3


def find(path: str | None = None) -> str | None:
    """Return the path of CRIU: the given one, else the first along ``PATH``, or None if there is none."""
    import shutil

    return path or shutil.which("criu")


def logged(images: str, work: str, log: str) -> list[str]:
    """Return the arguments for the locations of files.

    Args:
        images: the directory of the images.
        work: the directory of the log and of temporary files.
        log: the name of the log in ``work``.
    """
    return ["--images-dir", images, "--work-dir", work, "--log-file", log, "-v4"]


def external(keys: Iterable[str]) -> list[str]:
    """Return the arguments that declare external resources."""
    return [word for key in keys for word in ("--external", key)]


def inherit(fd: int, key: str) -> list[str]:
    """Return the arguments that provide a descriptor for an external resource."""
    return ["--inherit-fd", f"fd[{fd}]:{key}"]


def failure(verb: str, status: int, stderr: str, log: str) -> str:
    """Return the reason of a failure, for messages: the last errors in its log, or its output.

    Args:
        verb: ``dump`` or ``restore``.
        status: its exit status.
        stderr: its output.
        log: the path of its log.
    """
    tail = stderr.strip()
    if os.path.exists(log):
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = [line for line in file.read()[-_LOG_TAIL_BYTES:].splitlines() if "Error" in line]
            tail = "; ".join(lines[-_SHOWN_ERRORS:]) or tail
    return f"criu {verb}: exit status {status}: {tail}"


def file_key(pid: int | str, name: str) -> str:
    """Return the key of a file that a process has open: ``file[MOUNT:INODE]``, in hexadecimal.

    Args:
        pid: the process.
        name: its entry below ``/proc/PID``, such as ``fd/1`` or ``exe``.
    """
    fd = os.open(f"/proc/{pid}/{name}", os.O_PATH | os.O_CLOEXEC)
    try:
        return f"file[{mount_of('self', fd):x}:{os.fstat(fd).st_ino:x}]"
    finally:
        os.close(fd)


def mount_of(pid: int | str, fd: int) -> int:
    """Return the mount id of an open file. Source: proc_pid_fdinfo(5)."""
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))


def is_terminal(status: os.stat_result) -> bool:
    """Return whether a file is the terminal end of a pseudoterminal."""
    return S_ISCHR(status.st_mode) and os.major(status.st_rdev) in _PTS_MAJORS


def stream(pid: int, number: int, inside: Iterable[int]) -> str:
    """Return CRIU's name for an open file, or an empty string if the descriptor is closed.

    A pipe is ``pipe:[INODE]``, a terminal ``tty[RDEV:DEV]`` and another file of the host ``file[MOUNT:INODE]``, in
    hexadecimal. A file of the container itself is its path.

    Args:
        pid: the process.
        number: the descriptor.
        inside: the ids of the container's mounts.
    """
    path = f"/proc/{pid}/fd/{number}"
    try:
        link, status = os.readlink(path), os.stat(path)
    except FileNotFoundError:
        return ""
    if S_ISFIFO(status.st_mode) and link.startswith("pipe:"):
        return link
    if is_terminal(status):
        return f"tty[{status.st_rdev:x}:{status.st_dev:x}]"
    mount = mount_of(pid, number)
    return link if mount in inside or S_ISSOCK(status.st_mode) else f"file[{mount:x}:{status.st_ino:x}]"

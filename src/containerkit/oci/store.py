"""The records of containers on disk: one directory for each, below the runtime's root.

::

    ROOT/ID/state.json    the record, replaced as a whole by a rename
    ROOT/ID/config.json   the configuration that the container was created from
    ROOT/ID/gate          the socket at which a created container waits for its start

A process that changes a container holds an exclusive flock of its directory. The kernel releases it when the process
dies. The record contains the phase that was reached, so what a killed runtime left behind can be deleted.
"""

from __future__ import annotations

import os
from errno import EEXIST
from stat import S_ISDIR

from containerkit import jsontext
from containerkit.oci import files
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

__all__ = [
    "FORMAT",
    "Entry",
    "adopt",
    "check_id",
    "default_root",
    "entries",
    "in_user_namespace",
    "is_alive",
    "matching",
    "open_entry",
    "reserve",
    "start_time",
    "states",
]

STATE, CONFIG, GATE = "state.json", "config.json", "gate"
FORMAT = 1
"""The version of the record, for the front end (``_native/front.h``), which may be older than this package.

It changes with the meaning of a member, or the behaviour of ``state``, ``start``, ``kill`` or ``delete``. The front end
leaves a record of another version to this package.
"""

_ID_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")
_MEMFD = "/memfd:init"


def default_root() -> str:
    """Return the directory of the records if ``--root`` is not given.

    Raises:
        RuntimeFailure: XDG_RUNTIME_DIR is not set, and another user has made the directory that would be used instead.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() == 0 and not (runtime and in_user_namespace()):
        return "/run/containerkit/oci"
    if runtime:
        return f"{runtime}/containerkit/oci"
    own = f"/tmp/containerkit-{os.geteuid()}"
    try:
        status = os.lstat(own)
    except FileNotFoundError:
        return f"{own}/oci"
    if status.st_uid != os.geteuid() or not S_ISDIR(status.st_mode) or status.st_mode & 0o022:
        raise RuntimeFailure(f"other users can access {own}: remove it, or set XDG_RUNTIME_DIR")
    return f"{own}/oci"


def in_user_namespace() -> bool:
    """Return whether this process is in a user namespace other than the initial one."""
    return files.read("/proc/self/uid_map").split() != [b"0", b"0", b"4294967295"]


def check_id(name: str) -> str:
    """Return an id that can be the name of a directory and of a control group.

    Raises:
        RuntimeFailure: the id is invalid.
    """
    if not name or not _ID_LETTERS.issuperset(name) or name[0] == "." or len(name) > 1024:
        raise RuntimeFailure(
            f"invalid container id {name!r}: letters, digits and _ + - . only, not starting with a dot"
        )
    return name


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks after boot; 0 if it has ended or is a zombie.

    Source: proc_pid_stat(5), field 22.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        text = os.read(fd, 4096)
    except OSError:
        return 0
    finally:
        os.close(fd)
    fields = text[text.rindex(b")") + 2 :].split()
    return 0 if fields[0] in b"ZX" else int(fields[19])


def is_alive(pid: int, started: int) -> bool:
    """Return whether exactly this process is still alive."""
    return pid > 0 and start_time(pid) == started


class Entry:
    """One container's directory. It owns the directory's descriptor, and with it the lock if it was taken.

    Attributes:
        id: the container's.
        path: the directory.
        fd: the directory, -1 when closed.
        record: the content of ``state.json``.
    """

    __slots__ = ("fd", "id", "path", "record")

    def __init__(self, name: str, path: str, fd: int, record: dict[str, Any]) -> None:
        self.id = name
        self.path = path
        self.fd = fd
        self.record = record

    def __repr__(self) -> str:
        return f"<Entry {self.id} {'closed' if self.fd < 0 else self.record.get('phase', 'new')}>"

    def close(self) -> None:
        """Close the directory and release the lock. May be called twice."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- files

    def write(self, name: str, content: bytes) -> None:
        """Replace a file atomically."""
        draft = f".{name}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        os.rename(draft, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            OSError: it does not exist.
        """
        return files.read(name, self.fd)

    def has(self, name: str) -> bool:
        """Return whether there is a file of that name."""
        try:
            os.stat(name, dir_fd=self.fd)
        except OSError:
            return False
        return True

    def save(self, **changes: object) -> None:
        """Change the record and write it."""
        self.record.update(changes)
        self.write(STATE, jsontext.dumps(self.record).encode())

    def remove(self) -> None:
        """Remove the directory with its content. A missing directory is not an error."""
        for name in os.listdir(self.fd):
            try:
                os.unlink(name, dir_fd=self.fd)
            except IsADirectoryError:
                _remove_directory(name, self.fd)
        os.rmdir(self.path)

    # --- state

    @property
    def pid(self) -> int:
        """The container's first process, 0 if there is none."""
        pid: int = self.record.get("pid", 0)
        return pid

    def is_running(self) -> bool:
        """Return whether the container's first process is alive."""
        return is_alive(self.pid, self.record.get("start_time", 0))

    def status(self) -> str:
        """Return ``creating``, ``created``, ``running``, ``paused`` or ``stopped``.

        Source: OCI runtime-spec, runtime.md, "State".
        """
        alive = self.is_running()
        if self.record.get("phase") == "creating":
            creator = self.record.get("creator", [0, 0])
            return "creating" if alive or is_alive(creator[0], creator[1]) else "stopped"
        if not alive:
            return "stopped"
        if self.has(GATE) and self._waits():
            return "created"
        return "paused" if self._is_frozen() else "running"

    def _waits(self) -> bool:
        """Return whether the process still executes the tape. A killed start may have left the gate behind."""
        try:
            return os.readlink(f"/proc/{self.pid}/exe").startswith(_MEMFD)
        except OSError:
            return True

    def _is_frozen(self) -> bool:
        freezer = self.record.get("freezer")
        if not freezer:
            return False
        try:
            fd = os.open(freezer, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.read(fd, 64).strip() in (b"FROZEN", b"FREEZING", b"1")
        except OSError:
            return False
        finally:
            os.close(fd)

    def state(self) -> dict[str, Any]:
        """Return the state for the verb ``state`` and for hooks."""
        status = self.status()
        record = self.record
        return {
            "ociVersion": record.get("ociVersion", ""),
            "id": self.id,
            "pid": 0 if status in ("stopped", "creating") and not self.is_running() else self.pid,
            "status": status,
            "bundle": record.get("bundle", ""),
            "rootfs": record.get("rootfs", ""),
            "created": record.get("created", ""),
            "owner": record.get("owner", ""),
            "annotations": record.get("annotations", {}),
        }


def _remove_directory(name: str, above: int) -> None:
    """Remove a directory of plain files."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
    try:
        for inner in os.listdir(fd):
            os.unlink(inner, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=above)


def reserve(root: str, name: str) -> Entry:
    """Make the directory of a new container and lock it.

    Raises:
        RuntimeFailure: the id is in use, or the root can't be written to.
    """
    import fcntl

    path = f"{root}/{check_id(name)}"
    try:
        os.makedirs(root, 0o711, exist_ok=True)
        os.mkdir(path, 0o700)
    except OSError as error:
        if error.errno == EEXIST:
            raise RuntimeFailure(f"container with id exists: {name}") from None
        raise RuntimeFailure(f"make {path}: {strerror(error.errno or 0)}") from None
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return Entry(name, path, fd, {"format": FORMAT})


def open_entry(root: str, name: str, *, lock: bool = False, patience_s: float = 0.0) -> Entry:
    """Open a container's directory.

    Args:
        root: the directory of the records.
        name: the container's id.
        lock: whether to wait for the exclusive lock and take it.
        patience_s: how long to wait for it, in seconds; 0 (the default) means without limit.

    Raises:
        RuntimeFailure: it does not exist, or another process holds the lock for too long.
    """
    path = f"{root}/{check_id(name)}"
    missing = RuntimeFailure(f"container {name!r} does not exist")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise missing from None
    except OSError as error:
        raise RuntimeFailure(f"open {path}: {strerror(error.errno or 0)}") from None
    entry = Entry(name, path, fd, {})
    try:
        if lock:
            _lock(entry, patience_s, missing)
        entry.record = _read_record(entry)
    except BaseException:
        entry.close()
        raise
    return entry


def adopt(root: str, name: str, fd: int) -> Entry:
    """Return the entry of a container whose directory the front end has opened and locked.

    Args:
        root: the directory of the records.
        name: the container's id.
        fd: the directory. The entry owns it.

    Raises:
        RuntimeFailure: its record can't be read.
    """
    os.set_inheritable(fd, False)
    entry = Entry(name, f"{root}/{check_id(name)}", fd, {})
    entry.record = _read_record(entry)
    return entry


def _lock(entry: Entry, patience_s: float, missing: RuntimeFailure) -> None:
    """Take the lock. Its former holder may have deleted the container."""
    import fcntl
    import time

    end = time.monotonic() + patience_s
    how = fcntl.LOCK_EX | (fcntl.LOCK_NB if patience_s else 0)
    while True:
        try:
            fcntl.flock(entry.fd, how)
        except BlockingIOError:
            pass
        else:
            if os.fstat(entry.fd).st_nlink == 0:
                raise missing
            return
        if time.monotonic() > end:
            raise RuntimeFailure(f"container {entry.id!r} is locked by another call of the runtime")
        time.sleep(0.01)


def _read_record(entry: Entry) -> dict[str, Any]:
    """Return the record. If it was not written yet, the container is being created."""
    try:
        record = jsontext.loads(entry.read(STATE))
    except (FileNotFoundError, NotADirectoryError):
        return {"phase": "creating"}
    except ValueError as error:
        raise RuntimeFailure(f"{entry.path}/{STATE}: {error}") from None
    if not isinstance(record, dict):
        raise RuntimeFailure(f"{entry.path}/{STATE}: not an object")
    return record


def matching(root: str, pattern: str, *, alive: bool = False) -> list[str]:
    """Return the ids below a root in which a regular expression has a match.

    Args:
        root: the directory of the records.
        pattern: in the syntax of Python's ``re``.
        alive: whether to return only those that have not stopped.

    Raises:
        RuntimeFailure: the pattern is invalid.
    """
    import re

    try:
        found = re.compile(pattern)
    except re.error as error:
        raise RuntimeFailure(f"--regex: {pattern!r} is not a regular expression: {error}") from None
    candidates = [state["id"] for state in states(root) if not (alive and state["status"] == "stopped")]
    return [name for name in candidates if found.search(name)]


def states(root: str) -> list[dict[str, Any]]:
    """Return the state of each container below a root."""
    found = []
    for entry in entries(root):
        with entry:
            found.append(entry.state())
    return found


def entries(root: str) -> Iterator[Entry]:
    """Open each container's directory in turn. The caller closes them."""
    try:
        names = sorted(os.listdir(root))
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith("."):
            continue
        try:
            yield open_entry(root, name)
        except RuntimeFailure:  # deleted in the meantime
            continue

"""The records of detached containers: their directories, and how they are created, found and removed.

A record is a directory below ``/run/containerkit/containers`` (of a user: below ``$XDG_RUNTIME_DIR``):

==================  ==================================================================================================
``config.json``     name, labels, policy and so on; replaced atomically
``description``     the description of the container and its command, pickled
``run.json``        the last start: its number, the pids, the control groups
``exit.N``          how start number N ended; written by the keeper
``lost.N``          the keeper of start number N was killed, and there is an event of it
``lock``            locked by the keeper as long as it lives
``stopped``         it was stopped by hand, and is not restarted; until then ``stopped.new``, so that it needs no space
==================  ==================================================================================================

The directory ``.names`` contains a symlink from each name to an id. The writable layer and the logs must be on disk,
below ``/var/lib/containerkit/containers/ID`` (of a user: ``$XDG_DATA_HOME``). Its keeper holds a flock(2) on that
directory. A reboot removes the records. The remaining files on disk are then swept.

Source: fcntl_locking(2), F_OFD_SETLK.
"""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import contextmanager, suppress
from errno import EACCES, EAGAIN, ENOSPC

from containerkit import jsontext
from containerkit._linux.places import data_directory
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.spec.words import checked_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final

__all__ = ["KEEPER_LOCK", "Entry", "create", "entries", "find", "records_root", "state_root", "sweep"]

VERSION: Final = 1
"""The version of the records. Those of another version are refused."""

KEEPER_LOCK: Final = 9
"""The number of the descriptor with which a keeper holds the lock of its record; see keeper.c."""

_NAMES: Final = ".names"
"""The directory with a symlink from each name to an id."""

_REMOVED: Final = ".removed."
"""Records with this prefix are being removed."""

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit machines


def records_root() -> str:
    """Return the directory of this user's records.

    Raises:
        StateError: an unprivileged user without ``XDG_RUNTIME_DIR``.
    """
    if os.geteuid() == 0:
        return "/run/containerkit/containers"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise StateError(
            "records of detached containers are below $XDG_RUNTIME_DIR, which is not set: "
            "log in through systemd or PAM, or set it to your own directory in memory"
        )
    return os.path.join(runtime, "containerkit/containers")


def state_root() -> str:
    """Return the directory on disk for the files and logs of containers."""
    return data_directory("containers")


def _loads(text: str) -> Any:
    """Read JSON, without the package that takes as long to import as many records to read."""
    try:
        return jsontext.loads(text)
    except ValueError:  # such as of an infinite number, or it is no JSON, which the package says in detail
        import json

        return json.loads(text)


class Entry:
    """One record.

    Attributes:
        id: of the container.
        path: its directory.
        state_path: the directory of its writable layer and logs.
    """

    __slots__ = ("id", "path", "state_path")

    def __init__(self, id: str) -> None:  # noqa: A002 - the term of the OCI
        self.id = id
        self.path = os.path.join(records_root(), id)
        self.state_path = os.path.join(state_root(), id)

    def __repr__(self) -> str:
        return f"<Entry {self.id}>"

    def file(self, name: str) -> str:
        """Return the path of one of its files."""
        return os.path.join(self.path, name)

    def read(self, name: str) -> dict[str, Any] | None:
        """Return the content of one of its JSON files, or None if it is missing.

        Raises:
            StateError: it is malformed, or of another version.
        """
        try:
            with open(self.file(name), encoding="utf-8") as file:
                content: dict[str, Any] = _loads(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise StateError(f"container {self.id}: its record can't be read: {name}: {error}") from None
        if not isinstance(content, dict) or content.get("version") != VERSION:
            raise StateError(f"container {self.id}: its record is of another version of containerkit: {name}")
        return content

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Replace one of its JSON files."""
        import json  # late: commands that only look do not need it

        self.write_bytes(name, json.dumps({"version": VERSION, **content}).encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replace one of its files atomically.

        Raises:
            SetupError: the filesystem of the records is full, or the record was removed.
        """
        temporary = self.file(f"{name}.{os.getpid()}.new")
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.write(fd, content) != len(content):  # the filesystem has become full during the write
                    raise OSError(ENOSPC, os.strerror(ENOSPC))
            finally:
                os.close(fd)
            os.replace(temporary, self.file(name))
        except OSError as error:
            with suppress(OSError):
                os.unlink(temporary)
            raise SetupError("write", error.errno or 0, self.file(name), "the record could not be changed") from None

    @property
    def config(self) -> dict[str, Any]:
        """Its name and settings.

        Raises:
            StateError: it was removed.
        """
        content = self.read("config.json")
        if content is None:
            raise self._removed()
        return content

    def is_kept(self) -> bool:
        """Return whether its keeper, or a future keeper, is alive."""
        try:
            fd = os.open(self.file("lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        finally:
            os.close(fd)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)

    def lock(self) -> int:
        """Lock it for a future keeper, or for its removal. Return the descriptor that holds the lock.

        Raises:
            StateError: it has a keeper, or was removed.
            SetupError: the filesystem of the records is full.
        """
        try:
            fd = os.open(self.file("lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            raise self._removed() from None
        except OSError as error:
            raise SetupError("open", error.errno or 0, self.file("lock"), "its record could not be locked") from None
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        except OSError as error:
            os.close(fd)
            if error.errno in (EACCES, EAGAIN):
                raise StateError(f"container {self.id}: it is running, or is being started") from None
            raise
        if not os.path.exists(self.path):
            os.close(fd)
            raise self._removed()
        return fd

    def _removed(self) -> StateError:
        return StateError(f"container {self.id}: its record was removed")

    def end_of(self, run: int) -> dict[str, str] | None:
        """Return the keeper's record of the end of a start, or None."""
        try:
            with open(self.file(f"exit.{run}"), encoding="utf-8") as file:
                words = file.read().split()
        except FileNotFoundError:
            return None
        return dict(zip(words[::2], words[1::2], strict=False))

    def rename(self, name: str, config: Mapping[str, Any]) -> None:
        """Give it another name.

        Args:
            name: the name.
            config: its settings with that name.

        Raises:
            SpecError: the name is invalid.
            StateError: another container has it.
            SetupError: the filesystem of the records is full.
        """
        former = self.config["name"]
        with _gate():
            self.set_name(name)
            try:
                self.write("config.json", dict(config))  # from here on it has this name, and no longer the former one
            except BaseException:
                if name != former:
                    self.drop_name(name)
                raise
            if former and former != name:
                self.drop_name(former)

    def set_name(self, name: str) -> None:
        """Give it a name. The caller holds the gate, and writes the name to the configuration before it lets go.

        Raises:
            SpecError: the name is invalid.
            StateError: another container has it.
        """
        place = _name_path(checked_id(name))
        os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
        for _ in range(3):
            try:
                os.symlink(self.id, place)
            except FileExistsError:
                owner = _named(name)
                if owner == self.id:
                    return
                if owner is not None:
                    raise StateError(
                        f"the name {name!r} belongs to container {owner}: remove or rename that one, or choose another"
                    ) from None
                with suppress(FileNotFoundError):  # of a removed record, or of a process that was killed meanwhile
                    os.unlink(place)
            except OSError as error:
                raise SetupError("symlink", error.errno or 0, place, "the name could not be given") from None
            else:
                return
        raise StateError(f"the name {name!r} is being changed by other processes: try again")

    def drop_name(self, name: str) -> None:
        """Remove a name, if it belongs to this container."""
        if _link(name) == self.id:
            with suppress(FileNotFoundError):
                os.unlink(_name_path(name))

    def remove(self, lock: int | None = None) -> None:
        """Remove the record and all files of the container.

        The record is first renamed, so that a removal that is interrupted leaves no container with half of its files.
        A sweep removes the rest.

        Args:
            lock: the lock of the record, if it is already held (default: it is taken).

        Raises:
            StateError: it has a keeper, or was already removed.
            CleanupError: a file on disk could not be removed; the record still exists.
        """
        from containerkit.errors import CleanupError

        held = self.lock() if lock is None else lock
        try:
            name, aside = self.config["name"], self._aside()
            os.rename(self.path, aside)
            if not _gone(self.state_path):
                os.rename(aside, self.path)
                raise CleanupError((self.state_path,))
            if name:
                self.drop_name(name)
            if not _gone(aside):
                raise CleanupError((aside,))
        finally:
            if lock is None:
                os.close(held)

    def discard(self) -> None:
        """Remove what a failed creation has made. There is no container yet."""
        for path in (self.state_path, self.path):
            _gone(path)

    def _aside(self) -> str:
        """Return the path to which the record is renamed for its removal."""
        return os.path.join(os.path.dirname(self.path), f"{_REMOVED}{self.id}")


def _gone(path: str) -> bool:
    """Remove a directory, which may be missing. Return whether it is gone."""
    from pathlib import Path

    from containerkit.start.removal import remove_tree

    return not os.path.lexists(path) or remove_tree(Path(path))


def _name_path(name: str) -> str:
    return os.path.join(records_root(), _NAMES, name)


def _link(name: str) -> str | None:
    try:
        return os.readlink(_name_path(name))
    except OSError:
        return None


def _named(name: str) -> str | None:
    """Return the id of the record with a name, or None. A killed rename leaves another link to the record."""
    found = _link(name)
    if found is None:
        return None
    try:
        config = Entry(found).read("config.json")
    except StateError:  # it is damaged, or of another version: it may be its name
        return found
    return found if config is not None and config["name"] == name else None


@contextmanager
def _gate() -> Iterator[None]:
    """Keep sweeps from removing incomplete records."""
    root = records_root()
    os.makedirs(root, mode=0o700, exist_ok=True)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def create(config: dict[str, Any], description: bytes) -> Entry:
    """Create the record of a container.

    Args:
        config: the content of ``config.json``; ``name`` may be empty.
        description: the pickled description.

    Raises:
        SpecError, StateError: the name is invalid or already used.
        SetupError: the record can't be written.
    """
    entry = Entry(os.urandom(6).hex())
    try:
        with _gate():
            os.makedirs(entry.path, mode=0o700)
            os.makedirs(entry.state_path, mode=0o700)
            if config["name"]:
                entry.set_name(config["name"])
            entry.write_bytes("description", description)
            entry.write("config.json", config)  # last: without it there is no container
    except BaseException as error:
        if config["name"]:
            entry.drop_name(config["name"])
        entry.discard()
        if isinstance(error, OSError) and not isinstance(error, SetupError):
            where = error.filename or entry.path
            raise SetupError("mkdir", error.errno or 0, where, "the record can't be created") from None
        raise
    return entry


def entries() -> list[Entry]:
    """Return all records of this user, the oldest first."""
    root = records_root()
    found: list[tuple[int, Entry]] = []
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    for name in names:
        if name.startswith("."):
            continue
        try:
            status = os.stat(os.path.join(root, name, "description"))
            os.stat(os.path.join(root, name, "config.json"))
        except OSError:  # incomplete, or being removed
            continue
        found.append((status.st_mtime_ns, Entry(name)))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def find(name: str) -> Entry:
    """Return the record of a name, an id, or the beginning of an id.

    Raises:
        SpecError: an empty name.
        StateError: no such container, or there are several.
    """
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise SpecError(f"container {name!r:.100}: it must be a name, an id, or the beginning of an id")
    if (owner := _named(name)) is not None:
        return Entry(owner)
    fitting = [entry for entry in entries() if entry.id.startswith(name)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise StateError(f"container {name!r}: the ids of {len(fitting)} containers begin with it: use more digits")
    raise StateError(f"container {name!r}: no such container; 'containerkit ps -a' lists all")


def sweep() -> tuple[str, ...]:
    """Remove incomplete records, and files on disk without a record, left by killed processes or a reboot.

    Returns:
        The removed paths.
    """
    try:
        root = records_root()
    except StateError:
        return ()
    removed: list[str] = []
    if not os.path.isdir(root) and not os.path.isdir(state_root()):
        return ()
    with _gate():
        for name in os.listdir(root):
            path = os.path.join(root, name)
            is_record = name[0] != "." and os.path.exists(os.path.join(path, "config.json"))
            if not is_record and name != _NAMES and _gone(path):
                removed.append(path)
        with suppress(FileNotFoundError):
            for name in os.listdir(state_root()):
                path = os.path.join(state_root(), name)
                if not os.path.isdir(os.path.join(root, name)) and not _is_used(path) and _gone(path):
                    removed.append(path)
        names = os.path.join(root, _NAMES)
        with suppress(FileNotFoundError):
            for name in os.listdir(names):
                if _named(name) is None:
                    os.unlink(os.path.join(names, name))
    return tuple(removed)


def _is_used(path: str) -> bool:
    """Return whether a keeper holds a directory on disk, even if its record is in another runtime directory."""
    with suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
    return False

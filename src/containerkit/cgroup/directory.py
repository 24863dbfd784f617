"""One directory of one hierarchy, by its descriptor. All access uses the descriptor, so no path is resolved twice."""

from __future__ import annotations

import contextlib
import os
from errno import EACCES, EBUSY, EINVAL, ENODEV, ENOENT, ENOSPC, EPERM, EROFS, ESRCH
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from containerkit._native import LOWEST
from containerkit.descriptors import close_all, keep, keep_above, lend
from containerkit.errors import SetupError, StateError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Directory", "OpenedDirectory", "refused"]

Kind = TypeVar("Kind", bound="Directory")

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_ABOVE: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_CHUNK: Final = 65536
_LAST: Final = 2048
"""A shorter piece is the last one: the kernel fills a page with whole lines, and no line is half a page long."""

_INNER: Final = "on version 2 a group that has processes of its own can't have child groups with controllers"
_REAL_TIME: Final = "version 2 limits processor time only while all real-time processes are in the root group"
_HINTS: Final = {
    EACCES: "run as root, or inside a delegated subtree (systemd-run --user --scope -p Delegate=yes ...)",
    EPERM: "run as root, or inside a delegated subtree (systemd-run --user --scope -p Delegate=yes ...)",
    EROFS: "the cgroup filesystem is mounted read-only here; mount it writable, or leave out the limits",
    ENOSPC: "cgroup.max.descendants or cgroup.max.depth of a parent group is reached",
    EINVAL: "the kernel does not accept this value here",
    ESRCH: "there is no such process in this pid namespace",
}


def refused(operation: str, error: OSError, target: str, hint: str = "") -> SetupError:
    """Return the error to raise when the kernel refuses an operation."""
    number = error.errno or 0
    if number == EBUSY and not hint and operation == "write":
        hint = _INNER
    return SetupError(operation, number, target, hint or _HINTS.get(number, ""))


class Directory:
    """A group's directory in one hierarchy. It owns its descriptor, until :meth:`close`.

    Attributes:
        fd: the directory, open for reading; -1 when closed.
        path: for messages.
        version: the version of the hierarchy.
        names: the controllers of a version 1 hierarchy.
    """

    __slots__ = ("_above", "_available", "_enabled", "_held", "fd", "names", "path", "version")

    def __init__(
        self,
        fd: int,
        path: str,
        version: int,
        names: frozenset[str] = frozenset(),
        available: frozenset[str] | None = None,
    ) -> None:
        self._held = [fd] if fd >= 0 else []
        self.fd = fd
        self.path = path
        self.version = version
        self.names = names
        self._above: Directory | None = None
        self._available = available
        self._enabled: frozenset[str] | None = None

    def __repr__(self) -> str:
        state = "closed" if self.fd < 0 else f"fd {self.fd}"
        return f"<Directory {self.path} version {self.version} {state}>"

    def close(self) -> None:
        """Close the descriptor. May be called twice."""
        self.fd = -1
        close_all(self._held)

    def remove_self(self) -> None:
        """Remove the directory, which must not contain processes or groups. It is not an error if it does not exist.

        Raises:
            OSError: EBUSY if it contains something.
        """
        name = self.path.rpartition("/")[2]
        base = self._above
        if base is not None and base.fd >= 0:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(name, dir_fd=base.fd)
            return
        above = os.open("..", _ABOVE, dir_fd=self.fd)
        try:
            os.rmdir(name, dir_fd=above)
        except FileNotFoundError:
            pass
        finally:
            os.close(above)

    def remove(self, name: str) -> bool:
        """Remove a child group if it is empty. Return True if no group of that name exists afterwards."""
        try:
            os.rmdir(name, dir_fd=self.fd)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def exists(self, name: str) -> bool:
        """Return whether a file or group of that name exists."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True

    def make(self, name: str) -> OpenedDirectory:
        """Create a child group if it does not exist, and open it.

        Raises:
            SetupError: the kernel refuses it.
            FileNotFoundError: this group no longer exists.
        """
        with contextlib.suppress(FileExistsError):
            self._mkdir(name)
        try:
            return self.open(name)
        except OSError as error:
            raise refused("open", error, f"{self.path}/{name}") from None

    def make_into(self, begun: list[Directory], name: str) -> Directory:
        """Append a child group to a list, then create and open it.

        After an error the list contains the directories that the caller must close and remove.

        Raises:
            StateError: a group of that name exists.
            SetupError: the kernel refuses it.
            FileNotFoundError: this group no longer exists.
        """
        below = self._named(Directory, name)
        below._above = self  # noqa: SLF001 - of the same class
        begun.append(below)
        try:
            self._mkdir(name)
        except FileExistsError:
            begun.remove(below)
            raise StateError(f"{below.path}: a group of that name exists") from None
        except OSError:
            begun.remove(below)
            raise
        try:
            below.open_in(self.fd, name)
        except OSError as error:
            raise refused("open", error, below.path) from None
        return below

    def _mkdir(self, name: str) -> None:
        try:
            os.mkdir(name, 0o755, dir_fd=self.fd)
        except FileExistsError:
            raise
        except OSError as error:
            if error.errno in {ENOENT, ENODEV}:
                raise FileNotFoundError(ENOENT, os.strerror(ENOENT), self.path) from None
            raise refused("mkdir", error, f"{self.path}/{name}") from None

    def open(self, name: str) -> OpenedDirectory:
        """Open a child group.

        Raises:
            OSError: it does not exist, or this process may not open it.
        """
        below = self._named(OpenedDirectory, name)
        below.open_in(self.fd, name)
        return below

    def _named(self, kind: type[Kind], name: str) -> Kind:
        # The controllers enabled here are those available there, so they need not be read.
        return kind(-1, f"{self.path.rstrip('/')}/{name}", self.version, self.names, self._enabled)

    def open_in(self, above: int, name: str) -> None:
        """Open the directory, by its name in the one above.

        Raises:
            OSError: it does not exist, or this process may not open it.
        """
        fd = keep(self._held, partial(os.open, dir_fd=above), name, _FLAGS)
        if fd < LOWEST:  # starts use the numbers below
            above_them = keep_above(self._held, fd, LOWEST)
            del self._held[0]
            os.close(fd)
            fd = above_them
        self.fd = fd

    def above(self) -> OpenedDirectory:
        """Open the parent group.

        Raises:
            OSError: this group no longer exists.
        """
        fd = os.open("..", _FLAGS, dir_fd=self.fd)
        return OpenedDirectory(fd, self.path.rpartition("/")[0], self.version, self.names)

    def open_file(self, file: str, flags: int) -> int:
        """Return a new descriptor of a file in the directory."""
        return os.open(file, flags | os.O_CLOEXEC, dir_fd=self.fd)

    def read(self, file: str) -> str | None:
        """Return the text of a file, or None if it does not exist or the kernel does not return it."""

        def work(kept: list[int]) -> bytes:
            fd = keep(kept, partial(os.open, dir_fd=self.fd), file, os.O_RDONLY | os.O_CLOEXEC)
            text = chunk = os.read(fd, _CHUNK)
            while len(chunk) > _LAST:
                chunk = os.read(fd, _CHUNK)
                text += chunk
            return text

        try:
            return lend(work).decode("ascii", "replace")
        except OSError:  # also if the kernel has disabled it, such as memory.kmem.slabinfo or the pressure files
            return None

    def write(self, file: str, value: bytes) -> None:
        """Write to a file with one write(2), as the kernel requires.

        Raises:
            OSError: the kernel refuses it.
        """

        def work(kept: list[int]) -> None:
            os.write(keep(kept, partial(os.open, dir_fd=self.fd), file, os.O_WRONLY | os.O_CLOEXEC), value)

        lend(work)

    def groups(self) -> list[str]:
        """Return the names of the child groups."""
        with os.scandir(self.fd) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def has_groups(self) -> bool:
        """Return whether there are child groups. kernfs counts them in the link count of the directory."""
        return os.fstat(self.fd).st_nlink > 2

    def processes(self) -> list[int]:
        """Return the pids in the group itself. 0 stands for a process that has no pid in this namespace."""
        text = self.read("cgroup.procs") or ""
        return [int(word) for word in text.split() if word.isdigit()]

    def available(self) -> frozenset[str]:
        """Return the controllers that can limit the group."""
        if self.version == 1:
            return self.names
        if self._available is None:
            self._available = frozenset((self.read("cgroup.controllers") or "").split())
        return self._available

    def _check_inner(self, controllers: frozenset[str]) -> None:
        """Refuse to enable controllers below a group that has processes of its own. The root group is an exception.

        The kernel itself refuses memory and io. For the threaded controllers (cpu, cpuset, pids) it does not: it
        silently makes the group the root of a threaded subtree, and the child groups then accept no processes.
        """
        kind = (self.read("cgroup.type") or "").strip()
        if kind and (kind != "domain" or self.processes()):
            hint = f"its type is {kind!r}" if kind != "domain" else _INNER
            target = f"+{' +'.join(sorted(controllers))} to {self.path}/cgroup.subtree_control"
            raise SetupError("write", EBUSY, target, hint)

    def look_again(self) -> None:
        """Forget which controllers were available, because a group above has been changed."""
        self._available = None

    def enable(self, controllers: Iterable[str]) -> None:
        """Enable controllers for the child groups. On version 1 they are always enabled.

        Raises:
            UnsupportedError: a controller is not available here.
            SetupError: the kernel refuses it. The error is EBUSY if the group has processes of its own.
        """
        if self.version == 1:
            return
        wanted = frozenset(controllers)
        if self._enabled is not None and wanted <= self._enabled:
            return
        if missing := wanted - self.available():
            hint = (
                f"the group offers {' '.join(sorted(self.available())) or 'none'}; delegate the controller to it: "
                "write +NAME to cgroup.subtree_control of each group above, or set Delegate=yes in its systemd unit"
            )
            raise UnsupportedError("enable controllers", ENODEV, f"{' '.join(sorted(missing))} in {self.path}", hint)
        there = frozenset((self.read("cgroup.subtree_control") or "").split())
        new = wanted - there
        if new:
            self._check_inner(new)
            text = " ".join(f"+{name}" for name in sorted(new))
            try:
                self.write("cgroup.subtree_control", text.encode())
            except OSError as error:
                hint = _REAL_TIME if error.errno == EINVAL and "cpu" in new else ""
                raise refused("write", error, f"{text} to {self.path}/cgroup.subtree_control", hint) from None
        self._enabled = there | new


class OpenedDirectory(Directory):
    """A directory that existed before, or is shared. It is closed when its last reference is gone.

    The last object that creates or removes a group in an uncached base closes the base.
    A :class:`Directory` has no ``__del__``: an interruption in it, at the end of each start, would be lost.
    """

    __slots__ = ()

    def __del__(self) -> None:
        close_all(getattr(self, "_held", []))

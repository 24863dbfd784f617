"""The control groups of a container: made, joined, limited and removed, on version 1, version 2 and both at once.

:mod:`containerkit.cgroup` does the same for descriptions, but its modules load attrs. Here the files to write come
directly from ``linux.resources`` (:mod:`.limits`), and a group consists only of its paths, which are in the record.
"""

from __future__ import annotations

import os
import select
import time
from _signal import pidfd_send_signal  # type: ignore[import-not-found] # signal itself loads enum
from errno import EBUSY, ENOENT

from containerkit.oci import files
from containerkit.oci.errors import RuntimeFailure, refused_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Groups", "Hierarchy", "hierarchies", "is_busy", "kill_all", "processes", "remove", "steps", "thaw"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_SIGKILL = 9
_ROUNDS = 64
_AT_ONCE = 256
"""The maximum number of open pidfds, because a process may have only 1024 descriptors."""


class Hierarchy:
    """A mounted hierarchy.

    Attributes:
        version: 1 or 2.
        mountpoint: where it is mounted.
        names: its controllers, or ``name=...`` of one without.
        own: this process's group in it, as /proc/self/cgroup shows it.
        options: those of the hierarchy, which all of its mounts have.
    """

    __slots__ = ("mountpoint", "names", "options", "own", "root", "version")

    def __init__(
        self, version: int, fields: list[str], names: tuple[str, ...], own: str, options: frozenset[str]
    ) -> None:
        self.version = version
        self.root, self.mountpoint = map(_unescape, fields[3:5])
        self.names = names
        self.own = own
        self.options = options

    def place(self, group: str) -> str:
        """Return the directory of a group, given its path in the hierarchy."""
        if self.root != "/" and (group + "/").startswith(self.root.rstrip("/") + "/"):
            group = group[len(self.root.rstrip("/")) :]
        return self.mountpoint + group.rstrip("/")

    def lets_make(self, group: str) -> bool:
        """Return whether this process may make a group: whether it owns the nearest existing parent directory.

        Args:
            group: the path of the group in the hierarchy.
        """
        place = self.place(group)
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        return os.access(place, os.W_OK)


def hierarchies() -> list[Hierarchy]:
    """Return the mounted hierarchies, version 2 last. Source: cgroups(7), proc_pid_mountinfo(5)."""
    own: dict[str, str] = {}
    for line in _lines("/proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        own[names] = path
    found: dict[str, Hierarchy] = {}
    for line in _lines("/proc/self/mountinfo"):
        fields = line.split(" ")
        dash = fields.index("-")
        kind, options = fields[dash + 1], frozenset(fields[dash + 3].split(","))
        if kind == "cgroup2" and "" in own:
            found.setdefault("", Hierarchy(2, fields, (), own[""], options))
        elif kind == "cgroup":
            for names, path in own.items():
                if names and options.issuperset(names.split(",")):
                    found.setdefault(names, Hierarchy(1, fields, tuple(names.split(",")), path, options))
    return sorted(found.values(), key=lambda each: each.version)


def _lines(path: str) -> list[str]:
    return os.fsdecode(files.read(path)).splitlines()


def _unescape(text: str) -> str:
    for code, letter in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, letter)
    return text


class Groups:
    """The groups of one container, one in each hierarchy.

    Attributes:
        path: as ``cgroupsPath`` gives it.
        places: the directory in each hierarchy.
        made: whether they belong to this container. Only then may processes in them be killed.
    """

    __slots__ = ("found", "made", "path", "places")

    def __init__(self, path: str, found: Iterable[Hierarchy]) -> None:
        self.path = path
        self.made = False
        self.found = list(found)
        self.places = [each.place(path) for each in self.found]

    @classmethod
    def of(cls, places: Iterable[str], found: Iterable[Hierarchy]) -> Groups:
        """Return the groups that were made earlier, by their directories."""
        groups = cls("", ())
        by_mountpoint = sorted(found, key=lambda each: -len(each.mountpoint))
        for place in places:
            for hierarchy in by_mountpoint:
                if place.startswith(hierarchy.mountpoint + "/"):
                    groups.found.append(hierarchy)
                    groups.places.append(place)
                    break
        return groups

    def make(self, *, in_use: bool = False) -> None:
        """Make the directories and their parents.

        Args:
            in_use: whether they may already contain processes: the container's own, in a scope of systemd.

        Raises:
            RuntimeFailure: the kernel refused one, or one is in use.
        """
        for hierarchy, place in zip(self.found, self.places, strict=True):
            if hierarchy.version == 2:
                self._enable_above(hierarchy, place)
            try:
                os.makedirs(place, 0o755, exist_ok=True)
            except OSError as error:
                raise refused_file("make the control group", place, error, _PERMISSION) from None
            if "cpuset" in hierarchy.names:
                self._inherit_cpuset(hierarchy, place)
        if not in_use:
            self.check_unused()
        self.made = True

    def check_unused(self) -> None:
        """Check that no other processes are in the groups. They would be killed with the container.

        Raises:
            RuntimeFailure: there are some.
        """
        for place in self.places:
            if _read(f"{place}/cgroup.procs").strip():
                raise RuntimeFailure(f"the control group {place} already has processes")

    def check_thawed(self) -> None:
        """Check that the groups are not frozen, because a process that joins them would freeze too early.

        Raises:
            RuntimeFailure: the group, or its nearest existing parent, is frozen.

        Source: freezer.state in Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst; cgroup.events in
            cgroup-v2.rst.
        """
        place, _, name = self.freezer.rpartition("/")
        while place and not os.path.isdir(place):
            place = os.path.dirname(place)
        if name == "freezer.state":
            frozen = _read(f"{place}/{name}").strip() not in ("", "THAWED")
        else:
            frozen = "frozen 1" in _read(f"{place}/cgroup.events").splitlines()
        if frozen:
            raise RuntimeFailure(f"the control group {place} is frozen: thaw it before a container starts in it")

    def add(self, pid: int) -> None:
        """Move a process into all of them. Source: cgroup.procs in cgroups(7)."""
        for place in self.places:
            write(f"{place}/cgroup.procs", str(pid))

    def open_doors(self) -> list[int]:
        """Return descriptors of the files through which a single thread joins by writing ``0``, without a global lock.

        A process that moves itself, thread by thread, affects no other process. Moving a whole process from outside
        makes the kernel wait for every processor, which takes some 10 ms. Version 2 supports only the latter.

        Source: cgroup_procs_write_start() in kernel/cgroup/cgroup.c.
        """
        return open_doors(self.places)

    def directory(self, controller: str) -> str:
        """Return the directory in which a controller's files are, empty if no hierarchy serves it."""
        old = "blkio" if controller == "io" else controller
        for hierarchy, place in zip(self.found, self.places, strict=True):
            if old in hierarchy.names:
                return place
        return self.unified

    @property
    def unified(self) -> str:
        """The directory of version 2, empty if it is not mounted."""
        if self.found and self.found[-1].version == 2:
            return self.places[-1]
        return ""

    def version(self, controller: str) -> int:
        """Return which version serves a controller, 0 for neither."""
        old = "blkio" if controller == "io" else controller
        if any(old in hierarchy.names for hierarchy in self.found):
            return 1
        if controller in ("devices", "freezer"):
            return 2 if self.unified else 0
        return 2 if self.unified and controller in _read(f"{self.unified}/cgroup.controllers").split() else 0

    @property
    def freezer(self) -> str:
        """The file that freezes the group, empty if there is none."""
        version = self.version("freezer")
        if version == 1:
            return self.directory("freezer") + "/freezer.state"
        return self.unified + "/cgroup.freeze" if version == 2 else ""

    @staticmethod
    def _enable_above(hierarchy: Hierarchy, place: str) -> None:
        """Enable every available controller in each group above. Source: cgroup.subtree_control in cgroups(7).

        Groups with processes are left out: the kernel refuses controllers such as memory there, and threaded
        controllers would make it the root of a threaded subtree, whose groups can't contain processes.
        """
        for above, below in steps(hierarchy.mountpoint, place):
            offered = set() if is_busy(above) else set(_read(f"{above}/cgroup.controllers").split())
            for name in sorted(offered - set(_read(f"{above}/cgroup.subtree_control").split())):
                try:
                    write(f"{above}/cgroup.subtree_control", f"+{name}")
                except RuntimeFailure:
                    continue  # a limit that needs it reports that later
            try:
                os.makedirs(below, 0o755, exist_ok=True)
            except OSError as error:
                raise refused_file("make the control group", below, error, _PERMISSION) from None

    @staticmethod
    def _inherit_cpuset(hierarchy: Hierarchy, place: str) -> None:
        """Copy the parent's lists to a version 1 cpuset. Without lists it can't contain processes."""
        for above, below in steps(hierarchy.mountpoint, place):
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not _read(f"{below}/{name}").strip():
                    write(f"{below}/{name}", _read(f"{above}/{name}").strip())


def is_busy(group: str) -> bool:
    """Return whether a version 2 group can't enable controllers for its children because it contains processes.

    The root may contain processes. Only the root has no type.
    """
    return os.path.exists(f"{group}/cgroup.type") and bool(_read(f"{group}/cgroup.procs").strip())


def steps(top: str, place: str) -> Iterator[tuple[str, str]]:
    """Yield each directory from the top down, with the next one on the path."""
    for part in place[len(top) :].strip("/").split("/"):
        below = f"{top}/{part}"
        yield top, below
        top = below


_PERMISSION = "run as root or in a delegated subtree, or pass --cgroup-manager disabled"


def open_doors(places: Iterable[str]) -> list[int]:
    """Return descriptors of the files through which a thread joins groups; see :meth:`Groups.open_doors`.

    Raises:
        RuntimeFailure: one of them can't be opened.
    """
    opened: list[int] = []
    for place in places:
        first = os.path.exists(f"{place}/tasks")
        path = f"{place}/tasks" if first else f"{place}/cgroup.procs"
        try:
            opened.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        except OSError as error:
            for fd in opened:
                os.close(fd)
            raise refused_file("open", path, error) from None
    return opened


def write(path: str, value: str) -> None:
    """Write a control file in one call.

    Raises:
        RuntimeFailure: the kernel refused it, or there is no such file.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refused_file("open", path, error) from None
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise refused_file(f"write {value!r} to", path, error) from None
    finally:
        os.close(fd)


def _read(path: str, directory: int | None = None) -> str:
    """Return a control file's text, or an empty string if it can't be read."""
    try:
        return files.read(path, directory).decode("ascii", "replace")
    except OSError:
        return ""


read_file = _read


def _walk(place: str) -> Iterator[tuple[int, str]]:
    """Yield each group and all groups below it, the innermost first.

    A container may nest its groups so deeply that their paths are too long. So each is identified by a descriptor of
    its parent and its name, which are valid until the next one is requested.
    """
    above, _, top = place.rpartition("/")
    try:
        at = os.open(above, _DIRECTORY)
    except OSError:
        return
    waiting, names = [[top]], [""]
    try:
        while waiting:
            if waiting[-1]:
                names.append(waiting[-1].pop())
                try:
                    below = os.open(names[-1], _DIRECTORY, dir_fd=at)
                except OSError:  # removed in the meantime
                    names.pop()
                    continue
                waiting.append(_children(below))
            else:
                waiting.pop()
                if not waiting:
                    return
                below = os.open("..", _DIRECTORY, dir_fd=at)
            os.close(at)
            at = below
            if len(names) > len(waiting):
                yield at, names.pop()
    finally:
        os.close(at)


def _children(fd: int) -> list[str]:
    try:
        with os.scandir(fd) as inner:
            return [each.name for each in inner if each.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def processes(places: Iterable[str]) -> list[int]:
    """Return the pids of all processes in the groups and below, in the order of the kernel."""
    found: dict[int, None] = {}
    for place in places:
        for above, name in _walk(place):
            for word in _read(f"{name}/cgroup.procs", above).split():
                if word.isdigit() and word != "0":
                    found[int(word)] = None
    return list(found)


def thaw(freezer: str) -> None:
    """Thaw a frozen group, because a frozen process does not die. A missing group is not an error."""
    if not freezer:
        return
    try:
        write(freezer, "THAWED" if freezer.endswith(".state") else "0")
    except RuntimeFailure:
        return


def kill_all(places: Iterable[str], signal: int) -> None:
    """Send a signal to every process of the groups; SIGKILL until none is left to fork.

    Source: cgroup.kill in Documentation/admin-guide/cgroup-v2.rst.
    """
    places = list(places)
    for place in places:
        if signal == _SIGKILL and os.access(f"{place}/cgroup.kill", os.W_OK):
            write(f"{place}/cgroup.kill", "1")
    for _ in range(_ROUNDS if signal == _SIGKILL else 1):
        if not _signal_members(places, signal):
            return


def _signal_members(places: list[str], signal: int) -> bool:
    """Signal each process once; return whether any was alive."""
    any_alive = False
    pids = processes(places)
    for first in range(0, len(pids), _AT_ONCE):
        any_alive |= _signal_some(places, pids[first : first + _AT_ONCE], signal)
    return any_alive


def _signal_some(places: list[str], pids: list[int], signal: int) -> bool:
    """Signal the processes that are still in the groups after a pidfd of them was opened.

    A pid may have been reused since it was read. If it is still in the group after the pidfd was opened, the pidfd is
    of that process, or of a process that is gone, and then the signal has no effect.
    """
    held: dict[int, int] = {}
    any_alive = False
    try:
        for pid in pids:
            try:
                held[pid] = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
        for pid in processes(places):
            if pid in held and not _has_ended(held[pid]):
                any_alive = True
                try:
                    pidfd_send_signal(held[pid], signal)
                except ProcessLookupError:
                    continue
    finally:
        for fd in held.values():
            os.close(fd)
    return any_alive


def _has_ended(pidfd: int) -> bool:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return bool(poller.poll(0))


def remove(places: Iterable[str], patience_s: float = 10.0) -> list[str]:
    """Remove the groups and all groups below them. Wait for their last processes to end.

    Args:
        places: the directories.
        patience_s: how long to wait for all of them together, in seconds.

    Returns:
        The directories that could not be removed completely.
    """
    end = time.monotonic() + patience_s
    left: dict[str, None] = {}
    for place in places:
        for above, name in _walk(place):
            if not _remove_one(above, name, end):
                left[place] = None
    return list(left)


def _remove_one(above: int, name: str, end: float) -> bool:
    pause_s = 0.001
    while True:
        try:
            os.rmdir(name, dir_fd=above)
        except OSError as error:
            if error.errno == ENOENT:
                return True
            if error.errno != EBUSY or time.monotonic() > end:
                return False
        else:
            return True
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)

"""The control groups of a container: made, joined, limited and removed, on version 1, version 2 and both at once.

:mod:`containerkit.cgroup` does the same for descriptions; its modules load attrs. Here the files to write come straight
from ``linux.resources`` (:mod:`.limits`), and a group is nothing but its paths, which the record keeps.
"""

from __future__ import annotations

import os
from errno import EBUSY, ENOENT

from containerkit.oci.errors import RuntimeFailure, refused_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Groups", "Hierarchy", "hierarchies", "kill_all", "processes", "remove", "thaw"]


class Hierarchy:
    """A mounted hierarchy.

    Attributes:
        version: 1 or 2.
        mountpoint: where it is mounted.
        names: its controllers, or ``name=...`` of one without.
        own: this process's group in it, as /proc/self/cgroup shows it.
    """

    __slots__ = ("mountpoint", "names", "own", "root", "version")

    def __init__(self, version: int, mountpoint: str, root: str, names: tuple[str, ...], own: str) -> None:
        self.version = version
        self.mountpoint = mountpoint
        self.root = root
        self.names = names
        self.own = own

    def place(self, group: str) -> str:
        """Return the folder of a group, given its path in the hierarchy."""
        if self.root != "/" and (group + "/").startswith(self.root.rstrip("/") + "/"):
            group = group[len(self.root.rstrip("/")) :]
        return self.mountpoint + group.rstrip("/")


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
        kind = fields[dash + 1]
        if kind == "cgroup2" and "" in own:
            found.setdefault("", Hierarchy(2, _unescape(fields[4]), _unescape(fields[3]), (), own[""]))
        elif kind == "cgroup":
            options = set(fields[dash + 3].split(","))
            for names, path in own.items():
                if names and options.issuperset(names.split(",")):
                    parts = tuple(names.split(","))
                    found.setdefault(names, Hierarchy(1, _unescape(fields[4]), _unescape(fields[3]), parts, path))
    return sorted(found.values(), key=lambda each: each.version)


def _lines(path: str) -> list[str]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read().splitlines()


def _unescape(text: str) -> str:
    for code, letter in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, letter)
    return text


class Groups:
    """The groups of one container, one in each hierarchy.

    Attributes:
        path: as ``cgroupsPath`` gives it.
        places: the folder in each hierarchy.
        made: whether they are this container's: only then may what is in them be killed.
    """

    __slots__ = ("found", "made", "path", "places")

    def __init__(self, path: str, found: Iterable[Hierarchy]) -> None:
        self.path = path
        self.made = False
        self.found = list(found)
        self.places = [each.place(path) for each in self.found]

    @classmethod
    def of(cls, places: Iterable[str], found: Iterable[Hierarchy]) -> Groups:
        """Return the groups that were made earlier, by their folders."""
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
        """Make the folders, those above too.

        Args:
            in_use: there may be processes in them already: the container's own, in a scope of systemd's.

        Raises:
            RuntimeFailure: the kernel refused one, or one is in use already.
        """
        for hierarchy, place in zip(self.found, self.places, strict=True):
            if hierarchy.version == 2:
                self._hand_down(hierarchy, place)
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
        """See that no other's processes are in the groups: they would be killed with the container.

        Raises:
            RuntimeFailure: there are some.
        """
        for place in self.places:
            if _read(f"{place}/cgroup.procs").strip():
                raise RuntimeFailure(f"the control group {place} has processes already")

    def add(self, pid: int) -> None:
        """Move a process into all of them. Source: cgroup.procs in cgroups(7)."""
        for place in self.places:
            write(f"{place}/cgroup.procs", str(pid))

    def open_doors(self) -> list[int]:
        """Return descriptors of the files through which a single thread joins by writing ``0``, without a global lock.

        A process that moves itself, thread by thread, changes no other; moving a whole process from outside makes the
        kernel wait for every processor, which takes some 10 ms. Version 2 has only that way.

        Source: cgroup_procs_write_start() in kernel/cgroup/cgroup.c.
        """
        return open_doors(self.places)

    def folder(self, controller: str) -> str:
        """Return the folder in which a controller's files are, empty if no hierarchy serves it."""
        old = "blkio" if controller == "io" else controller
        for hierarchy, place in zip(self.found, self.places, strict=True):
            if old in hierarchy.names:
                return place
        return self.unified

    @property
    def unified(self) -> str:
        """The folder of version 2, empty if it is not mounted."""
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
            return self.folder("freezer") + "/freezer.state"
        return self.unified + "/cgroup.freeze" if version == 2 else ""

    @staticmethod
    def _hand_down(hierarchy: Hierarchy, place: str) -> None:
        """Enable every controller that can be in each group above. Source: cgroup.subtree_control in cgroups(7)."""
        above = hierarchy.mountpoint
        for part in place[len(above) :].strip("/").split("/"):
            offered = set(_read(f"{above}/cgroup.controllers").split())
            for name in sorted(offered - set(_read(f"{above}/cgroup.subtree_control").split())):
                try:
                    write(f"{above}/cgroup.subtree_control", f"+{name}")
                except RuntimeFailure:
                    continue  # a limit that needs it says so later
            above = f"{above}/{part}"
            try:
                os.mkdir(above, 0o755)
            except FileExistsError:
                continue
            except OSError as error:
                raise refused_file("make the control group", above, error, _PERMISSION) from None

    @staticmethod
    def _inherit_cpuset(hierarchy: Hierarchy, place: str) -> None:
        """A version 1 cpuset without lists takes no process."""
        above = hierarchy.mountpoint
        for part in place[len(above) :].strip("/").split("/"):
            below = f"{above}/{part}"
            for name in ("cpuset.cpus", "cpuset.mems"):
                if not _read(f"{below}/{name}").strip():
                    write(f"{below}/{name}", _read(f"{above}/{name}").strip())
            above = below


_PERMISSION = "run as root or in a delegated subtree, or with --cgroup-manager disabled"


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


def _read(path: str) -> str:
    """Return a control file's text, empty where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        text = chunk = os.read(fd, 65536)
        while chunk:
            chunk = os.read(fd, 65536)
            text += chunk
    except OSError:
        return ""
    finally:
        os.close(fd)
    return text.decode("ascii", "replace")


read_file = _read


def _below(place: str) -> list[str]:
    """Return the folder and all groups below it, the innermost first."""
    found: list[str] = []
    try:
        with os.scandir(place) as inner:
            names = [each.name for each in inner if each.is_dir(follow_symlinks=False)]
    except OSError:
        return found
    for name in names:
        found += _below(f"{place}/{name}")
    return [*found, place]


def processes(places: Iterable[str]) -> list[int]:
    """Return the pids of all processes in the groups and below, in the order of the kernel."""
    found: dict[int, None] = {}
    for place in places:
        for folder in _below(place):
            for word in _read(f"{folder}/cgroup.procs").split():
                if word.isdigit() and word != "0":
                    found[int(word)] = None
    return list(found)


def thaw(freezer: str) -> None:
    """Let a frozen group go on: a process that is frozen does not die. One that is gone is no error."""
    if not freezer:
        return
    try:
        write(freezer, "THAWED" if freezer.endswith(".state") else "0")
    except RuntimeFailure:
        return


def kill_all(places: Iterable[str], signal: int) -> None:
    """Send a signal to every process of the groups; SIGKILL until none is left to fork."""
    places = list(places)
    for place in places:
        if signal == 9 and os.access(f"{place}/cgroup.kill", os.W_OK):
            write(f"{place}/cgroup.kill", "1")
    for _ in range(64 if signal == 9 else 1):
        pids = [pid for pid in processes(places) if _is_alive(pid)]
        for pid in pids:
            try:
                os.kill(pid, signal)
            except ProcessLookupError:
                continue
        if not pids:
            return


def _is_alive(pid: int) -> bool:
    from containerkit.oci.store import start_time

    return start_time(pid) != 0


def remove(places: Iterable[str], patience_s: float = 10.0) -> list[str]:
    """Remove the groups with all below them, waiting for their last processes to go.

    Args:
        places: the folders.
        patience_s: how long to wait, in seconds.

    Returns:
        What could not be removed.
    """
    left: list[str] = []
    for place in places:
        left += [folder for folder in _below(place) if not _remove_one(folder, patience_s)]
    return left


def _remove_one(folder: str, patience_s: float) -> bool:
    import time

    end = time.monotonic() + patience_s
    pause_s = 0.001
    while True:
        try:
            os.rmdir(folder)
        except OSError as error:
            if error.errno == ENOENT:
                return True
            if error.errno != EBUSY or time.monotonic() > end:
                return False
        else:
            return True
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 0.05)

"""Find the mounted cgroup hierarchies, and the group of a process in each.

Nothing is assumed about paths: everything is read from /proc/PID/mountinfo, /proc/PID/cgroup and /proc/cgroups. The
parsers are pure functions over the text of those files.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "Hierarchy",
    "hierarchies",
    "offered_controllers",
    "parse_membership",
    "parse_offered",
    "read_hierarchies",
]

_OPTIONS: Final = frozenset(
    {"rw", "ro", "noprefix", "clone_children", "xattr", "cpuset_v2_mode", "favordynmods", "nofavordynmods"}
)
"""Mount options of a version 1 hierarchy that are not controllers."""


class Hierarchy(NamedTuple):
    """One mounted hierarchy.

    Attributes:
        version: 1 or 2.
        controllers: the controllers of a version 1 hierarchy. Empty for version 2, where each directory has its own
            (``cgroup.controllers``).
        name: the name of a named version 1 hierarchy, such as ``"systemd"``, or empty.
        mountpoint: where it is mounted.
        root: the group at the mount point, as seen from this cgroup namespace.
        own: the group of the process, as seen from this cgroup namespace.
        options: the options of its superblock, such as ``memory_recursiveprot``.
    """

    version: int
    controllers: frozenset[str]
    name: str
    mountpoint: str
    root: str
    own: str
    options: frozenset[str] = frozenset()

    def locate(self, group: str) -> str | None:
        """Return the filesystem path of a group that is named as in /proc/PID/cgroup, or None if it is not visible.

        A mount may show only a part of the hierarchy, as in a container. A group may be outside this cgroup namespace;
        its name then begins with ``/..``.
        """
        root, wanted = _parts(self.root), _parts(group)
        if wanted[: len(root)] != root or ".." in wanted[len(root) :]:
            return None
        return "/".join([self.mountpoint.rstrip("/"), *wanted[len(root) :]]) or "/"

    def __str__(self) -> str:
        kind = "cgroup2" if self.version == 2 else ",".join(sorted(self.controllers)) or f"name={self.name}"
        return f"{kind} on {self.mountpoint}"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _unescape(field: str) -> str:
    """Decode the octal escapes of mountinfo (space, tab, newline, backslash)."""
    if "\\" not in field:
        return field
    head, *rest = field.split("\\")
    pieces = [head]
    for piece in rest:
        digits = piece[:3]
        if len(digits) == 3 and all(digit in "01234567" for digit in digits):
            pieces.append(chr(int(digits, 8) & 0xFF) + piece[3:])
        else:
            pieces.append("\\" + piece)
    return "".join(pieces)


def parse_membership(text: str) -> dict[frozenset[str], str]:
    """Return the group of a process in each hierarchy, from the text of /proc/PID/cgroup.

    The key is the set of controllers of a version 1 hierarchy, ``{"name=..."}`` for a named one, and the empty set for
    version 2. A malformed line is left out.

    Source: cgroups(7), "/proc/pid/cgroup".
    """
    found: dict[frozenset[str], str] = {}
    for line in text.splitlines():
        number, colon, rest = line.partition(":")
        names, second, path = rest.partition(":")
        if not colon or not second or not number.isdigit() or not path.startswith("/"):
            continue
        found[frozenset(names.split(",")) if names else frozenset()] = path.removesuffix(" (deleted)")
    return found


def parse_offered(text: str) -> dict[str, int]:
    """Return the controllers that the kernel offers, with the number of each one's hierarchy, 0 for none.

    Controllers that were disabled on the kernel's command line are left out.

    Source: cgroups(7), "/proc/cgroups".
    """
    found: dict[str, int] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 4 and words[1].isdigit() and words[3] == "1" and not line.startswith("#"):
            found[words[0]] = int(words[1])
    return found


def hierarchies(mountinfo: str, membership: str) -> tuple[Hierarchy, ...]:
    """Return the mounted hierarchies, each once.

    If a hierarchy is mounted several times, the first mount that shows the process's own group is used.

    Args:
        mountinfo: the text of /proc/PID/mountinfo.
        membership: the text of /proc/PID/cgroup.

    Source: proc_pid_mountinfo(5), cgroups(7).
    """
    own = parse_membership(membership)
    found: dict[frozenset[str], Hierarchy] = {}
    for line in mountinfo.splitlines():
        if " - cgroup" not in line:
            continue
        hierarchy = _from_line(line, own)
        if hierarchy is None:
            continue
        key = frozenset({f"name={hierarchy.name}"}) if hierarchy.name else hierarchy.controllers
        known = found.get(key)
        if known is None or (known.locate(known.own) is None and hierarchy.locate(hierarchy.own) is not None):
            found[key] = hierarchy
    return tuple(found.values())


def _from_line(line: str, own: dict[frozenset[str], str]) -> Hierarchy | None:
    before, _, after = line.partition(" - ")
    fields, behind = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(behind) < 3:
        return None
    root, mountpoint = _unescape(fields[3]), _unescape(fields[4])
    words = frozenset(behind[2].split(","))
    if behind[0] == "cgroup2":
        group = own.get(frozenset())
        return None if group is None else Hierarchy(2, frozenset(), "", mountpoint, root, group, words - {"rw", "ro"})
    if behind[0] != "cgroup":
        return None
    name = next((word[5:] for word in words if word.startswith("name=")), "")
    controllers = frozenset(word for word in words - _OPTIONS if "=" not in word)
    for names, group in own.items():
        if (name and f"name={name}" in names) or (controllers and names >= controllers):
            real = frozenset(word for word in names if not word.startswith("name="))
            return Hierarchy(1, real, name if not real else "", mountpoint, root, group, words - {"rw", "ro"})
    return None


def _text(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        chunks = []
        while chunk := file.read(65536):
            chunks.append(chunk)
    return b"".join(chunks).decode("utf-8", "surrogateescape")


def read_hierarchies(pid: int | str = "self") -> tuple[Hierarchy, ...]:
    """Return the hierarchies that this process sees, with the groups of a process as ``own``.

    Args:
        pid: the process. Default: this one.

    Raises:
        OSError: the process does not exist, or /proc is not mounted.
    """
    return hierarchies(_text("/proc/self/mountinfo"), _text(f"/proc/{pid}/cgroup"))


def offered_controllers() -> dict[str, int]:
    """Return the content of /proc/cgroups: the controllers that the kernel offers, with the numbers of hierarchies."""
    try:
        return parse_offered(_text("/proc/cgroups"))
    except OSError:  # the kernel may be built without version 1
        return {}

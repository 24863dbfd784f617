"""Which namespaces a container shall have."""

from __future__ import annotations

import os

import attrs

from containerkit.errors import SpecError
from containerkit.namespace.kind import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from containerkit.namespace.handle import Namespace

    class Pool(Protocol):
        """Gives namespaces away."""

        def take(self) -> Namespace: ...

    Choice = str | int | os.PathLike[str] | Namespace | Pool

__all__ = ["Namespaces", "TimeOffsets"]

_NAMES = tuple((kind, kind.value) for kind in Kind)  # an enum's value is slow to ask for, and each start asks
_CHOICES = "'new', 'host', or one to join: a pid, a path (with a slash in it) or a Namespace"


def _plain(value: Choice) -> Choice:
    """Turn a path object into its string, so that descriptions compare and pickle by value."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _choice(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value in ("new", "host"):
        return
    from containerkit.namespace.handle import Namespace  # the handles are loaded by those who join

    kind = Kind(attribute.name)
    if kind is Kind.NETWORK and hasattr(value, "take"):
        return
    if isinstance(value, Namespace):
        if value.kind is not kind:
            raise SpecError(f"{kind.value} namespace: can't join {value!r}, it is of another kind")
        return
    if isinstance(value, str):
        valid = "/" in value and "\0" not in value
    else:
        valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not valid:
        raise SpecError(f"{kind.value} namespace: {value!r} is not {_CHOICES}")


@attrs.frozen(kw_only=True)
class Namespaces:
    """For each of the eight kinds: a new namespace, the caller's own, or one to join.

    Each attribute is ``"new"`` (the default), ``"host"`` (inherited: the container shares the caller's), or the
    namespace to join, given as the pid of a process in it, as a path (``/proc/PID/ns/net``, or where one was kept by
    :meth:`Namespace.persist`) or as an open :class:`Namespace`. What is shared is not isolated.

    Attributes:
        mount: the mounts. A container with a root filesystem of its own always has a new one, or joins one.
        pid: the process ids. ``"host"`` lets the container see, and as the same user signal, all processes.
        network: the interfaces, addresses, ports and abstract sockets. A new one has a loopback interface alone. A
            :class:`containerkit.NetworkPool` gives each start one of its own.
        ipc: System V IPC and POSIX message queues.
        uts: the host name and domain name.
        user: the user and group ids, and what capabilities are good for. ``"host"`` makes root inside root outside.
        cgroup: what the container's own cgroup is called; a new one shows it as ``/``.
        time: the offsets of the clocks that count since boot.

    Raises:
        SpecError: a value that is none of these, or a handle on another kind.

    Source: namespaces(7).
    """

    mount: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    pid: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    network: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    ipc: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    uts: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    user: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    cgroup: Choice = attrs.field(default="new", converter=_plain, validator=_choice)
    time: Choice = attrs.field(default="new", converter=_plain, validator=_choice)

    def __getitem__(self, kind: Kind | str) -> Choice:
        choice: Choice = getattr(self, Kind.of(kind).value)
        return choice

    def new(self) -> tuple[Kind, ...]:
        """Return the kinds that the container gets a new one of."""
        return tuple(kind for kind in Kind if self[kind] == "new")

    def inherited(self) -> tuple[Kind, ...]:
        """Return the kinds that the container shares with its caller."""
        return tuple(kind for kind in Kind if self[kind] == "host")

    def joined(self) -> tuple[Kind, ...]:
        """Return the kinds that the container joins, in the order in which they have to be joined."""
        return tuple(kind for kind, name in _NAMES if getattr(self, name) not in ("new", "host"))

    def flags(self) -> int:
        """Return the ``CLONE_NEW*`` of the new ones. Source: clone3(2)."""
        return sum(kind.flag for kind in self.new())

    def open(self) -> dict[Kind, Namespace]:
        """Open those that are to be joined, in the order of :meth:`joined`.

        Returns:
            A handle for each, the caller's to close; none when there is nothing to join.

        Raises:
            SpecError: a path is no namespace or one of another kind.
            StateError: a handle was closed.
            SetupError: a process or path is not there, or not ours to look at.

        Source: setns(2).
        """
        opened: dict[Kind, Namespace] = {}
        try:
            for kind in self.joined():
                opened[kind] = _open(self[kind], kind)
        except BaseException:
            for namespace in opened.values():
                namespace.close()
            raise
        return opened


def _open(choice: Choice, kind: Kind) -> Namespace:
    from containerkit.namespace.handle import Namespace

    if hasattr(choice, "take"):
        return choice.take()
    if isinstance(choice, Namespace):
        return choice.duplicate()
    if isinstance(choice, int):
        return Namespace.of(choice, kind)
    return Namespace.from_path(choice, kind)


_LARGEST_OFFSET_S = (2**63 - 1) // 10**9 // 2  # the kernel refuses clocks beyond half of its range


def _offset(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_OFFSET_S
    ):  # not a number is not below it either
        raise SpecError(
            f"time offsets: {attribute.name} is a number of seconds up to {_LARGEST_OFFSET_S}, not {value!r}"
        )


@attrs.frozen(kw_only=True)
class TimeOffsets:
    """How far the clocks of a new time namespace stand from the caller's.

    Attributes:
        monotonic_s: seconds added to CLOCK_MONOTONIC and its kin; default 0. May be negative or broken.
        boottime_s: seconds added to CLOCK_BOOTTIME, and so to the uptime; default 0.

    A negative offset that would set a clock back to before its zero is refused by the kernel at the start.

    Raises:
        SpecError: not a finite number of seconds.

    Source: time_namespaces(7).
    """

    monotonic_s: float = attrs.field(default=0, validator=_offset)
    boottime_s: float = attrs.field(default=0, validator=_offset)

    def __bool__(self) -> bool:
        """Tell whether there is anything to set."""
        return bool(self.monotonic_s or self.boottime_s)

    def encode(self) -> bytes:
        """Return the text for ``/proc/PID/timens_offsets``. Source: time_namespaces(7)."""
        lines = []
        for clock, offset_s in (("monotonic", self.monotonic_s), ("boottime", self.boottime_s)):
            seconds, nanoseconds = _split(offset_s)
            lines.append(f"{clock} {seconds} {nanoseconds}\n")
        return "".join(lines).encode()


def _split(offset_s: float) -> tuple[int, int]:
    """Return whole seconds, rounded down, and the nanoseconds from there: the kernel takes no negative ones."""
    if isinstance(offset_s, int):
        return offset_s, 0
    whole = int(offset_s // 1)
    nanoseconds = round((offset_s - whole) * 1e9)
    return (whole + 1, 0) if nanoseconds == 10**9 else (whole, nanoseconds)

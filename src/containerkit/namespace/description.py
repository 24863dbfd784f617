"""The description of the namespaces of a container."""

from __future__ import annotations

import os

from containerkit.errors import SpecError
from containerkit.namespace.kind import Kind
from containerkit.values import field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    import attrs

    from containerkit.namespace.handle import Namespace
    from containerkit.namespace.kind import KindName

    class Pool(Protocol):
        """A source of network namespaces."""

        def take(self) -> Namespace: ...

    Choice = str | int | os.PathLike[str] | Namespace
    NetworkChoice = Choice | Pool

__all__ = ["Namespaces", "TimeOffsets"]

_NAMES = tuple((kind, kind.value) for kind in Kind)  # reading an enum's value is slow, and each start does it
_CHOICES = "'new', 'host', or one to join: a pid, a path (with a slash in it) or a Namespace"


def _plain(value: str | int | os.PathLike[str] | Namespace) -> Choice:
    """Convert a path object to a string, so that descriptions are compared and pickled by value."""
    if not isinstance(value, os.PathLike):
        return value
    try:
        return os.fspath(value)
    except TypeError as error:
        raise SpecError(f"namespace: {error}") from None


# The types are written out, because mypy treats the name of a union in a converter as Any.
def _plain_network(value: str | int | os.PathLike[str] | Namespace | Pool) -> NetworkChoice:
    """Convert a path object for the network, which may also be a pool."""
    return _plain(value) if isinstance(value, os.PathLike) else value


def _choice(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if value in ("new", "host"):
        return
    from containerkit.namespace.handle import Namespace  # imported late: only joining a namespace needs the handles

    kind = Kind(attribute.name)
    if kind is Kind.NETWORK and hasattr(value, "take"):
        return
    if isinstance(value, Namespace):
        if value.kind is not kind:
            raise SpecError(f"{kind.value} namespace: can't join {value!r}, because it is of another kind")
        return
    if isinstance(value, str):
        valid = "/" in value and "\0" not in value and _stands_for_bytes(value)
    else:
        valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if not valid:
        raise SpecError(f"{kind.value} namespace: {value!r} is not {_CHOICES}")


def _stands_for_bytes(path: str) -> bool:
    """Return whether all lone surrogates of a path are those of PEP 383."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


@frozen(kw_only=True)
class Namespaces:
    """For each of the eight kinds: a new namespace, the caller's own, or an existing one to join.

    Each attribute is ``"new"`` (the default), ``"host"`` (the container shares the caller's namespace), or the
    namespace to join. That is given as the pid of a process in it, as a path (``/proc/PID/ns/net``, or the path given
    to :meth:`Namespace.persist`), or as an open :class:`Namespace`. A shared namespace isolates nothing.

    Attributes:
        mount: the mounts. A container with its own root filesystem always has a new mount namespace, or joins one.
        pid: the process ids. With ``"host"`` the container sees all processes, and can signal those of the same user.
        network: the interfaces, addresses, ports and abstract sockets. A new one has only a loopback interface. A
            :class:`containerkit.NetworkPool` provides a separate one for each start.
        ipc: System V IPC and POSIX message queues.
        uts: the host name and domain name.
        user: the user and group ids, and the scope of capabilities. With ``"host"`` root inside is root outside.
        cgroup: the paths of control groups. A new one shows the container's own group as ``/``.
        time: the offsets of the clocks that count since boot.

    Raises:
        SpecError: a value is none of these, or a handle is of another kind.

    Source: namespaces(7).
    """

    mount: Choice = field(default="new", converter=_plain, validator=_choice)
    pid: Choice = field(default="new", converter=_plain, validator=_choice)
    network: NetworkChoice = field(default="new", converter=_plain_network, validator=_choice)
    ipc: Choice = field(default="new", converter=_plain, validator=_choice)
    uts: Choice = field(default="new", converter=_plain, validator=_choice)
    user: Choice = field(default="new", converter=_plain, validator=_choice)
    cgroup: Choice = field(default="new", converter=_plain, validator=_choice)
    time: Choice = field(default="new", converter=_plain, validator=_choice)

    def __getitem__(self, kind: Kind | KindName) -> NetworkChoice:
        choice: NetworkChoice = getattr(self, Kind.of(kind).value)
        return choice

    def new(self) -> tuple[Kind, ...]:
        """Return the kinds of which the container gets a new namespace."""
        return tuple(kind for kind in Kind if self[kind] == "new")

    def inherited(self) -> tuple[Kind, ...]:
        """Return the kinds of which the container shares the caller's namespace."""
        return tuple(kind for kind in Kind if self[kind] == "host")

    def joined(self) -> tuple[Kind, ...]:
        """Return the kinds of which the container joins a namespace, in the order in which they must be joined."""
        return tuple(kind for kind, name in _NAMES if getattr(self, name) not in ("new", "host"))

    def flags(self) -> int:
        """Return the ``CLONE_NEW*`` flags of the new namespaces. Source: clone3(2)."""
        return sum(kind.flag for kind in self.new())

    def open(self) -> dict[Kind, Namespace]:
        """Open the namespaces to join, in the order of :meth:`joined`.

        Returns:
            One handle for each, which the caller must close. Empty if there is nothing to join.

        Raises:
            SpecError: a path is not a namespace, or one of another kind.
            StateError: a handle is closed.
            SetupError: a process or path does not exist, or the caller may not access it.

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


def _open(choice: NetworkChoice, kind: Kind) -> Namespace:
    from containerkit.namespace.handle import Namespace

    if isinstance(choice, Namespace):
        return choice.duplicate()
    if isinstance(choice, int):
        return Namespace.of(choice, kind)
    if isinstance(choice, (str, os.PathLike)):
        return Namespace.from_path(choice, kind)
    return choice.take()


_LARGEST_OFFSET_S = (2**63 - 1) // 10**9 // 2  # the kernel refuses clocks beyond half of their range


def _offset(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= _LARGEST_OFFSET_S
    ):  # written so that NaN is refused too
        raise SpecError(
            f"time offsets: {attribute.name} must be a number of seconds up to {_LARGEST_OFFSET_S}, not {value!r}"
        )


@frozen(kw_only=True)
class TimeOffsets:
    """The offsets of the clocks of a new time namespace from the caller's clocks.

    Attributes:
        monotonic_s: seconds added to CLOCK_MONOTONIC and its variants. Default 0. May be negative or fractional.
        boottime_s: seconds added to CLOCK_BOOTTIME, and so to the uptime. Default 0.

    A negative offset that would make a clock negative is refused by the kernel when the container starts.

    Raises:
        SpecError: the value is not a finite number of seconds.

    Source: time_namespaces(7).
    """

    monotonic_s: float = field(default=0, validator=_offset)
    boottime_s: float = field(default=0, validator=_offset)

    def __bool__(self) -> bool:
        """Return whether any offset is set."""
        return bool(self.monotonic_s or self.boottime_s)

    def encode(self) -> bytes:
        """Return the text for ``/proc/PID/timens_offsets``. Source: time_namespaces(7)."""
        lines = []
        for clock, offset_s in (("monotonic", self.monotonic_s), ("boottime", self.boottime_s)):
            seconds, nanoseconds = _split(offset_s)
            lines.append(f"{clock} {seconds} {nanoseconds}\n")
        return "".join(lines).encode()


def _split(offset_s: float) -> tuple[int, int]:
    """Return whole seconds, rounded down, and the remaining nanoseconds, which the kernel requires to be positive."""
    if isinstance(offset_s, int):
        return offset_s, 0
    whole = int(offset_s // 1)
    nanoseconds = round((offset_s - whole) * 1e9)
    return (whole + 1, 0) if nanoseconds == 10**9 else (whole, nanoseconds)

"""Seccomp filters as values: which system calls a process may make, and what happens to the others.

Nothing here touches the kernel. A :class:`Seccomp` is compiled to a program by :mod:`.compiler` when it is first
needed, and installed by the operation that :meth:`Seccomp.operations` returns.
"""

from __future__ import annotations

from errno import EINVAL, EPERM, errorcode
from typing import TYPE_CHECKING, Final, Literal

import attrs

from containerkit._native.constants import MACHINE
from containerkit.errors import SpecError, UnsupportedError
from containerkit.security.seccomp.install import FLAGS, install

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from os import PathLike

    from containerkit.plan import Operation, Slot

__all__ = ["ALLOW", "KILL_PROCESS", "KILL_THREAD", "LOG", "NOTIFY", "TRAP", "Action", "Condition", "Rule", "Seccomp"]

_KINDS: Final = {
    "kill_process": 0x80000000,
    "kill_thread": 0x00000000,
    "trap": 0x00030000,
    "errno": 0x00050000,
    "user_notif": 0x7FC00000,
    "trace": 0x7FF00000,
    "log": 0x7FFC0000,
    "allow": 0x7FFF0000,
}
"""By the names of /proc/sys/kernel/seccomp/actions_avail. Source: linux/seccomp.h."""

_LARGEST_ERRNO: Final = 4095


@attrs.frozen
class Action:
    """What the kernel does with a call.

    Make one with :meth:`errno` or :meth:`trace`, or take a constant of this module: ``ALLOW``, ``LOG``, ``NOTIFY``,
    ``TRAP``, ``KILL_THREAD``, ``KILL_PROCESS``.

    Attributes:
        kind: the action, as in /proc/sys/kernel/seccomp/actions_avail.
        data: the error number of ``errno`` (0 to 4095), or the message of ``trace`` (0 to 65,535); else 0.

    Raises:
        SpecError: no such action, or data that it can't carry.
    """

    kind: str
    data: int = 0

    def __attrs_post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise SpecError(f"unknown seccomp action {self.kind!r}: one of {', '.join(_KINDS)}")
        limit = {"errno": _LARGEST_ERRNO, "trace": 0xFFFF}.get(self.kind, 0)
        if not 0 <= self.data <= limit:
            raise SpecError(f"seccomp action {self.kind} takes data from 0 to {limit}, not {self.data}")

    @classmethod
    def errno(cls, number: int = EPERM) -> Action:
        """Fail the call with an error number, ``EPERM`` unless said otherwise."""
        return cls("errno", number)

    @classmethod
    def trace(cls, message: int = 0) -> Action:
        """Hand the call to the ptrace tracer; without one it fails with ``ENOSYS``."""
        return cls("trace", message)

    def __str__(self) -> str:
        if self.kind == "errno":
            return f"fail with {errorcode.get(self.data, self.data)}"
        return f"{self.kind.replace('_', ' ')}{f' {self.data}' if self.data else ''}"

    @property
    def value(self) -> int:
        """The filter's return value. Source: seccomp(2)."""
        return _KINDS[self.kind] | self.data

    @property
    def permits(self) -> bool:
        """Whether the kernel makes the call without asking anyone."""
        return self.kind in {"allow", "log"}


ALLOW: Final = Action("allow")
LOG: Final = Action("log")
NOTIFY: Final = Action("user_notif")
TRAP: Final = Action("trap")
KILL_THREAD: Final = Action("kill_thread")
KILL_PROCESS: Final = Action("kill_process")

Comparison = Literal["eq", "ne", "lt", "le", "gt", "ge", "masked_eq"]
_COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge", "masked_eq")
_LARGEST: Final = 2**64 - 1


@attrs.frozen(kw_only=True)
class Condition:
    """A comparison of one argument, unsigned, in all of its 64 bits (32 on a 32-bit architecture).

    A filter sees the register, not what a pointer in it points to.

    Attributes:
        argument: its index, 0 to 5.
        op: ``eq ne lt le gt ge``, or ``masked_eq``: the bits of ``mask`` have the value ``value``.
        value: 0 to 2**64 - 1.
        mask: for ``masked_eq``.

    Raises:
        SpecError: an index, operator or value out of range.
    """

    argument: int
    op: Comparison = "eq"
    value: int = 0
    mask: int = _LARGEST

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.argument <= 5:
            raise SpecError(f"a system call has arguments 0 to 5, not {self.argument}")
        if self.op not in _COMPARISONS:
            raise SpecError(f"unknown comparison {self.op!r}: one of {', '.join(_COMPARISONS)}")
        if not 0 <= self.value <= _LARGEST or not 0 <= self.mask <= _LARGEST:
            raise SpecError("an argument is compared with a number from 0 to 2**64 - 1")

    def __str__(self) -> str:
        if self.op == "masked_eq":
            return f"argument {self.argument} & {self.mask:#x} == {self.value:#x}"
        return f"argument {self.argument} {self.op} {self.value:#x}"


def _names(names: Iterable[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise SpecError(f"a rule takes a tuple of names: ({names!r},)")
    return tuple(names)


def _conditions(conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple(conditions)


@attrs.frozen(kw_only=True, cache_hash=True)
class Rule:
    """What happens to some system calls.

    Attributes:
        names: the calls, as the kernel names them.
        action: what happens.
        when: conditions that must all hold; none means always.

    Raises:
        SpecError: no architecture has a call of that name.
    """

    names: tuple[str, ...] = attrs.field(converter=_names)
    action: Action
    when: tuple[Condition, ...] = attrs.field(default=(), converter=_conditions)

    def __attrs_post_init__(self) -> None:
        for name in self.names:
            _check_name(name)

    def __str__(self) -> str:
        when = f" when {' and '.join(map(str, self.when))}" if self.when else ""
        return f"{self.action}{when}: {' '.join(self.names)}"


def _rules(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(rules)


def _flags(flags: Iterable[str]) -> frozenset[str]:
    wrong = frozenset(flags) - FLAGS.keys()
    if wrong:
        raise SpecError(f"unknown seccomp flag {min(wrong)!r}: of {', '.join(FLAGS)}")
    return frozenset(flags)


@attrs.frozen(kw_only=True, cache_hash=True)
class Seccomp:
    """A filter on system calls.

    For one call the first rule that names it, and whose conditions hold, decides; where none does, ``default_action``.
    The methods return a changed filter and put their rule first, so that the last word counts::

        Seccomp.default().allow("ptrace").deny("connect")

    Attributes:
        default_action: what happens to a call that no rule decides.
        rules: in the order in which they are asked.
        unknown_action: what happens to a number that is no call of the table, so to calls newer than it;
            None means ``default_action``. ``ENOSYS`` lets programs fall back as on an older kernel.
        architectures: those besides the machine's own from which calls are taken, judged by the same rules.
        foreign_action: what happens to a call from any other, such as i386 on x86_64.
        flags: of ``tsync``, ``log``, ``spec_allow``, ``wait_killable_recv``. Source: seccomp(2).
        listener_path: OCI's socket for the listener's descriptor, empty without.
        listener_metadata: what is sent along to that socket.

    Raises:
        SpecError: an unknown architecture or flag.
    """

    default_action: Action
    rules: tuple[Rule, ...] = attrs.field(default=(), converter=_rules)
    unknown_action: Action | None = None
    architectures: tuple[str, ...] = attrs.field(default=(), converter=_names)
    foreign_action: Action = KILL_PROCESS
    flags: frozenset[str] = attrs.field(default=frozenset(), converter=_flags)
    listener_path: str = ""
    listener_metadata: str = ""

    def __attrs_post_init__(self) -> None:
        from containerkit.security.seccomp.architecture import architecture

        for name in self.architectures:
            architecture(name)

    @classmethod
    def default(cls, capabilities: Iterable[str] = ()) -> Seccomp:
        """Return the filter that a container has unless asked otherwise.

        Args:
            capabilities: those the container holds; each brings the calls that are of no use without it
                (``CAP_SYS_ADMIN``: ``mount``, ``setns``, ...).

        Raises:
            SpecError: an unknown capability.
        """
        from containerkit.security.seccomp.default import default

        return default(frozenset(capabilities))

    @classmethod
    def permissive(cls) -> Seccomp:
        """Return a filter that allows all; what is put on top of it is denied by name."""
        return cls(default_action=ALLOW)

    @classmethod
    def from_oci(
        cls,
        profile: Mapping[str, object] | str | PathLike[str],
        *,
        capabilities: Iterable[str] = (),
        machine: str = MACHINE,
        kernel: tuple[int, int] | None = None,
    ) -> Seccomp:
        """Read a profile in the JSON format of the OCI runtime specification or in Docker's.

        Args:
            profile: the object, or the path of a file that holds it.
            capabilities: those the container holds, for Docker's ``includes`` and ``excludes``.
            machine: the host's, for ``archMap`` and ``arches``.
            kernel: the host's version for ``minKernel``, this machine's by default.

        Raises:
            SpecError: it is malformed, or would be weaker than it says because it forbids a call unknown here.

        Source: the OCI runtime specification, config-linux, "Seccomp".
        """
        from containerkit.security.seccomp.oci import read

        return read(profile, frozenset(capabilities), machine, kernel)

    def to_oci(self, machine: str = MACHINE) -> dict[str, object]:
        """Return the profile in the JSON format of the OCI runtime specification.

        The format has no word for ``unknown_action`` and ``foreign_action``, and no order of rules: they are written
        so that each call is named by one unconditional entry, or by conditional ones.

        Raises:
            SpecError: conditional rules on one call whose order matters, which the format can't say.
        """
        from containerkit.security.seccomp.oci import write

        return write(self, machine)

    def allow(self, *names: str, when: Iterable[Condition] = ()) -> Seccomp:
        """Allow calls by name."""
        return self._first(names, ALLOW, when)

    def deny(self, *names: str, errno: int = EPERM, when: Iterable[Condition] = ()) -> Seccomp:
        """Fail calls with an error number."""
        return self._first(names, Action.errno(errno), when)

    def kill(self, *names: str, when: Iterable[Condition] = ()) -> Seccomp:
        """Kill the process that makes one of the calls, by ``SIGSYS``."""
        return self._first(names, KILL_PROCESS, when)

    def notify(self, *names: str, when: Iterable[Condition] = ()) -> Seccomp:
        """Ask the supervisor (:mod:`containerkit.security.notify`) about each of the calls."""
        return self._first(names, NOTIFY, when)

    def log(self, *names: str, when: Iterable[Condition] = ()) -> Seccomp:
        """Allow calls and have the kernel log each; without names, all that this filter would have denied."""
        if names:
            return self._first(names, LOG, when)
        return attrs.evolve(
            self,
            default_action=_complain(self.default_action),
            unknown_action=None if self.unknown_action is None else _complain(self.unknown_action),
            rules=tuple(attrs.evolve(rule, action=_complain(rule.action)) for rule in self.rules),
        )

    def _first(self, names: tuple[str, ...], action: Action, when: Iterable[Condition]) -> Seccomp:
        if not names:
            raise SpecError("name the system calls")
        rule = Rule(names=names, action=action, when=tuple(when))
        return attrs.evolve(self, rules=(rule, *self.rules))

    def __str__(self) -> str:
        """Return the filter in words, a line for each rule."""
        unknown = self.unknown_action or self.default_action
        lines = [f"{self.default_action} unless a rule says otherwise; {unknown} for unknown numbers"]
        lines += [str(rule) for rule in self.rules]
        lines.append(f"{self.foreign_action} for any architecture but {', '.join(('the native', *self.architectures))}")
        return "\n".join(lines)

    @property
    def notifies(self) -> bool:
        """Whether some call is handed to a supervisor."""
        return "user_notif" in self.kinds()

    def kinds(self) -> frozenset[str]:
        """Return the kinds of action that the filter uses."""
        actions = [self.default_action, self.foreign_action, *(rule.action for rule in self.rules)]
        if self.unknown_action is not None:
            actions.append(self.unknown_action)
        return frozenset(action.kind for action in actions)

    def program(self, machine: str = MACHINE) -> bytes:
        """Return the filter as the kernel takes it, an array of ``struct sock_filter``; compiled once.

        Raises:
            SpecError: it is longer than the kernel takes.
        """
        from containerkit.security.seccomp import ready

        found = ready.program(self, machine)
        if found is not None:
            return found
        from containerkit.security.seccomp.compiler import compile_filter

        return compile_filter(self, machine)

    def operations(
        self, *, listener: Slot | None = None, available: Iterable[str] | None = None
    ) -> tuple[Operation, ...]:
        """Return the operations that install the filter in the calling thread.

        They need ``no_new_privs`` or ``CAP_SYS_ADMIN``, and belong right before ``execve``.

        Args:
            listener: the slot that takes the descriptor to supervise with.
            available: the actions of /proc/sys/kernel/seccomp/actions_avail, when known.

        Raises:
            SpecError: a filter that notifies needs a listener: without one the kernel fails the calls with ``ENOSYS``.
            UnsupportedError: the kernel lacks an action.

        Source: seccomp(2).
        """
        if self.notifies and listener is None:
            raise SpecError("the seccomp filter notifies a supervisor, but there is none to take the listener")
        missing = self.kinds() - set(available) if available is not None else frozenset()
        if missing:
            hint = "a newer kernel, or a Seccomp without that action"
            raise UnsupportedError("seccomp", EINVAL, f"action {min(missing)}", hint)
        flags = sum(FLAGS[flag] for flag in self.flags)
        return (install(self.program(), flags, listener),)


def _complain(action: Action) -> Action:
    return LOG if action.kind in {"errno", "kill_process", "kill_thread", "trap"} else action


def _check_name(name: str) -> None:
    from containerkit.security.seccomp.architecture import calls_of, is_call

    if is_call(name):
        return
    from difflib import get_close_matches

    near = get_close_matches(name, calls_of("x86_64"), 1)
    raise SpecError(f"unknown system call {name!r}" + (f": did you mean {near[0]!r}" if near else ""))

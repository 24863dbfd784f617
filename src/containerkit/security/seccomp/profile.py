"""Seccomp filters as values: which system calls a process may make, and what happens to others.

Nothing here touches the kernel. :mod:`.compiler` compiles a :class:`Seccomp` to a program when it is first needed. The
operation that :meth:`Seccomp.operations` returns installs it.
"""

from __future__ import annotations

from errno import EINVAL, EPERM, errorcode
from typing import TYPE_CHECKING, Final, Literal

import attrs

from containerkit._native.constants import MACHINE
from containerkit.errors import SpecError, UnsupportedError
from containerkit.security.checks import check_instance, check_number, instances, names, text_of
from containerkit.security.seccomp.install import FLAGS, install

if TYPE_CHECKING:
    from collections.abc import Mapping
    from os import PathLike

    from containerkit.options import ListOf
    from containerkit.plan.operation import Operation, Slot

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
"""The names in /proc/sys/kernel/seccomp/actions_avail. Source: linux/seccomp.h."""

_LARGEST_ERRNO: Final = 4095


@attrs.frozen
class Action:
    """What the kernel does with a call.

    Use :meth:`errno`, :meth:`trace` or a constant of this module: ``ALLOW``, ``LOG``, ``NOTIFY``,
    ``TRAP``, ``KILL_THREAD``, ``KILL_PROCESS``.

    Attributes:
        kind: the action, as in /proc/sys/kernel/seccomp/actions_avail.
        data: the error number of ``errno`` (0 to 4095), or the message of ``trace`` (0 to 65,535); else 0.

    Raises:
        SpecError: the action is unknown, or the data is out of range.
    """

    kind: str
    data: int = 0

    def __attrs_post_init__(self) -> None:
        if text_of(self.kind, "seccomp action") not in _KINDS:
            raise SpecError(f"unknown seccomp action {self.kind!r}: one of {', '.join(_KINDS)}")
        limit = {"errno": _LARGEST_ERRNO, "trace": 0xFFFF}.get(self.kind, 0)
        check_number(self.data, f"data of the seccomp action {self.kind}", 0, limit)

    @classmethod
    def errno(cls, number: int = EPERM) -> Action:
        """Fail the call with an error number. Default ``EPERM``."""
        return cls("errno", number)

    @classmethod
    def trace(cls, message: int = 0) -> Action:
        """Pass the call to the ptrace tracer. Without a tracer it fails with ``ENOSYS``."""
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
        """Return whether the kernel executes the call without asking a tracer or supervisor."""
        return self.kind in {"allow", "log"}


ALLOW: Final = Action("allow")
LOG: Final = Action("log")
NOTIFY: Final = Action("user_notif")
TRAP: Final = Action("trap")
KILL_THREAD: Final = Action("kill_thread")
KILL_PROCESS: Final = Action("kill_process")

Comparison = Literal["eq", "ne", "lt", "le", "gt", "ge", "masked_eq", "masked_ne"]
_COMPARISONS: Final = ("eq", "ne", "lt", "le", "gt", "ge", "masked_eq", "masked_ne")
MASKED: Final = frozenset({"masked_eq", "masked_ne"})
_LARGEST: Final = 2**64 - 1


@attrs.frozen(kw_only=True)
class Condition:
    """A comparison of one argument, unsigned, in all of its 64 bits (32 on a 32-bit architecture).

    A filter sees the value of the argument, not the memory that a pointer refers to.

    Attributes:
        argument: its index, 0 to 5.
        op: ``eq ne lt le gt ge``, or ``masked_eq``: the bits of ``mask`` have the value ``value``; or ``masked_ne``:
            they have another value. An OCI profile can't express ``masked_ne``.
        value: 0 to 2**64 - 1.
        mask: for ``masked_eq`` and ``masked_ne``.

    Raises:
        SpecError: an index, operator or value is out of range.
    """

    argument: int
    op: Comparison = "eq"
    value: int = 0
    mask: int = _LARGEST

    def __attrs_post_init__(self) -> None:
        check_number(self.argument, "argument of a system call", 0, 5)
        if text_of(self.op, "comparison") not in _COMPARISONS:
            raise SpecError(f"unknown comparison {self.op!r}: one of {', '.join(_COMPARISONS)}")
        check_number(self.value, "value of a Condition", 0, _LARGEST)
        check_number(self.mask, "mask of an argument", 0, _LARGEST)

    def __str__(self) -> str:
        if self.op in MASKED:
            sign = "==" if self.op == "masked_eq" else "!="
            return f"argument {self.argument} & {self.mask:#x} {sign} {self.value:#x}"
        return f"argument {self.argument} {self.op} {self.value:#x}"


def _names(values: ListOf[str]) -> tuple[str, ...]:
    return names(values, "names of a seccomp rule")


def _conditions(conditions: ListOf[Condition]) -> tuple[Condition, ...]:
    return instances(conditions, Condition, "conditions of a seccomp rule")


@attrs.frozen(kw_only=True, cache_hash=True)
class Rule:
    """An action for some system calls.

    Attributes:
        names: the kernel's names of the calls.
        action: what happens to them.
        when: conditions that must all hold. Without conditions the rule always applies.

    Raises:
        SpecError: a name is unknown on every architecture.
    """

    names: tuple[str, ...] = attrs.field(converter=_names)
    action: Action
    when: tuple[Condition, ...] = attrs.field(default=(), converter=_conditions)

    def __attrs_post_init__(self) -> None:
        check_instance(self.action, Action, "action of a seccomp rule")
        for name in self.names:
            _check_name(name)

    def __str__(self) -> str:
        when = f" when {' and '.join(map(str, self.when))}" if self.when else ""
        return f"{self.action}{when}: {' '.join(self.names)}"


def _rules(rules: ListOf[Rule]) -> tuple[Rule, ...]:
    return instances(rules, Rule, "rules of a seccomp filter")


def _architectures(values: ListOf[str]) -> tuple[str, ...]:
    return names(values, "architectures of a seccomp filter")


def _flags(flags: ListOf[str]) -> frozenset[str]:
    found = frozenset(names(flags, "seccomp flags"))
    if wrong := found - FLAGS.keys():
        raise SpecError(f"unknown seccomp flag {min(wrong)!r}: of {', '.join(FLAGS)}")
    return found


@attrs.frozen(kw_only=True, cache_hash=True)
class Seccomp:
    """A filter for system calls.

    The first rule that names a call and whose conditions hold decides. If there is none, ``default_action`` decides.
    The methods return a changed filter with their rule in first place, so the last change wins::

        Seccomp.default().allow("ptrace").deny("connect")

    Attributes:
        default_action: the action for calls that no rule decides.
        rules: in the order in which they are tested.
        unknown_action: the action for numbers that are not in the table, such as those of newer calls. None means
            ``default_action``. With ``ENOSYS`` programs fall back as on an older kernel.
        architectures: accepted in addition to the machine's own architecture, with the same rules.
        foreign_action: the action for calls of any other architecture, such as i386 on x86_64.
        flags: names from ``tsync``, ``log``, ``spec_allow``, ``wait_killable_recv``. Source: seccomp(2).
        listener_path: the OCI socket that receives the listener's descriptor. Empty for none.
        listener_metadata: data that is sent to that socket as well.

    Raises:
        SpecError: an architecture or flag is unknown.
    """

    default_action: Action
    rules: tuple[Rule, ...] = attrs.field(default=(), converter=_rules)
    unknown_action: Action | None = None
    architectures: tuple[str, ...] = attrs.field(default=(), converter=_architectures)
    foreign_action: Action = KILL_PROCESS
    flags: frozenset[str] = attrs.field(default=frozenset(), converter=_flags)
    listener_path: str = ""
    listener_metadata: str = ""

    def __attrs_post_init__(self) -> None:
        from containerkit.security.seccomp.architecture import architecture

        check_instance(self.default_action, Action, "default_action")
        check_instance(self.foreign_action, Action, "foreign_action")
        if self.unknown_action is not None:
            check_instance(self.unknown_action, Action, "unknown_action")
        for given, what in ((self.listener_path, "listener_path"), (self.listener_metadata, "listener_metadata")):
            text_of(given, what)
        for name in self.architectures:
            architecture(name)

    @classmethod
    def default(cls, capabilities: ListOf[str] = ()) -> Seccomp:
        """Return the default filter of containers.

        Args:
            capabilities: the capabilities of the container. Each one allows the calls that need it (``CAP_SYS_ADMIN``:
                ``mount``, ``setns``, ...).

        Raises:
            SpecError: a capability is unknown.
        """
        from containerkit.security.seccomp.default import default

        return default(frozenset(names(capabilities, "capabilities")))

    @classmethod
    def permissive(cls) -> Seccomp:
        """Return a filter that allows everything. Add rules to deny calls by name."""
        return cls(default_action=ALLOW)

    @classmethod
    def from_oci(
        cls,
        profile: Mapping[str, object] | str | PathLike[str],
        *,
        capabilities: ListOf[str] = (),
        machine: str = MACHINE,
        kernel: tuple[int, int] | None = None,
    ) -> Seccomp:
        """Read a profile in the JSON format of the OCI runtime specification or in Docker's.

        Args:
            profile: the object, or the path of a file that contains it.
            capabilities: the capabilities of the container, for Docker's ``includes`` and ``excludes``.
            machine: the architecture of the host, for ``archMap`` and ``arches``.
            kernel: the kernel version of the host, for ``minKernel``. Default: this machine's.

        Raises:
            SpecError: it is malformed, or it forbids a call that is unknown here and would stay allowed.

        Source: the OCI runtime specification, config-linux, "Seccomp".
        """
        from containerkit.security.seccomp.oci import read

        return read(profile, frozenset(names(capabilities, "capabilities")), text_of(machine, "machine"), kernel)

    def to_oci(self, machine: str = MACHINE) -> dict[str, object]:
        """Return the profile in the JSON format of the OCI runtime specification.

        The format can't express ``unknown_action``, ``foreign_action`` and the order of rules. The result names each
        call in one unconditional entry, or in conditional ones.

        Raises:
            SpecError: the order of conditional rules for one call matters, which the format can't express.
        """
        from containerkit.security.seccomp.oci import write

        return write(self, text_of(machine, "machine"))

    def allow(self, *names: str, when: ListOf[Condition] = ()) -> Seccomp:
        """Allow calls by name."""
        return self._first(names, ALLOW, when)

    def deny(self, *names: str, errno: int = EPERM, when: ListOf[Condition] = ()) -> Seccomp:
        """Make calls fail with an error number."""
        return self._first(names, Action.errno(errno), when)

    def kill(self, *names: str, when: ListOf[Condition] = ()) -> Seccomp:
        """Kill the process that makes one of the calls, with ``SIGSYS``."""
        return self._first(names, KILL_PROCESS, when)

    def notify(self, *names: str, when: ListOf[Condition] = ()) -> Seccomp:
        """Ask the supervisor (:mod:`containerkit.security.notify`) to decide each of the calls."""
        return self._first(names, NOTIFY, when)

    def log(self, *names: str, when: ListOf[Condition] = ()) -> Seccomp:
        """Allow calls and let the kernel log each one. Without names: all calls that this filter would deny."""
        if names:
            return self._first(names, LOG, when)
        return attrs.evolve(
            self,
            default_action=_log_instead(self.default_action),
            unknown_action=None if self.unknown_action is None else _log_instead(self.unknown_action),
            rules=tuple(attrs.evolve(rule, action=_log_instead(rule.action)) for rule in self.rules),
        )

    def _first(self, names: tuple[str, ...], action: Action, when: ListOf[Condition]) -> Seccomp:
        if not names:
            raise SpecError("seccomp: pass the names of the system calls")
        rule = Rule(names=names, action=action, when=when)
        return attrs.evolve(self, rules=(rule, *self.rules))

    def __str__(self) -> str:
        """Describe the filter in text, one line for each rule."""
        unknown = self.unknown_action or self.default_action
        lines = [f"{self.default_action} unless a rule says otherwise; {unknown} for unknown numbers"]
        lines += [str(rule) for rule in self.rules]
        lines.append(
            f"{self.foreign_action} for any architecture except {', '.join(('the native', *self.architectures))}"
        )
        return "\n".join(lines)

    @property
    def notifies(self) -> bool:
        """Whether a supervisor decides some calls."""
        return "user_notif" in self.kinds()

    def kinds(self) -> frozenset[str]:
        """Return the kinds of action that the filter uses."""
        actions = [self.default_action, self.foreign_action, *(rule.action for rule in self.rules)]
        if self.unknown_action is not None:
            actions.append(self.unknown_action)
        return frozenset(action.kind for action in actions)

    def program(self, machine: str = MACHINE) -> bytes:
        """Return the filter as an array of ``struct sock_filter``. It is compiled once.

        Raises:
            SpecError: the program is longer than the kernel accepts.
        """
        from containerkit.security.seccomp import ready

        found = ready.program(self, text_of(machine, "machine"))
        if found is not None:
            return found
        from containerkit.security.seccomp.compiler import compile_filter

        return compile_filter(self, machine)

    def operations(
        self, *, listener: Slot | None = None, available: ListOf[str] | None = None
    ) -> tuple[Operation, ...]:
        """Return the operations that install the filter in the calling thread.

        They need ``no_new_privs`` or ``CAP_SYS_ADMIN``, and must come right before ``execve``.

        Args:
            listener: the slot for the listener's descriptor.
            available: the actions in /proc/sys/kernel/seccomp/actions_avail, if known.

        Raises:
            SpecError: the filter notifies and has no listener. The kernel would let the calls fail with ``ENOSYS``.
            UnsupportedError: the kernel lacks an action.

        Source: seccomp(2).
        """
        missing = self.kinds() - set(names(available, "available")) if available is not None else frozenset()
        if self.notifies and listener is None:
            raise SpecError("the seccomp filter notifies a supervisor, but no supervisor receives the listener")
        if missing:
            hint = "use a newer kernel, or a Seccomp without that action"
            raise UnsupportedError("seccomp", EINVAL, f"action {min(missing)}", hint)
        flags = sum(FLAGS[flag] for flag in self.flags)
        return (install(self.program(), flags, listener),)


def _log_instead(action: Action) -> Action:
    return LOG if action.kind in {"errno", "kill_process", "kill_thread", "trap"} else action


def _check_name(name: str) -> None:
    from containerkit.security.seccomp.architecture import calls_of, is_call

    if is_call(name):
        return
    from difflib import get_close_matches

    near = get_close_matches(name, calls_of("x86_64"), 1)
    raise SpecError(f"unknown system call {name!r}" + (f": did you mean {near[0]!r}" if near else ""))

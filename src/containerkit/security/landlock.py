"""Landlock restricts which files, ports, sockets and processes a program can reach. It needs no privileges.

A ruleset names what it *handles*. All of that is forbidden except what a rule allows. It applies to the calling thread
and everything started from it, needs no namespace, and can only be tightened later. So it is a second protection inside
a container, and the first one where namespaces are not available. ::

    Landlock().allow_execute("/usr", "/lib").allow_write("/tmp/work").allow_connect(443)

Source: landlock(7), landlock_create_ruleset(2), landlock_add_rule(2), landlock_restrict_self(2).
"""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT, ENOSYS, ENOTDIR, EOPNOTSUPP
from struct import pack
from typing import TYPE_CHECKING, Final

import attrs

from containerkit._native import constants as k
from containerkit.errors import SpecError, StateError, UnsupportedError
from containerkit.plan.calls import call, close, open_at
from containerkit.plan.operation import Block, Operation, Slot
from containerkit.security import checks
from containerkit.security.checks import check_bool, check_number, instances, names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.options import ListOf

__all__ = [
    "FILES",
    "PORTS",
    "SCOPES",
    "UNCOVERED",
    "Landlock",
    "PathRule",
    "PortRule",
    "Report",
    "abi",
    "has_other_threads",
]

FILES: Final = {
    "execute": 1,
    "write_file": 1,
    "read_file": 1,
    "read_dir": 1,
    "remove_dir": 1,
    "remove_file": 1,
    "make_char": 1,
    "make_dir": 1,
    "make_reg": 1,
    "make_sock": 1,
    "make_fifo": 1,
    "make_block": 1,
    "make_sym": 1,
    "refer": 2,
    "truncate": 3,
    "ioctl_dev": 5,
}
"""The rights to files in the order of their bits, each with the first ABI that has it.

``refer`` is moving and linking from one directory to another, ``ioctl_dev`` is ioctl on newly opened devices.
"""

PORTS: Final = {"bind_tcp": 4, "connect_tcp": 4}
"""The rights to TCP ports in the order of their bits, each with the first ABI that has it."""

SCOPES: Final = {"abstract_unix_socket": 6, "signal": 6}
"""The scopes in the order of their bits: connecting to abstract sockets that were bound outside the sandbox, and
signals to processes outside it."""

UNCOVERED: Final = (
    "changing the working directory, stat, access, chmod, chown, utime, extended attributes and flock of any file",
    "descriptors that were open before, and files received through them",
    "UDP, raw and Unix sockets that have a path, and listing all network interfaces",
    "seeing other processes",
    "inotify events of files that the permissions allow to read",
)
"""What no Landlock ABI restricts."""

_KERNELS: Final = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12", 7: "6.15"}
_LOGGING: Final = {"same_exec_off": 1, "new_exec_on": 2, "subdomains_off": 4}
_LOGGING_ABI: Final = 7
_LARGEST_ABI: Final = 2**31 - 1
_OF_FILES: Final = frozenset({"execute", "write_file", "read_file", "truncate", "ioctl_dev"})
"""The rights that apply to anything other than a directory."""

_READ: Final = frozenset({"read_file", "read_dir"})
_WRITE: Final = _READ | frozenset(
    "write_file truncate remove_dir remove_file make_dir make_reg make_sock make_fifo make_sym refer".split()  # noqa: SIM905 - one text is easier to read
)
_PATH_BENEATH: Final = 1
_NET_PORT: Final = 2
_VERSION: Final = 1
_CLONE_THREAD: Final = 0x00010000
_RULESET: Final = Slot("landlock ruleset")
_PATH: Final = Slot("landlock path")
_NO_LANDLOCK: Final = "Linux 5.13 with landlock among the LSMs (the boot argument lsm=)"


def _known(rights: ListOf[str], table: dict[str, int], what: str) -> frozenset[str]:
    found = frozenset(names(rights, f"{what}s"))
    if wrong := found - table.keys():
        raise SpecError(f"unknown Landlock {what} {min(wrong)!r}: must be one of {', '.join(table)}")
    return found


def _files(rights: ListOf[str]) -> frozenset[str]:
    return _known(rights, FILES, "right to files")


def _ports(rights: ListOf[str]) -> frozenset[str]:
    return _known(rights, PORTS, "right to ports")


def _scopes(scopes: ListOf[str]) -> frozenset[str]:
    return _known(scopes, SCOPES, "scope")


def _logging(flags: ListOf[str]) -> frozenset[str]:
    return _known(flags, _LOGGING, "logging flag")


def _absolute(path: str | os.PathLike[str]) -> str:
    text = checks.path(path, "a Landlock rule")
    if not text.startswith("/") or "\0" in text:
        raise SpecError(f"a Landlock rule needs an absolute path, not {text!r}")
    return text


@attrs.frozen(kw_only=True)
class PathRule:
    """The rights at a path. If it is a directory they also apply to everything below it.

    Attributes:
        path: an absolute path. Symlinks are followed when the rule is set.
        rights: names from :data:`FILES`. For a file, rights that apply only to directories are left out.
        optional: whether to skip a path that does not exist.

    Raises:
        SpecError: a right is unknown, no right is given, or the path is relative.
    """

    path: str = attrs.field(converter=_absolute)
    rights: frozenset[str] = attrs.field(converter=_files)
    optional: bool = False

    def __attrs_post_init__(self) -> None:
        check_bool(self.optional, "optional")
        if not self.rights:
            raise SpecError(f"the Landlock rule for {self.path} has no right")


@attrs.frozen(kw_only=True)
class PortRule:
    """The rights for a TCP port.

    Attributes:
        port: 0 to 65,535. 0 in ``bind_tcp`` means any port that the kernel chooses.
        rights: names from :data:`PORTS`.

    Raises:
        SpecError: a right is unknown, no right is given, or the port is invalid.
    """

    port: int
    rights: frozenset[str] = attrs.field(converter=_ports)

    def __attrs_post_init__(self) -> None:
        check_number(self.port, "TCP port", 0, 0xFFFF)
        if not self.rights:
            raise SpecError(f"the Landlock rule for port {self.port} has no right")


@attrs.frozen(kw_only=True)
class Report:
    """The parts of a ruleset that a kernel enforces.

    Attributes:
        abi: the kernel's Landlock ABI, 0 for none.
        enforced: the rights and scopes that are enforced.
        missing: those that this kernel can't enforce, each with what it needs.
        uncovered: what Landlock never restricts.
    """

    abi: int
    enforced: tuple[str, ...]
    missing: tuple[str, ...]
    uncovered: tuple[str, ...] = UNCOVERED

    @property
    def complete(self) -> bool:
        """Whether everything that was requested is enforced."""
        return not self.missing

    def __str__(self) -> str:
        lines = [f"Landlock ABI {self.abi}", f"enforced: {', '.join(self.enforced) or 'nothing'}"]
        lines += [f"not enforced: {each}" for each in self.missing]
        lines += [f"never covered: {each}" for each in self.uncovered]
        return "\n".join(lines)


def _path_rules(rules: Iterable[PathRule]) -> tuple[PathRule, ...]:
    return instances(rules, PathRule, "path_rules")


def _port_rules(rules: Iterable[PortRule]) -> tuple[PortRule, ...]:
    return instances(rules, PortRule, "port_rules")


@attrs.frozen(kw_only=True)
class Landlock:
    """A ruleset. By default it handles everything and, without rules, forbids all of it.

    Attributes:
        files: the rights to files that it handles.
        ports: the rights to TCP ports that it handles.
        scopes: the scopes that it handles.
        path_rules, port_rules: the exceptions that are allowed.
        strict: whether it is an error if the kernel can't enforce all of it. If False, the rest is enforced, and
            :meth:`report` says what is missing.
        logging: names from ``same_exec_off new_exec_on subdomains_off``: which denials the kernel's audit log contains.

    Raises:
        SpecError: a right, scope or flag is unknown, or the ruleset handles nothing.
    """

    files: frozenset[str] = attrs.field(default=frozenset(FILES), converter=_files)
    ports: frozenset[str] = attrs.field(default=frozenset(PORTS), converter=_ports)
    scopes: frozenset[str] = attrs.field(default=frozenset(SCOPES), converter=_scopes)
    path_rules: tuple[PathRule, ...] = attrs.field(default=(), converter=_path_rules)
    port_rules: tuple[PortRule, ...] = attrs.field(default=(), converter=_port_rules)
    strict: bool = True
    logging: frozenset[str] = attrs.field(default=frozenset(), converter=_logging)

    def __attrs_post_init__(self) -> None:
        check_bool(self.strict, "strict")
        if not (self.files or self.ports or self.scopes):
            raise SpecError("the Landlock ruleset handles nothing")

    def allow(self, *paths: str | os.PathLike[str], rights: ListOf[str], optional: bool = False) -> Landlock:
        """Return the ruleset with some rights at some paths and below them."""
        held = _files(rights)
        rules = [PathRule(path=path, rights=held, optional=optional) for path in paths]
        return attrs.evolve(self, path_rules=(*self.path_rules, *rules))

    def allow_read(self, *paths: str | os.PathLike[str], optional: bool = False) -> Landlock:
        """Return the ruleset with rights to read files and directories."""
        return self.allow(*paths, rights=_READ, optional=optional)

    def allow_execute(self, *paths: str | os.PathLike[str], optional: bool = False) -> Landlock:
        """Return the ruleset with rights to read and execute."""
        return self.allow(*paths, rights=_READ | {"execute"}, optional=optional)

    def allow_write(self, *paths: str | os.PathLike[str], optional: bool = False) -> Landlock:
        """Return the ruleset with rights to read, write, create, move and remove, but not to execute or use devices."""
        return self.allow(*paths, rights=_WRITE, optional=optional)

    def allow_bind(self, *ports: int) -> Landlock:
        """Return the ruleset with the right to bind to TCP ports."""
        return self._ports_too(ports, "bind_tcp")

    def allow_connect(self, *ports: int) -> Landlock:
        """Return the ruleset with the right to connect to TCP ports, of any host."""
        return self._ports_too(ports, "connect_tcp")

    def _ports_too(self, ports: tuple[int, ...], right: str) -> Landlock:
        rules = [PortRule(port=port, rights=frozenset({right})) for port in ports]
        return attrs.evolve(self, port_rules=(*self.port_rules, *rules))

    def report(self, kernel_abi: int) -> Report:
        """Return what a kernel with this ABI enforces of the ruleset.

        Raises:
            SpecError: the number is invalid.
        """
        check_number(kernel_abi, "kernel_abi", 0, _LARGEST_ABI)
        wanted = {name: FILES[name] for name in FILES if name in self.files}
        wanted |= {name: PORTS[name] for name in PORTS if name in self.ports}
        wanted |= {name: SCOPES[name] for name in SCOPES if name in self.scopes}
        missing = [f"{name}: {_takes(first)}" for name, first in wanted.items() if first > kernel_abi]
        if self.logging and kernel_abi < _LOGGING_ABI:
            missing.append(f"logging: {_takes(_LOGGING_ABI)}")
        enforced = tuple(name for name, first in wanted.items() if first <= kernel_abi)
        return Report(abi=kernel_abi, enforced=enforced, missing=tuple(missing))

    def operations(self, kernel_abi: int) -> tuple[Operation, ...]:
        """Return the operations that restrict the calling thread. They need ``no_new_privs`` or ``CAP_SYS_ADMIN``.

        Args:
            kernel_abi: the result of :func:`abi`.

        Raises:
            UnsupportedError: the ruleset is ``strict``, and the kernel can't enforce all of it.
        """
        report = self.report(kernel_abi)
        if self.strict and not report.complete:
            hint = f"{'; '.join(report.missing)}, or use strict=False"
            raise UnsupportedError("landlock_create_ruleset", EOPNOTSUPP, f"Landlock ABI {kernel_abi}", hint)
        if not report.enforced:
            return ()
        held = frozenset(report.enforced)
        handled = pack("=QQQ", _bits(self.files & held, FILES), _bits(self.ports & held, PORTS), self._scoped(held))
        flags = _bits(self.logging, _LOGGING) if kernel_abi >= _LOGGING_ABI else 0
        ruleset = call(
            "landlock_create_ruleset", Block(handled), len(handled), 0,
            target=f"ruleset over {len(held)} rights", result=_RULESET, hint=_NO_LANDLOCK,
        )  # fmt: skip
        restrict = call(
            "landlock_restrict_self", _RULESET, flags,
            target="this thread", hint="it needs no_new_privs or CAP_SYS_ADMIN; at most 16 rulesets can be stacked",
        )  # fmt: skip
        rules = [step for rule in self.path_rules for step in _path_steps(rule, self.files & held)]
        rules += [step for port in self.port_rules for step in _port_steps(port, self.ports & held)]
        return (ruleset, *rules, restrict, close(_RULESET))

    def _scoped(self, held: frozenset[str]) -> int:
        return _bits(self.scopes & held, SCOPES)

    def apply(self, *, this_thread_only: bool = False) -> Report:
        """Restrict this process and everything it starts from now on, permanently. Sets ``no_new_privs``.

        Args:
            this_thread_only: restrict only the calling thread. The other threads are not restricted and share its
                memory, so they could act for it. By default other threads are therefore an error.

        Raises:
            StateError: there are other threads.
            UnsupportedError: the ruleset is ``strict``, and the kernel can't enforce all of it.
            SetupError: a path does not exist, or the kernel refuses.
        """
        check_bool(this_thread_only, "this_thread_only")
        from containerkit.security.capabilities import no_new_privs
        from containerkit.security.direct import perform

        if not this_thread_only and has_other_threads():
            raise StateError("landlock: other threads would stay unrestricted: apply the ruleset before they start")
        kernel_abi = abi()
        perform((no_new_privs(), *self.operations(kernel_abi)))
        return self.report(kernel_abi)


def abi() -> int:
    """Return the Landlock ABI of the running kernel, 0 if it has no Landlock.

    Source: landlock_create_ruleset(2), LANDLOCK_CREATE_RULESET_VERSION.
    """
    from containerkit._native.calls import syscall

    try:
        return syscall("landlock_create_ruleset", 0, 0, _VERSION)
    except OSError as error:
        if error.errno in {ENOSYS, EOPNOTSUPP}:
            return 0
        raise


def has_other_threads() -> bool:
    """Return whether this process has threads besides the calling one, or shares its memory with another process.

    Leaving the thread group does nothing if the thread is alone in it, and is refused otherwise. This needs no /proc,
    which an earlier ruleset may have made inaccessible.

    Source: unshare(2), CLONE_THREAD.
    """
    from containerkit._native.calls import syscall

    try:
        syscall("unshare", _CLONE_THREAD)
    except OSError as error:
        return error.errno == EINVAL or len(os.listdir("/proc/self/task")) > 1
    return False


def _takes(first: int) -> str:
    return f"it needs Landlock ABI {first} (Linux {_KERNELS[first]})"


def _bits(names: frozenset[str], table: dict[str, int]) -> int:
    return sum(1 << bit for bit, name in enumerate(table) if name in names)


def _path_steps(rule: PathRule, held: frozenset[str]) -> list[Operation]:
    """Return the operations of one rule.

    Whether the path is a directory is known only after it is opened. The rights that apply to files are added first.
    The rights of directories are added in a second step, which may fail for a file. That allows less, never more.
    """
    rights = rule.rights & held
    parts = [part for part in (rights & _OF_FILES, rights - _OF_FILES) if part]
    if not parts:
        return []
    steps = [
        call(
            "landlock_add_rule", _RULESET, _PATH_BENEATH, Block(pack("=Qi", _bits(part, FILES), -1), ((8, _PATH),)), 0,
            target=f"{rule.path} {' '.join(sorted(part))}", tolerate=tolerate, hint="only a directory has these rights",
        )
        for part, tolerate in zip(parts, ((), (EINVAL,)), strict=False)
    ]  # fmt: skip
    hint = "the path of a Landlock rule must exist; optional=True skips a path that does not"
    opened = open_at(k.AT_FDCWD, os.fsencode(rule.path), k.O_PATH, _PATH, hint=hint)
    if rule.optional:
        opened = opened._replace(tolerate=(ENOENT, ENOTDIR), skip=len(steps) + 1)
    return [opened, *steps, close(_PATH)]


def _port_steps(rule: PortRule, held: frozenset[str]) -> list[Operation]:
    rights = rule.rights & held
    if not rights:
        return []
    target = f"port {rule.port} {' '.join(sorted(rights))}"
    port = Block(pack("=QQ", _bits(rights, PORTS), rule.port))
    return [call("landlock_add_rule", _RULESET, _NET_PORT, port, 0, target=target)]

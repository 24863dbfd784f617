"""Landlock: which files, ports, sockets and processes a program may reach, said without privilege.

A ruleset names what it *handles*; all of that is forbidden except what a rule allows. It binds the thread that asks
for it and all it starts from then on, needs no namespace, and can only be tightened afterwards. So it is a second wall
inside a container, and the first where namespaces are forbidden. ::

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
from containerkit.plan import Block, Operation, Slot, call, close, open_at

if TYPE_CHECKING:
    from collections.abc import Iterable

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
"""The rights to files in the order of their bits, each with the first ABI that knows it.

``refer`` is moving and linking from one folder to another, ``ioctl_dev`` device requests on newly opened devices.
"""

PORTS: Final = {"bind_tcp": 4, "connect_tcp": 4}
"""The rights to TCP ports in the order of their bits, each with the first ABI that knows it."""

SCOPES: Final = {"abstract_unix_socket": 6, "signal": 6}
"""What ends at the sandbox's edge, in the order of the bits: connecting to sockets in the abstract namespace that were
bound outside, and signals to processes outside."""

UNCOVERED: Final = (
    "changing the working directory, stat, access, chmod, chown, utime, extended attributes and flock of any file",
    "descriptors that were open before, and what comes through them",
    "UDP, raw and Unix sockets that have a path, and being told of all network interfaces",
    "seeing other processes",
)
"""What no ABI restricts."""

_KERNELS: Final = {1: "5.13", 2: "5.19", 3: "6.2", 4: "6.7", 5: "6.10", 6: "6.12", 7: "6.15"}
_LOGGING: Final = {"same_exec_off": 1, "new_exec_on": 2, "subdomains_off": 4}
_LOGGING_ABI: Final = 7
_OF_FILES: Final = frozenset({"execute", "write_file", "read_file", "truncate", "ioctl_dev"})
"""The rights that a rule on something other than a folder can give."""

_READ: Final = frozenset({"read_file", "read_dir"})
_WRITE: Final = _READ | frozenset(
    "write_file truncate remove_dir remove_file make_dir make_reg make_sock make_fifo make_sym refer".split()  # noqa: SIM905 - one text reads better
)
_PATH_BENEATH: Final = 1
_NET_PORT: Final = 2
_VERSION: Final = 1
_CLONE_THREAD: Final = 0x00010000
_RULESET: Final = Slot("landlock ruleset")
_PATH: Final = Slot("landlock path")
_NO_LANDLOCK: Final = "Linux 5.13 with landlock among the LSMs (the boot argument lsm=)"


def _known(rights: Iterable[str], table: dict[str, int], what: str) -> frozenset[str]:
    if isinstance(rights, str):
        raise SpecError(f"{what}s are given as several names: [{rights!r}]")
    wrong = frozenset(rights) - table.keys()
    if wrong:
        raise SpecError(f"unknown Landlock {what} {min(wrong)!r}: of {', '.join(table)}")
    return frozenset(rights)


def _files(rights: Iterable[str]) -> frozenset[str]:
    return _known(rights, FILES, "right to files")


def _ports(rights: Iterable[str]) -> frozenset[str]:
    return _known(rights, PORTS, "right to ports")


def _scopes(scopes: Iterable[str]) -> frozenset[str]:
    return _known(scopes, SCOPES, "scope")


def _logging(flags: Iterable[str]) -> frozenset[str]:
    return _known(flags, _LOGGING, "logging flag")


def _absolute(path: str | os.PathLike[str]) -> str:
    text = os.fspath(path)
    if not text.startswith("/") or "\0" in text:
        raise SpecError(f"a Landlock rule takes an absolute path, not {text!r}")
    return text


@attrs.frozen(kw_only=True)
class PathRule:
    """What is allowed at a path and, if it is a folder, at all below it.

    Attributes:
        path: absolute; symbolic links are followed when the rule is set.
        rights: names of :data:`FILES`. Those that only a folder has are left out for a file.
        optional: whether a path that isn't there is passed over.

    Raises:
        SpecError: an unknown right, none, or a relative path.
    """

    path: str = attrs.field(converter=_absolute)
    rights: frozenset[str] = attrs.field(converter=_files)
    optional: bool = False

    def __attrs_post_init__(self) -> None:
        if not self.rights:
            raise SpecError(f"the Landlock rule on {self.path} gives no right")


@attrs.frozen(kw_only=True)
class PortRule:
    """What is allowed with a TCP port.

    Attributes:
        port: 0 to 65,535; 0 in ``bind_tcp`` is whichever the kernel picks.
        rights: names of :data:`PORTS`.

    Raises:
        SpecError: an unknown right, none, or no such port.
    """

    port: int
    rights: frozenset[str] = attrs.field(converter=_ports)

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.port <= 0xFFFF:
            raise SpecError(f"a TCP port is 0 to 65535, not {self.port}")
        if not self.rights:
            raise SpecError(f"the Landlock rule on port {self.port} gives no right")


@attrs.frozen(kw_only=True)
class Report:
    """What a ruleset enforces on a kernel.

    Attributes:
        abi: the kernel's Landlock ABI, 0 for none.
        enforced: the rights and scopes that are held.
        missing: those asked for that this kernel can't hold, each with what it takes.
        uncovered: what no Landlock restricts.
    """

    abi: int
    enforced: tuple[str, ...]
    missing: tuple[str, ...]
    uncovered: tuple[str, ...] = UNCOVERED

    @property
    def complete(self) -> bool:
        """Whether all that was asked for is enforced."""
        return not self.missing

    def __str__(self) -> str:
        lines = [f"Landlock ABI {self.abi}", f"enforced: {', '.join(self.enforced) or 'nothing'}"]
        lines += [f"not enforced: {each}" for each in self.missing]
        lines += [f"never covered: {each}" for each in self.uncovered]
        return "\n".join(lines)


@attrs.frozen(kw_only=True)
class Landlock:
    """A ruleset. Without a rule it forbids all that it handles, and it handles all there is.

    Attributes:
        files: the rights to files that it handles.
        ports: the rights to TCP ports that it handles.
        scopes: what ends at the sandbox's edge.
        path_rules, port_rules: what is allowed nevertheless.
        strict: whether a kernel that can't hold all of it is an error. Without, the rest is held, and
            :meth:`report` tells what is missing.
        logging: of ``same_exec_off new_exec_on subdomains_off``: whose denials the kernel's audit log tells.

    Raises:
        SpecError: an unknown right, scope or flag, or a ruleset that handles nothing.
    """

    files: frozenset[str] = attrs.field(default=frozenset(FILES), converter=_files)
    ports: frozenset[str] = attrs.field(default=frozenset(PORTS), converter=_ports)
    scopes: frozenset[str] = attrs.field(default=frozenset(SCOPES), converter=_scopes)
    path_rules: tuple[PathRule, ...] = ()
    port_rules: tuple[PortRule, ...] = ()
    strict: bool = True
    logging: frozenset[str] = attrs.field(default=frozenset(), converter=_logging)

    def __attrs_post_init__(self) -> None:
        if not (self.files or self.ports or self.scopes):
            raise SpecError("the Landlock ruleset handles nothing")

    def allow(self, *paths: str | os.PathLike[str], rights: Iterable[str], optional: bool = False) -> Landlock:
        """Return it with some rights at some paths and below them."""
        held = _files(rights)
        rules = [PathRule(path=path, rights=held, optional=optional) for path in paths]
        return attrs.evolve(self, path_rules=(*self.path_rules, *rules))

    def allow_read(self, *paths: str | os.PathLike[str], optional: bool = False) -> Landlock:
        """Return it with reading of files and folders."""
        return self.allow(*paths, rights=_READ, optional=optional)

    def allow_execute(self, *paths: str | os.PathLike[str], optional: bool = False) -> Landlock:
        """Return it with reading and executing."""
        return self.allow(*paths, rights=_READ | {"execute"}, optional=optional)

    def allow_write(self, *paths: str | os.PathLike[str], optional: bool = False) -> Landlock:
        """Return it with reading, writing, making, moving and removing; not with executing, nor with devices."""
        return self.allow(*paths, rights=_WRITE, optional=optional)

    def allow_bind(self, *ports: int) -> Landlock:
        """Return it with serving on TCP ports."""
        return self._ports_too(ports, "bind_tcp")

    def allow_connect(self, *ports: int) -> Landlock:
        """Return it with connecting to TCP ports, of whichever host."""
        return self._ports_too(ports, "connect_tcp")

    def _ports_too(self, ports: tuple[int, ...], right: str) -> Landlock:
        rules = [PortRule(port=port, rights=frozenset({right})) for port in ports]
        return attrs.evolve(self, port_rules=(*self.port_rules, *rules))

    def report(self, kernel_abi: int) -> Report:
        """Return what a kernel with that ABI enforces of it."""
        wanted = {name: FILES[name] for name in FILES if name in self.files}
        wanted |= {name: PORTS[name] for name in PORTS if name in self.ports}
        wanted |= {name: SCOPES[name] for name in SCOPES if name in self.scopes}
        missing = [f"{name}: {_takes(first)}" for name, first in wanted.items() if first > kernel_abi]
        if self.logging and kernel_abi < _LOGGING_ABI:
            missing.append(f"logging: {_takes(_LOGGING_ABI)}")
        enforced = tuple(name for name, first in wanted.items() if first <= kernel_abi)
        return Report(abi=kernel_abi, enforced=enforced, missing=tuple(missing))

    def operations(self, kernel_abi: int) -> tuple[Operation, ...]:
        """Return the operations that restrict the calling thread; they need ``no_new_privs`` or ``CAP_SYS_ADMIN``.

        Args:
            kernel_abi: what :func:`abi` says.

        Raises:
            UnsupportedError: the kernel can't hold all of it, and it is ``strict``.
        """
        report = self.report(kernel_abi)
        if self.strict and not report.complete:
            hint = f"{'; '.join(report.missing)}, or strict=False"
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
            target="this thread", hint="it needs no_new_privs or CAP_SYS_ADMIN; at most 16 rulesets lie on each other",
        )  # fmt: skip
        rules = [step for rule in self.path_rules for step in _path_steps(rule, self.files & held)]
        rules += [step for port in self.port_rules for step in _port_steps(port, self.ports & held)]
        return (ruleset, *rules, restrict, close(_RULESET))

    def _scoped(self, held: frozenset[str]) -> int:
        return _bits(self.scopes & held, SCOPES)

    def apply(self, *, this_thread_only: bool = False) -> Report:
        """Restrict this process, for good, and all it starts from now on. Sets ``no_new_privs``.

        Args:
            this_thread_only: leave the process's other threads as they are. Each of them could undo nothing, but do all
                for this one; so by default that they exist is an error.

        Raises:
            StateError: there are other threads.
            UnsupportedError: the kernel can't hold all of it, and it is ``strict``.
            SetupError: a path isn't there, or the kernel refuses.
        """
        from containerkit.security.capabilities import no_new_privs
        from containerkit.security.direct import perform

        if not this_thread_only and has_other_threads():
            raise StateError("other threads would stay unrestricted: apply it before they start")
        kernel_abi = abi()
        perform((no_new_privs(), *self.operations(kernel_abi)))
        return self.report(kernel_abi)


def abi() -> int:
    """Return the Landlock ABI of the running kernel, 0 where there is none.

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
    """Tell whether this process has threads besides the calling one, or shares its memory with another process.

    Leaving one's thread group changes nothing where one is alone in it, and is refused otherwise; it needs no /proc,
    which an earlier ruleset may have put out of reach.

    Source: unshare(2), CLONE_THREAD.
    """
    from containerkit._native.calls import syscall

    try:
        syscall("unshare", _CLONE_THREAD)
    except OSError as error:
        return error.errno == EINVAL or len(os.listdir("/proc/self/task")) > 1
    return False


def _takes(first: int) -> str:
    return f"it takes Landlock ABI {first} (Linux {_KERNELS[first]})"


def _bits(names: frozenset[str], table: dict[str, int]) -> int:
    return sum(1 << bit for bit, name in enumerate(table) if name in names)


def _path_steps(rule: PathRule, held: frozenset[str]) -> list[Operation]:
    """Return the steps of one rule.

    Whether the path is a folder shows only once it is opened. What a file can have is given first; what only a folder
    has, in a second step that may fail for a file, which leaves less allowed and not more.
    """
    rights = rule.rights & held
    parts = [part for part in (rights & _OF_FILES, rights - _OF_FILES) if part]
    if not parts:
        return []
    steps = [
        call(
            "landlock_add_rule", _RULESET, _PATH_BENEATH, Block(pack("=Qi", _bits(part, FILES), -1), ((8, _PATH),)), 0,
            target=f"{rule.path} {' '.join(sorted(part))}", tolerate=tolerate, hint="only a folder has these rights",
        )
        for part, tolerate in zip(parts, ((), (EINVAL,)), strict=False)
    ]  # fmt: skip
    hint = "the path of a Landlock rule has to be there; optional=True passes over one that isn't"
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

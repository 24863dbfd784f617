"""What is to be run inside a container, as a value, and the operations by which a process becomes it."""

from __future__ import annotations

import os
from errno import EACCES, ENOENT, ENOTDIR, EPERM
from struct import pack
from typing import TYPE_CHECKING, Final

import attrs

from containerkit import plan
from containerkit._native import constants as k
from containerkit.engine import encode
from containerkit.errors import SpecError
from containerkit.mount import mapping_items, path_inside, sequence
from containerkit.plan import ARGV, ENVP, Block, Operation, Shape, Slot
from containerkit.security.confinement import Confinement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["DEFAULT_ENVIRONMENT", "RESOURCES", "Command", "User"]

DEFAULT_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
"""The environment of a command unless ``env`` gives another; nothing of the caller's is passed on."""

_DEFAULT_PAIRS: Final = tuple(DEFAULT_ENVIRONMENT.items())

RESOURCES: Final = {
    name: number
    for number, name in enumerate(
        (
            *("cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile"),
            *("memlock", "as", "locks", "sigpending", "msgqueue", "nice", "rtprio", "rttime"),
        )
    )
}
"""The resources of setrlimit(2), by name."""

UNLIMITED: Final = 2**64 - 1

_TIOCSCTTY: Final = 0x540E
_STANDARD: Final = (Slot("stdin"), Slot("stdout"), Slot("stderr"))
_USER_HINT: Final = "the id is not mapped in the container's user namespace: see uid_mappings and gid_mappings"
_SEARCHED_ON: Final = (ENOENT, ENOTDIR, EACCES)


def _id(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 2**32 - 2:
        raise SpecError(f"user {whole!r}: {text!r} is not an id from 0 to 4294967294")
    return int(text)


@attrs.frozen
class User:
    """Who a process is, in ids of the container.

    Args:
        uid: the user's id, 0 to 4294967294.
        gid: the group's (default 0).
        groups: supplementary groups (default none).

    Source: credentials(7).
    """

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        for number in (self.uid, self.gid, *self.groups):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 2**32 - 2:
                raise SpecError(f"user: {number!r} is not an id from 0 to 4294967294")

    @classmethod
    def parse(cls, text: str | int | tuple[int, int] | User) -> User | None:
        """Return the user of ``"uid"``, ``"uid:gid"``, an id or a pair; None when there are names in it.

        Raises:
            SpecError: neither ids nor names.
        """
        if isinstance(text, User):
            return text
        if isinstance(text, int):
            return cls(text, text or 0)
        if isinstance(text, tuple):
            if len(text) != 2:
                raise SpecError(f"user {text!r}: must be a pair of uid and gid")
            return cls(*text)
        if not isinstance(text, str) or not text or "\0" in text or text.count(":") > 1:
            raise SpecError(f"user {text!r}: must be 'uid', 'uid:gid' or names")
        uid, colon, gid = text.partition(":")
        if not uid or (colon and not gid):
            raise SpecError(f"user {text!r}: a part is empty")
        if not uid[0].isdecimal() or (gid and not gid[0].isdecimal()):
            return None
        return cls(_id(uid, text), _id(gid, text) if gid else 0)


def _default_rlimits() -> tuple[tuple[str, int, int], ...]:
    """No core dumps, and as many descriptors as programs expect, as far as the caller's own hard limit goes.

    A limit of 0 keeps the kernel from writing a file, but not from starting the machine's program for cores, as the
    machine's root, on what a container has prepared; a limit of 1 keeps it from both.
    Source: core(5), do_coredump() in fs/coredump.c.
    """
    from resource import RLIMIT_CORE, RLIMIT_NOFILE, getrlimit

    hard = getrlimit(RLIMIT_NOFILE)[1]
    most = 1_048_576 if hard < 0 else min(hard, 1_048_576)
    most_core = 1 if (hard_core := getrlimit(RLIMIT_CORE)[1]) < 0 else min(hard_core, 1)
    return (("core", most_core, most_core), ("nofile", min(1024, most), most))


def _rlimits(value: Mapping[str, int | tuple[int, int]] | None) -> tuple[tuple[str, int, int], ...]:
    if value is None:
        return _default_rlimits()
    if isinstance(value, tuple):
        return value  # normalised before
    limits: list[tuple[str, int, int]] = []
    for name, limit in mapping_items(value, "rlimits"):
        key = str(name).lower().removeprefix("rlimit_")
        if key not in RESOURCES:
            raise SpecError(f"rlimits: unknown resource {name!r}; there are {', '.join(sorted(RESOURCES))}")
        pair = limit if isinstance(limit, (tuple, list)) else (limit, limit)
        if len(pair) != 2:
            raise SpecError(f"rlimits: {name}: {limit!r} is neither a number nor a pair of soft and hard limit")
        soft, hard = pair
        for number in (soft, hard):
            if isinstance(number, bool) or not isinstance(number, int) or not -1 <= number <= UNLIMITED:
                raise SpecError(f"rlimits: {name}: {number!r} is not a number (-1 for unlimited)")
        soft, hard = (UNLIMITED if number == -1 else number for number in (soft, hard))
        if soft > hard:
            raise SpecError(f"rlimits: {name}: the soft limit {soft} is over the hard limit {hard}")
        limits.append((key, soft, hard))
    return tuple(sorted(limits))


def _environment(value: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    if value is None:
        return _DEFAULT_PAIRS
    pairs = mapping_items(value, "env")
    for name, content in pairs:
        if not isinstance(name, str) or not name or "=" in name:
            raise SpecError(f"env: {name!r} is no name of a variable")
        if not isinstance(content, (str, bytes, os.PathLike)):
            raise SpecError(f"env: the value of {name!r} must be a string, not {type(content).__name__}")
    return tuple((name, os.fsdecode(content)) for name, content in pairs)


def _cwd(value: str) -> str:
    return value if value == "/" else path_inside(value, "cwd")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _descriptors(value: Iterable[int]) -> tuple[int, ...]:
    descriptors = sequence(value, "pass_fds")
    for fd in descriptors:
        if not _is_number(fd) or not 0 <= fd < 2**31:
            raise SpecError(f"pass_fds: {fd!r} is no file descriptor")
    return descriptors


def _argv(value: Sequence[str | bytes | os.PathLike[str]]) -> tuple[bytes, ...]:
    if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
        raise SpecError(f"command: must be a list of words, not {value!r}; for a shell say ['sh', '-c', {value!r}]")
    words = tuple(encode(list(value), "command"))
    if not words or not words[0]:
        raise SpecError("command: must have at least one word")
    return words


@attrs.frozen(kw_only=True, slots=False)  # so that with_argv, on the way of every start, is one copy
class Command:
    """A program with its arguments, and all that it finds when it starts.

    Args:
        argv: the words; the first is the program: a path, or a name that is looked up inside along PATH.
        env: the environment (default :data:`DEFAULT_ENVIRONMENT`).
        cwd: the working directory, absolute (default ``/``).
        user: who it is (default root of the container).
        umask: 0 to 0o777 (default 0o022).
        rlimits: soft and hard limit by resource name, or one number for both; -1 is unlimited (default: no core dumps,
            1024 descriptors, 1048576 on request; an empty mapping leaves the caller's).
        nice: -20 to 19 (default: as the caller).
        pass_fds: descriptors of the caller that stay open under the same numbers (default none).
        terminal: stdin is a terminal that becomes the controlling one.
        confinement: what it may do.

    Raises:
        SpecError: a value that can't be.
    """

    argv: tuple[bytes, ...] = attrs.field(converter=_argv)
    env: tuple[tuple[str, str], ...] = attrs.field(default=None, converter=_environment)
    cwd: str = attrs.field(default="/", converter=_cwd)
    user: User = User()
    umask: int = 0o022
    rlimits: tuple[tuple[str, int, int], ...] = attrs.field(default=None, converter=_rlimits)
    nice: int | None = None
    pass_fds: tuple[int, ...] = attrs.field(default=(), converter=_descriptors)
    terminal: bool = False
    confinement: Confinement = Confinement()
    _shape: Shape | None = attrs.field(default=None, init=False, eq=False, repr=False)
    _envp: list[bytes] | None = attrs.field(default=None, init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if not _is_number(self.umask) or not 0 <= self.umask <= 0o777:
            raise SpecError(f"umask: {self.umask!r} is not a mode from 0 to 0o777")
        if self.nice is not None and (not _is_number(self.nice) or not -20 <= self.nice <= 19):
            raise SpecError(f"nice: {self.nice!r} is not from -20 to 19")

    def with_argv(self, argv: Sequence[str | bytes | os.PathLike[str]]) -> Command:
        """Return the same with other words; all else was checked when this was made.

        Raises:
            SpecError: no words.
        """
        if self._envp is None or self._shape is None:
            _ = self.envp, self.shape  # what the others have of it
        other: Command = object.__new__(Command)
        other.__dict__.update(self.__dict__, argv=_argv(argv))
        return other

    @property
    def words(self) -> list[str]:
        """The words as people read them."""
        return [os.fsdecode(word) for word in self.argv]

    @property
    def envp(self) -> list[bytes]:
        """The environment as the kernel takes it."""
        if self._envp is None:
            object.__setattr__(self, "_envp", encode([f"{name}={value}" for name, value in self.env], "env"))
        assert self._envp is not None
        return self._envp

    @property
    def candidates(self) -> tuple[bytes, ...]:
        """The paths to try, in order. Source: execvp(3)."""
        program = self.argv[0]
        if b"/" in program:
            return (program,)
        path = os.fsencode(dict(self.env).get("PATH", DEFAULT_ENVIRONMENT["PATH"]))
        return tuple((folder or b".") + b"/" + program for folder in path.split(b":"))

    @property
    def shape(self) -> tuple[object, ...]:
        """All of it that the plan depends on: what differs from start to start alone is left out."""
        if self._shape is None:
            limits = (self.umask, self.rlimits, self.nice, self.pass_fds)
            object.__setattr__(self, "_shape", Shape(self.cwd, self.user, self.terminal, self.confinement, limits))
        path = None if b"/" in self.argv[0] else dict(self.env).get("PATH")
        return (self.argv[0], path, self._shape)


def session(command: Command) -> list[Operation]:
    """Return the operations that give a process a session and its standard streams."""
    steps = [plan.call("setsid")]
    if command.terminal:
        steps += [
            plan.call("ioctl", Slot("stdin"), _TIOCSCTTY, 0, target="controlling terminal"),
            # So that the user can open it by its name as well; its group stays tty.
            plan.call("fchown", Slot("stdin"), command.user.uid, 2**32 - 1, target="terminal", hint=_USER_HINT),
        ]
    for number, slot in enumerate(_STANDARD):
        steps.append(plan.call("dup3", slot, number, 0, target=slot.name))
    return steps


def surroundings(command: Command) -> list[Operation]:
    """Return the operations that need no privilege to be kept: limits, priority."""
    steps = [
        plan.call(
            "prlimit64",
            0,
            RESOURCES[name],
            Block(pack("=QQ", soft, hard)),
            0,
            target=f"{name} {soft}:{hard}",
            hint="raising a hard limit needs CAP_SYS_RESOURCE outside",
        )
        for name, soft, hard in command.rlimits
    ]
    if command.nice is not None:
        steps.append(
            plan.call("setpriority", 0, 0, command.nice, target=f"nice {command.nice}", hint="lower needs CAP_SYS_NICE")
        )
    return steps


def credentials(user: User, *, may_set_groups: bool) -> list[Operation]:
    """Return the operations that make a process that user.

    Args:
        user: whom.
        may_set_groups: False where the user namespace denies setgroups(2) and the groups can only stay.

    Raises:
        SpecError: groups are wanted where they are denied.
    """
    if user.groups and not may_set_groups:
        raise SpecError("user: supplementary groups need a range of ids: give this user one in /etc/subgid")
    members = Block(pack(f"={len(user.groups)}I", *user.groups))
    return [
        plan.call(
            "setgroups",
            len(user.groups),
            members if user.groups else 0,
            target=str(list(user.groups)),
            tolerate=() if may_set_groups else (EPERM,),
            hint=_USER_HINT,
        ),
        plan.call("setresgid", user.gid, user.gid, user.gid, target=f"gid {user.gid}", hint=_USER_HINT),
        plan.call("setresuid", user.uid, user.uid, user.uid, target=f"uid {user.uid}", hint=_USER_HINT),
    ]


def place(command: Command) -> list[Operation]:
    """Return the operations that set the working directory, as the user that the command is, and the umask.

    No magic link is followed on the way, so it can't lie outside (CVE-2024-21626).
    """
    how = pack("=QQQ", k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0, k.RESOLVE_NO_MAGICLINKS)
    where = os.fsencode(command.cwd)
    return [
        plan.call(
            "openat2",
            k.AT_FDCWD,
            where,
            Block(how),
            len(how),
            target=command.cwd,
            result=Slot("cwd"),
            hint="the working directory must be a folder inside",
        ),
        plan.call("fchdir", Slot("cwd"), target=command.cwd),
        plan.call("umask", command.umask),
    ]


def close_the_rest(kept: Iterable[int]) -> list[Operation]:
    """Return the operations after which an exec leaves open only the given descriptors and the standard ones.

    They are marked close-on-exec, not closed: the error pipe must last until then. Source: close_range(2).
    """
    steps: list[Operation] = []
    first = 3
    for fd in sorted(set(kept)):
        if fd < 3:
            continue
        steps.append(plan.call("fcntl", fd, 2, 0, target=f"pass_fds {fd}"))  # F_SETFD
        if fd > first:
            steps.append(plan.call("close_range", first, fd - 1, k.CLOSE_RANGE_CLOEXEC))
        first = fd + 1
    return [*steps, plan.call("close_range", first, 2**32 - 1, k.CLOSE_RANGE_CLOEXEC)]


def execute(command: Command) -> list[Operation]:
    """Return the operations that try each place where the program may be."""
    *others, last = command.candidates
    name = os.fsdecode(command.argv[0])
    steps = [plan.call("execve", path, ARGV, ENVP, target=name, tolerate=_SEARCHED_ON) for path in others]
    return [*steps, plan.call("execve", last, ARGV, ENVP, target=name)]

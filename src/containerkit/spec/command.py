"""The description of a command that runs in a container."""

from __future__ import annotations

import os
from functools import cached_property

from containerkit._native.names import RESOURCES
from containerkit.errors import SpecError
from containerkit.plan.operation import Shape
from containerkit.security.checks import check_bool, text_of
from containerkit.security.confinement import Confinement
from containerkit.spec.words import encode, mapping_items, path_inside, sequence
from containerkit.values import field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from containerkit.options import ListOf, Word

__all__ = [
    "DEFAULT_ENVIRONMENT",
    "LISTEN_FDS",
    "NAMED",
    "Command",
    "User",
    "default_environment",
    "extend_environment",
]

DEFAULT_ENVIRONMENT: Final = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
}
"""The default environment of root's commands. Nothing from the caller's environment is passed on."""

_DEFAULT_PAIRS: Final = tuple(DEFAULT_ENVIRONMENT.items())


def default_environment(user: User, home: str = "/") -> dict[str, str]:
    """Return the default environment of a user's commands.

    Args:
        user: the user.
        home: the user's home directory if it is known. The home of root is always ``/root``.
    """
    return DEFAULT_ENVIRONMENT if user.uid == 0 else {**DEFAULT_ENVIRONMENT, "HOME": home}


def extend_environment(fields: dict[str, Any]) -> None:
    """Put the variables of ``extra_env`` over those of ``env`` in the arguments of a command.

    Args:
        fields: the arguments. ``extra_env`` is removed from them.

    Raises:
        SpecError: a value is not a mapping.
    """
    extra = fields.pop("extra_env", None)
    if extra is None:
        return
    env = fields.get("env")
    base = mapping_items(DEFAULT_ENVIRONMENT if env is None else env, "env")
    fields["env"] = dict((*base, *mapping_items(extra, "extra_env")))


LISTEN_PID: Final = "LISTEN_PID"
LISTEN_FDS: Final = "LISTEN_FDS"
"""The variables that tell a command about the listening sockets that it inherits. Source: sd_listen_fds(3)."""

UNLIMITED: Final = 2**64 - 1


def _id(text: str, whole: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) > 2**32 - 2:
        raise SpecError(f"user {whole!r}: {text!r} is not an id from 0 to 4294967294")
    return int(text)


@frozen
class User:
    """The user and groups of a process, as ids in the container.

    Args:
        uid: the user id, 0 to 4294967294.
        gid: the group id. Default 0.
        groups: supplementary groups. Default: none.

    Source: credentials(7).
    """

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        for number in (self.uid, self.gid, *sequence(self.groups, "user: groups")):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= 2**32 - 2:
                raise SpecError(f"user: {number!r:.100} is not an id from 0 to 4294967294")
        if not isinstance(self.groups, tuple):
            raise SpecError(f"user: groups must be a tuple, not {self.groups!r:.100}")

    @classmethod
    def parse(cls, text: str | int | tuple[int, int] | User) -> User | None:
        """Return the user for ``"uid"``, ``"uid:gid"``, an id or a pair. Return None if the text contains names.

        Raises:
            SpecError: the value consists of neither ids nor names.
        """
        if isinstance(text, User):
            return text
        if isinstance(text, int):
            return cls(text, text or 0)
        if isinstance(text, tuple):
            if len(text) != 2:
                raise SpecError(f"user {text!r}: must be a pair of uid and gid")
            return cls(*text)
        if not text_of(text, "user") or text.count(":") > 1:
            raise SpecError(f"user {text!r:.100}: must be 'uid', 'uid:gid' or names")
        uid, colon, gid = text.partition(":")
        if not uid or (colon and not gid):
            raise SpecError(f"user {text!r}: a part is empty")
        if not uid[0].isdecimal() or (gid and not gid[0].isdecimal()):
            return None
        return cls(_id(uid, text), _id(gid, text) if gid else 0)


NAMED: Final = User(2**32 - 2)
"""A placeholder for a user whose name has not been looked up yet."""


def _default_rlimits() -> tuple[tuple[str, int, int], ...]:
    """Return the default limits: no core dumps, and as many descriptors as programs expect, within the caller's limit.

    With a limit of 0 the kernel writes no core file, but still starts the host's core handler, as root of the host,
    on data that the container controls. With a limit of 1 it does neither.
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
    if isinstance(value, tuple):  # already normalised
        try:
            return _rlimits({name: (soft, hard) for name, soft, hard in value})
        except (TypeError, ValueError) as error:
            if isinstance(error, SpecError):
                raise
            raise SpecError(f"rlimits: must be a mapping, not {value!r:.100}") from None
    limits: list[tuple[str, int, int]] = []
    for name, limit in mapping_items(value, "rlimits"):
        key = str(name).lower().removeprefix("rlimit_")
        if key not in RESOURCES:
            raise SpecError(f"rlimits: unknown resource {name!r}; there are {', '.join(sorted(RESOURCES))}")
        pair: Any = limit if isinstance(limit, (tuple, list)) else (limit, limit)
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


def _environment(value: Mapping[str, Word] | None) -> tuple[tuple[str, str], ...]:
    if value is None:
        return _DEFAULT_PAIRS
    pairs = mapping_items(value, "env")
    made: list[tuple[str, str]] = []
    for name, content in pairs:
        if not text_of(name, "env") or "=" in name:
            raise SpecError(f"env: {name!r:.100} is not a valid variable name")
        what = f"env: the value of {name!r:.100}"
        try:
            made.append((name, text_of(os.fsdecode(content), what)))
        except TypeError:
            raise SpecError(f"{what} must be a string, not {type(content).__name__}") from None
    return tuple(made)


def _cwd(value: str) -> str:
    return value if value == "/" else path_inside(value, "cwd")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _descriptors(value: ListOf[int]) -> tuple[int, ...]:
    descriptors = sequence(value, "pass_fds")
    for fd in descriptors:
        if not _is_number(fd) or not 0 <= fd < 2**31:
            raise SpecError(f"pass_fds: {fd!r} is not a file descriptor")
    return descriptors


def _argv(value: ListOf[Word]) -> tuple[bytes, ...]:
    try:
        given = tuple(value) if not isinstance(value, (str, bytes, dict)) else None
    except TypeError:
        given = None
    if given is None:
        shell = f"; for a shell pass ['sh', '-c', {value!r}]" if isinstance(value, (str, bytes)) else ""
        raise SpecError(f"command: must be a list of strings, not {value!r}{shell}")
    try:
        words = tuple(map(os.fsencode, given))
        if b"\0" in b"".join(words):
            encode(given, "command")  # which reports it
    except UnicodeEncodeError as error:
        raise SpecError(f"command: {error.object!r:.100} has a lone surrogate: {error.reason}") from None
    except TypeError:
        encode(given, "command")  # which reports its type
        raise
    if not words or not words[0]:
        raise SpecError("command: must have at least one argument, the program")
    return words


@frozen(kw_only=True, slots=False)  # so that with_argv, which every start calls, is a single copy
class Command:
    """A program with its arguments and its execution environment.

    Args:
        argv: the program, a path or a name that is looked up inside along PATH, and its arguments.
        env: the environment. Default :data:`DEFAULT_ENVIRONMENT`. ``run`` and ``popen`` set ``HOME`` for the user: for
            a name as in /etc/passwd inside, for root ``/root``, for other ids ``/``.
        cwd: the working directory, absolute (default ``/``).
        user: the user and groups. Default: root of the container.
        umask: 0 to 0o777 (default 0o022).
        rlimits: soft and hard limit by resource name, or one number for both. -1 is unlimited. Default: no core dumps,
            1024 descriptors (hard limit 1048576). With an empty mapping the caller's limits stay.
        nice: -20 to 19 (default: as the caller).
        pass_fds: descriptors of the caller that stay open under the same numbers (default none).
        sockets: the descriptor numbers under which it inherits the listening sockets of published ports.
        terminal: stdin is a terminal that becomes the controlling one.
        confinement: its capabilities, system calls and so on.

    Raises:
        SpecError: a value is invalid.
    """

    argv: tuple[bytes, ...] = field(converter=_argv)
    env: tuple[tuple[str, str], ...] = field(default=None, converter=_environment)
    cwd: str = field(default="/", converter=_cwd)
    user: User = User()
    umask: int = 0o022
    rlimits: tuple[tuple[str, int, int], ...] = field(default=None, converter=_rlimits)
    nice: int | None = None
    pass_fds: tuple[int, ...] = field(default=(), converter=_descriptors)
    sockets: tuple[int, ...] = field(default=(), converter=_descriptors)
    terminal: bool = False
    confinement: Confinement = Confinement()

    def __attrs_post_init__(self) -> None:
        if not _is_number(self.umask) or not 0 <= self.umask <= 0o777:
            raise SpecError(f"umask: {self.umask!r} is not a mode from 0 to 0o777")
        if self.nice is not None and (not _is_number(self.nice) or not -20 <= self.nice <= 19):
            raise SpecError(f"nice: {self.nice!r} is not from -20 to 19")
        if not isinstance(self.user, User):
            raise SpecError(f"user: {self.user!r:.100} is not a User")
        if not isinstance(self.confinement, Confinement):
            raise SpecError(f"confinement: {self.confinement!r:.100} is not a Confinement")
        check_bool(self.terminal, "terminal")

    def with_argv(self, argv: ListOf[Word]) -> Command:
        """Return a copy with another argv. Everything else was checked when this object was made.

        Raises:
            SpecError: the argv is empty or not a list of strings.
        """
        given, envp, path, others = _argv(argv), self.envp, self._path, self._others
        shape = (given[0], None if b"/" in given[0] else path, others)
        other: Command = object.__new__(Command)
        other.__dict__.update(self.__dict__, argv=given, envp=envp, shape=shape)
        return other

    def with_confinement(self, confinement: Confinement) -> Command:
        """Return a copy with another confinement."""
        other: Command = object.__new__(Command)
        other.__dict__.update(self.__dict__, confinement=confinement)
        for known in ("_others", "shape"):
            other.__dict__.pop(known, None)
        return other

    @property
    def words(self) -> list[str]:
        """Its argv as text."""
        return [os.fsdecode(word) for word in self.argv]

    @cached_property
    def envp(self) -> list[bytes]:
        """The environment as execve expects it. If there are sockets to announce, it begins with room for a pid."""
        told = [f"{LISTEN_PID}={0:010}", f"{LISTEN_FDS}={len(self.sockets)}"] if self.announces else []
        return encode([*told, *(f"{name}={value}" for name, value in self.env)], "env")

    @cached_property
    def announces(self) -> bool:
        """Whether the environment announces its listening sockets.

        They are numbered from 3 without gaps, and ``env`` sets neither variable itself.

        Source: sd_listen_fds(3).
        """
        in_a_row = sorted(self.sockets) == list(range(3, 3 + len(self.sockets)))
        return bool(self.sockets) and in_a_row and not {LISTEN_PID, LISTEN_FDS} & {name for name, _ in self.env}

    @property
    def pid_variable(self) -> str:
        """The variable of the environment that gets the command's own pid, or an empty string."""
        return LISTEN_PID if self.announces else ""

    @property
    def candidates(self) -> tuple[bytes, ...]:
        """The paths to try, in order. Source: execvp(3)."""
        program = self.argv[0]
        if b"/" in program:
            return (program,)
        path = os.fsencode(dict(self.env).get("PATH", DEFAULT_ENVIRONMENT["PATH"]))
        return tuple((directory or b".") + b"/" + program for directory in path.split(b":"))

    @cached_property
    def shape(self) -> tuple[bytes, str | None, Shape]:
        """The parts of it on which a plan depends.

        The program, where it is looked up, and the attributes of the process.
        """
        program = self.argv[0]
        return program, None if b"/" in program else self._path, self._others

    @cached_property
    def _path(self) -> str | None:
        return dict(self.env).get("PATH")

    @cached_property
    def _others(self) -> Shape:
        limits = (self.umask, self.rlimits, self.nice, self.pass_fds, self.sockets, self.announces)
        return Shape(self.cwd, self.user, self.terminal, self.confinement, limits)

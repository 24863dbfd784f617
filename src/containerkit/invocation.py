"""Turns the keyword arguments of ``run`` and ``popen`` into a command and its streams, and a process into a result."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import attrs

from containerkit.command import Command, User
from containerkit.conversation import Conversation, check_input
from containerkit.errors import SpecError
from containerkit.mount import sequence
from containerkit.process import DEVNULL, PIPE, Process
from containerkit.spec import CONFINEMENT, Spec
from containerkit.streams import require_open

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.result import CompletedProcess
    from containerkit.rootfs import RootFS

__all__ = [
    "COMMAND_FIELDS",
    "STREAM_ARGUMENTS",
    "Recall",
    "check_numbers",
    "complete",
    "describe",
    "has_names",
    "owns_nothing",
    "run_streams",
    "unresolved_user",
    "with_defaults",
]

COMMAND_FIELDS: Final = (
    frozenset(field.name for field in attrs.fields(Command) if field.init) - {"argv", "terminal", "confinement"}
    | {"groups"}
    | CONFINEMENT
)
"""The arguments that describe the command."""

STREAM_ARGUMENTS: Final = frozenset(
    {"stdin", "stdout", "stderr", "text", "encoding", "errors", "pty", "own_group", "syscall_handler"}
)
"""The arguments that describe its streams."""


_PLAIN: Final = frozenset({bool, int, str, bytes, type(None)})

Made = TypeVar("Made")


class Recall(Generic[Made]):
    """Keeps what the last sets of keyword arguments came to, as far as they are values that can't change.

    Args:
        size: how many.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._kept: dict[Any, Made] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(
        self, arguments: dict[str, Any], make: Callable[[dict[str, Any]], Made], lasts: Callable[[Made], bool]
    ) -> Made:
        """Return what was made of the same arguments, or make it.

        Args:
            arguments: the arguments.
            make: what makes it.
            lasts: tells whether it would come to the same again.
        """
        # With the types: True is no number here.
        key = tuple((name, type(value), _fixed(value)) for name, value in arguments.items())
        try:
            known = self._kept.get(key)
        except TypeError:  # something in it can change
            return make(arguments)
        if known is not None:
            return known
        made = make({name: copy(value) if type(value) in (list, dict) else value for name, value in arguments.items()})
        if all(_is_plain(value) for value in arguments.values()) and lasts(made):
            while len(self._kept) >= self._size:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = made
        return made


def _fixed(value: Any) -> Any:
    if type(value) is dict:
        return tuple(value.items())
    return tuple(value) if type(value) is list else value


def _is_plain(value: Any) -> bool:
    """Whether equal values mean the same: texts, numbers by themselves, and what checks what is in it."""
    kind = type(value)
    if kind is dict:
        return all(type(each) is str for pair in value.items() for each in pair)
    if kind in (list, tuple, frozenset):
        return all(type(each) is str or _is_ours(type(each)) for each in value)
    return kind in _PLAIN or _is_ours(kind)


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("containerkit.")


def owns_nothing(spec: Spec) -> bool:
    """Whether nothing in a description is its owner's to close: no handle of a namespace; a pool is closed anyhow."""
    joined = (spec.namespaces[kind] for kind in spec.namespaces.joined())
    return all(type(choice).__name__ == "NetworkPool" for choice in joined)


def describe(spec: Spec, argv: Any, fields: Mapping[str, Any], *, terminal: bool = False) -> Command:
    """Return the command of keyword arguments, held as the container says unless they say otherwise.

    Raises:
        SpecError: an unknown name among them, or a descriptor to pass that is not open.
    """
    if unknown := sorted(set(fields) - COMMAND_FIELDS):
        raise SpecError(f"unknown argument {unknown[0]!r}; there are {', '.join(sorted(COMMAND_FIELDS))}")
    own = {name: value for name, value in fields.items() if name not in CONFINEMENT and name not in ("user", "groups")}
    if own.get("cwd", "") is None:
        del own["cwd"]
    changed = {name: value for name, value in fields.items() if name in CONFINEMENT}
    confinement = attrs.evolve(spec.confinement, **changed) if changed else spec.confinement
    user = fields.get("user")
    parsed = User() if user is None else User.parse(user)
    if parsed is None:
        raise SpecError(f"user {user!r}: a name can only be looked up in a container that runs")
    if fields.get("groups") is not None:
        parsed = attrs.evolve(parsed, groups=sequence(fields["groups"], "groups"))
    command = Command(argv=argv, user=parsed, terminal=terminal, confinement=confinement, **own)
    for fd in command.pass_fds:
        require_open(fd, "pass_fds")
    return command


def with_defaults(rootfs: RootFS, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a command, with those of the root's defaults for which nothing else is given.

    Each counts as a whole: an ``env`` of the command's own replaces that of an image.
    """
    merged = dict(fields)
    for name, value in rootfs.defaults:
        if merged.get(name) is None:
            merged[name] = dict(value) if name == "env" else value
    return merged


def unresolved_user(rootfs: RootFS, fields: Mapping[str, Any]) -> str | None:
    """Return the user of a command if only a container that runs can look it up, else None.

    These are names, and an image's ids without a group: theirs is the one in the image's /etc/passwd.
    Source: OCI image specification, config.md, "User".
    """
    user = fields.get("user")
    if user is None and rootfs.defaults:
        user = dict(rootfs.defaults).get("user")
        if isinstance(user, str) and ":" not in user:
            return user
    return user if isinstance(user, str) and User.parse(user) is None else None


def has_names(rootfs: RootFS, fields: Mapping[str, Any]) -> bool:
    """Tell whether a user or group of a command is one that only a container that runs can look up."""
    if unresolved_user(rootfs, fields) is not None:
        return True
    return any(isinstance(group, str) for group in sequence(fields.get("groups") or (), "groups"))


def run_streams(given: Any, more: dict[str, Any], *, capture: bool) -> dict[str, Any]:
    """Return the arguments of ``run`` with its own defaults for the streams.

    Raises:
        SpecError: both input and stdin, or an input of the wrong type.
    """
    options = dict(more)
    check_input(given, text=bool(options.get("text") or options.get("encoding") or options.get("errors")))
    if given is not None:
        if options.get("stdin") is not None:
            raise SpecError("input and stdin can't both be given")
        options["stdin"] = PIPE
    options.setdefault("stdin", DEVNULL)
    if capture:
        options.setdefault("stdout", PIPE)
        options.setdefault("stderr", PIPE)
    return options


def complete(
    process: Process,
    began: float,
    given: Any,
    timeout: float | None,
    limit: int | None,
    *,
    check: bool,
    heard: tuple[bytes, bytes] | None = None,
    deadline: float | None = None,
) -> CompletedProcess:
    """Talk with a process to its end and return what became of it.

    Args:
        process, given, timeout, limit, check: as for ``run``.
        began: when ``run`` was called, by the monotonic clock.
        heard, deadline: what was heard of it already, and until when there is time, by the monotonic clock.

    Raises:
        ContainerTimeout, ExitError, OutOfMemory: as for ``run``.
    """
    try:
        talk = Conversation(process, given, timeout, limit)
        if heard is not None:
            talk.go_on(heard, deadline)
        stdout, stderr = talk.hold()
    except BaseException:
        process.close()
        raise
    assert process.returncode is not None
    assert process.usage is not None
    from containerkit.result import CompletedProcess

    done = CompletedProcess.now(process.args, process.returncode, (stdout, stderr), process.usage, process.cause, began)
    if process.supervision is not None and process.supervision.error is not None:
        raise process.supervision.error
    if check:
        done.check_returncode()
    return done


def check_numbers(timeout: float | None, limit: int | None) -> None:
    """Refuse a timeout or a limit that is no such number.

    Raises:
        SpecError: it is not.
    """
    # "not >=" refuses what is no number at all, too
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0):
        raise SpecError(f"timeout: {timeout!r} is not a number of seconds")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise SpecError(f"output_limit_bytes: {limit!r} is not a number of bytes")

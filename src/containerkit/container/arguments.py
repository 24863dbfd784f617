"""Convert the keyword arguments of ``run`` and ``popen`` to a command and its streams, and a process to a result."""

from __future__ import annotations

from containerkit._linux.privileges import is_privileged
from containerkit.errors import SpecError
from containerkit.process.communicate import check_input
from containerkit.process.process import DEVNULL, PIPE
from containerkit.process.stdio import Streams, Text, require_open
from containerkit.spec.command import NAMED, Command, User, default_environment, extend_environment
from containerkit.spec.container import CONFINEMENT, Spec, check_names
from containerkit.spec.words import sequence
from containerkit.values import evolve, fields_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Final

    from containerkit.options import Input, ListOf, Word
    from containerkit.process.communicate import LineCallbacks
    from containerkit.spec.rootfs import RootFS

__all__ = [
    "COMMAND_FIELDS",
    "POPEN_ARGUMENTS",
    "RUN_ARGUMENTS",
    "STREAM_ARGUMENTS",
    "confine_for_streams",
    "describe",
    "has_names",
    "owns_nothing",
    "run_streams",
    "unresolved_user",
    "with_defaults",
]

COMMAND_FIELDS: Final = (
    frozenset(each.name for each in fields_of(Command) if each.init) - {"argv", "terminal", "confinement", "sockets"}
    | {"groups", "extra_env"}
    | CONFINEMENT
)
"""The arguments that describe the command."""

STREAM_ARGUMENTS: Final = frozenset(
    {"stdin", "stdout", "stderr", "text", "encoding", "errors", "pty", "own_group", "syscall_handler"}
)
"""The arguments that describe its streams."""

POPEN_ARGUMENTS: Final = COMMAND_FIELDS | STREAM_ARGUMENTS
RUN_ARGUMENTS: Final = (
    POPEN_ARGUMENTS | {"input", "timeout", "check", "capture_output", "output_limit_bytes"} | {"on_stdout", "on_stderr"}
)
"""The arguments of ``popen`` and of ``run`` in a container."""


def owns_nothing(spec: Spec) -> bool:
    """Return whether a description contains no object, except a pool, that its owner may close (a namespace)."""
    joined = [spec.namespaces[kind] for kind in spec.namespaces.joined()]
    if hasattr(spec.network, "keep_until_stopped"):
        return False
    if not joined:
        return True
    from containerkit.namespace import Namespace  # late, with all that handles need

    return not any(isinstance(choice, (int, str, Namespace)) for choice in joined)


def describe(
    spec: Spec, argv: ListOf[Word], fields: Mapping[str, Any], *, terminal: bool = False, rootfs: RootFS | None = None
) -> Command:
    """Return the command for keyword arguments. The container's confinement applies unless they override it.

    Args:
        spec: the container.
        argv: the program and its arguments.
        fields: the keyword arguments.
        terminal: as for :class:`containerkit.spec.command.Command`.
        rootfs: the root that a provider made (default: the one in ``spec``).

    Raises:
        SpecError: an unknown argument, or a descriptor to pass that is not open.
    """
    check_names("command", fields, COMMAND_FIELDS)
    own = {name: value for name, value in fields.items() if name not in CONFINEMENT and name not in ("user", "groups")}
    if own.get("cwd", "") is None:
        del own["cwd"]
    changed = {name: value for name, value in fields.items() if name in CONFINEMENT}
    confinement = evolve(spec.confinement, **changed) if changed else spec.confinement
    user = fields.get("user")
    parsed = User() if user is None else User.parse(user)
    if parsed is None:
        raise SpecError(f"user {user!r}: a name can only be looked up in a running container")
    if fields.get("groups") is not None:
        parsed = evolve(parsed, groups=sequence(fields["groups"], "groups"))
    if own.get("env") is None and parsed.uid:
        own["env"] = default_environment(parsed)
    extend_environment(own)
    sockets = tuple(port.fd for port in spec.publish if port.fd is not None)
    command = Command(argv=argv, user=parsed, terminal=terminal, confinement=confinement, sockets=sockets, **own)
    for fd in command.pass_fds:
        require_open(fd, "pass_fds")
    if confinement.set_id_bits is not None:
        return command
    refused = spec.writes_to_host(confinement, rootfs) or (bool(command.pass_fds) and _owns_what_it_gets(spec))
    return command.with_confinement(evolve(confinement, set_id_bits=not refused))


def confine_for_streams(command: Command, streams: Streams, spec: Spec, fields: Mapping[str, Any]) -> Command:
    """Return a command of :func:`describe` with a confinement that fits the files of its standard streams.

    If its user owns such a file, the command could write a program to it and set the set-user-ID bit.

    Args:
        command: the command.
        streams: its standard streams.
        spec: the container.
        fields: the keyword arguments, as for :func:`describe`.
    """
    asked = fields.get("set_id_bits", spec.confinement.set_id_bits)
    confinement = command.confinement
    if asked is not None or not confinement.set_id_bits or not streams.has_files or not _owns_what_it_gets(spec):
        return command
    return command.with_confinement(evolve(confinement, set_id_bits=False))


def _owns_what_it_gets(spec: Spec) -> bool:
    """Return whether ids inside may be ids of the host's users. Then a command can own files passed by descriptor."""
    return spec.namespaces.user != "new" or spec.uid_mappings is not None or not is_privileged()


def with_defaults(rootfs: RootFS, fields: Mapping[str, Any], found: tuple[User, str] | None = None) -> dict[str, Any]:
    """Return the arguments of a command. Missing ones are taken from the root's defaults.

    Each argument replaces the default as a whole, such as ``env``. An image's ``env`` gets the ``HOME`` of the
    command's user unless the image sets one.

    Args:
        rootfs: the root.
        fields: the arguments.
        found: the user and its home directory, if they were looked up inside.

    Raises:
        SpecError: the user is invalid.
    """
    merged = dict(fields)
    pairs: tuple[tuple[str, Any], ...] = rootfs.defaults
    for name, value in pairs:
        if merged.get(name) is None:
            merged[name] = dict(value) if name == "env" else value
    if found is not None:
        merged["user"] = found[0]
    if fields.get("env") is None and (found is not None or merged.get("env") is not None):
        user = merged.get("user")
        merged["env"] = {
            **default_environment(User() if user is None else User.parse(user) or NAMED, found[1] if found else "/"),
            **(merged.get("env") or {}),
        }
    return merged


def unresolved_user(rootfs: RootFS, fields: Mapping[str, Any]) -> str | None:
    """Return the user of a command if only a running container can look it up, else None.

    This applies to names, and to an image's id without a group, which is in the image's /etc/passwd.
    Source: OCI image specification, config.md, "User".
    """
    user = fields.get("user")
    if user is None and rootfs.defaults:
        user = dict(rootfs.defaults).get("user")
        if isinstance(user, str) and ":" not in user:
            return user
    return user if isinstance(user, str) and User.parse(user) is None else None


def has_names(rootfs: RootFS, fields: Mapping[str, Any]) -> bool:
    """Return whether only a running container can look up a user or group of a command."""
    if unresolved_user(rootfs, fields) is not None:
        return True
    return any(isinstance(group, str) for group in sequence(fields.get("groups") or (), "groups"))


def run_streams(
    given: Input, more: Mapping[str, Any], *, capture: bool, callbacks: LineCallbacks | None = None
) -> dict[str, Any]:
    """Return the arguments of ``run`` with its own defaults for the streams.

    Raises:
        SpecError: both input and stdin, an input of the wrong type, or a callback for a stream that is not captured.
    """
    options = dict(more)
    check_input(given, text=bool(options.get("text") or options.get("encoding") or options.get("errors")))
    if isinstance(given, str):
        text = Text.of(True, options.get("encoding"), options.get("errors"))
        try:
            given.encode(*(text or ("utf-8", "strict")))
        except UnicodeEncodeError as error:
            raise SpecError(f"input: {error}") from None
    if given is not None:
        if options.get("stdin") is not None:
            raise SpecError("input and stdin can't both be given")
        options["stdin"] = PIPE
    options.setdefault("stdin", DEVNULL)
    if capture:
        options.setdefault("stdout", PIPE)
        options.setdefault("stderr", PIPE)
    if callbacks is not None and not options.get("pty"):
        for name, call in (("stdout", callbacks.on_stdout), ("stderr", callbacks.on_stderr)):
            if call is not None and options.setdefault(name, PIPE) != PIPE:
                raise SpecError(f"on_{name}: {name} is redirected: leave {name} out")
    return options

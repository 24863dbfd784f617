"""The keyword arguments that several calls share: their names, types and meanings, each in one place.

Type checkers and editors see them through ``**options: Unpack[RunOptions]`` in a signature. The docstrings of the calls
get the meanings from here (see :mod:`containerkit.meanings`), so ``help()`` describes each one. Wrappers can be typed
in the same way::

    from typing import Unpack
    from containerkit import Container
    from containerkit.options import ContainerOptions

    def worker(**options: Unpack[ContainerOptions]) -> Container:
        return Container(hostname="worker", **options)

At run time :func:`containerkit.spec.container.check_names` checks the names. Source: PEP 589, PEP 692.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypedDict, TypeVar

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from typing import Literal, TypeAlias

    from containerkit.cgroup import Limits
    from containerkit.container.lifecycle import Container
    from containerkit.namespace import Namespaces, TimeOffsets
    from containerkit.network import LiveNetwork
    from containerkit.network.kept import Kept
    from containerkit.security.capabilities import Capabilities
    from containerkit.security.confinement import Confinement
    from containerkit.security.landlock import Landlock
    from containerkit.security.listener import Reply, SyscallRequest
    from containerkit.security.lsm import AppArmor, SELinux
    from containerkit.security.personality import Personality
    from containerkit.security.seccomp import Seccomp
    from containerkit.spec.command import User
    from containerkit.spec.idmap import IdMapping
    from containerkit.spec.mount import Mount
    from containerkit.spec.network import CNI, DNS, Attach, Egress, Macvlan, Network, Port
    from containerkit.spec.rootfs import RootFS, UnionBy

    Word = str | bytes | os.PathLike[str]
    Stream: TypeAlias = "int | HasDescriptor | None"
    Input = str | bytes | bytearray | memoryview | None
    Handler = Callable[[SyscallRequest], Reply] | Callable[[SyscallRequest], Awaitable[Reply]]
    Listener = Callable[[str], object] | Callable[[bytes], object]
    HidePid = Literal["noaccess", "invisible", "ptraceable"]
    Keyring = Literal["new", "host"]
    OneNetwork: TypeAlias = "Network | LiveNetwork | Kept | Attach | Literal['internet']"
    NetworkChoice: TypeAlias = "str | OneNetwork | ListOf[OneNetwork] | Container | Macvlan | CNI"
    Propagation = Literal["private", "slave", "shared", "unbindable"]

__all__ = [
    "AddedEnvironmentOptions",
    "AnyLaunchOptions",
    "AnyPopenOptions",
    "AnySandboxPopenOptions",
    "CommandOptions",
    "ConfinementOptions",
    "ContainerOptions",
    "DescriptionOptions",
    "DetachOptions",
    "DirectoryOptions",
    "EnvironmentOptions",
    "FilesystemOptions",
    "HasDescriptor",
    "InitOptions",
    "KeepingOptions",
    "LaunchOptions",
    "ListOf",
    "MountOptions",
    "OnePopenOptions",
    "OneShotOptions",
    "OverlayOptions",
    "PopenOptions",
    "ProcessOptions",
    "ResourceOptions",
    "RunOptions",
    "SandboxCommandOptions",
    "SandboxPopenOptions",
    "SandboxRunOptions",
    "StreamOptions",
    "TemplateOptions",
    "TemplateRunOptions",
    "TerminalAndGroupOptions",
    "TextOptions",
    "UserOptions",
    "WaitOptions",
]

Item_co = TypeVar("Item_co", covariant=True)


class ListOf(Protocol[Item_co]):
    """A list, a tuple, or another collection. A string is refused, although it is a collection of strings."""

    def __iter__(self) -> Iterator[Item_co]:
        """Iterate over the items."""

    def __contains__(self, item: object, /) -> bool:
        """Return whether an item is contained. A string accepts only strings here, which distinguishes it."""


class HasDescriptor(Protocol):
    """A file, or something else that has a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


# --- Containers


class DescriptionOptions(TypedDict, total=False):
    """The description of a container, apart from its root."""

    mounts: ListOf[Mount]
    """More mounts, in order."""
    volumes: ListOf[str] | Mapping[str, str] | None
    """Binds in short form: ``["./src:/src:ro"]`` or ``{"./src": "/src:ro"}``, after ``mounts`` (default none)."""
    devices: ListOf[str] | None
    """Devices of the host: ``["/dev/fuse", "/dev/ttyUSB0:/dev/modem"]`` (default none). If root starts the container,
    root inside may use them; otherwise only the host's own node is shown, which the caller must be allowed to use."""
    namespaces: Namespaces
    """Which of the eight kinds of namespaces are new, joined or inherited (default: all new)."""
    hostname: str | None
    """The host name in the uts namespace (default ``"container"``). With ``RootFS.host()`` it is in /etc/hosts inside,
    as 127.0.0.1."""
    domainname: str | None
    """The NIS domain name in the uts namespace (default none)."""
    uid_mappings: ListOf[IdMapping] | None
    """User ids of the user namespace (default: a private range of 65,536; for an unprivileged user all ids granted to
    it, or only its own, as root)."""
    gid_mappings: ListOf[IdMapping] | None
    """Group ids of the user namespace; must be given if ``uid_mappings`` is, and only then."""
    time_offsets: TimeOffsets | None
    """Offsets of the clocks in the time namespace."""
    sysctls: Mapping[str, str | int]
    """Kernel parameters of the new namespaces, by name."""
    masked_paths: ListOf[str]
    """Absolute paths that are hidden (default: the list of the OCI specification)."""
    readonly_paths: ListOf[str]
    """Absolute paths that are read-only (default: the list of the OCI specification)."""
    limits: Limits | None
    """Resource limits (default: no control group)."""
    nested_userns: bool
    """Whether it may create user namespaces of its own (default False)."""
    confinement: Confinement
    """The restrictions of its commands as one value, in place of the single arguments."""
    network: NetworkChoice
    """``"none"`` (default): only a loopback interface. ``"internet"``: access to the outside, but to no other
    container. A :class:`~containerkit.Network`, described or open: access to its other containers and the outside. An
    :class:`~containerkit.Attach` gives details; a list gives several networks. Another container, or ``"container:ID"``
    for one of another process: its network is shared. ``"host"``: the host's network, without isolation. A
    :class:`~containerkit.Macvlan` or :class:`~containerkit.CNI`."""
    publish: ListOf[Port | int | str]
    """Ports of the host that are forwarded inside: a :class:`~containerkit.Port`, a number for the same port on
    127.0.0.1, or text in the syntax of docker's ``-p`` (default none)."""
    egress: Egress | None
    """The destinations it may reach outside its networks (default: with ``"internet"`` or a network all of them, except
    private ranges, link-local addresses and the host)."""
    dns: DNS | None
    """The servers that resolve names outside of its networks (default: those of the host)."""
    hosts: Mapping[str, str]
    """More lines of /etc/hosts inside, address by name; ``"host-gateway"`` means the host's own address, which needs an
    egress rule to be reached (default none)."""


class ConfinementOptions(TypedDict, total=False):
    """The restrictions of a command. The default is suitable for untrusted code."""

    capabilities: Capabilities
    """The five sets, and the securebits (default: no capability)."""
    seccomp: Seccomp | Literal["default"] | None
    """The filter of system calls; ``"default"`` for the one that matches the capabilities, None for none. A filter that
    notifies needs a ``syscall_handler`` when the command is started."""
    set_id_bits: bool | None
    """Whether files can get set-user-ID and set-group-ID bits, and file capabilities with ``CAP_SETFCAP``. True allows
    it, False refuses it by the filter. None (default) refuses it if a file of the host can be written, because such a
    program would serve any user of the host. It applies to every ``seccomp`` except None."""
    landlock: Landlock | None
    """A Landlock ruleset as a second protection inside (default none)."""
    no_new_privs: bool
    """Whether an exec never grants more privileges (default True)."""
    keyring: Keyring
    """``"new"`` for a session keyring of its own (default), ``"host"`` for the caller's."""
    oom_score_adj: int | None
    """The OOM score adjustment, -1000 to 1000; the highest is killed first for lack of memory (default: caller's)."""
    apparmor: AppArmor | str | None
    """The name of a loaded profile, in effect from the exec on (default: the caller's)."""
    selinux: SELinux | str | None
    """The context, ``user:role:type`` or ``user:role:type:level``, in effect from the exec on (default: by policy)."""
    personality: Personality | str | None
    """The execution domain, ``"LINUX32"`` or a :class:`~containerkit.security.personality.Personality` (default: the
    caller's)."""


class ContainerOptions(DescriptionOptions, ConfinementOptions, total=False):
    """The description of a container, apart from its root, and the default restrictions of its commands."""


class TemplateOptions(ContainerOptions, total=False):
    """The description of the containers of a template."""

    rootfs: RootFS
    """The root filesystem, seen as ``/`` (default ``RootFS.host()``)."""


# --- Commands


class AddedEnvironmentOptions(TypedDict, total=False):
    """Additions to the environment of a command."""

    extra_env: Mapping[str, Word] | None
    """Variables that are added to ``env`` or to its default (default none)."""


class EnvironmentOptions(AddedEnvironmentOptions, total=False):
    """The environment of a command."""

    env: Mapping[str, Word] | None
    """The complete environment; nothing from the caller's is passed on (default: that of the image, else ``PATH`` and
    ``HOME``: for a user name from /etc/passwd inside, for root ``/root``, for other ids ``/``)."""


class DirectoryOptions(TypedDict, total=False):
    """The working directory of a command."""

    cwd: str | None
    """The working directory, absolute, inside (default: that of the image, else ``/``)."""


class ResourceOptions(TypedDict, total=False):
    """The umask, resource limits and nice value of a command."""

    umask: int
    """The umask, 0 to 0o777 (default 0o022)."""
    rlimits: Mapping[str, int | tuple[int, int]] | None
    """Soft and hard limit by resource name, such as ``nofile``, or one number for both; -1 is unlimited (default: no
    core dumps and 1024 descriptors with a hard limit of 1048576; an empty mapping keeps the caller's)."""
    nice: int | None
    """The nice value, -20 to 19 (default: the caller's)."""


class ProcessOptions(ResourceOptions, total=False):
    """More properties of a command's process."""

    pass_fds: ListOf[int]
    """Descriptors of the caller that stay open under the same numbers (default none)."""


class UserOptions(TypedDict, total=False):
    """The user of a command."""

    user: User | str | int | tuple[int, int] | None
    """A uid, a pair of uid and gid, ``"uid:gid"``, or names in the container's /etc/passwd and /etc/group (default:
    that of the image, else root of the container)."""
    groups: ListOf[int | str] | None
    """Supplementary groups, ids or names (default: for a user name those of /etc/group, else none)."""


class KeepingOptions(TypedDict, total=False):
    """How a detached container is kept."""

    restart: str
    """Whether it is started again after its end: ``"no"`` (default), ``"on-failure"``, ``"on-failure:N"`` for at most N
    times in a row, ``"always"`` or ``"unless-stopped"``. A container that was stopped by hand is not."""
    labels: Mapping[str, str]
    """Free strings (default none)."""
    stop_signal: int | str | None
    """The signal that asks it to end (default: the image's, or SIGTERM)."""
    stop_timeout_s: float
    """Seconds that it has to end after the stop signal (default 10)."""
    tty: bool
    """Whether its command gets a terminal (default False)."""
    stdin_open: bool
    """Whether its standard input stays open, for clients that attach to it (default False: it is empty)."""
    remove: bool
    """Whether it is removed when it ends (default False)."""
    log_max_bytes: int
    """The size in bytes at which a log is rotated, at least 4096 (default 16 MiB)."""
    log_files: int
    """How many logs are kept, at least 1 (default 3)."""
    image: str
    """The name of its image, for display (default: that of ``RootFS.image``)."""
    command_line: tuple[str, ...]
    """The options and the command of ``containerkit run`` that would create it again (default: unknown)."""
    directory: str
    """The working directory of that command."""
    healthcheck: bool
    """Whether its health is checked, as defined here or by its image (default True)."""
    health_command: ListOf[Word] | str
    """The command that checks it. Status 0 means healthy. Text is run by /bin/sh (default: the image's command)."""
    health_interval_s: float
    """Seconds from the end of one check to the next (default 30)."""
    health_timeout_s: float
    """Seconds after which a check has failed (default 30)."""
    health_retries: int
    """The number of consecutive failures that make it unhealthy (default 3)."""
    health_start_period_s: float
    """The start period in seconds: failures do not count in it until a check has passed (default 0)."""
    health_start_interval_s: float
    """Seconds between two checks in the start period (default 5)."""
    health_on_failure: Literal["none", "kill", "stop"]
    """The action when it becomes unhealthy: ``"none"`` (default), ``"kill"`` (it may be restarted) or ``"stop"``."""


class DetachOptions(EnvironmentOptions, DirectoryOptions, ResourceOptions, UserOptions, KeepingOptions, total=False):
    """The arguments of :meth:`Container.detach`, apart from the name and the command."""

    start: bool
    """Whether it is started at once (default True). Otherwise it is only recorded, for :meth:`Detached.start`."""


class StreamOptions(TypedDict, total=False):
    """The standard streams of a command, and the handler of its system calls."""

    stdin: Stream
    """``PIPE``, ``DEVNULL``, a descriptor or a file; None shares the caller's."""
    stdout: Stream
    """As ``stdin``."""
    stderr: Stream
    """As ``stdin``; also ``STDOUT``."""
    syscall_handler: Handler | None
    """Decides the system calls that the seccomp filter notifies of. It gets a :class:`SyscallRequest` and returns a
    reply. It may be a coroutine function."""


class TerminalAndGroupOptions(TypedDict, total=False):
    """The terminal and the control group of a command."""

    pty: bool | tuple[int, int]
    """Whether to allocate a terminal: True or (rows, columns). ``stdin`` and ``stdout`` of the result are then the
    other side of it, and the arguments ``stdin``, ``stdout`` and ``stderr`` are ignored (default False)."""
    own_group: bool
    """Whether the command gets its own control group within the container's, if there are limits (default True). Then
    ``usage`` is that of the command alone, ``cause`` says whether it was killed for lack of memory, and a timeout kills
    everything that it started. With False it is counted with the whole container."""


class TextOptions(TypedDict, total=False):
    """Text mode of a command's streams."""

    text: bool | None
    """Whether its streams are ``str``; UTF-8 unless an encoding is given (default: bytes)."""
    encoding: str | None
    """The encoding; implies text mode."""
    errors: str | None
    """How to handle decoding errors, as in :func:`codecs.register_error`; implies text mode."""


class WaitOptions(TypedDict, total=False):
    """How long to wait for a command, and which output to keep."""

    timeout: float | None
    """The timeout in seconds. When it expires, the command and all that it started are killed (default: none)."""
    check: bool
    """Whether to raise an error if its status is not 0 (default False)."""
    capture_output: bool
    """Whether to capture its output, unless ``stdout`` or ``stderr`` are given (default True)."""
    output_limit_bytes: int | None
    """The limit of captured output in bytes. A command that writes more is killed (default 256 MiB; None for no
    limit)."""
    on_stdout: Listener | None
    """A function that is called with each line of stdout when it is written, in the caller's thread. The line is
    ``str`` in text mode, else bytes, without its end. Lines of more than 64 KiB are passed in parts. An exception in it
    ends the command. With ``capture_output=False`` the output is neither kept nor counted (default none)."""
    on_stderr: Listener | None
    """The same for stderr."""


class InitOptions(TypedDict, total=False):
    """How to start a command that is the only one in its container."""

    init: bool
    """Whether it is the child of a small PID 1 that reaps orphans (default True). With False it is PID 1 itself, which
    starts faster, but then the kernel does not deliver signals for which it has no handler."""


class CommandOptions(
    EnvironmentOptions, DirectoryOptions, ProcessOptions, UserOptions, ConfinementOptions, total=False
):
    """The description of a command, apart from its argv."""


class PopenOptions(CommandOptions, StreamOptions, TerminalAndGroupOptions, total=False):
    """The arguments of :meth:`Container.popen`, apart from those for text mode."""


class AnyPopenOptions(PopenOptions, TextOptions, total=False):
    """The same, and those for text mode."""


class RunOptions(PopenOptions, WaitOptions, total=False):
    """The arguments of :meth:`Container.run`, apart from the input and those for text mode."""


class TemplateRunOptions(RunOptions, InitOptions, total=False):
    """The arguments of :meth:`Template.run`, apart from the input and those for text mode."""


class LaunchOptions(
    DescriptionOptions,
    EnvironmentOptions,
    DirectoryOptions,
    ProcessOptions,
    UserOptions,
    ConfinementOptions,
    StreamOptions,
    TerminalAndGroupOptions,
    total=False,
):
    """The description of a container and its only command."""

    rootfs: RootFS
    """The root filesystem, seen as ``/`` (default ``RootFS.host()``)."""


class AnyLaunchOptions(LaunchOptions, TextOptions, total=False):
    """The same, and the arguments for text mode."""


class OneShotOptions(LaunchOptions, WaitOptions, InitOptions, total=False):
    """The arguments of :func:`containerkit.run`, apart from the input and those for text mode."""


class OnePopenOptions(LaunchOptions, InitOptions, total=False):
    """The arguments of :func:`containerkit.popen`, apart from those for text mode."""


class SandboxCommandOptions(EnvironmentOptions, ProcessOptions, total=False):
    """The description of a command in a sandbox, apart from its argv."""

    cwd: str
    """The working directory, absolute (default ``/``)."""


class SandboxPopenOptions(SandboxCommandOptions, StreamOptions, total=False):
    """The arguments of :meth:`Sandbox.popen`, apart from those for text mode."""


class AnySandboxPopenOptions(SandboxPopenOptions, TextOptions, total=False):
    """The same, and those for text mode."""


class SandboxRunOptions(SandboxPopenOptions, WaitOptions, total=False):
    """The arguments of :meth:`Sandbox.run`, apart from the input and those for text mode."""


# --- Mounts and roots


class MountOptions(TypedDict, total=False):
    """Options of all mounts."""

    nosuid: bool
    """Whether set-user-ID bits have no effect (default True)."""
    nodev: bool
    """Whether device nodes have no effect (default True)."""
    noexec: bool
    """Whether programs can't be executed from it (default False)."""
    noatime: bool
    """Whether access times are not updated (default False)."""
    propagation: Propagation
    """``"private"`` (default), ``"slave"``, ``"shared"`` or ``"unbindable"``. With ``"slave"`` and ``"shared"``, later
    mounts below the source appear inside with the attributes that they have outside; so ``readonly`` with ``recursive``
    is refused."""
    idmap: bool
    """Whether the files of a bind have the same id numbers inside as outside (default True). This needs privileges. For
    other callers their own files belong to root inside, and all others to nobody."""
    create: bool
    """Whether to create a missing target (default True); otherwise it must exist."""


class FilesystemOptions(MountOptions, total=False):
    """Options of mounts that show nothing from the host."""

    readonly: bool
    """Whether to refuse writes through this mount (default False)."""


class OverlayOptions(TypedDict, total=False):
    """Where the changes of an overlay are kept."""

    upper: str | os.PathLike[str] | None
    """The directory that receives the changes (default: memory, gone when the container ends)."""
    work: str | os.PathLike[str] | None
    """An empty directory on the same filesystem as ``upper`` (default: ``upper`` + ``".work"``, created if it does not
    exist)."""
    size: int | str | None
    """The maximum size of changes in memory, such as ``"256M"`` (default: half of the memory)."""
    idmap: bool
    """Whether files have the same id numbers inside as outside (default True)."""
    union: UnionBy
    """The implementation: ``"kernel"``, ``"fuse"`` (the program fuse-overlayfs), or ``"auto"``, the program only if
    the kernel can't (default)."""

"""The options that describe a container and a command, and what they make of them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.cli import values
from containerkit.command import DEFAULT_ENVIRONMENT
from containerkit.errors import SpecError
from containerkit.namespace import Kind, Namespaces
from containerkit.rootfs import RootFS

if TYPE_CHECKING:
    from containerkit.image import Image
    from containerkit.mount import Mount

__all__ = ["command", "container", "define", "image", "words"]

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}


class _AddMount(argparse.Action):
    """Collects the mounts of several options in the order in which they were written."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        del parser
        namespace.mounts = [*namespace.mounts, (option_string, values)]


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a container and a command."""
    parser.usage = f"{parser.prog} [OPTIONS] [--] COMMAND [ARGUMENT ...]"
    _define_image(parser.add_argument_group("the image"))
    _define_files(parser.add_argument_group("files"))
    _define_isolation(parser.add_argument_group("isolation"))
    _define_limits(parser.add_argument_group("limits"))
    _define_command(parser.add_argument_group("the command"))
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)


def _define_image(group: Any) -> None:
    group.add_argument(
        "--image",
        metavar="NAME",
        help="the image that is seen as /; the command follows its entrypoint, and may be left out where it has one",
    )
    group.add_argument("--pull", choices=("missing", "always", "never"), help="fetch it (default: missing)")
    group.add_argument("--platform", metavar="OS/ARCH", help="which of several (default: this machine's)")
    group.add_argument("--no-volumes", action="store_true", help="leave the folders that it calls volumes in its root")
    group.add_argument("--entrypoint", metavar="PROGRAM", help="in the place of the image's; '' for none")


def _define_files(group: Any) -> None:
    root = group.add_mutually_exclusive_group()
    root.add_argument("--rootfs", metavar="DIR", help="the folder that is seen as / (default: the machine's programs)")
    root.add_argument(
        "--overlay", metavar="LOWER", **_LISTS, help="a layer of a union that is seen as /; repeat it, topmost first"
    )
    root.add_argument("--tmpfs-root", action="store_true", help="an empty / in memory")
    group.add_argument("--upper", metavar="DIR", help="where the union's changes go (default: memory)")
    group.add_argument("--root-size", metavar="SIZE", help="the most of what is written to / in memory, such as 256M")
    group.add_argument("--readonly", action="store_true", help="no writes to /")
    mounts = {"action": _AddMount, "dest": "mounts", "default": []}
    group.add_argument(
        "--bind", metavar="SOURCE[:TARGET[:ro]]", **mounts, help="show a file or folder of the host; repeatable"
    )
    group.add_argument("--tmpfs", metavar="TARGET[:SIZE]", **mounts, help="an empty folder in memory; repeatable")
    group.add_argument(
        "--mount",
        metavar="SPEC",
        **mounts,
        help="any mount: type=bind,source=DIR,target=DIR,readonly,... or type=tmpfs,target=DIR,size=64M,...",
    )


def _define_isolation(group: Any) -> None:
    group.add_argument("--id", metavar="NAME", help="the container's name (default: random)")
    group.add_argument("--hostname", metavar="NAME", help="its host name (default: container)")
    group.add_argument("--domainname", metavar="NAME", help="its domain name")
    group.add_argument(
        "--namespace",
        metavar="KIND=new|host|PID|PATH",
        **_LISTS,
        help=f"a new namespace, the caller's, or one to join; of {', '.join(sorted(kind.value for kind in Kind))}",
    )
    group.add_argument("--share-net", action="store_true", help="the caller's network: --namespace network=host")
    for letter, what in (("u", "user"), ("g", "group")):
        group.add_argument(
            f"--{letter}id-map",
            metavar="INSIDE:OUTSIDE[:COUNT]",
            **_LISTS,
            help=f"which {what} ids inside are which outside; repeatable",
        )
    group.add_argument(
        "--sysctl", metavar="NAME=VALUE", **_LISTS, help="a kernel parameter of its namespaces; repeatable"
    )
    group.add_argument(
        "--cap",
        metavar="NAME",
        **_LISTS,
        help="a capability, such as net_bind_service, or 'docker' or 'all'; repeatable",
    )
    group.add_argument(
        "--seccomp",
        metavar="default|none|FILE",
        help="the filter of system calls, or a profile of the OCI's or Docker's",
    )
    group.add_argument("--new-privs", action="store_true", help="let set-user-ID programs and file capabilities count")


def _define_limits(group: Any) -> None:
    group.add_argument("--memory", metavar="SIZE", help="the most memory, such as 256M")
    group.add_argument("--cpus", metavar="NUMBER", help="the most processor time, such as 1.5")
    group.add_argument("--pids", metavar="NUMBER", help="the most processes")
    group.add_argument("--rlimit", metavar="NAME=SOFT[:HARD]", **_LISTS, help="a limit of setrlimit(2); repeatable")
    group.add_argument("--timeout", metavar="SECONDS", help="kill it when the time is up; the status is then 124")


def _define_command(group: Any) -> None:
    group.add_argument(
        "-e", "--env", metavar="NAME[=VALUE]", **_LISTS, help="a variable, or one to pass on; repeatable"
    )
    group.add_argument("--cwd", metavar="DIR", help="the working directory (default: the image's, or /)")
    group.add_argument(
        "--user", metavar="UID[:GID]", help="ids, or names as the container knows them (default: the image's, or 0)"
    )
    group.add_argument("--umask", metavar="MODE", help="in octal (default: 022)")
    group.add_argument("--nice", metavar="NUMBER", help="from -20 to 19 (default: the caller's)")
    pty = group.add_mutually_exclusive_group()
    pty.add_argument(
        "-t",
        "--pty",
        action="store_true",
        default=None,
        help="a terminal of its own (default: when stdin, stdout and stderr are one)",
    )
    pty.add_argument("-T", "--no-pty", action="store_false", dest="pty", help="the caller's own streams, always")
    group.add_argument("--time", action="store_true", help="say on stderr what it took")


def image(options: argparse.Namespace) -> Image | None:
    """Return the image of ``--image``, fetched when it is not there, or None without it.

    Raises:
        SpecError: options for an image without one, or with another root.
        ImageError: it can't be had.
    """
    if options.image is None:
        for name in ("pull", "platform", "entrypoint"):
            if getattr(options, name) is not None:
                raise SpecError(f"--{name} is about an image: say which with --image")
        if options.no_volumes:
            raise SpecError("--no-volumes is about an image: say which with --image")
        return None
    for name in ("rootfs", "overlay", "tmpfs_root"):
        if getattr(options, name):
            raise SpecError(f"--{name.replace('_', '-')} and --image can't both be given")
    from containerkit.image import Image, terminal_progress

    with terminal_progress() as progress:
        return Image.get(options.image, pull=options.pull or "missing", platform=options.platform, progress=progress)


def words(options: argparse.Namespace, image: Image | None = None) -> list[str]:
    """Return the command's words. What follows the first of them is the command's, ``--`` as well.

    With an image they follow its entrypoint; its own command stands in for them.

    Raises:
        SpecError: there are none.
    """
    given: list[str] = options.command
    if given[:1] == ["--"]:
        given = given[1:]
    if image is not None:
        given = _image_words(image, given, options.entrypoint)
    if not given:
        raise SpecError("a command is needed, such as: containerkit run -- sh")
    return given


def _image_words(image: Image, given: list[str], entrypoint: str | None) -> list[str]:
    if entrypoint is not None:  # then the image's command, which was for its own, has no meaning
        return [*([entrypoint] if entrypoint else []), *given]
    return list(image.defaults.argv(given or None))


def container(options: argparse.Namespace, image: Image | None = None) -> dict[str, Any]:
    """Return the arguments of :class:`containerkit.Container`.

    Args:
        options: what was parsed.
        image: what :func:`image` has found.

    Raises:
        SpecError: a value that can't be, or options that do not go together.
    """
    fields: dict[str, Any] = {
        "rootfs": _rootfs(options, image),
        "mounts": tuple(_mount(option, text) for option, text in options.mounts),
        "namespaces": _namespaces(options),
        "sysctls": values.pairs("--sysctl", options.sysctl),
        **_id_mappings(options),
        **_limits(options),
        **_confinement(options),
    }
    fields |= {
        name: value for name in ("id", "hostname", "domainname") if (value := getattr(options, name)) is not None
    }
    return fields


def _rootfs(options: argparse.Namespace, image: Image | None) -> RootFS:
    if options.upper is not None and not options.overlay and image is None:
        raise SpecError("--upper takes the changes of a union: give its layers with --overlay, or an --image")
    if options.root_size is not None and (options.rootfs is not None or options.upper is not None):
        raise SpecError("--root-size limits what is written in memory, and nothing is: writes go to a folder")
    if image is not None:
        root = image.rootfs(upper=options.upper, size=options.root_size, volumes=not options.no_volumes)
    elif options.rootfs is not None:
        root = RootFS.dir(options.rootfs)
    elif options.overlay:
        root = RootFS.overlay(*options.overlay, upper=options.upper, size=options.root_size)
    elif options.tmpfs_root:
        root = RootFS.tmpfs(options.root_size)
    else:
        root = RootFS.host(size=options.root_size)
    return attrs.evolve(root, readonly=True) if options.readonly else root


def _mount(option: str, text: str) -> Mount:
    parse = {"--bind": values.bind, "--tmpfs": values.tmpfs, "--mount": values.mount}[option]
    return parse(text)


def _namespaces(options: argparse.Namespace) -> Namespaces:
    choices = values.namespaces(options.namespace)
    if options.share_net and choices.setdefault("network", "host") != "host":
        raise SpecError("--share-net and --namespace network=... can't both be given")
    return Namespaces(**{Kind.of(kind).value: choice for kind, choice in choices.items()})


def _id_mappings(options: argparse.Namespace) -> dict[str, Any]:
    uids = tuple(values.id_mapping("--uid-map", text) for text in options.uid_map)
    gids = tuple(values.id_mapping("--gid-map", text) for text in options.gid_map)
    if not uids and not gids:
        return {}
    return {"uid_mappings": uids or gids, "gid_mappings": gids or uids}


def _limits(options: argparse.Namespace) -> dict[str, Any]:
    if options.memory is None and options.cpus is None and options.pids is None:
        return {}
    from containerkit.cgroup import Limits

    cpus = None if options.cpus is None else _number("--cpus", options.cpus, float)
    pids = None if options.pids is None else _number("--pids", options.pids, int)
    return {"limits": Limits(memory=options.memory, cpus=cpus, pids=pids)}


def _confinement(options: argparse.Namespace) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    held: frozenset[str] = frozenset()
    if options.cap:
        from containerkit.security.capabilities import Capabilities

        named = {"docker": Capabilities.docker, "all": Capabilities.all}
        capabilities = Capabilities.none()
        for name in options.cap:
            more = named[name]().permitted if name in named else (name,)
            capabilities = capabilities.add(*more)
        held = capabilities.permitted
        fields["capabilities"] = capabilities
    if options.seccomp == "none":
        fields["seccomp"] = None
    elif options.seccomp not in (None, "default"):
        from containerkit.security.seccomp import Seccomp

        fields["seccomp"] = Seccomp.from_oci(options.seccomp, capabilities=held)
    if options.new_privs:
        fields["no_new_privs"] = False
    return fields


def command(options: argparse.Namespace, image: Image | None = None, *, terminal: str | None = None) -> dict[str, Any]:
    """Return the arguments of ``Container.popen`` that describe the command.

    Args:
        options: what was parsed.
        image: what :func:`image` has found: the variables are added to its own.
        terminal: the caller's ``TERM``, when the command gets a terminal of its own and the caller has one.

    Raises:
        SpecError: a value that can't be.
    """
    base = dict(DEFAULT_ENVIRONMENT if image is None else image.defaults.options()["env"])
    if terminal:
        base["TERM"] = terminal
    fields: dict[str, Any] = {
        "env": values.environment(options.env, base),
        "rlimits": values.rlimits(options.rlimit),
    }
    if options.cwd is not None:
        fields["cwd"] = options.cwd
    if options.user is not None:
        fields["user"] = options.user
    if options.umask is not None:
        fields["umask"] = _number("--umask", options.umask, lambda text: int(text, 8))
    if options.nice is not None:
        fields["nice"] = _number("--nice", options.nice, int)
    return fields


def timeout(options: argparse.Namespace) -> float | None:
    """Return the seconds of ``--timeout``, None without it.

    Raises:
        SpecError: not a number of seconds.
    """
    if options.timeout is None:
        return None
    seconds = float(_number("--timeout", options.timeout, float))
    if not 0 <= seconds < float("inf"):  # not a number is neither
        raise SpecError(f"--timeout: {options.timeout!r} is not a number of seconds")
    return seconds


def _number(option: str, text: str, convert: Any) -> Any:
    try:
        return convert(text)
    except ValueError:
        raise SpecError(f"{option}: {text!r} is not a number") from None

"""The options that describe a container and a command, and their conversion to arguments of the library."""

from __future__ import annotations

from containerkit.cli import docker, network_options, values
from containerkit.cli.plain import REMAINDER, SUPPRESS
from containerkit.container.arguments import unresolved_user
from containerkit.errors import SpecError
from containerkit.namespace import Kind, Namespaces
from containerkit.spec.command import NAMED, User, default_environment
from containerkit.spec.rootfs import RootFS
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

    from containerkit.container.lifecycle import Container
    from containerkit.image import Image
    from containerkit.spec.mount import Mount

__all__ = ["command", "container", "define", "image", "limits", "number", "with_home", "words"]

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a container and a command."""
    parser.usage = f"{parser.prog} [OPTIONS] [--] COMMAND [ARGUMENT ...]"
    _define_image(parser.add_argument_group("the image"))
    _define_files(parser.add_argument_group("files"))
    _define_isolation(parser.add_argument_group("isolation"))
    network_options.define(parser.add_argument_group("the network"))
    _define_limits(parser.add_argument_group("limits"))
    docker.define(parser.add_argument_group("Docker's options"))
    _define_command(parser.add_argument_group("the command"))
    parser.add_argument("command", nargs=REMAINDER, metavar="COMMAND", help=SUPPRESS)


def _define_image(group: Any) -> None:
    group.add_argument(
        "--image",
        metavar="NAME",
        help="the image to use as /; COMMAND is passed to its entrypoint, and is optional if the image has a command",
    )
    group.add_argument("--pull", choices=("missing", "always", "never"), help="when to pull it (default: missing)")
    group.add_argument("--platform", metavar="OS/ARCH", help="which platform to use (default: this machine's)")
    group.add_argument("--no-volumes", action="store_true", help="keep the directories of its volumes in its root")
    group.add_argument("--entrypoint", metavar="PROGRAM", help="replace the image's entrypoint; '' for none")


def _define_files(group: Any) -> None:
    root = group.add_mutually_exclusive_group()
    root.add_argument("--rootfs", metavar="DIR", help="the directory to use as / (default: the host's programs)")
    root.add_argument(
        "--overlay", metavar="LOWER", **_LISTS, help="a layer of an overlay to use as /; repeatable, topmost first"
    )
    root.add_argument("--tmpfs-root", action="store_true", help="an empty / in memory")
    group.add_argument("--upper", metavar="DIR", help="the directory for the overlay's changes (default: memory)")
    group.add_argument("--root-size", metavar="SIZE", help="limit of the data written to / in memory, such as 256M")
    group.add_argument("--readonly", "--read-only", action="store_true", help="make / read-only")
    group.add_argument("--python", metavar="DIR", help="also show this virtual environment of the host")
    group.add_argument("--no-idmap", action="store_true", help="show the files of / with the owner ids of the host")
    mounts = {"action": "append_named", "dest": "mounts", "default": []}
    group.add_argument(
        "-v",
        "--volume",
        "--bind",
        metavar="SOURCE[:TARGET[:ro]]",
        **mounts,
        help="mount a file or directory of the host; -v also takes the name of a volume; repeatable",
    )
    group.add_argument("--tmpfs", metavar="TARGET[:SIZE]", **mounts, help="an empty directory in memory; repeatable")
    group.add_argument(
        "--mount",
        metavar="SPEC",
        **mounts,
        help="any mount: type=bind,source=DIR,target=DIR,readonly,... or type=tmpfs,target=DIR,size=64M,...",
    )


def _define_isolation(group: Any) -> None:
    group.add_argument("--id", metavar="NAME", help="the id of the container (default: random)")
    own_help = "-h" in group._option_string_actions  # noqa: SLF001 - if -h is not the help, it is the host name as in Docker
    names = ("--hostname",) if own_help else ("-h", "--hostname")
    group.add_argument(*names, metavar="NAME", help="its host name (default: container)")
    group.add_argument("--domainname", metavar="NAME", help="its domain name")
    group.add_argument(
        "--namespace",
        metavar="KIND=new|host|PID|PATH",
        **_LISTS,
        help=f"a new namespace, the caller's, or one to join; KIND is {', '.join(sorted(kind.value for kind in Kind))}",
    )
    group.add_argument("--share-net", action="store_true", help="the caller's network: --namespace network=host")
    for letter, what in (("u", "user"), ("g", "group")):
        group.add_argument(
            f"--{letter}id-map",
            metavar="INSIDE:OUTSIDE[:COUNT]",
            **_LISTS,
            help=f"map {what} ids inside to ids outside; repeatable",
        )
    group.add_argument(
        "--sysctl", metavar="NAME=VALUE", **_LISTS, help="a kernel parameter of the container's namespaces; repeatable"
    )
    group.add_argument(
        "--cap",
        "--cap-add",
        metavar="NAME",
        **_LISTS,
        help="a capability, such as net_bind_service, or 'docker' or 'all'; repeatable",
    )
    group.add_argument(
        "--seccomp",
        metavar="default|none|FILE",
        help="the filter of system calls, or a profile in the format of OCI or Docker",
    )
    group.add_argument(
        "--set-id-bits",
        action="store_true",
        default=None,
        help="allow set-user-ID and set-group-ID bits on files that belong to the host",
    )
    group.add_argument("--new-privs", action="store_true", help="allow set-user-ID programs and file capabilities")


def _define_limits(group: Any) -> None:
    group.add_argument("-m", "--memory", metavar="SIZE", help="limit of memory, such as 256M")
    group.add_argument("--cpus", metavar="NUMBER", help="limit of processor time in processors, such as 1.5")
    group.add_argument("--pids", "--pids-limit", metavar="NUMBER", help="limit of the number of processes")
    group.add_argument(
        "--rlimit", "--ulimit", metavar="NAME=SOFT[:HARD]", **_LISTS, help="a limit of setrlimit(2); repeatable"
    )
    docker.define_limits(group)
    group.add_argument("--timeout", metavar="SECONDS", help="kill it after this time, with status 124")


def _define_command(group: Any) -> None:
    group.add_argument(
        "-e", "--env", metavar="NAME[=VALUE]", **_LISTS, help="set a variable, or pass on the caller's; repeatable"
    )
    group.add_argument(
        "-w", "--cwd", "--workdir", metavar="DIR", help="the working directory (default: the image's, or /)"
    )
    group.add_argument(
        "-u",
        "--user",
        metavar="UID[:GID]",
        help="ids, or names that exist in the container (default: the image's, or 0)",
    )
    group.add_argument("--umask", metavar="MODE", help="the umask in octal (default: 022)")
    group.add_argument("--nice", metavar="NUMBER", help="the priority, -20 to 19 (default: the caller's)")
    pty = group.add_mutually_exclusive_group()
    pty.add_argument(
        "-t",
        "--pty",
        "--tty",
        action="store_true",
        default=None,
        help="allocate a terminal (default: if stdin, stdout and stderr are a terminal)",
    )
    pty.add_argument("-T", "--no-pty", action="store_false", dest="pty", help="always use the caller's own streams")
    group.add_argument("--time", action="store_true", help="print the times and the memory used to stderr")


def image(options: argparse.Namespace) -> Image | None:
    """Return the image of ``--image``, which is pulled if necessary, or None without the option.

    Raises:
        SpecError: options for an image were given without one, or together with another root.
        ImageError: the image is not available.
    """
    if options.image is None:
        for name in ("pull", "platform", "entrypoint"):
            if getattr(options, name) is not None:
                raise SpecError(f"--{name} needs an image: add --image")
        if options.no_volumes:
            raise SpecError("--no-volumes needs an image: add --image")
        return None
    for name in ("rootfs", "overlay", "tmpfs_root"):
        if getattr(options, name):
            raise SpecError(f"--{name.replace('_', '-')} and --image can't be used together")
    from containerkit.image import Image, terminal_progress

    with terminal_progress() as progress:
        return Image.get(options.image, pull=options.pull or "missing", platform=options.platform, progress=progress)


def words(options: argparse.Namespace, image: Image | None = None) -> list[str]:
    """Return the argv of the command. Everything after its first argument belongs to the command, even ``--``.

    With an image the arguments are passed to its entrypoint. By default they are the image's own command.

    Raises:
        SpecError: there is no command.
    """
    given: list[str] = options.command
    if given[:1] == ["--"]:
        given = given[1:]
    if image is not None:
        given = _image_words(image, given, options.entrypoint)
    if not given:
        raise SpecError("a command is required, such as: containerkit run -- sh")
    return given


def _image_words(image: Image, given: list[str], entrypoint: str | None) -> list[str]:
    if entrypoint is not None:  # the image's command was meant for the image's entrypoint
        return [*([entrypoint] if entrypoint else []), *given]
    return list(image.defaults.argv(given or None))


def _exposed(image: Image | None) -> list[str]:
    """Return the ports that an image exposes, each to be published on a free port."""
    if image is None or not image.defaults.exposed_ports:
        raise SpecError("-P: there is no image with exposed ports; name them with --publish")
    return [f"0:{port}" for port in image.defaults.exposed_ports]


def container(options: argparse.Namespace, image: Image | None = None) -> dict[str, Any]:
    """Return the arguments of :class:`containerkit.Container`.

    Args:
        options: the parsed options.
        image: the result of :func:`image`.

    Raises:
        SpecError: a value is invalid, or options contradict each other.
    """
    docker.translate(options)
    if options.publish_all:
        options.publish = [*options.publish, *_exposed(image)]
    fields: dict[str, Any] = {
        "rootfs": _rootfs(options, image),
        "mounts": tuple(_mount(option, text, image) for option, text in options.mounts),
        "namespaces": _namespaces(options),
        "sysctls": values.pairs("--sysctl", options.sysctl),
        **_id_mappings(options),
        **limits(options),
        **_confinement(options),
        **network_options.fields(options),
    }
    fields |= {
        name: value for name in ("id", "hostname", "domainname") if (value := getattr(options, name)) is not None
    }
    if options.oom_score_adj is not None:
        fields["oom_score_adj"] = number("--oom-score-adj", options.oom_score_adj, int)
    if options.device or options.gpus is not None or options.volumes_from:
        from containerkit.cli import devices

        devices.add(options, fields)
    return fields


def _rootfs(options: argparse.Namespace, image: Image | None) -> RootFS:
    if options.upper is not None and not options.overlay and image is None:
        raise SpecError("--upper is the directory for an overlay's changes: add --overlay or --image")
    if options.root_size is not None and (options.rootfs is not None or options.upper is not None):
        raise SpecError("--root-size limits data in memory, but writes go to a directory here: remove one of them")
    if options.python is not None and (image is not None or options.rootfs or options.overlay or options.tmpfs_root):
        raise SpecError("--python is for the host's programs; another root has its own Python")
    if image is not None:
        root = image.rootfs(upper=options.upper, size=options.root_size, volumes=not options.no_volumes)
    elif options.rootfs is not None:
        root = RootFS.dir(options.rootfs)
    elif options.overlay:
        root = RootFS.overlay(*options.overlay, upper=options.upper, size=options.root_size)
    elif options.tmpfs_root:
        root = RootFS.tmpfs(options.root_size)
    else:
        root = RootFS.host(size=options.root_size, python=options.python)
    return evolve(root, readonly=root.readonly or options.readonly, idmap=root.idmap and not options.no_idmap)


def _mount(option: str, text: str, image: Image | None) -> Mount:
    if option in ("-v", "--volume"):
        from containerkit.cli import mounting

        return mounting.volume(text, image)
    if option == "--mount" and "volume" in text:
        from containerkit.cli import mounting

        if (found := mounting.mount(text, image)) is not None:
            return found
    parse = {"--bind": values.bind, "--tmpfs": values.tmpfs, "--mount": values.mount}[option]
    return parse(text)


def _namespaces(options: argparse.Namespace) -> Namespaces:
    choices = values.namespaces(options.namespace)
    if options.share_net and choices.setdefault("network", "host") != "host":
        raise SpecError("--share-net and --namespace network=... can't be used together")
    return Namespaces(**{Kind.of(kind).value: choice for kind, choice in choices.items()})


def _id_mappings(options: argparse.Namespace) -> dict[str, Any]:
    uids = tuple(values.id_mapping("--uid-map", text) for text in options.uid_map)
    gids = tuple(values.id_mapping("--gid-map", text) for text in options.gid_map)
    if not uids and not gids:
        return {}
    return {"uid_mappings": uids or gids, "gid_mappings": gids or uids}


def limits(options: argparse.Namespace) -> dict[str, Any]:
    """Return the argument ``limits`` of :class:`containerkit.Container`, if a limit was given.

    Raises:
        SpecError: not a number.
    """
    more = docker.limit_fields(options)
    if options.memory is None and options.cpus is None and options.pids is None and not more:
        return {}
    from containerkit.cgroup import Limits

    cpus = None if options.cpus is None else number("--cpus", options.cpus, float)
    pids = None if options.pids is None else number("--pids", options.pids, int)
    return {"limits": Limits(memory=options.memory, cpus=cpus, pids=pids, **more)}


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
        dropped = {name.lower().removeprefix("cap_") for name in options.cap_drop}
        capabilities = capabilities.drop(*(capabilities.permitted if "all" in dropped else sorted(dropped)))
        held = capabilities.permitted
        fields["capabilities"] = capabilities
    if options.seccomp == "none":
        fields["seccomp"] = None
    elif options.seccomp not in (None, "default"):
        from containerkit.security.seccomp import Seccomp

        fields["seccomp"] = Seccomp.from_oci(options.seccomp, capabilities=held)
    if options.set_id_bits:
        fields["set_id_bits"] = True
    if options.new_privs:
        fields["no_new_privs"] = False
    return fields


def _id(user: str | None) -> User:
    """Return the user of the command. If it is given by name, its ids are not known before the container runs."""
    return User() if user is None else User.parse(user) or NAMED


def with_home(fields: dict[str, Any], container: Container, options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :func:`command` with ``HOME`` set to the home directory of the user inside.

    ``--env`` and a ``HOME`` of the image take precedence.

    Args:
        fields: the arguments.
        container: the running container.
        options: the parsed options.
    """
    named = unresolved_user(container.rootfs, {"user": options.user})
    defaults: dict[str, Any] = dict(container.rootfs.defaults)
    of_image = dict(defaults.get("env", ()))
    if named is None or "HOME" in of_image or any(text.partition("=")[0] == "HOME" for text in options.env):
        return fields
    user, home = container.files.user(named)
    return {**fields, "env": {**fields["env"], "HOME": default_environment(user, home)["HOME"]}}


def command(options: argparse.Namespace, image: Image | None = None, *, terminal: str | None = None) -> dict[str, Any]:
    """Return the arguments of ``Container.popen`` that describe the command.

    Args:
        options: the parsed options.
        image: the result of :func:`image`. The variables are added to those of the image.
        terminal: the caller's ``TERM``, if the command gets a terminal and the caller has one.

    Raises:
        SpecError: a value is invalid.
    """
    base = dict(default_environment(_id(options.user or (image.defaults.user if image else None) or None)))
    if image is not None:
        base.update(image.defaults.env)
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
        fields["umask"] = number("--umask", options.umask, lambda text: int(text, 8))
    if options.group_add:
        fields["groups"] = [int(text) if text.isascii() and text.isdecimal() else text for text in options.group_add]
    if options.nice is not None:
        fields["nice"] = number("--nice", options.nice, int)
    return fields


def timeout(options: argparse.Namespace) -> float | None:
    """Return the seconds of ``--timeout``, or None without the option.

    Raises:
        SpecError: the value is not a number of seconds.
    """
    if options.timeout is None:
        return None
    seconds = float(number("--timeout", options.timeout, float))
    if not 0 <= seconds < float("inf"):  # written so that NaN is refused too
        raise SpecError(f"--timeout: {options.timeout!r} is not a number of seconds")
    return seconds


def number(option: str, text: str, convert: Any) -> Any:
    """Return the number of an option's text.

    Raises:
        SpecError: it is not a number.
    """
    try:
        return convert(text)
    except ValueError:
        raise SpecError(f"{option}: {text!r} is not a number") from None

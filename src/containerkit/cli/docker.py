"""Options of ``docker run``: other names of options of this command, and options that only Docker's users need."""

from __future__ import annotations

from containerkit.errors import SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

__all__ = ["LIMITS", "define", "define_limits", "limit_fields", "of_container", "translate"]

_LISTS: Final[dict[str, Any]] = {"action": "append", "default": []}
_NAMESPACES: Final = ("pid", "ipc", "uts", "cgroupns", "userns")
_KINDS: Final = {"cgroupns": "cgroup", "userns": "user"}
LIMITS: Final = {
    "memory_reservation": ("--memory-reservation", "SIZE", "memory that the kernel reclaims last", str),
    "memory_swap": ("--memory-swap", "SIZE", "memory and swap together; -1 for any amount of swap", str),
    "memory_swappiness": ("--memory-swappiness", "NUMBER", "0 to 100: the tendency to swap out its memory", int),
    "cpu_shares": ("--cpu-shares", "NUMBER", "its relative weight, 2 to 262144 (default: 1024)", int),
    "cpu_quota": ("--cpu-quota", "MICROSECONDS", "processor time in each period", int),
    "cpu_period": ("--cpu-period", "MICROSECONDS", "the length of a period", int),
    "cpuset_cpus": ("--cpuset-cpus", "LIST", "processors that it may use, such as 0-2,4", str),
    "cpuset_mems": ("--cpuset-mems", "LIST", "memory nodes that it may use", str),
    "blkio_weight": ("--blkio-weight", "NUMBER", "its weight at block devices, 10 to 1000", int),
}
"""Limits with Docker's names: the option, its value, its meaning, and its type."""

_FIELDS: Final = {
    "memory_swappiness": "swappiness",
    "cpu_quota": "cpu_quota_us",
    "cpu_period": "cpu_period_us",
    "blkio_weight": "io_weight",
}


def define_limits(group: Any) -> None:
    """Add the options of :data:`LIMITS`."""
    for name, (option, value, meaning, _) in LIMITS.items():
        more = ("-c",) if name == "cpu_shares" else ()
        group.add_argument(*more, option, metavar=value, dest=name, help=meaning)


def limit_fields(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of :class:`containerkit.Limits` for these options.

    Raises:
        SpecError: not a number, or swap without memory.
    """
    from containerkit.cli.arguments import number

    found: dict[str, Any] = {}
    for name, (option, _, _, convert) in LIMITS.items():
        text = getattr(options, name, None)
        if text is not None:
            found[_FIELDS.get(name, name)] = number(option, text, convert)
    if (both := found.pop("memory_swap", None)) is not None:
        found["swap"] = _swap(both, options.memory)
    return found


def _swap(both: str, memory: str | None) -> int | str:
    """Return the limit of swap without memory. Source: docker run, "--memory-swap details"."""
    from containerkit.cgroup import parse_size

    if both == "-1":
        return "max"
    if memory is None:
        raise SpecError("--memory-swap is the sum of memory and swap: add --memory")
    swap = parse_size(both) - parse_size(memory)
    if swap < 0:
        raise SpecError(f"--memory-swap {both} is the sum of memory and swap: it can't be less than --memory {memory}")
    return swap


def define(group: Any) -> None:
    """Add the options."""
    for name in _NAMESPACES:
        more = " or container:NAME" if name in ("pid", "ipc") else ""
        group.add_argument(
            f"--{name}",
            metavar=f"host|private{more.replace(' or ', '|')}",
            help=f"--namespace {_KINDS.get(name, name)}=...",
        )
    group.add_argument("--net", metavar="NAME", dest="network", **_LISTS, help="--network")
    group.add_argument("--network-alias", "--net-alias", metavar="NAME", **_LISTS, help="--network NAME:alias=...")
    group.add_argument("--ip", metavar="ADDRESS", help="--network NAME:ip=...")
    group.add_argument("--ip6", metavar="ADDRESS", help="--network NAME:ip6=...")
    group.add_argument("--mac-address", metavar="ADDRESS", help="--network NAME:mac=...")
    group.add_argument(
        "--cap-drop", metavar="NAME", **_LISTS, help="remove a capability that --cap adds, or all; repeatable"
    )
    group.add_argument(
        "--security-opt",
        metavar="seccomp=FILE|unconfined, no-new-privileges",
        **_LISTS,
        help="--seccomp and --new-privs; repeatable",
    )
    group.add_argument("--shm-size", metavar="SIZE", help="--mount type=tmpfs,target=/dev/shm,size=...")
    group.add_argument(
        "--device",
        metavar="PATH[:TARGET[:rwm]]|VENDOR/CLASS=NAME",
        **_LISTS,
        help="mount a device of the host, or one of a CDI specification; repeatable",
    )
    group.add_argument("--gpus", metavar="all|NAME", help="mount GPUs, by the CDI specification of their driver")
    group.add_argument("--group-add", metavar="GROUP", **_LISTS, help="an additional group of the user; repeatable")
    group.add_argument(
        "--oom-score-adj", metavar="NUMBER", help="-1000 to 1000: how likely it is killed if memory runs out"
    )
    group.add_argument(
        "--volumes-from",
        metavar="CONTAINER[:ro]",
        **_LISTS,
        help="also mount the volumes of this container; repeatable",
    )
    group.add_argument(
        "--expose", metavar="PORT", **_LISTS, help="accepted: a network reaches all ports of a container"
    )
    group.add_argument("--sig-proxy", nargs="?", const="true", metavar="true", help="accepted: signals are passed on")


def translate(options: argparse.Namespace) -> None:
    """Translate the options to others of this command.

    Raises:
        SpecError: a value is invalid, or what it needs is missing.
    """
    for name in _NAMESPACES:
        choice = getattr(options, name)
        if choice is not None:
            options.namespace = [*options.namespace, f"{_KINDS.get(name, name)}={_namespace(name, choice)}"]
    _network(options)
    for text in options.security_opt:
        _security(options, text)
    if options.shm_size is not None:
        spec = f"type=tmpfs,target=/dev/shm,mode=1777,nosuid,nodev,noexec,size={options.shm_size}"
        options.mounts = [("--mount", spec), *options.mounts]
    if options.sig_proxy not in (None, "true", "1"):
        raise SpecError(f"--sig-proxy={options.sig_proxy}: signals are always passed on to the command")


def _namespace(name: str, choice: str) -> str:
    if choice in ("host", "private", "new"):
        return "host" if choice == "host" else "new"
    if choice.startswith("container:") and name in ("pid", "ipc"):
        return of_container(choice.removeprefix("container:"), name)
    known = "host, private, container:NAME" if name in ("pid", "ipc") else "host, private"
    raise SpecError(f"--{name} {choice!r}: choose from {known}")


def of_container(name: str, kind: str) -> str:
    """Return the path of a namespace of a detached container.

    Raises:
        StateError: no such container, or it is not running.
    """
    from containerkit.detached.container import find
    from containerkit.errors import StateError

    status, run, _ = find(name).looked_at()
    if status not in ("running", "paused"):
        raise StateError(f"container {name}: it is {status}, so it has no {kind} namespace")
    return f"/proc/{run['init']}/ns/{kind}"


def _network(options: argparse.Namespace) -> None:
    given = [f"alias={name}" for name in options.network_alias]
    for option, key in (("ip", "ip"), ("ip6", "ip6"), ("mac_address", "mac")):
        if (value := getattr(options, option)) is not None:
            given.append(f"{key}={value}")
    if not given:
        return
    if len(options.network) != 1 or options.network[0] in ("none", "host", "internet"):
        raise SpecError(
            "--network-alias, --ip, --ip6 and --mac-address need exactly one --network NAME, made by "
            "'containerkit network create NAME'; with several networks use --network NAME:ip=..."
        )
    mark = "," if ":" in options.network[0] else ":"
    options.network = [f"{options.network[0]}{mark}{','.join(given)}"]


def _security(options: argparse.Namespace, text: str) -> None:
    name, _, value = text.replace(":", "=", 1).partition("=")
    if name == "no-new-privileges" and value in ("", "true", "false"):
        options.new_privs = value == "false"
    elif name == "seccomp" and value:
        options.seccomp = {"unconfined": "none", "builtin": "default"}.get(value, value)
    elif name in ("apparmor", "label", "systempaths", "writable-cgroups"):
        raise SpecError(
            f"--security-opt {text!r}: only the library supports this, with Container(apparmor=..., selinux=...); "
            "choose from seccomp=... and no-new-privileges"
        )
    else:
        raise SpecError(f"--security-opt {text!r}: choose from seccomp=FILE, seccomp=unconfined and no-new-privileges")

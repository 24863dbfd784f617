"""What a service's keys mean for a container: its description, its command, its mounts.

Each key is realized here, is about something else (building, order), or is refused by name: see :data:`REFUSED`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.project.shapes import duration_s
from containerkit.security.capabilities import Capabilities
from containerkit.spec.mount import Mount
from containerkit.spec.network import DNS
from containerkit.spec.traffic import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.image import Image
    from containerkit.project.project import Project

__all__ = ["REFUSED", "WITHOUT_EFFECT", "Check", "Recipe", "check_service", "health_of", "recipe", "unsupported"]

REFUSED: Final[dict[str, str]] = {
    "blkio_config": "limits of block devices",
    "cgroup_parent": "a parent for control groups",
    "cpu_count": "a limit of Windows; use cpus",
    "cpu_percent": "a limit of Windows; use cpus",
    "cpu_rt_period": "real-time scheduling",
    "cpu_rt_runtime": "real-time scheduling",
    "credential_spec": "credentials of Windows",
    "device_cgroup_rules": "rules for devices",
    "devices": "devices of the host",
    "external_links": "containers of other projects; put both on one external network",
    "gpus": "devices of the host",
    "isolation": "an isolation of Windows",
    "models": "language models",
    "provider": "providers",
    "runtime": "other runtimes",
    "storage_opt": "options of a storage driver",
    "use_api_socket": "an engine's socket; there is no engine",
    "volumes_from": "volumes of another service; name the volumes",
}
"""Keys of a service that can't be had, and what they would be."""

WITHOUT_EFFECT: Final = frozenset(
    {"deploy.placement", "deploy.endpoint_mode", "deploy.rollback_config", "deploy.resources.reservations.cpus"}
)
"""Keys that are about a cluster: they are told of in a plan, and have no effect on one machine."""

_NETWORK_REFUSED: Final = ("driver_opts", "link_local_ips")
_LOG_DRIVERS: Final = ("json-file", "local", "none", "")
_DEFAULT_INTERVAL_S, _DEFAULT_TIMEOUT_S, _DEFAULT_RETRIES = 30.0, 30.0, 3


@attrs.frozen(kw_only=True)
class Check:
    """How the health of a container is looked at; times in seconds."""

    argv: tuple[str, ...]
    interval_s: float = _DEFAULT_INTERVAL_S
    timeout_s: float = _DEFAULT_TIMEOUT_S
    retries: int = _DEFAULT_RETRIES
    start_period_s: float = 0.0
    start_interval_s: float = 5.0


@attrs.frozen(kw_only=True)
class Recipe:
    """What a container of a service is made of.

    Attributes:
        container: arguments of :class:`containerkit.Container`, without those of the network.
        command: arguments of ``popen``.
        argv: the program and its arguments.
        files: path, content, mode, uid and gid of what is written inside before the command starts.
        check: how its health is looked at, or None.
        stop_signal: the name or number of what asks it to end; None for that of the image.
    """

    container: dict[str, Any]
    command: dict[str, Any]
    argv: tuple[str, ...]
    files: tuple[tuple[str, str, int, int, int], ...] = ()
    check: Check | None = None
    stop_signal: str | None = None


def unsupported(project: Project) -> None:
    """Refuse what the project's services say and can't be had, before anything is made.

    Raises:
        SpecError: a key, with its place and what would do instead.
    """
    for name, keys in project.model["services"].items():
        try:
            check_service(keys)
        except SpecError as error:
            raise SpecError(f"services.{name}.{error}") from None
    for kind in ("configs", "secrets"):
        for name, each in project.model.get(kind, {}).items():
            for key in ("external", "driver", "template_driver"):
                if each.get(key):
                    raise SpecError(f"{kind}.{name}.{key}: there is no store of {kind}; use file, or environment")
    for name, each in project.model.get("networks", {}).items():
        if each.get("driver", "bridge") not in ("bridge", "default", "none"):
            raise SpecError(f"networks.{name}.driver: {each['driver']!r} is not supported; use bridge")
        if each.get("driver_opts"):
            raise SpecError(f"networks.{name}.driver_opts: there are none")
    for name, each in project.model.get("volumes", {}).items():
        if each.get("driver", "local") != "local":
            raise SpecError(f"volumes.{name}.driver: {each['driver']!r} is not supported; use local")
        options = each.get("driver_opts", {})
        if options and (options.get("o") != "bind" or set(options) - {"o", "type", "device"}):
            raise SpecError(f"volumes.{name}.driver_opts: there is only type: none, o: bind, device: DIRECTORY")


def check_service(keys: Mapping[str, Any]) -> None:
    """Refuse the keys of one service that can't be had.

    Raises:
        SpecError: the key, and why.
    """
    for key, what in REFUSED.items():
        if keys.get(key):
            raise SpecError(f"{key}: it can't be had: {what}")
    logging = keys.get("logging", {})
    if logging.get("driver", "") not in _LOG_DRIVERS:
        raise SpecError(f"logging.driver: {logging['driver']!r} can't be had; logs are read with 'logs'")
    for name, how in (keys.get("networks") or {}).items():
        for key in _NETWORK_REFUSED:
            if (how or {}).get(key):
                raise SpecError(f"networks.{name}.{key}: it can't be had")
    _check_shared(keys)
    for each in keys.get("volumes", ()):
        if each["type"] in ("image", "cluster", "npipe"):
            raise SpecError(f"volumes: the type {each['type']} is not supported; choose from bind, volume and tmpfs")
    reservations = keys.get("deploy", {}).get("resources", {}).get("reservations", {})
    for key in ("devices", "generic_resources"):
        if reservations.get(key):
            raise SpecError(f"deploy.resources.reservations.{key}: devices of the host can't be had")
    _security(keys)


def _check_shared(keys: Mapping[str, Any]) -> None:
    for key, known in (("ipc", ("", "private", "shareable", "host")), ("pid", ("", "host")), ("uts", ("", "host")),
                       ("userns_mode", ("", "host")), ("cgroup", ("", "private", "host"))):  # fmt: skip
        if keys.get(key, "") not in known:
            raise SpecError(f"{key}: {keys[key]!r} is not supported; choose from {', '.join(filter(None, known))}")
    mode = keys.get("network_mode", "none")
    if mode not in ("none", "host", "bridge", "default") and not mode.startswith("service:"):
        raise SpecError(f"network_mode: {mode!r} is not supported; choose from none, host, bridge and service:NAME")


def recipe(
    project: Project, service: str, image: Image, name: str, volume_path: Callable[[str, str, Image], str]
) -> Recipe:
    """Return what a container of a service is made of.

    Args:
        project: the project.
        service: the service's name.
        image: its image.
        name: of the container.
        volume_path: returns the directory of a volume, by its name, the path inside and the image.

    Raises:
        SpecError: a value is invalid.
    """
    keys = project.model["services"][service]
    mounts, anonymous = _mounts(project, keys, image, volume_path)
    file_mounts, files = _files(project, keys)
    from containerkit.image.volumes import find_volumes

    root = image.rootfs()
    taken = {mount.target for mount in mounts}
    volumes = find_volumes(root.lowers, tuple({each.target for each in root.volumes} - taken | anonymous))
    if files and keys.get("read_only"):
        raise SpecError("configs and secrets with uid, gid or mode need a root that can be written to")
    container: dict[str, Any] = {
        "rootfs": attrs.evolve(root, volumes=volumes, readonly=bool(keys.get("read_only"))),
        "mounts": tuple(sorted((*mounts, *file_mounts), key=lambda mount: mount.target.count("/"))),
        "hostname": keys.get("hostname", name)[:64],
        "sysctls": keys.get("sysctls", {}),
        **_confinement(keys),
        **_namespaces(keys),
        **_limits(keys),
    }
    if "domainname" in keys:
        container["domainname"] = keys["domainname"]
    command = _command(keys, image)
    argv = _argv(keys, image)
    if not argv:
        raise SpecError(f"services.{service}.command: the image names none: say which")
    return Recipe(
        container=container, command=command, argv=argv, files=files, check=health_of(keys, image),
        stop_signal=keys.get("stop_signal"),
    )  # fmt: skip


def _argv(keys: Mapping[str, Any], image: Image) -> tuple[str, ...]:
    given = keys.get("command")
    entrypoint = keys.get("entrypoint")
    if entrypoint is not None:
        return (*entrypoint, *(given or ()))
    return image.defaults.argv(given)


def _command(keys: Mapping[str, Any], image: Image) -> dict[str, Any]:
    options: dict[str, Any] = dict(image.defaults.options())
    own = {name: value for name, value in keys.get("environment", {}).items() if value is not None}
    options["env"] = {**options.get("env", {}), **own}
    if "user" in keys:
        options["user"] = keys["user"]
        if not {"HOME"} & (own.keys() | image.defaults.env.keys()):
            options["env"].pop("HOME", None)
            options["env"]["HOME"] = "/root" if keys["user"].partition(":")[0] in ("0", "root") else "/"
    if "working_dir" in keys:
        options["cwd"] = os.path.normpath(os.path.join("/", keys["working_dir"]))
    if "group_add" in keys:
        options["groups"] = [int(each) if each.isdecimal() else each for each in keys["group_add"]]
    if "ulimits" in keys:
        options["rlimits"] = {
            name: (each["soft"], each["hard"]) if isinstance(each, dict) else each
            for name, each in keys["ulimits"].items()
        }
    return options


def _confinement(keys: Mapping[str, Any]) -> dict[str, Any]:
    if keys.get("privileged"):
        return {"capabilities": Capabilities.all(), "seccomp": None, "masked_paths": (), "readonly_paths": (),
                "no_new_privs": False}  # fmt: skip
    held = set() if "ALL" in keys.get("cap_drop", ()) else set(Capabilities.docker().permitted)
    held -= {_cap(each) for each in keys.get("cap_drop", ())}
    added = {_cap(each) for each in keys.get("cap_add", ())}
    held |= (
        set(Capabilities.all().permitted) - {_cap(each) for each in keys.get("cap_drop", ())}
        if "CAP_ALL" in added
        else added
    )
    found: dict[str, Any] = {"capabilities": Capabilities.of(*sorted(held)), "no_new_privs": False, **_security(keys)}
    if "oom_score_adj" in keys:
        found["oom_score_adj"] = keys["oom_score_adj"]
    return found


def _cap(name: str) -> str:
    upper = name.upper()
    return upper if upper.startswith("CAP_") else f"CAP_{upper}"


def _security(keys: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in keys.get("security_opt", ()):
        name, _, value = option.replace("=", ":", 1).partition(":")
        if name == "no-new-privileges" and value in ("", "true", "false"):
            found["no_new_privs"] = value != "false"
        elif name == "seccomp":
            from containerkit.security.seccomp import Seccomp

            found["seccomp"] = None if value == "unconfined" else Seccomp.from_oci(value)
        elif name == "apparmor" and value != "unconfined":
            found["apparmor"] = value
        elif (name, value) not in (("apparmor", "unconfined"), ("label", "disable")):
            raise SpecError(
                f"security_opt: {option!r} is not supported; choose from no-new-privileges, seccomp and apparmor"
            )
    return found


def _namespaces(keys: Mapping[str, Any]) -> dict[str, Any]:
    from containerkit.namespace import Namespaces

    kinds = {"ipc": "ipc", "pid": "pid", "uts": "uts", "userns_mode": "user", "cgroup": "cgroup"}
    shared: dict[str, Any] = {kind: "host" for key, kind in kinds.items() if keys.get(key) == "host"}
    if shared.get("uts") == "host":
        return {"namespaces": Namespaces(**shared), "hostname": None}
    return {"namespaces": Namespaces(**shared)} if shared else {}


def _limits(keys: Mapping[str, Any]) -> dict[str, Any]:
    from containerkit.cgroup import Limits

    resources = keys.get("deploy", {}).get("resources", {})
    limits, reserved = resources.get("limits", {}), resources.get("reservations", {})
    memory = int(keys.get("mem_limit", limits.get("memory", 0)))
    least = int(keys.get("mem_reservation", reserved.get("memory", 0)))
    swap = int(keys.get("memswap_limit", 0))
    pids = keys.get("pids_limit", limits.get("pids", 0))
    found: dict[str, Any] = {
        "memory": memory or None,
        "memory_reservation": least or None,
        "swap": None if not swap else "max" if swap < 0 else max(0, swap - memory),
        "swappiness": keys.get("mem_swappiness"),
        "oom_kill_disable": keys.get("oom_kill_disable"),
        "cpus": keys.get("cpus") or limits.get("cpus"),
        "cpu_shares": keys.get("cpu_shares") or None,
        "cpu_quota_us": keys.get("cpu_quota") or None,
        "cpu_period_us": keys.get("cpu_period") or None,
        "cpuset_cpus": keys.get("cpuset") or None,
        "pids": None if not pids else "max" if pids < 0 else pids,
    }
    given = {name: value for name, value in found.items() if value is not None}
    return {"limits": Limits(**given)} if given else {}


# --- Files


def _mounts(
    project: Project, keys: Mapping[str, Any], image: Image, volume_path: Callable[[str, str, Image], str]
) -> tuple[list[Mount], set[str]]:
    mounts = [_tmpfs(text) for text in keys.get("tmpfs", ())]
    anonymous: set[str] = set()
    if "shm_size" in keys:
        mounts.append(Mount.tmpfs("/dev/shm", size=int(keys["shm_size"])))
    for each in keys.get("volumes", ()):
        target, readonly = os.path.join("/", each["target"]), bool(each.get("read_only"))
        if each["type"] == "tmpfs":
            options = each.get("tmpfs", {})
            size = int(options["size"]) if "size" in options else None
            mounts.append(Mount.tmpfs(target, size=size, mode=int(options.get("mode", "01777"), 8)))
        elif each["type"] == "bind":
            mounts.append(_bind(each, target, readonly=readonly))
        elif "source" not in each:
            anonymous.add(target)
        else:
            mounts.append(_named(project, each, target, image, volume_path))
    return mounts, anonymous


def _bind(each: Mapping[str, Any], target: str, *, readonly: bool) -> Mount:
    options = each.get("bind", {})
    source = each["source"]
    if not os.path.lexists(source):
        if not options.get("create_host_path"):
            raise SpecError(f"volumes: {source}: there is no such path; or say bind: {{create_host_path: true}}")
        os.makedirs(source)
    propagation: Any = options.get("propagation", "private").removeprefix("r")
    recursive = options.get("recursive", "enabled") != "disabled"
    return Mount.bind(source, target, readonly=readonly, recursive=recursive, propagation=propagation)


def _named(
    project: Project,
    each: Mapping[str, Any],
    target: str,
    image: Image,
    volume_path: Callable[[str, str, Image], str],
) -> Mount:
    options = each.get("volume", {})
    path = volume_path(each["source"], "" if options.get("nocopy") else target, image)
    if "subpath" in options:
        below = os.path.realpath(os.path.join(path, options["subpath"]))
        if not below.startswith(os.path.realpath(path) + "/"):
            raise SpecError(f"volumes: the subpath {options['subpath']!r} leads out of {project.name}'s volume")
        path = below
    return Mount.bind(path, target, readonly=bool(each.get("read_only")))


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    found: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name == "size":
            found["size"] = int(value) if value.isdecimal() else value
        elif name == "mode":
            found["mode"] = int(value, 8)
        elif name == "ro":
            found["readonly"] = True
        elif name in ("noexec", "nosuid", "nodev"):
            found[name] = True
        elif name not in ("rw", "exec", "suid", "dev"):
            raise SpecError(f"tmpfs: {text!r}: unknown option {name!r}; there are size, mode, ro and noexec")
    return Mount.tmpfs(target, **found)


def _files(project: Project, keys: Mapping[str, Any]) -> tuple[list[Mount], tuple[tuple[str, str, int, int, int], ...]]:
    """Return the mounts of configs and secrets, and those that are written because of their mode or owner."""
    mounts: list[Mount] = []
    written: list[tuple[str, str, int, int, int]] = []
    for kind in ("configs", "secrets"):
        for each in keys.get(kind, ()):
            source = project.model[kind][each["source"]]
            target = os.path.join("/" if kind == "configs" else "/run/secrets", each.get("target", each["source"]))
            own = [key for key in ("uid", "gid", "mode") if key in each]
            if "file" in source and not own:
                if not os.path.exists(source["file"]):
                    raise SpecError(f"{kind}.{each['source']}: there is no file {source['file']}")
                mounts.append(Mount.bind(source["file"], target, readonly=True))
                continue
            content = _content(project, kind, each["source"])
            if own:
                ids = (int(each.get("uid", 0)), int(each.get("gid", 0)))
                written.append((target, content, int(each.get("mode", "0444"), 8), *ids))
            else:
                mounts.append(Mount.file(target, content))
    return mounts, tuple(written)


def _content(project: Project, kind: str, name: str) -> str:
    source = project.model[kind][name]
    if "content" in source:
        found: str = source["content"]
        return found
    if "environment" in source:
        variable = source["environment"]
        if variable not in project.variables:
            raise SpecError(f"{kind}.{name}.environment: the variable {variable} is not set")
        return project.variables[variable]
    try:
        with open(source["file"], encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise SpecError(f"{kind}.{name}: {source['file']}: {error.strerror}") from error


# --- Health, ports


def health_of(keys: Mapping[str, Any], image: Image) -> Check | None:
    """Return how the health of a service is looked at: as it says, else as its image says."""
    given = keys.get("healthcheck", {})
    if given.get("disable") or given.get("test", [""])[:1] == ["NONE"]:
        return None
    of_image = image.defaults.healthcheck
    shell = image.defaults.shell or ("/bin/sh", "-c")
    test = given.get("test") or (list(of_image.test) if of_image is not None else [])
    if not test or test[0] == "NONE":
        return None
    argv = (*shell, *test[1:]) if test[0] == "CMD-SHELL" else tuple(test[1:])
    times: dict[str, Any] = {}
    for key in ("interval", "timeout", "start_period", "start_interval"):
        nanoseconds = 0 if of_image is None else getattr(of_image, f"{key}_ns")
        if key in given or nanoseconds:
            times[f"{key}_s"] = duration_s(given[key]) if key in given else nanoseconds / 1e9
    retries = given.get("retries") or (of_image.retries if of_image is not None else 0)
    return Check(argv=argv, retries=retries or _DEFAULT_RETRIES, **times)


def ports_of(keys: Mapping[str, Any]) -> tuple[Port, ...]:
    """Return the ports of the host that lead to a service; without an address, those of all its addresses."""
    found = []
    for each in keys.get("ports", ()):
        published = each.get("published", "0")
        if "-" in published:
            raise SpecError(f"ports: one port can't be published on the range {published}; give one port, or none")
        if each["protocol"] == "sctp":
            raise SpecError("ports: sctp is not supported; choose from tcp and udp")
        host = each.get("host_ip") or "0.0.0.0"  # noqa: S104 - what the specification says of a port without address
        found.append(Port(int(published), each["target"], each["protocol"], host=host))
    return tuple(found)


def network_options(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a container that go with any network of its own: ports, names, servers."""
    found: dict[str, Any] = {"publish": ports_of(keys)}
    hosts = dict(each.split("=", 1) for each in keys.get("extra_hosts", ()))
    if hosts:
        found["hosts"] = hosts
    if keys.get("dns") or keys.get("dns_search") or keys.get("dns_opt"):
        servers: Any = tuple(keys["dns"]) if keys.get("dns") else "host"
        found["dns"] = DNS(
            servers=servers, search=tuple(keys.get("dns_search", ())), options=tuple(keys.get("dns_opt", ()))
        )
    return found

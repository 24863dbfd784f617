"""Turns the keys of a service into a container: its description, its command, its mounts.

:mod:`containerkit.project.support` has refused before what is not supported.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.project.cdi import requested
from containerkit.project.confinement import confinement, limits_of, namespaces
from containerkit.project.health import Check
from containerkit.project.images import rlimits_of
from containerkit.project.mounts import files_of, mounts_of
from containerkit.project.shapes import duration_s
from containerkit.spec.network import DNS
from containerkit.spec.traffic import Port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.container.lifecycle import Container
    from containerkit.image import Image
    from containerkit.project.project import Project

__all__ = ["PROBES", "Recipe", "health_of", "network_options", "ports_of", "recipe"]

PROBES: Final = "x-probes"
"""The key of a service that contains the checks of a pod that compose files can't express."""

_DEFAULT_RETRIES: Final = 3


@attrs.frozen(kw_only=True)
class Recipe:
    """The arguments from which a container of a service is created.

    Attributes:
        container: arguments of :class:`containerkit.Container`, without those of the network.
        command: arguments of ``popen``.
        argv: the program and its arguments.
        files: path, content, mode, uid and gid of the files that are written inside before the command starts.
        check: its health check, or None.
        alive: the check whose failure restarts the command, or None.
        started: the check that must pass before the other two begin, or None.
        stop_signal: the name or number of the signal that asks it to end; None for that of the image.
        notes: what the user should know about it.
    """

    container: dict[str, Any]
    command: dict[str, Any]
    argv: tuple[str, ...]
    files: tuple[tuple[str, str, int, int, int], ...] = ()
    check: Check | None = None
    alive: Check | None = None
    started: Check | None = None
    stop_signal: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_watched(self) -> bool:
        """Whether it has any check."""
        return any(each is not None for each in (self.check, self.alive, self.started))


def recipe(
    project: Project,
    service: str,
    image: Image,
    name: str,
    volume_path: Callable[[str, str, Image], str],
    shared: Callable[[str], Container],
) -> Recipe:
    """Return the arguments for a container of a service.

    Args:
        project: the project.
        service: the service's name.
        image: its image.
        name: of the container.
        volume_path: returns the directory of a volume, given its name, the path inside and the image.
        shared: returns the container of a service whose namespaces are shared.

    Raises:
        SpecError: a value is invalid.
    """
    keys = project.model["services"][service]
    mounts, anonymous = mounts_of(project, keys, image, volume_path)
    file_mounts, files = files_of(project, keys)
    given = requested(keys)
    from containerkit.image.volumes import find_volumes

    root = image.rootfs()
    taken = {mount.target for mount in mounts}
    volumes = find_volumes(root.lowers, tuple({each.target for each in root.volumes} - taken | anonymous))
    if files and keys.get("read_only"):
        raise SpecError("configs and secrets with uid, gid or mode need a writable root filesystem")
    container: dict[str, Any] = {
        "rootfs": attrs.evolve(root, volumes=volumes, readonly=bool(keys.get("read_only"))),
        "mounts": tuple(sorted((*mounts, *file_mounts, *given.mounts), key=lambda mount: mount.target.count("/"))),
        "hostname": keys.get("hostname", name)[:64],
        "sysctls": keys.get("sysctls", {}),
        **confinement(keys),
        **namespaces(keys, shared),
        **limits_of(keys),
    }
    if "domainname" in keys:
        container["domainname"] = keys["domainname"]
    command = _command(keys, image, given.env)
    argv = _argv(keys, image)
    if not argv:
        raise SpecError(f"services.{service}.command: the image has no command: set one")
    probes = {
        kind: Check(**{**each, "argv": tuple(each.get("argv", ()))}) for kind, each in keys.get(PROBES, {}).items()
    }
    return Recipe(
        container=container, command=command, argv=argv, files=files,
        check=probes.get("ready") if PROBES in keys else health_of(keys, image),
        alive=probes.get("alive"), started=probes.get("started"), stop_signal=keys.get("stop_signal"),
        notes=given.notes,
    )  # fmt: skip


def _argv(keys: Mapping[str, Any], image: Image) -> tuple[str, ...]:
    given = keys.get("command")
    entrypoint = keys.get("entrypoint")
    if entrypoint is not None:
        return (*entrypoint, *(given or ()))
    return image.defaults.argv(given)


def _command(keys: Mapping[str, Any], image: Image, more: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = dict(image.defaults.options())
    own = {name: value for name, value in keys.get("environment", {}).items() if value is not None}
    options["env"] = {**options.get("env", {}), **more, **own}
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
        options["rlimits"] = rlimits_of(keys["ulimits"])
    return options


# --- Health, ports


def health_of(keys: Mapping[str, Any], image: Image) -> Check | None:
    """Return the health check of a service: its own, otherwise that of its image."""
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
    """Return the published ports of a service. A port without an address is published on all addresses of the host."""
    found = []
    for each in keys.get("ports", ()):
        first, _, last = each.get("published", "0").partition("-")
        if each["protocol"] == "sctp":
            raise SpecError("ports: sctp is not supported; choose from tcp and udp")
        host = each.get("host_ip") or "0.0.0.0"  # noqa: S104 - specified for a port without address
        found.append(Port(int(first), each["target"], each["protocol"], host=host, last=int(last) if last else None))
    return tuple(found)


def network_options(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a container that any separate network takes: ports, names, servers."""
    found: dict[str, Any] = {"publish": ports_of(keys)}
    hosts = tuple(tuple(each.split("=", 1)) for each in keys.get("extra_hosts", ()))
    if hosts:  # pairs, because a name may have several addresses
        found["hosts"] = hosts
    if keys.get("dns") or keys.get("dns_search") or keys.get("dns_opt"):
        servers: Any = tuple(keys["dns"]) if keys.get("dns") else "host"
        found["dns"] = DNS(
            servers=servers, search=tuple(keys.get("dns_search", ())), options=tuple(keys.get("dns_opt", ()))
        )
    return found

"""Refuses keys and values of a project that are not supported, before anything is created."""

from __future__ import annotations

import os
import platform
import re
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.project.keys import REFUSED
from containerkit.project.shapes import size_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

    from containerkit.project.project import Project

__all__ = ["check_service", "unsupported", "unsupported_builds"]

_CHOICES: Final[dict[str, tuple[str, ...]]] = {
    "services.ipc": ("private", "shareable", "host", "service:*"),
    "services.pid": ("host",),
    "services.uts": ("host",),
    "services.userns_mode": ("host",),
    "services.cgroup": ("private", "host"),
    "services.network_mode": ("none", "host", "bridge", "default", "service:*"),
    "services.logging.driver": ("json-file", "local", "none"),
    "services.logging.options": ("max-size", "max-file"),
    "services.pull_policy": ("always", "missing", "never", "build"),
    "services.ports.protocol": ("tcp", "udp"),
    "services.ports.mode": ("host", "ingress"),
    "services.volumes.type": ("bind", "volume", "tmpfs", "image"),
    "services.volumes.consistency": ("consistent", "cached", "delegated"),
    "services.volumes.bind.propagation": ("private", "rprivate", "shared", "rshared", "slave", "rslave"),
    "services.volumes.bind.recursive": ("enabled", "disabled", "readonly", "writable"),
    "services.build.network": ("default", "none", "host"),
    "services.build.ssh": ("default",),
    "services.deploy.mode": ("replicated", "global"),
    "services.deploy.endpoint_mode": ("dnsrr",),
    "services.deploy.update_config.failure_action": ("pause", "rollback"),
    "services.deploy.update_config.order": ("stop-first", "start-first"),
    "services.deploy.rollback_config.failure_action": ("pause",),
    "services.deploy.rollback_config.order": ("stop-first", "start-first"),
    "services.deploy.restart_policy.condition": ("none", "on-failure", "any"),
    "networks.driver": ("bridge", "default"),
    "networks.driver_opts": ("com.docker.network.driver.mtu", "com.docker.network.bridge.enable_icc"),
    "networks.ipam.driver": ("default",),
    "volumes.driver": ("local",),
    "volumes.driver_opts": ("type", "o", "device"),
}
"""The supported values; for a mapping, its supported keys."""

_REMEDIES: Final = {
    "services.logging.driver": "'compose logs --follow --no-log-prefix SERVICE | logger' passes lines on to syslog",
    "services.build.ssh": "RUN --mount=type=ssh gets the agent of $SSH_AUTH_SOCK",
}
"""What to do instead of a value that is not supported."""


def unsupported(project: Project) -> None:
    """Refuse keys and values that are not supported, before anything is created.

    Raises:
        SpecError: with the place of the key, and an alternative.
    """
    for path in REFUSED:
        _refuse(project.model, path)
    for path in _CHOICES:
        _choose(project.model, path)
    for name, keys in project.model["services"].items():
        try:
            check_service(keys, project)
        except SpecError as error:
            raise SpecError(f"services.{name}.{error}") from None
    from containerkit.project.networks import described

    for name, each in project.model.get("networks", {}).items():
        described(name, each)
    for name, each in project.model.get("volumes", {}).items():
        options = each.get("driver_opts", {})
        if options and (options.get("o") != "bind" or not options.get("device")):
            raise SpecError(f"volumes.{name}.driver_opts: only type: none, o: bind, device: DIRECTORY is supported")


def unsupported_builds(project: Project, services: Collection[str]) -> None:
    """Refuse keys of builds that are not supported.

    Raises:
        SpecError: with the place of the key, and an alternative.
    """
    chosen = {name: each for name, each in project.model["services"].items() if name in services}
    for paths, check in ((REFUSED, _refuse), (_CHOICES, _choose)):
        for path in paths:
            if path.startswith("services.build."):
                check({"services": chosen}, path)


def _choose(model: Mapping[str, Any], path: str) -> None:
    known = _CHOICES[path]
    for place, value in _found(model, path):
        for each in value if isinstance(value, (dict, list)) else (value,):
            if each and each not in known and not (":" in each and f"{each.partition(':')[0]}:*" in known):
                there = ", ".join(word.replace("*", "NAME") for word in known)
                remedy = f"; {_REMEDIES[path]}" if path in _REMEDIES else ""
                raise SpecError(f"{place}: {each!r:.60} is not supported; choose from {there}{remedy}")


def _refuse(model: Mapping[str, Any], path: str) -> None:
    for place, value in _found(model, path):
        if value and value != "false" and not (path.endswith("isolation") and value == "default"):
            raise SpecError(f"{place}: is not supported: {REFUSED[path]}")


def _found(model: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    """Yield the values of a key and their places. The second part of a place is the name of its service or resource."""
    kind, _, rest = path.partition(".")
    if not rest:
        if kind in model:
            yield kind, model[kind]
        return
    for name, each in model.get(kind, {}).items():
        yield from _below(each, f"{kind}.{name}", rest.split("."))


def _below(value: Any, place: str, parts: list[str]) -> Iterator[tuple[str, Any]]:
    if not parts:
        yield place, value
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _below(item, f"{place}[{number}]", parts)
    elif isinstance(value, dict):
        if parts[0] in value:
            yield from _below(value[parts[0]], f"{place}.{parts[0]}", parts[1:])
        elif place.endswith(".networks"):  # a service's networks: by name
            for name, item in value.items():
                yield from _below(item or {}, f"{place}.{name}", parts)


def check_service(keys: Mapping[str, Any], project: Project) -> None:
    """Refuse values of one service that are not supported.

    Raises:
        SpecError: with the key and the reason.
    """
    from containerkit.project.confinement import device_rules, security_options
    from containerkit.project.realize import ports_of
    from containerkit.project.replica import Restart

    security_options(keys)
    Restart(keys)
    ports_of(keys)
    device_rules(keys)
    _check_logging(keys)
    _check_deploy(keys)
    for each in keys.get("volumes", ()):
        options = each.get("bind", {})
        if options.get("selinux") and os.path.exists("/sys/fs/selinux/enforce"):
            raise SpecError("volumes.bind.selinux: files are not relabelled; remove this key, and use chcon")
        if options.get("recursive") == "writable" and each.get("read_only"):
            raise SpecError("volumes.bind.recursive: 'writable' is not supported where read_only is true")
    if len(keys.get("build", {}).get("platforms", ())) > 1:
        raise SpecError("build.platforms: only one platform is supported")
    for each in keys.get("volumes_from", ()):
        source, _, access = each.partition(":")
        if source == "container" or access not in ("", "ro", "rw"):
            raise SpecError(f"volumes_from: {each!r:.60} is not supported; use SERVICE or SERVICE:ro")
        if any("source" not in volume for volume in project.model["services"][source].get("volumes", ())):
            raise SpecError(f"volumes_from: a volume of {source} has no name; give it one")


def _check_logging(keys: Mapping[str, Any]) -> None:
    options = keys.get("logging", {}).get("options", {})
    if options and keys["logging"].get("driver") == "none":
        raise SpecError("logging.options: the driver none has no options")
    if "max-size" in options and size_of(options["max-size"]) is None:
        raise SpecError(f"logging.options.max-size: {options['max-size']!r:.60} is not a size; use a value such as 10m")
    if not re.fullmatch("[1-9][0-9]*", options.get("max-file", "1")):
        raise SpecError(f"logging.options.max-file: {options['max-file']!r:.60} is not a number of at least 1")


def _check_deploy(keys: Mapping[str, Any]) -> None:
    deploy = keys.get("deploy", {})
    count = keys.get("scale", deploy.get("replicas", 1))
    if deploy.get("mode") == "global" and count != 1:
        raise SpecError(f"deploy.mode: 'global' means one container on this machine, not {count}")
    placement = deploy.get("placement", {})
    if 0 < placement.get("max_replicas_per_node", 0) < count:
        raise SpecError(f"deploy.placement.max_replicas_per_node: {count} containers are requested on this one machine")
    for each in placement.get("constraints", ()):
        _check_constraint(each)
    wanted, there = deploy.get("resources", {}).get("reservations", {}).get("cpus", 0), os.cpu_count() or 1
    if wanted > there:
        raise SpecError(f"deploy.resources.reservations.cpus: {wanted} are requested; this machine has {there}")
    for kind in ("update_config", "rollback_config"):
        if deploy.get(kind, {}).get("max_failure_ratio"):
            raise SpecError(
                f"deploy.{kind}.max_failure_ratio: the first failure ends the update; remove this key, or set it to 0"
            )
        if deploy.get(kind, {}).get("order") == "start-first":
            _check_twice(keys, f"deploy.{kind}.order")


def _check_twice(keys: Mapping[str, Any], place: str) -> None:
    """Refuse what two containers can't have at the same time: a replacement, and the one that it replaces."""
    what = [
        f"the host's port {each['published']}"
        for each in keys.get("ports", ())
        if each.get("published", "0") != "0" and "-" not in each["published"]
    ]
    what += [f"the address {keys['mac_address']}"] if "mac_address" in keys else []
    for how in (keys.get("networks") or {}).values():
        fixed = ("ipv4_address", "ipv6_address", "mac_address")
        what += [f"the address {how[key]}" for key in fixed if key in (how or {})]
    if what:
        raise SpecError(
            f"{place}: start-first needs two containers at the same time, and only one can have {what[0]}; leave this "
            f"to the system, or choose stop-first"
        )


def _check_constraint(text: str) -> None:
    """Refuse a constraint that this machine does not meet. A single machine is its own manager."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    known = {
        "node.role": {"manager"}, "node.hostname": {os.uname().nodename}, "node.platform.os": {"linux"},
        "node.platform.arch": {platform.machine(), machine},
    }  # fmt: skip
    found = re.fullmatch(r"\s*([\w.-]+)\s*([!=]=)\s*(.*?)\s*", text)
    values = known.get(found[1], set()) if found else set()
    if found is None or (found[3] in values) != (found[2] == "=="):
        raise SpecError(f"deploy.placement.constraints: this machine does not meet {text!r:.60}")

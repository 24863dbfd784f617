"""All keys of a compose file, and the shape of each.

Source: the compose specification, and its compose-spec.json.
"""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING, Any, Final

from containerkit.project import shapes
from containerkit.project.shapes import (
    boolean,
    by_name,
    choice,
    distinct,
    duration,
    each,
    either,
    fields,
    integer,
    joined_pairs,
    mode,
    number,
    pairs,
    size,
    string,
    strings,
    unique,
    words,
)
from containerkit.project.short import device, port_list, volume

if TYPE_CHECKING:
    from containerkit.project.shapes import Place

__all__ = ["MODEL", "NAME", "SERVICE", "absolute"]

NAME: Final = re.compile(r"[a-zA-Z0-9._-]+")
_URL: Final = re.compile(
    r"(?:https?://|git://|ssh://|git@|github\.com/|oci://|docker-image://|service:|target:)|.*\.git(?:[#?].*)?\Z"
)


def absolute(path: str, base: str) -> str:
    """Return a path of a file as an absolute one."""
    return os.path.normpath(os.path.join(base, os.path.expanduser(path))) if path else path


def path(value: Any, place: Place) -> str:
    """Take a path of the host."""
    return absolute(string(value, place), place.base)


def paths(value: Any, place: Place) -> list[str]:
    """Take a path or a list of them."""
    return [absolute(each, place.base) for each in either(value, place)]


def _context(value: Any, place: Place) -> str:
    text = string(value, place)
    return text if _URL.match(text) else absolute(text, place.base)


def _additional_contexts(value: Any, place: Place) -> dict[str, Any]:
    return {name: _context(where, place.at(name)) for name, where in joined_pairs(value, place).items()}


def _hosts(value: Any, place: Place) -> list[str]:
    """Take extra hosts. Return each as ``NAME=ADDRESS``."""
    found: list[tuple[str, str]] = []
    if isinstance(value, dict):
        for name, addresses in value.items():
            found += [(name, each) for each in either(addresses, place.at(name))]
    else:
        for number_, item in enumerate(strings(value, place)):
            name, mark, address = item.partition("=") if "=" in item else item.partition(":")
            if not mark:
                raise place.at(number_).error(f"{item!r:.60} is not NAME=ADDRESS")
            found += [(name, each) for each in address.split(",")]
    made = [f"{name.strip()}={_address(address.strip(), place)}" for name, address in found]
    return unique(made)


def _address(text: str, place: Place) -> str:
    plain = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    if plain == "host-gateway":
        return plain
    try:
        ipaddress.ip_address(plain)
    except ValueError:
        raise place.error(f"{plain!r:.60} is not an address; use one, or host-gateway") from None
    return plain


def _depends_on(value: Any, place: Place) -> dict[str, Any]:
    if isinstance(value, list):
        return {name: {"condition": "service_started", "required": True} for name in strings(value, place)}
    found: dict[str, Any] = by_name(_dependency, known=NAME)(value, place)
    return found


def _dependency(value: Any, place: Place) -> dict[str, Any]:
    conditions = choice("service_started", "service_healthy", "service_completed_successfully")
    shape = fields({"condition": conditions, "restart": boolean, "required": boolean})
    found: dict[str, Any] = shape(value, place)
    if found.get("restart") is False:
        del found["restart"]
    return found


def _env_files(value: Any, place: Place) -> list[dict[str, Any]]:
    items = [value] if isinstance(value, (str, dict)) else value
    shape = fields({"path": path, "required": boolean, "format": string}, required=("path",))
    listed = distinct(
        lambda item, at: {"required": True, **shape({"path": item} if isinstance(item, str) else item, at)}
    )
    found: list[dict[str, Any]] = listed(items, place)
    return found


def _test(value: Any, place: Place) -> list[str]:
    if isinstance(value, str):
        return ["CMD-SHELL", value] if value else []
    found = strings(value, place)
    if found and found[0] not in ("CMD", "CMD-SHELL", "NONE"):
        raise place.error(f"it must start with CMD, CMD-SHELL or NONE, not {found[0]!r:.60}")
    return found


def _ulimit(value: Any, place: Place) -> Any:
    if isinstance(value, dict):
        return fields({"soft": integer, "hard": integer}, required=("soft", "hard"))(value, place)
    return integer(value, place)


def _mounted_file(value: Any, place: Place) -> dict[str, Any]:
    shape = fields({"source": string, "target": string, "uid": shapes.scalar, "gid": shapes.scalar, "mode": mode})
    return {"source": value} if isinstance(value, str) else shape(value, place)


def _names(known: Any) -> Any:
    """Return the shape of a list of names, or of a mapping from names to values."""

    def check(value: Any, place: Place) -> dict[str, Any]:
        if isinstance(value, list):
            return dict.fromkeys(strings(value, place))
        found: dict[str, Any] = by_name(lambda item, at: None if item is None else known(item, at), known=NAME)(
            value, place
        )
        return found

    return check


def _maybe(shape: Any) -> Any:
    """Return the shape of a resource: an empty value is a mapping without keys."""

    def check(value: Any, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = shape({} if value is None else value, place)
        external = found.get("external")
        if isinstance(external, dict):
            name = external.get("name")
            if name is not None and found.setdefault("name", name) != name:
                raise place.error("name and external.name differ: use only name, with external: true")
            found["external"] = True
        return found

    return check


def _external(value: Any, place: Place) -> Any:
    return fields({"name": string}, open_ended=True)(value, place) if isinstance(value, dict) else boolean(value, place)


def _volume_resource(value: Any, place: Place) -> dict[str, Any]:
    found: dict[str, Any] = _VOLUME(value, place)
    options = found.get("driver_opts", {})
    if found.get("driver") == "local" and options.get("o") == "bind" and "device" in options:
        options["device"] = absolute(options["device"], place.base)
    return found


def _provided(value: Any, place: Place) -> list[str]:
    return strings(value, place) if isinstance(value, list) else [shapes.scalar(value, place)]


def _options(value: Any, place: Place) -> dict[str, str]:
    found = by_name(lambda item, at: None if item is None else shapes.scalar(item, at))(value, place)
    return {key: item for key, item in found.items() if item is not None}


def _count(value: Any, place: Place) -> int:
    return -1 if value == "all" else integer(value, place)


def _request(value: Any, place: Place) -> dict[str, Any]:
    shape = fields(
        {"capabilities": strings, "count": _count, "device_ids": strings, "driver": string, "options": joined_pairs}
    )
    found: dict[str, Any] = shape(value, place)
    if "count" in found and "device_ids" in found:
        raise place.error("count and device_ids exclude each other")
    return found if "device_ids" in found else {"count": -1, **found}


def _reservation(value: Any, place: Place) -> dict[str, Any]:
    found = _request(value, place)
    if "capabilities" not in found:
        raise place.error("the key 'capabilities' is missing, such as capabilities: [gpu]")
    return found


def _gpus(value: Any, place: Place) -> list[Any]:
    if isinstance(value, str):
        return [{"count": _count(value, place)}]
    found: list[Any] = each(_request)(value, place)
    return found


def _build(value: Any, place: Place) -> dict[str, Any]:
    if isinstance(value, str):
        return {"context": _context(value, place)}
    found: dict[str, Any] = fields(_BUILD)(value, place)
    if not found.get("dockerfile", "x"):  # from a variable that is not set
        del found["dockerfile"]
    return found


def _include(value: Any, place: Place) -> dict[str, Any]:
    if isinstance(value, str):
        value = {"path": value}
    shape = fields({"path": either, "env_file": either, "project_directory": string}, required=("path",))
    found: dict[str, Any] = shape(value, place)
    return found


def _extends(value: Any, place: Place) -> dict[str, str]:
    if isinstance(value, str):
        return {"service": value}
    found: dict[str, str] = fields({"service": string, "file": string}, required=("service",))(value, place)
    return found


def _sources(value: Any, place: Place) -> list[str]:
    if isinstance(value, dict):
        return [name if where is None else f"{name}={where}" for name, where in value.items()]
    return strings(value, place)


def _once(value: Any, place: Place) -> list[str]:
    return unique(strings(value, place))


def _optional(shape: Any) -> Any:
    def check(value: Any, place: Place) -> Any:
        return shape(value, place)

    check.may_be_empty = True  # type: ignore[attr-defined] # read by shapes.fields
    return check


def _security_options(value: Any, place: Place) -> list[str]:
    found = []
    for option in strings(value, place):
        name, mark, profile = re.match(r"([^:=]*)([:=]?)(.*)", option, re.DOTALL).groups()  # type: ignore[union-attr] # any text matches
        is_file = name == "seccomp" and mark and profile != "unconfined"
        found.append(f"{name}{mark}{absolute(profile, place.base)}" if is_file else option)
    return found


def _container_name(value: Any, place: Place) -> str:
    text = string(value, place)
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", text):
        raise place.error(
            f"{text!r:.60} is not a name: only letters, digits, '_', '.' and '-'; the first is a letter or digit"
        )
    return text


_HOOK: Final = fields(
    {"command": words, "user": string, "privileged": boolean, "working_dir": string, "environment": pairs},
    required=("command",),
)
_LIMIT: Final = each(fields({"path": string, "rate": size}, required=("path", "rate")))
_WEIGHT: Final = each(fields({"path": string, "weight": integer}, required=("path", "weight")))

_BUILD: Final[dict[str, Any]] = {
    "context": _context, "dockerfile": string, "dockerfile_inline": string, "entitlements": strings, "args": pairs,
    "ssh": _sources, "labels": joined_pairs, "cache_from": strings, "cache_to": strings, "no_cache": boolean,
    "additional_contexts": _additional_contexts, "network": string, "provenance": shapes.scalar, "sbom": shapes.scalar,
    "pull": boolean, "target": string, "shm_size": size, "extra_hosts": _hosts, "isolation": string,
    "privileged": boolean, "secrets": distinct(_mounted_file), "tags": _once, "ulimits": by_name(_ulimit),
    "platforms": strings,
}  # fmt: skip

_UPDATE: Final = fields(
    {
        "parallelism": integer, "delay": duration, "failure_action": string, "monitor": duration,
        "max_failure_ratio": number, "order": choice("start-first", "stop-first"),
    }
)  # fmt: skip

_DEPLOY: Final = fields(
    {
        "mode": string, "endpoint_mode": string, "replicas": integer, "labels": joined_pairs,
        "rollback_config": _UPDATE, "update_config": _UPDATE,
        "resources": fields(
            {
                "limits": fields({"cpus": number, "memory": size, "pids": integer}),
                "reservations": fields(
                    {
                        "cpus": number, "memory": size, "devices": each(_reservation),
                        "generic_resources": each(
                            fields({"discrete_resource_spec": fields({"kind": string, "value": number})})
                        ),
                    }
                ),
            }
        ),
        "restart_policy": fields(
            {"condition": string, "delay": duration, "max_attempts": integer, "window": duration}
        ),
        "placement": fields(
            {
                "constraints": strings, "preferences": each(fields({"spread": string})),
                "max_replicas_per_node": integer,
            }
        ),
    }
)  # fmt: skip

_WATCH: Final = fields(
    {
        "path": path, "action": choice("rebuild", "sync", "restart", "sync+restart", "sync+exec"), "target": string,
        "ignore": either, "include": either, "exec": _HOOK, "initial_sync": boolean,
    },
    required=("path", "action"),
)  # fmt: skip

_ON_NETWORK: Final = fields(
    {
        "aliases": _once, "interface_name": string, "ipv4_address": string, "ipv6_address": string,
        "link_local_ips": _once, "mac_address": string, "driver_opts": _options, "priority": integer,
        "gw_priority": integer,
    }
)  # fmt: skip

SERVICE: Final[dict[str, Any]] = {
    "annotations": joined_pairs, "attach": boolean, "build": _build,
    "blkio_config": fields(
        {
            "device_read_bps": _LIMIT, "device_read_iops": _LIMIT, "device_write_bps": _LIMIT,
            "device_write_iops": _LIMIT, "weight": integer, "weight_device": _WEIGHT,
        }
    ),
    "cap_add": _once, "cap_drop": _once, "cgroup": choice("host", "private"), "cgroup_parent": string,
    "command": words, "configs": distinct(_mounted_file), "container_name": _container_name, "cpu_count": integer,
    "cpu_percent": number, "cpu_period": integer, "cpu_quota": integer, "cpu_rt_period": shapes.scalar,
    "cpu_rt_runtime": shapes.scalar, "cpu_shares": integer, "cpus": number, "cpuset": string,
    "credential_spec": fields({"config": string, "file": string, "registry": string}),
    "depends_on": _depends_on, "deploy": _optional(_DEPLOY),
    "develop": _optional(fields({"watch": each(_WATCH)})), "device_cgroup_rules": strings, "devices": distinct(device),
    "dns": either, "dns_opt": _once, "dns_search": either, "domainname": string, "entrypoint": words,
    "env_file": _env_files, "environment": pairs, "expose": _once, "extends": _extends, "external_links": strings,
    "extra_hosts": _hosts, "gpus": _gpus, "group_add": strings,
    "healthcheck": fields(
        {
            "disable": boolean, "interval": duration, "retries": integer, "start_interval": duration,
            "start_period": duration, "test": _test, "timeout": duration,
        }
    ),
    "hostname": string, "image": string, "init": boolean, "ipc": string, "isolation": string, "label_file": paths,
    "labels": joined_pairs, "links": _once, "logging": fields({"driver": string, "options": _options}),
    "mac_address": string, "mem_limit": size, "mem_reservation": size, "mem_swappiness": integer,
    "memswap_limit": size, "models": _names(fields({"endpoint_var": string, "model_var": string})),
    "network_mode": string, "networks": _names(_ON_NETWORK), "oom_kill_disable": boolean, "oom_score_adj": integer,
    "pid": string, "pids_limit": integer, "platform": string, "ports": port_list, "post_start": each(_HOOK),
    "pre_stop": each(_HOOK), "privileged": boolean, "profiles": _once,
    "provider": fields({"type": string, "options": by_name(_provided)}, required=("type",)),
    "pull_policy": string, "pull_refresh_after": string, "read_only": boolean, "restart": string, "runtime": string,
    "scale": integer, "secrets": distinct(_mounted_file), "security_opt": _security_options, "shm_size": size,
    "stdin_open": boolean, "stop_grace_period": duration, "stop_signal": shapes.scalar, "storage_opt": _options,
    "sysctls": joined_pairs, "tmpfs": either, "tty": boolean, "ulimits": by_name(_ulimit),
    "use_api_socket": boolean, "user": shapes.scalar, "userns_mode": string, "uts": string, "volumes": distinct(volume),
    "volumes_from": strings, "working_dir": string,
}  # fmt: skip
"""The keys of a service."""

_NETWORK: Final = fields(
    {
        "name": string, "driver": string, "driver_opts": _options, "external": _external, "internal": boolean,
        "enable_ipv4": boolean, "enable_ipv6": boolean, "attachable": boolean, "labels": joined_pairs,
        "ipam": fields(
            {
                "driver": string, "options": _options,
                "config": each(
                    fields({"subnet": string, "ip_range": string, "gateway": string, "aux_addresses": _options})
                ),
            }
        ),
    }
)  # fmt: skip
_VOLUME: Final = fields(
    {"name": string, "driver": string, "driver_opts": _options, "external": _external, "labels": joined_pairs}
)
_FILE: Final[dict[str, Any]] = {
    "name": string, "environment": string, "file": path, "external": _external, "labels": joined_pairs,
    "template_driver": string,
}  # fmt: skip

MODEL: Final[dict[str, Any]] = {
    "version": shapes.scalar, "name": string, "include": each(_include),
    "services": by_name(fields(SERVICE), known=NAME),
    "networks": by_name(_maybe(_NETWORK), known=NAME), "volumes": by_name(_maybe(_volume_resource), known=NAME),
    "secrets": by_name(_maybe(fields({**_FILE, "driver": string, "driver_opts": _options})), known=NAME),
    "configs": by_name(_maybe(fields({**_FILE, "content": string})), known=NAME),
    "models": by_name(
        fields({"name": string, "model": string, "context_size": integer, "runtime_flags": strings}), known=NAME
    ),
}  # fmt: skip
"""The keys of a file."""

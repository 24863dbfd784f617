"""The output of ``inspect`` for a detached container, with Docker's names."""

from __future__ import annotations

from datetime import UTC, datetime

import attrs

from containerkit.detached.known import KEEPER_KILLED, health_state, shell_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.detached.known import Known
    from containerkit.spec.mount import Mount

__all__ = ["inspection", "rfc3339"]


def rfc3339(seconds: float | None) -> str:
    """Return a time in seconds since 1970 as text; empty for None."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def inspection(one: Known) -> dict[str, Any]:
    """Return all facts about a container."""
    keeping, description = one.keeping, one.description()
    status, run, end = one.looked_at()
    spec, runs = description.spec, status in ("running", "paused")
    health = health_state(one.entry, status, run)
    limits = {} if spec.limits is None else attrs.asdict(spec.limits, filter=lambda _, value: value is not None)
    return {
        "Id": one.id,
        "Name": keeping.name,
        "Created": rfc3339(one.created_at),
        "Path": description.argv[0],
        "Args": list(description.argv[1:]),
        "State": {
            "Status": status,
            "Running": runs,
            "Paused": status == "paused",
            "Restarting": status == "restarting",
            "OOMKilled": end is not None and end["oom"] == "1",
            "Dead": status == "dead",
            "Pid": run["pid"] if runs else 0,
            "ExitCode": 0 if runs or status == "created" else shell_status(one.exit_code),
            "Error": one.error or (KEEPER_KILLED if status == "dead" else ""),
            "StartedAt": rfc3339(run.get("started")),
            "FinishedAt": end["finished"] if end is not None else "",
            "Health": None
            if health is None
            else {"Status": health["status"], "FailingStreak": health["streak"], "Log": health["log"]},
        },
        "Image": keeping.image,
        "RestartCount": one.restarts,
        "LogPath": one.entry.state_path,
        "HostConfig": {
            "NetworkMode": _network(spec.network),
            "RestartPolicy": _policy(keeping.restart),
            "AutoRemove": keeping.remove,
            "Limits": limits,
            "LogConfig": {"max-size": keeping.log_max_bytes, "max-file": keeping.log_files},
        },
        "Mounts": [_mount(mount) for mount in spec.mounts],
        "Config": {
            "Image": keeping.image,
            "Hostname": spec.hostname,
            "User": description.fields.get("user"),
            "Env": [f"{name}={value}" for name, value in (description.fields.get("env") or {}).items()],
            "Cmd": list(description.argv),
            "WorkingDir": description.fields.get("cwd"),
            "Labels": dict(keeping.labels),
            "Tty": keeping.tty,
            "OpenStdin": keeping.stdin_open,
            "StopSignal": keeping.stop_signal,
            "StopTimeout": keeping.stop_timeout_s,
        },
        "NetworkSettings": _network_settings(spec.network, run, runs=runs),
        "Keeper": run.get("keeper") if runs else None,
        "CGroups": run.get("groups", []),
    }


def _network(choice: Any) -> str:
    """Return the name of a network for display."""
    found = getattr(choice, "network", choice)
    return found if isinstance(found, str) else str(getattr(found, "name", found))


def _policy(text: str) -> dict[str, Any]:
    name, _, count = text.partition(":")
    return {"Name": name, "MaximumRetryCount": int(count or 0)}


def _mount(mount: Mount) -> dict[str, Any]:
    """Return the fields of a mount: Docker's, then those that only this library has."""
    rest = attrs.asdict(mount)
    source, target, readonly = rest.pop("source"), rest.pop("target"), rest.pop("readonly")
    name = _volume_of(source) if rest.pop("type") == "bind" else None
    named = {"Type": mount.type} if name is None else {"Type": "volume", "Name": name}
    others = {key.capitalize(): value for key, value in rest.items()}
    return {**named, "Source": source, "Destination": target, "RW": not readonly, **others}


def _volume_of(path: str) -> str | None:
    """Return the name of the volume whose files are in a directory; None for another one."""
    from containerkit.volume import volumes

    return next((each.name for each in volumes() if each.path == path), None)


def _network_settings(choice: Any, run: dict[str, Any], *, runs: bool) -> dict[str, Any]:
    told = run.get("network", {}) if runs else {}
    addresses = [each.partition("/")[0] for each in told.get("addresses", [])]
    first = {version: next((each for each in addresses if (":" in each) == (version == 6)), "") for version in (4, 6)}
    ports: dict[str, list[dict[str, str]]] = {}
    for each in told.get("ports", []):
        for number in range(each.get("count", 1)):
            at = {"HostIp": each["host"], "HostPort": str(each["host_port"] + number)}
            ports.setdefault(f"{each['container_port'] + number}/{each['protocol']}", []).append(at)
    network = {"IPAddress": first[4], "GlobalIPv6Address": first[6]}
    return {
        "Network": _network(choice),
        "Networks": {_network(choice): network},
        **network,
        "Addresses": told.get("addresses", []),
        "Ports": ports,
        "Attendant": run.get("attendant") if runs else None,
    }

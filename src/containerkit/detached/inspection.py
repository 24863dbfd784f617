"""The output of ``inspect`` for a detached container, with Docker's names."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from containerkit.detached.known import KEEPER_KILLED, health_state, shell_status

if TYPE_CHECKING:
    from containerkit.detached.known import Known

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
            "RestartPolicy": keeping.restart,
            "AutoRemove": keeping.remove,
            "Limits": limits,
            "LogConfig": {"max-size": keeping.log_max_bytes, "max-file": keeping.log_files},
        },
        "Mounts": [attrs.asdict(mount) for mount in spec.mounts],
        "Config": {
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
        "NetworkSettings": {
            "Network": _network(spec.network),
            "Addresses": run.get("network", {}).get("addresses", []) if runs else [],
            "Ports": run.get("network", {}).get("ports", []) if runs else [],
            "Attendant": run.get("attendant") if runs else None,
        },
        "Keeper": run.get("keeper") if runs else None,
        "CGroups": run.get("groups", []),
    }


def _network(choice: Any) -> str:
    """Return the name of a network for display."""
    found = getattr(choice, "network", choice)
    return found if isinstance(found, str) else str(getattr(found, "name", found))

"""Turns the keys of a service into the confinement of its containers: capabilities, namespaces, limits, devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.project.cdi import requested
from containerkit.project.shapes import duration_us
from containerkit.security.capabilities import Capabilities

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.container.lifecycle import Container

__all__ = ["confinement", "device_rules", "limits_of", "namespaces", "security_options"]


def confinement(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a container for its privileges."""
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
    found: dict[str, Any] = {
        "capabilities": Capabilities.of(*sorted(held)),
        "no_new_privs": False,
        **security_options(keys),
    }
    if "oom_score_adj" in keys:
        found["oom_score_adj"] = keys["oom_score_adj"]
    return found


def _cap(name: str) -> str:
    upper = name.upper()
    return upper if upper.startswith("CAP_") else f"CAP_{upper}"


def security_options(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``security_opt`` means.

    Raises:
        SpecError: an option that is not supported.
    """
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


def namespaces(keys: Mapping[str, Any], shared: Callable[[str], Container]) -> dict[str, Any]:
    """Return the arguments of a container for its namespaces. ``shared`` returns the container of a service by name."""
    from containerkit.namespace import Namespaces

    kinds = {"ipc": "ipc", "pid": "pid", "uts": "uts", "userns_mode": "user", "cgroup": "cgroup"}
    found: dict[str, Any] = {kind: "host" for key, kind in kinds.items() if keys.get(key) == "host"}
    ipc = keys.get("ipc", "")
    if ipc.startswith("service:"):
        found["ipc"] = f"/proc/{shared(ipc.removeprefix('service:')).pid}/ns/ipc"
    if found.get("uts") == "host":
        return {"namespaces": Namespaces(**found), "hostname": None}
    return {"namespaces": Namespaces(**found)} if found else {}


def limits_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a container for its limits."""
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
        "cpu_shares": keys.get("cpu_shares") or _share(reserved),
        "cpu_quota_us": keys.get("cpu_quota") or None,
        "cpu_period_us": keys.get("cpu_period") or None,
        "cpuset_cpus": keys.get("cpuset") or None,
        "pids": None if not pids else "max" if pids < 0 else pids,
        "cpu_rt_period_us": duration_us(keys["cpu_rt_period"]) if "cpu_rt_period" in keys else None,
        "cpu_rt_runtime_us": duration_us(keys["cpu_rt_runtime"]) if "cpu_rt_runtime" in keys else None,
        "devices": device_rules(keys),
        **_disks(keys.get("blkio_config", {})),
    }
    given = {name: value for name, value in found.items() if value is not None}
    return {"limits": Limits(**given)} if given else {}


def _share(reserved: Mapping[str, Any]) -> int | None:
    return max(2, int(reserved["cpus"] * 1024)) if reserved.get("cpus") else None


def _disks(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the limits of block devices. Weights are 10 to 1000 in compose files, and 1 to 10000 for the kernel."""
    from containerkit.cgroup import IOLimit

    found: dict[str, Any] = {}
    if config.get("weight"):
        found["io_weight"] = _weight(config["weight"])
    weights = {each["path"]: _weight(each["weight"]) for each in config.get("weight_device", ())}
    if weights:
        found["io_device_weights"] = weights
    limits: dict[str, dict[str, int]] = {}
    for key, name in (("device_read_bps", "read_bps"), ("device_write_bps", "write_bps"),
                      ("device_read_iops", "read_iops"), ("device_write_iops", "write_iops")):  # fmt: skip
        for each in config.get(key, ()):
            limits.setdefault(each["path"], {})[name] = int(each["rate"])
    if limits:
        found["io"] = tuple(IOLimit(device=path, **each) for path, each in limits.items())
    return found


def _weight(weight: int) -> int:
    if not _LEAST_WEIGHT <= weight <= _LARGEST_WEIGHT:
        raise SpecError(f"blkio_config: the weight {weight} is not between {_LEAST_WEIGHT} and {_LARGEST_WEIGHT}")
    return 1 + (weight - _LEAST_WEIGHT) * 9999 // (_LARGEST_WEIGHT - _LEAST_WEIGHT)


_LEAST_WEIGHT, _LARGEST_WEIGHT = 10, 1000
_OF_EVERY_CONTAINER: Final = (
    "c 1:3 rwm", "c 1:5 rwm", "c 1:7 rwm", "c 1:8 rwm", "c 1:9 rwm", "c 5:0 rwm", "c 5:1 rwm", "c 5:2 rwm",
    "c 136:* rwm", "c 10:200 rwm",
)  # fmt: skip
"""null, zero, full, random, urandom, tty, console, ptmx, terminals, tun."""


def device_rules(keys: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Return the devices that may be used: beside those of every container, those that the service's keys name.

    Without rules, and without a device that may only be read or only be written, all may be used.

    Raises:
        SpecError: a device that is not named by its path does not exist.
    """
    given = tuple(keys.get("device_cgroup_rules", ()))
    by_path = (each for each in keys.get("devices", ()) if each["source"].startswith("/"))
    shown = [*((each["source"], each["permissions"]) for each in by_path), *requested(keys).nodes]
    if given or any(not {"r", "w"}.issubset(access) for _, access in shown):
        return (*_OF_EVERY_CONTAINER, *given, *[f"{path} {access.strip('m')}m" for path, access in shown])
    return None

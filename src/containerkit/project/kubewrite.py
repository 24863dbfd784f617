"""A project as Kubernetes' Pod and ConfigMaps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.project.shapes import duration_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.project.project import Project

__all__ = ["pod_of"]

_KNOWN: Final = frozenset(
    {
        "image", "command", "entrypoint", "environment", "ports", "working_dir", "tty", "stdin_open", "restart",
        "mem_limit", "cpus", "user", "privileged", "read_only", "cap_add", "cap_drop", "healthcheck", "volumes",
        "tmpfs", "networks", "depends_on", "labels", "container_name", "hostname", "stop_grace_period", "expose",
        "init", "network_mode", "profiles",
    }
)  # fmt: skip
_RESTART: Final = {"no": "Never", "on-failure": "OnFailure"}


def pod_of(project: Project) -> dict[str, Any]:
    """Return a Pod with the project's services as its containers.

    Raises:
        SpecError: a key that a Pod can't say.
    """
    volumes: dict[str, dict[str, Any]] = {}
    containers = []
    policies = set()
    for name, keys in project.model["services"].items():
        for key in keys:
            if key not in _KNOWN and not key.startswith("x-"):
                raise SpecError(f"services.{name}.{key}: a Pod can't say it")
        if "image" not in keys:
            raise SpecError(f"services.{name}.build: a Pod takes images: name one")
        containers.append(_container(name, keys, volumes))
        policies.add(_RESTART.get(keys.get("restart", "no").partition(":")[0], "Always"))
    if len(policies) > 1:
        raise SpecError(f"restart: a Pod has one policy for all of its containers, not {', '.join(sorted(policies))}")
    spec: dict[str, Any] = {"restartPolicy": policies.pop() if policies else "Never", "containers": containers}
    if volumes:
        spec["volumes"] = [{"name": name, **what} for name, what in volumes.items()]
    metadata = {"name": project.name.replace("_", "-")}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _container(name: str, keys: Mapping[str, Any], volumes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name.replace("_", "-"), "image": keys["image"]}
    for key, other in (("entrypoint", "command"), ("command", "args"), ("working_dir", "workingDir"), ("tty", "tty"),
                       ("stdin_open", "stdin")):  # fmt: skip
        if keys.get(key):
            found[other] = keys[key]
    env = keys.get("environment", {})
    if env:
        found["env"] = [{"name": key, "value": value} for key, value in env.items() if value is not None]
    ports = [_port(each) for each in keys.get("ports", ())]
    if ports:
        found["ports"] = ports
    limits = {other: value for key, other in (("cpus", "cpu"), ("mem_limit", "memory")) if (value := keys.get(key))}
    if limits:
        found["resources"] = {"limits": {key: str(value) for key, value in limits.items()}}
    context = _context(name, keys)
    if context:
        found["securityContext"] = context
    probe = _probe(keys.get("healthcheck", {}))
    if probe:
        found["livenessProbe"] = probe
    mounts = [_mount(each, volumes) for each in keys.get("volumes", ())]
    mounts += [_memory(each.partition(":")[0], volumes) for each in keys.get("tmpfs", ())]
    if mounts:
        found["volumeMounts"] = mounts
    return found


def _port(each: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"containerPort": each["target"], "protocol": each["protocol"].upper()}
    if "published" in each:
        found["hostPort"] = int(each["published"])
    return {**found, "hostIP": each["host_ip"]} if each.get("host_ip") else found


def _context(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "user" in keys:
        user, _, group = keys["user"].partition(":")
        if not user.isdecimal() or (group and not group.isdecimal()):
            raise SpecError(f"services.{name}.user: a Pod takes numbers, not {keys['user']!r:.60}")
        found["runAsUser"] = int(user)
        if group:
            found["runAsGroup"] = int(group)
    for key, other in (("privileged", "privileged"), ("read_only", "readOnlyRootFilesystem")):
        if keys.get(key):
            found[other] = True
    capabilities = {other: keys[key] for key, other in (("cap_add", "add"), ("cap_drop", "drop")) if key in keys}
    return {**found, "capabilities": capabilities} if capabilities else found


def _probe(check: Mapping[str, Any]) -> dict[str, Any]:
    test = check.get("test", [])
    if not test or test[0] == "NONE" or check.get("disable"):
        return {}
    argv = ["/bin/sh", "-c", *test[1:]] if test[0] == "CMD-SHELL" else test[1:]
    return {
        "exec": {"command": list(argv)},
        "periodSeconds": max(1, round(duration_s(check.get("interval", "30s")))),
        "timeoutSeconds": max(1, round(duration_s(check.get("timeout", "30s")))),
        "failureThreshold": check.get("retries", 3),
        "initialDelaySeconds": round(duration_s(check.get("start_period", "0s"))),
    }


def _mount(each: Mapping[str, Any], volumes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if each["type"] == "bind":
        name = f"host-{len(volumes)}"
        volumes[name] = {"hostPath": {"path": each["source"]}}
    elif each["type"] == "volume" and "source" in each:
        name = each["source"].replace("_", "-")
        volumes[name] = {"persistentVolumeClaim": {"claimName": name}}
    else:
        return _memory(each["target"], volumes)
    found: dict[str, Any] = {"name": name, "mountPath": each["target"]}
    return {**found, "readOnly": True} if each.get("read_only") else found


def _memory(target: str, volumes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    name = f"memory-{len(volumes)}"
    volumes[name] = {"emptyDir": {"medium": "Memory"}}
    return {"name": name, "mountPath": target}

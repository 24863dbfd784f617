"""Writes a project as Kubernetes' objects: a Pod, and the ConfigMaps and Secrets that it refers to.

What a Pod can't express is refused by name. Nothing of a service is omitted silently.
"""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.project.mounts import content_of
from containerkit.project.shapes import duration_s

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.project.project import Project

__all__ = ["objects_of"]

_KNOWN: Final = frozenset(
    {
        "annotations", "cap_add", "cap_drop", "command", "configs", "container_name", "cpu_shares", "cpus",
        "depends_on",
        "deploy", "entrypoint", "environment", "expose", "extra_hosts", "group_add", "healthcheck", "hostname", "image",
        "ipc", "labels", "mem_limit", "mem_reservation", "network_mode", "networks", "pid", "ports", "post_start",
        "pre_stop", "privileged", "profiles", "pull_policy", "read_only", "restart", "scale", "secrets", "security_opt",
        "stdin_open", "stop_grace_period", "sysctls", "tmpfs", "tty", "user", "volumes", "working_dir",
    }
)  # fmt: skip
_RESTART: Final = {"no": "Never", "on-failure": "OnFailure"}
_HOST: Final = (("network_mode", "hostNetwork"), ("pid", "hostPID"), ("ipc", "hostIPC"))
_ONE: Final[dict[str, Any]] = {"default": None}
_PULL: Final = {"always": "Always", "missing": "IfNotPresent", "never": "Never"}


def objects_of(project: Project) -> list[dict[str, Any]]:
    """Return the objects that a project corresponds to, the Pod last.

    Raises:
        SpecError: a Pod can't express a key.
    """
    return _Writing(project).objects()


class _Writing:
    def __init__(self, project: Project) -> None:
        self._project = project
        self._services: Mapping[str, dict[str, Any]] = project.model["services"]
        self._volumes: dict[str, dict[str, Any]] = {}
        self._stores: dict[str, dict[str, Any]] = {}
        self._spec: dict[str, Any] = {}
        self._meta: dict[str, Any] = {"name": project.name.replace("_", "-")}

    def objects(self) -> list[dict[str, Any]]:
        before = {name for keys in self._services.values() for name in _completed(keys)}
        restarts = set()
        for name in self._project.services:  # each after those that it depends on
            keys = self._services[name]
            self._check(name, keys, before)
            self._of_the_pod(name, keys)
            kind = "initContainers" if name in before else "containers"
            self._spec.setdefault(kind, []).append(self._container(name, keys))
            if name not in before:
                restarts.add(_RESTART.get(keys.get("restart", "no"), "Always"))
        if len(restarts) > 1:
            raise SpecError(
                f"restart: a Pod has one policy for all of its containers, not {', '.join(sorted(restarts))}"
            )
        spec = {"restartPolicy": restarts.pop() if restarts else "Never", **self._spec}
        if self._volumes:
            spec["volumes"] = [{"name": name, **what} for name, what in self._volumes.items()]
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": self._meta, "spec": spec}
        return [*self._stores.values(), pod]

    def _check(self, name: str, keys: Mapping[str, Any], before: set[str]) -> None:
        def refuse(key: str, why: str) -> SpecError:
            return SpecError(f"services.{name}.{key}: {why}")

        for key in keys:
            if key not in _KNOWN and not key.startswith("x-"):
                raise refuse(key, "a Pod has no such field")
        if "image" not in keys:
            raise refuse("build", "a Pod needs an image: set 'image'")
        for other, how in keys.get("depends_on", {}).items():
            shares = f"service:{other}" in (keys.get("network_mode"), keys.get("ipc"))
            if how["condition"] != "service_completed_successfully" and not shares:
                raise refuse(f"depends_on.{other}", "the containers of a Pod start at the same time")
        if keys.get("networks", {"default": None}) != {"default": None} or set(
            self._project.model.get("networks", {})
        ) - {"default"}:
            raise refuse("networks", "a Pod has one network, which its containers share")
        if keys.get("network_mode", "host") != "host" and not keys["network_mode"].startswith("service:"):
            raise refuse("network_mode", f"a Pod can't have {keys['network_mode']!r:.60}")
        if ":" in keys.get("restart", ""):
            raise refuse("restart", "a Pod can't limit the number of restarts")
        if name in before and (keys.get("healthcheck") or keys.get("post_start") or keys.get("pre_stop")):
            raise refuse("healthcheck", "an init container can't have health checks or hooks")
        _check_numbers(name, keys)

    def _of_the_pod(self, name: str, keys: Mapping[str, Any]) -> None:
        """Move the keys of a service that a Pod has only once to the Pod. They must not differ between services."""
        said = _said(name, keys)
        for key, other in _HOST:
            if keys.get(key) != "host" and other in self._spec:
                raise SpecError(
                    f"services.{name}.{key}: either all containers of a Pod share the host's namespace, or none does"
                )
        for key, value in said.items():
            if self._spec.setdefault(key, value) != value:
                raise SpecError(f"services.{name}: a Pod has one {key} for all containers")
        for key in ("labels", "annotations"):
            for label, value in keys.get(key, {}).items():
                if self._meta.setdefault(key, {}).setdefault(label, value) != value:
                    raise SpecError(f"services.{name}.{key}.{label}: it differs from that of another service")

    def _container(self, name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"name": name.replace("_", "-"), "image": keys["image"]}
        for key, other in (("entrypoint", "command"), ("command", "args"), ("working_dir", "workingDir"),
                           ("tty", "tty"), ("stdin_open", "stdin")):  # fmt: skip
            if keys.get(key):
                found[other] = _literal(keys[key]) if key in ("entrypoint", "command") else keys[key]
        if "pull_policy" in keys:
            if keys["pull_policy"] not in _PULL:
                raise SpecError(f"services.{name}.pull_policy: a Pod can't have {keys['pull_policy']!r:.60}")
            found["imagePullPolicy"] = _PULL[keys["pull_policy"]]
        env = [{"name": key, "value": value} for key, value in keys.get("environment", {}).items() if value is not None]
        mounts = [self._mount(name, each) for each in keys.get("volumes", ())]
        mounts += [self._memory(name, each) for each in keys.get("tmpfs", ())]
        mounts += [self._file(kind, each) for kind in ("configs", "secrets") for each in keys.get(kind, ())]
        hooks = {
            other: _hook(name, keys[key]) for key, other in (("post_start", "postStart"), ("pre_stop", "preStop"))
            if keys.get(key)
        }  # fmt: skip
        parts = {
            "env": [{**each, "value": each["value"].replace("$(", "$$(")} for each in env], "ports": _ports(name, keys),
            "resources": _resources(keys), "securityContext": _context(name, keys), "volumeMounts": mounts,
            "lifecycle": hooks, **_probes(name, keys.get("healthcheck", {})),
        }  # fmt: skip
        return {**found, **{key: value for key, value in parts.items() if value}}

    def _mount(self, service: str, each: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"mountPath": each["target"]}
        bind = {key: value for key, value in each.get("bind", {}).items() if key != "create_host_path"}
        if bind or each.get("consistency"):
            raise SpecError(f"services.{service}.volumes: a Pod has no field for {', '.join(bind) or 'consistency'}")
        if each["type"] == "bind":
            name = f"host-{len(self._volumes)}"
            kind = {"type": "DirectoryOrCreate"} if each.get("bind", {}).get("create_host_path") else {}
            self._volumes[name] = {"hostPath": {"path": each["source"], **kind}}
        elif each["type"] == "volume" and "source" in each:
            name = each["source"].replace("_", "-")
            described = self._project.model["volumes"][each["source"]]
            self._volumes[name] = {"persistentVolumeClaim": {"claimName": described["name"].replace("_", "-")}}
            if "subpath" in each.get("volume", {}):
                found["subPath"] = each["volume"]["subpath"]
        elif each["type"] == "volume":
            name = f"own-{len(self._volumes)}"
            self._volumes[name] = {"emptyDir": {}}
        else:
            options = each.get("tmpfs", {})
            if "mode" in options:
                raise SpecError(f"services.{service}.volumes.tmpfs.mode: a Pod has no such field")
            name = self._in_memory(options.get("size"))
        return {"name": name, **found, **({"readOnly": True} if each.get("read_only") else {})}

    def _memory(self, service: str, text: str) -> dict[str, Any]:
        target, _, options = text.partition(":")
        given = dict(each.partition("=")[::2] for each in options.split(",") if each)
        if set(given) - {"size"}:
            raise SpecError(f"services.{service}.tmpfs: a Pod can only set the size, not {options}")
        return {"name": self._in_memory(given.get("size")), "mountPath": target}

    def _in_memory(self, size: str | None) -> str:
        name = f"memory-{len(self._volumes)}"
        limit = {} if size is None else {"sizeLimit": f"{size[:-1]}{size[-1].upper()}i" if size[-1].isalpha() else size}
        self._volumes[name] = {"emptyDir": {"medium": "Memory", **limit}}
        return name

    def _file(self, kind: str, each: Mapping[str, Any]) -> dict[str, Any]:
        """Put a config or secret into an object, and mount it as a file."""
        if "uid" in each or "gid" in each:
            raise SpecError(f"{kind}.{each['source']}: a Pod can't set the owner of the file")
        name, content = each["source"].replace("_", "-"), content_of(self._project, kind, each["source"])
        meta = {"apiVersion": "v1", "metadata": {"name": name}}
        key, target = "value", each.get("target", each["source"])
        if kind == "configs":
            self._stores[f"configs {name}"] = {**meta, "kind": "ConfigMap", "data": {key: content}}
            source: dict[str, Any] = {"configMap": {"name": name, "items": [{"key": key, "path": key}]}}
        else:
            coded = base64.b64encode(content.encode(errors="surrogateescape")).decode()
            self._stores[f"secrets {name}"] = {**meta, "kind": "Secret", "data": {key: coded}}
            source = {"secret": {"secretName": name, "items": [{"key": key, "path": key}]}}
        if "mode" in each:
            next(iter(source.values()))["items"][0]["mode"] = int(each["mode"], 8)
        volume = f"{kind[:-1]}-{len(self._volumes)}"
        self._volumes[volume] = source
        path = target if target.startswith("/") else f"{'' if kind == 'configs' else '/run/secrets'}/{target}"
        return {"name": volume, "mountPath": path, "subPath": key, "readOnly": True}


def _check_numbers(name: str, keys: Mapping[str, Any]) -> None:
    if keys.get("container_name", name) != name:
        raise SpecError(f"services.{name}.container_name: in a Pod it must be {name}")
    deploy = keys.get("deploy", {})
    if set(deploy) - {"replicas", "resources"} or keys.get("scale", deploy.get("replicas", 1)) != 1:
        raise SpecError(f"services.{name}.deploy: a Pod has one container of each service; only resources can be set")
    limits = deploy.get("resources", {})
    if "pids" in limits.get("limits", {}) or set(limits.get("reservations", {})) - {"cpus", "memory"}:
        raise SpecError(f"services.{name}.deploy.resources: a Pod can only have cpus and memory")


def _said(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a service that a Pod has once for all containers."""
    grace = keys.get("stop_grace_period", "10s")
    found: dict[str, Any] = {"terminationGracePeriodSeconds": _seconds(grace, f"{name}.stop_grace_period")}
    if "hostname" in keys:
        found["hostname"] = keys["hostname"]
    found |= {other: True for key, other in _HOST if keys.get(key) == "host"}
    if keys.get("extra_hosts"):
        pairs = [each.split("=", 1) for each in keys["extra_hosts"]]
        found["hostAliases"] = [{"ip": address, "hostnames": [host]} for host, address in pairs]
    context: dict[str, Any] = {}
    if "group_add" in keys:
        if not all(each.isdecimal() for each in keys["group_add"]):
            raise SpecError(f"services.{name}.group_add: a Pod needs numbers")
        context["supplementalGroups"] = [int(each) for each in keys["group_add"]]
    if "sysctls" in keys:
        context["sysctls"] = [{"name": key, "value": value} for key, value in keys["sysctls"].items()]
    return {**found, "securityContext": context} if context else found


def _completed(keys: Mapping[str, Any]) -> list[str]:
    needed = keys.get("depends_on", {}).items()
    return [name for name, how in needed if how["condition"] == "service_completed_successfully"]


def _literal(argv: list[str]) -> list[str]:
    """Return arguments in which Kubernetes replaces nothing."""
    return [word.replace("$(", "$$(") for word in argv]


def _seconds(text: str, what: str) -> int:
    found = duration_s(text)
    if not found.is_integer():
        raise SpecError(f"services.{what}: a Pod needs whole seconds, not {text}")
    return int(found)


def _ports(name: str, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = []
    for each in keys.get("ports", ()):
        one: dict[str, Any] = {"containerPort": each["target"], "protocol": each["protocol"].upper()}
        if "published" not in each:
            raise SpecError(f"services.{name}.ports: a Pod can't have a random port of the host: choose one")
        one["hostPort"] = int(each["published"])
        found.append({**one, "hostIP": each["host_ip"]} if each.get("host_ip") else one)
    there = {each["containerPort"] for each in found}
    exposed = [each.partition("/") for each in keys.get("expose", ())]
    return found + [
        {"containerPort": int(port), "protocol": (protocol or "tcp").upper()}
        for port, _, protocol in exposed
        if port.isdecimal() and int(port) not in there
    ]


def _resources(keys: Mapping[str, Any]) -> dict[str, Any]:
    deploy = keys.get("deploy", {}).get("resources", {})
    limits, reserved = deploy.get("limits", {}), deploy.get("reservations", {})
    share = keys["cpu_shares"] / 1024 if keys.get("cpu_shares") else reserved.get("cpus")
    found = {
        "limits": {"cpu": keys.get("cpus", limits.get("cpus")), "memory": keys.get("mem_limit", limits.get("memory"))},
        "requests": {"cpu": share, "memory": keys.get("mem_reservation", reserved.get("memory"))},
    }
    given = {kind: {key: str(value) for key, value in each.items() if value} for kind, each in found.items()}
    return {kind: each for kind, each in given.items() if each}


def _context(name: str, keys: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "user" in keys:
        user, _, group = keys["user"].partition(":")
        if not user.isdecimal() or (group and not group.isdecimal()):
            raise SpecError(f"services.{name}.user: a Pod needs numbers, not {keys['user']!r:.60}")
        found["runAsUser"] = int(user)
        if group:
            found["runAsGroup"] = int(group)
    for key, other in (("privileged", "privileged"), ("read_only", "readOnlyRootFilesystem")):
        if keys.get(key):
            found[other] = True
    for option in keys.get("security_opt", ()):
        match option.replace("=", ":"):
            case "no-new-privileges" | "no-new-privileges:true":
                found["allowPrivilegeEscalation"] = False
            case "seccomp:unconfined":
                found["seccompProfile"] = {"type": "Unconfined"}
            case _:
                raise SpecError(f"services.{name}.security_opt: a Pod has no field for {option!r:.60}")
    capabilities = {other: keys[key] for key, other in (("cap_add", "add"), ("cap_drop", "drop")) if key in keys}
    return {**found, "capabilities": capabilities} if capabilities else found


def _hook(name: str, hooks: list[dict[str, Any]]) -> dict[str, Any]:
    if len(hooks) > 1 or set(hooks[0]) - {"command"}:
        raise SpecError(f"services.{name}: a Pod can have one hook of each kind, with a command only")
    return {"exec": {"command": hooks[0]["command"]}}


def _probes(name: str, check: Mapping[str, Any]) -> dict[str, Any]:
    """Return the probes for a health check. A failed check makes a container unready, and does not restart it."""
    test = check.get("test", [])
    if not test or test[0] == "NONE" or check.get("disable"):
        return {}
    argv = ["/bin/sh", "-c", *test[1:]] if test[0] == "CMD-SHELL" else test[1:]
    times = {
        key: max(1, _seconds(check.get(key, default), f"{name}.healthcheck.{key}"))
        for key, default in (("interval", "30s"), ("timeout", "30s"), ("start_interval", "5s"))
    }
    found = {"exec": {"command": list(argv)}, "timeoutSeconds": times["timeout"]}
    ready = {**found, "periodSeconds": times["interval"], "failureThreshold": check.get("retries", 3)}
    period = duration_s(check.get("start_period", "0s"))
    if not period:
        return {"readinessProbe": ready}
    tries = math.ceil(period / times["start_interval"]) + check.get("retries", 3)
    started = {**found, "periodSeconds": times["start_interval"], "failureThreshold": tries}
    return {"startupProbe": started, "readinessProbe": ready}

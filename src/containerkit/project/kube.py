"""Pods: containers that share a network, from Python or from Kubernetes' YAML; each becomes a project.

Source: the Kubernetes API reference, "Pod", "Deployment", "ConfigMap", "Secret".
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING, Any, Final, Literal

from containerkit.errors import SpecError
from containerkit.project.kubecheck import check_path, check_pod
from containerkit.project.kubeschema import CONFIG_MAP, DEPLOYMENT, POD, SECRET, VOLUME_CLAIM
from containerkit.project.project import Project, Service
from containerkit.project.realize import PROBES
from containerkit.project.shapes import Place
from containerkit.project.yaml12 import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from containerkit.project.options import Keys

__all__ = ["Pod", "load_kube"]

_PROBES: Final = {"readinessProbe": "ready", "livenessProbe": "alive", "startupProbe": "started"}
_SHARED: Final = ("network", "ipc")
_MEMORY: Final = re.compile(r"(\d+(?:\.\d+)?)([EPTGMk]i?|Ki|m)?\Z")
_POWERS: Final = {"k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6, "K": 1}
_RESTART: Final = {"Always": "always", "OnFailure": "on-failure", "Never": "no"}
_PULL: Final = {"Always": "always", "IfNotPresent": "missing", "Never": "never"}


class Pod:
    """Containers that share one network, and optionally more: they reach each other on localhost.

    ::

        pod = Pod(web=Service(image="nginx", ports=["8080:80"]), log=Service(image="fluentd"))
        with pod.project().up() as stack: ...

    Args:
        name: of the pod (default ``"pod"``).
        containers: by name. The first one owns the shared namespaces and publishes the ports of all.
        share: ``"network"``, ``"ipc"`` (default: the network only).
        others: more containers, by name.

    Raises:
        SpecError: a container has its own network; there is no container; or a namespace can't be shared.
    """

    def __init__(
        self,
        name: str = "pod",
        containers: Mapping[str, Service] | None = None,
        /,
        *,
        share: Sequence[Literal["network", "ipc"]] = ("network",),
        **others: Service,
    ) -> None:
        self.name, self.containers, self.share = name, {**(containers or {}), **others}, tuple(share)
        if not self.containers:
            raise SpecError("Pod: at least one container is needed")
        for each in self.share:
            if each not in _SHARED:
                raise SpecError(f"Pod: share: {each!r:.60} can't be shared; choose from {', '.join(_SHARED)}")

    def project(
        self,
        *,
        volumes: Mapping[str, Keys] | None = None,
        configs: Mapping[str, Keys] | None = None,
        secrets: Mapping[str, Keys] | None = None,
    ) -> Project:
        """Return the pod as a project.

        Args:
            volumes, configs, secrets: what its containers refer to, as for :class:`Project`.

        Raises:
            SpecError: its values contradict each other.
        """
        first, *others = self.containers
        services = {name: dict(each.keys) for name, each in self.containers.items()}
        for name, keys in services.items():
            if "network" in self.share and (keys.get("networks") or keys.get("network_mode")):
                raise SpecError(f"Pod: {name}: it shares the network of {first}; remove its networks and network_mode")
        for name in others:
            if "network" in self.share:
                services[first]["ports"] = [*services[first].get("ports", ()), *services[name].pop("ports", ())]
                services[name]["network_mode"] = f"service:{first}"
            if "ipc" in self.share:
                services[name]["ipc"] = f"service:{first}"
        made = {name: Service.of(keys) for name, keys in services.items()}
        return Project(name=self.name, services=made, volumes=volumes, configs=configs, secrets=secrets)


def load_kube(path: str) -> Project:
    """Return the project of a file with Pods, Deployments, ConfigMaps, Secrets and PersistentVolumeClaims.

    Raises:
        SpecError: another kind, an unknown key, or a reference to something that does not exist; with its place.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: {error}") from error
    return _Kube(path, [each for each in parse_yaml(text, path) if each]).project()


class _Kube:
    def __init__(self, path: str, documents: list[Any]) -> None:
        self._path = path
        self._maps: dict[str, dict[str, str]] = {}
        self._secrets: dict[str, dict[str, str]] = {}
        self._pods: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._services: dict[str, dict[str, Any]] = {}
        self._volumes: dict[str, Any] = {}
        self._configs: dict[str, Any] = {}
        for number, document in enumerate(documents):
            self._sort(document, Place(f"document {number + 1}", path, os.path.dirname(os.path.abspath(path))))

    def _sort(self, document: Any, place: Place) -> None:
        kind = document.get("kind") if isinstance(document, dict) else None
        shapes: dict[Any, Any] = {
            "Pod": POD, "Deployment": DEPLOYMENT, "ConfigMap": CONFIG_MAP, "Secret": SECRET,
            "PersistentVolumeClaim": VOLUME_CLAIM,
        }  # fmt: skip
        if kind not in shapes:
            raise place.error(f"the kind {kind!r:.60} is not supported; choose from {', '.join(shapes)}")
        found = shapes[kind](document, place)
        name = found["metadata"].get("name", "")
        if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name):
            raise place.error(f"metadata.name: {name!r:.60} is not a name")
        if kind == "Pod":
            self._pods.append((name, found["metadata"], found["spec"]))
        elif kind == "Deployment":
            template = found["spec"]["template"]
            count = found["spec"].get("replicas", 1)
            names = [f"{name}-{index}" if count > 1 else name for index in range(count)]
            self._pods += [(each, template.get("metadata", {}), template["spec"]) for each in names]
        elif kind == "ConfigMap":
            self._maps[name] = found.get("data", {})
        elif kind == "Secret":
            self._secrets[name] = {**{key: _decoded(value, place) for key, value in found.get("data", {}).items()},
                                   **found.get("stringData", {})}  # fmt: skip
        else:
            _check_claim(found.get("spec", {}), place)

    def project(self) -> Project:
        if not self._pods:
            raise SpecError(f"{self._path}: there is neither a Pod nor a Deployment")
        for name, meta, spec in self._pods:
            check_pod(spec, f"{self._path}: {name}")
            self._pod(name, meta, spec)
        services = {name: Service(**keys) for name, keys in self._services.items()}
        return Project(
            name=self._pods[0][0].replace(".", "-"), services=services, volumes=self._volumes, configs=self._configs
        )

    def _pod(self, pod: str, meta: dict[str, Any], spec: dict[str, Any]) -> None:
        before: dict[str, Any] = {}
        for container in spec.get("initContainers", ()):
            name = f"{pod}-{container['name']}"
            keys = self._container(pod, meta, spec, container)
            self._services[name] = {**keys, "restart": "no", "depends_on": dict(before)}
            before = {name: {"condition": "service_completed_successfully"}}
        first = ""
        for container in spec["containers"]:
            name = f"{pod}-{container['name']}"
            keys = self._container(pod, meta, spec, container)
            keys["depends_on"] = dict(before)
            keys["restart"] = _RESTART[spec.get("restartPolicy", "Always")]
            if spec.get("hostNetwork"):
                keys["network_mode"] = "host"
                keys.pop("ports", None)
            elif first:
                self._services[first].setdefault("ports", []).extend(keys.pop("ports", ()))
                keys["network_mode"] = f"service:{first}"
                keys.setdefault("ipc", f"service:{first}")
            else:
                first = name
                keys.setdefault("ports", [])
                keys["extra_hosts"] = [
                    f"{host}={each['ip']}" for each in spec.get("hostAliases", ()) for host in each["hostnames"]
                ]
            self._services[name] = keys

    def _container(
        self, pod: str, meta: dict[str, Any], spec: dict[str, Any], container: dict[str, Any]
    ) -> dict[str, Any]:
        where = f"{pod}.{container['name']}"
        keys: dict[str, Any] = {
            "image": container["image"], "hostname": spec.get("hostname", pod),
            "environment": self._env(pod, meta, container),
            **{key: meta[key] for key in ("labels", "annotations") if meta.get(key)},
            "stop_grace_period": f"{spec.get('terminationGracePeriodSeconds', 30)}s",
        }  # fmt: skip
        if "command" in container:
            keys["entrypoint"] = _expanded(container["command"], keys["environment"])
        if "args" in container:
            keys["command"] = _expanded(container["args"], keys["environment"])
        for name, key in (("workingDir", "working_dir"), ("tty", "tty"), ("stdin", "stdin_open")):
            if name in container:
                keys[key] = container[name]
        if "imagePullPolicy" in container:
            keys["pull_policy"] = _PULL[container["imagePullPolicy"]]
        keys["ports"] = [_port(each) for each in container.get("ports", ()) if "hostPort" in each]
        for name, key in (("hostPID", "pid"), ("hostIPC", "ipc")):
            if spec.get(name):
                keys[key] = "host"
        for name, key in (("postStart", "post_start"), ("preStop", "pre_stop")):
            if name in container.get("lifecycle", {}):
                keys[key] = [{"command": container["lifecycle"][name]["exec"]["command"]}]
        keys |= _resources(container.get("resources", {}))
        keys |= _security({**spec.get("securityContext", {}), **container.get("securityContext", {})})
        if any(probe in container for probe in _PROBES):
            keys[PROBES] = {
                kind: _check(container[probe], container) for probe, kind in _PROBES.items() if probe in container
            }
        self._mounts(pod, spec, container, keys, where)
        return keys

    # --- Environment

    def _env(self, pod: str, meta: dict[str, Any], container: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in container.get("envFrom", ()):
            prefix = each.get("prefix", "")
            for key, store in (("configMapRef", self._maps), ("secretRef", self._secrets)):
                if key in each:
                    content = self._looked_up(store, each[key]["name"], optional=each[key].get("optional", False))
                    found |= {f"{prefix}{name}": value for name, value in content.items()}
        for each in container.get("env", ()):
            value = each.get("value", "") if "valueFrom" not in each else self._value(pod, meta, each["valueFrom"])
            if value is not None:
                found[each["name"]] = _expand(value, found)
        return found

    def _value(self, pod: str, meta: dict[str, Any], source: dict[str, Any]) -> str | None:
        for key, store in (("configMapKeyRef", self._maps), ("secretKeyRef", self._secrets)):
            if key in source:
                optional = source[key].get("optional", False)
                content = self._looked_up(store, source[key]["name"], optional=optional)
                if source[key]["key"] not in content and not optional:
                    raise SpecError(f"{self._path}: {source[key]['name']} has no key {source[key]['key']!r:.60}")
                return content.get(source[key]["key"])
        field = source["fieldRef"]["fieldPath"]
        known = {"metadata.name": pod, "metadata.namespace": meta.get("namespace", "default"),
                 "spec.nodeName": os.uname().nodename}  # fmt: skip
        for kind in ("labels", "annotations"):
            known |= {f"metadata.{kind}['{name}']": value for name, value in meta.get(kind, {}).items()}
        if field not in known:
            raise SpecError(f"{self._path}: fieldRef {field!r:.60} is not supported; choose from {', '.join(known)}")
        found: str = known[field]
        return found

    def _looked_up(self, store: dict[str, dict[str, str]], name: str, *, optional: bool = False) -> dict[str, str]:
        if name not in store and not optional:
            kind = "ConfigMap" if store is self._maps else "Secret"
            raise SpecError(f"{self._path}: there is no {kind} {name!r:.60} in the file")
        return store.get(name, {})

    # --- Volumes

    def _mounts(
        self, pod: str, spec: dict[str, Any], container: dict[str, Any], keys: dict[str, Any], where: str
    ) -> None:
        volumes = {each["name"]: each for each in spec.get("volumes", ())}
        keys["volumes"], keys["configs"] = [], []
        for mount in container.get("volumeMounts", ()):
            if mount["name"] not in volumes:
                raise SpecError(f"{self._path}: {where}: there is no volume {mount['name']!r:.60}")
            volume, target, readonly = volumes[mount["name"]], mount["mountPath"], mount.get("readOnly", False)
            if "hostPath" in volume:
                check_path(volume["hostPath"], f"{self._path}: {where}")
                creates = volume["hostPath"].get("type", "") == "DirectoryOrCreate"
                source = os.path.join(volume["hostPath"]["path"], mount.get("subPath", ""))
                keys["volumes"].append({"type": "bind", "source": source, "target": target, "read_only": readonly,
                                        "bind": {"create_host_path": creates}})  # fmt: skip
            elif volume.get("emptyDir", {}).get("medium") == "Memory":
                keys["volumes"].append(self._memory(spec, volume, mount, readonly=readonly))
            elif "emptyDir" in volume or "persistentVolumeClaim" in volume:
                readonly = readonly or volume.get("persistentVolumeClaim", {}).get("readOnly", False)
                keys["volumes"].append(self._directory(pod, spec, volume, mount, readonly=readonly))
            else:
                self._content(volume, mount, keys)

    def _memory(
        self, spec: dict[str, Any], volume: dict[str, Any], mount: dict[str, Any], *, readonly: bool
    ) -> dict[str, Any]:
        """Return a tmpfs, which only one container can have."""
        users = [
            each["name"]
            for each in (*spec.get("initContainers", ()), *spec["containers"])
            if any(other["name"] == volume["name"] for other in each.get("volumeMounts", ()))
        ]
        if len(users) > 1 or "subPath" in mount:
            raise SpecError(f"{self._path}: volume {volume['name']}: medium: Memory can't be shared; remove 'medium'")
        found: dict[str, Any] = {"type": "tmpfs", "target": mount["mountPath"], "read_only": readonly}
        size = volume["emptyDir"].get("sizeLimit")
        return {**found, "tmpfs": {"size": int(_quantity(size, "emptyDir.sizeLimit"))}} if size else found

    def _directory(
        self, pod: str, spec: dict[str, Any], volume: dict[str, Any], mount: dict[str, Any], *, readonly: bool
    ) -> dict[str, Any]:
        if "persistentVolumeClaim" in volume:
            name = volume["persistentVolumeClaim"]["claimName"]
            self._volumes.setdefault(name, {"name": name})
        else:
            name = f"{pod}-{volume['name']}"
            if volume["emptyDir"].get("sizeLimit"):
                raise SpecError(f"{self._path}: volume {volume['name']}: sizeLimit: it requires medium: Memory")
            self._volumes.setdefault(name, {"labels": {"kube.emptydir": "true"}})
        if "fsGroup" in spec.get("securityContext", {}):
            self._volumes[name]["x-group"] = spec["securityContext"]["fsGroup"]
        options = {"subpath": mount["subPath"]} if "subPath" in mount else {}
        return {"type": "volume", "source": name, "target": mount["mountPath"], "read_only": readonly,
                "volume": {"nocopy": True, **options}}  # fmt: skip

    def _content(self, volume: dict[str, Any], mount: dict[str, Any], keys: dict[str, Any]) -> None:
        """Show the values of a ConfigMap or Secret as files."""
        is_map = "configMap" in volume
        source = volume["configMap" if is_map else "secret"]
        name = source["name"] if is_map else source["secretName"]
        store = self._maps if is_map else self._secrets
        content = self._looked_up(store, name, optional=source.get("optional", False))
        items = {each["key"]: each["path"] for each in source.get("items", ())} or {key: key for key in content}
        modes = {each["key"]: each["mode"] for each in source.get("items", ()) if "mode" in each}
        for key, path in items.items():
            if key not in content:
                raise SpecError(f"{self._path}: {name} has no key {key!r:.60}")
            if "subPath" in mount and mount["subPath"] != path:
                continue
            config = f"{name}.{key}"
            self._configs[config] = {"content": content[key]}
            target = mount["mountPath"] if "subPath" in mount else os.path.join(mount["mountPath"], path)
            entry: dict[str, Any] = {"source": config, "target": target}
            if key in modes or "defaultMode" in source:
                entry["mode"] = modes.get(key, source.get("defaultMode"))
            keys["configs"].append(entry)


def _check_claim(spec: dict[str, Any], place: Place) -> None:
    """Refuse a claim that is larger than the free space for volumes."""
    wanted = spec.get("resources", {}).get("requests", {}).get("storage")
    if wanted is not None:
        from containerkit.image.store import default_root

        at = str(default_root().parent)
        while not os.path.isdir(at):
            at = os.path.dirname(at)
        free = os.statvfs(at).f_bavail * os.statvfs(at).f_frsize
        if _quantity(wanted, "storage") > free:
            raise place.error(f"spec.resources.requests.storage: {wanted} requested, but only {free} bytes are free")


def _decoded(value: str, place: Place) -> str:
    try:
        return base64.b64decode(value, validate=True).decode("utf-8", "surrogateescape")
    except ValueError:
        raise place.error("data: the values of a Secret are base64; use stringData for plain text") from None


def _expand(text: str, variables: Mapping[str, str]) -> str:
    """Return a text with each ``$(NAME)`` replaced. ``$$(NAME)`` stands for a literal ``$(NAME)``."""
    return re.sub(
        r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)",
        lambda found: "$" if found[0] == "$$" else variables.get(found[1], found[0]),
        text,
    )


def _expanded(argv: list[str], variables: Mapping[str, str]) -> list[str]:
    return [_expand(word, variables) for word in argv]


def _port(each: dict[str, Any]) -> dict[str, Any]:
    found = {"target": each["containerPort"], "published": str(each["hostPort"])}
    found["protocol"] = each.get("protocol", "TCP").lower()
    return {**found, "host_ip": each["hostIP"]} if "hostIP" in each else found


def _quantity(text: Any, what: str) -> float:
    found = _MEMORY.match(str(text))
    if found is None:
        raise SpecError(f"{what}: {text!r:.60} is not a quantity; use for example 500m or 64Mi")
    number, unit = float(found[1]), found[2] or ""
    if unit == "m":
        return number / 1000
    return number * (1024 if unit.endswith("i") else 1000) ** _POWERS[unit[0]] if unit else number


def _resources(resources: dict[str, Any]) -> dict[str, Any]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for kind, given in (("limits", limits), ("requests", requests)):
        for name in given.keys() - {"cpu", "memory"}:
            raise SpecError(f"resources.{kind}.{name}: is not supported; choose from cpu and memory")
    found: dict[str, Any] = {}
    if "cpu" in limits:
        found["cpus"] = _quantity(limits["cpu"], "resources.limits.cpu")
    if "memory" in limits:
        found["mem_limit"] = int(_quantity(limits["memory"], "resources.limits.memory"))
    if "memory" in requests:
        found["mem_reservation"] = int(_quantity(requests["memory"], "resources.requests.memory"))
    if "cpu" in requests:
        found["cpu_shares"] = max(2, int(_quantity(requests["cpu"], "resources.requests.cpu") * 1024))
    return found


def _security(context: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "runAsUser" in context:
        group = context.get("runAsGroup")
        found["user"] = f"{context['runAsUser']}{'' if group is None else f':{group}'}"
    elif "runAsGroup" in context:
        raise SpecError("securityContext.runAsGroup: it requires runAsUser")
    if context.get("runAsNonRoot") and str(context.get("runAsUser", "0")) == "0":
        raise SpecError("securityContext.runAsNonRoot: it requires runAsUser")
    groups = [*context.get("supplementalGroups", ()), *([context["fsGroup"]] if "fsGroup" in context else ())]
    if groups:
        found["group_add"] = groups
    if context.get("privileged"):
        found["privileged"] = True
    if context.get("readOnlyRootFilesystem"):
        found["read_only"] = True
    options = ["no-new-privileges:true"] if context.get("allowPrivilegeEscalation") is False else []
    if context.get("seccompProfile", {}).get("type") == "Unconfined":
        options.append("seccomp:unconfined")
    if options:
        found["security_opt"] = options
    for name, key in (("add", "cap_add"), ("drop", "cap_drop")):
        if name in context.get("capabilities", {}):
            found[key] = context["capabilities"][name]
    if "sysctls" in context:
        found["sysctls"] = {each["name"]: each["value"] for each in context["sysctls"]}
    return found


def _check(probe: dict[str, Any], container: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a :class:`containerkit.project.health.Check`."""
    named = {each.get("name"): each["containerPort"] for each in container.get("ports", ())}
    kinds = [kind for kind in ("exec", "httpGet", "tcpSocket") if kind in probe]
    if len(kinds) != 1:
        raise SpecError(f"{container['name']}: probe: one of exec, httpGet and tcpSocket is needed")
    found: dict[str, Any] = {
        "delay_s": probe.get("initialDelaySeconds", 0), "interval_s": probe.get("periodSeconds", 10),
        "timeout_s": probe.get("timeoutSeconds", 1), "retries": probe.get("failureThreshold", 3),
        "successes": probe.get("successThreshold", 1),
    }  # fmt: skip
    how = probe[kinds[0]]
    if kinds[0] == "exec":
        return {**found, "argv": list(how["command"])}
    port = named.get(how["port"], how["port"])
    if not isinstance(port, int):
        raise SpecError(f"{container['name']}: probe: no port has the name {port!r:.60}")
    found |= {"port": port, "host": how.get("host", "127.0.0.1")}
    if kinds[0] == "tcpSocket":
        return found
    path = how.get("path", "/")
    return {**found, "path": path if path.startswith("/") else f"/{path}", "scheme": how.get("scheme", "HTTP").lower()}

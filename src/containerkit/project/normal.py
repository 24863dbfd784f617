"""Fills in the defaults of a merged model, and checks the model as a whole.

Source: the compose specification.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.project.dotenv import read_dotenv

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["SHARED", "check", "fill", "select"]

SHARED: Final = ("network_mode", "ipc", "pid", "uts", "cgroup")
_KINDS: Final = ("networks", "volumes", "configs", "secrets")


def fill(model: dict[str, Any], name: str, base: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the model with defaults: names, the default network, implied dependencies, values from the caller.

    Args:
        model: the merged model.
        name: the project's.
        base: its directory.
        variables: of the caller.
    """
    services = {key: _service(each or {}, base, variables) for key, each in (model.get("services") or {}).items()}
    made = {**model, "name": name, "services": services}
    uses_default = any("default" in (each.get("networks") or {}) for each in services.values())
    if uses_default and "default" not in (made.get("networks") or {}):
        made["networks"] = {**(made.get("networks") or {}), "default": {}}
    for kind in _KINDS:
        if made.get(kind):
            made[kind] = {key: _named(each or {}, key, name) for key, each in made[kind].items()}
    return made


def _named(resource: dict[str, Any], key: str, project: str) -> dict[str, Any]:
    return {"name": key if resource.get("external") else f"{project}_{key}", **resource}


def _service(service: dict[str, Any], base: str, variables: Mapping[str, str]) -> dict[str, Any]:
    made = dict(service)
    if not made.get("networks") and "network_mode" not in made and "provider" not in made:
        made["networks"] = {"default": None}
    if made.get("pull_policy") == "if_not_present":
        made["pull_policy"] = "missing"
    if "build" in made:
        build = {"context": base, **made["build"]}
        if "dockerfile" not in build and "dockerfile_inline" not in build:
            build["dockerfile"] = "Dockerfile"
        if "args" in build:
            build["args"] = {key: each for key, each in _resolved(build["args"], variables).items() if each is not None}
        made["build"] = build
    if "environment" in made:
        made["environment"] = _resolved(made["environment"], variables)
    made["secrets"] = [{"target": f"/run/secrets/{each['source']}", **each} for each in made.get("secrets", ())]
    if not made["secrets"]:
        del made["secrets"]
    given = {name: {"required": True, **how} for name, how in made.get("depends_on", {}).items()}
    needed = {**_implied(made), **given}
    return {**made, "depends_on": needed} if needed else made


def _resolved(pairs: Mapping[str, str | None], variables: Mapping[str, str]) -> dict[str, str | None]:
    return {key: variables.get(key) if each is None else each for key, each in pairs.items()}


def _implied(service: dict[str, Any]) -> dict[str, Any]:
    """Return the services that must run before this one because it shares a resource of theirs."""
    found: dict[str, Any] = {}
    for link in service.get("links", ()):
        found[link.partition(":")[0]] = True
    for key in SHARED:
        if str(service.get(key, "")).startswith("service:"):
            found[service[key].removeprefix("service:")] = True
    for volume in service.get("volumes_from", ()):
        if not volume.startswith("container:"):
            found.setdefault(volume.partition(":")[0], False)
    return {
        name: {"condition": "service_started", **({"restart": True} if again else {}), "required": True}
        for name, again in found.items()
    }


def select(model: dict[str, Any], profiles: Iterable[str], services: Iterable[str] = ()) -> dict[str, Any]:
    """Return the model with only the services of active profiles.

    Args:
        model: a filled model.
        profiles: those that are active; ``*`` stands for all.
        services: services that are selected by name. Their profiles become active.

    Raises:
        SpecError: a service does not exist.
    """
    active = set(profiles)
    everything = model["services"]
    for name in services:
        if name not in everything:
            raise SpecError(f"no service {name!r}; the services are {', '.join(everything) or 'none'}")
        active |= set(everything[name].get("profiles", ()))
    kept = {
        name: each
        for name, each in everything.items()
        if not each.get("profiles") or "*" in active or active & set(each["profiles"])
    }
    return {**model, "services": kept}


def without_unused(model: dict[str, Any]) -> dict[str, Any]:
    """Return the model without networks, volumes, configs, secrets and models that no service refers to."""
    made = dict(model)
    used = [references(service) for service in model["services"].values()]
    for kind in (*_KINDS, "models"):
        kept = {
            name: each
            for name, each in (made.pop(kind, None) or {}).items()
            if any(name in each[kind] for each in used)
        }
        if kept:
            made[kind] = kept
    return made


def references(service: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the names that a service refers to, by kind."""
    mounts, built = service.get("volumes", ()), service.get("build", {})
    needed = service.get("depends_on", {})
    return {
        "networks": list(service.get("networks") or ()),
        "volumes": [each["source"] for each in mounts if each["type"] == "volume" and "source" in each],
        "configs": [each["source"] for each in service.get("configs", ())],
        "secrets": [each["source"] for each in (*service.get("secrets", ()), *built.get("secrets", ()))],
        "models": list(service.get("models", ())),
        "services": [name for name, how in needed.items() if how["required"]],
    }


def with_files(service: dict[str, Any], name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return a service with the content of its ``env_file`` and ``label_file`` in place of these keys.

    Raises:
        SpecError: a file that is required can't be read.
    """
    made = {key: each for key, each in service.items() if key not in ("env_file", "label_file")}
    found: dict[str, str | None] = {}
    for each in service.get("env_file", ()):
        if not os.path.exists(each["path"]):
            if each["required"]:
                raise SpecError(
                    f"services.{name}.env_file: no such file {each['path']}; create it, or set required: false"
                )
            continue
        known = {key: value for key, value in found.items() if value is not None}
        found |= read_dotenv(each["path"], {**known, **variables}, raw=each.get("format") == "raw")
    if found or "environment" in made:
        made["environment"] = {**found, **made.get("environment", {})}
    labels: dict[str, str] = {}
    for path in service.get("label_file", ()):
        labels |= read_dotenv(path, variables)
    if labels:
        made["labels"] = {**labels, **made.get("labels", {})}
    return made


def check(model: dict[str, Any]) -> None:
    """Check the relations between parts of the model.

    Raises:
        SpecError: a reference to nothing, keys that exclude each other, or dependencies in a circle.
    """
    for kind, keys in (("configs", ("file", "environment", "content")), ("secrets", ("file", "environment"))):
        for name, each in (model.get(kind) or {}).items():
            given = [key for key in keys if key in each]
            if len(given) > 1:
                raise SpecError(f"{kind}.{name}: {' and '.join(given)} exclude each other")
            if not given and not each.get("external") and "driver" not in each:
                raise SpecError(f"{kind}.{name}: one of {', '.join(keys)} is needed, or external: true")
    for name, service in model["services"].items():
        try:
            _check_service(service, model)
        except SpecError as error:
            raise SpecError(f"services.{name}: {error}") from None
    names = [each["container_name"] for each in model["services"].values() if "container_name" in each]
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"container_name: two services have the name {name!r}")
    order(model["services"])


def _check_service(service: dict[str, Any], model: dict[str, Any]) -> None:
    if "image" not in service and "build" not in service and "provider" not in service:
        raise SpecError("it has neither an image nor a build")
    build = service.get("build", {})
    if "dockerfile" in build and "dockerfile_inline" in build:
        raise SpecError("build: dockerfile and dockerfile_inline exclude each other")
    for name, place in build.get("additional_contexts", {}).items():
        if place.startswith("service:") and place.removeprefix("service:") not in model["services"]:
            raise SpecError(f"build.additional_contexts.{name}: there is no {place.replace(':', ' ')!r}")
    if service.get("platform") and build.get("platforms") and service["platform"] not in build["platforms"]:
        raise SpecError(f"build.platforms: they must include the service's platform {service['platform']}")
    if "network_mode" in service and service.get("networks"):
        raise SpecError("network_mode and networks exclude each other")
    for name, how in service.get("depends_on", {}).items():
        if "condition" not in how:
            raise SpecError(f"depends_on.{name}: the key 'condition' is missing")
    for kind, names in references(service).items():
        for each in names:
            if each not in (model.get(kind) or {}):
                raise SpecError(f"it refers to {each!r}, which is not among {kind}")
    _check_numbers(service)
    _check_targets(service)


def _check_numbers(service: dict[str, Any]) -> None:
    deploy = service.get("deploy", {})
    if service.get("scale", deploy.get("replicas")) != deploy.get("replicas", service.get("scale")):
        raise SpecError("scale and deploy.replicas differ")
    count = service.get("scale", deploy.get("replicas", 1))
    if count < 0:
        raise SpecError("scale: it must be 0 or more")
    if count > 1 and "container_name" in service:
        raise SpecError("container_name: several containers can't have the same name")
    resources = deploy.get("resources", {})
    for key, part, other in (
        ("cpus", "limits", "cpus"), ("mem_limit", "limits", "memory"), ("pids_limit", "limits", "pids"),
        ("mem_reservation", "reservations", "memory"),
    ):  # fmt: skip
        if key in service and part in resources and resources[part].get(other) != service[key]:
            raise SpecError(f"{key} and deploy.resources.{part}.{other} differ")


def _check_targets(service: dict[str, Any]) -> None:
    targets = [each.partition(":")[0] for each in service.get("tmpfs", ())]
    targets += [each["target"] for each in service.get("volumes", ())]
    for each in targets:
        if targets.count(each) > 1:
            raise SpecError(f"two mounts have the target {each}")
    for watch in service.get("develop", {}).get("watch", ()):
        if "target" not in watch and watch["action"] not in ("rebuild", "restart"):
            raise SpecError(f"develop.watch: the action {watch['action']} needs a target")


def order(services: Mapping[str, Any]) -> list[str]:
    """Return the names of the services, each after its dependencies.

    Raises:
        SpecError: they depend on each other in a circle.
    """
    found: list[str] = []
    for name in services:
        _visit(name, services, found, ())
    return found


def _visit(name: str, services: Mapping[str, Any], found: list[str], chain: tuple[str, ...]) -> None:
    if name in found:
        return
    if name in chain:
        raise SpecError(f"services depend on each other in a circle: {' -> '.join((*chain, name))}")
    for other in services[name].get("depends_on", ()):
        if other in services:
            _visit(other, services, found, (*chain, name))
    found.append(name)

"""The image of a service: pulled, or built."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import ImageError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.image import Image
    from containerkit.project.project import Project

__all__ = ["build_image", "build_order", "image_of", "rlimits_of", "tag_of"]

_POLICIES: Final = {"always": "always", "never": "never", "missing": "missing", "build": "never"}


def tag_of(project: Project, service: str, keys: Mapping[str, Any]) -> str:
    """Return the name of a service's image."""
    found: str = keys.get("image", f"{project.name}-{service}")
    return found


def rlimits_of(ulimits: Mapping[str, Any]) -> dict[str, int | tuple[int, int]]:
    """Return the limits of resources of the key ``ulimits``."""
    return {name: (each["soft"], each["hard"]) if isinstance(each, dict) else each for name, each in ulimits.items()}


def build_order(services: Mapping[str, Any]) -> list[str]:
    """Return the names of services, each after those whose images its build uses as contexts."""
    found: list[str] = []

    def visit(name: str, chain: tuple[str, ...]) -> None:
        if name in chain:
            raise SpecError(f"build.additional_contexts: a circle of services: {' -> '.join((*chain, name))}")
        if name in found or name not in services:
            return
        for place in services[name].get("build", {}).get("additional_contexts", {}).values():
            if place.startswith("service:"):
                visit(place.removeprefix("service:"), (*chain, name))
        found.append(name)

    for name in services:
        visit(name, ())
    return found


def image_of(
    project: Project,
    service: str,
    keys: Mapping[str, Any],
    *,
    build: bool = False,
    pull: str | None = None,
    log: Callable[[str], object] = lambda _: None,
) -> Image:
    """Return the image of a service. Build or pull it if it is missing, and pull those that it mounts.

    Args:
        project: the project.
        service: the service's name.
        keys: its keys.
        build: build it even if it is there (default False).
        pull: ``"missing"``, ``"always"`` or ``"never"`` (default: the service's ``pull_policy``, or missing).
        log: called with the output of a build.

    Raises:
        SpecError: a key is not supported.
        ImageError: the image can't be pulled or built.
        ExitError: a command of the build failed.
    """
    from containerkit.image import Image

    name = tag_of(project, service, keys)
    policy = pull or keys.get("pull_policy", "missing")
    if policy not in _POLICIES:
        raise SpecError(
            f"services.{service}.pull_policy: {policy!r:.60} is not supported; choose from {', '.join(_POLICIES)}"
        )
    wanted: Any = _POLICIES[policy]
    for each in keys.get("volumes", ()):
        if each["type"] == "image":
            Image.get(each["source"], pull="missing" if policy == "build" else wanted)
    if "build" not in keys:
        return Image.get(name, pull=wanted, platform=keys.get("platform"))
    if not build and policy != "build":
        try:
            return Image.get(name, pull="never", platform=keys.get("platform"))
        except ImageError:
            pass  # it is built
    return build_image(project, service, keys, log=log)


def build_image(
    project: Project,
    service: str,
    keys: Mapping[str, Any],
    *,
    no_cache: bool = False,
    pull: bool = False,
    log: Callable[[str], object] = lambda _: None,
) -> Image:
    """Build the image of a service.

    Raises:
        SpecError: a key is not supported.
        ImageError, ExitError: the build failed.
    """
    from containerkit.image import Image

    build = keys["build"]
    context = build["context"]
    options: dict[str, Any] = {
        "tag": tag_of(project, service, keys), "args": build.get("args", {}), "target": build.get("target", ""),
        "cache": not (no_cache or build.get("no_cache")), "pull": "always" if pull or build.get("pull") else "missing",
        "network": _network(build.get("network"), service), "secrets": _secrets(project, build), "log": log,
        "contexts": _contexts(project, service, build, log), "labels": build.get("labels", {}),
        "hosts": dict(each.split("=", 1) for each in build.get("extra_hosts", ())),
    }  # fmt: skip
    if "shm_size" in build:
        options["shm_size"] = int(build["shm_size"])
    if "ulimits" in build:
        options["rlimits"] = rlimits_of(build["ulimits"])
    platform = keys.get("platform") or next(iter(build.get("platforms", ())), None)
    if platform:
        options["platform"] = platform
    if "dockerfile_inline" in build:
        options["text"] = build["dockerfile_inline"]
    elif build["dockerfile"] != "Dockerfile":
        options["dockerfile"] = os.path.join(context, build["dockerfile"])
    image = Image.build(context, **options)
    for tag in build.get("tags", ()):
        image.tag(tag)
    return image


def _contexts(project: Project, service: str, build: Mapping[str, Any], log: Callable[[str], object]) -> dict[str, str]:
    """Return the further contexts of a build. An image of another service is built if it is missing."""
    found = {}
    for name, place in build.get("additional_contexts", {}).items():
        kind, _, other = place.partition("service:")
        found[name] = place
        if not kind and other:
            keys = project.model["services"][other]
            image_of(project, other, keys, log=log)
            found[name] = f"docker-image://{tag_of(project, other, keys)}"
        elif "://" in place and not place.startswith("docker-image://"):
            raise SpecError(
                f"services.{service}.build.additional_contexts.{name}: {place!r:.100} is not supported; use a "
                "directory, docker-image://NAME or service:NAME"
            )
    return found


def _network(text: str | None, service: str) -> str:
    known = {None: "internet", "default": "internet", "none": "none", "host": "host"}
    if text not in known:
        raise SpecError(
            f"services.{service}.build.network: {text!r:.60} is not supported; choose from default, none and host"
        )
    return known[text]


def _secrets(project: Project, build: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in build.get("secrets", ()):
        source = project.model["secrets"][each["source"]]
        name = each.get("target", each["source"])
        found[name] = Path(source["file"]) if "file" in source else project.variables.get(source["environment"], "")
    return found

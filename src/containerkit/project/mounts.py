"""Turns the keys of a service into the files of its containers: mounts, volumes, configs, secrets."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from containerkit.errors import SpecError
from containerkit.spec.devices import device
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.image import Image
    from containerkit.project.project import Project

__all__ = ["content_of", "files_of", "mounts_of"]


def mounts_of(
    project: Project, keys: Mapping[str, Any], image: Image, volume_path: Callable[[str, str, Image], str]
) -> tuple[list[Mount], set[str]]:
    """Return the mounts of a service, and the targets of volumes without a name."""
    mounts = [_tmpfs(text) for text in keys.get("tmpfs", ())]
    anonymous: set[str] = set()
    if "shm_size" in keys:
        mounts.append(Mount.tmpfs("/dev/shm", size=int(keys["shm_size"])))
    for each in (*keys.get("volumes", ()), *_of_others(project, keys)):
        target, readonly = os.path.join("/", each["target"]), bool(each.get("read_only"))
        if each["type"] == "tmpfs":
            options = each.get("tmpfs", {})
            size = int(options["size"]) if "size" in options else None
            mounts.append(Mount.tmpfs(target, size=size, mode=int(options.get("mode", "01777"), 8)))
        elif each["type"] == "bind":
            mounts.append(_bind(each, target, readonly=readonly))
        elif each["type"] == "image":
            mounts.append(_image(each, target))
        elif "source" not in each:
            anonymous.add(target)
        else:
            mounts.append(_named(project, each, target, image, volume_path))
    mounts += [device(f"{each['source']}:{each['target']}") for each in keys.get("devices", ()) if _is_path(each)]
    return mounts, anonymous


def _is_path(each: Mapping[str, Any]) -> bool:
    """Return whether a device is named by its path. Others come from :mod:`containerkit.project.cdi`."""
    found: bool = each["source"].startswith("/")
    return found


def _of_others(project: Project, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the volumes of the services in ``volumes_from``, without those whose target is already used."""
    taken = {each["target"] for each in keys.get("volumes", ())}
    found: dict[str, dict[str, Any]] = {}
    for text in keys.get("volumes_from", ()):
        service, _, access = text.partition(":")
        for each in project.model["services"][service].get("volumes", ()):
            if each["target"] not in taken:
                found[each["target"]] = {**each, "read_only": True} if access == "ro" else each
    return list(found.values())


def _bind(each: Mapping[str, Any], target: str, *, readonly: bool) -> Mount:
    options = each.get("bind", {})
    source = each["source"]
    if not os.path.lexists(source):
        if not options.get("create_host_path"):
            raise SpecError(f"volumes: {source}: no such path; create it, or set bind: {{create_host_path: true}}")
        os.makedirs(source)
    propagation: Any = options.get("propagation", "private").removeprefix("r")
    recursive = options.get("recursive", "enabled") != "disabled"
    # The kernel's own filesystems support no id map. Their files of other users belong to nobody inside.
    own = not re.match(r"/(proc|sys|dev(?!/shm/))(/|\Z)", os.path.realpath(source))
    return Mount.bind(
        source, target, readonly=readonly, recursive=recursive, propagation=propagation, idmap=own, nodev=own
    )


def _named(
    project: Project,
    each: Mapping[str, Any],
    target: str,
    image: Image,
    volume_path: Callable[[str, str, Image], str],
) -> Mount:
    options = each.get("volume", {})
    path = volume_path(each["source"], "" if options.get("nocopy") else target, image)
    if "subpath" in options:
        path = _below(path, options["subpath"], f"{project.name}'s volume {each['source']}")
    return Mount.bind(path, target, readonly=bool(each.get("read_only")))


def _image(each: Mapping[str, Any], target: str) -> Mount:
    """Return the mount of an image, which is there already. It is read-only, because containers share its files."""
    from containerkit.image import Image
    from containerkit.image.layers.whole import whole_directory

    path, name = whole_directory(Image.get(each["source"], pull="never")), each["source"]
    subpath = each.get("image", {}).get("subpath")
    return Mount.bind(path if subpath is None else _below(path, subpath, f"the image {name}"), target, readonly=True)


def _below(path: str, subpath: str, what: str) -> str:
    """Return a path below a directory, which symlinks don't lead out of."""
    found = os.path.realpath(os.path.join(path, subpath))
    if not f"{found}/".startswith(os.path.realpath(path) + "/"):
        raise SpecError(f"volumes: the subpath {subpath!r} leads out of {what}")
    if not os.path.exists(found):
        raise SpecError(f"volumes: the subpath {subpath!r} does not exist in {what}")
    return found


def _tmpfs(text: str) -> Mount:
    target, _, options = text.partition(":")
    found: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, _, value = option.partition("=")
        if name == "size":
            found["size"] = int(value) if value.isdecimal() else value
        elif name == "mode":
            found["mode"] = int(value, 8)
        elif name == "ro":
            found["readonly"] = True
        elif name in ("noexec", "nosuid", "nodev"):
            found[name] = True
        elif name not in ("rw", "exec", "suid", "dev"):
            raise SpecError(f"tmpfs: {text!r}: unknown option {name!r}; choose from size, mode, ro and noexec")
    return Mount.tmpfs(target, **found)


def files_of(
    project: Project, keys: Mapping[str, Any]
) -> tuple[list[Mount], tuple[tuple[str, str, int, int, int], ...]]:
    """Return the mounts of configs and secrets, and the files to write: those with a mode or an owner."""
    mounts: list[Mount] = []
    written: list[tuple[str, str, int, int, int]] = []
    for kind in ("configs", "secrets"):
        for each in keys.get(kind, ()):
            source = project.model[kind][each["source"]]
            target = os.path.join("/" if kind == "configs" else "/run/secrets", each.get("target", each["source"]))
            own = [key for key in ("uid", "gid", "mode") if key in each]
            if "file" in source and not own:
                if not os.path.exists(source["file"]):
                    raise SpecError(f"{kind}.{each['source']}: there is no file {source['file']}")
                mounts.append(Mount.bind(source["file"], target, readonly=True))
                continue
            content = content_of(project, kind, each["source"])
            if own:
                ids = (int(each.get("uid", 0)), int(each.get("gid", 0)))
                written.append((target, content, int(each.get("mode", "0444"), 8), *ids))
            else:
                mounts.append(Mount.file(target, content))
    return mounts, tuple(written)


def content_of(project: Project, kind: str, name: str) -> str:
    """Return the content of a config or secret.

    Raises:
        SpecError: its file can't be read, or its variable is not set.
    """
    source = project.model[kind][name]
    if "content" in source:
        found: str = source["content"]
        return found
    if "environment" in source:
        variable = source["environment"]
        if variable not in project.variables:
            raise SpecError(f"{kind}.{name}.environment: the variable {variable} is not set")
        return project.variables[variable]
    try:
        with open(source["file"], encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError as error:
        raise SpecError(f"{kind}.{name}: {source['file']}: {error.strerror}") from error

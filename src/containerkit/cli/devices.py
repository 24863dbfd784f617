"""Devices of the host, by path or by CDI name, and the mounts of other containers.

Source: Container Device Interface, SPEC.md, versions 0.3 to 1.0.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.commands import complain
from containerkit.errors import SpecError
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

__all__ = ["add"]

_PLACES: Final = ("/etc/cdi", "/var/run/cdi")
_STANDARD: Final = ("null", "zero", "full", "random", "urandom", "tty")
_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu")


def add(options: argparse.Namespace, fields: dict[str, Any]) -> None:
    """Add the mounts of ``--device``, ``--gpus`` and ``--volumes-from`` to the arguments of a container.

    Raises:
        SpecError: a device is missing, or no CDI specification describes it.
        StateError: no such container.
    """
    mounts: list[Mount] = []
    for text in options.device:
        if "=" in text and not text.startswith("/"):
            mounts += _by_cdi(options, text, f"--device {text}")
        else:
            mounts.append(_node(options, text))
    if options.gpus is not None:
        mounts += _by_cdi(options, _gpu(options.gpus), f"--gpus {options.gpus}")
    for text in options.volumes_from:
        mounts += _of_container(text)
    fields["mounts"] = (*fields["mounts"], *mounts)


def _node(options: argparse.Namespace, text: str) -> Mount:
    source, _, rest = text.partition(":")
    target, _, access = rest.partition(":")
    if target and not target.startswith("/"):  # SOURCE:rwm
        target, access = "", target
    if set(access) - set("rwm"):
        raise SpecError(f"--device {text!r}: must be PATH[:TARGET[:rwm]]")
    return _bound(options, source, target or source, access or "rw", f"--device {text!r}")


def _bound(options: argparse.Namespace, source: str, target: str, access: str, what: str) -> Mount:
    """Return the mount of a device node. It keeps its owner, because the kernel can't id-map the filesystem of nodes.

    Raises:
        SpecError: it is not a device, or no process inside could open it.
    """
    try:
        status = os.stat(source)
    except OSError as error:
        raise SpecError(f"{what}: {source}: {error.strerror}; use the path of a host device") from None
    mode = status.st_mode
    if not stat.S_ISCHR(mode) and not stat.S_ISBLK(mode):
        raise SpecError(f"{what}: {source} is not a device; use --bind for files and directories")
    wanted = (4 if "r" in access else 0) | (2 if "w" in access else 0)
    is_own = os.geteuid() != 0 and status.st_uid == os.geteuid()
    if mode & wanted != wanted and not is_own and "user=host" not in options.namespace:
        raise SpecError(
            f"{what}: the mode of {source} is {stat.S_IMODE(mode):o}: only its owner and group may use it, and root of "
            "the container's user namespace is neither; add --userns host, or let others use it (chmod, udev)"
        )
    has_own_dev = any("/dev" in text.split(":")[1:2] or "target=/dev" in text.split(",") for _, text in options.mounts)
    if os.path.dirname(target) == "/dev" and os.path.basename(target) not in _STANDARD and not has_own_dev:
        raise SpecError(
            f"{what}: all containers share one /dev, which can't get new names: choose another target, such as "
            f"--device {source}:/run{target}, or mount another directory there first: --bind DIR:/dev"
        )
    return Mount.bind(source, target, readonly="w" not in access, idmap=False)


def _of_container(text: str) -> list[Mount]:
    import attrs

    from containerkit.detached.container import find

    name, _, mode = text.partition(":")
    if mode not in ("", "ro", "rw"):
        raise SpecError(f"--volumes-from {text!r}: must be CONTAINER[:ro]")
    found = [mount for mount in find(name).mounts if mount.type == "bind"]
    return [attrs.evolve(mount, readonly=True) for mount in found] if mode == "ro" else found


# --- CDI


def _gpu(text: str) -> str:
    """Return the CDI name of GPUs, given ``all``, ``0``, ``device=0`` or a complete name."""
    name = text.strip('"').removeprefix("device=")
    if "=" in name:
        return name
    kinds = [kind for kind in _GPUS if any(spec.get("kind") == kind for spec in _specs())]
    if not kinds:
        raise SpecError(
            f"--gpus {text}: no CDI specification in {' or '.join(_PLACES)} describes a GPU; use --device PATH, or "
            "create one (NVIDIA: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.json --format=json)"
        )
    return f"{kinds[0]}={name}"


def _specs() -> Iterator[dict[str, Any]]:
    """Yield the specifications, those of higher precedence first."""
    import json

    for place in reversed(_PLACES):
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue
        for name in names:
            path = os.path.join(place, name)
            if not name.endswith((".json", ".yaml", ".yml")):
                continue
            try:
                with open(path, encoding="utf-8") as file:
                    text = file.read()
                if name.endswith(".json"):
                    found = json.loads(text)
                else:
                    from containerkit.project.yaml12 import parse_yaml

                    found = next(iter(parse_yaml(text, path)), None)
            except (OSError, ValueError) as error:
                raise SpecError(f"CDI: {path}: {error}") from None
            if isinstance(found, dict):
                yield found


def _by_cdi(options: argparse.Namespace, name: str, what: str) -> list[Mount]:
    kind, _, device = name.partition("=")
    known: list[str] = []
    for spec in _specs():
        if spec.get("kind") != kind:
            continue
        devices = {str(each["name"]): each for each in spec.get("devices", ())}
        if device in devices:
            edits = [spec.get("containerEdits", {}), devices[device].get("containerEdits", {})]
            return [mount for edit in edits for mount in _edited(options, edit, what)]
        known += devices
    if known:
        raise SpecError(f"{what}: {kind} has no CDI device {device!r}; choose from {', '.join(known)}")
    raise SpecError(f"{what}: no CDI specification in {' or '.join(_PLACES)} is of the kind {kind!r}")


def _edited(options: argparse.Namespace, edits: Mapping[str, Any], what: str) -> Iterator[Mount]:
    options.env = [*edits.get("env", ()), *options.env]
    for node in edits.get("deviceNodes", ()):
        source = node.get("hostPath") or node["path"]
        yield _bound(options, source, node["path"], node.get("permissions", "rw"), what)
    for mount in edits.get("mounts", ()):
        yield Mount.bind(mount["hostPath"], mount["containerPath"], readonly="ro" in mount.get("options", ()))
    for hook in edits.get("hooks", ()):
        complain(
            f"{what}: a hook of the CDI specification is not run: {hook.get('path')}; run its steps inside yourself"
        )

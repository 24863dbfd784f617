"""Devices of the host, by path or by CDI name, and the mounts of other containers.

Source: Container Device Interface, SPEC.md, versions 0.3 to 1.0.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.commands import complain
from containerkit.errors import SpecError
from containerkit.spec.devices import device
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping

__all__ = ["add"]

_PLACES: Final = ("/etc/cdi", "/var/run/cdi")
_GPUS: Final = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu")


def add(options: argparse.Namespace, fields: dict[str, Any]) -> None:
    """Add the mounts of ``--device``, ``--gpus`` and ``--volumes-from`` to the arguments of a container.

    Raises:
        SpecError: a text is invalid, or no CDI specification describes the device.
        StateError: there is no container of that name.
    """
    mounts: list[Mount] = []
    for text in options.device:
        if "=" in text and not text.startswith("/"):
            mounts += _by_cdi(options, text, f"--device {text}")
        else:
            mounts.append(device(text, "--device"))
    if options.gpus is not None:
        mounts += _by_cdi(options, _gpu(options.gpus), f"--gpus {options.gpus}")
    for text in options.volumes_from:
        mounts += _of_container(text)
    fields["mounts"] = (*fields["mounts"], *mounts)


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
    kind, _, wanted = name.partition("=")
    known: list[str] = []
    for spec in _specs():
        if spec.get("kind") != kind:
            continue
        devices = {str(each["name"]): each for each in spec.get("devices", ())}
        if wanted in devices:
            edits = [spec.get("containerEdits", {}), devices[wanted].get("containerEdits", {})]
            return [mount for edit in edits for mount in _edited(options, edit, what)]
        known += devices
    if known:
        raise SpecError(f"{what}: {kind} has no CDI device {wanted!r}; choose from {', '.join(known)}")
    raise SpecError(f"{what}: no CDI specification in {' or '.join(_PLACES)} is of the kind {kind!r}")


def _edited(options: argparse.Namespace, edits: Mapping[str, Any], what: str) -> Iterator[Mount]:
    options.env = [*edits.get("env", ()), *options.env]
    for node in edits.get("deviceNodes", ()):
        source = node.get("hostPath") or node["path"]
        yield device(f"{source}:{node['path']}:{node.get('permissions', 'rwm')}", what)
    for mount in edits.get("mounts", ()):
        yield Mount.bind(mount["hostPath"], mount["containerPath"], readonly="ro" in mount.get("options", ()))
    for hook in edits.get("hooks", ()):
        complain(
            f"{what}: a hook of the CDI specification is not run: {hook.get('path')}; run its steps inside yourself"
        )

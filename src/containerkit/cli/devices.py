"""Devices of the host, by path or by CDI name, and the mounts of other containers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from containerkit.cli.commands import complain
from containerkit.errors import SpecError
from containerkit.project.cdi import by_name, gpu_name
from containerkit.spec.devices import device

if TYPE_CHECKING:
    import argparse

    from containerkit.spec.mount import Mount

__all__ = ["add"]


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
        mounts += _by_cdi(options, gpu_name(options.gpus, f"--gpus {options.gpus}"), f"--gpus {options.gpus}")
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


def _by_cdi(options: argparse.Namespace, name: str, what: str) -> list[Mount]:
    """Return the mounts of a CDI device. Its variables come before those that the user sets."""
    given = by_name(name, what)
    options.env = [*(f"{key}={value}" for key, value in given.env.items()), *options.env]
    for note in given.notes:
        complain(note)
    return list(given.mounts)

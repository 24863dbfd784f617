"""Devices that a name or a description selects: those of CDI specifications, and GPUs.

Source: Container Device Interface, SPEC.md, versions 0.3 to 1.0; the compose specification, "devices", "gpus".
"""

from __future__ import annotations

import glob
import os
import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.spec.devices import device
from containerkit.spec.mount import Mount

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

__all__ = ["Given", "by_name", "gpu_name", "requested"]

PLACES: Final = ("/etc/cdi", "/var/run/cdi")
"""Where specifications are, those of lower precedence first."""

DEV: Final = "/dev"

_GPUS: Final = {"nvidia": "nvidia.com/gpu", "amd": "amd.com/gpu", "intel": "intel.com/gpu"}
"""The CDI kinds of GPUs by their drivers."""

_OF_NVIDIA: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
"""Nodes that all GPUs of NVIDIA share."""

_ALONE: Final = "the image must have the libraries of the driver, in the same version"
_ADVICE: Final = "create one (NVIDIA: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.json --format=json)"


@attrs.frozen
class Given:
    """What devices add to a container.

    Attributes:
        mounts: the nodes, and the files of the driver.
        env: variables for its commands.
        nodes: the path outside and the access of each node.
        notes: what the user should know.
    """

    mounts: tuple[Mount, ...] = ()
    env: Mapping[str, str] = attrs.field(factory=dict)
    nodes: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def joined(cls, parts: Iterable[Given]) -> Given:
        """Return what several devices add together."""
        every = list(parts)
        return cls(
            mounts=tuple(dict.fromkeys(mount for each in every for mount in each.mounts)),
            env={name: value for each in every for name, value in each.env.items()},
            nodes=tuple(dict.fromkeys(node for each in every for node in each.nodes)),
            notes=tuple(dict.fromkeys(note for each in every for note in each.notes)),
        )


def by_name(name: str, what: str) -> Given:
    """Return what a device adds, given its CDI name ``vendor.com/class=name``.

    Args:
        name: the name.
        what: the name of the option, for errors.

    Raises:
        SpecError: no specification describes it, or one can't be read.
    """
    kind, _, wanted = name.partition("=")
    known: list[str] = []
    for spec in _specs():
        if spec.get("kind") != kind:
            continue
        devices = {str(each["name"]): each for each in spec.get("devices", ())}
        if wanted in devices:
            edits = (spec.get("containerEdits", {}), devices[wanted].get("containerEdits", {}))
            return Given.joined(_edited(edit, what) for edit in edits)
        known += devices
    if known:
        raise SpecError(f"{what}: {kind} has no CDI device {wanted!r}; choose from {', '.join(known)}")
    raise SpecError(f"{what}: no CDI specification in {' or '.join(PLACES)} is of the kind {kind!r}")


def gpu_name(text: str, what: str) -> str:
    """Return the CDI name of GPUs, given ``all``, ``0``, ``device=0`` or a complete name.

    Raises:
        SpecError: no specification describes a GPU.
    """
    name = text.strip('"').removeprefix("device=")
    if "=" in name:
        return name
    kind = _gpu_kind("")
    if kind is None:
        raise SpecError(
            f"{what}: no CDI specification in {' or '.join(PLACES)} describes a GPU; use --device PATH, or {_ADVICE}"
        )
    return f"{kind}={name}"


def requested(keys: Mapping[str, Any]) -> Given:
    """Return what the devices of a service add that are not named by their paths.

    Raises:
        SpecError: a device does not exist, or is of a kind that is not supported.
    """
    found = []
    for each in keys.get("devices", ()):
        if not each["source"].startswith("/"):
            if "=" not in each["source"]:
                raise SpecError(
                    f"devices: {each['source']!r:.100} is neither a path of a node nor a CDI name such as "
                    f"vendor.com/class=name"
                )
            found.append(by_name(each["source"], f"devices: {each['source']}"))
    found += [_request(each, "gpus") for each in keys.get("gpus", ())]
    place = "deploy.resources.reservations.devices"
    wanted = keys.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", ())
    return Given.joined([*found, *(_request(each, place) for each in wanted)])


# --- Requests


def _request(each: Mapping[str, Any], what: str) -> Given:
    driver, ids = each.get("driver", ""), list(each.get("device_ids", ()))
    if each.get("options"):
        raise SpecError(f"{what}.options: drivers have no options here; remove this key")
    if driver == "cdi":
        if not ids:
            raise SpecError(f"{what}: the driver cdi needs device_ids with CDI names, such as vendor.com/class=name")
        return Given.joined(by_name(name, what) for name in ids)
    if "gpu" not in each.get("capabilities", ("gpu",)) or driver not in ("", *_GPUS):
        raise SpecError(
            f"{what}: only GPUs are supported (capabilities: [gpu]), with the driver {', '.join(_GPUS)} or cdi; for "
            f"another device use 'devices' with the path of its node, or with its CDI name"
        )
    kind = _gpu_kind(driver)
    if kind is not None:
        return Given.joined(by_name(f"{kind}={name}", what) for name in _chosen(kind, each, ids, what))
    if driver in ("", "nvidia") and (there := _nodes_of_nvidia()):
        return _by_nodes(there, each, ids, what)
    raise SpecError(
        f"{what}: this machine has no GPU that can be given to a container: no CDI specification in "
        f"{' or '.join(PLACES)} describes one{f' of {driver}' if driver else ''}, and there is no node "
        f"{DEV}/nvidia0; install the driver, and {_ADVICE}"
    )


def _chosen(kind: str, each: Mapping[str, Any], ids: list[str], what: str) -> list[str]:
    """Return the names of the devices that a request selects among those of a CDI kind."""
    if ids:
        return ids
    names = list(dict.fromkeys(name for spec in _specs() if spec.get("kind") == kind for name in _names(spec)))
    count = each.get("count", -1)
    if count == -1:
        return ["all"] if "all" in names else names
    # A GPU may also have a name with its identifier. Numbers name each only once.
    numbered = sorted((name for name in names if name.isdecimal()), key=int)
    return _first(numbered or [name for name in names if name != "all"], count, what)


def _names(spec: Mapping[str, Any]) -> list[str]:
    return [str(each["name"]) for each in spec.get("devices", ())]


def _first(names: Sequence[str], count: int, what: str) -> list[str]:
    if len(names) < count:
        raise SpecError(f"{what}: {count} GPUs are requested; this machine has {len(names)}: {', '.join(names)}")
    return list(names[:count])


def _gpu_kind(driver: str) -> str | None:
    """Return the CDI kind of the GPUs that a driver has (default: of any), None without a specification."""
    wanted = [_GPUS[driver]] if driver else list(_GPUS.values())
    known = {spec.get("kind") for spec in _specs()}
    return next((kind for kind in wanted if kind in known), None)


def _nodes_of_nvidia() -> list[str]:
    """Return the numbers of the GPUs that have a node."""
    found = (re.fullmatch(r"nvidia(\d+)", os.path.basename(path)) for path in glob.glob(f"{DEV}/nvidia*"))
    return sorted((each[1] for each in found if each), key=int)


def _by_nodes(there: list[str], each: Mapping[str, Any], ids: list[str], what: str) -> Given:
    """Return the nodes of GPUs on a machine where no CDI specification names the files of the driver."""
    count = each.get("count", -1)
    chosen = ids or (there if count == -1 else _first(there, count, what))
    for name in chosen:
        if name not in there:
            raise SpecError(f"{what}: there is no GPU {name!r:.60}; choose from {', '.join(there)}")
    names = [f"nvidia{number}" for number in chosen]
    names += [name for name in _OF_NVIDIA if os.path.exists(f"{DEV}/{name}")]
    return Given(
        mounts=tuple(device(f"{DEV}/{name}:/dev/{name}", what) for name in names),
        nodes=tuple((f"{DEV}/{name}", "rwm") for name in names),
        notes=(f"{what}: no CDI specification describes the GPU, so only its nodes are shown: {_ALONE}; or {_ADVICE}",),
    )


# --- Specifications


def _specs() -> Iterator[dict[str, Any]]:
    """Yield the specifications, those of higher precedence first."""
    import json

    for place in reversed(PLACES):
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


def _edited(edits: Mapping[str, Any], what: str) -> Given:
    nodes = [
        (each.get("hostPath") or each["path"], each["path"], each.get("permissions", "rwm"))
        for each in edits.get("deviceNodes", ())
    ]
    mounts = [device(f"{source}:{target}:{access}", what) for source, target, access in nodes]
    for mount in edits.get("mounts", ()):
        readonly = "ro" in mount.get("options", ())
        mounts.append(Mount.bind(mount["hostPath"], mount["containerPath"], readonly=readonly))
    return Given(
        mounts=tuple(mounts),
        env=dict(each.partition("=")[::2] for each in edits.get("env", ())),
        nodes=tuple((source, access) for source, _, access in nodes),
        notes=tuple(
            f"{what}: a hook of the CDI specification is not run: {each.get('path')}; run its steps inside yourself"
            for each in edits.get("hooks", ())
        ),
    )

"""Resolve device paths. This happens just before a group is created, because device numbers can change."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Literal

import attrs

from containerkit.cgroup.device_rules import DeviceRule
from containerkit.errors import SpecError

if TYPE_CHECKING:
    from containerkit.cgroup.limits import Limits

__all__ = ["resolved"]


def resolved(limits: Limits) -> Limits:
    """Return the limits with device numbers in place of device paths.

    Raises:
        SpecError: a device does not exist, or it is of the wrong kind.
    """
    changes: dict[str, Any] = {}
    if any(isinstance(rule, str) for rule in limits.devices or ()):
        changes["devices"] = [_rule(rule) if isinstance(rule, str) else rule for rule in limits.devices or ()]
    if any(limit.device.startswith("/") for limit in limits.io):
        changes["io"] = [attrs.evolve(limit, device=_block(limit.device)) for limit in limits.io]
    if any(name.startswith("/") for name, _ in limits.io_device_weights):
        changes["io_device_weights"] = {_block(name): weight for name, weight in limits.io_device_weights}
    return attrs.evolve(limits, **changes) if changes else limits


def _rule(text: str) -> DeviceRule:
    path, _, access = text.rpartition(" ")
    status = _status(path)
    kind: Literal["b", "c"] = "b" if stat.S_ISBLK(status.st_mode) else "c"
    return DeviceRule(kind=kind, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev), access=access)


def _block(device: str) -> str:
    if not device.startswith("/"):
        return device
    status = _status(device)
    if not stat.S_ISBLK(status.st_mode):
        raise SpecError(f"io: {device} is not a block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _status(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except OSError as error:
        raise SpecError(f"device {path}: {error.strerror}") from None
    if not (stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise SpecError(f"device {path}: it is not a device")
    return status

"""Devices by path: looked up just before a group is made, since a number may mean another disk tomorrow."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import attrs

from containerkit.cgroup.rules import DeviceRule
from containerkit.errors import SpecError

if TYPE_CHECKING:
    from containerkit.cgroup.limits import Limits

__all__ = ["resolved"]


def resolved(limits: Limits) -> Limits:
    """Return the limits with numbers in place of device paths.

    Raises:
        SpecError: there is no such device node, or it is of the wrong kind.
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
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c"
    return DeviceRule(kind=kind, major=os.major(status.st_rdev), minor=os.minor(status.st_rdev), access=access)  # type: ignore[arg-type]


def _block(device: str) -> str:
    if not device.startswith("/"):
        return device
    status = _status(device)
    if not stat.S_ISBLK(status.st_mode):
        raise SpecError(f"io: {device} is no block device")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"


def _status(path: str) -> os.stat_result:
    try:
        status = os.stat(path)
    except OSError as error:
        raise SpecError(f"device {path}: {error.strerror}") from None
    if not (stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        raise SpecError(f"device {path}: it is no device node")
    return status

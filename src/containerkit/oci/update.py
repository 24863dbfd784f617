"""``update``: change the limits of a container."""

from __future__ import annotations

import os
import sys

from containerkit import jsontext
from containerkit.oci import limits, store
from containerkit.oci.cgroups import Groups, hierarchies
from containerkit.oci.errors import RuntimeFailure, strerror
from containerkit.oci.resources import Resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from containerkit.oci.main import Call

__all__ = ["update"]

_FLAGS = {
    "blkio-weight": ("blockIO", "weight"),
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "memory": ("memory", "limit"),
    "memory-reservation": ("memory", "reservation"),
    "memory-swap": ("memory", "swap"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
    "pids-limit": ("pids", "limit"),
}
_SIZES = ("memory", "memory-reservation", "memory-swap", "kernel-memory", "kernel-memory-tcp")
_UNITS = {"k": 10, "m": 20, "g": 30, "t": 40}


def update(call: Call) -> int:
    """Change limits, by flags, from a file, or from the standard input (``--resources -``)."""
    wish = Resources.read(_wish(call), "resources")
    with store.open_entry(call.root, call.name, lock=True) as entry:
        if entry.status() == "stopped":
            raise RuntimeFailure("container not running")
        places = entry.record.get("groups", [])
        if not places:
            raise RuntimeFailure("cannot update: the container has no control groups")
        groups = Groups.of(places, hierarchies())
        limits.apply(groups, wish, update=True)
        if call.flags.given("l3-cache-schema") or call.flags.given("mem-bw-schema"):
            _reschedule_cache(call, entry.record.get("resctrl", ""))
    return 0


def _wish(call: Call) -> dict[str, Any]:
    if call.flags.given("resources"):
        path = call.flags.text("resources")
        try:
            if path == "-":
                content = sys.stdin.buffer.read()
            else:
                with open(path, "rb") as file:
                    content = file.read()
            value = jsontext.loads(content)
        except OSError as error:
            raise RuntimeFailure(f"open {path}: {strerror(error.errno or 0)}") from None
        except ValueError as error:
            raise RuntimeFailure(f"{path}: {error}") from None
        if not isinstance(value, dict):
            raise RuntimeFailure(f"{path}: not an object")
        return value
    wish: dict[str, Any] = {}
    for flag, (part, member) in _FLAGS.items():
        if call.flags.given(flag):
            text = call.flags.text(flag)
            wish.setdefault(part, {})[member] = _size(text, flag) if flag in _SIZES else call.flags.number(flag)
    for flag, member in (("cpuset-cpus", "cpus"), ("cpuset-mems", "mems")):
        if call.flags.given(flag):
            wish.setdefault("cpu", {})[member] = call.flags.text(flag)
    return wish


def _size(text: str, flag: str) -> int:
    """Read bytes, or a number with k, m, g or t."""
    plain = text.lower().removesuffix("b").removesuffix("i")
    shift = _UNITS.get(plain[-1:], 0)
    number = plain[:-1] if shift else plain
    if number == "-1" and not shift:
        return -1
    if not number.isdecimal():
        raise RuntimeFailure(f"--{flag}: {text!r} is not a size such as 64m")
    return int(number) << shift


def _reschedule_cache(call: Call, directory: str) -> None:
    if not directory:
        raise RuntimeFailure("cannot update: the container has no class of intelRdt of its own")
    for flag in ("l3-cache-schema", "mem-bw-schema"):
        if text := call.flags.text(flag):
            fd = os.open(f"{directory}/schemata", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode() + b"\n")
            except OSError as error:
                raise RuntimeFailure(f"--{flag}: {text!r}: {strerror(error.errno or 0)}") from None
            finally:
                os.close(fd)

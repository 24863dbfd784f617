"""The io controller, blkio on version 1, limits how much is read from and written to block devices.

Devices are ``"major:minor"`` here. Paths have been resolved before.

Source: "IO" in Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/blkio-controller.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.cgroup.controllers import Attachment, Setting, unsupported
from containerkit.cgroup.quantities import MAX
from containerkit.cgroup.statfiles import device, nested, operations

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.device_rules import IOLimit
    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.stats import IOStats

_NO_DEVICE: Final = "name a whole disk that exists, not a partition"
_WEIGHT: Final = (
    "weights need the BFQ scheduler (CONFIG_BFQ_GROUP_IOSCHED; echo bfq > /sys/block/DISK/queue/scheduler) or, on "
    "version 2, io.cost (io.cost.qos of the root group)"
)
_LATENCY: Final = "latencies need CONFIG_BLK_CGROUP_IOLATENCY and io in cgroup.subtree_control"
_RATES: Final = (("rbps", "read_bps"), ("wbps", "write_bps"), ("riops", "read_iops"), ("wiops", "write_iops"))
_OLD_FILES: Final = {
    "read_bps": "blkio.throttle.read_bps_device",
    "write_bps": "blkio.throttle.write_bps_device",
    "read_iops": "blkio.throttle.read_iops_device",
    "write_iops": "blkio.throttle.write_iops_device",
}


def bfq_weight(weight: int) -> int:
    """Convert a weight of 1 to 10000 to BFQ's weight of 1 to 1000. The default of both is 100."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:
    """Return the settings that apply the limits."""
    found: list[Setting | Attachment] = []
    for limit in limits.io:
        found += _rates_2(limit) if version == 2 else _rates_1(limit)
    if limits.io_weight is not None:
        found += _weight("default", limits.io_weight, version)
    for name, weight in limits.io_device_weights:
        found += _weight(name, weight, version)
    return found


def _weight(name: str, weight: int, version: int) -> list[Setting | Attachment]:
    """Write the file of BFQ and, on version 2, that of io.cost. The scheduler of the disk decides which one counts.

    Both accept a default weight. Only the scheduler that serves a disk accepts a weight for it, and one of them must.
    """
    shown = f"{name} {bfq_weight(weight)}"
    bfq = str(bfq_weight(weight)) if name == "default" else shown
    if version == 1:
        file = "blkio.bfq.weight" if name == "default" else "blkio.bfq.weight_device"
        return [Setting(file, bfq.encode(), _WEIGHT)]
    return [
        Setting("io.bfq.weight", bfq.encode(), _WEIGHT, "ignore"),
        Setting("io.weight", f"{name} {weight}".encode(), _WEIGHT, instead=("io.bfq.weight", shown)),
    ]


def _rates_2(limit: IOLimit) -> list[Setting | Attachment]:
    rates = [f"{key}={value}" for key, field in _RATES if (value := getattr(limit, field)) is not None]
    found: list[Setting | Attachment] = []
    if rates:
        found.append(Setting("io.max", f"{limit.device} {' '.join(rates)}".encode(), _NO_DEVICE))
    if limit.latency_us is not None:
        found.append(Setting("io.latency", f"{limit.device} target={limit.latency_us}".encode(), _LATENCY))
    return found


def _rates_1(limit: IOLimit) -> list[Setting | Attachment]:
    if limit.latency_us is not None:
        raise unsupported("latency_us", version=1)
    return [
        Setting(file, f"{limit.device} {0 if value == MAX else value}".encode(), _NO_DEVICE)
        for field, file in _OLD_FILES.items()
        if (value := getattr(limit, field)) is not None
    ]


def report(read: Callable[[str], str | None], version: int) -> IOStats:
    """Return the report."""
    from containerkit.cgroup.stats import IODeviceStats, IOStats

    counts = _counts_2(read) if version == 2 else _counts_1(read)
    devices = [
        IODeviceStats(major=numbers[0], minor=numbers[1], **fields)
        for name, fields in sorted(counts.items())
        if (numbers := device(name)) is not None
    ]
    return IOStats(devices=tuple(devices))


def _counts_2(read: Callable[[str], str | None]) -> dict[str, dict[str, Any]]:
    keys = {
        "rbytes": "read_bytes",
        "wbytes": "write_bytes",
        "rios": "reads",
        "wios": "writes",
        "dbytes": "discard_bytes",
        "dios": "discards",
    }
    return {
        name: {field: fields.get(key) or 0 for key, field in keys.items()}
        for name, fields in nested(read("io.stat")).items()
    }


def _counts_1(read: Callable[[str], str | None]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    files = (
        ("blkio.throttle.io_service_bytes_recursive", ("read_bytes", "write_bytes", "discard_bytes")),
        ("blkio.throttle.io_serviced_recursive", ("reads", "writes", "discards")),
    )
    for file, fields in files:
        for name, served in operations(read(file)).items():
            values = zip(fields, ("Read", "Write", "Discard"), strict=True)
            found.setdefault(name, {}).update({field: served.get(kind, 0) for field, kind in values})
    return found

"""``linux.resources``, typed.

Source: OCI runtime-spec, config-linux.md, "Control groups".
"""

from __future__ import annotations

from containerkit.oci.schema import Field, Model, array, boolean, choice, integer, mapping, model, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar

__all__ = ["CPU", "BlockIO", "DeviceRule", "Memory", "Network", "Resources"]

_LONG = integer(-(2**63), 2**63 - 1)
_COUNT = integer(0, 2**64 - 1)


class DeviceRule(Model):
    """A rule for device nodes. The last rule that matches decides."""

    allow: bool
    type: str
    major: int | None
    minor: int | None
    access: str
    FIELDS: ClassVar = {
        "allow": Field.required("allow", boolean),
        "type": Field("type", choice("", "a", "b", "c"), "a"),
        "major": Field("major", integer(-1, 2**32 - 1)),
        "minor": Field("minor", integer(-1, 2**32 - 1)),
        "access": Field("access", text, ""),
    }


class Memory(Model):
    """Memory, in bytes; -1 removes a limit."""

    limit: int | None
    reservation: int | None
    swap: int | None
    kernel: int | None
    kernel_tcp: int | None
    swappiness: int | None
    disable_oom_killer: bool
    use_hierarchy: bool
    check_before_update: bool
    FIELDS: ClassVar = {
        "limit": Field("limit", _LONG),
        "reservation": Field("reservation", _LONG),
        "swap": Field("swap", _LONG),
        "kernel": Field("kernel", _LONG),
        "kernelTCP": Field("kernel_tcp", _LONG),
        "swappiness": Field("swappiness", integer(0, 2**64 - 1)),
        "disableOOMKiller": Field("disable_oom_killer", boolean, False),
        "useHierarchy": Field("use_hierarchy", boolean, False),
        "checkBeforeUpdate": Field("check_before_update", boolean, False),
    }


class CPU(Model):
    """Processors: shares, and microseconds in each period."""

    shares: int | None
    quota: int | None
    burst: int | None
    period: int | None
    realtime_runtime: int | None
    realtime_period: int | None
    cpus: str
    mems: str
    idle: int | None
    FIELDS: ClassVar = {
        "shares": Field("shares", _COUNT),
        "quota": Field("quota", _LONG),
        "burst": Field("burst", _COUNT),
        "period": Field("period", _COUNT),
        "realtimeRuntime": Field("realtime_runtime", _LONG),
        "realtimePeriod": Field("realtime_period", _COUNT),
        "cpus": Field("cpus", text, ""),
        "mems": Field("mems", text, ""),
        "idle": Field("idle", integer(0, 1)),
    }


class Pids(Model):
    """The number of tasks. 0 or less means no limit."""

    limit: int | None
    FIELDS: ClassVar = {"limit": Field("limit", _LONG)}


class WeightDevice(Model):
    """The weight of one disk."""

    major: int
    minor: int
    weight: int | None
    leaf_weight: int | None
    FIELDS: ClassVar = {
        "major": Field.required("major", _COUNT),
        "minor": Field.required("minor", _COUNT),
        "weight": Field("weight", integer(0, 10000)),
        "leafWeight": Field("leaf_weight", integer(0, 10000)),
    }


class Throttle(Model):
    """A rate of one disk."""

    major: int
    minor: int
    rate: int
    FIELDS: ClassVar = {
        "major": Field.required("major", _COUNT),
        "minor": Field.required("minor", _COUNT),
        "rate": Field.required("rate", _COUNT),
    }


_THROTTLES = array(model(Throttle))


class BlockIO(Model):
    """Disks: weights and rates."""

    weight: int | None
    leaf_weight: int | None
    weight_device: list[WeightDevice]
    read_bps: list[Throttle]
    write_bps: list[Throttle]
    read_iops: list[Throttle]
    write_iops: list[Throttle]
    FIELDS: ClassVar = {
        "weight": Field("weight", integer(0, 10000)),
        "leafWeight": Field("leaf_weight", integer(0, 10000)),
        "weightDevice": Field("weight_device", array(model(WeightDevice)), []),
        "throttleReadBpsDevice": Field("read_bps", _THROTTLES, []),
        "throttleWriteBpsDevice": Field("write_bps", _THROTTLES, []),
        "throttleReadIOPSDevice": Field("read_iops", _THROTTLES, []),
        "throttleWriteIOPSDevice": Field("write_iops", _THROTTLES, []),
    }


class HugepageLimit(Model):
    """Bytes in pages of one size."""

    page_size: str
    limit: int
    FIELDS: ClassVar = {"pageSize": Field.required("page_size", text), "limit": Field.required("limit", _COUNT)}


class Priority(Model):
    """The priority of an interface's packets."""

    name: str
    priority: int
    FIELDS: ClassVar = {
        "name": Field.required("name", text),
        "priority": Field.required("priority", integer(0, 2**32 - 1)),
    }


class Network(Model):
    """The class and priorities of packets (version 1)."""

    class_id: int | None
    priorities: list[Priority]
    FIELDS: ClassVar = {
        "classID": Field("class_id", integer(0, 2**32 - 1)),
        "priorities": Field("priorities", array(model(Priority)), []),
    }


class Rdma(Model):
    """Handles and objects of one device."""

    hca_handles: int | None
    hca_objects: int | None
    FIELDS: ClassVar = {
        "hcaHandles": Field("hca_handles", integer(0, 2**32 - 1)),
        "hcaObjects": Field("hca_objects", integer(0, 2**32 - 1)),
    }


class Resources(Model):
    """The limits of the control groups."""

    devices: list[DeviceRule]
    memory: Memory | None
    cpu: CPU | None
    pids: Pids | None
    block_io: BlockIO | None
    hugepage_limits: list[HugepageLimit]
    network: Network | None
    rdma: dict[str, Rdma]
    unified: dict[str, str]
    FIELDS: ClassVar = {
        "devices": Field("devices", array(model(DeviceRule)), []),
        "memory": Field("memory", model(Memory)),
        "cpu": Field("cpu", model(CPU)),
        "pids": Field("pids", model(Pids)),
        "blockIO": Field("block_io", model(BlockIO)),
        "hugepageLimits": Field("hugepage_limits", array(model(HugepageLimit)), []),
        "network": Field("network", model(Network)),
        "rdma": Field("rdma", mapping(model(Rdma)), {}),
        "unified": Field("unified", mapping(text), {}),
    }

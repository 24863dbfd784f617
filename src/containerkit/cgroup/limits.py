"""The limits of a group as a description. This module makes no system call."""

from __future__ import annotations

from containerkit.cgroup.quantities import Amount, amount, flag, number_list, parse_size, whole
from containerkit.errors import SpecError
from containerkit.typed import Literal, TypeVar
from containerkit.values import field, fields_of, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, Final

    from containerkit.cgroup.device_rules import DeviceRule, IOLimit
    from containerkit.options import ListOf

__all__ = ["Limits"]

_UNSIGNED: Final = (1 << 32) - 1

Partition = Literal["member", "root", "isolated"]

Value = TypeVar("Value")
Pairs = tuple[tuple[str, Value], ...]


# Converters. Each field has its own, because a converter is not told its field and the message must name it.


def _memory(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory", size=True)


def _memory_high(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory_high", size=True)


def _memory_low(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory_low", size=True)


def _memory_min(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory_min", size=True)


def _memory_reservation(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory_reservation", size=True)


def _swap(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "swap", size=True)


def _memory_kernel(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory_kernel", size=True)


def _memory_kernel_tcp(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "memory_kernel_tcp", size=True)


def _pids(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "pids", least=1, most=1 << 22)


def _cpu_quota_us(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "cpu_quota_us", least=1000, most=(1 << 44) - 1)


def _swappiness(value: int | None) -> int | None:
    return None if value is None else whole(value, "swappiness", 0, 100)


def _cpu_weight(value: int | None) -> int | None:
    return None if value is None else whole(value, "cpu_weight", 1, 10000)


def _cpu_shares(value: int | None) -> int | None:
    return None if value is None else whole(value, "cpu_shares", 2, 262144)


def _cpu_period_us(value: int | None) -> int | None:
    return None if value is None else whole(value, "cpu_period_us", 1000, 1000000)


def _cpu_burst_us(value: int | None) -> int | None:
    return None if value is None else whole(value, "cpu_burst_us", 0, (1 << 44) - 1)


def _cpu_rt_runtime_us(value: int | None) -> int | None:
    return None if value is None else whole(value, "cpu_rt_runtime_us", 0, _UNSIGNED)


def _cpu_rt_period_us(value: int | None) -> int | None:
    return None if value is None else whole(value, "cpu_rt_period_us", 1, _UNSIGNED)


def _io_weight(value: int | None) -> int | None:
    return None if value is None else whole(value, "io_weight", 1, 10000)


def _oom_group(value: bool | None) -> bool | None:  # noqa: FBT001 - a converter
    return None if value is None else flag(value, "oom_group")


def _oom_kill_disable(value: bool | None) -> bool | None:  # noqa: FBT001 - a converter
    return None if value is None else flag(value, "oom_kill_disable")


def _cpu_idle(value: bool | None) -> bool | None:  # noqa: FBT001 - a converter
    return None if value is None else flag(value, "cpu_idle")


def _cpuset_exclusive(value: bool | None) -> bool | None:  # noqa: FBT001 - a converter
    return None if value is None else flag(value, "cpuset_exclusive")


def _listed(value: Any, argument: str) -> Any:
    """Return text unchanged, and any other iterable as a tuple."""
    if isinstance(value, str):
        return value
    try:
        return tuple(value)
    except TypeError:
        raise SpecError(f"{argument}: expected a list, not {value!r:.100}") from None


def _cpuset_partition(value: Partition | None) -> Partition | None:
    if value is None or (isinstance(value, str) and value in ("member", "root", "isolated")):
        return value
    raise SpecError(f'cpuset_partition: must be "member", "root" or "isolated", not {value!r:.100}')


def _cpuset_cpus(value: str | Iterable[int] | None) -> str | None:
    return None if value is None else number_list(_listed(value, "cpuset_cpus"), "cpuset_cpus")


def _cpuset_mems(value: str | Iterable[int] | None) -> str | None:
    return None if value is None else number_list(_listed(value, "cpuset_mems"), "cpuset_mems")


def _cpus(value: float | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"cpus: {value!r} is not a number of processors; write for example cpus=1.5")
    if not 0.001 <= value <= 65536:
        raise SpecError(f"cpus: {value!r} is out of range, 0.001 to 65536 processors")
    return float(value)


def _net_cls_classid(value: int | str | None) -> int | None:
    """Return a class id from a number, or from ``"major:minor"`` in hexadecimal as in tc(8)."""
    if value is None or not isinstance(value, str):
        return None if value is None else whole(value, "net_cls_classid", 0, _UNSIGNED)
    major, _, minor = value.partition(":")
    try:
        high, low = int(major, 16), int(minor or "0", 16)
    except ValueError:
        raise SpecError(f'net_cls_classid: {value!r} is not "major:minor" in hexadecimal') from None
    return whole(high, "net_cls_classid", 0, 0xFFFF) << 16 | whole(low, "net_cls_classid", 0, 0xFFFF)


def _pairs(name: str, value: Mapping[str, Any] | Pairs[Any], convert: Callable[[str, Any], Value]) -> Pairs[Value]:
    try:
        items = dict(value)
    except (TypeError, ValueError):
        raise SpecError(f"{name}: expected a mapping, not {value!r}") from None
    for key in items:
        if not isinstance(key, str) or not key or not key.isprintable() or " " in key:
            raise SpecError(f"{name}: {key!r} is not a key")
    return tuple(sorted((key, convert(f"{name}[{key!r}]", content)) for key, content in items.items()))


def _io_device_weights(value: Mapping[str, int] | Pairs[int]) -> Pairs[int]:
    given = _pairs("io_device_weights", value, lambda name, weight: whole(weight, name, 1, 10000))
    if not given:
        return ()
    from containerkit.cgroup.device_rules import device_name

    return tuple((device_name("io_device_weights", key), weight) for key, weight in given)


def _hugetlb(value: Mapping[str, int | str] | Pairs[Amount]) -> Pairs[Amount]:
    return _pairs("hugetlb", value, lambda name, most: amount(most, name, size=True))


def _hugetlb_reserved(value: Mapping[str, int | str] | Pairs[Amount]) -> Pairs[Amount]:
    return _pairs("hugetlb_reserved", value, lambda name, most: amount(most, name, size=True))


def _rdma(value: Mapping[str, Mapping[str, int | str]] | Pairs[Pairs[Amount]]) -> Pairs[Pairs[Amount]]:
    def number(name: str, most: Any) -> Amount:
        if not name.endswith(("['hca_handle']", "['hca_object']")):
            raise SpecError(f"{name}: the keys are hca_handle and hca_object")
        return amount(most, name, most=(1 << 31) - 1)

    return _pairs("rdma", value, lambda name, wishes: _pairs(name, wishes, number))


def _misc(value: Mapping[str, int | str] | Pairs[Amount]) -> Pairs[Amount]:
    return _pairs("misc", value, lambda name, most: amount(most, name))


def _net_prio(value: Mapping[str, int] | Pairs[int]) -> Pairs[int]:
    return _pairs("net_prio", value, lambda name, priority: whole(priority, name, 0, _UNSIGNED))


def _unified(value: Mapping[str, int | str] | Pairs[str]) -> Pairs[str]:
    def text(name: str, content: Any) -> str:
        if isinstance(content, bool) or not isinstance(content, str | int) or "\0" in str(content):
            raise SpecError(f"{name}: expected text, not {content!r}")
        return str(content)

    return _pairs("unified", value, text)


def _devices(value: ListOf[DeviceRule | str] | None) -> tuple[DeviceRule | str, ...] | None:
    if value is None:
        return None
    from containerkit.cgroup.device_rules import DeviceRule

    if isinstance(value, str):
        raise SpecError(f"devices: expected a list of rules, not {value!r}")
    rules: list[DeviceRule | str] = []
    for rule in _listed(value, "devices"):
        if isinstance(rule, DeviceRule):
            rules.append(rule)
        elif isinstance(rule, str) and rule.startswith("/"):
            path, _, access = rule.partition(" ")
            DeviceRule(kind="a", access=access.strip() or "rwm")
            rules.append(f"{path} {access.strip() or 'rwm'}")
        elif isinstance(rule, str):
            rules.append(DeviceRule.parse(rule))
        else:
            raise SpecError(f'devices: {rule!r} is neither a DeviceRule nor text such as "c 1:3 rwm"')
    return tuple(rules)


def _io(value: ListOf[IOLimit]) -> tuple[IOLimit, ...]:
    limits = tuple(_listed(value, "io"))
    if not limits:
        return ()
    from containerkit.cgroup.device_rules import IOLimit

    for limit in limits:
        if not isinstance(limit, IOLimit):
            raise SpecError(f"io: expected an IOLimit, not {limit!r}")
    if len({limit.device for limit in limits}) != len(limits):
        raise SpecError("io: pass only one IOLimit for each device")
    return limits


def _of(controller: str) -> dict[str, str]:
    """Return the metadata that names the controller of a field."""
    return {"controller": controller}


@frozen(kw_only=True, repr=False, cache_hash=True)
class Limits:
    """The limits of a group, the same on both versions of cgroups. A field that is None is not changed.

    Sizes are bytes or text such as ``"256M"``. ``"max"`` removes a limit. Mappings are kept as sorted pairs, so that
    descriptions can be compared, hashed and pickled.

    Args:
        memory: the maximum memory, in bytes. A process that needs more is killed. A container itself needs about
            500 KiB, and 8 KiB more for each of its mounts. With less, the kernel kills it while it starts.
        memory_high: above this size the group is slowed down and its memory is reclaimed (version 2).
        memory_low: memory that is protected from reclaim as far as possible (version 2).
        memory_min: memory that is always protected from reclaim (version 2).
        memory_reservation: memory that the group keeps when the host has little free memory: the soft limit of
            version 1, ``memory.low`` of version 2.
        swap: the maximum swap, in addition to the memory, in bytes. Default: 0 with a memory limit, else no limit.
        swappiness: how readily memory is swapped out, 0 to 100 (version 1).
        memory_kernel: the maximum kernel memory (version 1, kernels before 5.16).
        memory_kernel_tcp: the maximum kernel memory for TCP buffers (version 1).
        oom_group: whether the OOM killer kills the whole group at once (version 2).
        oom_kill_disable: whether a process over the limit waits instead of being killed (version 1).
        pids: the maximum number of processes and threads, 1 or more.
        cpus: processor time in numbers of processors, such as 1.5. At least 0.001.
        cpu_weight: the share under contention, 1 to 10000. The kernel's default is 100.
        cpu_shares: the same in the unit of version 1, 2 to 262144. The kernel's default is 1024.
        cpu_quota_us: processor time in each period, in microseconds. At least 1000.
        cpu_period_us: the period in microseconds, 1000 to 1000000. Default 100000.
        cpu_burst_us: how much unused quota can be accumulated, in microseconds.
        cpu_idle: whether the group runs only when no other group needs the processor.
        cpu_rt_runtime_us: real-time scheduling in each period, in microseconds (version 1).
        cpu_rt_period_us: the real-time period in microseconds (version 1).
        cpuset_cpus: the processors, such as ``"0-3,8"`` or ``[0, 1]``.
        cpuset_mems: the memory nodes, in the same form.
        cpuset_partition: ``"member"``, ``"root"`` or ``"isolated"`` (version 2).
        cpuset_exclusive: whether no sibling group may use these processors.
        io_weight: the share of disk time under contention, 1 to 10000. The kernel's default is 100.
        io_device_weights: the same for single devices: path or ``"major:minor"`` to weight.
        io: an :class:`IOLimit` for each device.
        devices: the devices that may be used; all others are denied. Each is a :class:`DeviceRule`, text in the
            kernel's notation, or a path with letters (``"/dev/null rw"``). None allows all devices.
        hugetlb: page size to the maximum bytes in such pages, ``{"2M": "64M"}``.
        hugetlb_reserved: the same for reservations.
        rdma: device to ``{"hca_handle": n, "hca_object": n}``.
        misc: resource to its maximum.
        net_cls_classid: the class of the group's packets, a number or ``"10:1"`` (version 1).
        net_prio: interface to priority (version 1).
        unified: raw version 2 files, ``{"memory.high": "max"}``. They are written last and unchanged.

    Raises:
        SpecError: a value is invalid. Nothing was created.

    Source: Documentation/admin-guide/cgroup-v2.rst, Documentation/admin-guide/cgroup-v1/.
    """

    memory: Amount | None = field(default=None, converter=_memory, metadata=_of("memory"))
    memory_high: Amount | None = field(default=None, converter=_memory_high, metadata=_of("memory"))
    memory_low: Amount | None = field(default=None, converter=_memory_low, metadata=_of("memory"))
    memory_min: Amount | None = field(default=None, converter=_memory_min, metadata=_of("memory"))
    memory_reservation: Amount | None = field(default=None, converter=_memory_reservation, metadata=_of("memory"))
    swap: Amount | None = field(default=None, converter=_swap, metadata=_of("memory"))
    swappiness: int | None = field(default=None, converter=_swappiness, metadata=_of("memory"))
    memory_kernel: Amount | None = field(default=None, converter=_memory_kernel, metadata=_of("memory"))
    memory_kernel_tcp: Amount | None = field(default=None, converter=_memory_kernel_tcp, metadata=_of("memory"))
    oom_group: bool | None = field(default=None, converter=_oom_group, metadata=_of("memory"))
    oom_kill_disable: bool | None = field(default=None, converter=_oom_kill_disable, metadata=_of("memory"))
    pids: Amount | None = field(default=None, converter=_pids, metadata=_of("pids"))
    cpus: float | None = field(default=None, converter=_cpus, metadata=_of("cpu"))
    cpu_weight: int | None = field(default=None, converter=_cpu_weight, metadata=_of("cpu"))
    cpu_shares: int | None = field(default=None, converter=_cpu_shares, metadata=_of("cpu"))
    cpu_quota_us: Amount | None = field(default=None, converter=_cpu_quota_us, metadata=_of("cpu"))
    cpu_period_us: int | None = field(default=None, converter=_cpu_period_us, metadata=_of("cpu"))
    cpu_burst_us: int | None = field(default=None, converter=_cpu_burst_us, metadata=_of("cpu"))
    cpu_idle: bool | None = field(default=None, converter=_cpu_idle, metadata=_of("cpu"))
    cpu_rt_runtime_us: int | None = field(default=None, converter=_cpu_rt_runtime_us, metadata=_of("cpu"))
    cpu_rt_period_us: int | None = field(default=None, converter=_cpu_rt_period_us, metadata=_of("cpu"))
    cpuset_cpus: str | None = field(default=None, converter=_cpuset_cpus, metadata=_of("cpuset"))
    cpuset_mems: str | None = field(default=None, converter=_cpuset_mems, metadata=_of("cpuset"))
    cpuset_partition: Partition | None = field(default=None, converter=_cpuset_partition, metadata=_of("cpuset"))
    cpuset_exclusive: bool | None = field(default=None, converter=_cpuset_exclusive, metadata=_of("cpuset"))
    io_weight: int | None = field(default=None, converter=_io_weight, metadata=_of("io"))
    io_device_weights: Pairs[int] = field(default=(), converter=_io_device_weights, metadata=_of("io"))
    io: tuple[IOLimit, ...] = field(default=(), converter=_io, metadata=_of("io"))
    devices: tuple[DeviceRule | str, ...] | None = field(default=None, converter=_devices, metadata=_of("devices"))
    hugetlb: Pairs[Amount] = field(default=(), converter=_hugetlb, metadata=_of("hugetlb"))
    hugetlb_reserved: Pairs[Amount] = field(default=(), converter=_hugetlb_reserved, metadata=_of("hugetlb"))
    rdma: Pairs[Pairs[Amount]] = field(default=(), converter=_rdma, metadata=_of("rdma"))
    misc: Pairs[Amount] = field(default=(), converter=_misc, metadata=_of("misc"))
    net_cls_classid: int | None = field(default=None, converter=_net_cls_classid, metadata=_of("net_cls"))
    net_prio: Pairs[int] = field(default=(), converter=_net_prio, metadata=_of("net_prio"))
    unified: Pairs[str] = field(default=(), converter=_unified, metadata=_of(""))

    def __attrs_post_init__(self) -> None:
        _check_memory(self)
        _check_cpu(self)
        if self.cpuset_partition not in {None, "member", "root", "isolated"}:
            raise SpecError(f"cpuset_partition: {self.cpuset_partition!r} is not one of member, root, isolated")
        for argument in ("hugetlb", "hugetlb_reserved"):
            for page, _ in getattr(self, argument):
                parse_size(page, f"{argument}, page size")
        for key, _ in self.unified:
            _check_raw_key(key)

    def __repr__(self) -> str:
        """Show only the limits that are set."""
        wishes = [f"{name}={getattr(self, name)!r}" for name, _, empty in _FIELDS if getattr(self, name) != empty]
        return f"Limits({', '.join(wishes)})"

    def controllers(self) -> frozenset[str]:
        """Return the names of the controllers that these limits need. ``io`` also stands for version 1's ``blkio``."""
        return _controllers(self)


def _controllers(limits: Limits) -> frozenset[str]:
    needed = {name for field, name, empty in _FIELDS if getattr(limits, field) != empty}
    for key, _ in limits.unified:
        needed.add(key.partition(".")[0])
    return frozenset(needed - {"", "cgroup"})


_FIELDS: Final = tuple((field.name, field.metadata["controller"], field.default) for field in fields_of(Limits))


def _check_memory(limits: Limits) -> None:
    most = limits.memory
    if most == 0:
        raise SpecError("memory: with a limit of 0 no process can start")
    if not isinstance(most, int):
        return
    for argument in ("memory_high", "memory_low", "memory_min", "memory_reservation"):
        value = getattr(limits, argument)
        if isinstance(value, int) and value > most:
            raise SpecError(f"{argument}: {value} is more than memory={most}")


def _check_cpu(limits: Limits) -> None:
    if limits.cpus is not None and limits.cpu_quota_us is not None:
        raise SpecError("cpus: pass cpus or cpu_quota_us, not both")
    if limits.cpu_weight is not None and limits.cpu_shares is not None:
        raise SpecError("cpu_weight: pass cpu_weight or cpu_shares, not both")
    if limits.cpu_idle and (limits.cpu_weight is not None or limits.cpu_shares is not None):
        raise SpecError("cpu_idle: an idle group can't have a weight")
    runtime, period = limits.cpu_rt_runtime_us, limits.cpu_rt_period_us
    if runtime is not None and period is not None and runtime > period:
        raise SpecError(f"cpu_rt_runtime_us: {runtime} is more than the period of {period}")


_RAW_CONTROLLERS: Final = frozenset(
    {"cgroup", "cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma", "dmem"}
)
_RAW_REFUSED: Final = frozenset(
    {"cgroup.procs", "cgroup.threads", "cgroup.kill", "cgroup.subtree_control", "cgroup.type", "cgroup.freeze"}
)


def _check_raw_key(key: str) -> None:
    controller, dot, rest = key.partition(".")
    plain = all(part.replace("_", "").isalnum() and part.isascii() for part in rest.split("."))
    if not dot or controller not in _RAW_CONTROLLERS or not plain:
        raise SpecError(f"unified: {key!r} is not a version 2 file such as memory.high")
    if key in _RAW_REFUSED:
        raise SpecError(f"unified: {key} is not a limit")

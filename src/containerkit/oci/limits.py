"""``linux.resources`` as writes to control files, for either version.

Source: OCI runtime-spec, config-linux.md; config-linux.md of the "Unified" section and the conversion of runtimes for
version 2; Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst.
"""

from __future__ import annotations

import os

from containerkit.oci.cgroups import is_busy, read_file, steps, write
from containerkit.oci.errors import ConfigError, RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.oci.cgroups import Groups
    from containerkit.oci.resources import CPU, BlockIO, DeviceRule, Memory, Network, Resources

__all__ = ["apply", "cpu_max", "swap_max", "weight_of_shares"]

_PATH = "linux.resources"
_LEAST_SHARES, _MOST_SHARES = 2, 262144


def apply(groups: Groups, resources: Resources, *, update: bool = False, nested: bool = False) -> None:
    """Write all limits.

    Args:
        groups: the container's groups.
        resources: the limits.
        update: whether the container already exists. Then device rules are changed only if some are given.
        nested: whether the runtime has no CAP_SYS_ADMIN on the host, so that it can't set device rules. A process
            in a user namespace can't make devices, and has only those that the host passed to it.

    Raises:
        ConfigError: no mounted hierarchy enforces a limit.
        RuntimeFailure: the kernel refused a value.
    """
    writer = _Writer(groups)
    if resources.memory is not None:
        writer.memory(resources.memory)
    if resources.cpu is not None:
        writer.cpu(resources.cpu)
    if resources.pids is not None and resources.pids.limit is not None:
        limit = resources.pids.limit
        writer.put("pids", "pids.max", "max" if limit <= 0 else str(limit), "pids.limit")
    if resources.block_io is not None:
        writer.block_io(resources.block_io)
    for index, page in enumerate(resources.hugepage_limits):
        kind = "limit_in_bytes" if groups.version("hugetlb") == 1 else "max"
        writer.put("hugetlb", f"hugetlb.{page.page_size}.{kind}", str(page.limit), f"hugepageLimits[{index}]")
    if resources.network is not None:
        writer.network(resources.network)
    for device, rdma in resources.rdma.items():
        parts = [("hca_handle", rdma.hca_handles), ("hca_object", rdma.hca_objects)]
        words = [f"{name}={value}" for name, value in parts if value is not None]
        if words:
            writer.put("rdma", "rdma.max", f"{device} {' '.join(words)}", f"rdma.{device}")
    if not nested and (resources.devices or not update):
        writer.devices(resources.devices)
    for name, value in resources.unified.items():
        writer.unified(name, value)


def weight_of_shares(shares: int) -> int:
    """Return version 2's cpu.weight, 1 to 10000, for version 1's shares, 2 to 262144.

    The smallest, the default (1024 and 100) and the largest values correspond. Between them the logarithm of the weight
    is a quadratic function of the logarithm of the shares, as in runc since 1.3.2 and crun since 1.23. So a workload
    gets the same weight from each of these runtimes.
    """
    from math import ceil, log2

    if shares <= _LEAST_SHARES:
        return 1
    if shares >= _MOST_SHARES:
        return 10000
    power = log2(shares)
    return ceil(10 ** ((power * power + 125 * power) / 612 - 7 / 34))


def cpu_max(now: str, quota: int | None, period: int | None) -> str:
    """Return the value for version 2's cpu.max. A value that is not given stays.

    Args:
        now: the content of the file.
        quota: in microseconds; -1 for no limit, None or 0 for the present one.
        period: in microseconds; None or 0 for the present one.

    Source: cpu.max in Documentation/admin-guide/cgroup-v2.rst.
    """
    former_quota, former_period = now.split() or ("max", "100000")
    if quota:
        former_quota = "max" if quota < 0 else str(quota)
    return f"{former_quota} {period or former_period}"


def swap_max(limit: int | None, swap: int) -> str:
    """Return the value for version 2's memory.swap.max, which limits swap alone.

    Args:
        limit: ``memory.limit`` in bytes; -1 for no limit, None if it is not given.
        swap: ``memory.swap`` in bytes, which includes memory; -1 for no limit, 0 for no swap at all, as in crun.

    Raises:
        ConfigError: the memory limit is not known, or is greater than ``swap``.
    """
    if swap <= 0:
        return "max" if swap == -1 else "0"
    if limit is None or limit < 0:
        raise ConfigError(f"{_PATH}.memory.swap", "needs memory.limit: it counts memory and swap together")
    if swap < limit:
        raise ConfigError(f"{_PATH}.memory.swap", f"{swap} is less than memory.limit, which it includes")
    return str(swap - limit)


def _why_kept(groups: Groups, controller: str) -> str:
    """Return which parent group does not enable a version 2 controller for the container's group, and the remedy.

    Returns:
        An empty string if version 2 does not have the controller at all.
    """
    if not groups.unified:
        return ""
    for above, _ in steps(groups.found[-1].mountpoint, groups.unified):
        if controller not in read_file(f"{above}/cgroup.controllers").split():
            return ""
        if controller in read_file(f"{above}/cgroup.subtree_control").split():
            continue
        if is_busy(above):
            hint = "move them to a group below it, or choose another linux.cgroupsPath"
            return f"{above} contains processes, so its child groups get no controller (hint: {hint})"
        try:
            write(f"{above}/cgroup.subtree_control", f"+{controller}")
        except RuntimeFailure as error:
            return str(error)
    return ""


class _Writer:
    """Writes into the groups of one container."""

    def __init__(self, groups: Groups) -> None:
        self.groups = groups

    def put(self, controller: str, file: str, value: str, path: str, *, optional: bool = False) -> None:
        """Write one value.

        Raises:
            ConfigError: there is no such controller or file here.
        """
        if not self.groups.version(controller):
            raise ConfigError(f"{_PATH}.{path}", f"can't be enforced: {self._absent(controller)}")
        place = f"{self.groups.directory(controller)}/{file}"
        if not os.path.exists(place):
            if optional:
                return
            raise ConfigError(f"{_PATH}.{path}", f"can't be enforced: this kernel has no {file}")
        try:
            write(place, value)
        except RuntimeFailure as error:
            raise ConfigError(f"{_PATH}.{path}", str(error)) from None

    def _absent(self, controller: str) -> str:
        """Return why no group of the container has a controller."""
        if not self.groups.found:
            return "this user may not make control groups here (hint: run as root or in a delegated subtree)"
        return _why_kept(self.groups, controller) or f"no mounted hierarchy has the {controller} controller"

    def memory(self, memory: Memory) -> None:
        if self.groups.version("memory") == 1:
            self._memory_1(memory)
            return
        limit, swap = memory.limit, memory.swap
        if memory.reservation is not None:
            self.put("memory", "memory.low", _bytes(memory.reservation), "memory.reservation")
        if swap is not None:
            self.put(
                "memory",
                "memory.swap.max",
                swap_max(limit, swap),
                "memory.swap",
                optional=swap <= 0 or swap == limit,
            )
        if limit is not None:
            if memory.check_before_update and 0 < limit <= int(read_file(f"{self.groups.unified}/memory.current") or 0):
                raise ConfigError(f"{_PATH}.memory.limit", f"{limit} is less than the memory in use")
            self.put("memory", "memory.max", _bytes(limit), "memory.limit")

    def _memory_1(self, memory: Memory) -> None:
        limit, swap = memory.limit, memory.swap
        pairs = [("memory.limit_in_bytes", limit, "limit"), ("memory.memsw.limit_in_bytes", swap, "swap")]
        if swap and self._raises_swap(swap):
            pairs.reverse()  # the kernel requires limit <= limit with swap at every moment
        if limit == -1 and swap is None:
            pairs = [("memory.memsw.limit_in_bytes", -1, "swap"), pairs[0]]
        for file, value, name in pairs:
            if value:
                self.put(
                    "memory",
                    file,
                    str(value),
                    f"memory.{name}",
                    optional=file.startswith("memory.memsw") and value in (-1, limit),
                )
        for file, value, name in (
            ("memory.soft_limit_in_bytes", memory.reservation, "reservation"),
            ("memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp, "kernelTCP"),
            ("memory.swappiness", memory.swappiness, "swappiness"),
        ):
            if value is not None and (value or name == "swappiness"):
                self.put("memory", file, str(value), f"memory.{name}")
        if memory.use_hierarchy:
            self.put("memory", "memory.use_hierarchy", "1", "memory.useHierarchy", optional=True)
        if memory.disable_oom_killer:
            self.put("memory", "memory.oom_control", "1", "memory.disableOOMKiller")

    def _raises_swap(self, swap: int) -> bool:
        current = read_file(f"{self.groups.directory('memory')}/memory.memsw.limit_in_bytes").strip()
        return swap == -1 or (current.isdigit() and int(current) < swap)

    def cpu(self, cpu: CPU) -> None:
        version = self.groups.version("cpu")
        if cpu.shares:
            if version == 1:
                self.put("cpu", "cpu.shares", str(cpu.shares), "cpu.shares")
            elif not cpu.idle:
                self.put("cpu", "cpu.weight", str(weight_of_shares(cpu.shares)), "cpu.shares")
        if cpu.idle is not None:
            self.put("cpu", "cpu.idle", str(cpu.idle), "cpu.idle")
        if version == 1:
            self._cpu_1(cpu)
        else:
            self._cpu_2(cpu)
        for file, value, name in (("cpuset.cpus", cpu.cpus, "cpus"), ("cpuset.mems", cpu.mems, "mems")):
            if value:
                self.put("cpuset", file, value, f"cpu.{name}")

    def _cpu_1(self, cpu: CPU) -> None:
        self._bandwidth("rt", {"period": cpu.realtime_period, "runtime": cpu.realtime_runtime}, "realtime")
        burst = "cpu.cfs_burst_us"
        shrinks = cpu.burst is not None and cpu.burst < self._now("cpu", burst)
        if shrinks:
            self.put("cpu", burst, str(cpu.burst), "cpu.burst")  # the kernel requires burst <= quota
        self._bandwidth("cfs", {"period": cpu.period, "quota": cpu.quota})
        if cpu.burst is not None and not shrinks:
            self.put("cpu", burst, str(cpu.burst), "cpu.burst", optional=not cpu.burst)

    def _bandwidth(self, kind: str, values: dict[str, int | None], path: str = "") -> None:
        """Write a period and the time in it, so that their quotient never exceeds that of the parent group."""
        pairs = list(values.items())
        if values["period"] and values["period"] < self._now("cpu", f"cpu.{kind}_period_us"):
            pairs.reverse()
        for name, value in pairs:
            if value:
                member = path + name.title() if path else name
                self.put("cpu", f"cpu.{kind}_{name}_us", str(value), f"cpu.{member}")

    def _now(self, controller: str, file: str) -> int:
        text = read_file(f"{self.groups.directory(controller)}/{file}").strip()
        return int(text) if text.isdigit() else 0

    def _cpu_2(self, cpu: CPU) -> None:
        if cpu.realtime_period or cpu.realtime_runtime:
            raise ConfigError(f"{_PATH}.cpu.realtimeRuntime", "version 2 of cgroups has no real-time limits")
        if cpu.quota or cpu.period:
            now = read_file(f"{self.groups.directory('cpu')}/cpu.max")
            self.put("cpu", "cpu.max", cpu_max(now, cpu.quota, cpu.period), "cpu.quota")
        if cpu.burst is not None:
            self.put("cpu", "cpu.max.burst", str(cpu.burst), "cpu.burst")

    def block_io(self, block: BlockIO) -> None:
        one = self.groups.version("io") == 1
        if block.weight:
            if one:
                self._weight_1(str(block.weight), "blockIO.weight")
            else:
                value = 1 + (min(max(block.weight, 10), 1000) - 10) * 9999 // 990
                bfq = os.path.exists(f"{self.groups.unified}/io.bfq.weight")
                file, text = ("io.bfq.weight", str(block.weight)) if bfq else ("io.weight", f"default {value}")
                self.put("io", file, text, "blockIO.weight")
        for index, device in enumerate(block.weight_device):
            if device.weight:
                line = f"{device.major}:{device.minor} {device.weight}"
                path = f"blockIO.weightDevice[{index}]"
                if one:
                    self._weight_1(line, path, device=True)
                else:
                    self.put("io", "io.bfq.weight", line, path)
        for attribute, file, key in (
            ("read_bps", "read_bps", "rbps"),
            ("write_bps", "write_bps", "wbps"),
            ("read_iops", "read_iops", "riops"),
            ("write_iops", "write_iops", "wiops"),
        ):
            for index, throttle in enumerate(getattr(block, attribute)):
                where = f"{throttle.major}:{throttle.minor}"
                path = f"blockIO.throttle{attribute}[{index}]"
                if one:
                    self.put("io", f"blkio.throttle.{file}_device", f"{where} {throttle.rate}", path)
                else:
                    self.put("io", "io.max", f"{where} {key}={throttle.rate or 'max'}", path)

    def _weight_1(self, value: str, path: str, *, device: bool = False) -> None:
        names = ("blkio.weight_device", "blkio.bfq.weight_device") if device else ("blkio.weight", "blkio.bfq.weight")
        directory = self.groups.directory("io")
        there = [name for name in names if os.path.exists(f"{directory}/{name}")]
        self.put("io", there[0] if there else names[-1], value, path)

    def network(self, network: Network) -> None:
        if network.class_id:
            self.put("net_cls", "net_cls.classid", str(network.class_id), "network.classID")
        for index, each in enumerate(network.priorities):
            self.put("net_prio", "net_prio.ifpriomap", f"{each.name} {each.priority}", f"network.priorities[{index}]")

    def unified(self, name: str, value: str) -> None:
        if not self.groups.unified or "/" in name:
            raise ConfigError(f"{_PATH}.unified.{name}", "is a file of version 2, which is not mounted here")
        controller = name.partition(".")[0]
        offered = read_file(f"{self.groups.unified}/cgroup.controllers").split()
        if controller != "cgroup" and controller not in offered:
            why = _why_kept(self.groups, controller) or f"the {controller} controller is not on version 2 here"
            raise ConfigError(f"{_PATH}.unified.{name}", why)
        for line in value.splitlines() or [""]:
            try:
                write(f"{self.groups.unified}/{name}", line)
            except RuntimeFailure as error:
                raise ConfigError(f"{_PATH}.unified.{name}", str(error)) from None

    def devices(self, rules: list[DeviceRule]) -> None:
        for index, rule in enumerate(rules):
            rule.access = _letters(rule, f"{_PATH}.devices[{index}].access")
        version = self.groups.version("devices")
        if not version:
            if rules:
                raise ConfigError(
                    f"{_PATH}.devices", "can't be enforced: no mounted hierarchy has the devices controller"
                )
            return
        wanted = [*rules, *_standard_rules()] if rules else []
        if version == 1:
            self._devices_1(wanted)
        elif wanted:
            self._devices_2(wanted)

    def _devices_1(self, rules: list[DeviceRule]) -> None:
        from containerkit.oci import devicerules

        directory = self.groups.directory("devices")
        wanted = devicerules.allowed(rules)
        there = devicerules.listed(read_file(f"{directory}/devices.list"))
        if wanted is not None and there is not None:
            for verb, entry in devicerules.changes(there, wanted):
                write(f"{directory}/devices.{verb}", entry)
            return
        for rule in rules:
            file = f"{directory}/devices.{'allow' if rule.allow else 'deny'}"
            if rule.type in ("a", "") and not rule.allow:
                write(file, "a")
                continue
            for kind in (
                ("c", "b") if rule.type in ("a", "") and rule.access not in ("", "rwm") else (rule.type or "a",)
            ):
                if kind == "a":
                    _allow_all(file)
                    continue
                write(file, f"{kind} {_number(rule.major)}:{_number(rule.minor)} {rule.access or 'rwm'}")

    def _devices_2(self, rules: list[DeviceRule]) -> None:
        from containerkit.cgroup.device_program import attach_device_program

        fd = os.open(self.groups.unified, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            attach_device_program(fd, _effective(rules))  # type: ignore[arg-type] # both have the fields of a rule
        except OSError as error:
            hint = "it needs CAP_SYS_ADMIN or CAP_BPF outside of user namespaces"
            raise ConfigError(f"{_PATH}.devices", f"bpf: {strerror(error.errno or 0)} (hint: {hint})") from None
        finally:
            os.close(fd)


def _letters(rule: DeviceRule, path: str) -> str:
    """Return the accesses of a rule. An ``a`` in a rule that denies means all of them, as in other runtimes.

    Raises:
        ConfigError: a letter is not an access.
    """
    wrong = set(rule.access) - set("rwm")
    if wrong == {"a"} and not rule.allow:
        return "rwm"
    if wrong:
        raise ConfigError(path, f"{rule.access!r} has other letters than r, w and m")
    return rule.access


def _effective(rules: list[DeviceRule]) -> list[_Rule]:
    """Return the rules that have an effect. A rule for all devices overrides all rules before it.

    The program denies what no rule allows. A rule that allows all devices becomes one rule for each kind, because the
    kernel refuses a program with unreachable instructions.
    """
    start = next((at for at in range(len(rules) - 1, -1, -1) if _Rule(rules[at]).matches_all), -1)
    kept = [_Rule(rule) for rule in rules[start + 1 :]]
    if start >= 0 and not rules[start].allow:
        return kept
    return [_Rule.of_all("c"), _Rule.of_all("b"), *kept]


class _Rule:
    """A rule in the form of :class:`containerkit.cgroup.device_rules.DeviceRule`."""

    def __init__(self, rule: DeviceRule) -> None:
        self.kind = rule.type or "a"
        self.major = None if rule.major in (None, -1) else rule.major
        self.minor = None if rule.minor in (None, -1) else rule.minor
        self.access = rule.access or "rwm"
        self.allow = rule.allow

    @property
    def matches_all(self) -> bool:
        """Whether it applies to every device and every access."""
        return self.kind == "a" and self.major is None and self.minor is None and set(self.access) == set("rwm")

    @classmethod
    def of_all(cls, kind: str) -> _Rule:
        """Return the rule that allows all devices of a kind."""
        from containerkit.oci.resources import DeviceRule

        return cls(DeviceRule.read({"allow": True, "type": kind}, ""))


def _allow_all(file: str) -> None:
    """Write ``a`` to a file. Only a process with CAP_SYS_ADMIN may allow all devices of the parent group."""
    try:
        write(file, "a")
    except RuntimeFailure as error:
        raise ConfigError(f"{_PATH}.devices", f"{error} (hint: the parent group has rules of its own)") from None


def _number(value: int | None) -> str:
    return "*" if value is None or value == -1 else str(value)


def _bytes(value: int) -> str:
    return "max" if value == -1 else str(value)


_STANDARD = (
    ("c", -1, -1, "m"),
    ("b", -1, -1, "m"),
    ("c", 1, 3, "rwm"),
    ("c", 1, 5, "rwm"),
    ("c", 1, 7, "rwm"),
    ("c", 1, 8, "rwm"),
    ("c", 1, 9, "rwm"),
    ("c", 5, 0, "rwm"),
    ("c", 5, 2, "rwm"),
    ("c", 136, -1, "rwm"),
)


def _standard_rules() -> list[DeviceRule]:
    """Return the rules for the default devices. Source: OCI runtime-spec, config-linux.md, "Default Devices"."""
    from containerkit.oci.resources import DeviceRule

    make: Callable[[dict[str, object]], DeviceRule] = lambda value: DeviceRule.read(value, "")  # noqa: E731 - a name for the type
    return [
        make({"allow": True, "type": kind, "major": major, "minor": minor, "access": access})
        for kind, major, minor, access in _STANDARD
    ]

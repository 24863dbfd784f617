"""Descriptions: mounts, roots and limits, as values."""

from pathlib import Path
from typing import Literal, assert_type

from containerkit import IdMapping, Limits, Mount, Namespaces, NetworkPool, RootFS, TimeOffsets
from containerkit.cgroup import DeviceRule, IOLimit


def main() -> None:
    mounts = [
        Mount.bind(Path("/usr"), "/usr", readonly=True, recursive=False, nosuid=True, create=False, idmap=False),
        Mount.tmpfs("/tmp", size=64 * 1024 * 1024, mode=0o700, inodes=100, noexec=True, readonly=True),
        Mount.overlay("/work", "/a", Path("/b"), upper="/u", work="/w", noatime=True),
        Mount.proc(hidepid="invisible", subset="pid"),
        Mount.cgroup(readonly=True, controllers=["memory"]),
        Mount(target="/x", type="tmpfs", options=(("size", "1M"), ("noswap", None)), propagation="slave"),
        Mount.from_mapping({"target": "/x", "type": "proc"}),
    ]
    for mount in mounts:
        assert_type(mount, Mount)
        assert_type(mount.target, str)
    roots = [
        RootFS.host(readonly=True, size="64M", idmap=False),
        RootFS.dir(Path("/srv"), readonly=True),
        RootFS.overlay("/a", Path("/b"), upper="/u", size=1024, union="fuse"),
        RootFS.tmpfs("64M"),
        RootFS.image("alpine:3.20", pull="never", platform="linux/arm64", store=Path("/srv"), size="1G", volumes=False),
        RootFS.template("debian", suite="bookworm", variant="minbase", packages=["python3"], size="1G"),
        RootFS.template("host", programs=("sh", "env")),
        RootFS(kind="template", name="of another package", arguments=(("flavour", 1),)),
    ]
    for root in roots:
        assert_type(root, RootFS)
    limits = Limits(
        memory="256M", swap=0, pids=64, cpus=1.5, cpu_weight=100, cpuset_cpus=[0], io_weight=10,
        io=[IOLimit(device="8:0", read_bps="1M")], devices=["c 1:3 rw", DeviceRule(kind="c", major=1, minor=5)],
        hugetlb={"2M": "max"}, unified={"memory.high": "max"}, cpuset_partition="member", oom_group=True,
    )  # fmt: skip
    assert_type(limits.hugetlb, tuple[tuple[str, int | Literal["max"]], ...])
    Limits(cpu_quota_us=50_000, cpu_period_us=100_000, memory=2**28, pids="max", cpuset_cpus="0-1")
    Namespaces(network="host", pid=1, ipc=Path("/proc/1/ns/ipc"), uts="/proc/1/ns/uts", time="new")
    TimeOffsets(monotonic_s=1.5, boottime_s=-1)
    assert_type(IdMapping(0, 1000, 1).outside, int)


def pooled(pool: NetworkPool) -> Namespaces:
    return Namespaces(network=pool)


if __name__ == "__main__":
    main()

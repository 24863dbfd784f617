"""The effect of each controller's limits, on the version that is available here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cgroup_workloads import READY, SLEEP, SPIN, cpu_seconds, eventually, own_groups, python, version

from containerkit._linux.cgroupfs import read_hierarchies
from containerkit.cgroup import CGroup, IOLimit, Limits
from containerkit.cgroup.hierarchy import Tree
from containerkit.errors import SetupError, SpecError, UnsupportedError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="making groups needs root")]


@pytest.fixture(autouse=True)
def _nothing_left():
    yield
    assert own_groups() == []


def needs(*controllers):
    lacking = [name for name in controllers if not version(name)]
    return pytest.mark.skipif(bool(lacking), reason=f"no hierarchy serves {', '.join(lacking)}")


@needs("memory")
def test_memory_over_the_limit_is_killed_and_counted():
    with (
        CGroup.create(limits=Limits(memory="24M")) as group,
        python(group, READY + "x = bytearray(200 << 20)") as process,
    ):
        assert process.wait(30) == -signal.SIGKILL
        usage = group.usage()
        assert usage.oom_kills == 1
        assert usage.oom_killed
        assert group.oom_killed
        assert 20 << 20 < usage.memory_peak_bytes <= 24 << 20


@needs("memory")
def test_memory_under_the_limit_is_left_alone():
    with (
        CGroup.create(limits=Limits(memory="128M")) as group,
        python(group, READY + "x = bytearray(40 << 20)\nprint('done')") as process,
    ):
        assert process.communicate(timeout=30)[0] == "done\n"
        assert group.usage().oom_kills == 0
        assert group.usage().memory_peak_bytes > 40 << 20


@needs("memory")
def test_memory_limit_leaves_no_swap_unless_asked():
    with (
        CGroup.create(limits=Limits(memory="64M")) as group,
        CGroup.create(limits=Limits(memory="64M", swap="32M")) as other,
    ):
        limits = [one.stats().memory.swap_limit_bytes for one in (group, other)]
    assert limits in ([0, 32 << 20], [None, None])  # None if the kernel does not account swap
    if limits == [None, None]:
        assert len(Path("/proc/swaps").read_text().splitlines()) == 1


@needs("cpu")
def test_cpus_give_that_share_of_a_processor():
    limits = Limits(cpus=0.5, cpu_weight=10000)  # the weight keeps other processes from taking the time
    with CGroup.create(limits=limits) as group, python(group, SPIN) as process:
        time.sleep(0.3)
        began, before = time.monotonic(), cpu_seconds(process.pid)
        time.sleep(2)
        share = (cpu_seconds(process.pid) - before) / (time.monotonic() - began)
        assert share == pytest.approx(0.5, rel=0.1)
        stats, usage = group.stats().cpu, group.usage()
        assert stats.throttled_periods > 5
        assert usage.throttled_us > 100_000
        assert usage.cpu_us == pytest.approx(cpu_seconds(process.pid) * 1e6, rel=0.2)


@needs("cpu")
def test_cpu_weight_divides_a_contended_processor():
    processor = min(os.sched_getaffinity(0))
    with (
        CGroup.create(limits=Limits(cpu_weight=100)) as small,
        CGroup.create(limits=Limits(cpu_weight=400)) as big,
        python(small, SPIN) as one,
        python(big, SPIN) as two,
    ):
        for process in (one, two):
            os.sched_setaffinity(process.pid, {processor})
        time.sleep(0.3)
        before = cpu_seconds(one.pid), cpu_seconds(two.pid)
        time.sleep(2)
        used = cpu_seconds(one.pid) - before[0], cpu_seconds(two.pid) - before[1]
    assert 2.5 < used[1] / used[0] < 6


FORK_BOMB = (
    READY
    + """
import os
refused = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            import time; time.sleep(60)
    except BlockingIOError:
        refused += 1
print(refused)
"""
)


@needs("pids")
def test_pids_stop_a_fork_bomb():
    with CGroup.create(limits=Limits(pids=16)) as group:
        with python(group, FORK_BOMB) as process:
            assert process.stdout.readline() == "185\n"
            assert eventually(lambda: len(group.processes()) == 16)
            stats = group.stats().pids
            assert (stats.current, stats.limit) == (16, 16)
            assert stats.limit_hits >= 1
        group.kill()
        assert group.wait_empty(10)


@needs("devices")
def test_devices_that_are_not_allowed_cannot_be_opened():
    script = (
        READY
        + "for name in ('null', 'zero', 'random'):\n try: open('/dev/' + name, 'rb'); print(name)\n except PermissionError: pass\n"
    )
    with CGroup.create(limits=Limits(devices=["c 1:3 rwm", "/dev/zero r"])) as group, python(group, script) as process:
        assert process.communicate(timeout=30)[0].split() == ["null", "zero"]


@needs("devices")
def test_devices_distinguish_reading_from_writing_and_making(tmp_path):
    script = READY + (
        "import os\n"
        "def tried(f):\n try: f(); return 'yes'\n except PermissionError: return 'no'\n"
        "print(tried(lambda: open('/dev/zero', 'rb')), tried(lambda: open('/dev/zero', 'wb')),"
        f" tried(lambda: os.mknod('{tmp_path}/z', 0o20666, os.makedev(1, 5))),"
        f" tried(lambda: os.mknod('{tmp_path}/n', 0o20666, os.makedev(1, 3))))"
    )
    with CGroup.create(limits=Limits(devices=["c 1:5 r", "c 1:3 m"])) as group, python(group, script) as process:
        assert process.communicate(timeout=30)[0].split() == ["yes", "no", "no", "yes"]


@needs("devices")
def test_devices_rules_are_replaced_by_an_update():
    with CGroup.create(limits=Limits(devices=["c 1:3 rwm"])) as group:
        group.update(Limits(devices=["c 1:5 rwm"]))
        script = READY + "print([n for n in ('null', 'zero') if not __import__('os').access('/dev/' + n, 4) or t(n)])"
        script = "def t(n):\n try: open('/dev/' + n)\n except PermissionError: return True\n" + script
        with python(group, script) as process:
            assert process.communicate(timeout=30)[0] == "['null']\n"


def test_frozen_processes_make_no_progress_and_go_on_after():
    with CGroup.create() as group, python(group, SPIN) as process:
        time.sleep(0.1)
        group.freeze()
        assert group.stats().frozen is True
        before = cpu_seconds(process.pid)
        time.sleep(0.5)
        assert cpu_seconds(process.pid) - before < 0.1  # the last tick before the freezing may be counted late
        group.thaw()
        assert group.stats().frozen is False
        assert eventually(lambda: cpu_seconds(process.pid) > before)


def test_frozen_processes_are_killed_all_the_same():
    with CGroup.create() as group, python(group, SPIN) as process:
        group.freeze()
        group.kill()
        assert process.wait(5) == -signal.SIGKILL
        assert group.wait_empty(5)


@pytest.mark.skipif(version("freezer") != 1, reason="no version 1 freezer")
def test_old_freezer_stops_processes_too():
    with CGroup.create(controllers=["freezer"]) as group, python(group, SPIN) as process:
        part = group.part("freezer")
        part.write("freezer.state", b"FROZEN")
        group.kill()
        assert process.wait(5) == -signal.SIGKILL


@needs("cpuset")
def test_cpuset_shows_in_the_affinity():
    last = max(os.sched_getaffinity(0))
    with CGroup.create(limits=Limits(cpuset_cpus=[last])) as group, python(group, SLEEP) as process:
        assert os.sched_getaffinity(process.pid) == {last}
        assert group.stats().cpuset.cpus == {last}
        assert group.stats().cpuset.mems


@needs("cpuset")
def test_cpuset_out_of_range_is_refused_and_nothing_is_made():
    with pytest.raises(SpecError, match="cpuset_cpus"):
        CGroup.create(limits=Limits(cpuset_cpus="4000"))


@pytest.fixture
def disk(tmp_path):
    """Yield a loop device of 64 MB."""
    image = tmp_path / "disk"
    image.write_bytes(bytes(64 << 20))
    made = subprocess.run(["losetup", "--find", "--show", image], check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    device = made.stdout.strip()
    yield device
    subprocess.run(["losetup", "--detach", device], check=True)


WRITE = (
    READY
    + """
import mmap, os, sys, time
fd = os.open(DEVICE, os.O_WRONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
began = time.monotonic()
for _ in range(4):
    os.write(fd, buffer)
print(time.monotonic() - began)
"""
)


@needs("io" if version("io") else "blkio")
def test_io_limit_slows_a_write_and_the_report_counts_it(disk):
    limits = Limits(io=[IOLimit(device=disk, write_bps="2M")])
    with CGroup.create(limits=limits) as group, python(group, f"DEVICE = {disk!r}\n{WRITE}") as process:
        seconds = float(process.communicate(timeout=60)[0])
        assert 1.5 < seconds < 6
        number = os.stat(disk).st_rdev
        (report,) = [
            one for one in group.stats().io.devices if (one.major, one.minor) == (os.major(number), os.minor(number))
        ]
        assert report.write_bytes == 4 << 20
        assert group.usage().io_write_bytes >= 4 << 20
    with CGroup.create(controllers=["io"]) as group, python(group, f"DEVICE = {disk!r}\n{WRITE}") as process:
        assert float(process.communicate(timeout=60)[0]) < 1


@needs("io" if version("io") else "blkio")
def test_io_limit_on_a_device_that_is_not_there_leaves_nothing():
    with pytest.raises(SetupError) as caught:
        CGroup.create(limits=Limits(io=[IOLimit(device="4000:7", write_bps="1M")]))
    assert "4000:7" in str(caught.value)
    with pytest.raises(SpecError, match="there-is-none: No such file"):
        CGroup.create(limits=Limits(io=[IOLimit(device="/dev/there-is-none", write_bps="1M")]))


@needs("io" if version("io") else "blkio")
def test_io_weight_is_set_for_the_scheduler_that_has_one():
    try:
        group = CGroup.create(limits=Limits(io_weight=200))
    except UnsupportedError as error:
        pytest.skip(str(error))
    with group:
        part = group.part("io")
        weights = [part.read(name) for name in ("blkio.bfq.weight", "io.bfq.weight", "io.weight")]
        found = {text.split()[-1] for text in weights if text}
        assert found <= {"109", "200"}
        assert found


@needs("io" if version("io") else "blkio")
def test_io_weight_of_one_disk_is_taken_by_its_scheduler(disk):
    scheduler = Path(f"/sys/block/{Path(disk).name}/queue/scheduler")
    if "bfq" not in scheduler.read_text():
        pytest.skip("the kernel has no BFQ scheduler: modprobe bfq")
    status = os.stat(disk)
    number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    wish = Limits(io_device_weights={disk: 1000})
    scheduler.write_text("none")
    with pytest.raises(SetupError, match="weights need the BFQ scheduler"):
        CGroup.create(limits=wish)
    scheduler.write_text("bfq")
    with CGroup.create(limits=wish) as group:
        part = group.part("io")
        file = "io.bfq.weight" if part.version == 2 else "blkio.bfq.weight_device"
        assert f"{number} 181" in part.read(file).splitlines()
        group.update(Limits(io_device_weights={disk: 50}))
        assert f"{number} 50" in part.read(file).splitlines()
    scheduler.write_text("none")


@needs("perf_event")
def test_perf_counters_rise_with_the_work_of_the_group():
    with (
        CGroup.create(controllers=["perf_event"]) as group,
        group.perf_counters(["task-clock", "page-faults"]) as counters,
    ):
        assert counters.read() == {"task-clock": 0, "page-faults": 0}
        with python(group, READY + "x = bytearray(20 << 20)\nfor _ in range(10**9): pass"):
            assert eventually(lambda: counters.read()["task-clock"] > 50_000_000)
            assert eventually(lambda: counters.read()["page-faults"] > 100)


@needs("perf_event")
def test_perf_counters_refuse_an_unknown_event():
    with CGroup.create() as group, pytest.raises(SpecError, match="flops"):
        group.perf_counters(["flops"])


def _private(limits):
    """Create a group whose version 1 hierarchy is mounted privately, or skip if that is impossible."""
    try:
        return CGroup.create(limits=limits, mount=True)
    except UnsupportedError as error:
        pytest.skip(str(error))


def test_classid_is_readable_and_the_process_is_in_the_hierarchy():
    with _private(Limits(net_cls_classid="10:1")) as group, python(group, SLEEP) as process:
        assert group.stats().net_cls_classid == 0x100001
        assert f"{group.name}\n" in Path(f"/proc/{process.pid}/cgroup").read_text().split("net_cls", 1)[1]


def test_privately_mounted_hierarchy_is_shared_by_two_processes():
    script = "from containerkit.cgroup import *\nwith CGroup.create(limits=Limits(net_cls_classid=7), mount=True) as g: print(g.stats().net_cls_classid)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with _private(Limits(net_cls_classid="10:1")) as group:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
        )
        assert (done.stdout, done.stderr) == ("7\n", "")
        assert group.stats().net_cls_classid == 0x100001


def test_net_prio_is_set_for_an_interface():
    with _private(Limits(net_prio={"lo": 7})) as group:
        assert group.stats().net_prio["lo"] == 7


@pytest.fixture
def _hugetlb_handed_back():
    """Disable the controller for the groups below, if the test has enabled it."""
    root = next((one.mountpoint for one in read_hierarchies() if one.version == 2), None)
    control = Path(root or "/") / "cgroup.subtree_control"
    former = control.read_text().split() if root else ["hugetlb"]
    yield
    if "hugetlb" not in former and "hugetlb" in control.read_text().split():
        control.write_text("-hugetlb")
        Tree.current(refresh=True)


@needs("hugetlb")
@pytest.mark.usefixtures("_hugetlb_handed_back")
def test_hugetlb_limit_is_reported_for_its_page_size():
    if not Path("/sys/kernel/mm/hugepages/hugepages-2048kB").exists():
        pytest.skip("the machine has no pages of 2 MB")
    with CGroup.create(limits=Limits(hugetlb={"2M": "64M"})) as group:
        assert group.stats().hugetlb["2MB"].limit_bytes == 64 << 20


@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1")
def test_memory_high_slows_but_does_not_kill():
    script = READY + "x = [bytearray(1 << 20) for _ in range(40)]\nprint('done')"
    with CGroup.create(limits=Limits(memory_high="24M", memory="256M")) as group, python(group, script) as process:
        eventually(lambda: group.stats().memory.high_hits > 0)
        assert group.stats().memory.high_hits > 0
        assert group.usage().oom_kills == 0
        assert process.poll() is None or process.returncode == 0


@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1")
def test_oom_group_takes_all_processes():
    with CGroup.create(limits=Limits(memory="32M", oom_group=True)) as group, python(group, SLEEP) as bystander:
        with python(group, READY + "x = bytearray(200 << 20)") as process:
            assert process.wait(30) == -signal.SIGKILL
        assert bystander.wait(10) == -signal.SIGKILL


@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1")
def test_raw_keys_pass_through():
    with CGroup.create(limits=Limits(unified={"memory.high": "33554432", "cgroup.max.depth": 2})) as group:
        assert (group.unified.read("memory.high"), group.unified.read("cgroup.max.depth")) == ("33554432\n", "2\n")


@pytest.mark.skipif(version("memory") != 1, reason="the memory controller is on version 2")
def test_raw_keys_are_refused_where_the_controller_is_on_version_1():
    with pytest.raises(UnsupportedError, match=r"memory\.high"):
        CGroup.create(limits=Limits(unified={"memory.high": "1"}))


@pytest.mark.parametrize("wish", [{"memory_high": "1M"}, {"cpuset_partition": "root"}, {"oom_group": True}])
@pytest.mark.skipif(version("memory") != 1, reason="the memory controller is on version 2")
def test_limits_of_version_2_alone_are_refused_on_version_1(wish):
    with pytest.raises(UnsupportedError, match="version 2"):
        CGroup.create(limits=Limits(**wish))


@pytest.mark.parametrize("wish", [{"swappiness": 5}, {"cpu_rt_runtime_us": 1000}, {"oom_kill_disable": True}])
@pytest.mark.skipif(version("memory") != 2, reason="the memory controller is on version 1")
def test_limits_of_version_1_alone_are_refused_on_version_2(wish):
    with pytest.raises(UnsupportedError, match="version 1"):
        CGroup.create(limits=Limits(**wish))


@pytest.mark.skipif(version("memory") != 1, reason="the memory controller is on version 2")
def test_oom_kill_can_be_switched_off_on_version_1():
    with (
        CGroup.create(limits=Limits(memory="24M", oom_kill_disable=True)) as group,
        python(group, READY + "x = bytearray(200 << 20)") as process,
    ):
        assert eventually(lambda: "under_oom 1" in group.part("memory").read("memory.oom_control"))
        assert process.poll() is None
        group.update(Limits(memory="300M"))
        assert process.wait(20) == 0

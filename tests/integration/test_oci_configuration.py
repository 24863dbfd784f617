"""The effect of each member of config.json, seen from inside."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from oci_bundles import ONE, TWO, as_root, bundle, oci, rootfs, try_python_alone  # noqa: F401 - fixtures

pytestmark = as_root
pytest_generate_tests = try_python_alone


def told(oci, bundle, *args):
    return oci.run(bundle.runs(*args)).stdout


# --- process


def test_user_groups_and_umask(oci, bundle):
    bundle.process["user"] = {"uid": 1000, "gid": 1001, "additionalGids": [5, 6], "umask": 0o027}
    out = told(oci, bundle, "id -u; id -g; grep Groups /proc/self/status; umask; echo $HOME")
    assert ["1000", "1001", "Groups:", "5", "6", "0027", "/home/worker"] == out.split()


def test_environment_and_directory(oci, bundle):
    bundle.process.update(env=["PATH=/bin", "A=1", "EMPTY="], cwd="/made/for/it")
    assert "/made/for/it\n1::\n" == told(oci, bundle, "pwd; echo $A:$EMPTY:")


def test_five_capability_sets(oci, bundle):
    bundle.process["capabilities"] = {
        "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
        "permitted": ["CAP_CHOWN", "CAP_KILL"],
        "effective": ["CAP_CHOWN"],
        "inheritable": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    out = dict(line.split(":\t") for line in told(oci, bundle, "grep ^Cap /proc/self/status").splitlines())
    chown, kill, raw = 1 << 0, 1 << 5, 1 << 13
    assert chown | kill | raw == int(out["CapBnd"], 16)
    assert (kill, kill, kill) == tuple(int(out[name], 16) for name in ("CapInh", "CapAmb", "CapEff"))


def test_no_capability_without_the_member(oci, bundle):
    del bundle.process["capabilities"]
    out = told(oci, bundle, "grep ^Cap /proc/self/status")
    assert {0} == {int(line.split()[1], 16) for line in out.splitlines()}


def test_limits_scores_and_priorities(oci, bundle):
    bundle.process.update(
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
        oomScoreAdj=500,
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 6},
        scheduler={"policy": "SCHED_BATCH", "nice": 5},
        noNewPrivileges=True,
    )
    out = told(
        oci,
        bundle,
        "ulimit -n; ulimit -H -n; ulimit -c; cat /proc/self/oom_score_adj; ionice; grep NoNew /proc/self/status; cut -d' ' -f19,41 /proc/self/stat",
    )
    assert "100\n200\n0\n500\nbest-effort: prio 6\nNoNewPrivs:\t1\n5 3\n" == out


def test_personality_of_32_bits(oci, bundle):
    bundle.linux["personality"] = {"domain": "LINUX32"}
    assert "i686\n" == told(oci, bundle, "uname", "-m") or platform.machine() != "x86_64"


def test_memory_policy(oci, bundle):
    bundle.linux["memoryPolicy"] = {"mode": "MPOL_BIND", "nodes": "0"}
    if not os.path.exists("/proc/self/numa_maps"):
        pytest.skip("the kernel has no NUMA")
    assert "bind" in told(oci, bundle, "cat /proc/self/numa_maps")


# --- mounts


def test_bind_options(oci, bundle, tmp_path):
    outer = tmp_path / "outer"
    (outer / "inner").mkdir(parents=True)
    (outer / "file").write_text("content\n")
    bundle.mounts("/plain", "bind", str(outer), "rbind", "rw")
    bundle.mounts("/ro", "bind", str(outer), "rbind", "ro", "nosuid", "nodev", "noexec", "noatime")
    bundle.mounts("/one/file", "bind", str(outer / "file"), "bind", "ro")
    bundle.mounts("/relative", "none", "../outer", "rbind")
    out = told(
        oci,
        bundle,
        "touch /plain/new; touch /ro/x; touch /one/file; cat /one/file; ls /relative; grep -E ' /ro ' /proc/self/mountinfo",
    )
    assert (outer / "new").exists()
    assert "content\nfile\ninner\nnew\n" in out
    assert {"ro", "nosuid", "nodev", "noexec", "noatime"} <= set(out.splitlines()[-1].split()[5].split(","))


@pytest.mark.parametrize(("option", "below"), [("ro", "rw"), ("rro", "ro")])
def test_read_only_of_the_mount_and_of_the_tree(oci, bundle, tmp_path, option, below):
    outer = tmp_path / "outer"
    (outer / "sub").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", outer / "sub"], check=True)
    try:
        bundle.mounts("/m", "bind", str(outer), "rbind", option)
        out = told(oci, bundle, "grep -E ' /m(/sub)? ' /proc/self/mountinfo")
    finally:
        subprocess.run(["umount", outer / "sub"], check=True)
    modes = {line.split()[4]: line.split()[5].split(",")[0] for line in out.splitlines()}
    assert {"/m": "ro", "/m/sub": below} == modes


def test_tmpfs_and_its_options(oci, bundle):
    bundle.mounts("/t", "tmpfs", "tmpfs", "size=1m", "mode=0711", "nosuid", "strictatime")
    bundle.mounts("/t/inner", "tmpfs", "tmpfs", "ro")
    out = told(
        oci, bundle, "stat -c %a /t; grep -E ' /t' /proc/self/mountinfo; touch /t/inner/x; touch /t/y && echo fine"
    )
    assert out.startswith("711\n")
    assert "size=1024k" in out
    assert out.endswith("fine\n")
    assert " /t/inner ro" in out


def test_tmpcopyup_starts_with_what_it_covers(oci, bundle, rootfs):
    place = rootfs / "copied"
    shutil.rmtree(place, ignore_errors=True)
    (place / "deep").mkdir(parents=True)
    (place / "deep/file").write_text("below\n")
    (place / "link").symlink_to("deep/file")
    (place / "deep").chmod(0o750)
    os.chown(place / "deep/file", 1000, 1000)
    bundle.mounts("/copied", "tmpfs", "tmpfs", "tmpcopyup", "size=1m")
    out = told(
        oci,
        bundle,
        "cat /copied/link; stat -c '%a %u' /copied/deep /copied/deep/file; echo more >/copied/deep/file; stat -f -c %T /copied",
    )
    assert ["below", "750", "0", "644", "1000", "tmpfs"] == out.split()
    assert "below\n" == (place / "deep/file").read_text()
    shutil.rmtree(place)


@pytest.mark.parametrize(("word", "expected"), [("rslave", "master"), ("rshared", "shared"), ("rprivate", "")])
def test_propagation(oci, bundle, tmp_path, word, expected):
    outer = tmp_path / "outer"
    outer.mkdir()
    subprocess.run(["mount", "--bind", outer, outer], check=True)
    subprocess.run(["mount", "--make-shared", outer], check=True)
    try:
        bundle.mounts("/m", "bind", str(outer), "rbind", word)
        out = told(oci, bundle, "grep ' /m ' /proc/self/mountinfo")
    finally:
        subprocess.run(["umount", outer], check=True)
    optional = out.split(" - ")[0].split()[6:]
    assert [expected] == [each.split(":")[0] for each in optional] if expected else [] == optional


def test_idmapped_mount_with_its_own_maps(oci, bundle, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "file").write_text("")
    os.chown(outer / "file", 1000, 1000)
    maps = [{"containerID": 1000, "hostID": 2000, "size": 1}]
    bundle.config["mounts"].append(
        {
            "destination": "/m",
            "type": "bind",
            "source": str(outer),
            "options": ["bind"],
            "uidMappings": maps,
            "gidMappings": maps,
        }
    )
    try:
        assert "2000\n" == told(oci, bundle, "stat", "-c", "%u", "/m/file")
    except AssertionError as error:
        if "id map of" in str(error):
            pytest.skip("the filesystem here can't be id-mapped")
        raise


@pytest.mark.parametrize("word", ["idmap", "ridmap"])
def test_idmapped_mount_of_the_user_namespace(oci, bundle, tmp_path, word):
    outer = tmp_path / "outer"
    outer.mkdir()
    (outer / "file").write_text("")
    os.chown(outer / "file", 1000, 1000)
    os.makedirs(f"{bundle.config['root']['path']}/m", exist_ok=True)  # root inside may not create it
    bundle.has_user_namespace().mounts("/m", "bind", str(outer), "rbind", word)
    assert "1000\n" == told(oci, bundle, "stat", "-c", "%u", "/m/file")


def test_cgroup_mount_shows_the_own_groups(oci, bundle):
    out = told(
        oci,
        bundle,
        "find /sys/fs/cgroup -name cgroup.procs | head -1 | xargs cat; ls /sys/fs/cgroup; touch /sys/fs/cgroup/x 2>&1; cat /proc/self/cgroup",
    )
    assert "1" == out.split()[0]
    assert "Read-only file system" in out
    assert all(
        line.endswith(":/")
        for line in out.splitlines()
        if line[:1].isdigit() and ":" in line and "unified" not in line and not line.startswith("0::")
    )


def test_cgroup_mount_without_a_namespace(oci, bundle):
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "cgroup"]
    out = told(oci, bundle, "find /sys/fs/cgroup -name cgroup.procs | head -1 | xargs cat; cat /proc/self/cgroup")
    assert "1" == out.split()[0]
    assert "/one" in out


def test_long_options_are_taken(oci, bundle, tmp_path):
    lowers = []
    for number in range(12):
        (tmp_path / f"a-rather-long-name-of-a-layer-{number}").mkdir()
        (tmp_path / f"a-rather-long-name-of-a-layer-{number}" / f"f{number}").write_text("")
        lowers.append(str(tmp_path / f"a-rather-long-name-of-a-layer-{number}"))
    bundle.mounts("/o", "overlay", "overlay", "lowerdir=" + ":".join(lowers))
    assert 12 == len(told(oci, bundle, "ls", "/o").split())


# --- the root, devices, covered paths


def test_read_only_root(oci, bundle):
    bundle.config["root"]["readonly"] = True
    bundle.mounts("/deep/new/place", "tmpfs", "tmpfs")
    assert "writable\n" == told(oci, bundle, "touch /x; touch /deep/new/place/y && echo writable")


def test_default_devices_and_links(oci, bundle):
    out = told(
        oci,
        bundle,
        "cd /dev; stat -c '%n %t:%T %a' null zero full random urandom tty; for l in fd stdin stdout stderr ptmx core; do readlink $l; done; echo x >/dev/null; head -c 2 /dev/zero | wc -c",
    )
    core = ["/proc/kcore"] if os.path.exists("/proc/kcore") else []  # no symlink to a missing file
    assert [
        *("null", "1:3", "666", "zero", "1:5", "666", "full", "1:7", "666"),
        *("random", "1:8", "666", "urandom", "1:9", "666", "tty", "5:0", "666"),
        *("/proc/self/fd", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/2", "pts/ptmx", *core, "2"),
    ] == out.split()  # fmt: skip


def test_devices_of_ones_own(oci, bundle):
    bundle.linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o640, "uid": 7, "gid": 8},
        {"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o600},
    ]
    out = told(oci, bundle, "stat -c '%F %t:%T %a %u %g' /dev/mine /dev/sub/pipe")
    assert "character special file 1:3 640 7 8\nfifo 0:0 600 0 0\n" == out


def test_device_rules_deny_what_is_not_allowed(oci, bundle):
    bundle.linux["devices"] = [
        {"path": "/dev/odd", "type": "c", "major": 10, "minor": 1000}
    ]  # no driver has this number
    assert "Operation not permitted" in told(oci, bundle, "cat /dev/odd 2>&1; cat /dev/null")
    bundle.linux["resources"]["devices"].append({"allow": True, "type": "c", "major": 10, "minor": 1000, "access": "r"})
    assert "No such device" in told(oci, bundle, "cat /dev/odd 2>&1; cat /dev/null")


def test_masked_and_readonly_paths(oci, bundle, rootfs):
    (rootfs / "secret").mkdir(exist_ok=True)
    (rootfs / "secret/word").write_text("x")
    (rootfs / "secret.txt").write_text("x")
    bundle.linux["maskedPaths"] = ["/proc/kallsyms", "/secret", "/secret.txt", "/not/there"]
    bundle.linux["readonlyPaths"] = ["/proc/sys", "/tmp", "/not/there"]
    out = told(
        oci,
        bundle,
        "ls /secret | wc -l; wc -c </secret.txt; wc -c </proc/kallsyms; touch /secret/x 2>&1; touch /tmp/x 2>&1; echo 1 2>&1 >/proc/sys/vm/swappiness; true",
    )
    assert ["0", "0", "0"] == out.split()[:3]
    assert 3 == out.count("Read-only file system")


# --- namespaces


def test_names_and_sysctls(oci, bundle):
    bundle.config.update(hostname="inside", domainname="domain.inside")
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1", "kernel.msgmax": "4000", "net/ipv4/ip_default_ttl": "77"}
    out = told(
        oci,
        bundle,
        "hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax /proc/sys/net/ipv4/ip_default_ttl",
    )
    assert ["inside", "domain.inside", "1", "4000", "77"] == out.split()
    assert "inside" != socket.gethostname()


def test_namespaces_are_new_joined_or_inherited(oci, bundle, tmp_path):
    pid = oci.start_one(bundle.runs("sleep", "100"))
    second = bundle.clone(tmp_path / "second")
    second.linux["namespaces"] = [
        {"type": kind, "path": f"/proc/{pid}/ns/{file}"}
        for kind, file in (("pid", "pid"), ("network", "net"), ("ipc", "ipc"), ("uts", "uts"))
    ] + [{"type": "mount"}]
    second.runs("for n in pid net ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done; ps | grep -c 'sleep 100'")
    out = oci.run(second, TWO).stdout.split()
    for found, kind in zip(out, ("pid", "net", "ipc", "uts"), strict=False):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") == found
    assert out[4] not in (os.readlink("/proc/self/ns/mnt"), os.readlink(f"/proc/{pid}/ns/mnt"))
    assert os.readlink("/proc/self/ns/cgroup") == out[5]


def test_namespace_of_another_kind_is_refused(oci, bundle):
    bundle.linux["namespaces"][1]["path"] = "/proc/self/ns/uts"
    bundle.write()
    assert "not a network namespace" in oci.refused("run", "--bundle", bundle.path, ONE)


def test_user_namespace(oci, bundle):
    bundle.has_user_namespace(200_000, 1000).runs(
        "cat /proc/self/uid_map; id -u; touch /tmp/mine; stat -c %u /proc/self; ls -l /dev/null; grep CapEff /proc/self/status"
    )
    out = oci.run(bundle).stdout
    assert ["0", "200000", "1000", "0"] == out.split()[:4]


def test_user_namespace_is_joined_by_path(oci, bundle, tmp_path):
    pid = oci.start_one(bundle.has_user_namespace().runs("sleep", "100"))
    second = bundle.clone(tmp_path / "second")
    second.linux["namespaces"][-1]["path"] = f"/proc/{pid}/ns/user"
    second.linux.pop("uidMappings"), second.linux.pop("gidMappings")
    assert (
        f"{os.readlink(f'/proc/{pid}/ns/user')}\n" == oci.run(second.runs("readlink", "/proc/self/ns/user"), TWO).stdout
    )


@pytest.mark.parametrize("maps", ["ids of their own", "the host's"])
def test_devices_of_a_user_namespace_are_as_they_are_asked_for(oci, bundle, maps):
    """No node of the host is bound: the host does not have the first one, and its second one has another mode."""
    bundle.has_user_namespace(*((0, 2**32 - 1) if maps == "the host's" else ()))
    bundle.linux["devices"] = [
        {"path": "/dev/own/", "type": "c", "major": 1, "minor": 5, "fileMode": 0o157, "uid": 10, "gid": 11},
        {"path": "/dev/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640},
        {"path": "/dev/pipe", "type": "p", "fileMode": 0o600, "uid": 1},
    ]
    before = os.stat("/dev/zero")
    out = told(oci, bundle, "stat -c '%F %a %u:%g %t:%T' /dev/own /dev/zero /dev/pipe; head -c 2 /dev/zero | wc -c")
    assert [
        "character special file 157 10:11 1:5",
        "character special file 640 0:0 1:5",
        "fifo 600 1:0 0:0",
        "2",
    ] == out.splitlines()
    assert before == os.stat("/dev/zero")
    assert not os.path.exists("/dev/own")


def test_device_of_a_user_namespace_is_ruled_like_any_other(oci, bundle):
    bundle.has_user_namespace()
    bundle.linux["devices"] = [{"path": "/dev/own", "type": "c", "major": 1, "minor": 2}]
    bundle.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    assert "not permitted" in told(oci, bundle, "head -c 1 /dev/own 2>&1; true")


def test_sysfs_that_the_kernel_refuses_is_the_hosts_read_only(oci, bundle):
    bundle.has_user_namespace()
    sysfs = next(each for each in bundle.config["mounts"] if each["type"] == "sysfs")
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["type"] != "cgroup"]
    script = "ls /sys/class/net; ls /sys/fs/cgroup /sys/firmware; awk '$5 == \"/sys\" {print $6}' /proc/self/mountinfo"
    own = told(oci, bundle, script)  # the control: with its own network namespace the kernel mounts one
    assert "lo" in own.split()
    assert "ro" in own.split()[-1].split(",")
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "network"]
    before = set(os.listdir("/sys/class/net"))
    shown = told(oci, bundle, script).split()
    after = set(os.listdir("/sys/class/net"))
    listed = set(shown[:-1])
    assert {"/sys/fs/cgroup:", "/sys/firmware:"} <= listed, "the groups are masked, /sys/firmware too"
    assert before & after <= listed - {"/sys/fs/cgroup:", "/sys/firmware:"} <= before | after  # others come and go
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(shown[-1].split(","))
    assert "" == told(oci, bundle, "awk '$5 ~ \"^/sys\" && $6 !~ /^ro/' /proc/self/mountinfo"), "nothing is writable"
    sysfs["options"].remove("ro")
    bundle.write()
    message = oci.refused("run", "--bundle", bundle.path, ONE)
    assert "fsopen sysfs on /sys: operation not permitted (hint: in a user namespace it needs its own" in message


def test_control_groups_show_on_the_hosts_sysfs(oci, bundle):
    bundle.has_user_namespace()
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "network"]
    own = told(oci, bundle, "find /sys/fs/cgroup -name cgroup.procs | head -1 | xargs cat")
    assert "1" in own.split()


@pytest.mark.parametrize("users", ["the host's", "mapped"])
def test_time_namespace_has_its_offsets(oci, bundle, users):
    if users == "mapped":
        bundle.has_user_namespace()
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {"boottime": {"secs": 1_000_000, "nanosecs": 5}, "monotonic": {"secs": 500}}
    with open("/proc/uptime") as file:
        outside = float(file.read().split()[0])
    inside = float(told(oci, bundle, "cat", "/proc/uptime").split()[0])
    assert 1_000_000 <= inside - outside < 1_000_100
    oci.start_one(bundle.runs("sleep", "100"), TWO)
    assert float(oci("exec", TWO, "cat", "/proc/uptime").stdout.split()[0]) - outside >= 1_000_000


def test_loopback_is_up(oci, bundle):
    assert "LOOPBACK,UP" in told(oci, bundle, "ip", "addr", "show", "lo")


def test_network_devices_are_moved(oci, bundle):
    name, peer = (f"ck{letter}{os.getpid() % 100000}" for letter in "ab")
    if subprocess.run(
        ["ip", "link", "add", name, "type", "veth", "peer", "name", peer], capture_output=True
    ).returncode:
        pytest.skip("the kernel has no veth device, or ip(8) is not installed: apt-get install iproute2")
    try:
        bundle.linux["netDevices"] = {name: {"name": "inner0"}}
        assert ["inner0", "lo"] == told(oci, bundle, "ls", "/sys/class/net").split()
    finally:
        subprocess.run(["ip", "link", "del", peer], capture_output=True)
    bundle.linux["netDevices"] = {"nosuch0": {}}
    bundle.write()
    assert "linux.netDevices.nosuch0" in oci.refused("run", "--bundle", bundle.path, ONE)


# --- control groups


def test_limits_are_written(oci, bundle):
    bundle.linux["cgroupsPath"] = f"/{TWO}/inner"
    bundle.linux["resources"].update(
        memory={"limit": 64 << 20, "reservation": 32 << 20, "swappiness": 10},
        cpu={"shares": 512, "quota": 50_000, "period": 100_000, "cpus": "0", "mems": "0"},
        pids={"limit": 33},
    )
    oci.start_one(bundle.runs("sleep", "100"))
    places = json.loads((Path(oci.root) / ONE / "state.json").read_text())["groups"]
    assert all(place.endswith(bundle.linux["cgroupsPath"]) for place in places)
    expected = {
        "memory.limit_in_bytes": "67108864",
        "memory.max": "67108864",
        "memory.soft_limit_in_bytes": "33554432",
        "memory.swappiness": "10",
        "cpu.shares": "512",
        "cpu.cfs_quota_us": "50000",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0",
        "pids.max": "33",
    }
    seen = 0
    for place in places:
        for file, value in expected.items():
            if (Path(place) / file).exists():
                assert value == (Path(place) / file).read_text().strip(), file
                seen += 1
    assert seen >= 4
    oci("delete", "--force", ONE)
    for place in places:
        os.rmdir(os.path.dirname(place))


def test_processes_over_the_limit_are_refused(oci, bundle):
    bundle.linux["resources"]["pids"] = {"limit": 1}
    assert "Resource temporarily unavailable" in oci.run(bundle.runs("sh", "-c", "sleep 1; true"), check=False).stderr


def test_memory_over_the_limit_is_killed(oci, bundle):
    bundle.linux["resources"]["memory"] = {"limit": 16 << 20, "swap": 16 << 20}
    bundle.runs("sh", "-c", "x=$(head -c 100m /dev/zero | tr '\\0' a); echo survived")
    done = oci.run(bundle, check=False)
    assert "survived" not in done.stdout


def test_group_in_use_is_refused(oci, bundle, tmp_path):
    bundle.linux["cgroupsPath"] = f"/{ONE}"
    oci.start_one(bundle.runs("sleep", "100"))
    second = bundle.clone(tmp_path / "second")
    second.write()
    assert "already has processes" in oci.refused("create", "--bundle", second.path, TWO)
    assert oci.status(ONE) == "running"


@pytest.mark.skipif(not os.path.isdir("/run/systemd/system"), reason="systemd is not the init")
def test_systemd_makes_the_groups(oci, bundle):
    bundle.linux["cgroupsPath"] = f"containerkit-test.slice:ck:{ONE}"
    bundle.linux["resources"]["pids"] = {"limit": 33}
    oci.words += ["--systemd-cgroup"]
    pid = oci.start_one(bundle.runs("sleep", "100"))
    (place,) = json.loads((Path(oci.root) / ONE / "state.json").read_text())["groups"]
    assert place.endswith(f"/containerkit.slice/containerkit-test.slice/ck-{ONE}.scope")
    assert [str(pid)] == (Path(place) / "cgroup.procs").read_text().split()
    assert "33" == (Path(place) / "pids.max").read_text().strip()
    shown = subprocess.run(["systemctl", "is-active", f"ck-{ONE}.scope"], capture_output=True, text=True).stdout
    assert "active\n" == shown
    oci("delete", "--force", ONE)
    assert not os.path.exists(place)


def test_no_groups_where_they_are_disabled(oci, bundle):
    bundle.linux.pop("resources")
    bundle.config["mounts"] = [each for each in bundle.config["mounts"] if each["type"] != "cgroup"]
    bundle.write()
    oci.words += ["--cgroup-manager", "disabled"]
    assert "out\n" == oci.run(bundle.runs("echo", "out")).stdout


# --- seccomp


def profile(*names, action="SCMP_ACT_ERRNO", **more):
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": list(names), "action": action, **more}]}


@pytest.mark.parametrize("privileges", [True, False])
def test_seccomp_filter(oci, bundle, privileges):
    bundle.process["noNewPrivileges"] = privileges
    bundle.linux["seccomp"] = profile("mkdirat", "mkdir", errnoRet=42)
    done = oci.run(bundle.runs("mkdir /tmp/never; grep Seccomp: /proc/self/status"))
    assert os.strerror(42) in done.stderr
    assert "Seccomp:\t2" in done.stdout
    again = oci.run(bundle)
    assert done.stderr == again.stderr


def test_seccomp_filter_of_an_exec(oci, bundle):
    bundle.linux["seccomp"] = profile("mkdirat", "mkdir", errnoRet=42)
    oci.start_one(bundle.runs("sleep", "100"))
    assert os.strerror(42) in oci("exec", ONE, "mkdir", "/tmp/never", check=False).stderr


def test_seccomp_listener_goes_to_its_agent(oci, bundle, tmp_path):
    path = str(tmp_path / "agent")
    bundle.linux["seccomp"] = {
        **profile("mkdirat", "mkdir", action="SCMP_ACT_NOTIFY"),
        "listenerPath": path,
        "listenerMetadata": "from the test",
    }
    found = {}

    def agent(server):
        connection, _ = server.accept()
        with connection:
            message, (control,), _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4))
        found["message"] = json.loads(message)
        found["fd"] = struct.unpack("=i", control[2])[0]

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(1)
        thread = threading.Thread(target=agent, args=(server,))
        thread.start()
        oci.create(bundle.runs("sleep", "100"))
        thread.join(timeout=20)
    assert "seccomp notify" in os.readlink(f"/proc/self/fd/{found['fd']}")
    os.close(found["fd"])
    message = found["message"]
    assert ("from the test", ["seccompFd"], "creating") == (
        message["metadata"],
        message["fds"],
        message["state"]["status"],
    )
    assert oci.state(ONE)["pid"] == message["pid"]


@pytest.mark.parametrize(
    "seccomp",
    [
        {"defaultAction": "SCMP_ACT_NOSUCH"},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["NOSUCH"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}]},
        {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NOSUCH"]},
    ],
)
def test_seccomp_profile_that_is_wrong_is_refused(oci, bundle, seccomp):
    bundle.linux["seccomp"] = seccomp
    bundle.write()
    assert "linux.seccomp" in oci.refused("run", "--bundle", bundle.path, ONE)


@pytest.mark.parametrize(
    ("seccomp", "path"),
    [
        ({"defaultAction": "SCMP_ACT_NOTIFY"}, "linux.seccomp.defaultAction"),
        (profile("mkdir", "write", action="SCMP_ACT_NOTIFY"), "linux.seccomp.syscalls[0]"),
    ],
)
def test_seccomp_filter_that_asks_before_its_agent_is_there_is_refused(oci, bundle, tmp_path, seccomp, path):
    bundle.linux["seccomp"] = {**seccomp, "listenerPath": str(tmp_path / "agent")}
    bundle.write()
    told = oci.refused("create", "--bundle", bundle.path, ONE)
    assert f"{path}: SCMP_ACT_NOTIFY can't be " in told
    assert "does not exist" in oci.refused("state", ONE)


# --- hooks


def hook(tmp_path, name, body):
    script = tmp_path / name
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return {"path": str(script), "args": [name, "argument"], "env": ["PATH=/bin:/usr/bin", "A=b"]}


def test_hooks_run_in_their_order_with_the_state(oci, bundle, tmp_path, rootfs):
    kinds = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
    log = tmp_path / "log"
    bundle.config["hooks"] = {
        kind: [
            hook(
                tmp_path,
                kind,
                f"printf '%s ' {kind} $1 $A $(readlink /proc/self/ns/mnt) >>{log}; cat >>{log}; echo >>{log}",
            )
        ]
        for kind in kinds
    }
    (rootfs / "hook").write_text("#!/bin/sh\ncat >/tmp/hook-state\nhostname >>/tmp/hook-state\n")
    (rootfs / "hook").chmod(0o755)
    bundle.config["hooks"]["startContainer"] = [{"path": "/hook"}]
    bundle.config["hostname"] = "hooked"
    pid = oci.start_one(bundle.runs("sleep 1.5; cat /tmp/hook-state"))
    oci.wait()
    oci("delete", ONE)
    lines = [line.split(" ", 4) for line in log.read_text().splitlines()]
    assert list(kinds) == [line[0] for line in lines]
    states = [json.loads(line[4]) for line in lines]
    assert ["creating", "creating", "creating", "running", "stopped"] == [state["status"] for state in states]
    assert [pid] * 4 == [state["pid"] for state in states[:4]]
    assert {("argument", "b")} == {(line[1], line[2]) for line in lines}
    here = os.readlink("/proc/self/ns/mnt")
    assert [here, here, True, here, here] == [
        line[3] if line[0] != "createContainer" else line[3] != here for line in lines
    ]
    inner = (rootfs / "tmp/hook-state").read_text()
    assert '"status":"created"' in inner
    assert inner.endswith("hooked\n")
    (rootfs / "tmp/hook-state").unlink()


def test_hook_that_fails_stops_the_creation(oci, bundle, tmp_path):
    bundle.config["hooks"] = {"createRuntime": [hook(tmp_path, "bad", "echo because; exit 3")]}
    bundle.write()
    said = oci.refused("run", "--bundle", bundle.path, ONE)
    assert "createRuntime hook #0" in said
    assert "exit status 3" in said
    assert "because" in said


def test_hook_that_takes_too_long_is_killed(oci, bundle, tmp_path):
    bundle.config["hooks"] = {"prestart": [hook(tmp_path, "slow", "exec sleep 30") | {"timeout": 1}]}
    bundle.write()
    assert "timed out" in oci.refused("run", "--bundle", bundle.path, ONE)


def test_hook_after_the_start_that_fails_is_a_warning(oci, bundle, tmp_path):
    log = tmp_path / "log"
    good, bad = hook(tmp_path, "good", f"echo run >>{log}"), hook(tmp_path, "bad", "echo because; exit 3")
    bundle.config["hooks"] = {"poststart": [good, bad, good]}
    oci.create(bundle.runs("sleep", "100"))
    told = oci("start", ONE).stderr
    assert "warning: error running poststart hook #1" in told
    assert "exit status 3, output: because" in told
    assert "running" == oci.status(ONE)
    assert "run\nrun\n" == log.read_text()


def test_hook_after_the_start_that_fails_stops_a_container_of_version_1_3(oci, bundle, tmp_path):
    log = tmp_path / "log"
    bundle.config["ociVersion"] = "1.3.0"
    bundle.config["hooks"] = {
        "poststart": [hook(tmp_path, "bad", "exit 3"), hook(tmp_path, "good", f"echo run >{log}")]
    }
    oci.create(bundle.runs("sleep", "100"))
    assert "error running poststart hook #0" in oci.refused("start", ONE)
    oci.wait()
    assert not log.exists()
    assert "poststart hook #0" in oci.refused("run", "--bundle", bundle.path, TWO)
    assert "does not exist" in oci.refused("state", TWO)


def test_hook_of_the_end_that_fails_does_not_keep_the_container(oci, bundle, tmp_path):
    bundle.config["hooks"] = {"poststop": [hook(tmp_path, "bad", "exit 3")]}
    oci.start_one(bundle)
    oci.wait()
    assert "poststop hook #0" in oci("delete", ONE).stderr


# --- the rest


def test_unknown_members_are_no_error(oci, bundle):
    bundle.config.update(vendor={"x": 1}, windows={"layerFolders": []})
    bundle.process["later"] = True
    assert "out\n" == told(oci, bundle, "echo", "out")


def test_rootfs_propagation(oci, bundle):
    bundle.linux["rootfsPropagation"] = "shared"
    assert " shared:" in told(oci, bundle, "grep ' / / ' /proc/self/mountinfo || grep ' / ' /proc/self/mountinfo")


def test_no_pivot(oci, bundle):
    bundle.runs("ls", "/bin/busybox").write()
    assert "/bin/busybox\n" == oci("run", "--no-pivot", "--bundle", bundle.path, ONE).stdout


def test_mounts_of_the_host_are_out_of_sight(oci, bundle):
    places = told(oci, bundle, "cut -d' ' -f5 /proc/self/mountinfo").split()
    assert all(place == "/" or place.startswith(("/proc", "/dev", "/sys")) for place in places)

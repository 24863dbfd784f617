"""Behaviour that runc's own tests require, tested on this runtime."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from errno import ENOSYS, EPERM
from pathlib import Path

import pytest
from oci_bundles import ONE, Bundle, as_root, bundle, make_rootfs, oci, rootfs  # noqa: F401 - fixtures

pytestmark = as_root


@pytest.fixture
def own(tmp_path):
    """A bundle with a root filesystem that a test may change."""
    return Bundle(tmp_path / "own", make_rootfs(tmp_path / "own/rootfs"))


def owned_by(path, number):
    for directory, directories, files in os.walk(path):
        for name in (".", *directories, *files):
            os.chown(os.path.join(directory, name), number, number, follow_symlinks=False)


# --- sources and targets given by the host's path of the root


@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "idmap"])
@pytest.mark.parametrize("nested", [False, True], ids=["host", "userns"])
def test_sources_in_the_root_are_what_was_mounted_there(oci, own, tmp_path, nested, mapped):
    root = own.config["root"]["path"]
    for name in ("a/x", "b/y", "c/z"):
        place = tmp_path / "outside" / name
        place.mkdir(parents=True)
        (place / "file").write_text(f"{name}\n")
        (tmp_path / "outside" / f"sym-{name[0]}").symlink_to(name[0])
    for name in ("mnt", "final"):
        (Path(root) / name).mkdir()
    if nested:
        own.has_user_namespace()
        owned_by(root, 100_000)
    (tmp_path / "outside").chmod(0o750)
    outside, options = tmp_path / "outside", ("rbind", "rprivate")
    own.mounts("/mnt", "bind", f"{outside}/a", *options)
    own.mounts("/mnt/x", "bind", f"{outside}/sym-b", *options)
    own.mounts("/mnt/x/y", "bind", f"{outside}/c", *options)
    own.mounts("/mnt/x/y/z", "bind", f"{outside}/sym-a", *options)
    for source, target in (("mnt/x", "mnt/x/y/z/x"), ("mnt/x/y", "mnt/x/y/z"), ("mnt", "final")):
        own.mounts(f"{root}/{target}", "bind", f"{root}/{source}", *options)
        if mapped:
            maps = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
            own.config["mounts"][-1].update(uidMappings=maps, gidMappings=maps)
    out = oci.run(own.runs("sh", "-c", "cat /final/x/y/z/z/x/y/z/x/file; stat -c %u /final/x"))
    expected = {(False, False): "0", (False, True): "0", (True, False): "65534", (True, True): "65534"}[nested, mapped]
    assert ["a/x", expected] == out.stdout.split()


def test_id_map_of_a_source_in_the_root_is_the_mounts(oci, own, tmp_path):
    (tmp_path / "outside/inner").mkdir(parents=True)
    root = own.config["root"]["path"]
    own.mounts("/mnt", "bind", str(tmp_path / "outside"), "rbind")
    own.mounts("/plain", "bind", f"{root}/mnt/inner", "bind")
    own.mounts("/mapped", "bind", f"{root}/mnt/inner", "bind")
    maps = [{"containerID": 0, "hostID": 100_000, "size": 65_536}]
    own.config["mounts"][-1].update(uidMappings=maps, gidMappings=maps)
    assert ["0", "100000"] == oci.run(own.runs("stat", "-c", "%u", "/plain", "/mapped")).stdout.split()


def test_source_in_the_root_that_no_mount_touches_is_the_hosts(oci, own):
    root = own.config["root"]["path"]
    (Path(root) / "data").mkdir()
    (Path(root) / "data/file").write_text("from the root\n")
    own.mounts(f"{root}/copy", "bind", f"{root}/data", "rbind", "ro")
    out = oci.run(own.runs("sh", "-c", "cat /copy/file; touch /copy/x 2>&1; true")).stdout
    assert "from the root\n" in out
    assert "Read-only file system" in out


def test_source_in_the_root_does_not_lead_outside_by_a_symlink(oci, own, tmp_path):
    root = own.config["root"]["path"]
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("of the host\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/link").symlink_to(secret)
    own.mounts("/mnt", "bind", str(tmp_path / "outside"), "rbind")
    own.mounts("/got", "bind", f"{root}/mnt/link", "rbind").write()
    assert "no such file or directory" in oci.refused("run", "--bundle", own.path, ONE)


# --- signals to a container that waits


@pytest.mark.parametrize("signal", ["TERM", "INT", "USR1", "KILL", "RTMIN+1"])
def test_signal_that_ends_a_process_ends_one_that_waits_for_its_start(oci, bundle, signal):
    oci.create(bundle)
    oci("kill", ONE, signal)
    oci.wait()
    assert "stopped" in oci.refused("start", ONE)
    oci("delete", ONE)


@pytest.mark.parametrize("signal", ["CHLD", "CONT", "WINCH", "0"])
def test_signal_that_ends_no_process_leaves_one_that_waits(oci, bundle, signal):
    oci.create(bundle.runs("sleep", "100"))
    oci("kill", ONE, signal)
    time.sleep(0.1)
    assert "created" == oci.status(ONE)
    oci("start", ONE)
    assert "running" == oci.status(ONE)


# --- masks


def test_directories_that_are_masked_share_a_filesystem(oci, own):
    names = ("first", "second", "third")
    for name in names:
        (Path(own.config["root"]["path"]) / name).mkdir()
        (Path(own.config["root"]["path"]) / name / "secret").touch()
    (Path(own.config["root"]["path"]) / "plain").write_text("secret")
    own.linux["maskedPaths"] = ["/plain", "/first", "/none", "/second", "/proc/kcore", "/third"]
    out = oci.run(
        own.runs(
            "sh", "-c", "stat -c %d /first /second /third /; cat /plain; ls /*st /second; touch /third/x 2>&1; true"
        )
    )
    numbers = out.stdout.split()[:4]
    assert 1 == len(set(numbers[:3]))
    assert numbers[0] != numbers[3]
    assert "secret" not in out.stdout
    assert "/third/x: Read-only file system" in out.stdout


# --- seccomp

CALLS = r"""
#include <errno.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(void) {
    long numbers[] = {SYS_unshare, SYS_close_range, 452, 1000};
    for (int i = 0; i < 4; i++)
        printf("%d ", syscall(numbers[i], -1, 0, 0, 0) < 0 ? errno : 0);
    return 0;
}
"""
ALLOWED = (
    "write exit_group brk fstat mmap munmap mprotect arch_prctl set_tid_address set_robust_list rseq prlimit64 "
    "readlink readlinkat getrandom newfstatat execve uname ioctl rt_sigaction close openat2"
)


@pytest.fixture(scope="module")
def calls(tmp_path_factory):
    if shutil.which("gcc") is None:
        pytest.skip("no compiler: apt-get install gcc libc6-dev")
    directory = tmp_path_factory.mktemp("calls")
    (directory / "calls.c").write_text(CALLS)
    subprocess.run(["gcc", "-static", "-o", directory / "calls", directory / "calls.c"], check=True)
    return directory / "calls"


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, [EPERM, EPERM, ENOSYS, ENOSYS]), ({"defaultErrnoRet": 6}, [6, 6, ENOSYS, ENOSYS])],
    ids=["plain", "errno"],
)
def test_calls_newer_than_a_profile_are_unknown_to_it(oci, own, calls, more, expected):
    shutil.copy(calls, own.config["root"]["path"])
    rules = [{"names": ALLOWED.split(), "action": "SCMP_ACT_ALLOW"}]
    own.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules, **more}
    assert expected == list(map(int, oci.run(own.runs("/calls")).stdout.split()))


def test_calls_newer_than_a_profile_that_allows_the_rest_are_the_kernels(oci, own, calls):
    shutil.copy(calls, own.config["root"]["path"])
    rules = [{"names": ["unshare"], "action": "SCMP_ACT_ERRNO"}]
    own.linux["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
    told = list(map(int, oci.run(own.runs("/calls")).stdout.split()))
    assert EPERM == told[0]
    assert ENOSYS == told[3]
    assert ENOSYS not in told[1:2]


# --- device rules


def test_device_rule_that_denies_all_takes_the_letter_for_all(oci, bundle):
    bundle.linux["resources"]["devices"] = [
        {"allow": False, "access": "rwm"},
        {"allow": False, "type": "c", "major": 1, "minor": 11, "access": "rwa"},
    ]
    script = "dd if=/dev/kmsg count=1 2>&1; echo x >/dev/null && echo null"
    bundle.linux["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    out = oci.run(bundle.runs("sh", "-c", script)).stdout
    assert "not permitted" in out
    assert out.endswith("null\n")


@pytest.mark.parametrize(("allow", "access"), [(True, "rwa"), (False, "x"), (True, "all")])
def test_device_rule_with_other_letters_is_refused(oci, bundle, allow, access):
    bundle.linux["resources"]["devices"] = [{"allow": allow, "access": access}]
    bundle.write()
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert f"linux.resources.devices[0].access: {access!r} has other letters" in told


# --- settings that would affect the host


@pytest.mark.parametrize(
    ("kind", "name", "parameter"),
    [
        ("network", "net", "net.ipv4.ip_forward"),
        ("ipc", "ipc", "kernel.shmmni"),
        ("uts", "uts", "kernel.domainname"),
    ],
)
def test_parameter_of_a_namespace_that_is_the_hosts_is_refused(oci, bundle, kind, name, parameter):
    before = Path("/proc/sys", parameter.replace(".", "/")).read_text()
    bundle.config["hostname"] = ""
    for namespace in bundle.linux["namespaces"]:
        if namespace["type"] == kind:
            namespace["path"] = f"/proc/{os.getpid()}/ns/{name}"
    bundle.linux["sysctl"] = {parameter: before.strip()}
    bundle.write()
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert f"linux.sysctl.{parameter}: would apply to the host" in told
    bundle.linux["sysctl"] = {}
    assert "here\n" == oci.run(bundle.runs("echo", "here")).stdout  # the namespace alone is accepted


def test_name_of_a_uts_namespace_that_is_the_hosts_is_refused(oci, bundle):
    before = os.uname().nodename
    bundle.config["hostname"] = "changed"
    next(each for each in bundle.linux["namespaces"] if each["type"] == "uts")["path"] = "/proc/self/ns/uts"
    bundle.write()
    assert "hostname: would apply to the host" in oci.refused("run", "--bundle", bundle.path, ONE)
    assert before == os.uname().nodename


def test_parameter_of_another_containers_namespace_is_set(oci, bundle, tmp_path):
    pid = oci.start_one(bundle.runs("sleep", "100"))
    second = bundle.clone(tmp_path / "second")
    next(each for each in second.linux["namespaces"] if each["type"] == "network")["path"] = f"/proc/{pid}/ns/net"
    second.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    oci.run(second.runs("true"), f"{ONE}.second")
    shown = oci("exec", ONE, "cat", "/proc/sys/net/ipv4/ip_forward").stdout
    assert "1\n" == shown
    assert json.loads(oci("state", ONE).stdout)["status"] == "running"


def test_update_of_device_rules_takes_nothing_for_a_moment(oci, own):
    """The container opens its devices continuously."""
    rules = [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]
    own.linux["resources"]["devices"] = rules
    own.linux["devices"] = [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]
    script = "while :; do : </dev/null || echo lost >/tmp/lost; : </dev/zero || echo lost >/tmp/lost; done"
    for held in own.process["capabilities"].values():
        held.append("CAP_SYSLOG")
    own.runs("sh", "-c", f"touch /tmp/up; {script}")
    oci.start_one(own)
    for turn in range(30):
        wish = {"devices": rules if turn % 2 else rules[:1]}
        oci("update", "--resources", "-", ONE, input=json.dumps(wish))
        opened = oci("exec", ONE, "sh", "-c", ": </dev/kmsg", check=False)
        assert bool(turn % 2) == (opened.returncode == 0), opened.stderr
    assert ["up"] == sorted(set(oci("exec", ONE, "ls", "/tmp").stdout.split()) & {"up", "lost"})

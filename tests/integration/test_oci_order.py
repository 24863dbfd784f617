"""Mounts as seen in the container: their order, symlinks as targets, devices that the runtime creates."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import os

import pytest
from oci_bundles import ONE, as_root, bundle, oci, rootfs, try_python_alone  # noqa: F401 - fixtures

pytestmark = as_root
pytest_generate_tests = try_python_alone


def listed(oci, bundle):
    """Return the mount points of the container, in the order of its mountinfo."""
    lines = oci.run(bundle.runs("cat", "/proc/self/mountinfo")).stdout.splitlines()
    return [line.split()[4] for line in lines if "/sys/fs/cgroup/" not in line]


@pytest.mark.parametrize("way", ["plain", "user namespace", "hook before the pivot"])
def test_mounts_are_listed_in_their_order(oci, bundle, tmp_path, way):
    (tmp_path / "outer/below").mkdir(parents=True)
    (tmp_path / "outer/file").write_text("from outside\n")
    outer = str(tmp_path / "outer")
    bundle.mounts("/tmp", "tmpfs", "tmpfs", "mode=1777")
    bundle.mounts("/tmp/slave", "bind", outer, "rbind", "rslave")
    bundle.mounts("/tmp/fs", "tmpfs", "tmpfs")
    bundle.mounts("/tmp/file", "bind", f"{outer}/file", "bind", "ro")
    bundle.mounts("/tmp/unbindable", "bind", outer, "bind", "unbindable")
    bundle.mounts("/tmp/last", "tmpfs", "tmpfs")
    bundle.mounts("/tmp/last/shared", "bind", outer, "rbind", "rshared")
    if way == "user namespace":
        bundle.has_user_namespace()
    if way == "hook before the pivot":
        script = f"grep -q ' {tmp_path}' /proc/self/mountinfo && test -f {outer}/file"
        bundle.config["hooks"] = {"createContainer": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    bundle.linux["readonlyPaths"] = ["/proc/sys"]  # the others are separate mounts, made after those above
    found = listed(oci, bundle)
    wanted = [mount["destination"] for mount in bundle.config["mounts"]]
    assert [each for each in found if each in wanted] == wanted
    assert found[0] == "/"
    assert found.count("/") == 1
    covers = {*bundle.linux["maskedPaths"], *bundle.linux["readonlyPaths"]}
    assert {each for each in found if not each.startswith("/dev/")} <= {"/", *wanted, *covers}  # and nothing else
    shown = oci.run(bundle.runs("cat /tmp/file; ls /tmp/slave; grep -c unbindable /proc/self/mountinfo")).stdout
    assert shown == "from outside\nbelow\nfile\n1\n"


def test_bind_of_the_whole_host_has_nothing_of_the_containers_root(oci, bundle):
    """Temporary mounts of the start on the host's root are not visible."""
    bundle.mounts("/tmp", "tmpfs", "tmpfs").mounts("/tmp/host", "bind", "/", "rbind", "ro")
    oci.start_one(bundle.runs("sleep", "100"))
    out = oci("exec", ONE, "cat", "/proc/self/mountinfo").stdout.splitlines()
    below = [line.split()[4].removeprefix("/tmp/host") for line in out if line.split()[4].startswith("/tmp/host")]
    with open("/proc/self/mountinfo") as file:
        hosts = {line.split()[4] for line in file} | {""}
    assert "" in below
    assert set(below) <= hosts


def test_symlink_is_copied_where_a_bind_asks_for_it(oci, bundle, tmp_path):
    os.symlink("points/to/nowhere", tmp_path / "link")
    (tmp_path / "plain").write_text("content\n")
    bundle.mounts("/tmp", "tmpfs", "tmpfs")
    bundle.mounts("/tmp/a/link", "bind", str(tmp_path / "link"), "rbind", "copy-symlink")
    bundle.mounts("/tmp/a/plain", "bind", str(tmp_path / "plain"), "bind", "copy-symlink")
    out = oci.run(bundle.runs("readlink /tmp/a/link; cat /tmp/a/plain; grep -c /tmp/a/ /proc/self/mountinfo")).stdout
    assert out == "points/to/nowhere\ncontent\n1\n"


def test_symlink_does_not_replace_what_is_there(oci, bundle, tmp_path):
    own = bundle.path / "own"
    (own / "dev").mkdir(parents=True)
    for name in ("proc", "sys", "tmp", "etc"):
        (own / name).mkdir()
    os.symlink("somewhere", tmp_path / "link")
    os.symlink("somewhere", own / "etc/same")
    os.symlink("elsewhere", own / "etc/other")
    bundle.config["root"]["path"] = "own"
    bundle.mounts("/bin", "bind", str(tmp_path / "bin"), "bind", "ro")
    (tmp_path / "bin").mkdir()
    bundle.mounts("/etc/same", "bind", str(tmp_path / "link"), "bind", "copy-symlink")
    bundle.mounts("/etc/other", "bind", str(tmp_path / "link"), "bind", "copy-symlink")
    bundle.write()
    assert "symlinkat symlink /etc/other: file exists" in oci.refused("create", "--bundle", bundle.path, ONE)
    assert os.readlink(own / "etc/other") == "elsewhere"


def test_copied_symlink_stays_inside(oci, bundle, tmp_path):
    own = bundle.path / "own"
    for name in ("dev", "proc", "sys", "tmp", "bin"):
        (own / name).mkdir(parents=True)
    os.symlink("somewhere", tmp_path / "link")
    (tmp_path / "outside").mkdir()
    os.symlink(str(tmp_path / "outside"), own / "leads-out")
    bundle.config["root"]["path"] = "own"
    bundle.mounts("/leads-out/link", "bind", str(tmp_path / "link"), "bind", "copy-symlink")
    bundle.write()
    oci("create", "--bundle", bundle.path, ONE, check=False)
    assert os.listdir(tmp_path / "outside") == []
    assert os.readlink(f"{own}{tmp_path}/outside/link") == "somewhere"


def test_devices_of_a_user_namespace_are_as_they_are_asked_for(oci, bundle):
    bundle.has_user_namespace(first=200_000)
    bundle.linux["devices"] = [
        {"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o644, "uid": 7, "gid": 8},
        {"path": "/dev/sub/pipe", "type": "p", "fileMode": 0o620},
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
    ]
    show = "stat -c '%n %F %t:%T %a %u %g' /dev/mine /dev/sub/pipe /dev/null; head -c 3 /dev/mine | wc -c; ls /dev"
    out = oci.run(bundle.runs(show)).stdout
    assert "/dev/mine character special file 1:5 644 7 8\n" in out
    assert "/dev/sub/pipe fifo 0:0 620 0 0\n" in out
    assert "/dev/null character special file 1:3 666 0 0\n3\n" in out


def test_device_whose_owner_is_nobody_inside_is_refused(oci, bundle):
    bundle.has_user_namespace(size=100)
    bundle.linux["devices"] = [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "uid": 100}]
    bundle.write()
    told = oci.refused("run", "--bundle", bundle.path, ONE)
    assert "linux.devices: /dev/mine: its owner is not mapped in the user namespace" in told


def test_device_that_is_denied_stays_denied_in_a_user_namespace(oci, bundle):
    bundle.has_user_namespace()
    bundle.linux["devices"] = [
        {"path": "/dev/odd", "type": "c", "major": 10, "minor": 1000}
    ]  # no driver has this number
    assert "Operation not permitted" in oci.run(bundle.runs("cat /dev/odd 2>&1; true")).stdout
    bundle.linux["resources"]["devices"].append({"allow": True, "type": "c", "major": 10, "minor": 1000, "access": "r"})
    assert "No such device" in oci.run(bundle.runs("cat /dev/odd 2>&1; true")).stdout

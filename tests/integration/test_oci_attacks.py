"""Attacks that worked on other runtimes, tried on this one."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oci_bundles import ONE, Bundle, as_root, bundle, make_rootfs, oci, rootfs  # noqa: F401 - fixtures

pytestmark = as_root


@pytest.fixture
def own_rootfs(tmp_path, rootfs):
    """A root filesystem that a test may damage."""
    return make_rootfs(tmp_path / "spoilt")


@pytest.fixture
def spoilt(tmp_path, own_rootfs):
    return Bundle(tmp_path / "bundle", own_rootfs)


def test_mount_target_that_is_a_link_stays_inside(oci, spoilt, own_rootfs, tmp_path):
    """CVE-2021-30465, CVE-2019-16884."""
    victim = tmp_path / "victim"
    victim.mkdir()
    for name, link in (("absolute", str(victim)), ("relative", "../" * 20 + str(victim)[1:]), ("proc2", "/proc")):
        (own_rootfs / name).symlink_to(link)
        spoilt.mounts(f"/{name}/made/here", "tmpfs", "tmpfs")
    (own_rootfs / str(victim)[1:]).mkdir(parents=True)
    spoilt.config["mounts"] = [each for each in spoilt.config["mounts"] if not each["destination"].startswith("/proc2")]
    spoilt.runs("grep -c made/here /proc/self/mountinfo")
    assert "2\n" == oci.run(spoilt).stdout
    assert [] == list(victim.iterdir())


def test_device_directory_that_is_a_link_stays_inside(oci, spoilt, own_rootfs, tmp_path):
    """mknod through a /dev that leads out."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (own_rootfs / "dev").rmdir()
    (own_rootfs / "dev").symlink_to(victim)
    spoilt.config["mounts"] = [each for each in spoilt.config["mounts"] if not each["destination"].startswith("/dev")]
    spoilt.write()
    oci("run", "--bundle", spoilt.path, ONE, check=False)
    assert [] == list(victim.iterdir())


def test_masked_path_is_masked_with_the_null_device_of_the_host(oci, spoilt, own_rootfs):
    """CVE-2025-31133: a /dev/null of the image must not be what covers a masked file."""
    (own_rootfs / "secret").write_text("secret")
    (own_rootfs / "evil").write_text("evil")
    spoilt.config["mounts"] = [each for each in spoilt.config["mounts"] if not each["destination"].startswith("/dev")]
    (own_rootfs / "dev/null").symlink_to("/evil")
    spoilt.linux["maskedPaths"] = ["/secret"]
    spoilt.runs("stat -c '%F %t:%T' /secret")
    assert "character special file 1:3\n" == oci.run(spoilt).stdout


def test_masked_path_that_is_a_link_stays_inside(oci, spoilt, own_rootfs, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (own_rootfs / "link").symlink_to(victim)
    spoilt.linux["maskedPaths"] = ["/link"]
    spoilt.linux["readonlyPaths"] = ["/link"]
    oci.run(spoilt)
    assert "untouched" == victim.read_text()


def test_working_directory_cannot_be_a_descriptor_of_the_runtime(oci, spoilt):
    """CVE-2024-21626: /proc/self/fd/N as the working directory."""
    for number in range(3, 24):
        spoilt.process["cwd"] = f"/proc/self/fd/{number}"
        spoilt.runs("ls").write()
        said = oci.refused("run", "--bundle", spoilt.path, ONE)
        assert f"/proc/self/fd/{number}" in said


def test_no_descriptor_of_the_runtime_is_open_inside(oci, bundle):
    assert ["0", "1", "2", "3"] == oci.run(bundle.runs("ls", "/proc/self/fd")).stdout.split()
    oci.start_one(bundle.runs("sleep", "100"))
    pid = oci.state(ONE)["pid"]
    assert {"0", "1", "2"} == set(os.listdir(f"/proc/{pid}/fd"))
    assert ["0", "1", "2", "3"] == oci("exec", ONE, "ls", "/proc/self/fd").stdout.split()


def test_program_of_the_waiting_process_is_no_file_of_the_host(oci, bundle):
    """CVE-2019-5736: the target of /proc/PID/exe before the exec can't be opened for writing."""
    oci.create(bundle)
    pid = oci.state(ONE)["pid"]
    assert os.readlink(f"/proc/{pid}/exe").startswith("/memfd:init")
    with pytest.raises(OSError, match=r"Text file busy|not permitted|denied"):
        os.close(os.open(f"/proc/{pid}/exe", os.O_RDWR))
    image = os.open(f"/proc/{pid}/exe", os.O_RDONLY)
    seals = os.fstat(image).st_mode & 0o777
    os.close(image)
    assert 0o111 == seals


def test_waiting_process_cannot_be_looked_into(oci, bundle, tmp_path):
    """A container that shares the pid namespace watches the creation of the next one."""
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "pid"]
    oci.create(bundle)
    pid = oci.state(ONE)["pid"]
    code = f"import os; os.setgroups([]); os.setgid(1000); os.setuid(1000); print(os.listdir('/proc/{pid}/fd'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Permission denied" in done.stderr


def test_inheritable_capabilities_are_empty_unless_asked_for(oci, bundle):
    """CVE-2022-29162, CVE-2022-27649."""
    told = oci.run(bundle.runs("grep", "-E", "Cap(Inh|Amb)", "/proc/self/status")).stdout
    assert {0} == {int(line.split()[1], 16) for line in told.splitlines()}
    oci.start_one(bundle.runs("sleep", "100"))
    told = oci("exec", "--cap", "CAP_NET_ADMIN", ONE, "grep", "-E", "Cap(Inh|Amb)", "/proc/self/status").stdout
    assert {0} == {int(line.split()[1], 16) for line in told.splitlines()}


def test_labels_and_parameters_do_not_go_to_a_procfs_of_the_image(oci, spoilt, own_rootfs, tmp_path):
    """CVE-2025-52881, CVE-2019-19921: neither is written to a fake /proc."""
    fake = tmp_path / "fake"
    (fake / "sys/net/ipv4").mkdir(parents=True)
    (fake / "sys/net/ipv4/ip_forward").write_text("untouched")
    for mount in spoilt.config["mounts"]:
        if mount["destination"] == "/proc":
            mount.update(type="bind", source=str(fake), options=["bind"])
    spoilt.linux.update(maskedPaths=[], readonlyPaths=[], sysctl={"net.ipv4.ip_forward": "1"})
    oci.run(spoilt)
    assert "untouched" == (fake / "sys/net/ipv4/ip_forward").read_text()


def test_console_is_the_terminal_that_was_made(oci, spoilt, own_rootfs, tmp_path):
    """CVE-2025-52565: a /dev/console or /dev/pts of the image has no effect."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (own_rootfs / "dev/console").symlink_to(victim)
    spoilt.config["mounts"] = [each for each in spoilt.config["mounts"] if each["destination"] != "/dev"]
    spoilt.process["terminal"] = True
    spoilt.runs("stat -c '%F' /dev/console /dev/pts/0")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        spoilt.write()
        oci.quiet("create", "--bundle", spoilt.path, "--console-socket", tmp_path / "console", ONE, check=False)
    assert "untouched" == victim.read_text()
    assert victim.is_file()


def test_mounts_inside_do_not_reach_the_host(oci, bundle, tmp_path):
    outer = tmp_path / "outer"
    outer.mkdir()
    bundle.process["capabilities"]["bounding"] += ["CAP_SYS_ADMIN"]
    bundle.process["capabilities"]["permitted"] += ["CAP_SYS_ADMIN"]
    bundle.process["capabilities"]["effective"] += ["CAP_SYS_ADMIN"]
    bundle.mounts("/m", "bind", str(outer), "rbind")
    bundle.runs("mount -t tmpfs none /m && mount -t tmpfs none /tmp && touch /m/x && echo mounted")
    assert "mounted\n" == oci.run(bundle).stdout
    assert [] == list(outer.iterdir())


def test_root_of_the_runtime_is_closed_to_others(oci, bundle):
    oci.create(bundle)
    assert 0o700 == os.stat(f"{oci.root}/{ONE}").st_mode & 0o777
    for name in ("state.json", "config.json"):
        assert 0o600 == os.stat(f"{oci.root}/{ONE}/{name}").st_mode & 0o777


def test_record_that_names_a_foreign_process_kills_nobody(oci, bundle):
    """A reused pid is recognised by the start time of the process."""
    oci.start_one(bundle)
    oci.wait()
    bystander = subprocess.Popen(["sleep", "100"])
    try:
        path = Path(oci.root) / ONE / "state.json"
        record = json.loads(path.read_text())
        record["pid"] = bystander.pid
        path.write_text(json.dumps(record))
        assert oci.status(ONE) == "stopped"
        assert "container not running" in oci.refused("kill", ONE, "KILL")
        oci("delete", "--force", ONE)
        time.sleep(0.05)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()

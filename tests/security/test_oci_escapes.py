"""Escapes from containers of the OCI command. Each attack is shown to work without the protection."""

# ruff: noqa: F811 - fixtures are used by name

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from oci_bundles import ONE, as_root, rootfs  # noqa: F401 - a fixture
from oci_escapes import group, image_program, oci, own_rootfs, program, spoilt  # noqa: F401 - fixtures

from containerkit.oci import cgroups, console, kernel

pytestmark = as_root


# --- signals and waiting


def test_signal_is_not_sent_to_a_process_that_reused_a_pid(monkeypatch, group):
    """A pid that was read from a group may belong to another process when it is signalled. The test has a control."""
    place = f"/sys/fs/cgroup/pids/{group}"
    if not os.path.isdir(os.path.dirname(place)):
        pytest.skip("no pids controller of version 1")
    os.mkdir(place)
    try:
        with subprocess.Popen(["sleep", "100"]) as stranger, subprocess.Popen(["sleep", "100"]) as member:
            Path(f"{place}/cgroup.procs").write_text(str(member.pid))
            listed = cgroups.processes
            stale = [[stranger.pid, member.pid]]
            monkeypatch.setattr(cgroups, "processes", lambda places: stale.pop() if stale else listed(places))
            cgroups.kill_all([place], signal.SIGTERM)
            assert -signal.SIGTERM == member.wait(5)
            assert stranger.poll() is None
            stranger.kill()
    finally:
        os.rmdir(place)


def test_delete_of_a_busy_group_waits_once_for_all_hierarchies(oci, spoilt, group):
    """A process that can't die, because another of its groups is frozen, is in every group of the container."""
    freezer = f"/sys/fs/cgroup/freezer/{group}-frozen"
    if not os.path.isdir(os.path.dirname(freezer)):
        pytest.skip("no freezer of version 1")
    oci.start_one(spoilt.runs("sleep", "100"))
    places = json.loads((Path(oci.root) / ONE / "state.json").read_text())["groups"]
    assert len(places) > 3
    os.mkdir(freezer)
    with subprocess.Popen(["sleep", "100"]) as stuck:
        try:
            for place in [place for place in places if "/freezer/" not in place] + [freezer]:
                Path(f"{place}/cgroup.procs").write_text(str(stuck.pid))
            Path(f"{freezer}/freezer.state").write_text("FROZEN")
            begun = time.monotonic()
            assert "control groups in use" in oci.refused("delete", "--force", ONE)
            assert time.monotonic() - begun < 15
        finally:
            Path(f"{freezer}/freezer.state").write_text("THAWED")
            stuck.wait(5)
            os.rmdir(freezer)
    oci("delete", "--force", ONE)


def test_groups_nested_without_end_are_removed(oci, spoilt, group):
    """A container may nest its groups deeper than a program can recurse."""
    oci.start_one(spoilt.runs("sleep", "100"))
    place = f"/sys/fs/cgroup/pids/{group}"
    if not os.path.isdir(place):
        pytest.skip("no pids controller of version 1")
    at = os.open(place, os.O_RDONLY)
    for _ in range(1200):  # a path has at most 4096 bytes
        os.mkdir("nested", dir_fd=at)
        below = os.open("nested", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    with subprocess.Popen(["sleep", "100"]) as hidden:
        fd = os.open("cgroup.procs", os.O_WRONLY, dir_fd=at)
        os.write(fd, str(hidden.pid).encode())
        os.close(fd)
        os.close(at)
        assert hidden.pid in cgroups.processes([place])
        oci("delete", "--force", ONE)
        assert -signal.SIGKILL == hidden.wait(5)


# --- what the runtime itself reads in a root


def test_home_is_not_read_from_a_pipe_or_device(oci, spoilt, own_rootfs):
    """A passwd file that is a pipe or a device would be opened by the host's root."""
    (own_rootfs / "etc/passwd").unlink()
    os.mkfifo(own_rootfs / "etc/passwd")
    assert "/root\n" == oci.run(spoilt.runs("echo $HOME")).stdout
    (own_rootfs / "etc/passwd").unlink()
    (own_rootfs / "etc/passwd").symlink_to("/proc/self/root/etc/passwd")
    assert "/root\n" == oci.run(spoilt.runs("echo $HOME")).stdout


def test_tmpfs_with_a_copy_takes_any_depth(oci, spoilt, own_rootfs):
    """Deeper than a program can recurse."""
    (own_rootfs / "deep").mkdir()
    path = "/".join(["d"] * 1500)
    at = os.open(own_rootfs / "deep", os.O_RDONLY)
    for name in path.split("/"):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)
    spoilt.mounts("/deep", "tmpfs", "tmpfs", "tmpcopyup")
    try:
        assert "bottom\n" == oci.run(spoilt.runs(f"cd /deep/{path} && ls")).stdout
    finally:
        subprocess.run(["rm", "-rf", own_rootfs / "deep"], check=True)  # pytest removes recursively


def test_tmpfs_with_a_copy_does_not_open_what_was_swapped_for_a_pipe(tmp_path):
    """A file may become a pipe between the check and the open, but nobody blocks on it."""
    os.mkfifo(tmp_path / "file")
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="Invalid argument"):
            kernel.open_regular(root, b"file", plain=True)
        (tmp_path / "link").symlink_to("/etc/passwd")
        with pytest.raises(OSError, match="symbolic links"):
            kernel.open_regular(root, b"link", plain=True)
    finally:
        os.close(root)


# --- what a waiting process holds

OPEN_AT_THE_GATE = """
from containerkit.oci import creation
creation.strip = lambda tape, kept, telling: None
from containerkit.oci.main import leave, main
leave(main())
"""
"""A runtime whose first process keeps everything open that only the start needed."""

LOOK_IN = """for fd in /proc/1/fd/*; do test -d $fd/self && echo the host has $(ls $fd | grep -c '^[0-9]') processes; done
: >>/tmp/looked"""


def test_waiting_process_reveals_nothing_of_the_host_to_a_tracer(oci, spoilt, own_rootfs):
    """A hook with CAP_SYS_PTRACE inspects PID 1. The control finds the host's procfs there."""
    for which in ("bounding", "effective", "permitted"):
        spoilt.process["capabilities"][which] += ["CAP_SYS_PTRACE"]
    hook = image_program(own_rootfs, "hook", f"({LOOK_IN}) >/tmp/told 2>&1")
    spoilt.config["hooks"] = {"startContainer": [{"path": hook}]}
    oci.run(spoilt)
    assert (own_rootfs / "tmp/looked").exists()
    assert "the host has" not in (own_rootfs / "tmp/told").read_text()
    words = [sys.executable, "-c", OPEN_AT_THE_GATE, "--root", oci.root, "run", "--bundle", str(spoilt.path), ONE]
    subprocess.run(words, env=oci.environment, check=True)
    assert "the host has" in (own_rootfs / "tmp/told").read_text()


def test_waiting_process_has_only_sockets(oci, spoilt):
    oci.create(spoilt)
    place = f"/proc/{oci.state(ONE)['pid']}/fd"
    held = {os.readlink(f"{place}/{number}").partition(":")[0] for number in os.listdir(place) if int(number) > 2}
    assert {"socket"} == held


def test_terminal_is_of_the_containers_devpts_whatever_the_image_has(oci, spoilt, own_rootfs, tmp_path):
    """CVE-2025-52565: a /dev/ptmx from the image, which is another device."""
    spoilt.process["terminal"] = True
    spoilt.config["mounts"] = [each for each in spoilt.config["mounts"] if each["destination"] != "/dev"]
    os.mknod(own_rootfs / "dev/ptmx", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "console"))
        server.listen(1)
        oci.create(spoilt, ONE, "--console-socket", tmp_path / "console")
        with server.accept()[0] as client:
            _, (master,), _, _ = socket.recv_fds(client, 16, 1)
    assert os.makedev(5, 2) == os.fstat(master).st_rdev
    assert console.is_master(master)
    os.close(master)
    with open("/dev/zero") as zero:
        assert not console.is_master(zero.fileno())


def test_terminal_on_another_filesystem_than_devpts_is_refused(oci, spoilt, own_rootfs, tmp_path):
    spoilt.process["terminal"] = True
    spoilt.config["mounts"] = [each for each in spoilt.config["mounts"] if not each["destination"].startswith("/dev")]
    (own_rootfs / "dev/pts").mkdir()
    os.mknod(own_rootfs / "dev/pts/ptmx", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    spoilt.write()
    said = oci.refused("create", "--bundle", spoilt.path, "--console-socket", tmp_path / "none", ONE)
    assert "unlock the terminal: inappropriate ioctl for device" in said

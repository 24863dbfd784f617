"""Hooks of the OCI command: their restrictions, and what the kernel resolves when they are executed."""

# ruff: noqa: F811 - fixtures are used by name

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from examples import examples
from oci_bundles import BUSYBOX, ONE, as_root, rootfs  # noqa: F401 - a fixture
from oci_escapes import group, image_program, loader, needs_runc, oci, own_rootfs, program, spoilt  # noqa: F401 - fixtures

from containerkit.oci.store import start_time

pytestmark = as_root


# --- hooks: restrictions

WHOAMI = """{
id -u; id -g; id -G; pwd; umask; grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/self/cgroup
for kind in mnt pid net ipc uts user cgroup; do readlink /proc/self/ns/$kind; done
env | grep -v -E '^(SHLVL|PWD|OLDPWD|_)=' | sort
} >"""


def confine(bundle):
    """Give a bundle's process the settings that a hook shares: a user, few capabilities, a filter, a directory."""
    bundle.process.update(user={"uid": 1000, "gid": 1001, "additionalGids": [1002], "umask": 0o27}, cwd="/var")
    bundle.process["env"] = ["PATH=/bin", "INSIDE=yes"]
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ERRNO"}],
    }
    return bundle


def test_hook_of_the_image_is_restricted_like_the_containers_program(oci, spoilt, own_rootfs):
    """A startContainer hook is a program of the image, so it must not be root of the host."""
    confine(spoilt)
    hook = image_program(own_rootfs, "hook", f"{WHOAMI}/tmp/hook")
    spoilt.config["hooks"] = {"startContainer": [{"path": hook}]}
    oci.run(spoilt.runs("sh", "-c", f"{WHOAMI}/tmp/program"))
    told = {name: (own_rootfs / "tmp" / name).read_text().splitlines() for name in ("hook", "program")}
    assert told["program"] == told["hook"]
    assert ["1000", "1001", "1001 1002", "/var", "0027"] == told["hook"][:5]
    assert "Seccomp:\t2" in told["hook"]
    assert "NoNewPrivs:\t1" in told["hook"]


@needs_runc
def test_hook_of_the_image_is_restricted_as_by_runc(oci, spoilt, own_rootfs):
    confine(spoilt)
    hook = image_program(own_rootfs, "hook", f"{WHOAMI}/tmp/hook")
    spoilt.config["hooks"] = {"startContainer": [{"path": hook}]}
    spoilt.config["ociVersion"] = "1.0.2"
    told = []
    for call in ([*oci.words, "run"], ["runc", "--root", f"{oci.root}.runc", "run"]):
        subprocess.run([*call, "--bundle", spoilt.write(), ONE], env=oci.environment, check=True)
        text = (own_rootfs / "tmp/hook").read_text()
        told.append([line for line in text.splitlines() if ":[" not in line])  # the namespaces differ each time
        (own_rootfs / "tmp/hook").unlink()
    ours, theirs = told
    assert theirs == ours


def test_hook_of_the_image_cannot_do_what_the_hosts_root_can(oci, spoilt, own_rootfs):
    """With every capability the same hook succeeds, so the capabilities of the process restrict it."""
    attack = (
        "mount -t tmpfs none /mnt && echo mounted >/tmp/told; mknod /tmp/disk b 254 0 && echo made >>/tmp/told; true"
    )
    spoilt.config["hooks"] = {"startContainer": [{"path": image_program(own_rootfs, "hook", attack)}]}
    (own_rootfs / "mnt").mkdir()
    (own_rootfs / "tmp/told").touch()
    oci.run(spoilt)
    assert "" == (own_rootfs / "tmp/told").read_text()
    for which in ("bounding", "effective", "permitted"):
        spoilt.process["capabilities"][which] += ["CAP_SYS_ADMIN", "CAP_MKNOD"]
    oci.run(spoilt)
    assert "mounted\nmade\n" == (own_rootfs / "tmp/told").read_text()


def test_hook_of_the_image_is_counted_with_the_container(oci, spoilt, own_rootfs):
    """A process that a hook leaves behind is in the container's control groups, and ends with it."""
    hook = image_program(own_rootfs, "hook", "sleep 1000 >/dev/null 2>&1 </dev/null &\necho $! >/tmp/left")
    spoilt.config["hooks"] = {"startContainer": [{"path": hook}]}
    spoilt.linux["resources"] = {"pids": {"limit": 32}}
    oci.start_one(spoilt.runs("sleep", "1000"))
    listed = json.loads(oci("ps", "--format", "json", ONE).stdout)
    names = [Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0] for pid in listed]
    assert ["sleep", "sleep"] == names
    oci("delete", "--force", ONE)
    assert [0, 0] == [start_time(pid) for pid in listed]  # gone, or only still to be reaped


def test_hook_of_the_image_that_fails_stops_the_container(oci, spoilt, own_rootfs):
    spoilt.config["hooks"] = {"startContainer": [{"path": image_program(own_rootfs, "hook", "echo because; exit 3")}]}
    oci.create(spoilt.runs("touch", "/tmp/ran"))
    said = oci.refused("start", ONE)
    assert "startContainer hook #0 /hook: exit status 3, output: because" in said
    assert "stopped" == oci.status(ONE)
    assert not (own_rootfs / "tmp/ran").exists()


def test_missing_hook_of_the_image_is_reported(oci, spoilt):
    spoilt.config["hooks"] = {"startContainer": [{"path": "/no/such"}]}
    oci.create(spoilt)
    assert "startContainer hook #0 /no/such: " in oci.refused("start", ONE)
    assert "stopped" == oci.status(ONE)


def test_hook_of_the_image_that_takes_too_long_is_killed(oci, spoilt):
    spoilt.config["hooks"] = {"startContainer": [{"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}]}
    oci.create(spoilt)
    assert "startContainer hook #0 /bin/sleep: timed out" in oci.refused("start", ONE)


@pytest.mark.parametrize("shares_pids", [False, True])
def test_hook_of_the_image_that_hangs_ends_with_a_forced_delete(oci, spoilt, shares_pids):
    """The start that waits for it holds the container's lock."""
    if shares_pids:
        spoilt.linux["namespaces"] = [each for each in spoilt.linux["namespaces"] if each["type"] != "pid"]
    spoilt.config["hooks"] = {"startContainer": [{"path": "/bin/sleep", "args": ["sleep", "1000"]}]}
    oci.create(spoilt)
    start = oci.popen("start", ONE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 10
        while "sleep" not in oci("ps", ONE).stdout:
            assert time.monotonic() < end
        oci("delete", "--force", ONE)
        assert "startContainer hook #0 /bin/sleep: signal 9" in start.communicate(timeout=60)[1]
    finally:
        start.kill()
        start.communicate()


def test_hook_of_the_image_asks_the_agent_of_the_filter(oci, spoilt, own_rootfs, tmp_path):
    """A filter that asks an agent also asks it about hooks. Each hook has its own listener."""
    path = str(tmp_path / "agent")
    spoilt.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": path,
    }
    hook = image_program(own_rootfs, "hook", "grep -q 'Seccomp:.*2' /proc/self/status")
    spoilt.config["hooks"] = {"startContainer": [{"path": hook}]}
    told = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen(2)
        oci.create(spoilt.runs("sleep", "100"))
        oci("start", ONE)
        for _ in range(2):
            with server.accept()[0] as connection:
                message, (listener,), _, _ = socket.recv_fds(connection, 65536, 1)
            assert "seccomp notify" in os.readlink(f"/proc/self/fd/{listener}")
            os.close(listener)
            told.append(json.loads(message))
    assert ["creating", "created"] == [message["state"]["status"] for message in told]
    assert told[0]["pid"] != told[1]["pid"]


def test_hook_before_the_pivot_works_in_the_containers_root(oci, spoilt, own_rootfs, tmp_path):
    """A relative path must not lead to the host's files. Groups and namespaces are those of the container."""
    hook = program(tmp_path / "hook", f"touch written-here; {WHOAMI}{tmp_path}/told")
    spoilt.config["hooks"] = {"createContainer": [{"path": hook}]}
    spoilt.process["env"] = ["PATH=/bin:/usr/bin", "INSIDE=yes"]
    oci.run(spoilt.runs("sh", "-c", f"{WHOAMI}/tmp/told"))
    outer, inner = ((place / "told").read_text().splitlines() for place in (tmp_path, own_rootfs / "tmp"))
    assert str(own_rootfs) == outer[3]
    assert (own_rootfs / "written-here").exists()
    at = next(number for number, line in enumerate(outer) if line.startswith("Seccomp:"))
    assert inner[at + 1 :] == outer[at + 1 :]  # control groups, namespaces, environment


@needs_runc
@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_hooks_of_the_host_have_the_environment_and_directory_that_runc_gives(oci, spoilt, tmp_path, kind):
    body = f"{{ pwd; env | grep -v -E '^(SHLVL|OLDPWD|_|HOME)=' | sort; }} >>{tmp_path}/told"
    spoilt.config["hooks"] = {kind: [{"path": program(tmp_path / "hook", body)}]}
    spoilt.config["ociVersion"] = "1.0.2"
    told = []
    for call in ([*oci.words, "run"], ["runc", "--root", f"{oci.root}.runc", "run"]):
        subprocess.run([*call, "--bundle", spoilt.write(), ONE], env=oci.environment, check=True)
        told.append((tmp_path / "told").read_text())
        (tmp_path / "told").unlink()
    ours, theirs = told
    assert theirs == ours


@pytest.mark.parametrize("env", [[], ["A=b"]])
@pytest.mark.parametrize("kind", ["prestart", "createContainer", "startContainer", "poststart", "poststop"])
def test_hook_has_the_environment_that_is_written_even_an_empty_one(oci, spoilt, kind, env):
    path = "/bin/busybox" if kind == "startContainer" else BUSYBOX
    hook = {"path": path, "args": ["cat", "/proc/self/environ", "/missing"], "env": env}
    spoilt.config["hooks"] = {kind: [hook]}
    said = oci.run(spoilt, check=False).stderr
    environment = "A=b\0" if env else ""
    assert f"output: {environment}cat: can't open '/missing'" in said


def test_hooks_inherit_no_descriptor(oci, spoilt, own_rootfs, tmp_path):
    """Not even a descriptor that the caller passes to the container's program."""
    body = "ls /proc/self/fd >"
    spoilt.config["hooks"] = {
        "prestart": [{"path": program(tmp_path / "first", f"{body}{tmp_path}/prestart")}],
        "createContainer": [{"path": program(tmp_path / "second", f"{body}{tmp_path}/createContainer")}],
        "startContainer": [{"path": image_program(own_rootfs, "hook", f"{body}/tmp/told")}],
    }
    words = [*oci.words, "run", "--preserve-fds", "1", "--bundle", str(spoilt.write()), ONE]
    subprocess.run(["sh", "-c", 'exec "$@" 3</etc/hostname', "sh", *words], env=oci.environment, check=True)
    for told in (tmp_path / "prestart", tmp_path / "createContainer", own_rootfs / "tmp/told"):
        assert ["0", "1", "2", "3"] == told.read_text().split()  # 3 is what ls reads


# --- hooks: what the kernel resolves when they are executed

OLD_EXEC = """
import os, sys
from containerkit._native import constants as k
from containerkit.oci import kernel
from containerkit.oci.tape import ARGV, ENVP, Tape
pid, flags = int(sys.argv[1]), int(sys.argv[2])
tape = Tape()
tape.call("setns", os.pidfd_open(pid), flags)
cloned = tape.step(k.STEP_CLONE, "clone", k.CLONE_PARENT, 0, 0, 0, 0, 0, result=tape.slot("pid"))
tape.step(k.STEP_RELEASE, "release")
tape.step(k.STEP_LEAVE, "leave")
tape.aim_here(cloned)
tape.step(k.STEP_AWAIT, "await_release")
tape.call("execve", b"/hook", ARGV, ENVP)
pid, pidfd, _ = kernel.spawn(tape, [b"/hook"])
os.waitid(os.P_PIDFD, pidfd, os.WEXITED | k.WALL)
"""
"""Run /hook from the interpreter's own memory, as hooks were run in the past."""


def test_hook_whose_interpreter_is_the_image_that_executes_it_does_not_reach_python(oci, spoilt, own_rootfs):
    """CVE-2019-5736: ``#!/proc/self/exe``, which runs with a loader from the image.

    The control executes the same hook from Python's memory: the image's loader gets the host's interpreter.
    """
    place = own_rootfs / loader().lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(BUSYBOX, place)
    (own_rootfs / "hook").write_text("#!/proc/self/exe\n")
    (own_rootfs / "hook").chmod(0o755)
    oci.create(spoilt)
    pid = oci.state(ONE)["pid"]
    flags = 0x20000000 | 0x00020000  # CLONE_NEWPID | CLONE_NEWNS
    words = [sys.executable, "-c", OLD_EXEC, str(pid), str(flags)]
    control = subprocess.run(words, env=oci.environment, capture_output=True, text=True)
    assert "exe: applet not found" in control.stderr  # busybox, as the loader of the host's Python
    oci("delete", "--force", ONE)
    spoilt.config["hooks"] = {"startContainer": [{"path": "/hook", "timeout": 2}]}
    oci.create(spoilt)
    said = oci.refused("start", ONE)
    assert "applet not found" not in said
    assert "the sealed init of a container is not an interpreter" in said


def reaching(own_rootfs, tmp_path, number):
    """Make the image's /reach a script whose interpreter is a host's program, by descriptor ``number`` of the host's /proc."""
    shutil.copy(BUSYBOX, tmp_path / "busybox")
    (own_rootfs / "reach").write_text(f"#!/proc/self/fd/{number}/{os.getpid()}/root{tmp_path}/busybox echo\n")
    (own_rootfs / "reach").chmod(0o755)


@pytest.mark.parametrize("way", ["run", "exec", "hook"])
def test_interpreter_by_a_descriptor_of_the_runtime_is_out_of_reach(oci, spoilt, own_rootfs, tmp_path, way):
    """The kernel opens a script's interpreter before it closes descriptors on exec.

    The control deliberately passes on the host's /proc: the host's program runs in the container.
    """
    for which in ("bounding", "effective", "permitted"):
        spoilt.process["capabilities"][which] += ["CAP_SYS_PTRACE"]  # needed for /proc/PID/root
    if way == "hook":
        spoilt.config["hooks"] = {"startContainer": [{"path": "/reach"}]}
    if way == "exec":
        oci.start_one(spoilt.runs("sleep", "1000"))
    spoilt.runs("true" if way == "hook" else "/reach").write()
    words = {
        "run": ["run", "--bundle", str(spoilt.path), ONE],
        "exec": ["exec", ONE, "/reach"],
        "hook": ["run", "--bundle", str(spoilt.path), ONE],
    }[way]
    for number in range(3, examples(ci=26, nightly=40)):  # such a process has fewer descriptors
        reaching(own_rootfs, tmp_path, number)
        done = oci(*words, check=False)
        assert 0 != done.returncode
    if way != "hook":
        reaching(own_rootfs, tmp_path, 3)
        words = ["sh", "-c", 'exec "$@" 3</proc', "sh", *oci.words, words[0], "--preserve-fds", "1", *words[1:]]
        control = subprocess.run(words, env=oci.environment, capture_output=True, text=True)
        assert "/reach\n" == control.stdout, control.stderr

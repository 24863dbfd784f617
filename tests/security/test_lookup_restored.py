"""The attempts of test_lookup.py in restored containers, and the descriptors of the processes around a checkpoint."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import lookup_restored_child
import pytest
from lookup_child import SHOWN
from oci_bundles import BUSYBOX, needs_busybox
from test_lookup import MARK, at_the_exec, compiled_victim, filled_root, needs_strace, open_directory, programs

import containerkit
from containerkit import Container, RootFS
from containerkit.checkpoint.guard import Guard

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="CRIU takes root")

CRIU = os.environ.get("CONTAINERKIT_CRIU", "")
needs_criu = pytest.mark.skipif(
    not CRIU,
    reason="CONTAINERKIT_CRIU names no criu of version 4: Debian 12's 3.17 fails on the vDSO of newer kernels",
)
HOLDS = "exec 7</own/file 8<>/own/pipe 9>/own/written; echo there >/own/ready; while true; do sleep 0.05; done"


@pytest.fixture(scope="module")
def root():
    needs_busybox()
    with open_directory() as directory:
        (directory / "root/bin").mkdir(parents=True)
        victim = compiled_victim(directory)
        filled_root(directory / "root", victim)
        for name in ("busybox", "sh", "sleep", "mkfifo"):
            shutil.copy(BUSYBOX, directory / "root/bin" / name)
        shutil.copy(victim, directory / "root/quick")
        (directory / "root/own").mkdir()
        (directory / "root/own/file").write_text("of the image\n")
        os.mkfifo(directory / "root/own/pipe")
        yield directory / "root"


@pytest.fixture(scope="module")
def images(root, tmp_path_factory):
    """Make a checkpoint of a container whose process has its own descriptors. Return it with all descriptors inside."""
    place = tmp_path_factory.mktemp("restored") / "images"
    with Container(RootFS.dir(root), mounts=SHOWN) as c:
        c.run(["/bin/sh", "-c", f"({HOLDS}) </dev/null >/dev/null 2>&1 &"], check=True)
        eventually((root / "own/ready").exists)
        before = by_program(c)
        c.checkpoint(place, criu=CRIU)
    return place, before


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def held(pid):
    """Return the open files of a process by descriptor, without inode numbers."""
    found = {}
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[int(number)] = re.sub(r"\d+", "N", os.readlink(f"/proc/{pid}/fd/{number}"))
    return found


def by_program(container):
    """Return the open files of a container's processes, except those that end immediately."""
    found = {}
    for pid in container.members():
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text().strip()
            if name != "sleep":
                found[name] = held(pid)
    return found


# --- Restored processes


@needs_criu
def test_restored_processes_have_their_previous_descriptors(images):
    place, before = images
    assert {"init", "sh"} == set(before)
    assert {7, 8, 9} <= set(before["sh"])  # the control: more than the standard streams is seen
    with Container.restore(place, criu=CRIU) as c:
        after = by_program(c)
    assert before["sh"] == after["sh"]
    # Both ends of the pipe that took the place of the owner's pidfd before the checkpoint are pidfds now.
    assert {0: "anon_inode:[signalfd]", 3: "anon_inode:[pidfd]"} == before["init"]
    assert {**before["init"], 4: "anon_inode:[pidfd]"} == after["init"]


# --- Commands in restored containers


@contextlib.contextmanager
def caller(place, how, *names):
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(containerkit.__file__))}
    words = [sys.executable, lookup_restored_child.__file__, str(place), CRIU, how, *names]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, env=environment, text=True, **pipes) as process:
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(60)


@needs_criu
def test_no_resource_of_the_caller_can_be_executed_in_a_restored_container(images, root):
    names = [*programs(root), "/quick"]
    with caller(images[0], "alone", *names) as (process, _):
        process.stdin.write("go\n")
        process.stdin.flush()
        found = dict(process.stdout.readline().strip().split(" ", 1) for _ in names)
    assert f"status 0 {MARK}" == found.pop("/quick")  # the control: a program of the container's own is started
    assert {} == {name: told for name, told in found.items() if MARK in told or "status 0" in told}


def scan(place, how):
    """Attach strace(1) after the restore, because CRIU itself traces the processes that it restores."""
    with caller(place, how, "/quick") as (process, init):
        space = os.stat(f"/proc/{init}/ns/pid").st_ino

        def is_inside(pid, _):
            return os.stat(f"/proc/{pid}/ns/pid_for_children").st_ino == space

        delay = ["-e", "trace=execve", "-e", "inject=execve:delay_enter=300000"]
        strace = ["strace", "-f", "-q", "-o", "/dev/null", *delay, "-p", str(process.pid), "-p", init]
        with subprocess.Popen(strace) as tracer:
            eventually(lambda: all(is_traced(pid) for pid in (process.pid, init)))
            process.stdin.write("go\n")
            process.stdin.flush()
            found = at_the_exec(process, is_inside)
            tracer.send_signal(signal.SIGINT)
    return found


def is_traced(pid):
    return "\nTracerPid:\t0\n" not in Path(f"/proc/{pid}/status").read_text()


@needs_criu
@needs_strace
def test_command_in_a_restored_container_has_only_its_own_descriptors(images):
    assert {"0", "1", "2"} == scan(images[0], "alone")


@needs_criu
@needs_strace
def test_command_in_a_restored_container_has_passed_descriptors(images):
    """Check that a passed descriptor is seen, as the control."""
    found = scan(images[0], "passing")
    assert {"0", "1", "2"} < found
    assert 4 == len(found)


# --- The guard of an owner


@pytest.fixture
def inherited():
    """A descriptor that is not close-on-exec, so that every program inherits it."""
    fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    os.set_inheritable(fd, True)
    yield fd
    os.close(fd)


@pytest.fixture
def guard(inherited):
    with Container() as c:
        pidfd = os.pidfd_open(c.pid)
        made = Guard()
        try:
            made.watch(pidfd)
            yield made._pids[0]
        finally:
            made.close()
            os.close(pidfd)


def test_guard_has_only_two_pidfds(guard, inherited):
    eventually(lambda: Path(f"/proc/{guard}/comm").read_text() == "guard\n" and len(held(guard)) == 2)
    assert {3: "anon_inode:[pidfd]", 4: "anon_inode:[pidfd]"} == held(guard)
    assert b"" == Path(f"/proc/{guard}/environ").read_bytes()
    assert "memfd:init" in os.readlink(f"/proc/{guard}/exe")
    assert {str(os.getpid())} < {number_of(guard, fd) for fd in (3, 4)}


def test_plain_start_inherits_descriptors(inherited):
    """The control."""
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    try:
        eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        assert "/" == held(pid)[inherited]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def number_of(pid, fd):
    """Return the pid of the process of a pidfd. Source: pidfd_open(2)."""
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("Pid:"))

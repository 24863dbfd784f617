"""Processes with a known resource usage, and the check that a test leaves nothing on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import containerkit
from containerkit import Container, RootFS
from containerkit._linux.cgroupfs import read_hierarchies

READY = "import sys; sys.stdin.readline()\n"
SPIN = READY + "while True: pass\n"
SLEEP = READY + "import time; time.sleep(60)\n"

_RELEASE = tuple(int(word) for word in os.uname().release.split("-")[0].split(".")[:2])
MAPS_IDS = _RELEASE >= (6, 3)
"""Whether this kernel can id-map the root file system. Older kernels can't id-map an overlay, as in the guest."""


def container(**fields):
    """Return a container that this kernel can start."""
    return Container(RootFS.host(idmap=MAPS_IDS), **fields)


def run(argv, **fields):
    """Run a command in a container that this kernel can start."""
    return containerkit.run(argv, rootfs=RootFS.host(idmap=MAPS_IDS), **fields)


def version(controller):
    """Return the cgroup version of a controller here, 0 for none."""
    hierarchies = read_hierarchies()
    if any(controller in hierarchy.controllers for hierarchy in hierarchies):
        return 1
    for hierarchy in hierarchies:
        if hierarchy.version == 2:
            there = (Path(hierarchy.mountpoint) / "cgroup.controllers").read_text().split()
            if controller in there or controller in {"freezer", "perf_event", "devices"}:
                return 2
    return 0


@contextmanager
def python(group, script, *, go=True):
    """Run a Python script in a group. It first waits for a line. Kill it at the end."""
    with subprocess.Popen(
        [sys.executable, "-SE", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            group.add(process.pid)
            if go:
                process.stdin.write("\n")
                process.stdin.flush()
            yield process
        finally:
            process.kill()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def groups():
    """Return every group of this project on the machine."""
    found = []
    for hierarchy in read_hierarchies():
        for path, names, _ in os.walk(hierarchy.mountpoint):
            found += [f"{path}/{name}" for name in names if name.startswith("containerkit.")]
    return found


def own_groups():
    """Return the groups of this process only, because other processes of the machine may have groups."""
    return [path for path in groups() if f"/containerkit.{os.getpid()}." in path]


def fds():
    return sorted(os.listdir("/proc/self/fd"))


def eventually(condition, timeout_s=30.0):
    """Wait until a condition holds, and return whether it does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.01)
    return condition()

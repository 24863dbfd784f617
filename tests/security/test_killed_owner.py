"""An owner that is killed at the last moment before its new command can request to die with it."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import containerkit

MAKE = """
import sys
from containerkit import run
from containerkit.plan import calls
from containerkit.sandbox import Sandbox
from containerkit.security.landlock import Landlock
if sys.argv[2] == "unguarded":
    guarded = calls.die_with_owner
    calls.die_with_owner = lambda owner: guarded(owner)[:1]
if sys.argv[1] == "run":
    run(["sleep", sys.argv[3]], init=False)
else:
    Sandbox(landlock=Landlock().allow_read("/").allow_execute("/")).run(["/bin/sleep", sys.argv[3]])
"""
SECONDS = itertools.count(100_000 + 100 * os.getpid())  # no other run of the tests has these


def processes_of(seconds):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().split(b"\0")[:2][1:] == [b"%d" % seconds]:
                found.append(int(pid))
    return found


def outlives_its_owner(way, guard):
    """Kill the owner when its command is about to request its death signal. Return whether the command lives on."""
    seconds = next(SECONDS)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(containerkit.__file__))}
    # The only call that the command makes between reading its working directory and that request, in both variants.
    strace = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=umask", "-e", "inject=umask:delay_exit=700000"]
    command = [*strace, sys.executable, "-c", MAKE, way, guard, str(seconds)]
    with subprocess.Popen(command, env=environment, start_new_session=True) as tracer:
        try:
            os.kill(met_on_its_way(tracer.pid), signal.SIGKILL)
            time.sleep(2)
            until = time.monotonic() + (30 if guard == "guarded" else 0)  # it may be held up on its way
            while (left := processes_of(seconds)) and time.monotonic() < until:
                time.sleep(0.05)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        finally:
            tracer.kill()
    return bool(left)


def met_on_its_way(tracer):
    """Return the owner when its command has stopped at that call: exec'd, and stopped by the tracer."""
    deadline = time.monotonic() + 20
    owner = None
    while time.monotonic() < deadline:
        time.sleep(0.01)
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                if parent == str(tracer):
                    owner = int(pid)
                elif parent == str(owner) and state == "t" and "python" not in name:
                    return owner
    raise AssertionError("the command was not met on its way")


needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="no strace: apt-get install strace")


@needs_strace
@pytest.mark.parametrize("way", ["run", "sandbox"])
def test_command_does_not_outlive_an_owner_killed_before_the_death_signal_was_set(way):
    assert not outlives_its_owner(way, "guarded")


@needs_strace
@pytest.mark.parametrize("way", ["run", "sandbox"])
def test_command_outlives_its_owner_without_the_second_check(way):
    assert outlives_its_owner(way, "unguarded")

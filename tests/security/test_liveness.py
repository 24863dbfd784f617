"""Attempts from inside to block the caller."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from containerkit import PIPE, Container, ContainerTimeout, SetupError

pytestmark = [pytest.mark.usefixtures("interpreter", "nothing_left")]

STOPPER = """
import os, signal, time
began = time.monotonic()
own, has_stopped = os.getpid(), False
print("ready", flush=True)
while time.monotonic() < began + (4 if has_stopped else 20):  # on a busy machine it takes longer to meet one
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) not in (1, own):
            try:
                os.kill(int(pid), signal.SIGSTOP)
                with open(f"/proc/{pid}/stat") as file:
                    state = file.read().rpartition(")")[2].split()[0]
            except OSError: continue
            if state == "T":
                has_stopped = True
                time.sleep(0.001)  # while that one is stopped, there is none to hurry for
"""


def test_processes_stopped_while_joining_do_not_block_the_caller():
    """SIGSTOP can't be blocked, and root inside may send it to a process that joins.

    A process that ``run`` starts is cloned into the pid namespace by the caller itself. Each way waits for 20 s, so the
    two wait at the same time, in two threads.
    """
    with ThreadPoolExecutor(2) as threads:
        for waiting in [
            threads.submit(popen_while_processes_are_stopped),
            threads.submit(run_while_processes_are_stopped),
        ]:
            waiting.result()


def popen_while_processes_are_stopped():
    with Container() as container:
        with container.popen(["python3", "-c", STOPPER], stdout=PIPE, text=True) as stopper:
            stopper.stdout.readline()
            began = time.monotonic()
            outcomes = []
            while stopper.poll() is None and time.monotonic() - began < 30:
                try:
                    process = container.popen(["true"])
                    process.kill()
                    outcomes.append(process.wait(timeout=5))
                except SetupError as error:
                    outcomes.append(error.strerror)
        assert time.monotonic() - began < 30
        assert outcomes
        assert 0 == container.run(["true"], timeout=30).returncode


def run_while_processes_are_stopped():
    with Container() as container:
        with container.popen(["python3", "-c", STOPPER], stdout=PIPE, text=True) as stopper:
            stopper.stdout.readline()
            longest, stopped = 0.0, 0
            while stopper.poll() is None:
                began = time.monotonic()
                try:
                    container.run(["sleep", "0.01"], timeout=0.2)  # long enough to be met at least after its exec
                except (ContainerTimeout, SetupError):
                    stopped += 1
                longest = max(longest, time.monotonic() - began)
        assert longest < 30
        assert stopped > 0
        assert 0 == container.run(["true"], timeout=30).returncode


def test_stop_does_not_wait_for_stopped_processes():
    container = Container().start()
    process = container.popen(["sleep", "100"])
    process.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    container.stop()
    assert time.monotonic() - began < 20

"""Run as PID 1 of a new pid namespace, where the next pid can be chosen, to check whom the library's signals hit.

It prints one line of JSON: for each attempt, whether a bystander that reuses the pid of an ended process is alive.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

from containerkit import Container, ContainerTimeout, Landlock, Sandbox
from containerkit._linux import procfs
from containerkit.process import kill_tree as kill

CHILDREN = "sleep 60 & sleep 60 & echo ready; wait"


def next_pid(number):
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(number - 1))


class Bystander:
    """A process with a chosen pid, leader of a session in which two more run."""

    def __init__(self, number):
        for _ in range(50):
            next_pid(number)
            self.process = subprocess.Popen(
                ["sh", "-c", CHILDREN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
            )
            if self.process.pid == number:
                break
            self.end()
        assert self.process.pid == number, f"{self.process.pid} where {number} was wanted"
        self.process.stdout.readline()
        self.children = procfs.children(number)
        assert len(self.children) == 2

    def untouched(self):
        """Return whether it and its children still run: neither ended nor stopped."""
        time.sleep(0.05)
        states = []
        for pid in (self.process.pid, *self.children):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
                states.append(file.read().rpartition(")")[2].split()[0])
        return len(states) == 3 and not set(states) & set("TZX")

    def end(self):
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        for pid in getattr(self, "children", ()):  # they are now children of PID 1, and occupy their session id
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def attempt(number, *deeds):
    """Act on the former owner of a pid that is reused. Return whether the new owner was left alone."""
    bystander = Bystander(number)
    try:
        for deed in deeds:
            with contextlib.suppress(Exception):
                deed()
        return bystander.untouched()
    finally:
        bystander.end()


def signals(process):
    return process.kill, process.terminate, lambda: process.send_signal(signal.SIGSTOP)


def reaped_by_another(process):
    """Kill and reap it without the library, as an embedding program does that waits for any child."""
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


def timed_out(process):
    with contextlib.suppress(ContainerTimeout):
        process.communicate(timeout=0)


def main():
    found = {}
    with Container() as container:
        process = container.popen(["true"])
        process.wait()
        found["signals to one that was waited for"] = attempt(process.pid, *signals(process), process.close)

        process = container.popen(["sleep", "60"])
        reaped_by_another(process)
        found["signals to one that another has reaped"] = attempt(process.pid, *signals(process), process.close)

        process = container.popen(["sleep", "60"], stdout=subprocess.PIPE)
        reaped_by_another(process)
        found["timeout of one that another has reaped"] = attempt(process.pid, lambda: timed_out(process))

        process = container.popen(["sleep", "60"])
        reaped_by_another(process)
        found["its tree by its number"] = attempt(
            process.pid, lambda: kill.kill_tree(process.pid, process._pidfd), process.close
        )

    process = Sandbox(landlock=Landlock().allow_execute("/")).popen(["sleep", "60"])
    reaped_by_another(process)
    found["close of one in a sandbox"] = attempt(process.pid, *signals(process), process.close)

    container = Container().start()
    number = container.pid
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    found["stop of a container whose PID 1 another has reaped"] = attempt(number, container.stop)

    container = Container().start()
    number = container.pid
    container.stop()
    found["second stop"] = attempt(number, container.stop)

    found["the control: by number"] = attempt(number, lambda: os.kill(number, signal.SIGKILL))
    bystander_of = os.pidfd_open(os.getpid())  # a pidfd of a live process, as if nobody had checked it
    found["the control: a tree by its number alone"] = attempt(number, lambda: kill.kill_tree(number, bystander_of))
    os.close(bystander_of)
    print(json.dumps(found))


sys.exit(main())

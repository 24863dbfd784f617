"""kill -9 of the program that created the containers: all of them are dead within 100 ms."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from containerkit import Container
from containerkit.checkpoint.guard import finish_checkpoint, replace_owner

pytestmark = pytest.mark.usefixtures("nothing_left")

PATIENCE_S = 0.1

SCENES = {
    "one shot": """
def work():
    c.run(["sh", "-c", "sleep 7001 & setsid sleep 7001 & exec sleep 7001"])
threading.Thread(target=work, daemon=True).start()
count = 4
""",
    "one shot without init": """
def work():
    c.run(["sh", "-c", "sleep 7002 & exec sleep 7002"], init=False)
threading.Thread(target=work, daemon=True).start()
count = 2
""",
    "container with processes": """
box = c.Container().start()
for _ in range(5):
    box.popen(["sh", "-c", "trap '' TERM HUP INT; setsid sleep 7003 & exec sleep 7003"])
count = 11
""",
    "several containers": """
boxes = [c.Container().start() for _ in range(10)]
for box in boxes:
    box.popen(["sleep", "7004"])
count = 20
""",
    "started by a thread that has ended": """
def work():
    global box
    box = c.Container().start()
    box.popen(["sleep", "7005"])
thread = threading.Thread(target=work)
thread.start()
thread.join()
time.sleep(0.5)  # now only the container is left, not its start
assert box.run(["true"]).returncode == 0
count = 2
""",
    "with a terminal": """
box = c.Container().start()
p = box.popen(["sh", "-c", "trap '' HUP; sleep 7006"], pty=True)
count = 3
""",
    "a stopped process": """
box = c.Container().start()
p = box.popen(["sleep", "7007"])
p.send_signal(signal.SIGSTOP)
count = 2
""",
}

PROGRAM = """
import os, signal, sys, threading, time
import containerkit as c
{scene}
def tree(pid):
    found = []
    for task in os.listdir(f"/proc/{{pid}}/task"):
        for child in open(f"/proc/{{pid}}/task/{{task}}/children").read().split():
            found += [int(child), *tree(int(child))]
    return found
deadline = time.monotonic() + 20
while len(tree(os.getpid())) < count and time.monotonic() < deadline:
    time.sleep(0.01)
time.sleep(0.5)  # now only the container is left, not its start
print(*tree(os.getpid()), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("interpreter_name", ["compiled", "reference"])
@pytest.mark.parametrize("scene", SCENES)
def test_owner_killed_and_everything_dead(scene, interpreter_name, is_alive):
    program = PROGRAM.format(scene=SCENES[scene])
    env = {**os.environ, "CONTAINERKIT_INTERPRETER": interpreter_name}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=env) as owner:
        pids = [int(word) for word in owner.stdout.readline().split()]
        assert len(pids) >= 2
        assert all(map(is_alive, pids))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        began = time.monotonic()
        while alive := [pid for pid in pids if is_alive(pid)]:
            assert time.monotonic() - began < PATIENCE_S, alive
            time.sleep(0.002)


def test_owner_killed_in_the_midst_of_a_start(is_alive):
    """At any moment: in Python, in the clone, while the child mounts."""
    program = (
        "import os, containerkit as c\n"
        "print(flush=True)\n"
        "while True:\n"
        "    with c.Container() as box: box.popen(['sleep', '7010'])\n"
    )
    for number in range(25):
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
            owner.stdout.readline()
            time.sleep(0.04 + number * 0.0017)
            owner.kill()
    time.sleep(PATIENCE_S)
    alive = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"sleep\x007010" in file.read() and is_alive(pid):
                    alive.append(pid)
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert [] == alive


def test_owner_that_execs_another_program_ends_nothing_by_accident(is_alive):
    """The container belongs to the process, not to the thread: it lives until the process ends."""
    program = (
        "import os, sys, containerkit as c\n"
        "box = c.Container().start()\n"
        "print(box.pid, flush=True)\n"
        "os.execvp('sleep', ['sleep', '60'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as owner:
        pid = int(owner.stdout.readline())
        time.sleep(0.2)
        assert is_alive(pid)
        owner.kill()
        owner.wait()
        began = time.monotonic()
        while is_alive(pid):
            assert time.monotonic() - began < PATIENCE_S


def test_init_that_lets_go_of_its_owner_lives_on():
    """As before a checkpoint: it continues in a copy of its program, with a pipe in place of its owner's pidfd."""
    with Container() as c:
        pidfd = os.pidfd_open(c.pid)
        try:
            link = replace_owner(c.pid, pidfd)
            assert link.startswith("pipe:")
            maps = Path(f"/proc/{c.pid}/maps").read_text()
            assert "memfd:init" not in maps
            finish_checkpoint(pidfd)
            assert "out\n" == c.run(["echo", "out"], text=True).stdout
        finally:
            os.close(pidfd)

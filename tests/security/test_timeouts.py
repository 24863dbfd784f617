"""A timeout expires in time, even if the command tries to delay it."""

import os
import time
from functools import partial

import pytest

from containerkit import PIPE, Container, ContainerTimeout, Limits, run
from containerkit.process import kill_tree

pytestmark = [pytest.mark.usefixtures("groups_found", "nothing_left")]

TIMEOUT_S = 0.5
LATE_S = 20.0

FORK = "import os\nwhile True:\n try: os.fork()\n except OSError: pass"
FORK_AND_LEAVE = "import os\nwhile True:\n try:\n  if os.fork() == 0: os.setsid()\n except OSError: pass"
FILES = "import os\nos.chdir('/tmp')\ni = 0\nwhile True:\n open(str(i), 'w').close()\n i += 1"
FLOOD = "import os, time\nwhile True:\n os.write(1, bytes(65536)); os.write(2, bytes(65536)); time.sleep(0.001)"
DEAF = "trap '' TERM INT HUP QUIT PIPE; echo deaf; while :; do sleep 1; done"
DAEMONS = (
    "for i in 1 2 3 4; do setsid sh -c 'while echo held; do sleep 0.01; done' & setsid sleep 100 & done; sleep 100"
)
STOPPED = "kill -STOP $$; sleep 100"
ORPHANS = "while :; do (setsid sleep 100 &); sleep 0.01; done"

LATECOMERS = {
    "inode flood": (["python3", "-c", FILES], {}),
    "fork bomb in a group": (["python3", "-c", FORK], {"limits": Limits(pids=200)}),
    "fork bomb that leaves its session": (["python3", "-c", FORK_AND_LEAVE], {"limits": Limits(pids=200)}),
    "output flood": (["python3", "-c", FLOOD], {}),
    "deaf to signals": (["sh", "-c", DEAF], {}),
    "daemons hold the pipes": (["sh", "-c", DAEMONS], {}),
    "stops itself": (["sh", "-c", STOPPED], {}),
    "leaves orphans": (["sh", "-c", ORPHANS], {}),
}


@pytest.fixture(scope="module")
def groups_found():
    """Find the place for control groups in advance, because a process does it only once."""
    if os.geteuid() == 0:
        run(["true"], limits=Limits(pids=20))


def latecomer(name):
    argv, options = LATECOMERS[name]
    if options and os.geteuid() != 0:
        pytest.skip("limits: root")
    return argv, options


def spent_s(do):
    began = time.monotonic()
    with pytest.raises(ContainerTimeout):
        do()
    return time.monotonic() - began


@pytest.mark.parametrize("name", LATECOMERS)
def test_run_returns_in_time(name):
    argv, options = latecomer(name)
    assert TIMEOUT_S <= spent_s(lambda: run(argv, timeout=TIMEOUT_S, **options)) < TIMEOUT_S + LATE_S


@pytest.mark.parametrize("name", LATECOMERS)
def test_command_in_a_container_returns_in_time(name):
    argv, options = latecomer(name)
    for own_group in (True, False) if options else (True,):
        with Container(**options) as container:
            spent = spent_s(partial(container.run, argv, timeout=TIMEOUT_S, own_group=own_group))
            # With 200 processes that never sleep, the kernel takes long to end one. A group of its own is killed as a whole.
            assert TIMEOUT_S <= spent < TIMEOUT_S + (LATE_S if own_group else 60)
            began = time.monotonic()
        assert time.monotonic() - began < 20, "and its end"


@pytest.mark.slow
@pytest.mark.several_ids
def test_fork_bomb_without_a_group_does_not_delay_a_timeout(monkeypatch):
    """Searching for processes outside its session takes long while they use the processors, so it is aborted.

    How long the kernel then takes to end one among hundreds that never sleep is not tested.
    """
    spans = []
    kill = kill_tree.kill_tree

    def timed(*args):
        began = time.monotonic()
        kill(*args)
        spans.append(time.monotonic() - began)

    monkeypatch.setattr(kill_tree, "kill_tree", timed)
    with Container() as container:
        rlimits = {"NPROC": (300, 300)}
        argv = ["python3", "-c", FORK_AND_LEAVE]
        assert spent_s(lambda: container.run(argv, timeout=TIMEOUT_S, rlimits=rlimits, user="1000:1000")) < 60
    assert max(spans) < 10


def test_command_without_a_timeout_is_waited_for():
    """The control: without a timeout the wait continues."""
    with Container() as container, container.popen(["sh", "-c", DEAF], stdout=PIPE) as process:
        assert b"deaf\n" == process.stdout.readline()
        process.terminate()
        with pytest.raises(ContainerTimeout):
            process.wait(TIMEOUT_S)
        process.kill()

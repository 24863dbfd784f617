"""Attempts of a container to outlive its keeper's orders, and of others to hold the keeper up."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from detached_samples import Kept
from waiting import wait_for

from containerkit.detached.container import find
from containerkit.errors import StateError

STEALS = """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
stolen = os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)
end = time.monotonic() + 2
while time.monotonic() < end:
    os.write(1, b"x")
    try:
        os.read(stolen, 1)
    except BlockingIOError:
        pass
time.sleep(100)
"""
"""Reads its own output after the keeper was told that there is some."""


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


def test_a_container_that_reads_its_own_output_does_not_hold_its_keeper_up(kept):
    one = kept.make("/usr/bin/python3", "-c", STEALS)
    time.sleep(2.2)
    start = time.monotonic()
    one.stop(0)
    assert (one.status, one.exit_code) == ("exited", -9)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("verb", ["stop", "kill", "remove"])
def test_a_stopped_keeper_takes_notice_that_it_shall_end(kept, verb):
    one = kept.make("sleep", "100", name=f"held{os.getpid()}")
    os.kill(one.keeper, signal.SIGSTOP)
    {"stop": lambda: one.stop(0), "kill": one.kill, "remove": lambda: one.remove(force=True)}[verb]()
    if verb == "remove":
        with pytest.raises(StateError, match="no such container"):
            find(f"held{os.getpid()}")
    else:
        assert one.status == "exited"


def test_a_process_with_the_pid_of_a_former_keeper_is_not_signalled(kept):
    one = kept.make("sleep", "100")
    stranger = subprocess.Popen(["sleep", "100"])
    try:
        keeper, run = one.keeper, {name: value for name, value in one.last_run.items() if name != "version"}
        one.entry.write("run.json", {**run, "keeper": stranger.pid})
        assert not one._end_keeper(stranger.pid)
        assert stranger.poll() is None
        one.entry.write("run.json", {**run, "keeper": keeper})
        one.stop(0)
    finally:
        stranger.kill()
        stranger.wait()


def test_names_and_labels_can_not_control_the_terminal(kept, tmp_path):
    evil = "\x1b]0;taken\x07\x1b[2J\nsecond"
    one = kept.make("sleep", "100", labels={"evil": evil})
    words = [
        sys.executable,
        "-m",
        "containerkit",
        "events",
        "--since",
        "1m",
        "--until",
        "0s",
        "-f",
        f"container={one.id}",
    ]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert len(told.splitlines()) == 2
    assert "\\x1b]0;taken\\x07\\x1b[2J\\nsecond" in told
    assert "\x1b" not in told
    words = [sys.executable, "-m", "containerkit", "inspect", one.id]
    told = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert "\x1b" not in told
    assert json.loads(told)[0]["Config"]["Labels"] == {"evil": evil}


def test_a_keeper_that_waits_for_a_restart_ends_when_it_is_asked_to(kept):
    one = kept.make("sh", "-c", "exit 3", restart="always")
    wait_for(lambda: one.restarts >= 3 and one.status == "restarting")  # the delay is 0.8 s by then
    restarts = one.restarts
    os.kill(one.keeper, signal.SIGTERM)
    wait_for(lambda: one.keeper is None)
    assert (one.restarts, one.status, one.exit_code) == (restarts, "exited", 3)

"""The command line in a real terminal."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
from screen import Screen

RUN = ["-m", "containerkit", "run"]
SHELL = ["--env", "PS1=ready> ", "--", "bash", "--norc", "--noediting"]


def state(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


@pytest.fixture
def shell():
    with Screen(*RUN, *SHELL) as screen:
        screen.expect(b"ready> ")
        yield screen


def test_terminal_is_there_unasked(shell):
    shell.type(b"tty; echo $TERM; stty size\n")
    shown = shell.expect(b"ready> ")
    assert b"/dev/pts/0\r\n" in shown
    assert os.environ.get("TERM", "").encode() + b"\r\n30 100\r\n" in shown


def test_terminal_ends_with_the_status_of_the_shell_and_its_modes_restored(shell):
    assert shell.modes != shell.modes_now()
    shell.type(b"exit 5\n")
    assert shell.wait() == 5
    assert shell.modes == shell.modes_now()


def test_terminal_follows_the_size():
    script = "trap 'stty size' WINCH; echo begun; while :; do sleep 0.05; done"
    with Screen(*RUN, "--", "sh", "-c", script) as screen:
        screen.expect(b"begun\r\n")
        screen.resize(41, 99)
        screen.expect(b"41 99\r\n")


def test_terminal_leaves_job_control_to_the_shell_inside(shell):
    shell.type(b"sleep 1000\n")
    shell.expect(b"sleep 1000\r\n")
    time.sleep(0.3)
    shell.type(b"\x1a")
    shell.expect(b"Stopped")
    shell.expect(b"ready> ")
    assert state(shell.process.pid) != "T"
    shell.type(b"fg\n")
    shell.expect(b"fg\r\nsleep 1000\r\n")
    time.sleep(0.3)
    shell.type(b"\x03")
    shell.expect(b"ready> ")
    shell.type(b"echo status $?\n")
    shell.expect(b"status 130\r\n")


def test_terminal_sends_ctrl_c_inside():
    script = "trap 'echo caught; exit 7' INT; echo begun; while :; do sleep 0.05; done"
    with Screen(*RUN, "--", "sh", "-c", script) as screen:
        screen.expect(b"begun\r\n")
        screen.type(b"\x03")
        screen.expect(b"caught\r\n")
        assert screen.wait() == 7
        assert screen.modes == screen.modes_now()


def test_terminal_takes_any_key_and_any_byte():
    keys = bytes(byte for byte in range(1, 256))
    with Screen(*RUN, "--", "sh", "-c", "stty raw -echo; echo begun; head -c 255 | od -An -v -tu1") as screen:
        screen.expect(b"begun")
        screen.type(keys)
        screen.wait()
        assert list(keys) == [int(word) for word in screen.shown.split()]


@pytest.mark.parametrize("attempt", range(5))
def test_terminal_shows_all_that_was_written_before_the_end(attempt):
    with Screen(*RUN, "--", "sh", "-c", "seq 1 5000; printf last") as screen:
        assert screen.wait() == 0
        assert [*map(str, range(1, 5001)), "last"] == screen.shown.decode().split(), attempt


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["no-such-program"], 127),
        (["--timeout", "0.2", "--", "sleep", "60"], 124),
        (["--", "sh", "-c", "kill -9 $$"], 137),
        (["--rootfs", "/nonexistent", "true"], 125),
    ],
)
def test_terminal_is_restored_on_the_way_out(words, expected):
    with Screen(*RUN, *words) as screen:
        assert expected == screen.wait()
        assert screen.modes == screen.modes_now()


def test_terminal_is_restored_after_a_signal():
    with Screen(*RUN, "--", "sh", "-c", "echo begun; exec sleep 60") as screen:
        screen.expect(b"begun")
        screen.signal(signal.SIGTERM)
        assert screen.wait() == 128 + signal.SIGTERM
        assert screen.modes == screen.modes_now()


def test_terminal_hangs_up_inside_when_it_does_outside():
    with Screen(*RUN, "--", "sh", "-c", "echo begun; exec sleep 60") as screen:
        screen.expect(b"begun")
        screen.signal(signal.SIGHUP)
        assert screen.wait() == 128 + signal.SIGHUP
        assert screen.modes == screen.modes_now()


def test_terminal_can_be_stopped_from_outside_and_goes_on(shell):
    shell.signal(signal.SIGTSTP)
    shell.until(lambda: state(shell.process.pid) == "T")
    assert shell.modes == shell.modes_now()
    shell.resize(33, 77)
    shell.signal(signal.SIGCONT)
    shell.until(lambda: shell.modes != shell.modes_now())
    shell.type(b"stty size\n")
    shell.expect(b"33 77\r\n")


def test_terminal_ends_what_the_command_leaves_running():
    with Screen(*RUN, "--", "sh", "-c", "trap '' HUP; sleep 60 & echo done") as screen:
        assert screen.wait() == 0
        assert screen.shown == b"done\r\n"


# --- When a terminal is allocated


def test_terminal_is_not_there_when_an_output_is_redirected(tmp_path):
    code = f"sh -c 'tty; echo problem >&2' 2>{tmp_path}/errors"
    line = " ".join(["exec", sys.executable, *RUN, "--", code])
    login = "import os, sys; os.execvp('sh', ['sh', '-c', sys.argv[1]])"
    with Screen("-c", login, line) as screen:
        assert screen.wait() == 0
        assert b"not a tty" in screen.shown  # a terminal that has a name inside
        assert "problem\n" == (tmp_path / "errors").read_text()


def test_terminal_can_be_refused():
    with Screen(*RUN, "-T", "--", "sh", "-c", "test -t 1 && echo shown; ps -o tty= -p $$") as screen:
        screen.wait()
        assert screen.shown.split() == [b"shown", b"?"]  # it can write to it, but it is not its controlling terminal


def test_terminal_can_be_had_without_one_outside():
    done = subprocess.run(
        [sys.executable, *RUN, "-t", "--", "sh", "-c", "tty; stty -echo; echo set; cat"],
        input=b"one\ntwo", capture_output=True, timeout=60,
    )  # fmt: skip
    assert (0, b"") == (done.returncode, done.stderr)
    assert b"/dev/pts/0\r\n" in done.stdout
    assert done.stdout.endswith(b"one\r\ntwo")


def test_terminal_is_left_alone_by_a_job_in_the_background():
    line = " ".join([sys.executable, *RUN, "--", "sh", "-c", "'sleep 0.2; echo from behind'", "& wait; echo all done"])
    with Screen("-c", "import os, sys; os.execvp('bash', ['bash', '-mc', sys.argv[1]])", line) as screen:
        screen.expect(b"from behind")
        screen.expect(b"all done")
        assert screen.wait() == 0


# --- In a terminal emulator


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not there: apt-get install tmux")
def test_terminal_works_in_tmux(tmp_path):
    socket = str(tmp_path / "tmux")

    def tmux(*words):
        return subprocess.run(["tmux", "-S", socket, *words], capture_output=True, text=True, timeout=60).stdout

    def shown_until(text):
        deadline = time.monotonic() + 20
        while text not in (screen := tmux("capture-pane", "-p", "-t", "test")):
            assert time.monotonic() < deadline, screen
            time.sleep(0.05)
        return screen

    path = os.pathsep.join(os.path.abspath(place) for place in sys.path if place)
    command = f"PYTHONPATH={shlex.quote(path)} {sys.executable} {' '.join(RUN)} {shlex.join(SHELL)}; echo left with $?; sleep 60"
    tmux("-f", "/dev/null", "new-session", "-d", "-s", "test", "-x", "90", "-y", "20", "sh", "-c", command)
    try:
        shown_until("ready>")
        tmux("send-keys", "-t", "test", "stty size; sleep 1000", "Enter")
        shown_until("20 90")
        time.sleep(0.3)
        tmux("send-keys", "-t", "test", "C-z")
        shown_until("Stopped")
        tmux("send-keys", "-t", "test", "fg", "Enter")
        time.sleep(0.3)
        tmux("send-keys", "-t", "test", "C-c")
        tmux("resize-window", "-t", "test", "-x", "70", "-y", "15")
        tmux("send-keys", "-t", "test", "clear; stty size", "Enter")
        shown_until("15 70")
        tmux("send-keys", "-t", "test", "exit 6", "Enter")
        shown_until("left with 6")
    finally:
        tmux("kill-server")


_EDITS = """
import os, tty
print("typed before", flush=True)
tty.setraw(0)  # discards what was typed before, as a shell does that edits lines itself
print("> ", end="", flush=True)
print(os.read(0, 1))
"""


def test_end_of_the_input_reaches_a_program_that_changes_the_mode_of_its_terminal():
    words = [sys.executable, *RUN, "-t", "--", "python3", "-c", _EDITS]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert (0, True) == (done.returncode, "> b'\\x04'" in done.stdout), done

"""What a caller could pass on by accident: its threads, its terminal, its capabilities."""

import fcntl
import os
import select
import subprocess
import termios
import threading
from struct import pack

import attrs
import pytest
from attacker import USER, armed, attempt, in_child, load_everything, outcome, program

from containerkit import Container, Landlock, Sandbox, run
from containerkit._native import calls
from containerkit.security.landlock import abi

pytestmark = pytest.mark.usefixtures("nothing_left")
landlock = pytest.mark.skipif(abi() == 0, reason="the kernel has no Landlock (Linux 5.13, lsm=landlock)")
RULES = Landlock(strict=False).allow_execute("/usr", "/bin", "/lib").allow_execute("/lib64", optional=True)


def sandbox(rules=RULES):
    return Sandbox(landlock=rules.allow_execute(os.path.dirname(program())).allow_read("/proc", "/dev"))


# --- Threads: Landlock and seccomp restrict a thread and what it starts, not its process


@landlock
@pytest.mark.parametrize("attack", ["write-file", "write-from-thread"])
def test_all_threads_of_a_sandboxed_command_are_restricted(attack, tmp_path):
    (tmp_path / "file").touch()
    words = [program(), attack, str(tmp_path / "file"), "x"]
    assert "EACCES" == outcome(sandbox().run(words, text=True))
    assert "done" == outcome(sandbox(RULES.allow_write(tmp_path)).run(words, text=True))


@landlock
def test_command_is_restricted_whichever_thread_starts_it_and_the_caller_is_not(tmp_path):
    """Start it from a caller with threads. These keep their access, but the command does not get it."""
    (tmp_path / "file").touch()
    words = [program(), "write-from-thread", str(tmp_path / "file"), "x"]
    found, stop = [], threading.Event()

    def write():
        while not stop.is_set():
            (tmp_path / "own").write_text("x")

    writers = [threading.Thread(target=write) for _ in range(2)]
    starters = [
        threading.Thread(target=lambda: found.append(outcome(sandbox().run(words, text=True)))) for _ in range(4)
    ]
    for thread in (*writers, *starters):
        thread.start()
    for thread in starters:
        thread.join()
    stop.set()
    for thread in writers:
        thread.join()
    assert ["EACCES"] * 4 == found
    (tmp_path / "own").write_text("not even the thread that asked is held")


@landlock
def test_unrestricted_thread_can_act_for_a_restricted_one(tmp_path):
    """Let the restricted thread ask an older one. Because this attack works, an older thread is an error by default."""
    path = tmp_path / "file"

    def work():
        wish, done = threading.Event(), threading.Event()

        def serve():
            wish.wait()
            path.write_text("written for another")
            done.set()

        thread = threading.Thread(target=serve)
        thread.start()
        sandbox().apply(this_thread_only=True)
        try:
            path.write_text("written")
            own = "written"
        except PermissionError:
            own = "refused"
        wish.set()
        thread.join()
        return own

    program()
    assert "refused" == in_child(work)
    assert "written for another" == path.read_text()


# --- Terminals


def pushed(slave):
    """Return the pending input of a terminal."""
    found = b""
    while select.select([slave], [], [], 0.1)[0]:
        found += os.read(slave, 64)
    return found


@pytest.fixture
def terminal():
    """Yield a terminal without line buffering that is no process's controlling terminal."""
    master, slave = os.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[3] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    yield slave
    os.close(master)
    os.close(slave)


def reads(name):
    with open(name) as file:
        return file.read().strip()


NO_PUSHING = (
    "this kernel has no TIOCSTI for the unprivileged (dev.tty.legacy_tiocsti=0): only the refusal could be tried"
)


def can_push():
    try:
        return reads("/proc/sys/dev/tty/legacy_tiocsti") == "1"
    except FileNotFoundError:  # it can't be disabled before Linux 6.2
        return True


def test_unowned_terminal_can_be_taken_but_no_input_injected(terminal):
    """A command leads its own session, so it can make the terminal on its stdin its controlling terminal."""
    assert ("EPERM", b"") == (attempt("take-terminal", "x", stdin=terminal), pushed(terminal))
    control = attempt("take-terminal", "x", stdin=terminal, seccomp=None)
    if not can_push():
        assert "EIO" == control
        pytest.skip(NO_PUSHING)
    assert ("done", b"x") == (control, pushed(terminal))


@landlock
def test_sandbox_injects_no_terminal_input(terminal):
    words = [program(), "take-terminal", "x"]
    assert ("EPERM", b"") == (outcome(sandbox().run(words, text=True, stdin=terminal)), pushed(terminal))
    if not can_push():
        pytest.skip(NO_PUSHING)
    free = attrs.evolve(
        sandbox(), seccomp=None
    )  # Landlock's ioctl_dev applies only to terminals that are opened inside
    assert ("done", b"x") == (outcome(free.run(words, text=True, stdin=terminal)), pushed(terminal))


def test_callers_own_terminal_is_out_of_reach(terminal):
    """It is the controlling terminal of the caller's session. A command in another session needs privileges to take it."""
    program()

    def work():
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        found = []
        for options in ({}, {"seccomp": None}):
            for attack in ("push-input", "take-terminal"):
                done = run(["/attacks", attack, "x"], stdin=terminal, mounts=armed(), text=True, **options)
                found.append([outcome(done), pushed(terminal).decode()])
        control = subprocess.run(
            [program(), "push-input", "x"], stdin=terminal, capture_output=True, text=True, check=True
        )
        return found, [control.stdout.strip(), pushed(terminal).decode()]

    found, control = in_child(work)
    assert [["EPERM", ""], ["EPERM", ""]] == found[:2]
    assert {"EPERM", "EIO"} >= {said for said, _ in found[2:]}
    assert [""] * 4 == [text for _, text in found]
    assert control == ["done", "x"], "a child in the caller's session can, with or without CAP_SYS_ADMIN"


def test_selection_of_a_console_cannot_be_pasted(terminal):
    """TIOCLINUX exists only for virtual consoles: a pty does not support it, but the filter refuses it first."""
    assert "EPERM" == attempt("push-linux", stdin=terminal)
    assert attempt("push-linux", stdin=terminal, seccomp=None) in ("ENOTTY", "EINVAL")


# --- Capabilities

NET_RAW = 13
HELD = 1 << NET_RAW


def raise_ambient():
    """Make CAP_NET_RAW inheritable and ambient, in addition to the present sets."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    masks = [int(fields[name], 16) for name in ("CapEff", "CapPrm")]
    masks.append(HELD)
    words = [mask & 0xFFFFFFFF for mask in masks] + [mask >> 32 for mask in masks]
    calls.syscall("capset", bytearray(pack("=Ii", 0x20080522, 0)), bytearray(pack("=6I", *words)))
    calls.prctl(47, 2, NET_RAW)  # PR_CAP_AMBIENT_RAISE


def as_root():
    raise_ambient()


def as_unprivileged():
    """An unprivileged user with one capability, as a service gets it from AmbientCapabilities= of systemd."""
    calls.prctl(8, 1)  # PR_SET_KEEPCAPS
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    calls.syscall("capset", bytearray(pack("=Ii", 0x20080522, 0)), bytearray(pack("=6I", HELD, HELD, HELD, 0, 0, 0)))
    raise_ambient()
    calls.prctl(4, 1)  # PR_SET_DUMPABLE: the change of ids cleared it


COMMAND = ["grep", "-E", "^Cap(Inh|Prm|Eff|Amb)", "/proc/self/status"]


def started_by_run():
    return run(COMMAND, text=True)


def started_by_container_run():
    with Container() as container:
        return container.run(COMMAND, text=True)


def started_by_popen():
    with Container() as container, container.popen(COMMAND, stdout=-1, text=True) as process:
        stdout, _ = process.communicate()
        return subprocess.CompletedProcess(COMMAND, process.returncode, stdout)


def started_by_template():
    with Container.prepare(ready=1) as template:
        assert template.wait_full(20)
        return template.run(COMMAND, text=True)


def started_by_sandbox():
    return sandbox().run(COMMAND, text=True)


@pytest.mark.root
@pytest.mark.parametrize("caller", [as_root, as_unprivileged])
@pytest.mark.parametrize(
    "start", [started_by_run, started_by_container_run, started_by_popen, started_by_template, started_by_sandbox]
)
def test_ambient_and_inheritable_capabilities_stay_with_the_caller(caller, start):
    if os.geteuid():
        pytest.skip("needs capabilities to pass on")
    if start is started_by_sandbox and not abi():
        pytest.skip("the kernel has no Landlock (Linux 5.13, lsm=landlock)")
    load_everything()

    def work():
        caller()
        control = subprocess.run(COMMAND, capture_output=True, text=True, check=True)
        return [[int(mask, 16) for mask in done.stdout.split()[1::2]] for done in (start(), control)]

    held, (inheritable, permitted, effective, ambient) = in_child(work)
    assert [HELD, HELD] == [inheritable, ambient], "an ordinary child inherits them"
    assert HELD == HELD & permitted & effective
    assert [0, 0, 0, 0] == held

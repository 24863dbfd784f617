"""Errors describe the failure: in their text, in their result, and by their class."""

import errno
import pickle
import re
import signal

import pytest

from containerkit import (
    STDOUT,
    Container,
    ContainerTimeout,
    ExitError,
    ProgramNotFoundError,
    Seccomp,
    SetupError,
    run,
)

pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")


@pytest.fixture(params=["one shot", "container"])
def runner(request):
    """The ways to run a command and wait for it."""
    if request.param == "one shot":
        yield run
    else:
        with Container() as container:
            yield container.run


def test_error_of_a_failed_command_shows_the_end_of_its_stderr(runner):
    script = "i=0; while [ $i -lt 50 ]; do i=$((i+1)); echo line $i >&2; done; echo seen; exit 3"
    with pytest.raises(ExitError) as caught:
        runner(["sh", "-c", script], check=True, text=True)
    first, *shown = str(caught.value).splitlines()
    assert re.search(r"exit status 3 \(ran \d+\.\d\d s, processor \d+\.\d\d s.*\); the end of its stderr:$", first)
    assert [f"    line {number}" for number in range(41, 51)] == shown


def test_error_shows_the_end_of_stdout_where_stderr_goes_there(runner):
    with pytest.raises(ExitError, match=r"exit status 1 \([^)]+\); the end of its stdout:\n    why$"):
        runner(["sh", "-c", "echo why >&2; exit 1"], stderr=STDOUT, check=True)


def test_error_without_output_is_one_line(runner):
    with pytest.raises(ExitError) as caught:
        runner(["false"], check=True)
    told = str(caught.value)
    assert "Command '['false']' returned non-zero exit status 1" == told[: told.index(" (ran ")]
    assert "\n" not in told


def test_error_shows_no_escape_sequence_and_no_flood(runner):
    """Errors are printed to terminals, which would interpret a command's control characters."""
    hostile = "\x1b]0;title\x07\x1b[2J\u202ereversed\x00\r\x9b31m"
    script = f"import sys; sys.stderr.buffer.write({hostile.encode()!r} + b'\\xff' + b'x' * 10**6); sys.exit(1)"
    with pytest.raises(ExitError) as flood:
        runner(["python3", "-SEc", script], check=True)
    assert len(str(flood.value)) < 4000 + len(script)
    with pytest.raises(ExitError) as caught:
        runner(["python3", "-SEc", script.replace("10**6", "3")], check=True)
    shown = str(caught.value).partition("stderr:")[2]
    assert r"\x1b]0;title\x07\x1b[2J\u202ereversed\x00" in shown
    assert all(each.isprintable() for each in shown.replace("\n", ""))


def test_errors_hold_the_whole_result_and_survive_pickling(runner):
    with pytest.raises(ExitError) as failed:
        runner(["sh", "-c", "echo out; exit 3"], check=True, text=True)
    with pytest.raises(ContainerTimeout) as late:
        runner(["sh", "-c", "echo out; sleep 60"], text=True, timeout=0.5)
    for error, returncode, cause in ((failed.value, 3, "exit"), (late.value, -signal.SIGKILL, "timeout")):
        result = error.result
        assert (returncode, cause, "out\n") == (result.returncode, result.cause, result.stdout)
        assert result.usage.minor_faults > 0
        assert result.duration_s > 0
        copy = pickle.loads(pickle.dumps(error))
        assert (result, str(error)) == (copy.result, str(copy))
    assert 0.5 <= late.value.result.duration_s < 10


def test_error_of_a_filter_that_kills_names_the_filter(runner):
    kills = Seccomp.default().kill("sched_yield")
    with pytest.raises(ExitError, match=r"SIGSYS: 31> .*: it was killed for a system call"):
        runner(["python3", "-SEc", "import os; os.sched_yield()"], seccomp=kills, check=True)


def test_error_of_too_much_output_names_the_limit(runner):
    with pytest.raises(ExitError, match=r"its output exceeded the limit \(hint: raise output_limit_bytes\)"):
        runner(["sh", "-c", "while :; do echo y; done"], output_limit_bytes=1000, check=True)


@pytest.mark.parametrize("program", ["no-such-program", "/no/such/program"])
def test_program_that_is_not_there_is_a_file_that_is_not_found(runner, program):
    with pytest.raises(FileNotFoundError) as caught:
        runner([program])
    error = caught.value
    assert isinstance(error, ProgramNotFoundError)
    assert isinstance(error, SetupError)
    assert (program, errno.ENOENT) == (error.filename, error.errno)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(error), str(error), program) == (type(copy), str(copy), copy.filename)


def test_directory_that_is_not_there_is_no_missing_program(runner):
    with pytest.raises(SetupError) as caught:
        runner(["true"], cwd="/nowhere")
    assert not isinstance(caught.value, ProgramNotFoundError)

"""The command line as a program: how its process ends."""

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("nothing_left")

PROGRAM = [sys.executable, "-c", "from containerkit.cli import program; program()"]


def program(*words, **options):
    return subprocess.run([*PROGRAM, *words], capture_output=True, text=True, timeout=60, **options)


def with_command(body, **options):
    """Run the program with another function in the place of the command line's."""
    code = f"import containerkit.cli as cli, os, sys\ndef main():\n{body}\ncli.main = main\ncli.program()\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


# --- The end of the process


@pytest.mark.parametrize(
    ("words", "status"), [(["--version"], 0), (["no-such"], 125), (["run", "--no-such"], 125), (["ps", "--help"], 0)]
)
def test_program_ends_with_the_status_and_all_of_its_output(words, status):
    done = program(*words)
    assert status == done.returncode
    assert "containerkit" in (done.stdout if status == 0 else done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("echo out; echo err >&2", 0)])
def test_program_runs_a_command(script, status):
    done = program("run", "--", "sh", "-c", script, stdin=subprocess.DEVNULL)
    assert status == done.returncode
    if status == 0:
        assert ("out\n", "err\n") == (done.stdout, done.stderr)


def test_program_writes_what_is_left_in_its_buffers():
    done = with_command("    sys.stdout.write('out'); sys.stderr.write('err'); return 3")
    assert (3, "out", "err") == (done.returncode, done.stdout, done.stderr)


def test_program_ends_without_the_end_of_the_interpreter():
    """Otherwise the object would be freed, and say so."""
    body = "    global kept\n    class Last:\n        def __del__(self): os.write(1, b'freed')\n    kept = Last()\n    return 0"
    assert (0, "") == ((done := with_command(body)).returncode, done.stdout)
    control = with_command(
        body + "\nimport threading\nthreading.Thread(target=threading.Event().wait, args=[0.3]).start()"
    )
    assert (0, "freed") == (control.returncode, control.stdout)


def test_program_calls_functions_registered_at_exit():
    done = with_command("    import atexit; atexit.register(print, 'last'); return 4")
    assert (4, "last\n", "") == (done.returncode, done.stdout, done.stderr)


def test_program_waits_for_threads():
    body = "    import threading, time\n    threading.Thread(target=lambda: (time.sleep(0.3), print('late'))).start()\n    return 5"
    done = with_command(body)
    assert (5, "late\n") == (done.returncode, done.stdout)


def test_program_shows_unexpected_exceptions():
    done = with_command("    raise RuntimeError('a bug')")
    assert 1 == done.returncode
    assert done.stderr.endswith("RuntimeError: a bug\n")


def test_program_leaves_no_container_of_a_command_that_forgot_it():
    body = (
        "    global box\n    from containerkit import Container\n    box = Container(); box.start()\n"
        "    box.popen(['sleep', '1000']); print(box.pid); return 0"
    )
    done = with_command(body)
    assert 0 == done.returncode, done.stderr
    assert not os.path.exists(f"/proc/{int(done.stdout)}")


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["ps", "--help"], ["completion", "bash"]])
def test_program_reports_that_its_output_does_not_fit_on_the_disk(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROGRAM, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert 125 == done.returncode
    assert "containerkit: " in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["completion", "bash"], ["ps", "--help"]])
def test_program_ends_quietly_where_nobody_reads(words):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run([*PROGRAM, *words], stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(write)
    assert (141, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("closing", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_program_works_with_closed_streams(closing):
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closing}', "sh", *PROGRAM, "run", "--", "true"], capture_output=True, timeout=60
    )
    assert (0, b"", b"") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_program_hands_signals_on(number):
    words = [*PROGRAM, "run", "--", "sh", "-c", "trap 'exit 9' INT TERM; echo ready; while :; do sleep 0.05; done"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert b"ready\n" == process.stdout.readline()
        process.send_signal(number)
        assert 9 == process.wait(timeout=30)


def test_program_stays_if_python_asks_for_it():
    """``python -i`` is for looking around after the end."""
    done = subprocess.run(
        [sys.executable, "-i", "-c", "import containerkit.cli as cli\ncli.main = lambda: 0\ncli.program()"],
        input="print('here')\n", capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "here\n" == done.stdout

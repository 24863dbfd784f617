"""Processes in a container: streams, ends, signals, terminals, and the other features of subprocess."""

import errno
import gc
import io
import itertools
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import threading
import time

import pytest
from examples import examples

from containerkit import (
    DEVNULL,
    PIPE,
    STDOUT,
    Container,
    ContainerTimeout,
    ExitError,
    SetupError,
    SpecError,
    StateError,
    _native,
    run,
)

pytestmark = pytest.mark.usefixtures("interpreter", "nothing_left")

MIB = 1024 * 1024


def alive_inside(box, word):
    """Return the pids inside of processes whose command line contains a word."""
    listing = box.run(["sh", "-c", "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$f; echo; done"], text=True).stdout
    return [line for line in listing.splitlines() if word in line and "cmdline" not in line]


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def wait_until(condition, patience_s=30.0):
    deadline = time.monotonic() + patience_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return value


@pytest.fixture(params=["one shot", "container", "no init", "ready"])
def runner(request):
    """The ways to run a command and wait for it."""
    if request.param == "one shot":
        yield run
    elif request.param == "ready":
        if _native.interpreter().Run is None:
            pytest.skip("only the compiled module can hold a start")
        with Container.prepare(ready=1) as template:
            assert template.wait_full(20)
            yield template.run
    elif request.param == "no init":
        yield lambda *args, **more: run(*args, init=False, **more)
    else:
        with Container() as container:
            yield container.run


def refusal(runner, **arguments):
    """Return the message with which arguments are refused, or None."""
    try:
        runner(["true"], **arguments)
    except SpecError as error:
        return str(error)
    return None


# --- Ends ---------------------------------------------------------------------------------------------------------------


def test_run_captures_both_outputs(runner):
    done = runner(["sh", "-c", "echo out; echo err >&2"])
    assert (0, b"out\n", b"err\n") == (done.returncode, done.stdout, done.stderr)


def test_run_gives_the_words_back_as_args(runner):
    assert ["echo", "a b", ""] == runner(["echo", "a b", ""]).args


@pytest.mark.parametrize("status", [0, 1, 42, 127, 255])
def test_returncode_is_the_exit_status(runner, status):
    done = runner(["sh", "-c", f"exit {status}"])
    assert (status, "exit") == (done.returncode, done.cause)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGUSR1, 64])
@pytest.mark.parametrize("way", ["one shot", "container"])
def test_returncode_is_minus_the_signal(way, number):
    words = ["sh", "-c", f"ulimit -c 0; kill -{int(number)} $$"]
    if way == "one shot":
        done = run(words)
    else:
        with Container() as box:
            done = box.run(words)
    assert (-number, "signal") == (done.returncode, done.cause)


def test_check_raises_with_the_outputs(runner):
    with pytest.raises(ExitError) as caught:
        runner(["sh", "-c", "echo seen; echo why >&2; exit 3"], check=True, text=True)
    error = caught.value
    assert (3, "seen\n", "why\n", "exit") == (error.returncode, error.stdout, error.stderr, error.cause)
    assert isinstance(error, subprocess.CalledProcessError)


def test_check_lets_success_pass(runner):
    assert 0 == runner(["true"], check=True).returncode


def test_usage_counts_the_cpu_time_of_children_too(runner):
    done = runner(["sh", "-c", "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done'"])
    assert 0.02 < (done.usage.user_us + done.usage.system_us) / 1e6 <= done.duration_s * 2 + 0.05
    assert done.usage.minor_faults > 0


def test_usage_reports_the_largest_memory_where_it_is_the_commands_own(runner):
    """A command shares the caller's memory until its exec, so a value that may be the caller's is not reported."""
    from resource import RUSAGE_SELF, getrusage

    wanted = getrusage(RUSAGE_SELF).ru_maxrss * 1024 + 100_000_000
    # Filled by the kernel at once, which takes half of the time that a fault for each page takes.
    fill = f"import mmap as m; m.mmap(-1, {wanted}, m.MAP_PRIVATE | m.MAP_ANONYMOUS | m.MAP_POPULATE)"
    small = runner(["true"]).usage.max_rss_bytes
    large = runner(["python3", "-c", fill]).usage.max_rss_bytes
    assert None is small
    assert wanted < large < wanted + 100_000_000


def test_duration_covers_the_run(runner):
    assert 0.2 <= runner(["sleep", "0.2"]).duration_s < 5


# --- Streams ------------------------------------------------------------------------------------------------------------


def test_input_of_ten_megabytes_comes_back(runner):
    content = os.urandom(10 * MIB)
    assert content == runner(["cat"], input=content).stdout


def test_input_to_a_command_that_does_not_read_is_dropped(runner):
    assert 0 == runner(["true"], input=bytes(10 * MIB)).returncode


def test_input_to_a_command_that_reads_only_some_of_it(runner):
    done = runner(["sh", "-c", "head -c 5; exec sleep 0.1"], input=b"hello" + bytes(4 * MIB))
    assert (0, b"hello") == (done.returncode, done.stdout)


def test_both_outputs_at_once_do_not_block_each_other(runner):
    script = "head -c 3000000 /dev/zero >&2 & head -c 3000000 /dev/zero; wait"
    done = runner(["sh", "-c", script])
    assert (3_000_000, 3_000_000) == (len(done.stdout), len(done.stderr))


@pytest.mark.parametrize(
    ("more", "given", "expected"),
    [
        ({"text": True}, "grüße\n", "grüße\n"),
        ({"encoding": "latin-1"}, "grüße\n", "grüße\n"),
        ({"encoding": "utf-16"}, "a\n", "a\n"),
        ({"text": True}, "a\r\nb\rc\n", "a\nb\nc\n"),
        ({}, b"\xff\x00", b"\xff\x00"),
        ({"text": True}, "", ""),
    ],
)
def test_text_and_encodings_as_in_subprocess(runner, more, given, expected):
    assert expected == runner(["cat"], input=given, **more).stdout


def test_text_that_is_not_decodable_raises_and_leaves_nothing(runner):
    with pytest.raises(UnicodeDecodeError):
        runner(["printf", "\\377"], text=True)


def test_errors_decides_how_bytes_that_do_not_decode_are_treated(runner):
    assert "\ufffd" == runner(["printf", "\\377"], errors="replace").stdout


@pytest.mark.parametrize("given", [bytearray(b"abc"), memoryview(b"abc"), b"abc"])
def test_input_takes_whatever_is_bytes(runner, given):
    assert b"abc" == runner(["cat"], input=given).stdout


@pytest.mark.parametrize(("given", "more"), [("text", {}), (b"bytes", {"text": True}), (3, {}), ([b"x"], {})])
def test_input_of_the_wrong_type_is_refused(runner, given, more):
    with pytest.raises(SpecError, match="input"):
        runner(["cat"], input=given, **more)


def test_input_and_stdin_exclude_each_other(runner):
    with pytest.raises(SpecError, match="stdin"):
        runner(["cat"], input=b"x", stdin=DEVNULL)


def test_stdin_is_empty_unless_given(runner):
    assert b"" == runner(["cat"], timeout=60).stdout


def test_streams_may_be_files(runner, tmp_path):
    (tmp_path / "in").write_bytes(b"from a file")
    with open(tmp_path / "in", "rb") as given, open(tmp_path / "out", "wb") as out, open(tmp_path / "err", "wb") as err:
        done = runner(["sh", "-c", "cat; echo no >&2"], stdin=given, stdout=out, stderr=err)
    assert (None, None) == (done.stdout, done.stderr)
    assert (b"from a file", b"no\n") == ((tmp_path / "out").read_bytes(), (tmp_path / "err").read_bytes())


def test_streams_may_be_descriptors(runner):
    read, write = os.pipe()
    try:
        done = runner(["echo", "hi"], stdout=write)
        assert (None, b"hi\n") == (done.stdout, os.read(read, 100))
    finally:
        os.close(read)
        os.close(write)


def test_streams_may_be_sockets(runner):
    import socket

    here, there = socket.socketpair()
    with here, there:
        runner(["sh", "-c", "echo hi >&0"], stdin=there, stdout=DEVNULL)
        assert b"hi\n" == here.recv(100)


def test_stderr_may_join_stdout(runner):
    done = runner(["sh", "-c", "echo one; echo two >&2; echo three"], stderr=STDOUT)
    assert (b"one\ntwo\nthree\n", None) == (done.stdout, done.stderr)


def test_stderr_joins_a_stdout_that_goes_to_a_file(runner, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        runner(["sh", "-c", "echo one; echo two >&2"], stdout=log, stderr=STDOUT)
    assert b"one\ntwo\n" == (tmp_path / "log").read_bytes()


def test_devnull_swallows(runner):
    done = runner(["sh", "-c", "echo one; echo two >&2"], stdout=DEVNULL, stderr=DEVNULL)
    assert (None, None) == (done.stdout, done.stderr)


def test_one_stream_captured_the_other_not(runner):
    done = runner(["sh", "-c", "echo one; echo two >&2"], stdout=DEVNULL)
    assert (None, b"two\n") == (done.stdout, done.stderr)


def test_streams_that_cannot_be_are_refused(runner):
    cases = list(itertools.product(("stdin", "stdout", "stderr"), (-7, "file", 1.5, True, b"x", object())))
    messages = [refusal(runner, **{name: wish}) for name, wish in cases]
    assert [] == [case for case, message in zip(cases, messages, strict=True) if case[0] not in (message or "")]


@pytest.mark.parametrize("name", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_a_closed_descriptor_is_refused(runner, name):
    fd = os.dup(0)
    os.close(fd)
    with pytest.raises((SpecError, OSError)) as caught:
        runner(["true"], **{name: fd})
    assert isinstance(caught.value, SpecError) or caught.value.errno == errno.EBADF


def test_streams_by_their_names_in_dev(runner):
    done = runner(["sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat /dev/stdin"], input=b"in")
    assert (b"out\nin", b"err\n") == (done.stdout, done.stderr)


@pytest.mark.several_ids
def test_streams_by_their_names_for_an_unprivileged_user_inside(runner):
    done = runner(["sh", "-c", "id -u >/proc/self/fd/1; echo e >/proc/self/fd/2"], user="12:12")
    if done.returncode and os.geteuid():
        pytest.skip("only one id is mapped for this user")
    assert (0, b"12\n") == (done.returncode, done.stdout)


def test_inherited_streams_are_the_callers():
    code = "import containerkit as c; c.run(['sh','-c','cat; echo err >&2'], capture_output=False, stdin=0)"
    done = subprocess.run([sys.executable, "-c", code], input=b"through", capture_output=True, check=True)
    assert (b"through", b"err\n") == (done.stdout, done.stderr)


def test_streams_survive_a_caller_without_any():
    code = (
        "import os, sys\nfor fd in (0, 1, 2): os.close(fd)\n"
        "import containerkit as c\n"
        "done = c.run(['sh', '-c', 'echo out; echo err >&2; ls /proc/self/fd | wc -l'], text=True)\n"
        "with c.Container() as box: again = box.run(['sh', '-c', 'cat; echo out; echo err >&2'], text=True, input='in')\n"
        "os._exit(0 if (done.stdout, done.stderr) == ('out\\n4\\n', 'err\\n') and again.stdout == 'inout\\n' else 9)\n"
    )
    assert 0 == subprocess.run([sys.executable, "-c", code], check=False).returncode


# --- Output bombs, timeouts, processes that stay -----------------------------------------------------------------------------


def test_output_limit_kills_and_keeps_the_first_bytes(runner):
    done = runner(["yes"], output_limit_bytes=100_000, timeout=60)
    assert (-9, "output", 100_000) == (done.returncode, done.cause, len(done.stdout))


def test_output_limit_counts_both_outputs(runner):
    done = runner(["sh", "-c", "yes >&2 & exec yes"], output_limit_bytes=50_000, timeout=60)
    assert ("output", 50_000) == (done.cause, len(done.stdout) + len(done.stderr))


def test_output_of_exactly_the_limit_is_no_overflow(runner):
    done = runner(["head", "-c", "70000", "/dev/zero"], output_limit_bytes=70_000)
    assert (0, "exit", 70_000) == (done.returncode, done.cause, len(done.stdout))


def test_output_one_byte_over_the_limit_is_an_overflow(runner):
    done = runner(["sh", "-c", "head -c 70001 /dev/zero; sleep 0.2"], output_limit_bytes=70_000)
    assert ("output", 70_000) == (done.cause, len(done.stdout))


def test_output_over_the_limit_is_reported_even_when_the_command_has_ended(runner):
    """A command that ends before it is noticed can't write more than a slow one."""
    done = runner(["printf", "12345"], output_limit_bytes=4)
    assert ("output", b"1234") == (done.cause, done.stdout)


def test_timeout_kills_and_carries_the_partial_output(runner):
    began = time.monotonic()
    with pytest.raises(ContainerTimeout) as caught:
        runner(["sh", "-c", "echo partial; echo bits >&2; sleep 60"], timeout=0.3, text=True)
    assert 0.3 <= time.monotonic() - began < 20
    assert (0.3, "partial\n", "bits\n") == (caught.value.timeout, caught.value.stdout, caught.value.stderr)
    assert isinstance(caught.value, subprocess.TimeoutExpired)
    assert isinstance(caught.value, TimeoutError)


def test_timeout_of_zero_is_over_at_once(runner):
    with pytest.raises(ContainerTimeout):
        runner(["sleep", "60"], timeout=0)


def test_timeout_kills_a_command_that_ignores_signals(runner):
    with pytest.raises(ContainerTimeout):
        runner(["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"], timeout=0.3)


def test_timeout_kills_what_the_command_has_started(box):
    with pytest.raises(ContainerTimeout):
        box.run(["sh", "-c", "sleep 1234 & (sleep 1234; true) & sh -c 'sleep 1234; true'; wait"], timeout=0.4)
    wait_until(lambda: alive_inside(box, "1234") == [])


def test_timeout_with_a_partial_character_of_text(runner):
    """Cut in the middle of a character: the error is the timeout, not a decoding error."""
    with pytest.raises(ContainerTimeout) as caught:
        runner(["sh", "-c", "printf 'a\\303'; sleep 60"], timeout=0.3, text=True)
    assert caught.value.stdout.startswith("a")


@pytest.mark.parametrize("timeout", [10**9, 1e12, float("inf")])
def test_timeout_may_be_as_long_as_one_likes(runner, timeout):
    assert 0 == runner(["true"], timeout=timeout).returncode


@pytest.mark.parametrize("timeout", ["5", -1, True, float("nan"), [1]])
def test_timeout_that_is_no_time_is_refused(runner, timeout):
    with pytest.raises(SpecError, match="timeout"):
        runner(["true"], timeout=timeout)


@pytest.mark.parametrize("limit", ["5", -1, True, 1.5])
def test_output_limit_that_is_no_number_is_refused(runner, limit):
    with pytest.raises(SpecError, match="output_limit_bytes"):
        runner(["true"], output_limit_bytes=limit)


def test_daemonised_grandchildren_that_hold_the_pipe_do_not_hold_the_run(runner):
    began = time.monotonic()
    done = runner(["sh", "-c", "setsid sleep 30 & echo done"], timeout=20)
    assert (0, b"done\n") == (done.returncode, done.stdout)
    assert time.monotonic() - began < 10


def test_daemonised_grandchildren_that_write_for_ever_do_not_hold_the_run(runner):
    began = time.monotonic()
    done = runner(["sh", "-c", "setsid yes & echo done"], timeout=20)
    assert (0, "exit") == (done.returncode, done.cause)
    assert b"done\n" in done.stdout
    assert time.monotonic() - began < 10
    assert len(done.stdout) < 100 * MIB


def test_output_written_just_before_the_end_is_all_there(runner):
    for _ in range(20):
        assert 60_000 == len(runner(["head", "-c", "60000", "/dev/zero"]).stdout)


# --- popen --------------------------------------------------------------------------------------------------------------


def test_popen_talks_line_by_line(box):
    with box.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        for number in range(10):
            process.stdin.write(f"line {number}\n")
            process.stdin.flush()
            assert f"line {number}\n" == process.stdout.readline()
        process.stdin.close()
        assert 0 == process.wait(timeout=60)
    assert 0 == process.returncode


def test_popen_polls_without_waiting(box):
    with box.popen(["cat"], stdin=PIPE) as process:
        assert None is process.poll()
        assert None is process.returncode
        process.stdin.close()
        wait_until(lambda: process.poll() is not None)
        assert 0 == process.poll() == process.returncode


def test_popen_fileno_becomes_readable_at_the_end(box):
    process = box.popen(["sleep", "0.2"])
    poller = select.poll()
    poller.register(process, select.POLLIN)
    assert [] == poller.poll(0)
    assert poller.poll(5000)
    assert 0 == process.wait()
    with pytest.raises(StateError):
        process.fileno()


def test_popen_repr_shows_the_state(box):
    process = box.popen(["sleep", "30"])
    assert re.fullmatch(r"<Process \d+ 'sleep 30' running>", repr(process))
    process.kill()
    process.wait()
    assert repr(process).endswith("ended with -9>")


def test_wait_with_a_timeout_leaves_it_running(box):
    process = box.popen(["sleep", "30"])
    with pytest.raises(ContainerTimeout):
        process.wait(timeout=0.05)
    assert None is process.poll()
    process.terminate()
    assert -signal.SIGTERM == process.wait(timeout=60)


def test_signals_reach_the_command(box):
    script = "trap 'echo usr1; exit 7' USR1; echo ready; while :; do sleep 0.05; done"
    with box.popen(["sh", "-c", script], stdout=PIPE, text=True) as process:
        assert "ready\n" == process.stdout.readline()
        process.send_signal(signal.SIGUSR1)
        assert 7 == process.wait(timeout=60)
        assert "usr1\n" == process.stdout.read()


def test_signals_after_the_end_do_nothing(box):
    process = box.popen(["true"])
    process.wait()
    process.kill()
    process.terminate()
    process.send_signal(signal.SIGUSR1)


def test_stop_and_continue(box):
    process = box.popen(["sleep", "30"])
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: state_of(process.pid) == "T")
    assert None is process.poll()
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: state_of(process.pid) == "S")
    process.kill()
    assert -9 == process.wait()


def test_close_kills_and_may_be_repeated(box):
    process = box.popen(["sleep", "30"], stdout=PIPE)
    process.close()
    process.close()
    assert -9 == process.returncode


def test_leaving_popen_by_an_exception_kills(box):
    with pytest.raises(ZeroDivisionError), box.popen(["sleep", "30"]) as process:
        1 / 0  # noqa: B018 - raised on purpose
    assert -9 == process.returncode


def test_wait_from_many_threads_finds_one_end(box):
    process = box.popen(["sh", "-c", "sleep 0.2; exit 5"])
    found = []
    threads = [threading.Thread(target=lambda: found.append(process.wait())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [5] * 8 == found


def test_communicate_by_hand(box):
    process = box.popen(["sh", "-c", "cat; echo e >&2"], stdin=PIPE, stdout=PIPE, stderr=PIPE)
    assert (b"abc", b"e\n") == process.communicate(b"abc", timeout=60)
    assert 0 == process.returncode


def test_communicate_after_some_was_read(box):
    with box.popen(["sh", "-c", "echo one; cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert "one\n" == process.stdout.readline()
        out, _ = process.communicate("two\n", timeout=60)
    assert "two\n" == out


def test_communicate_after_some_was_written(box):
    process = box.popen(["cat"], stdin=PIPE, stdout=PIPE)
    process.stdin.write(b"first ")
    assert (b"first second", None) == process.communicate(b"second", timeout=60)


def test_fifty_side_by_side(box):
    processes = [box.popen(["sh", "-c", f"sleep 0.1; exit {number}"]) for number in range(50)]
    assert 50 == len({process.pid for process in processes})
    assert list(range(50)) == [process.wait(timeout=30) for process in processes]


def test_fifty_side_by_side_from_sixteen_threads(box):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(lambda n: box.run(["sh", "-c", f"cat; exit {n}"], input=b"%d" % n), range(50)))
    assert [(n, b"%d" % n) for n in range(50)] == [(one.returncode, one.stdout) for one in done]


# --- The environment of the command -----------------------------------------------------------------------------------------------


def test_environment_is_clean_unless_given(runner, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    lines = runner(["env"], text=True).stdout.splitlines()
    assert {"PATH", "HOME"} == {line.partition("=")[0] for line in lines}


def test_environment_given_is_the_whole(runner):
    assert "A=1\n" == runner(["/usr/bin/env"], env={"A": "1"}, text=True).stdout


def test_environment_may_be_empty(runner):
    assert "" == runner(["/usr/bin/env"], env={}, text=True).stdout


def test_environment_of_bytes_and_strange_text(runner):
    done = runner(["/usr/bin/env"], env={"A": "\udcff", "B": "x=y\nz", "C": ""})
    assert b"A=\xff\nB=x=y\nz\nC=\n" == done.stdout


def test_program_is_found_along_the_given_path(runner):
    assert 0 == runner(["true"], env={"PATH": "/nowhere:/usr/bin"}).returncode
    with pytest.raises(SetupError) as caught:
        runner(["true"], env={"PATH": "/nowhere"})
    assert (errno.ENOENT, "execve", "true") == (caught.value.errno, caught.value.operation, caught.value.target)


def test_cwd(runner):
    assert "/usr/lib\n" == runner(["pwd"], cwd="/usr/lib", text=True).stdout


def test_cwd_is_the_root_unless_given(runner):
    assert "/\n" == runner(["pwd"], text=True).stdout


def test_cwd_that_is_missing(runner):
    with pytest.raises(SetupError) as caught:
        runner(["true"], cwd="/not/there")
    assert (errno.ENOENT, "/not/there") == (caught.value.errno, caught.value.target)
    assert "directory inside" in caught.value.hint


def test_cwd_that_is_a_file(runner):
    with pytest.raises(SetupError) as caught:
        runner(["true"], cwd="/etc/passwd")
    assert errno.ENOTDIR == caught.value.errno


def test_cwd_of_strange_text(box):
    box.files.make_directory("/grüße\udcff")
    assert "/grüße\udcff\n" == os.fsdecode(box.run(["pwd"], cwd="/grüße\udcff").stdout)


@pytest.mark.parametrize(
    ("umask", "expected"), [(0o022, b"0022\n"), (0, b"0000\n"), (0o777, b"0777\n"), (0o27, b"0027\n")]
)
def test_umask(runner, umask, expected):
    assert expected == runner(["sh", "-c", "umask"], umask=umask).stdout


def test_umask_is_022_whatever_the_callers_is(runner):
    before = os.umask(0o077)
    try:
        assert b"0022\n" == runner(["sh", "-c", "umask"]).stdout
    finally:
        os.umask(before)


def test_rlimits(runner):
    done = runner(
        ["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -c"], rlimits={"nofile": (64, 128), "RLIMIT_CORE": 0}, text=True
    )
    assert "64\n128\n0\n" == done.stdout


def test_nice(runner):
    wanted = min(19, os.nice(0) + 5)
    assert b"%d\n" % wanted == runner(["nice"], nice=wanted).stdout


@pytest.mark.several_ids
def test_nice_that_is_not_to_be_had_names_itself(box):
    with pytest.raises(SetupError) as caught:
        box.run(["true"], nice=-5, user="1:1") if os.geteuid() else box.run(["true"], nice=-5)
        if os.geteuid() == 0:
            raise SetupError("setpriority", errno.EACCES)  # root may
    assert "setpriority" == caught.value.operation


def test_pass_fds_stay_open_under_their_numbers(runner):
    read, write = os.pipe()
    try:
        done = runner(["bash", "-c", f"echo through >&{write}; ls /proc/self/fd"], pass_fds=(write,), text=True)
        assert b"through\n" == os.read(read, 100)
        assert {"0", "1", "2", str(write)} <= set(done.stdout.split())
        assert len(done.stdout.split()) <= 5  # and the directory that ls reads
    finally:
        os.close(read)
        os.close(write)


def test_pass_fds_of_many_numbers(runner):
    fds = [os.dup(0) for _ in range(20)]
    kept = fds[::3]
    try:
        listed = runner(["sh", "-c", "ls /proc/$$/fd; :"], pass_fds=kept, text=True).stdout.split()
        assert {0, 1, 2, *kept} == set(map(int, listed))
    finally:
        for fd in fds:
            os.close(fd)


def test_pass_fds_that_are_not_open_are_refused_and_pass_nothing(runner):
    """A descriptor number that is free in the caller may be used by the library in the child."""
    top = max(map(int, os.listdir("/proc/self/fd"))) + 60
    opened = set(map(int, os.listdir("/proc/self/fd")))
    for fd in sorted(set(range(3, top)) - opened)[::2]:
        with pytest.raises((SpecError, SetupError)) as caught:
            runner(["true"], pass_fds=(fd,), timeout=60)
        assert str(fd) in str(caught.value)


def test_no_descriptor_of_the_caller_is_inherited(runner):
    fds = [os.open("/etc/hostname", os.O_RDONLY) for _ in range(5)]
    for fd in fds:
        os.set_inheritable(fd, True)
    try:
        listed = runner(["sh", "-c", "ls /proc/$$/fd; :"], text=True).stdout.split()
        assert ["0", "1", "2"] == listed
    finally:
        for fd in fds:
            os.close(fd)


def test_signal_dispositions_and_mask_are_the_default(runner):
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        status = runner(["grep", "^Sig", "/proc/self/status"], text=True).stdout
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1, signal.SIGTERM})
        signal.signal(signal.SIGUSR2, before)
    masks = dict(line.split(":\t") for line in status.splitlines())
    assert {"SigBlk": "0" * 16, "SigIgn": "0" * 16} == {name: masks[name] for name in ("SigBlk", "SigIgn")}


def test_command_has_a_session_of_its_own(runner):
    fields = runner(["cat", "/proc/self/stat"], text=True).stdout.split()
    pid, group, session, terminal = fields[0], fields[4], fields[5], fields[6]
    assert (pid, pid, "0") == (group, session, terminal)


# --- Users ------------------------------------------------------------------------------------------------------------------

needs_ids = pytest.mark.skipif(os.geteuid() != 0, reason="needs a range of ids")


@needs_ids
@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("12:34", "12 34 34"),
        ("daemon", "1 1 1"),
        ("daemon:mail", "1 8 8"),
        ("1:mail", "1 8 8"),
        ("nobody:nogroup", "65534 65534 65534"),
        ((7, 8), "7 8 8"),
        ("0:0", "0 0 0"),
    ],
)
def test_user_by_ids_and_by_names_inside(runner, user, expected):
    done = runner(["sh", "-c", "echo $(id -u) $(id -g) $(id -G)"], user=user, text=True)
    assert expected + "\n" == done.stdout


@needs_ids
def test_user_names_are_looked_up_inside(box):
    box.files.write("/etc/passwd", "root:x:0:0::/root:/bin/sh\nalice:x:4321:4322::/:/bin/sh\n")
    box.files.write("/etc/group", "root:x:0:\nalice:x:4322:\nsound:x:50:bob,alice\nvideo:x:51:alice\nno:x:52:malice\n")
    done = box.run(["sh", "-c", "id -u; id -g; id -G"], user="alice", text=True)
    assert "4321\n4322\n4322 50 51\n" == done.stdout


@needs_ids
@pytest.mark.parametrize(
    ("user", "home"),
    [(None, "/root"), (0, "/root"), ("root", "/root"), ("daemon", "/usr/sbin"), ("nobody:mail", "/nonexistent"), ("1:8", "/"), (7, "/")],
)  # fmt: skip
def test_home_is_the_users(runner, user, home):
    assert f"{home}\n" == runner(["sh", "-c", "echo $HOME"], user=user, text=True).stdout


@needs_ids
def test_home_of_a_user_whose_line_has_none_is_the_root(box):
    box.files.write("/etc/passwd", "a:x:1:1\nb:x:2:2::relative:\nc:x:3:3::/h\x1b[2J:\nd:x:4:4::/home/d:/bin/sh\n")
    homes = [box.run(["/bin/sh", "-c", "echo $HOME"], user=name, text=True).stdout for name in "abcd"]
    assert ["/\n", "/\n", "/\n", "/home/d\n"] == homes


@needs_ids
def test_environment_that_is_given_is_the_whole_for_users_too(runner):
    assert "A=1\n" == runner(["/usr/bin/env"], env={"A": "1"}, user="daemon", text=True).stdout


@needs_ids
def test_user_as_a_value_with_groups(runner):
    from containerkit import User

    done = runner(["id", "-G"], user=User(5, 6, (7, 8)), text=True)
    assert "6 7 8\n" == done.stdout


@pytest.mark.parametrize("user", ["no such user", "root:no such group", "nobody_:x"])
def test_user_names_that_are_not_there_are_refused(runner, user):
    with pytest.raises(SpecError, match="has no"):
        runner(["true"], user=user)


INVALID_USERS = [
    *("", ":", "1:", ":1", "1:2:3", "-1", "+1", "1x:2", "0x0", " 0", "4294967295", "1:4294967295", "\uff10"),
    *(2**32, -1, True, 1.5, b"0", (1,), (1, 2, 3, 4), ("a", "b")),
]


def test_user_is_parsed_strictly(runner):
    """CVE-2026-30892: an invalid user must never become root."""
    assert [] == [user for user in INVALID_USERS if refusal(runner, user=user) is None]


@needs_ids
def test_user_who_is_not_mapped_names_the_remedy(box):
    with pytest.raises(SetupError) as caught:
        box.run(["true"], user="70000:0")
    assert (errno.EINVAL, "setresuid") == (caught.value.errno, caught.value.operation)
    assert "uid_mappings" in caught.value.hint


# --- Terminals --------------------------------------------------------------------------------------------------------------


def read_until(file, word, patience_s=30.0):
    seen = b""
    deadline = time.monotonic() + patience_s
    while word not in seen:
        assert time.monotonic() < deadline, seen
        ready, _, _ = select.select([file], [], [], 0.1)
        if ready:
            seen += os.read(file.fileno(), 4096)
    return seen


def test_pty_is_a_terminal_of_the_container(box):
    done = box.run(["sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo all"], pty=True, text=True)
    assert re.fullmatch(r"/dev/pts/\d+\nall\n", done.stdout)


def test_pty_in_one_shot():
    assert re.fullmatch(r"/dev/pts/\d+\n", run(["tty"], pty=True, text=True).stdout)


def test_pty_has_the_size_asked_for(box):
    assert "33 101\n" == box.run(["stty", "size"], pty=(33, 101), text=True).stdout


def test_pty_resize_is_seen_and_signalled(box):
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.05; done"
    with box.popen(["sh", "-c", script], pty=(24, 80)) as process:
        read_until(process.stdout, b"ready")
        process.resize(50, 132)
        assert b"50 132" in read_until(process.stdout, b"50 132")
        assert 0 == process.wait(timeout=60)


def test_pty_is_the_controlling_terminal(box):
    with box.popen(["sh", "-c", "echo through >/dev/tty; ps -o tty= -p $$"], pty=True) as process:
        seen = read_until(process.stdout, b"pts/")
        assert b"through" in seen
        process.wait(timeout=60)


def test_pty_control_c_interrupts(box):
    with box.popen(["sh", "-c", "echo ready; exec sleep 30"], pty=True) as process:
        read_until(process.stdout, b"ready")
        process.stdin.write(b"\x03")
        assert -signal.SIGINT == process.wait(timeout=60)


def test_pty_control_d_ends_the_input(box):
    with box.popen(["cat"], pty=True) as process:
        process.stdin.write(b"hello\n\x04")
        assert b"hello" in read_until(process.stdout, b"hello\r\nhello")
        assert 0 == process.wait(timeout=60)


def test_pty_hang_up_when_the_master_closes(box):
    process = box.popen(["sleep", "30"], pty=True)
    process.stdin.close()
    process.stdout.close()
    assert -signal.SIGHUP == process.wait(timeout=60)


def test_pty_of_an_unprivileged_user_can_be_opened_by_name(box):
    if os.geteuid():
        pytest.skip("needs a range of ids")
    done = box.run(["sh", "-c", "echo yes >$(tty)"], pty=True, user="12:12", text=True)
    assert (0, "yes\n") == (done.returncode, done.stdout)


def test_pty_interactive_shell_has_job_control(box):
    with box.popen(["sh", "-i"], pty=True, env={"PS1": "ready$ ", "PATH": "/usr/bin:/bin"}) as process:
        seen = read_until(process.stdout, b"ready$ ")
        assert b"job control" not in seen
        process.stdin.write(b"sleep 30\n")
        time.sleep(0.2)
        process.stdin.write(b"\x03")
        process.stdin.write(b"echo st=$?\n")
        assert b"st=130" in read_until(process.stdout, b"st=130")
        process.stdin.write(b"exit 4\n")
        assert 4 == process.wait(timeout=60)


def test_pty_many_at_once(box):
    processes = [box.popen(["tty"], pty=True) for _ in range(20)]
    names = {read_until(process.stdout, b"\n") for process in processes}
    assert 20 == len(names)
    for process in processes:
        process.close()


@pytest.mark.parametrize("size", [(0,), (1, 2, 3), ("a", "b"), (70000, 1), (-1, 5), "big", 1.5])
def test_pty_sizes_that_cannot_be_are_refused(box, size):
    with pytest.raises(SpecError, match="pty"):
        box.run(["true"], pty=size)


def test_resize_without_a_terminal(box):
    with box.popen(["true"]) as process, pytest.raises(StateError, match="pty=True"):
        process.resize(1, 1)


# --- The embedding program ------------------------------------------------------------------------------------------------


def test_embedding_program_may_handle_sigchld(runner):
    seen = []
    before = signal.signal(signal.SIGCHLD, lambda *_: seen.append(1))
    try:
        assert [0, 3] == [runner(["true"]).returncode, runner(["sh", "-c", "exit 3"]).returncode]
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_embedding_program_may_ignore_sigchld(runner):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        ends = [runner(["sh", "-c", word]).returncode for word in ("exit 0", "exit 3", "sh -c 'kill -9 $$'; exit $?")]
        assert [0, 3, 137] == ends
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_embedding_program_may_reap_everything(runner):
    """With a loop of waitpid(-1), as in old supervisors, the end is still noticed."""
    stop = threading.Event()

    def reap():
        while not stop.is_set():
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                time.sleep(0.001)

    thread = threading.Thread(target=reap)
    thread.start()
    try:
        codes = [runner(["sh", "-c", f"exit {number}"]).returncode for number in range(30)]
    finally:
        stop.set()
        thread.join()
    assert list(range(30)) == codes


def test_embedding_program_is_interrupted_by_its_own_signals(runner):
    """A signal handler runs during the wait of a run, and its exception ends the run."""

    def bell(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, bell)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner(["sleep", "30"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("delay_us", range(100, 3100, 200))
def test_embedding_program_is_interrupted_in_the_midst_of_a_start(runner, delay_us):
    """A signal that arrives while signals are blocked is handled before the command ends."""

    def bell(*_):
        raise KeyboardInterrupt

    runner(["true"])  # creates the objects that a process creates once
    before = signal.signal(signal.SIGALRM, bell)
    gc.disable()  # an exception in what somebody does at a collection is lost
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, delay_us / 1e6)
            runner(["sleep", "30"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 20


def test_embedding_program_goes_on_after_signals(runner):
    seen = []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        done = runner(["sh", "-c", "sleep 0.3; echo ok"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert b"ok\n" == done.stdout
    assert len(seen) > 5


@pytest.mark.parametrize("runner", ["one shot", "container", "no init"], indirect=True)
def test_embedding_program_may_have_few_descriptors(runner):
    """If descriptors run out, the error says so, and opened ones are closed."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outcomes = []
    for extra in range(30):
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + extra, hard))
        try:
            outcomes.append(runner(["true"]).returncode)
        except OSError as error:
            outcomes.append(errno.errorcode[error.errno])
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    refused = outcomes.count("EMFILE")
    assert refused > 0
    assert ["EMFILE"] * refused + [0] * (30 - refused) == outcomes


def test_output_is_bytes_io_ready(runner):
    assert [b"a\n", b"b\n"] == list(io.BytesIO(runner(["printf", "a\\nb\\n"]).stdout))


def test_starts_whatever_numbers_are_free():
    """A start opens the lowest free numbers, and some numbers are reserved for the streams and for init."""
    code = """
import os, random, sys
from containerkit import Container, run
held = [os.dup(2) for _ in range(20)] if sys.argv[1] == "late" else []
run(["true"])
null = os.open("/dev/null", os.O_RDWR)
for number in range(3, 16):
    try: os.fstat(number)
    except OSError: os.dup2(null, number); held.append(number)
own = [number for number in range(3, 16) if number in held]
chance = random.Random(1)
for _ in range(int(sys.argv[2])):
    free = chance.sample(own, chance.randint(0, len(own)))
    for number in free: os.close(number)
    try:
        done = run(["sh", "-c", "cat; echo e >&2; exit 5"], input=b"in")
        assert (5, b"in", b"e\\n") == (done.returncode, done.stdout, done.stderr), done
        with Container() as box:
            done = box.run(["sh", "-c", "cat; exit 6"], input=b"in")
            assert (6, b"in") == (done.returncode, done.stdout), done
            box.files.write("/x", "y")
            assert ["/x"] == [change.path for change in box.changes()]
        try: run(["no-such"])
        except OSError as error: assert error.errno == 2
        else: raise AssertionError("not told")
    finally:
        for number in free: os.dup2(null, number)
print("ok")
"""
    for when in ("late", "early"):
        done = subprocess.run(
            [sys.executable, "-c", code, when, f"{examples(ci=25, nightly=100)}"],
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert ("ok\n", "") == (done.stdout, done.stderr)


_CLOSED_STDIN = """
import os
os.close(0)
from containerkit import PIPE, Container, Limits, run
limits = Limits(pids=50) if os.geteuid() == 0 else None
seen = []
for _ in range(2):
    with Container(limits=limits) as c:
        with c.popen(["readlink", "/proc/self/fd/0"], stdout=PIPE, text=True) as process:
            seen.append(process.communicate()[0])
    seen.append(run(["readlink", "/proc/self/fd/0"], stdin=None, text=True).stdout)
assert set(seen) == {"/dev/null\\n"}, seen
"""


def test_stdin_that_the_caller_has_closed_is_none_of_its_own_descriptors():
    done = subprocess.run([sys.executable, "-c", _CLOSED_STDIN], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


# --- Terminals


@pytest.mark.parametrize("text", [False, True])
def test_output_of_a_terminal_is_read_to_its_end(text):
    """The kernel returns EIO when the other side is closed. Earlier output is not lost."""
    end = "\n" if text else b"\r\n"
    with Container() as container:
        for read in (lambda f: f.read(), lambda f: "".join(f) if text else b"".join(f)):
            with container.popen(["sh", "-c", "echo one; echo two"], pty=True, text=text) as process:
                expected = f"one{end}two{end}" if text else b"one" + end + b"two" + end
                assert expected == read(process.stdout)
                assert ("" if text else b"") == process.stdout.read()
            assert 0 == process.returncode


def test_lines_of_a_terminal_are_read_one_by_one():
    with (
        Container() as container,
        container.popen(["sh", "-c", "echo one; read answer; echo $answer"], pty=True, text=True) as process,
    ):
        assert "one\n" == process.stdout.readline()
        process.stdin.write("two\n")
        assert ["two\n", "two\n", ""] == [process.stdout.readline() for _ in range(3)]


# --- Processes without a wait


def zombies():
    children = pathlib.Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    return [pid for pid in children if state_of(pid) == "Z"]


def own_descriptors():
    return len(os.listdir("/proc/self/fd"))


def test_what_nobody_waits_for_is_reaped_as_others_are_started():
    with Container() as box:
        box.run(["true"], stdout=DEVNULL)
        before = own_descriptors()
        for _ in range(60):
            box.popen(["true"], stdout=DEVNULL)
            time.sleep(0.005)
        for _ in range(5):
            box.run(["true"])
            time.sleep(0.02)
        assert len(zombies()) <= 4
        assert own_descriptors() <= before + 4


def test_process_that_another_start_has_reaped_reports_its_end_as_before():
    with Container() as box:
        early = box.popen(["sh", "-c", "echo written; exit 7"], stdout=PIPE)
        wait_until(lambda: state_of(early.pid) == "Z")
        box.run(["true"])
        assert 7 == early.returncode
        assert (b"written\n", None) == early.communicate()
        assert 7 == early.wait(1)
        assert "exit" == early.cause


def test_long_lived_processes_do_not_keep_others_from_being_reaped():
    with Container() as box:
        sleepers = [box.popen(["sleep", "60"]) for _ in range(10)]
        early = box.popen(["true"])
        wait_until(lambda: state_of(early.pid) == "Z")
        for _ in range(3):
            box.run(["true"])
        assert 0 == early.returncode
        assert all(sleeper.poll() is None for sleeper in sleepers)

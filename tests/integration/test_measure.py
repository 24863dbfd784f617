"""Measurements and limits of commands, modelled on BenchExec's test_runexecutor."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest

from containerkit import CGroup, Container, Limits, SpecError, StateError
from containerkit.measure import RunExecutor

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("warm", "nothing_left")]

if os.geteuid() != 0:
    pytest.skip("needs root: control groups", allow_module_level=True)

LOOP = ["sh", "-c", "i=0; while :; do i=$((i+1)); done"]


@pytest.fixture(scope="module")
def warm():
    """Create the objects that a process creates once and keeps: the layout of the control groups."""
    with Container(limits=Limits(memory="max", pids="max")):
        pass


@pytest.fixture
def executor():
    with RunExecutor() as made:
        yield made


def test_exit_status_and_times(executor):
    done = executor.execute_run(["sh", "-c", "sleep 0.2; exit 7"])
    assert (done.returncode, done.termination, done.exit_signal) == (7, None, None)
    assert 0.2 <= done.wall_s < 5
    assert 0 < done.cpu_s < 0.2
    assert done.memory_peak_bytes > 0
    assert executor.execute_run(["true"]).returncode == 0


def test_signal_is_reported(executor):
    done = executor.execute_run(["sh", "-c", "kill -TERM $$"])
    assert (done.returncode, done.exit_signal, done.termination) == (-15, 15, None)


def test_cputime_limit(executor):
    done = executor.execute_run(LOOP, cpu_limit_s=0.5)
    assert (done.returncode, done.termination) == (-9, "cputime")
    assert 0.5 <= done.cpu_s < 0.8


def test_cputime_of_children_that_nobody_waits_for_counts(executor):
    script = "(while :; do :; done) & (while :; do :; done) & exec sleep 60"
    done = executor.execute_run(["sh", "-c", script], cpu_limit_s=0.6)
    assert done.termination == "cputime"
    assert 0.6 <= done.cpu_s < 1.0


def test_cputime_of_a_daemon_counts(executor):
    work = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; : > /tmp/done"
    done = executor.execute_run(["sh", "-c", f"setsid sh -c '{work}' & while [ ! -e /tmp/done ]; do sleep 0.05; done"])
    assert (done.returncode, done.termination) == (0, None)
    assert done.cpu_s > 0.1


def test_soft_limit_asks_first(executor):
    asked = ["sh", "-c", "trap 'exit 3' TERM; while :; do :; done"]
    done = executor.execute_run(asked, soft_cpu_limit_s=0.3, cpu_limit_s=10)
    assert (done.returncode, done.termination) == (3, "cputime-soft")
    deaf = ["sh", "-c", "trap '' TERM; while :; do :; done"]
    done = executor.execute_run(deaf, soft_cpu_limit_s=0.3, cpu_limit_s=0.6)
    assert (done.returncode, done.termination) == (-9, "cputime")


def test_walltime_limit(executor):
    done = executor.execute_run(["sleep", "60"], wall_limit_s=0.5)
    assert (done.returncode, done.termination) == (-9, "walltime")
    assert 0.5 <= done.wall_s < 2
    assert done.cpu_s < 0.3
    done = executor.execute_run(LOOP, wall_limit_s=0.4, cpu_limit_s=50)
    assert done.termination == "walltime"


def test_memory_limit(executor):
    done = executor.execute_run(["tail", "/dev/zero"], memory_limit="50M")
    assert (done.returncode, done.termination) == (-9, "memory")
    assert done.oom_kills >= 1
    assert 30_000_000 < done.memory_peak_bytes <= 52 * 1024 * 1024


def test_memory_of_children_counts_with_no_limit(executor):
    script = (
        "a = bytearray(60 << 20); import os, time; os.fork() and os.wait(); time.sleep(0.1); b = bytearray(60 << 20)"
    )
    done = executor.execute_run(["python3", "-SEc", script])
    assert done.termination is None
    assert done.memory_peak_bytes > 110 << 20


def test_files_in_memory_count(executor):
    done = executor.execute_run(["dd", "if=/dev/zero", "of=/tmp/file", "bs=1M", "count=40"])
    assert done.memory_peak_bytes > 40 << 20


def test_stop_from_another_thread(executor):
    timer = threading.Timer(0.5, executor.stop)
    timer.start()
    done = executor.execute_run(["sleep", "60"])
    timer.join()
    assert (done.returncode, done.termination) == (-9, "killed")
    assert done.wall_s < 10
    with pytest.raises(StateError):
        executor.execute_run(["true"])


def test_output_goes_to_a_file(executor, tmp_path):
    done = executor.execute_run(["sh", "-c", "echo out; echo err >&2"], output=tmp_path / "log")
    assert done.returncode == 0
    assert (tmp_path / "log").read_text() == "out\nerr\n"
    words = ["sh", "-c", "echo out; echo err >&2"]
    executor.execute_run(words, output=tmp_path / "log", error_output=tmp_path / "errors")
    assert ((tmp_path / "log").read_text(), (tmp_path / "errors").read_text()) == ("out\n", "err\n")


def test_input_environment_and_directory(executor, tmp_path):
    (tmp_path / "in").write_text("hello\n")
    with open(tmp_path / "in") as stdin:
        words = ["sh", "-c", "cat; echo $A; pwd"]
        executor.execute_run(words, stdin=stdin, extra_env={"A": "1"}, cwd="/usr", output=tmp_path / "log")
    assert (tmp_path / "log").read_text() == "hello\n1\n/usr\n"


def test_missing_program_is_an_error(executor):
    with pytest.raises(FileNotFoundError):
        executor.execute_run(["no-such-program"])


@pytest.mark.parametrize(
    "wrong", [{"cpu_limit_s": 0}, {"wall_limit_s": -1}, {"soft_cpu_limit_s": "1"}, {"memory_limit": "x"}]
)
def test_limits_that_cannot_be_are_refused(executor, wrong):
    with pytest.raises(SpecError):
        executor.execute_run(["true"], **wrong)


def test_runs_are_on_processors_of_their_own():
    with RunExecutor(cores=1) as executor:
        assert len(executor.allotments) >= 1
        shown = []

        def work():
            done = executor.execute_run(["sh", "-c", "sleep 0.3; grep -q Cpus_allowed_list /proc/self/status"])
            shown.append((done.cores, done.returncode))

        threads = [threading.Thread(target=work) for _ in range(2 * len(executor.allotments))]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - began >= 0.6  # the second half waited
        assert sorted(shown) == sorted([(each.cores, 0) for each in executor.allotments] * 2)


def test_processors_are_what_the_run_sees(tmp_path):
    with RunExecutor(cores=1, runs=1) as executor:
        executor.execute_run(["grep", "Cpus_allowed_list", "/proc/self/status"], output=tmp_path / "log")
        assert (tmp_path / "log").read_text().split()[-1] == str(executor.allotments[0].cores[0])
        done = executor.execute_run(["true"], cores=[1])
        assert done.cores == (1,)


def test_throttling_is_reported(executor):
    done = executor.execute_run(LOOP, wall_limit_s=1, limits=Limits(cpus=0.05))
    assert done.throttled_s > 0.1
    assert done.cpu_s < 1


def test_measurement_is_data(executor):
    done = executor.execute_run(["true"], memory_limit="100M")
    told = json.loads(done.to_json())
    assert told["argv"] == ["true"]
    assert told["returncode"] == 0
    assert abs((datetime.now(UTC) - datetime.fromisoformat(told["started_at"])).total_seconds()) < 60
    assert told["memory_peak_bytes"] == done.memory_peak_bytes


def test_executor_of_a_killed_process_leaves_nothing(left_of):
    long = f"987654.{os.getpid()}"
    code = (
        "from containerkit.measure import RunExecutor\n"
        "print('x', flush=True)\n"
        f"RunExecutor().execute_run(['sleep', '{long}'], memory_limit='100M')"
    )

    def kill():
        owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        owner.stdout.readline()
        time.sleep(0.5)
        owner.kill()
        owner.wait()
        owner.stdout.close()
        CGroup.create().remove()  # creating a group removes those of killed owners

    assert left_of(kill) == {}
    assert subprocess.run(["pgrep", "-f", f"^sleep {long}"], capture_output=True).returncode == 1


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_command_line(form, tmp_path):
    words = [
        sys.executable,
        "-m",
        "containerkit.measure",
        *form,
        "--memory-limit",
        "50M",
        "--",
        "sh",
        "-c",
        "echo hi; exit 4",
    ]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (4, "hi\n")
    told = json.loads(done.stdout) if form else dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert str(told["returncode"]) == "4"
    assert float(told["wall_s"]) > 0


def test_command_line_ends_the_run_when_it_is_asked_to():
    words = [sys.executable, "-m", "containerkit.measure", "--json", "--", "sh", "-c", "echo begun; sleep 60"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "begun\n"
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (137, "")
    assert json.loads(out)["termination"] == "killed"


def test_command_line_names_what_is_wrong():
    done = subprocess.run(
        [sys.executable, "-m", "containerkit.measure", "--", "no-such-program"], capture_output=True, text=True
    )
    assert done.returncode == 125
    assert "no-such-program" in done.stderr
    done = subprocess.run([sys.executable, "-m", "containerkit.measure"], capture_output=True, text=True)
    assert done.returncode == 125

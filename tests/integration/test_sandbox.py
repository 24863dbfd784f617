"""Commands in a sandbox without namespaces."""

import os
import signal
import socket
import sys
import threading
import time

import pytest

from containerkit import (
    CONTINUE,
    PIPE,
    ContainerTimeout,
    ExitError,
    Fail,
    Landlock,
    Sandbox,
    Seccomp,
    SetupError,
    SpecError,
    UnsupportedError,
)
from containerkit.security.landlock import abi

pytestmark = [
    pytest.mark.usefixtures("interpreter", "nothing_left"),
    pytest.mark.skipif(abi() == 0, reason="the kernel has no Landlock (Linux 5.13, lsm=landlock)"),
]
PROGRAMS = (
    Landlock(strict=False)
    .allow_execute("/usr", "/bin", "/lib")
    .allow_execute("/lib64", optional=True)
    .allow_read("/proc", "/dev")
    .allow("/dev/null", rights=["write_file"])
)
BOX = Sandbox(landlock=PROGRAMS)


def test_command_runs_as_the_caller():
    done = BOX.run(["sh", "-c", "id -u; pwd; echo $HOME; env | wc -l"], text=True, check=True)
    uid, cwd, home, _ = done.stdout.split()
    assert (str(os.geteuid()), "/", "/root", "exit") == (uid, cwd, home, done.cause)


def test_input_output_and_status():
    done = BOX.run(["sh", "-c", "cat; echo error >&2; exit 3"], input="given", text=True)
    assert ("given", "error\n", 3) == (done.stdout, done.stderr, done.returncode)
    with pytest.raises(ExitError):
        BOX.run(["false"], check=True)


def test_files_out_of_reach(tmp_path):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "open").mkdir()
    box = Sandbox(landlock=PROGRAMS.allow_write(tmp_path / "open"))
    script = f"cat {tmp_path}/secret; echo x > {tmp_path}/new; echo x > {tmp_path}/open/new; ls {tmp_path}"
    done = box.run(["sh", "-c", script], text=True)
    assert 3 == done.stderr.count("Permission denied")
    assert ["secret"] == [path.name for path in tmp_path.iterdir() if path.is_file()]
    assert "x\n" == (tmp_path / "open/new").read_text()


def test_program_that_no_rule_allows_is_an_error_with_a_remedy():
    with pytest.raises(SetupError, match=r"Landlock\.allow_execute") as caught:
        Sandbox(landlock=Landlock(strict=False)).run(["true"])
    assert "execve" == caught.value.operation


def test_system_calls_are_filtered():
    assert "Operation not permitted" in BOX.run(["unshare", "-U", "true"], text=True).stderr
    refused = Sandbox(landlock=PROGRAMS, seccomp=Seccomp.default().deny("mkdir", errno=28))
    assert "No space left" in refused.run(["mkdir", "/tmp/x"], text=True).stderr


def test_rights_are_gone():
    done = BOX.run(["grep", "-E", "CapPrm|CapEff|CapAmb|NoNewPrivs|Seccomp:", "/proc/self/status"], text=True)
    values = dict(line.split() for line in done.stdout.splitlines())
    zero = "0000000000000000"
    assert {"CapPrm:": zero, "CapEff:": zero, "CapAmb:": zero, "NoNewPrivs:": "1", "Seccomp:": "2"} == values


def test_processes_outside_get_no_signal():
    done = BOX.run(["sh", "-c", f"kill -TERM {os.getpid()}"], text=True)
    assert 0 != done.returncode
    assert "not permitted" in done.stderr


def test_ports_and_abstract_sockets_are_out_of_reach():
    if abi() < 6:
        pytest.skip("Landlock ABI 6 (Linux 6.12) is needed")
    name = f"containerkit-sandbox-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0{name}")
        local.listen()
        port = server.getsockname()[1]
        code = (
            "import socket\n"
            f"for family, address in ((socket.AF_INET, ('127.0.0.1', {port})), (socket.AF_UNIX, '\\0{name}')):\n"
            "    try: socket.socket(family).connect(address); print('connected')\n"
            "    except OSError as e: print(e.errno)\n"
        )
        assert ["13", "1"] == BOX.run(["/usr/bin/python3", "-c", code], text=True).stdout.split()
        allowed = Sandbox(landlock=PROGRAMS.allow_connect(port))
        assert ["connected", "1"] == allowed.run(["/usr/bin/python3", "-c", code], text=True).stdout.split()


def test_descriptors_are_not_inherited():
    read_end, write_end = os.pipe()
    os.set_inheritable(read_end, True)
    try:
        names = BOX.run(["ls", "/proc/self/fd"], text=True).stdout.split()
        passed = BOX.run(["ls", "/proc/self/fd"], pass_fds=[read_end], text=True).stdout.split()
    finally:
        os.close(read_end)
        os.close(write_end)
    assert ["0", "1", "2", "3"] == names  # 3 is the directory that ls reads
    assert str(read_end) in passed


def test_fields_of_the_command(tmp_path):
    tmp_path.chmod(0o755)
    script = "pwd; umask; ulimit -n; nice; echo $A"
    done = BOX.run(
        ["sh", "-c", script],
        cwd="/usr",
        umask=0o077,
        rlimits={"nofile": 50},
        nice=5,
        env={"A": "b", "PATH": "/usr/bin:/bin"},
        text=True,
    )
    assert ["/usr", "0077", "50", "5", "b"] == done.stdout.split()


def test_timeout_ends_it_with_all_it_has_started():
    began = time.monotonic()
    with pytest.raises(ContainerTimeout) as caught:
        BOX.run(["sh", "-c", "echo begun; sleep 60 & sleep 60"], timeout=0.3, text=True)
    assert "begun\n" == caught.value.stdout
    assert time.monotonic() - began < 10


def test_output_is_limited():
    assert "output" == BOX.run(["yes"], output_limit_bytes=100_000, timeout=30).cause


def test_popen_talks():
    with BOX.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        process.stdin.write("hello\n")
        process.stdin.close()
        assert "hello\n" == process.stdout.read()
    assert 0 == process.returncode


def test_handler_decides():
    seen = []

    def handler(request):
        seen.append(request.name)
        return Fail(28) if "no" in request.read_text(request.args[0]) else CONTINUE

    box = Sandbox(landlock=PROGRAMS, seccomp=Seccomp.default().notify("mkdir"))
    done = box.run(["mkdir", "/tmp/no"], syscall_handler=handler, text=True)
    assert (["mkdir"], True) == (seen, "No space left" in done.stderr)
    with pytest.raises(SpecError, match="pass syscall_handler="):
        box.run(["true"])


def test_cause_is_seccomp():
    done = Sandbox(landlock=PROGRAMS, seccomp=Seccomp.default().kill("mkdir")).run(["mkdir", "/tmp/x"])
    assert (-signal.SIGSYS, "seccomp") == (done.returncode, done.cause)


def test_from_a_thread():
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(BOX.run(["echo", "x"], text=True).stdout)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ["x\n"] * 4 == results


def test_report_lists_what_is_and_what_is_not_in_force():
    report = BOX.report()
    assert {"no capabilities", "no new privileges", "seccomp", "write_file"} <= set(report.enforced)
    assert any("no namespace" in each for each in report.uncovered)
    assert any("no control group" in each for each in report.uncovered)
    assert "seccomp" not in Sandbox(landlock=PROGRAMS, seccomp=None).report().enforced
    assert "no set-id bits" in report.enforced
    assert "no set-id bits" not in Sandbox(landlock=PROGRAMS, set_id_bits=True).report().enforced
    assert "not enforced: refer: it needs Landlock ABI 2" in str(BOX.report(kernel_abi=1))


def test_report_is_true_about_processes_in_sight():
    """The report lists only what is really not covered: this test fails if an item is covered."""
    assert str(os.getpid()) in BOX.run(["ls", "/proc"], text=True).stdout.split()
    assert os.uname().nodename == BOX.run(["uname", "-n"], text=True).stdout.strip()


def test_kernel_that_cannot_hold_it_is_an_error(monkeypatch):
    from containerkit.security import landlock

    monkeypatch.setattr(landlock, "abi", lambda: 2)
    with pytest.raises(UnsupportedError, match="strict=False"):
        Sandbox().run(["true"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"user": "0"}, "unknown argument 'user'"),
        ({"cwd": "relative"}, "cwd"),
        ({"nice": 99}, "nice"),
        ({"rlimits": (1, 2, 3)}, "rlimits"),
        ({"syscall_handler": 5}, "syscall_handler"),
        ({"env": [5]}, "env"),
        ({"pass_fds": "x"}, "pass_fds"),
    ],
)
def test_wrong_fields_are_refused(wrong, message):
    with pytest.raises(SpecError, match=message):
        BOX.run(["true"], **wrong)


def test_it_dies_with_the_caller():
    """The kernel ends it when the process that started it is killed."""
    import subprocess

    code = (
        "import os, sys, time\n"
        "from containerkit import Landlock, Sandbox\n"
        "rules = Landlock(strict=False).allow_execute('/usr', '/bin', '/lib').allow_execute('/lib64', optional=True)\n"
        "process = Sandbox(landlock=rules.allow_read('/dev', '/proc')).popen(['sleep', '60'])\n"
        "print(process.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as caller:
        pid = int(caller.stdout.readline())
        pidfd = os.pidfd_open(pid)
        caller.kill()
    import select

    ended = select.select([pidfd], [], [], 5)[0]
    os.close(pidfd)
    assert ended

"""The sandbox without namespaces, tested by a process inside it."""

import errno
import os
import socket
import subprocess
import threading

import pytest
from security_child import attempt, in_child, status_field

from containerkit.errors import SpecError, StateError
from containerkit.plan.tape import Plan
from containerkit.sandbox import Sandbox
from containerkit.security.direct import perform
from containerkit.security.landlock import Landlock, abi
from containerkit.security.personality import Personality
from containerkit.security.seccomp import Seccomp
from containerkit.security.seccomp.architecture import architecture, calls_of

CALLS = calls_of(architecture(os.uname().machine).table)
ABI = abi()
pytestmark = pytest.mark.skipif(ABI == 0, reason="the kernel has no Landlock (Linux 5.13, lsm=landlock)")

RELAXED = Landlock(strict=False)


def test_sandbox_holds_files_calls_and_capabilities(tmp_path):
    (tmp_path / "inside").mkdir()
    ruleset = RELAXED.allow_execute("/usr", "/bin", "/lib").allow_execute("/lib64", optional=True)
    sandbox = Sandbox(landlock=ruleset.allow_write(tmp_path / "inside").allow_read("/proc"))

    def work():
        report = sandbox.apply()
        (tmp_path / "inside/file").write_text("x")
        try:
            (tmp_path / "outside").write_text("x")
            outside = "written"
        except PermissionError:
            outside = "denied"
        done = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        fields = dict(line.split(":", 1) for line in done.splitlines())
        shown = [fields[name].strip() for name in ("CapEff", "CapPrm", "CapAmb", "NoNewPrivs", "Seccomp")]
        return [
            outside,
            shown,
            attempt(CALLS["unshare"], 0x10000000),
            attempt(CALLS["ptrace"], 0, 0, 0, 0),
            "seccomp" in report.enforced,
        ]

    zero = "0000000000000000"
    assert in_child(work) == ["denied", [zero, zero, zero, "1", "2"], -errno.EPERM, -errno.EPERM, True]


def test_sandbox_needs_no_privilege(tmp_path):
    tmp_path.chmod(0o755)

    def work():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        Sandbox(landlock=RELAXED.allow_read("/proc")).apply()
        try:
            os.listdir("/")
        except PermissionError:
            return status_field("Seccomp")

    assert in_child(work) == "2"


def test_sandbox_reports_missing_protection():
    report = Sandbox(landlock=RELAXED).report(ABI)
    assert any("there are no namespaces" in each for each in report.uncovered)
    assert any("UDP" in each for each in report.uncovered)
    assert {"no capabilities", "no new privileges", "seccomp"} <= set(report.enforced)
    assert "seccomp" not in Sandbox(landlock=RELAXED, seccomp=None).report(ABI).enforced


def test_sandbox_reports_that_udp_is_not_covered():
    def work():
        Sandbox(landlock=RELAXED).apply()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
            return datagrams.sendto(b"x", ("127.0.0.1", 9))

    assert in_child(work) == 1


def test_sandbox_with_a_filter_of_its_own():
    def work():
        Sandbox(landlock=RELAXED, seccomp=Seccomp.permissive().deny("getppid", errno=77)).apply()
        return [attempt(CALLS["getppid"]), attempt(CALLS["ptrace"], 0, 0, 0, 0)]

    assert in_child(work) == [-77, 0]


def test_sandbox_refuses_to_leave_threads_out():
    def work():
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        try:
            Sandbox(landlock=RELAXED).apply()
        except StateError as error:
            return str(error)
        finally:
            release.set()
            thread.join()

    assert "other threads" in in_child(work)


@pytest.mark.parametrize("wrong", [{"landlock": "all"}, {"seccomp": "none"}, {"seccomp": 5}])
def test_sandbox_of_something_else_is_refused(wrong):
    with pytest.raises(SpecError):
        Sandbox(**wrong)


def test_sandbox_encodes_to_a_plan():
    assert Plan(Sandbox(landlock=RELAXED).operations(ABI)).encode().steps


def test_personality_is_set_and_the_default_filter_keeps_it():
    def work():
        perform([Personality("LINUX32").operation(), *Sandbox(landlock=RELAXED.allow_execute("/")).operations(ABI)])
        return [
            attempt(CALLS["personality"], 0xFFFFFFFF),
            attempt(CALLS["personality"], 0x0040000),
            os.uname().machine != "x86_64",
        ]

    assert in_child(work) == [8, -errno.EPERM, True]

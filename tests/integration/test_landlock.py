"""Landlock in the real kernel: the remaining permissions of a restricted process."""

import errno
import os
import shutil
import signal
import socket
import subprocess
import threading

import pytest
from security_child import in_child, status_field

from containerkit.errors import SetupError, StateError
from containerkit.plan.tape import Plan
from containerkit.security.landlock import FILES, Landlock, PathRule, abi

ABI = abi()
pytestmark = pytest.mark.skipif(ABI == 0, reason="the kernel has no Landlock (Linux 5.13, lsm=landlock)")


def needs(version):
    return pytest.mark.skipif(version > ABI, reason=f"Landlock ABI {version} is not there, it is {ABI}")


def error_of(work):
    """Return the name of the error that a function fails with, or None."""
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def under(ruleset, *works):
    def confined():
        ruleset.apply()
        return [error_of(work) for work in works]

    return in_child(confined)


def relaxed(**rest):
    """Everything that this kernel can restrict."""
    return Landlock(strict=False, **rest)


@pytest.fixture
def tree(tmp_path):
    for name in ("open", "shut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    return tmp_path


def test_empty_ruleset_forbids_every_file(tree):
    works = (
        lambda: open(tree / "open/file").close(),
        lambda: os.listdir(tree),
        (tree / "open/file").unlink,
        (tree / "new").mkdir,
        lambda: os.execv("/bin/true", ["true"]),
    )
    assert ["EACCES"] * 5 == under(relaxed(), *works)


def test_without_the_ruleset_the_same_succeeds(tree):
    assert [None] * 4 == in_child(
        lambda: [
            error_of(work)
            for work in (
                lambda: open(tree / "open/file").close(),
                lambda: os.listdir(tree),
                (tree / "open/file").unlink,
                (tree / "new").mkdir,
            )
        ]
    )


def test_reading_is_allowed_below_one_directory_only(tree):
    works = (
        lambda: open(tree / "open/file").close(),
        lambda: os.listdir(tree / "open"),
        lambda: open(tree / "shut/file").close(),
        lambda: open(tree / "open/file", "a").close(),
        lambda: open(tree / "open/../shut/file").close(),
    )
    assert [None, None, "EACCES", "EACCES", "EACCES"] == under(relaxed().allow_read(tree / "open"), *works)


def test_a_link_does_not_lead_out(tree):
    (tree / "open/link").symlink_to(tree / "shut/file")
    assert ["EACCES"] == under(relaxed().allow_read(tree / "open"), lambda: open(tree / "open/link").close())


def test_writing_makes_moves_and_removes_but_executes_nothing(tree):
    program = shutil.copy("/bin/true", tree / "open/program")
    works = (
        lambda: (tree / "open/new").write_text("y"),
        (tree / "open/directory").mkdir,
        lambda: os.rename(tree / "open/new", tree / "open/directory/moved"),
        lambda: os.symlink("x", tree / "open/link"),
        (tree / "open/directory/moved").unlink,
        lambda: os.rename(tree / "open/file", tree / "shut/file"),
        lambda: os.execv(program, ["program"]),
    )
    expected = [None, None, None if ABI >= 2 else "EXDEV", None, None if ABI >= 2 else "ENOENT"]
    assert [*expected, "EACCES" if ABI >= 2 else "EXDEV", "EACCES"] == under(
        relaxed().allow_write(tree / "open"), *works
    )


@needs(3)
def test_truncation_is_a_right_of_its_own(tree):
    ruleset = relaxed().allow(tree / "open", rights=["read_file", "write_file"])
    works = (lambda: os.truncate(tree / "open/file", 0), lambda: open(tree / "open/file", "r+").close())
    assert ["EACCES", None] == under(ruleset, *works)


@needs(5)
def test_device_requests_are_a_right_of_their_own():
    import fcntl

    def request():
        with open("/dev/zero", "rb", buffering=0) as device:
            fcntl.ioctl(device, 0x5401, bytearray(60))

    assert ["EACCES"] == under(relaxed().allow_read("/dev/zero"), request)
    assert ["ENOTTY"] == under(relaxed().allow("/dev/zero", rights=["read_file", "ioctl_dev"]), request)


def test_a_rule_on_a_file_leaves_out_what_only_a_directory_has(tree):
    file = tree / "open/file"
    works = (lambda: open(file, "a").close(), file.unlink)
    assert [None, "EACCES"] == under(relaxed().allow_write(file), *works)


def test_a_rule_on_a_file_with_rights_of_directories_alone_is_refused(tree):
    def work():
        try:
            relaxed().allow(tree / "open/file", rights=["make_dir"]).apply()
        except SetupError as error:
            return [error.operation, error.errno, error.hint]

    assert in_child(work) == ["landlock_add_rule", errno.EINVAL, "only a directory has these rights"]


def test_a_path_that_is_not_there_is_an_error_unless_optional(tree):
    def work(optional):
        try:
            relaxed().allow_read(tree / "missing", optional=optional).allow_read(tree / "open").apply()
        except SetupError as error:
            return [error.operation, error.target]
        return error_of(lambda: os.listdir(tree / "open"))

    assert in_child(lambda: work(False)) == ["openat", str(tree / "missing")]
    assert in_child(lambda: work(True)) is None


def test_programs_run_with_just_what_they_need(tree):
    ruleset = relaxed().allow_execute("/usr", "/bin", "/lib").allow_execute("/lib64", "/etc/ld.so.cache", optional=True)

    def work():
        ruleset.allow_read(tree / "open").apply()
        done = [
            subprocess.run(["cat", tree / name / "file"], capture_output=True, text=True, check=False)
            for name in ("open", "shut")
        ]
        return [done[0].stdout, done[1].returncode, "Permission denied" in done[1].stderr]

    assert in_child(work) == ["x", 1, True]


def listening():
    server = socket.create_server(("127.0.0.1", 0))
    return server, server.getsockname()[1]


@needs(4)
def test_tcp_ports():
    server, port = listening()
    other, forbidden = listening()
    with server, other:
        ruleset = relaxed(files=[], scopes=[]).allow_connect(port).allow_bind(0)
        works = (
            lambda: socket.create_connection(("127.0.0.1", port), 5).close(),
            lambda: socket.create_connection(("127.0.0.1", forbidden), 5).close(),
            lambda: socket.create_server(("127.0.0.1", 0)).close(),
            lambda: socket.create_server(("127.0.0.1", forbidden + 1 if forbidden < 65535 else 1024)).close(),
        )
        assert [None, "EACCES", None, "EACCES"] == under(ruleset, *works)


@needs(6)
def test_abstract_sockets_of_others_are_out_of_reach():
    name = f"\0containerkit test {os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()

        def connect():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)

        assert ["EPERM"] == under(relaxed(files=[], ports=[]), connect)
        assert [None] == under(relaxed(files=[], ports=[], scopes=["signal"]), connect)


@needs(6)
def test_signals_to_others_are_out_of_reach():
    parent = os.getpid()
    kill = (lambda: os.kill(parent, 0), lambda: os.kill(os.getpid(), 0))
    assert ["EPERM", None] == under(relaxed(files=[], ports=[]), *kill)
    assert [None, None] == under(relaxed(files=[], ports=[], scopes=["abstract_unix_socket"]), *kill)


@needs(6)
def test_children_inherit_it_and_can_be_signalled():
    def work():
        relaxed(files=[], ports=[]).apply()
        child = subprocess.Popen(["sleep", "10"])
        child.send_signal(signal.SIGTERM)
        return child.wait()

    assert in_child(work) == -signal.SIGTERM


def test_rulesets_can_only_be_tightened(tree):
    def work():
        relaxed().allow_read(tree).apply()
        relaxed().allow_read(tree / "open").apply()
        relaxed().allow_write("/").apply()
        works = (
            lambda: os.listdir(tree / "open"),
            lambda: os.listdir(tree / "shut"),
            lambda: (tree / "open/x").write_text(""),
        )
        return [error_of(each) for each in works]

    assert in_child(work) == [None, "EACCES", "EACCES"]


def test_apply_reports_what_is_enforced_and_sets_no_new_privs(tree):
    def work():
        report = relaxed().apply()
        return [report.abi, list(report.enforced), report.complete, status_or_none()]

    def status_or_none():
        # /proc itself is already inaccessible.
        import ctypes

        return ctypes.CDLL(None).prctl(39, 0, 0, 0, 0)

    found = in_child(work)
    assert found[0] == ABI
    assert set(FILES) - {name for name, first in FILES.items() if first > ABI} <= set(found[1])
    assert found[2:] == [relaxed().report(ABI).complete, 1]


def test_other_threads_are_an_error_unless_said_otherwise(tree):
    def work():
        release = threading.Event()
        thread = threading.Thread(target=release.wait)
        thread.start()
        try:
            relaxed().apply()
        except StateError as error:
            refused = str(error)
        relaxed().apply(this_thread_only=True)
        here = error_of(lambda: os.listdir(tree))
        release.set()
        thread.join()
        return [refused, here]

    assert in_child(work) == [
        "landlock: other threads would stay unrestricted: apply the ruleset before they start",
        "EACCES",
    ]


@needs(7)
def test_logging_flags_are_taken():
    assert ["EACCES"] == under(
        relaxed(logging=["same_exec_off", "new_exec_on", "subdomains_off"]), lambda: os.listdir("/")
    )


def test_operations_leave_no_descriptor_in_the_process(tree):
    def work():
        before = sorted(os.listdir("/proc/self/fd"))
        relaxed().allow_read("/proc", tree).allow_read(tree / "missing", optional=True).apply()
        return before == sorted(os.listdir("/proc/self/fd"))

    assert in_child(work) is True


def test_operations_need_no_new_privs():
    if os.geteuid() != 0:
        pytest.skip("needs root to give up being root")
    from containerkit.security.direct import perform

    def work():
        os.setresuid(65534, 65534, 65534)
        try:
            perform(relaxed().operations(ABI))
        except SetupError as error:
            return [error.operation, error.errno, "no_new_privs" in error.hint]

    assert status_field("NoNewPrivs") == "0"
    assert in_child(work) == ["landlock_restrict_self", errno.EPERM, True]


def test_operations_encode_to_a_plan():
    ruleset = relaxed().allow_write("/tmp", "/var/tmp").allow_read("/nowhere", optional=True).allow_connect(443)
    assert Plan(ruleset.operations(ABI)).encode().steps
    assert PathRule(path="/tmp", rights=["read_file"]).path == "/tmp"

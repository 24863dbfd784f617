"""The /proc, /sys and /dev of a container and its PID 1, attacked from inside and by processes that can write its root."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import pytest
from examples import examples
from oci_bundles import make_rootfs, needs_busybox

from containerkit import Container, Mount, Namespaces, RootFS, SetupError, run
from containerkit.compile import contents
from containerkit.start import context

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def root():
    """A root filesystem that another user can write to, in a directory that every user can enter."""
    needs_busybox()
    with tempfile.TemporaryDirectory(prefix="containerkit-proc-") as path:
        os.chmod(path, 0o755)
        yield make_rootfs(Path(path) / "root")


# --- A joined pid namespace -----------------------------------------------------------------------------------------------

LIST = "for each in /proc/[0-9]*; do tr '\\0' ' ' < $each/cmdline; echo; done"


@pytest.mark.parametrize("user", ["new", "joined"])
def test_proc_of_a_joined_pid_namespace_is_that_namespaces(user):
    with Container() as other, other.popen(["sleep", "77"]) as sleeper:
        names = {"pid": other.namespace("pid")} | ({"user": other.namespace("user")} if user == "joined" else {})
        shown = run(["sh", "-c", LIST], text=True, namespaces=Namespaces(**names)).stdout
        assert "sleep 77" in shown
        assert "init stay" in shown
        assert "pytest" not in shown
        with Container(namespaces=Namespaces(**names)) as joined:
            assert "pytest" not in joined.run(["sh", "-c", LIST], text=True).stdout
            assert "sleep 77" in joined.run(["sh", "-c", LIST], text=True).stdout
        sleeper.kill()


def test_proc_of_the_hosts_pid_namespace_is_the_documented_exception():
    shown = run(["sh", "-c", LIST], text=True, namespaces=Namespaces(pid="host")).stdout
    assert str(os.getpid()) in run(["ls", "/proc"], text=True, namespaces=Namespaces(pid="host")).stdout.split()
    assert "init stay" not in shown or "pytest" in shown


def test_proc_of_a_pid_namespace_that_another_user_namespace_owns(interpreter):
    """A user namespace of the caller does not own another's pid namespace, but the caller itself does."""
    with Container() as other:
        shown = run(["sh", "-c", LIST], text=True, namespaces=Namespaces(pid=other.namespace("pid"), network="host"))
        assert shown.returncode == 0
        assert "pytest" not in shown.stdout


# --- Roots whose kernel filesystems are symlinks ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
@pytest.mark.parametrize("to", ["tmp", "/tmp", "../../..", "var/tmp"])
def test_symlink_in_the_place_of_a_kernel_file_system_is_refused(root, name, to):
    shutil.rmtree(root / name)
    (root / name).symlink_to(to)
    with pytest.raises(SetupError, match=f"/{name}: .*symlink"):
        run(["true"], rootfs=RootFS.dir(root))
    with pytest.raises(SetupError, match=f"/{name}: .*symlink"):
        Container(RootFS.dir(root)).start()
    assert [] == os.listdir(root / "tmp")


@pytest.mark.parametrize("mount", [Mount.proc(), Mount.tmpfs("/sys"), Mount.tmpfs("/dev")], ids=str)
def test_symlink_is_refused_below_a_described_mount(root, mount):
    name = mount.target[1:]
    shutil.rmtree(root / name)
    (root / name).symlink_to("tmp")
    with pytest.raises(SetupError, match="symlink"):
        run(["true"], rootfs=RootFS.dir(root), mounts=[mount])


# --- Roots that change while a container starts ----------------------------------------------------------------------------


class Exchanger:
    """Exchange two names in a directory continuously, in a separate process, because a thread would wait for the starts."""

    def __init__(self, directory, one, other):
        code = f"""
import ctypes, os
libc = ctypes.CDLL(None)
one, other = {os.fsencode(directory / one)!r}, {os.fsencode(directory / other)!r}
while os.getppid() == {os.getpid()}:
    for _ in range(1000):
        libc.renameat2(-100, one, -100, other, 2)
"""
        self.process = subprocess.Popen(["python3", "-c", code])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def covers_lost(root, starts, namespaces):
    """Return how many of several containers have a procfs without covers, and how many had one at all.

    No more are started than it takes to see one without.
    """
    lost = seen = 0
    look = "for each in /proc /other; do [ -e $each/self ] && cat $each/self/mountinfo && exit; done; exit 3"
    for _ in range(starts):
        try:
            done = run(["/bin/sh", "-c", look], rootfs=RootFS.dir(root), text=True, timeout=20, namespaces=namespaces)
        except SetupError:
            continue
        lines = [line.split() for line in done.stdout.splitlines()]
        if not any(line[3] == "/" and " - proc " in " ".join(line) for line in lines):
            continue
        seen += 1
        lost += not any(line[3] == "/sys" and line[5].startswith("ro") for line in lines)
        if lost and seen > 20:
            break
    return lost, seen


NAMES = Namespaces(user="host") if os.geteuid() == 0 else Namespaces()


def test_covers_stay_on_a_proc_that_is_renamed_during_the_start(root):
    (root / "other").mkdir()
    with Exchanger(root, "proc", "other"):
        lost, seen = covers_lost(root, examples(ci=80, nightly=200), NAMES)
    assert seen > 20
    assert lost == 0


def test_covers_are_lost_if_they_are_resolved_by_name(root, monkeypatch):
    (root / "other").mkdir()
    monkeypatch.setattr(contents, "_below", lambda path: (contents.ROOT, path))
    context.programs.kept.clear()
    try:
        with Exchanger(root, "proc", "other"):
            lost, seen = covers_lost(root, 200, NAMES)
    finally:
        context.programs.kept.clear()
    assert seen > 20
    assert lost > 0


# --- Signals to PID 1 ---------------------------------------------------------------------------------------------------

QUEUE = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
for number in {numbers}:
    for code, pid in ((-1, 0), (-1, 99), (-6, 0), (0, 0), (1, 0)):
        info = ctypes.create_string_buffer(struct.pack("=iii4xii", number, 0, code, pid, 0).ljust(128, b"\\0"))
        libc.syscall({call}, 1, number, info)
"""


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "QUIT", "USR1", "KILL", "STOP"])
def test_signal_from_inside_does_not_reach_pid_1(name):
    with Container(seccomp=None) as container:
        container.run(["sh", "-c", f"kill -{name} 1"], text=True, timeout=60)
        assert container.state == "running"
        assert container.run(["true"]).returncode == 0


def test_signal_that_claims_to_be_the_owners_does_not_reach_pid_1():
    call = {"x86_64": 129, "aarch64": 138}[os.uname().machine]  # rt_sigqueueinfo
    code = QUEUE.format(numbers=[int(signal.SIGTERM), int(signal.SIGINT)], call=call)
    with Container(seccomp=None) as container:
        assert container.run(["python3", "-c", code], timeout=60).returncode == 0
        assert container.run(["true"]).returncode == 0
        assert container.state == "running"


def test_signal_of_the_owner_reaches_pid_1():
    with Container() as container:
        signal.pidfd_send_signal(container.fileno(), signal.SIGTERM)
        container._init.wait(10)
        assert container.state == "stopped"


def test_signal_from_inside_is_not_forwarded_to_the_command():
    code = "trap 'echo got; exit 3' TERM; sh -c 'kill -TERM 1'; sleep 0.3; echo unharmed"
    assert "unharmed\n" == run(["sh", "-c", code], text=True, timeout=60).stdout

"""``..`` at the root of a container stays there, also while the old root, which covers the new one, is being unmounted."""

import os
from struct import pack

import pytest

from containerkit import Container, Mount, RootFS, SetupError, run
from containerkit._native import constants as k
from containerkit.compile import start
from containerkit.plan import calls
from containerkit.plan.operation import Block
from containerkit.start import context

pytestmark = pytest.mark.usefixtures("nothing_left")

WAIT_NS = 300_000_000


@pytest.fixture
def root(tmp_path):
    for name in ("usr", "proc", "sys", "dev"):
        (tmp_path / name).mkdir()
    for name in ("bin", "lib", "lib64"):
        (tmp_path / name).symlink_to(f"usr/{name}")
    (tmp_path / "up").symlink_to("../..")
    return {"rootfs": RootFS.dir(str(tmp_path)), "mounts": [Mount.bind("/usr", "/usr", readonly=True, idmap=False)]}


@pytest.fixture
def slow(monkeypatch):
    """Make PID 1 wait before it unmounts the old root."""
    unmount_old_root = start.unmount_old_root
    monkeypatch.setitem(k.SYSTEM_CALLS, "nanosleep", {"x86_64": 35, "aarch64": 101}[os.uname().machine])
    wait = calls.call("nanosleep", Block(pack("=QQ", 0, WAIT_NS)), 0)
    monkeypatch.setattr(start, "unmount_old_root", lambda *args: [wait, *unmount_old_root(*args)])
    _forget()
    yield
    monkeypatch.undo()
    _forget()


def _forget():
    from containerkit.container import run as runs

    context.programs.kept.clear()
    runs.recipes.clear()


def in_a_run(root, argv, **more):
    return run(argv, text=True, check=True, **root, **more)


def in_a_ready_one(root, argv, **more):
    with Container.prepare(ready=1, **root) as template:
        assert template.wait_full(60)
        return template.run(argv, text=True, check=True, **more)


@pytest.mark.parametrize(
    ("way", "more"),
    [(in_a_run, {}), (in_a_run, {"no_new_privs": False}), (in_a_run, {"init": False}), (in_a_ready_one, {})],
)
def test_old_root_cannot_be_the_working_directory(root, slow, way, more):
    with pytest.raises(SetupError, match="/up/lower: No such file"):
        way(root, ["pwd"], cwd="/up/lower", **more)


@pytest.mark.parametrize("name", ["/up/lower", "/../lower", "/proc/1/root/../lower"])
def test_old_root_is_not_reached_by_a_command(root, slow, name):
    assert "no\n" == in_a_run(root, ["sh", "-c", f"test -e {name} && echo yes || echo no"]).stdout


def test_old_root_is_a_working_directory_without_the_remedy(root, slow, monkeypatch):
    """The control: the command does not wait for PID 1."""
    await_release = calls.await_release

    def unaware(label="", *, gate=calls.OWNER_GATE):
        return calls.call("getuid") if gate == calls.PAYLOAD_GATE else await_release(label, gate=gate)

    monkeypatch.setattr(calls, "await_release", unaware)
    _forget()
    assert in_a_run(root, ["pwd"], cwd="/up/lower").stdout.endswith("/lower\n")

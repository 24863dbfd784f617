"""Unions by fuse-overlayfs where the kernel refuses them: with an upper directory on an overlay."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import contextmanager

import pytest

from containerkit import Capabilities, Container, RootFS, SetupError, SpecError, UnsupportedError, run

BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), None)
pytestmark = [
    pytest.mark.skipif(shutil.which("fuse-overlayfs") is None, reason="needs fuse-overlayfs (package fuse-overlayfs)"),
    pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="this user may not open /dev/fuse"),
    pytest.mark.skipif(BUSYBOX is None, reason="needs busybox (package busybox-static)"),
    pytest.mark.usefixtures("nothing_left"),
]
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to make an overlay for the upper directory to lie on"
)
WORK = "stat -c %u:%g /data/one; chown 5:6 /data/one; echo new > /data/new; rm /data/two; rm -r /gone; mkdir /gone; cat /data/new"
CHANGES = {("/data/one", "changed"), ("/data/new", "added"), ("/data/two", "deleted"), ("/gone", "changed")}


@pytest.fixture
def box(tmp_path):
    root = tmp_path / "box"
    (root / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in ("sh", "cat", "stat", "chown", "rm", "mkdir", "sleep", "mount"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "data").mkdir()
    (root / "gone").mkdir()
    for name in ("data/one", "data/two", "gone/three"):
        (root / name).write_text(name)
    if os.geteuid() == 0:
        os.chown(root / "data/one", 33, 34)
    return root


@pytest.fixture
def on_overlay(tmp_path):
    """A directory on which the kernel refuses an overlay."""
    for name in ("l", "u", "w", "merged"):
        (tmp_path / "under" / name).mkdir(parents=True)
    at = tmp_path / "under"
    options = f"lowerdir={at}/l,upperdir={at}/u,workdir={at}/w"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, at / "merged"], check=True)
    (at / "merged/upper").mkdir()
    yield at / "merged/upper"
    subprocess.run(["umount", at / "merged"], check=True)


def programs(pid="self"):
    """Return the pids of fuse-overlayfs among a process's children (default: this one's). Other tests start it too."""
    found = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            found += file.read().split()
    return [pid for pid in found if is_program(pid)]


def is_program(pid):
    try:
        with open(f"/proc/{pid}/comm") as file:
            return file.read().strip() == "fuse-overlayfs"
    except (FileNotFoundError, ProcessLookupError):
        return False


@contextmanager
def ends_with_its_container():
    before = set(programs())
    yield
    deadline = time.monotonic() + 30
    while set(programs()) - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert set() == set(programs()) - before


@needs_root
def test_upper_on_an_overlay_is_served_by_the_program(box, on_overlay):
    with (
        ends_with_its_container(),
        Container(RootFS.overlay(box, upper=on_overlay), capabilities=Capabilities.docker()) as c,
    ):
        assert "fuse" == c.rootfs.union
        assert "33:34\nnew\n" == c.run(["sh", "-c", WORK], text=True, check=True).stdout
        assert CHANGES == {(change.path, change.kind) for change in c.changes()}
        first = c.run(["mount"], text=True, check=True).stdout.splitlines()[0]
        assert first.startswith("none on / type fuse (rw,nosuid,nodev")
    # Files on the disk have the ids of the inside, as with the kernel's union.
    status = (on_overlay / "data/one").stat()
    assert (5, 6) == (status.st_uid, status.st_gid)
    assert "data/one" == (box / "data/one").read_text()


@needs_root
def test_kernel_alone_refuses_and_the_error_is_the_kernels(box, on_overlay):
    with pytest.raises(SetupError, match="Invalid argument"):
        run(["true"], rootfs=RootFS.overlay(box, upper=on_overlay, union="kernel"))


@needs_root
def test_without_the_program_the_error_names_it(box, on_overlay, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnsupportedError, match="install fuse-overlayfs"):
        run(["true"], rootfs=RootFS.overlay(box, upper=on_overlay))
    with pytest.raises(UnsupportedError, match="union='kernel'"):
        run(["true"], rootfs=RootFS.overlay(box, union="fuse"))


@needs_root
def test_union_of_a_one_shot_ends_with_it(box, on_overlay):
    with ends_with_its_container():
        done = run(["cat", "/data/one"], rootfs=RootFS.overlay(box, upper=on_overlay), text=True)
        assert "data/one" == done.stdout


def test_union_in_memory_by_request(box):
    with ends_with_its_container(), Container(RootFS.overlay(box, size="8M", union="fuse")) as c:
        assert (
            "new\n" == c.run(["sh", "-c", WORK.replace("chown", ": chown").replace("stat", ": stat")], text=True).stdout
        )
        assert CHANGES - {("/data/one", "changed")} == {(change.path, change.kind) for change in c.changes()}
        assert 0 != c.run(["sh", "-c", "cat /dev/zero > /big"], stderr=-3).returncode
    assert ["one", "two"] == sorted(os.listdir(box / "data"))


def test_commas_and_colons_in_names_of_layers(box):
    odd = box.rename(box.with_name("a,b:c\\d e"))
    with Container(RootFS.overlay(odd, union="fuse")) as c:
        assert "data/one" == c.run(["cat", "/data/one"], text=True).stdout


def test_kernel_makes_the_union_where_it_can(box):
    before = programs()
    with Container(RootFS.overlay(box)) as c:
        assert "auto" == c.rootfs.union
        assert before == programs()


def test_program_that_is_killed_takes_its_container_with_it_no_further_than_its_files(box):
    before = set(programs())
    with Container(RootFS.overlay(box, union="fuse")) as c:
        (program,) = set(programs()) - before
        os.kill(int(program), signal.SIGKILL)
        with pytest.raises(SetupError, match=r"abort|not connected|No such file"):
            c.run(["cat", "/data/one"])


def test_program_that_gives_up_is_quoted(box, tmp_path, monkeypatch):
    fake = tmp_path / "programs/fuse-overlayfs"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho no layers today >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    with pytest.raises(SetupError, match="no layers today"):
        run(["true"], rootfs=RootFS.overlay(box, union="fuse"))


def test_unknown_union_is_refused():
    with pytest.raises(SpecError, match="union must be one of auto, kernel, fuse"):
        RootFS.overlay("/", union="aufs")


OWNER = """
import sys, time
from containerkit import Container, RootFS
with Container(RootFS.overlay(sys.argv[1], union="fuse")) as c:
    print(c.pid, flush=True)
    time.sleep(60)
"""


def test_program_ends_when_the_owner_is_killed(box):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen([sys.executable, "-c", OWNER, box], stdout=subprocess.PIPE, env=env) as owner:
        assert owner.stdout.readline()
        (program,) = programs(owner.pid)
        owner.kill()
    deadline = time.monotonic() + 30
    while is_program(program) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_program(program)


@needs_root
def test_commit_has_what_was_deleted(box, on_overlay, tmp_path):
    from containerkit.image import Image, Store, commit
    from containerkit.image.claimed import release

    store = Store(tmp_path / "store")
    image = Image.from_directory(box, "box", store=store)
    with Container(image.rootfs(upper=on_overlay), capabilities=Capabilities.docker()) as c:
        assert "fuse" == c.rootfs.union
        c.run(["sh", "-c", WORK], check=True)
        second = commit(c, base=image)
    with Container(second.rootfs(), capabilities=Capabilities.docker()) as c:
        line = "stat -c %u:%g /data/one; echo /data/* /gone/*"
        assert "5:6\n/data/new /data/one /gone/*\n" == c.run(["sh", "-c", line], text=True).stdout
    second.export(tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert not [name for name in tar.getnames() if ".wh." in name]
    release()

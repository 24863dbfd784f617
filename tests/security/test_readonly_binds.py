"""A read-only bind of a source with mounts below it, and every attempt from inside to write to it."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from attacker import EVERYTHING, as_user, in_child

from containerkit import Container, Mount, SpecError
from containerkit._native import calls
from containerkit._native import constants as k

pytestmark = pytest.mark.usefixtures("nothing_left")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")

WRITER = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC = 1, 32, 4096, 16384

def check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

def write(path):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"attacked")
    os.close(fd)

def remount(path):
    check(libc.mount(None, path.encode(), None, MS_REMOUNT | MS_BIND, None))
    write(f"{path}/file")

def bind(path):
    os.makedirs("/tmp/b", exist_ok=True)
    check(libc.mount(path.encode(), b"/tmp/b", None, MS_BIND | MS_REC, None))
    write("/tmp/b/file")

def new_api(path):
    # open_tree(OPEN_TREE_CLONE | AT_RECURSIVE), mount_setattr(clear MOUNT_ATTR_RDONLY)
    tree = libc.syscall(428, -100, path.encode(), 1 | 0x8000)
    check(tree)
    attributes = (ctypes.c_uint64 * 4)(0, 1, 0, 0)
    check(libc.syscall(442, tree, b"", 0x1000 | 0x8000, attributes, 32))
    write(f"/proc/self/fd/{tree}/file")

def unmount(path):
    check(libc.umount2(path.encode(), 2))
    write(f"{path}/file")

def reopen(path):
    fd = os.open(f"{path}/file", os.O_RDONLY)
    write(f"/proc/self/fd/{fd}")

def handle(path):
    # name_to_handle_at, open_by_handle_at
    buffer = ctypes.create_string_buffer(136)
    ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint))[0] = 128
    mount_id = ctypes.c_int()
    check(libc.name_to_handle_at(-100, f"{path}/file".encode(), buffer, ctypes.byref(mount_id), 0))
    at = os.open(path, os.O_RDONLY)
    fd = libc.open_by_handle_at(at, buffer, os.O_WRONLY)
    check(fd)
    os.write(fd, b"attacked")

DEEDS = {
    "write": lambda p: write(f"{p}/file"),
    "truncate": lambda p: os.truncate(f"{p}/file", 0),
    "make": lambda p: os.close(os.open(f"{p}/new", os.O_CREAT | os.O_WRONLY)),
    "make directory": lambda p: os.mkdir(f"{p}/newdir"),
    "remove": lambda p: os.unlink(f"{p}/file"),
    "rename": lambda p: os.rename(f"{p}/file", f"{p}/other"),
    "link": lambda p: os.link(f"{p}/file", f"{p}/linked"),
    "mode": lambda p: os.chmod(f"{p}/file", 0o777),
    "times": lambda p: os.utime(f"{p}/file", (1, 1)),
    "attribute": lambda p: os.setxattr(f"{p}/file", "user.x", b"1"),
    "through its own root": lambda p: write(f"/proc/self/root{p}/file"),
    "through the root of another": lambda p: write(f"/proc/{sys.argv[2]}/root{p}/file"),
    "through the directory of another": lambda p: write(f"/proc/{sys.argv[2]}/cwd{p}/file"),
    "through the root of init": lambda p: write(f"/proc/1/root{p}/file"),
    "descriptor opened again": reopen,
    "by handle": handle,
    "remount": remount,
    "bind elsewhere": bind,
    "new mount calls": new_api,
    "unmount": unmount,
}
done = {}
for name in json.loads(sys.argv[3]) or DEEDS:
    try:
        DEEDS[name](sys.argv[1])
    except OSError as error:
        done[name] = error.strerror
    else:
        done[name] = "done"
print(json.dumps(done))
"""
PLACES = ("/bound", "/bound/sub") if os.geteuid() == 0 else ("/bound",)
"""The path of the bind, and the mount below it, which needs root."""


def contents(source):
    """Return the content of a tree: names, modes, times and bytes."""
    found = {}
    for directory, names, files in os.walk(source):
        for name in (*names, *files):
            path = f"{directory}/{name}"
            status = os.lstat(path)
            data = Path(path).read_text() if name in files else ""
            found[path] = status.st_mode, status.st_mtime_ns, data
    return found


def fill(directory):
    os.makedirs(directory, exist_ok=True)
    os.chmod(directory, 0o777)
    with open(f"{directory}/file", "w") as file:
        file.write("kept")
    os.chmod(f"{directory}/file", 0o666)


@contextmanager
def mounted(path):
    """Mount an empty filesystem. It is removed afterwards."""
    os.makedirs(path, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "attacked", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def source(tmp_path):
    """A directory with a mount below it, all of it accessible to everybody."""
    path = str(tmp_path / "source")
    fill(path)
    for directory in (tmp_path, *list(tmp_path.parents)[:2]):
        directory.chmod(0o755)
    if os.geteuid() != 0:
        yield path
        return
    with mounted(f"{path}/sub"):
        fill(f"{path}/sub")
        yield path


def attempts(container, path, *names):
    """Return the results of attempts to write below a path, in a container with another command."""
    with container.popen(["sleep", "60"]) as other:
        inside = container.run(
            ["sh", "-c", "for p in /proc/[0-9]*; do [ $(cat $p/comm) = sleep ] && echo ${p#/proc/}; done"]
        )
        pid = inside.stdout.decode().split()[0]
        done = container.run(["/usr/bin/python3", "-c", WRITER, path, pid, json.dumps(names)], text=True)
        other.kill()
    assert 0 == done.returncode, done.stderr
    return json.loads(done.stdout)


def succeeded(found):
    return sorted(name for name, outcome in found.items() if outcome == "done")


def tried_below(source, **options):
    """Try everything on the bind and on the mount below it. Return what succeeded."""
    with Container(mounts=[Mount.bind(source, "/bound", **options)]) as container:
        return {path: succeeded(attempts(container, path)) for path in PLACES}


def test_read_only_bind_and_mounts_below_cannot_be_written(source):
    before = contents(source)
    assert {path: [] for path in PLACES} == tried_below(source, readonly=True)
    assert before == contents(source)


@needs_root
@pytest.mark.parametrize("ranges", [False, True])
def test_read_only_bind_of_an_unprivileged_user_cannot_be_written(source, ranges):
    before = contents(source)
    assert {path: [] for path in PLACES} == as_user(lambda: tried_below(source, readonly=True), ranges=ranges)
    assert before == contents(source)


@needs_root
def test_the_same_writes_without_the_attribute(source):
    """The control: without the attribute, operations that only the attribute refuses succeed."""
    with Container(mounts=[Mount.bind(source, "/bound")]) as container:
        for path in ("/bound", "/bound/sub"):
            for name in (
                "write",
                "make",
                "through its own root",
                "through the root of another",
                "descriptor opened again",
            ):
                assert [name] == succeeded(attempts(container, path, name))
    assert "attacked" in contents(source)[f"{source}/sub/file"][2]


@needs_root
def test_read_only_bind_that_is_not_recursive_leaves_out_what_is_mounted_below(source):
    with Container(mounts=[Mount.bind(source, "/bound", readonly=True, recursive=False)]) as container:
        assert [] == container.files.listdir("/bound/sub")
        assert [] == succeeded(attempts(container, "/bound"))


@needs_root
def test_container_that_may_mount_can_make_its_mounts_writable(source):
    """The control for attempts with mounts, and the reason not to grant CAP_SYS_ADMIN: the container owns its mounts."""
    with Container(mounts=[Mount.bind(source, "/bound", readonly=True)], **EVERYTHING) as container:
        assert ["remount"] == succeeded(attempts(container, "/bound", "remount"))


# --- Mounts that are made later


@needs_root
def test_later_mount_below_the_source_does_not_appear(source):
    with Container(mounts=[Mount.bind(source, "/bound", readonly=True)]) as container, mounted(f"{source}/late"):
        fill(f"{source}/late")
        assert not container.files.exists("/bound/late/file")
        assert [] == succeeded(attempts(container, "/bound", "make", "write"))


@pytest.mark.parametrize("propagation", ["slave", "shared"])
def test_read_only_with_receiving_propagation_is_refused(propagation):
    with pytest.raises(SpecError, match=r"readonly can't apply.*propagation='private'"):
        Mount.bind("/srv", "/bound", readonly=True, propagation=propagation)
    Mount.bind("/srv", "/bound", readonly=True, recursive=False, propagation=propagation)


@needs_root
def test_propagated_mount_has_the_attributes_of_the_host(source):
    """The control: this is the reason to refuse the combination."""

    def work():
        calls.unshare(k.CLONE_NEWNS)
        calls.mount(None, "/", None, k.MS_REC | k.MS_PRIVATE)
        calls.mount("attacked", source, "tmpfs")
        calls.mount(None, source, None, k.MS_SHARED)
        fill(source)
        os.makedirs(f"{source}/late")
        mount = Mount.bind(source, "/bound", readonly=True, recursive=False, propagation="slave")
        with Container(mounts=[mount]) as container:
            calls.mount("attacked", f"{source}/late", "tmpfs")
            fill(f"{source}/late")
            return [succeeded(attempts(container, path, "write")) for path in ("/bound", "/bound/late")]

    assert [[], ["write"]] == in_child(work)


# --- Descriptors that are handed in


@needs_root
def test_passed_descriptor_keeps_its_mount(source):
    """A file that was opened for reading stays read-only, and from a read-only bind nothing can be opened for writing. A
    bind does not restrict a descriptor of the caller's own mount of the same files: passing it in passes in the mount."""
    with Container(mounts=[Mount.bind(source, "/bound", readonly=True)]) as container:

        def reopened(fd, path=""):
            argv = ["sh", "-c", f"echo attacked >> /proc/self/fd/{fd}{path} && echo done"]
            return container.run(argv, pass_fds=[fd], text=True).stdout.strip()

        inside = os.open(f"/proc/{container.pid}/root/bound", os.O_RDONLY | os.O_DIRECTORY)
        outside = os.open(source, os.O_RDONLY | os.O_DIRECTORY)
        file = os.open(f"{source}/file", os.O_RDONLY)
        try:
            assert "" == reopened(inside, "/file")
            assert "done" == reopened(outside, "/file")
            assert "done" == reopened(file)
            os.chmod(f"{source}/file", 0o644)
            assert "" == reopened(file), "root of the container is not the owner"
        finally:
            for fd in (inside, outside, file):
                os.close(fd)

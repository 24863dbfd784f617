"""The copy of /etc is the same whether it is read in C or in Python, and contains nothing that not everybody may read."""

import errno
import os
import random
import resource
import struct
from pathlib import Path

import pytest

from containerkit._linux import hostroot
from containerkit._native import calls_seam

copied = getattr(calls_seam.backend, "copied", None)
pytestmark = pytest.mark.skipif(copied is None, reason="the extension was not built")

HEADER = struct.Struct("=4I")
DIRECTORY, SYMLINK, FILE = range(3)


def parsed(packed):
    """Return (kind, mode, content) by path, and check that parents come first."""
    found, at = {}, 0
    while at < len(packed):
        kind, mode, path_size, size = HEADER.unpack_from(packed, at)
        begin = at + HEADER.size + path_size
        path = os.fsdecode(packed[at + HEADER.size : begin - 1])
        content = packed[begin : begin + size]
        assert path not in found
        assert packed[begin - 1] == 0
        found[path] = kind, mode, content.removesuffix(b"\0") if kind == SYMLINK else content
        at = begin + size + -(begin + size) % 8
    return found


def in_python(paths):
    collector = hostroot._Collector()
    for path in paths:
        collector.copy(path.lstrip("/"))
    return of(collector)


def of(collector):
    return (
        {path: (DIRECTORY, mode, b"") for path, mode in collector.directories.items()}
        | {path: (SYMLINK, 0, os.fsencode(content)) for path, content in collector.links.items()}
        | {path: (FILE, mode, content) for path, (mode, content) in collector.files.items()}
    )


def in_c(paths, shown, most=hostroot._MOST):
    return parsed(copied(paths, shown, hostroot._PRIVATE, most, hostroot._LARGEST))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Directories: ``etc`` is copied, ``shown`` is shown completely, ``hidden`` is neither."""
    for name in ("etc", "shown/deep/er", "hidden"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(hostroot, "_SHOWN", (f"{tmp_path}/etc/", f"{tmp_path}/shown/"))
    return tmp_path


def both(tree):
    ours = in_c([f"{tree}/etc"], hostroot._SHOWN)
    assert ours == in_python([f"{tree}/etc"])
    begin = len(f"{tree}/etc".lstrip("/")) + 1
    return {path[begin:]: made for path, made in ours.items() if path[begin:]}


def test_the_machines_etc_is_read_alike():
    names = [f"/etc/{name}" for name in sorted(os.listdir("/etc")) if name in hostroot._ETC]
    ours = in_c(names, hostroot._SHOWN)
    assert ours == in_python(names)
    assert ours["etc/passwd"][2] == Path("/etc/passwd").read_bytes()


def test_symlinks_into_shown_directories_stay_and_others_are_followed(tree):
    etc = tree / "etc"
    (tree / "shown/file").write_text("shown")
    (tree / "hidden/file").write_text("hidden")
    (tree / "hidden/directory").mkdir()
    (tree / "shown/out").symlink_to(tree / "hidden/file")
    (tree / "hidden/in").symlink_to(tree / "shown/deep")
    contents = {
        "absolute": tree / "shown/file",
        "relative": "../shown/file",
        "dots": f"{tree}/shown/deep/.././../shown/./file",
        "dangling": tree / "shown/deep/none",
        "through": tree / "hidden/in/er",
        "up": "..",
        "slash": f"{tree}/shown/deep/",
        "loop": "loop",
        "one": "two",
        "two": "one",
        "to a link": "absolute",
        "outside": tree / "hidden/file",
        "two steps outside": tree / "shown/out",
        "directory outside": tree / "hidden/directory",
        "nowhere": tree / "hidden/none",
        "root": "/",
    }
    for name, content in contents.items():
        (etc / name).symlink_to(content)
    made = both(tree)
    stay = {"absolute", "relative", "dots", "dangling", "through", "slash", "to a link"}
    assert {name for name, (kind, _, _) in made.items() if kind == SYMLINK} == stay
    assert made["outside"] == made["two steps outside"] == (FILE, 0o644, b"hidden")
    assert made.keys() - stay == {"outside", "two steps outside"}


def test_what_not_everybody_may_read_is_left_out(tree):
    etc = tree / "etc"
    for name, mode in (("open", 0o666), ("group", 0o640), ("own", 0o600), ("program", 0o4755)):
        (etc / name).write_text(name)
        (etc / name).chmod(mode)
    for name, mode in (("readable", 0o755), ("closed", 0o750), ("listed", 0o754)):
        (etc / name).mkdir()
        (etc / name / "file").write_text(name)
        (etc / name).chmod(mode)
    (etc / "private").mkdir()
    (etc / "readable/key.pem").write_text("secret")
    (etc / "linked").symlink_to(tree / "hidden/own")
    (tree / "hidden/own").write_text("secret")
    (tree / "hidden/own").chmod(0o600)
    os.mkfifo(etc / "fifo")
    (etc / "to fifo").symlink_to(tree / "hidden/fifo")
    os.mkfifo(tree / "hidden/fifo")
    made = both(tree)
    assert made == {
        "open": (FILE, 0o644, b"open"),
        "program": (FILE, 0o755, b"program"),
        "readable": (DIRECTORY, 0o755, b""),
        "readable/file": (FILE, 0o644, b"readable"),
    }


def test_sizes_and_numbers_are_bounded(tree):
    etc = tree / "etc"
    for name, size in (("empty", 0), ("odd", 5000), ("largest", hostroot._LARGEST), ("larger", hostroot._LARGEST + 1)):
        (etc / name).write_bytes(b"x" * size)
    (etc / os.fsdecode(b"\xff name\n")).write_text("bytes")
    made = both(tree)
    assert {name: len(content) for name, (_, _, content) in made.items()} == {
        "empty": 0,
        "odd": 5000,
        "largest": hostroot._LARGEST,
        "\udcff name\n": 5,
    }
    few = in_c([f"{tree}/etc"], hostroot._SHOWN, most=2)
    assert sum(kind != DIRECTORY for kind, _, _ in few.values()) == 2


@pytest.mark.parametrize("seed", range(12))
def test_random_trees_are_read_alike(tree, seed):
    chosen = random.Random(seed)
    places = ["etc", "shown", "hidden", "shown/deep"]
    names = [f"{place}/{letter}" for place in places for letter in "abcdef"]
    for name in chosen.sample(names, len(names)):
        path = tree / name
        kind = chosen.choice("dffllll")
        if kind == "d":
            path.mkdir()
            places.append(name)
        elif kind == "f":
            path.write_text(name)
            path.chmod(chosen.choice([0o644, 0o600]))
        else:
            target = chosen.choice([*names, *places]) + chosen.choice(["", "/a", "/../b", "/."])
            up = "../" * name.count("/")
            path.symlink_to(chosen.choice([f"{tree}/", up, f"{up}./"]) + target)
    both(tree)


def test_lack_of_descriptors_leaves_nothing_out():
    """The soft limit is lowered descriptor by descriptor: the copy is whole, or there is an error."""
    names = [f"/etc/{name}" for name in sorted(os.listdir("/etc")) if name in hostroot._ETC]
    whole = copied(names, hostroot._SHOWN, hostroot._PRIVATE, hostroot._MOST, hostroot._LARGEST)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    held = [os.open("/", os.O_PATH | os.O_CLOEXEC)]
    while held[-1] < highest:  # no free number is left below the limit
        held.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
    free = held.pop()
    os.close(free)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    results = []
    try:
        for more in (0, 1, 2, 3, 4, 5, 8, 16, 40):
            resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, before[1]))
            try:
                results.append(copied(names, hostroot._SHOWN, hostroot._PRIVATE, hostroot._MOST, hostroot._LARGEST))
            except OSError as error:
                results.append(error.errno)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for fd in held:
            os.close(fd)
    assert results[0] == errno.EMFILE
    assert results[-1] == whole
    assert set(results) == {errno.EMFILE, whole}

"""Sparse files: in archives of GNU tar, in commits and builds, and in other tools that read ours."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import time

import pytest
from examples import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_archives import unpack

from containerkit import Container
from containerkit.archive.sparse import data_map, data_stretches
from containerkit.archive.tarwrite import Head, TreeWriter, Writing, _record
from containerkit.image import Build, Image, Store, commit
from containerkit.image.claimed import release

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and mounts need root")
MIB = 1 << 20
BUSYBOX = "/bin/busybox"


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


def put(path, size, *stretches):
    with path.open("wb") as file:
        for offset, content in stretches:
            file.seek(offset)
            file.write(content)
        file.truncate(size)


def written(directory):
    sink = io.BytesIO()
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        writer = TreeWriter(sink, Writing())
        writer.add_tree(descriptor)
        writer.close()
    finally:
        os.close(descriptor)
    return sink.getvalue()


def same(one, other):
    """Whether two files have the same content. What is a hole in both is not read."""
    with open(one, "rb") as first, open(other, "rb") as second:
        if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
            return False
        for offset, length in (*data_of(first.fileno()), *data_of(second.fileno())):
            first.seek(offset)
            second.seek(offset)
            if first.read(length) != second.read(length):
                return False
    return True


def data_of(fd):
    """Where the kernel says that a file has data. A filesystem without holes has a single one."""
    end = 0
    while True:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no more data
                return
            raise
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end - begin


def test_files_that_differ_are_distinguished(tmp_path):
    put(tmp_path / "a", 4 * MIB, (MIB, b"x"))
    for name, size, pieces in (("size", 5 * MIB, [(MIB, b"x")]), ("more", 4 * MIB, [(MIB, b"x"), (3 * MIB, b"y")])):
        put(tmp_path / name, size, *pieces)
        assert not same(tmp_path / "a", tmp_path / name)
        assert not same(tmp_path / name, tmp_path / "a")
    put(tmp_path / "full", 4 * MIB, (0, bytes(MIB) + b"x" + bytes(3 * MIB - 1)))
    assert same(tmp_path / "a", tmp_path / "full")


FORMS = ["gnu", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0", "oldgnu"]


@pytest.mark.parametrize("form", FORMS)
def test_sparse_members_of_gnu_tar_keep_their_holes(tmp_path, form):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    put(source / "many", 200 * MIB, *[(number * 5 * MIB + 4096, b"%d" % number * 100) for number in range(30)])
    put(source / "empty", 96 * MIB)
    put(source / ("n" * 120), 40 * MIB, (0, b"begin"), (40 * MIB - 3, b"end"))
    put(source / "plain", 10, (0, b"0123456789"))
    made = subprocess.run(
        ["tar", "-S", *f"--format={form}".split(), "-cf", "-", "-C", source, "."], check=True, capture_output=True
    ).stdout
    assert len(made) < 2 * MIB
    unpack(made, target)
    for name in os.listdir(source):
        assert same(source / name, target / name)
        # The filesystem may count a block of its own list of extents, or not.
        assert (target / name).stat().st_blocks <= (source / name).stat().st_blocks + 16


def test_sparse_file_is_written_as_others_read_it(tmp_path):
    source = tmp_path / "source"
    (source / "d").mkdir(parents=True)
    put(source / "d/many", 200 * MIB + 5, *[(number * 9 * MIB, b"%d" % number * 100) for number in range(20)])
    put(source / "full-end", 32 * MIB, (31 * MIB, os.urandom(MIB)))
    put(source / "empty", 96 * MIB)
    put(source / ("ü" * 80), 40 * MIB, (7, b"seven"))
    put(source / "small", 15 * MIB)
    content = written(source)
    assert 15 * MIB < len(content) < 75 * MIB
    archive = tmp_path / "a.tar"
    archive.write_bytes(content)
    (tmp_path / "gnu").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "python").mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", tmp_path / "gnu"], check=True)
    unpack(content, tmp_path / "ours")
    with tarfile.open(archive) as tar:
        tar.extraction_filter = getattr(tarfile, "tar_filter", None)  # Debian 12's tarfile has no filters
        tar.extractall(tmp_path / "python")
    tools = ["gnu", "ours", "python"]
    if shutil.which("bsdtar"):
        (tmp_path / "bsd").mkdir()
        subprocess.run(["bsdtar", "-xf", archive, "-C", tmp_path / "bsd"], check=True)
        tools.append("bsd")
    for tool in tools:
        for name in ("d/many", "full-end", "empty", *(["ü" * 80] if tool != "python" else []), "small"):
            assert same(source / name, tmp_path / tool / name), f"{name} by {tool}"
    assert (tmp_path / "ours/empty").stat().st_blocks == 0


def test_sparse_file_with_all_its_sizes_in_extended_headers_is_read(tmp_path):
    """The header of a file with more than 8 GiB of data."""
    data = b"x" * 1000
    table = data_map(((5 * MIB, len(data)),), 20 * MIB)
    head = Head(name=b"d/f", kind=b"0", mode=0o644, size=len(table) + len(data), real_size=20 * MIB)
    records = {**head.records(), b"size": b"%d" % head.size}
    text = b"".join(_record(key, value) for key, value in records.items())
    extended = Head(name=b"PaxHeaders/f", kind=b"x", mode=0o644, size=len(text)).block(())
    content = extended + text + bytes(-len(text) % 512) + head.block(records) + table + data + bytes(24)
    content += Head(name=b"after", kind=b"0", mode=0o644, size=0).block(()) + bytes(1024)
    (tmp_path / "out").mkdir()
    unpack(content, tmp_path / "out")
    (tmp_path / "a.tar").write_bytes(content)
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "a.tar", "-C", tmp_path / "gnu"], check=True)
    assert same(tmp_path / "gnu/d/f", tmp_path / "out/d/f")
    assert ["after", "d"] == sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "gnu"))


def test_sparse_and_dense_files_of_the_same_content_are_written_alike(tmp_path):
    for name in ("sparse", "dense"):
        (tmp_path / name).mkdir()
        put(tmp_path / name / "f", 64 * MIB, (20 * MIB + 17, b"x" * 100_000))
    content = (tmp_path / "sparse/f").read_bytes()
    (tmp_path / "dense/f").write_bytes(content)
    for name in ("sparse", "dense"):
        os.utime(tmp_path / name / "f", (1, 1))
        os.utime(tmp_path / name, (1, 1))
    assert (tmp_path / "dense/f").stat().st_blocks > (tmp_path / "sparse/f").stat().st_blocks
    assert written(tmp_path / "sparse") == written(tmp_path / "dense")


@pytest.mark.skipif(shutil.which("umoci") is None, reason="needs Debian's package umoci")
def test_sparse_file_in_a_layer_is_unpacked_by_umoci(tmp_path):
    put(tmp_path / "f", 40 * MIB, (30 * MIB + 7, b"x" * 5000))
    store = Store(tmp_path / "s")
    Build.from_("scratch").copy("f", "/d/").build(context=tmp_path, store=store, tag="sparse:1")
    name = "docker.io/library/sparse:1"
    subprocess.run(
        ["umoci", "unpack", "--image", f"{store.root}:{name}", tmp_path / "b"], check=True, capture_output=True
    )
    assert same(tmp_path / "f", tmp_path / "b/rootfs/d/f")


@settings(
    max_examples=examples(ci=25, nightly=60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.integers(16 * MIB, 24 * MIB),
    st.lists(st.tuples(st.integers(0, 24 * MIB), st.integers(1, 3 * MIB)), max_size=5),
)
def test_stretches_of_data_hold_all_that_is_not_zero(tmp_path, size, pieces):
    path = tmp_path / "f"
    put(path, size, *[(at, b"\1" * length) for at, length in pieces if at < size])
    content = path.read_bytes()
    with path.open("rb") as file:
        found = data_stretches(file.fileno(), size)
    if found is None:
        return
    again = bytearray(size)
    for offset, length in found:
        assert (0, True) == (offset % MIB, 0 < length <= size - offset)
        again[offset : offset + length] = content[offset : offset + length]
    assert content == bytes(again)


@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")
def test_commit_of_a_file_with_large_holes_is_small_and_quick(tmp_path):
    store = Store(tmp_path / "s")
    shutil.copy(BUSYBOX, tmp_path / "busybox")
    image = Build.from_("scratch").copy("busybox", "/bin/").env(PATH="/bin").build(context=tmp_path, store=store)
    with Container(image.rootfs()) as c:
        c.run(
            ["/bin/busybox", "dd", "if=/bin/busybox", "of=/big", "bs=4096", "count=1", f"seek={16 << 18}"], check=True
        )
        began = time.perf_counter()
        made = commit(c, "big:1", base=image)
        took_s = time.perf_counter() - began
    assert (True, True) == (took_s < 10, made.manifest.layers[-1].size < MIB)
    with Container(Image.open("big:1", store=store).rootfs()) as c:
        done = c.run(["/bin/busybox", "stat", "-c", "%s %b", "/big"], text=True, check=True)
        size, blocks = map(int, done.stdout.split())
        assert ((16 << 30) + 4096, True) == (size, blocks * 512 < MIB * 2)
        tail = c.run(["/bin/busybox", "tail", "-c", "4096", "/big"], check=True).stdout
    with open(BUSYBOX, "rb") as file:
        assert hashlib.sha256(file.read(4096)).digest() == hashlib.sha256(tail).digest()

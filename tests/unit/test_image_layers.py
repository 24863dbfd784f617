"""Compression, attributes and bounds of layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import sys
import threading
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.archive.attributes import attributes_of, is_kept, posix_acl
from containerkit.archive.compression import COMPRESSIONS, Plain, compress, recognise
from containerkit.archive.limits import UnpackLimits
from containerkit.archive.stream import split_path
from containerkit.errors import ImageError, SpecError


@given(st.binary(max_size=5000), st.sampled_from(COMPRESSIONS))
def test_compression_survives_the_round_trip(content, kind):
    pytest.importorskip("backports.zstd" if kind == "zstd" else "gzip")
    first, second = io.BytesIO(), io.BytesIO()
    for sink in (first, second):
        stream = compress(sink, kind)
        stream.write(content)
        stream.close()
    assert first.getvalue() == second.getvalue()
    if kind != "none":
        assert kind == recognise(first.getvalue())
        assert content == Plain(io.BytesIO(first.getvalue()), threads=0).read()


def test_compression_by_gzip_is_the_same_however_it_is_written_and_by_whom(monkeypatch):
    content = b"".join(b"%d " % (number * number) for number in range(400_000))
    found = set()
    for size, threads, isal in ((7_001, 1, True), (1 << 20, 8, True), (len(content), 2, True), (300_000, 2, False)):
        monkeypatch.setattr("os.cpu_count", lambda threads=threads: threads)
        if not isal:
            for name in ("isal", "isal.isal_zlib", "isal.igzip", "isal.igzip_threaded"):
                monkeypatch.setitem(sys.modules, name, None)
        sink = io.BytesIO()
        writer = compress(sink, "gzip")
        for at in range(0, len(content), size):
            writer.write(content[at : at + size])
        writer.close()
        found.add(sink.getvalue())
        assert content == gzip.decompress(sink.getvalue()) == Plain(io.BytesIO(sink.getvalue())).read()
    assert 1 == len(found)


@pytest.mark.skipif("ng" in zlib.ZLIB_RUNTIME_VERSION, reason="this Python has zlib-ng, which compresses otherwise")
def test_compression_by_gzip_gives_known_bytes():
    """A machine with another zlib would make this test fail."""
    sink = io.BytesIO()
    writer = compress(sink, "gzip")
    for number in range(100_000):
        writer.write(b"%d\n" % (number * 7919 % 100_003))
    writer.close()
    assert (
        "172aadab65bc4cd5ccb4e99c3799bfc151a232a511e0ddde8dc3e1b0e3d2f8b7"
        == hashlib.sha256(sink.getvalue()).hexdigest()
    )


def test_abandoned_compression_leaves_no_thread():
    before = set(threading.enumerate())
    writer = compress(io.BytesIO(), "gzip")
    writer.write(bytes(5 << 20))
    writer.abandon()
    assert not set(threading.enumerate()) - before


def test_compression_reads_several_gzip_members():
    assert Plain(io.BytesIO(gzip.compress(b"one") + gzip.compress(b"two")), threads=0).read() == b"onetwo"


def test_unknown_compression_is_a_spec_error():
    with pytest.raises(SpecError):
        compress(io.BytesIO(), "lzma")


def test_compression_is_recognised_by_its_first_bytes():
    found = [recognise(start) for start in (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x5e\x2a\x4d\x18", b"BZh", b"", b"./")]
    assert found == ["gzip", "zstd", "zstd", "bzip2", "none", "none"]


def test_acl_text_becomes_the_kernels_bytes():
    text = "user::rwx\nuser:1000:rw-\ngroup::r-x\nmask::rwx\nother::r--"
    entries = [(1, 7, 0xFFFFFFFF), (2, 6, 1000), (4, 5, 0xFFFFFFFF), (0x10, 7, 0xFFFFFFFF), (0x20, 4, 0xFFFFFFFF)]
    assert struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries) == posix_acl(text)
    assert posix_acl("user:1000:rw-,other::r--") == posix_acl("other::r--\nu:joe:rw-:1000  # star's fourth field")
    assert posix_acl("user:root:r--") == posix_acl("user:0:r--")


@pytest.mark.parametrize("text", ["user", "user:joe:rwx", "user::rwz", "other:5:r--", "x::r--", "user:99999999999:r--"])
def test_acl_text_that_is_malformed_is_refused(text):
    with pytest.raises(ImageError):
        posix_acl(text)


def test_attributes_are_read_from_each_dialect():
    headers = {
        "SCHILY.xattr.user.a": "1\udcff",
        "LIBARCHIVE.xattr.user.b%20c": "AQI",
        "SCHILY.acl.default": "other::r--",
        "mtime": "1.5",
    }
    found = attributes_of(headers)
    assert {"user.a": b"1\xff", "user.b c": b"\1\2", "system.posix_acl_default": posix_acl("other::r--")} == found


def test_attributes_that_affect_the_host_are_not_kept():
    kept = ["user.x", "security.capability", "system.posix_acl_access"]
    assert kept == [
        name for name in [*kept, "trusted.x", "security.selinux", "user.overlay.opaque", "system.x"] if is_kept(name)
    ]


def test_limits_are_positive():
    for wrong in ({"bytes": 0}, {"entries": -1}, {"ratio": 1.5}):
        with pytest.raises(SpecError):
            UnpackLimits(**wrong)


def test_path_is_split_at_the_archives_own_root():
    assert split_path(b"//./a//b/.") == (b"a", b"b")
    for wrong in (b"..", b"a/../b", b"a\0b"):
        with pytest.raises(ImageError):
            split_path(wrong)

"""The store: crashes, full disks, several processes, collection and verification."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from image_samples import add_image, layers_of, small_disk

from containerkit.errors import ImageError, SetupError
from containerkit.image import media
from containerkit.image.claimed import release
from containerkit.image.digest import Digest
from containerkit.image.layers.unpack import layer_paths, unpack_layers
from containerkit.image.manifest import Descriptor
from containerkit.image.reference import Reference
from containerkit.image.store import Store, default_root
from containerkit.image.store.collect import sweep
from containerkit.image.store.leases import leased
from containerkit.image.store.locks import workspace

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
SOURCE = str(Path(__file__).parents[2] / "src")


@pytest.fixture(autouse=True)
def nothing_is_left(nothing_left):
    yield
    release()


def take(store, expected, content):
    with store.blobs.ingest(expected) as writer:
        writer.write(content)
        writer.commit()


def test_store_is_an_image_layout(tmp_path):
    store = Store(tmp_path / "s")
    manifest = add_image(store, "a/b:1", {"f": b"x"})
    assert json.loads((tmp_path / "s/oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((tmp_path / "s/index.json").read_bytes())
    assert [(str(manifest.digest), "docker.io/a/b:1")] == [
        (entry["digest"], entry["annotations"]["org.opencontainers.image.ref.name"]) for entry in index["manifests"]
    ]
    assert manifest == Store(tmp_path / "s").manifest(store.find("a/b:1"))


def test_store_of_another_layout_version_is_refused(tmp_path):
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(ImageError, match="version"):
        Store(tmp_path)


def test_store_is_in_xdg_directories_by_default(monkeypatch, tmp_path):
    monkeypatch.setenv("CONTAINERKIT_IMAGES", "/x")
    assert Path("/x") == default_root()
    monkeypatch.delenv("CONTAINERKIT_IMAGES")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert tmp_path / "containerkit/images" == default_root()


def test_store_lets_nobody_else_reach_the_programs_in_its_layers(tmp_path):
    store = Store(tmp_path / "s")
    modes = {
        path.name: path.stat().st_mode & 0o777 for path in (store.root, store.root / "layers", store.root / "build")
    }
    assert {"s": 0o700, "layers": 0o700, "build": 0o700} == modes


def test_store_moves_a_name_and_forgets_it(tmp_path):
    store = Store(tmp_path)
    one, two = add_image(store, "n", {"f": b"1"}), add_image(store, "n", {"f": b"2"})
    assert two.digest == store.find("n").digest
    store.catalog.put(one.descriptor, Reference.parse("other"))
    assert sorted(store.catalog.names()) == ["docker.io/library/n:latest", "docker.io/library/other:latest"]
    store.catalog.remove(Reference.parse("n"))
    assert store.find("n") is None
    with pytest.raises(ImageError, match="not in the store"):
        store.catalog.remove(Reference.parse("n"))


def test_blob_that_is_not_what_it_should_be_leaves_nothing(tmp_path):
    store = Store(tmp_path)
    right = Descriptor.of(b"right", media.OCI_LAYER)
    for content, word in ((b"wrong", "expected digest"), (b"far too long", "more bytes than")):
        with pytest.raises(ImageError, match=word):
            take(store, right, content)
    with store.blobs.ingest(right) as writer:
        assert writer.offset == 0
    assert not store.blobs.has(right)


def test_blob_goes_on_where_the_last_try_ended(tmp_path):
    store = Store(tmp_path)
    wanted = Descriptor.of(b"0123456789", media.OCI_LAYER)
    with store.blobs.ingest(wanted) as writer:
        writer.write(b"0123")
        with pytest.raises(ImageError, match="only 4 of 10 bytes"):
            writer.commit()
    with store.blobs.ingest(wanted) as writer:
        assert writer.offset == 4
        writer.write(b"456789")
        writer.commit()
    assert store.blobs.read(wanted.digest) == b"0123456789"
    assert list(store.blobs.incoming.iterdir()) == []


def python(code, *args):
    environment = os.environ | {"PYTHONPATH": SOURCE}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE, text=True, env=environment
    )


WRITER = """
import sys, time
from containerkit.image.manifest import Descriptor
from containerkit.image.store import Store
store = Store(sys.argv[1])
content = b"x" * 5_000_000
with store.blobs.ingest(Descriptor.of(content, "t")) as writer:
    if not writer.done:
        writer.write(content[writer.offset:3_000_000])
        print("half", flush=True)
        time.sleep(float(sys.argv[2]))
        writer.write(content[writer.offset:])
        print("wrote", flush=True)
    writer.commit()
"""


def test_blob_wanted_by_two_processes_is_written_once(tmp_path):
    with python(WRITER, tmp_path, 0.3) as one:
        assert one.stdout.readline() == "half\n"
        with python(WRITER, tmp_path, 0) as two:
            assert two.stdout.read() == ""
            assert one.stdout.read() == "wrote\n"
        assert (one.wait(), two.wait()) == (0, 0)
    assert Store(tmp_path).verify() == ()
    assert len(list(Store(tmp_path).blobs)) == 1


def test_blob_of_a_killed_process_is_resumed_and_not_taken_for_whole(tmp_path):
    with python(WRITER, tmp_path, 60) as one:
        assert one.stdout.readline() == "half\n"
        one.send_signal(signal.SIGKILL)
    store = Store(tmp_path)
    content = b"x" * 5_000_000
    assert not store.blobs.has(Digest.of(content))
    with store.blobs.ingest(Descriptor.of(content, "t")) as writer:
        assert writer.offset == 3_000_000
        writer.write(content[3_000_000:])
        writer.commit()
    assert store.verify() == ()


@needs_root
def test_store_on_a_full_disk_reports_it_and_stays_intact(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = Store(disk / "s")
        kept = add_image(store, "kept", {"f": b"1"})
        big = os.urandom(8 << 20)
        with (
            store.blobs.ingest(Descriptor.of(big, "t")) as writer,
            pytest.raises(SetupError, match="disk is full") as caught,
        ):
            writer.write(big)
        assert caught.value.errno == errno.ENOSPC
        assert store.verify() == ()
        assert kept == store.manifest(store.find("kept"))


@needs_root
def test_layer_on_a_full_disk_is_reported_and_leaves_no_part(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = Store(disk / "s")
        manifest = add_image(store, "big", {"f": bytes(6 << 20)})
        with store.lease() as lease, pytest.raises(SetupError, match="disk is full"):
            unpack_layers(store, layers_of(store, manifest), lease)
        assert list((store.root / "layers").iterdir()) == []


@needs_root
def test_claim_on_a_full_disk_is_reported_and_whole_or_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "3m") as disk:
        store = Store(disk / "s")
        first, *more = [Digest.of(str(number).encode()) for number in range(200)]  # more than the rest of a page
        with store.lease() as lease:
            lease.claim([first])
            with pytest.raises(OSError, match="No space left"), open(disk / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            with pytest.raises(SetupError, match="disk is full"):
                lease.claim(more)
            (disk / "filler").unlink()
            lease.claim(more[:1])
            assert leased(store.root / "leases") == {first, more[0]}


@needs_root
def test_layers_are_unpacked_once_and_shared(tmp_path):
    store = Store(tmp_path)
    one = add_image(store, "one", {"base": b"1"}, {"top": b"2"})
    two = add_image(store, "two", {"base": b"1"}, {"other": b"3"})
    with store.lease() as lease:
        first = unpack_layers(store, layers_of(store, one), lease)
        made = (first[0] / "base").stat().st_ino
        second = unpack_layers(store, layers_of(store, two), lease)
    assert first[0] == second[0]
    assert made == (second[0] / "base").stat().st_ino
    assert len(list((store.root / "layers/sha256").iterdir())) == 3


@needs_root
def test_layer_that_is_not_what_its_diff_id_says_is_refused(tmp_path):
    store = Store(tmp_path)
    manifest = add_image(store, "a", {"f": b"x"})
    with store.lease() as lease, pytest.raises(ImageError, match="expected digest"):
        unpack_layers(store, [(manifest.layers[0], Digest.of(b"another"))], lease)
    assert list((store.root / "layers").rglob("fs")) == []


@needs_root
def test_layer_unpacked_before_a_crash_of_the_machine_is_unpacked_again(tmp_path):
    store = Store(tmp_path)
    layers = layers_of(store, add_image(store, "a", {"f": b"x"}))
    with store.lease() as lease:
        directory = unpack_layers(store, layers, lease)[0]
        marker = directory.parent / "layer.json"
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"boot": "another"}))
        (directory / "f").write_text("lost")
        assert (unpack_layers(store, layers, lease)[0] / "f").read_bytes() == b"x"
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"boot": "another", "durable": True}))
        (directory / "f").write_text("kept")
        assert (unpack_layers(store, layers, lease)[0] / "f").read_text() == "kept"


@needs_root
def test_layer_settles_on_disk_when_it_is_old_enough(tmp_path):
    store = Store(tmp_path)
    layers = layers_of(store, add_image(store, "a", {"f": b"x"}))
    with store.lease() as lease:
        marker = unpack_layers(store, layers, lease)[0].parent / "layer.json"
        assert not json.loads(marker.read_text())["durable"]
        os.utime(marker, (time.time() - 90,) * 2)
        unpack_layers(store, layers, lease)
        assert json.loads(marker.read_text())["durable"]


@needs_root
def test_layer_keeps_deletions_as_overlayfs_wants_them(tmp_path):
    store = Store(tmp_path)
    manifest = add_image(
        store, "a", {"gone": b"1", "dir/old": b"1", "again": b"1", "redone/x": b"1"},
        {".wh.gone": b"", "dir/.wh..wh..opq": b"", "dir/new": b"2", ".wh.again": b"", "again": b"2",
         ".wh.redone": b"", "redone/y": b"2", ".wh..wh.plnk": b"", "deep/er/.wh.x": b""},
    )  # fmt: skip
    with store.lease() as lease:
        directories = unpack_layers(store, layers_of(store, manifest), lease)
    top = directories[1]
    assert sorted(os.listdir(top)) == ["again", "deep", "dir", "gone", "redone"]
    gone = (top / "gone").lstat()
    assert (stat.S_ISCHR(gone.st_mode), gone.st_rdev) == (True, 0)
    assert (
        b"y"
        == os.getxattr(top / "dir", "trusted.overlay.opaque")
        == os.getxattr(top / "redone", "trusted.overlay.opaque")
    )
    assert (str(top), str(directories[0])) == layer_paths(directories)
    merged = tmp_path / "merged"
    merged.mkdir()
    options = f"lowerdir={':'.join(layer_paths(directories))}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
    try:
        found = {str(path.relative_to(merged)): path.read_bytes() for path in merged.rglob("*") if path.is_file()}
    finally:
        subprocess.run(["umount", merged], check=True)
    assert found == {"dir/new": b"2", "again": b"2", "redone/y": b"2"}


@needs_root
def test_layer_with_an_opaque_root_hides_all_below(tmp_path):
    store = Store(tmp_path)
    manifest = add_image(store, "a", {"gone": b"1"}, {".wh..wh..opq": b"", "new": b"2"}, {"top": b"3"})
    with store.lease() as lease:
        directories = unpack_layers(store, layers_of(store, manifest), lease)
    assert (str(directories[2]), str(directories[1])) == layer_paths(directories)


@needs_root
def test_layer_that_is_stored_twice_counts_once(tmp_path):
    store = Store(tmp_path)
    manifest = add_image(store, "a", {"f": b"1"}, {"g": b"1"}, {"f": b"1"})
    with store.lease() as lease:
        directories = unpack_layers(store, layers_of(store, manifest), lease)
    assert (str(directories[0]), str(directories[1])) == layer_paths(directories)


@needs_root
def test_collection_takes_what_nothing_needs(tmp_path):
    store = Store(tmp_path)
    kept, gone = add_image(store, "kept", {"f": b"1"}), add_image(store, "gone", {"f": b"2"})
    unnamed = add_image(store, None, {"f": b"3"})
    with store.lease() as lease:
        for manifest in (kept, gone):
            unpack_layers(store, layers_of(store, manifest), lease)
        lease.claim([gone.digest, gone.config.digest, gone.layers[0].digest])
        store.catalog.remove(Reference.parse("gone"))
        assert store.collect().blobs == ()
    found = store.collect()
    assert sorted([gone.digest, gone.config.digest, gone.layers[0].digest]) == sorted(found.blobs)
    assert (len(found.layers), found.freed_bytes > 0) == (1, True)
    assert store.verify() == ()
    assert store.blobs.has(unnamed.digest)
    store.catalog.remove_unnamed()
    assert unnamed.digest in store.collect().blobs
    assert os.listdir(tmp_path / "trash") == []


def test_collection_spares_what_a_living_process_claims_and_not_what_a_dead_one_did(tmp_path):
    store = Store(tmp_path)
    manifest = add_image(store, "a", {"f": b"1"})
    store.catalog.remove(Reference.parse("a"))
    code = """
import sys, time
from containerkit.image.digest import Digest
from containerkit.image.store import Store
lease = Store(sys.argv[1]).lease()
lease.claim(map(Digest, sys.argv[2:]))
print("claimed", flush=True)
time.sleep(60)
"""
    with python(code, tmp_path, manifest.digest, manifest.config.digest, manifest.layers[0].digest) as one:
        assert one.stdout.readline() == "claimed\n"
        assert store.collect().blobs == ()
        one.kill()
    assert len(store.collect().blobs) == 3
    assert os.listdir(tmp_path / "leases") == []


@needs_root
def test_collection_sweeps_what_a_killed_unpacking_has_left(tmp_path):
    store = Store(tmp_path)
    (tmp_path / "layers/.new-dead/fs").mkdir(parents=True)
    (tmp_path / "incoming/new-dead").write_bytes(b"x")
    (tmp_path / "incoming/sha256-young").write_bytes(b"x")
    assert store.collect().unfinished == 2
    assert (
        os.listdir(tmp_path / "incoming"),
        os.listdir(tmp_path / "layers") or ["sha256"],
    ) == (["sha256-young"], ["sha256"])


def test_sweep_takes_what_killed_processes_have_left_and_no_image(tmp_path, monkeypatch):
    monkeypatch.setenv("CONTAINERKIT_IMAGES", str(tmp_path / "s"))
    assert () == sweep()
    assert not (tmp_path / "s").exists()
    store = Store()
    add_image(store, "a", {"f": b"1"})
    left = [store.root / name for name in ("build/.new-dead", "layers/.new-dead")]
    for directory in left:
        (directory / "in").mkdir(parents=True)
    (store.root / "leases/dead").write_text("sha256:")
    left.append(store.root / "leases/dead")
    with store.lease(), workspace(store.root / "build") as alive:
        assert sorted(map(str, left)) == list(sweep())
        assert alive.exists()
    assert 3 == len(list(store.blobs))


def test_verify_finds_and_repairs_damage(tmp_path):
    store = Store(tmp_path)
    manifest = add_image(store, "a", {"f": b"1"})
    assert store.verify() == ()
    path = store.blobs.path(manifest.layers[0].digest)
    path.chmod(0o644)
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    problems = store.verify(repair=True)
    assert str(manifest.layers[0].digest) == problems[0].subject
    assert "missing" in str(problems[1])
    path.write_bytes(b"x")
    with pytest.raises(ImageError, match="expected digest"):
        store.blobs.read(manifest.layers[0].digest)


def test_hash_of_a_file_is_the_hash_of_its_content(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    with (tmp_path / "f").open("rb") as file:
        assert f"sha256:{hashlib.sha256(b'x' * 3_000_000).hexdigest()}" == Digest.of_file(file)

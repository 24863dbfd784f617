"""Damaged or oversized files from outside: the same error for each fault, whichever way they arrive."""

import gzip
import io
import os
import subprocess
import tarfile

import pytest

from containerkit.archive.compression import compress
from containerkit.errors import ImageError, SpecError
from containerkit.image import Image, Store, UnpackLimits

pytestmark = pytest.mark.usefixtures("nothing_left")


def squeezed(content, kind):
    sink = io.BytesIO()
    stream = compress(sink, kind)
    stream.write(content)
    stream.close()
    return sink.getvalue()


def plain(size=1_000_000):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("file")
        info.size = size
        tar.addfile(info, io.BytesIO(os.urandom(size)))
    return buffer.getvalue()


def by_import(tmp_path, content, store):
    (tmp_path / "archive").write_bytes(content)
    return Image.import_tar(tmp_path / "archive", store=store)


def by_load(tmp_path, content, store):
    (tmp_path / "archive").write_bytes(content)
    return Image.load(tmp_path / "archive", store=store)


def by_add(tmp_path, content, store):
    context = tmp_path / "context"
    context.mkdir()
    (context / "archive").write_bytes(content)
    return Image.build(context, text="FROM scratch\nADD archive /\n", store=store)


def by_unpacking(tmp_path, content, store):
    """As in a pull: the blob matches its digest, but is not an archive."""
    from containerkit.image import media
    from containerkit.image.config import ImageConfig
    from containerkit.image.digest import Digest
    from containerkit.image.platform import Platform

    with store.lease() as lease:
        blob = store.blobs.add(content, media.OCI_LAYER_GZIP)
        config = ImageConfig(platform=Platform.host(), diff_ids=(Digest.of(b"whatever"),))
        manifest = store.add_image(config, (blob,), None, lease)
        return Image(store=store, manifest=manifest, reference=None).unpack(lease)


def names(image):
    with image.store.lease() as lease:
        return os.listdir(image.unpack(lease)[0])


WAYS = (by_import, by_load, by_add, by_unpacking)


RATIO_FROM = 16 << 20
"""From how many bytes on the stores of most tests look at the ratio: the default takes a bomb of a third of a second."""


@pytest.fixture
def store(request, tmp_path):
    made = Store(tmp_path / "store", limits=getattr(request, "param", UnpackLimits(ratio_from=RATIO_FROM)))
    yield made
    assert made.verify() == ()
    assert os.listdir(tmp_path / "store/incoming") == []
    assert [name for name in os.listdir(tmp_path / "store/layers") if name.startswith(".new")] == []


@pytest.mark.parametrize("kind", ["gzip", "zstd"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda content: content[: len(content) // 2], "data is truncated"),
        (lambda content: content + b"trailing rubbish" * 10, "data is (followed by something else|damaged)"),
    ],
    ids=["cut", "trailing"],
)
def test_damaged_data_is_reported_for_every_reader(tmp_path, store, way, kind, damage, told):
    with pytest.raises(ImageError, match=told):
        way(tmp_path, damage(squeezed(plain(), kind)), store)


@pytest.mark.parametrize("way", WAYS)
def test_damage_in_the_middle_of_gzip_data_is_reported_for_every_reader(tmp_path, store, way):
    content = bytearray(squeezed(plain(), "gzip"))
    content[-5] ^= 1  # a byte of its size; zstd may have no checksum, then the image's digests detect it
    with pytest.raises(ImageError, match="gzip data is damaged"):
        way(tmp_path, bytes(content), store)


@pytest.mark.parametrize("way", [by_import])
def test_zero_padding_after_the_data_is_fine(tmp_path, store, way):
    content = gzip.compress(plain()) + bytes(10_240)
    assert names(way(tmp_path, content, store)) == ["file"]


def test_padding_as_gnu_tar_writes_it_is_fine(tmp_path, store):
    (tmp_path / "file").write_text("x")
    subprocess.run(["tar", "-C", tmp_path, "-b", "200", "-czf", tmp_path / "made.tar.gz", "file"], check=True)
    content = (tmp_path / "made.tar.gz").read_bytes()
    padded = content + bytes(-len(content) % 102_400)
    assert names(by_import(tmp_path, padded, store)) == ["file"]


@pytest.mark.parametrize("at", [100, 600, 500_000])
def test_archive_cut_short_is_not_let_in(tmp_path, store, at):
    with pytest.raises(ImageError, match=r"ends in the middle|malformed|truncated"):
        by_import(tmp_path, plain()[:at], store)
    assert store.catalog.entries() == ()


def test_file_that_is_no_archive_is_not_let_in(tmp_path, store):
    with pytest.raises(ImageError, match="malformed archive header"):
        by_import(tmp_path, b"this is text\n" * 1000, store)


def test_name_that_leads_out_is_not_let_in(tmp_path, store):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../outside"))
    with pytest.raises(ImageError, match="leads out"):
        by_import(tmp_path, buffer.getvalue(), store)


# --- Bounds


def bomb(size):
    buffer = io.BytesIO()
    with gzip.open(buffer, "wb", compresslevel=6) as file:
        info = tarfile.TarInfo("zeros")
        info.size = size
        file.write(info.tobuf())
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
        file.write(bytes(1024))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def small_bomb():
    return bomb(RATIO_FROM + (4 << 20))


@pytest.mark.parametrize("way", WAYS)
def test_bomb_is_refused_whichever_way_it_comes(tmp_path, store, way, small_bomb):
    with pytest.raises(ImageError, match="decompression bomb"):
        way(tmp_path, small_bomb, store)


@pytest.mark.parametrize("store", [UnpackLimits()], indirect=True, ids=["default"])
def test_bomb_is_refused_by_default(tmp_path, store, small_bomb):
    assert names(by_import(tmp_path, small_bomb, store)) == ["zeros"]
    with pytest.raises(ImageError, match="decompression bomb"):
        by_import(tmp_path, bomb(store.limits.ratio_from + (32 << 20)), store)


def test_layer_of_a_docker_archive_is_bounded_too(tmp_path, store, small_bomb):
    buffer = io.BytesIO()
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' % (b"0" * 64)
    manifest = b'[{"Config":"config.json","RepoTags":null,"Layers":["layer.tar"]}]'
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in {"config.json": config, "manifest.json": manifest, "layer.tar": small_bomb}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(ImageError, match=r"layer.tar: unpacks to more than 250 times"):
        by_load(tmp_path, buffer.getvalue(), store)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("limits", "told"),
    [(UnpackLimits(bytes=500_000), "more than 500000 bytes"), (UnpackLimits(ratio=1, ratio_from=1), "1 times")],
)
def test_limits_of_the_store_hold_for_each_way(tmp_path, way, limits, told):
    content = squeezed(plain() + bytes(200_000), "gzip")
    with pytest.raises(ImageError, match=told):
        way(tmp_path, content, Store(tmp_path / "store", limits=limits))


def test_limits_of_the_store_can_be_raised(tmp_path, small_bomb):
    store = Store(tmp_path / "store", limits=UnpackLimits(ratio=2000, ratio_from=RATIO_FROM))
    image = by_import(tmp_path, small_bomb, store)
    assert names(image) == ["zeros"]
    (tmp_path / "into").mkdir()
    strict = Image(
        store=Store(tmp_path / "store", limits=UnpackLimits(bytes=1 << 20)), manifest=image.manifest, reference=None
    )
    with pytest.raises(ImageError, match=r"Store\(limits=UnpackLimits\(bytes"):
        strict.unpack_into(tmp_path / "into")


@pytest.mark.parametrize("limits", [None, 7, {"bytes": 7}, "64G"])
def test_limits_that_are_none_are_refused(tmp_path, limits):
    with pytest.raises(SpecError, match="limits"):
        Store(tmp_path / "store", limits=limits)
    assert not (tmp_path / "store").exists()

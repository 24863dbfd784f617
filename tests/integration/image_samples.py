"""Images for tests."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
from contextlib import contextmanager

from containerkit.image import media
from containerkit.image.config import ImageConfig
from containerkit.image.digest import Digest
from containerkit.image.platform import Platform
from containerkit.image.reference import Reference

BUSYBOX = "/bin/busybox"


def busybox_root(root, *more):
    """Make a root with busybox under all of its names, a few directories, ``more``, and /lib as a symlink to usr/lib."""
    for name in ("bin", "etc", "tmp", "usr/lib", *more):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    for name in subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")
    (root / "lib").symlink_to("usr/lib")


def tar_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def add_image(store, name, *trees):
    """Store an image with one layer for each tree or archive. Return its manifest."""
    with store.lease() as lease:
        blobs, diffs = [], []
        for tree in trees:
            plain = tree if isinstance(tree, bytes) else tar_of(tree)
            blob = gzip.compress(plain, mtime=0)
            lease.claim([Digest.of(blob)])
            blobs.append(store.blobs.add(blob, media.OCI_LAYER_GZIP))
            diffs.append(Digest.of(plain))
        config = ImageConfig(platform=Platform.host(), diff_ids=tuple(diffs))
        return store.add_image(config, tuple(blobs), Reference.parse(name) if name else None, lease)


def layers_of(store, manifest):
    return list(zip(manifest.layers, store.config(manifest).diff_ids, strict=True))


@contextmanager
def small_disk(path, size):
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)

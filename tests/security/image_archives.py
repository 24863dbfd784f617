"""Archives as an attacker would make them, and a place to unpack them that detects changes around it."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
from contextlib import contextmanager

from containerkit.archive.extract import Extraction, extract


def member(name, kind=tarfile.REGTYPE, data=b"", link="", mode=0o644, **more):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname, info.mode = kind, len(data), link, mode
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def directory(name, **more):
    return member(name, tarfile.DIRTYPE, mode=more.pop("mode", 0o755), **more)


def symlink(name, target, **more):
    return member(name, tarfile.SYMTYPE, link=target, **more)


def hardlink(name, target):
    return member(name, tarfile.LNKTYPE, link=target)


def archive(*members, dialect=tarfile.PAX_FORMAT):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpack(content, root, how=None, compressed=None):
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        size = compressed if compressed is not None else len(content)
        return extract(io.BytesIO(content), descriptor, hashlib.sha256(), how or Extraction(), lambda: size)
    finally:
        os.close(descriptor)


def snapshot(root, *, skip=(), times=True):
    """Return everything visible in a tree, without following symlinks."""
    found = {}
    inodes = {}
    for here, directories, files in os.walk(root):
        if here == str(root):
            directories[:] = [name for name in directories if name not in skip]
        for name in [".", *directories, *files] if here == str(root) else [*directories, *files]:
            path = os.path.join(here, name)
            state = os.lstat(path)
            content = None
            if stat.S_ISREG(state.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(state.st_mode):
                content = os.readlink(path)
            relative = os.path.relpath(path, root)
            first = inodes.setdefault((state.st_dev, state.st_ino), relative)
            is_directory = stat.S_ISDIR(state.st_mode)
            found[relative] = (
                state.st_mode if relative != "." else None,
                (state.st_uid, state.st_gid) if relative != "." else None,
                None if is_directory or not times else state.st_mtime_ns,
                state.st_rdev,
                content,
                first,
            )
    return found


@contextmanager
def watched(tmp_path):
    """A root to unpack into, with canaries around it that must not change."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("untouched")
    (outside / "secret").chmod(0o600)
    root = tmp_path / "outside/in/root"
    root.mkdir(parents=True)
    before = snapshot(outside, skip=("in",))
    yield root, outside
    assert before == snapshot(outside, skip=("in",))
    assert os.listdir(outside / "in") == ["root"]

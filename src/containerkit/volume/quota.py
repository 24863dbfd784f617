"""Limits on the size of a directory: project quotas of the filesystem.

Source: quotactl(2), "quotactl_fd"; ioctl_xfs_fsgetxattr(2); the kernel's include/uapi/linux/fs.h and quota.h.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
from contextlib import contextmanager, suppress
from errno import EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Final

from containerkit._native.calls_seam import backend
from containerkit.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

__all__ = ["limited", "unlimited"]

_GET_ATTRIBUTES: Final = 0x801C581F
_SET_ATTRIBUTES: Final = 0x401C5820
_ATTRIBUTES: Final = struct.Struct("=5I8x")
"""struct fsxattr: flags, size of extents, their number, project, size of copied extents."""
_INHERIT: Final = 0x200

_QUOTACTL_FD: Final = 443  # the same on all architectures
_PROJECT: Final = 2
_SET_QUOTA: Final = 0x800008 << 8 | _PROJECT
_GET_QUOTA: Final = 0x800007 << 8 | _PROJECT
_QUOTA: Final = struct.Struct("=8QI4x")
"""struct if_dqblk: the first field is the limit in blocks of 1,024 bytes, the last one names the valid fields."""
_BLOCK_LIMITS: Final = 1

_HINT: Final = (
    "only ext4 and xfs with project quotas can limit the size of a directory: enable them (ext4: 'tune2fs -O "
    "project,quota -Q prjquota DEVICE' while it is unmounted, then mount it with -o prjquota; xfs: mount it with "
    "-o prjquota), set CONTAINERKIT_VOLUMES to a directory there, or create the volume without a size"
)


@contextmanager
def _opened(place: str) -> Iterator[int]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def limited(place: str, size: int, *, taken: Collection[int | None] = ()) -> int:
    """Limit the total size of files that will be created below an empty directory.

    Args:
        place: the directory.
        size: in bytes, rounded up to a multiple of 1 KiB.
        taken: the ids of projects of other directories.

    Returns:
        The id of the project, which :func:`unlimited` takes.

    Raises:
        UnsupportedError: the filesystem has no project quotas, or this user may not set them.
    """
    if os.geteuid() != 0:
        raise UnsupportedError("quotactl", EPERM, place, "only root may limit the size of a volume")
    with _opened(place) as fd:
        try:
            project = _free(fd, taken)
            flags, extent, _, _, copied = _ATTRIBUTES.unpack(fcntl.ioctl(fd, _GET_ATTRIBUTES, bytes(_ATTRIBUTES.size)))
            fcntl.ioctl(fd, _SET_ATTRIBUTES, _ATTRIBUTES.pack(flags | _INHERIT, extent, 0, project, copied))
            _set(fd, project, -(-size // 1024))
        except OSError as error:
            raise UnsupportedError("quotactl", error.errno or EOPNOTSUPP, place, _HINT) from None
    return project


def _free(fd: int, taken: Collection[int | None]) -> int:
    """Return an unused project id, from a range that administrators are unlikely to choose."""
    while True:
        project = random.SystemRandom().randrange(1 << 24, 1 << 31)
        found = bytearray(_QUOTA.size)
        with suppress(FileNotFoundError):  # the filesystem has no record of it
            _quotactl(fd, _GET_QUOTA, project, found)
        if project not in taken and not any(_QUOTA.unpack(found)[:6]):
            return project


def _quotactl(fd: int, command: int, project: int, quota: bytes | bytearray) -> None:
    result = backend.syscall(_QUOTACTL_FD, fd, command, project, quota)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _set(fd: int, project: int, blocks: int) -> None:
    _quotactl(fd, _SET_QUOTA, project, _QUOTA.pack(blocks, *[0] * 7, _BLOCK_LIMITS))


def unlimited(place: str, project: int) -> None:
    """Remove the limit. If that fails, the limit stays on a project without files."""
    with suppress(OSError), _opened(place) as fd:
        _set(fd, project, 0)

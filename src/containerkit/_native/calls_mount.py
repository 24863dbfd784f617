"""The calls of :mod:`containerkit._native.calls` for mounts and files."""

from __future__ import annotations

import os
from struct import pack

from containerkit._native import constants as k
from containerkit._native.calls_seam import call_at, named, syscall, terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit._native.calls_seam import Argument, Path

__all__ = [
    "fsconfig_create",
    "fsconfig_reconfigure",
    "fsconfig_set_fd",
    "fsconfig_set_flag",
    "fsconfig_set_path",
    "fsconfig_set_string",
    "fsmount",
    "fsopen",
    "fspick",
    "mount",
    "mount_setattr",
    "move_mount",
    "open_tree",
    "openat2",
    "pivot_root",
    "umount2",
]


def mount(
    source: Path | None, target: Path, fstype: str | None = None, flags: int = 0, data: str | None = None
) -> None:
    """Mount a filesystem, bind a path, or change a mount, with the classic call.

    Args:
        source: a device, the path to bind, or any text; None if the flags ignore it.
        target: an existing file or directory.
        fstype: such as ``"tmpfs"``; None if the flags ignore it.
        flags: ``MS_*``.
        data: the filesystem's own options, separated by commas; at most a page.

    Raises:
        OSError: ``EPERM`` without CAP_SYS_ADMIN over the mount namespace; ``ENODEV`` for an unknown filesystem;
            ``EINVAL``, ``EBUSY``, ``ENOENT``, ... as mount(2) lists them.

    Source: mount(2).
    """
    place = terminated(target)
    words = [0 if value is None else terminated(value) for value in (source, fstype, data)]
    syscall("mount", words[0], place, words[1], flags, words[2], target=place)


def umount2(target: Path, flags: int = 0) -> None:
    """Unmount a filesystem.

    Args:
        target: the mount point.
        flags: ``MNT_DETACH``, ``MNT_FORCE``, ``MNT_EXPIRE``, ``UMOUNT_NOFOLLOW``.

    Raises:
        OSError: ``EINVAL`` if it is not a mount point (or a user namespace locks it); ``EBUSY`` if it is in use.

    Source: umount2(2).
    """
    place = terminated(target)
    syscall("umount2", place, flags, target=place)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """Make a mount the root of this mount namespace, and move the old root below it.

    Args:
        new_root: a mount point whose propagation is not shared with its parent.
        put_old: a directory at or below ``new_root``. ``pivot_root(".", ".")`` stacks the old root on the new one.

    Raises:
        OSError: ``EINVAL`` if ``new_root`` is not a mount point or propagation is shared; ``EBUSY`` if it is already
            the root.

    Source: pivot_root(2).
    """
    place = terminated(new_root)
    syscall("pivot_root", place, terminated(put_old), target=place)


def open_tree(dirfd: int, path: Path, flags: int = 0) -> int:
    """Open a mount or, with ``OPEN_TREE_CLONE``, a detached copy of it.

    Args:
        dirfd: the directory where ``path`` starts, or ``AT_FDCWD``.
        path: the mount, or anything in it; empty with ``AT_EMPTY_PATH`` for ``dirfd`` itself.
        flags: ``OPEN_TREE_CLONE``, ``AT_RECURSIVE`` (include the mounts below), ``AT_EMPTY_PATH``,
            ``AT_SYMLINK_NOFOLLOW``.

    Returns:
        A descriptor. A detached copy disappears with it, unless :func:`move_mount` attaches it.

    Raises:
        OSError: ``EPERM`` for a clone without CAP_SYS_ADMIN; ``EINVAL`` for a mount of another namespace or an
            unbindable one.

    Source: open_tree(2).
    """
    return call_at("open_tree", dirfd, path, flags | k.OPEN_TREE_CLOEXEC)


def move_mount(from_dirfd: int, from_path: Path, to_dirfd: int, to_path: Path, flags: int = 0) -> None:
    """Move a mount, or attach a detached one.

    Args:
        from_dirfd: a descriptor of :func:`open_tree` or :func:`fsmount`, a directory, or ``AT_FDCWD``.
        from_path: a mount point; empty with ``MOVE_MOUNT_F_EMPTY_PATH`` for ``from_dirfd`` itself.
        to_dirfd: a directory, or ``AT_FDCWD``.
        to_path: the destination; empty with ``MOVE_MOUNT_T_EMPTY_PATH`` for ``to_dirfd`` itself.
        flags: ``MOVE_MOUNT_*``.

    Raises:
        OSError: ``EINVAL`` or ``ENOENT`` as in mount(2) for MS_MOVE; ``ENOTDIR`` for a file over a directory.

    Source: move_mount(2).
    """
    source, place = terminated(from_path), terminated(to_path)
    try:
        syscall("move_mount", from_dirfd, source, to_dirfd, place, flags)
    except OSError as error:
        error.filename, error.filename2 = named(from_dirfd, source), named(to_dirfd, place)
        raise


def mount_setattr(
    dirfd: int,
    path: Path,
    flags: int = 0,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int | None = None,
) -> None:
    """Change the attributes of a mount or, with ``AT_RECURSIVE``, of a whole tree: all of them or none.

    Args:
        dirfd: the directory where ``path`` starts, a descriptor of a mount, or ``AT_FDCWD``.
        path: the mount point; empty with ``AT_EMPTY_PATH`` for ``dirfd`` itself.
        flags: ``AT_RECURSIVE``, ``AT_EMPTY_PATH``, ``AT_SYMLINK_NOFOLLOW``.
        attr_set: ``MOUNT_ATTR_*`` to set.
        attr_clr: ``MOUNT_ATTR_*`` to clear first.
        propagation: ``MS_PRIVATE``, ``MS_SLAVE``, ``MS_SHARED``, ``MS_UNBINDABLE``, or 0 for no change.
        userns_fd: a user namespace whose mapping the (detached) mount uses; it implies ``MOUNT_ATTR_IDMAP``.

    Raises:
        OSError: ``EINVAL`` if the filesystem can't be idmapped, or the mount is attached; ``EPERM`` for an attribute
            that a user namespace locks, or for a filesystem of another user namespace.

    Source: mount_setattr(2).
    """
    if userns_fd is not None:
        attr_set |= k.MOUNT_ATTR_IDMAP
    attributes = pack("=4Q", attr_set, attr_clr, propagation, userns_fd or 0)
    call_at("mount_setattr", dirfd, path, flags, attributes, len(attributes))


def openat2(dirfd: int, path: Path, flags: int = 0, mode: int = 0, resolve: int = 0) -> int:
    """Open a file with control over the path resolution.

    Args:
        dirfd: the directory where ``path`` starts, or ``AT_FDCWD``.
        path: the file.
        flags: ``O_*``, as in open(2). Unknown flags are an error here.
        mode: for ``O_CREAT``.
        resolve: ``RESOLVE_*``: ``RESOLVE_IN_ROOT`` uses ``dirfd`` as the root, ``RESOLVE_BENEATH`` refuses paths that
            lead out of it.

    Raises:
        OSError: ``EXDEV`` if the path leads out; ``ELOOP`` at a symlink that ``resolve`` forbids; ``EAGAIN`` if a
            concurrent rename disturbed the resolution (try again); others as in open(2).

    Source: openat2(2).
    """
    how = pack("=3Q", flags | k.O_CLOEXEC, mode, resolve)
    return call_at("openat2", dirfd, path, how, len(how))


def fsopen(fstype: str) -> int:
    """Begin a new filesystem. Return a context for ``fsconfig_*`` and :func:`fsmount`.

    Args:
        fstype: such as ``"tmpfs"``.

    Raises:
        OSError: ``ENODEV`` for an unknown filesystem; ``EPERM`` without CAP_SYS_ADMIN over the mount namespace.

    Source: fsopen(2).
    """
    encoded = terminated(fstype, "filesystem")
    return syscall("fsopen", encoded, k.FSOPEN_CLOEXEC, target=encoded)


def fspick(dirfd: int, path: Path, flags: int = 0) -> int:
    """Begin to reconfigure a mounted filesystem. Return a context for ``fsconfig_*``.

    Args:
        dirfd: the directory where ``path`` starts, or ``AT_FDCWD``.
        path: the root of the mount; empty with ``FSPICK_EMPTY_PATH`` for ``dirfd`` itself.
        flags: ``FSPICK_SYMLINK_NOFOLLOW``, ``FSPICK_NO_AUTOMOUNT``, ``FSPICK_EMPTY_PATH``.

    Raises:
        OSError: ``EINVAL`` if it is not the root of a mount; ``EPERM`` without CAP_SYS_ADMIN.

    Source: fspick(2).
    """
    return call_at("fspick", dirfd, path, flags | k.FSPICK_CLOEXEC)


def _messages(context: int) -> str:
    """Return the filesystem's own messages, which say more than an error number. Source: fsopen(2)."""
    lines = []
    try:
        while line := os.read(context, 4096):
            lines.append(line.decode(errors="replace").strip().partition(" ")[2])
    except OSError:  # ENODATA: there are no more
        pass
    return "; ".join(lines)


def _fsconfig(context: int, command: int, key: Path = "", value: Argument = 0, aux: int = 0) -> None:
    name: Argument = terminated(key, "option") or 0
    try:
        syscall("fsconfig", context, command, name, value, aux)
    except OSError as error:
        raise _explained(error, context, os.fsdecode(key) or "create") from None


def _explained(error: OSError, context: int, target: str) -> OSError:
    number, said = error.errno or 0, _messages(context)
    return OSError(number, f"{os.strerror(number)} ({said})" if said else os.strerror(number), target)


def fsconfig_set_flag(context: int, key: str) -> None:
    """Set an option that has no value, such as ``"ro"``.

    Args:
        context: of :func:`fsopen` or :func:`fspick`.
        key: the option.

    Raises:
        OSError: ``EINVAL`` for an option that the filesystem does not know. Its own message is in ``strerror``.

    Source: fsconfig(2), FSCONFIG_SET_FLAG.
    """
    _fsconfig(context, k.FSCONFIG_SET_FLAG, key)


def fsconfig_set_string(context: int, key: str, value: str | bytes) -> None:
    """Set an option to a string, such as ``"size"`` to ``"64m"``.

    Args:
        context: of :func:`fsopen` or :func:`fspick`.
        key: the option.
        value: at most 255 bytes.

    Raises:
        OSError: ``EINVAL`` for an option or value that the filesystem refuses. Its own message is in ``strerror``.

    Source: fsconfig(2), FSCONFIG_SET_STRING.
    """
    _fsconfig(context, k.FSCONFIG_SET_STRING, key, terminated(value, key))


def fsconfig_set_path(context: int, key: str, path: Path, dirfd: int = k.AT_FDCWD) -> None:
    """Set an option to a path that is resolved from ``dirfd``.

    Args:
        context: of :func:`fsopen` or :func:`fspick`.
        key: the option.
        path: the path.
        dirfd: the directory where it starts. Default: the working directory.

    Raises:
        OSError: ``EINVAL`` for an option that does not accept a path; ``ENOENT``.

    Source: fsconfig(2), FSCONFIG_SET_PATH.
    """
    _fsconfig(context, k.FSCONFIG_SET_PATH, key, terminated(path, key), dirfd)


def fsconfig_set_fd(context: int, key: str, fd: int) -> None:
    """Set an option to an open file, such as overlay's ``"lowerdir+"`` (Linux 6.13).

    Args:
        context: of :func:`fsopen` or :func:`fspick`.
        key: the option.
        fd: the open file; it may be closed afterwards.

    Raises:
        OSError: ``EINVAL`` for an option that does not accept a descriptor; ``EBADF``.

    Source: fsconfig(2), FSCONFIG_SET_FD.
    """
    _fsconfig(context, k.FSCONFIG_SET_FD, key, 0, fd)


def fsconfig_create(context: int) -> None:
    """Create the filesystem that the context describes.

    Args:
        context: of :func:`fsopen`.

    Raises:
        OSError: the filesystem refuses it. Its own message is in ``strerror``.

    Source: fsconfig(2), FSCONFIG_CMD_CREATE.
    """
    _fsconfig(context, k.FSCONFIG_CMD_CREATE)


def fsconfig_reconfigure(context: int) -> None:
    """Apply the options of a :func:`fspick` context to the mounted filesystem.

    Args:
        context: of :func:`fspick`.

    Raises:
        OSError: the filesystem refuses it. Its own message is in ``strerror``.

    Source: fsconfig(2), FSCONFIG_CMD_RECONFIGURE.
    """
    _fsconfig(context, k.FSCONFIG_CMD_RECONFIGURE)


def fsmount(context: int, attributes: int = 0) -> int:
    """Convert a created filesystem to a detached mount, for :func:`move_mount`.

    Args:
        context: of :func:`fsopen`, after :func:`fsconfig_create`.
        attributes: ``MOUNT_ATTR_*``.

    Raises:
        OSError: ``EPERM`` if procfs or sysfs would show more than the caller may see; ``EINVAL`` before the create.

    Source: fsmount(2).
    """
    try:
        return syscall("fsmount", context, k.FSMOUNT_CLOEXEC, attributes)
    except OSError as error:
        raise _explained(error, context, "fsmount") from None

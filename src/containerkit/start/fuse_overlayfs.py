"""Unions of directories by fuse-overlayfs, if the kernel's overlayfs can't make them.

The kernel refuses an upper directory on another overlay or on most network filesystems, and layers that it can't
id-map. Before Linux 5.11 it makes no overlays in a user namespace. fuse-overlayfs can do all of this. It runs outside
the container, as its user (root of the holder for an unprivileged one), in a mount namespace with plain names for the
layers. Its filesystem is a detached mount that only the container attaches. When the container ends, the kernel closes
the connection, and the program ends.

Source: fuse-overlayfs(1), fuse(4), the kernel's filesystems/fuse.rst.
"""

from __future__ import annotations

import os
import sys
from errno import EINVAL, ENODEV, ENOENT, EOPNOTSUPP, EPERM, ESRCH
from typing import TYPE_CHECKING, Any, Final

from containerkit._linux.programs import which
from containerkit._native import constants as k
from containerkit.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    import socket

    from containerkit.spec.rootfs import RootFS
    from containerkit.start.staging import Mappings

__all__ = ["FuseUnion", "could_help", "explained"]

PROGRAM: Final = "fuse-overlayfs"
_DEVICE: Final = "/dev/fuse"
_REFUSALS: Final = (EINVAL, ENODEV, EPERM, EOPNOTSUPP)
_PLACE: Final = "/sys"
"""A directory that the program does not need. In its own mount namespace the layers are mounted over it."""
_START: Final = """
import sys
sys.path[:] = {path!r}
from containerkit.start.fuse_overlayfs import serve
serve({door}, {holder}, {request!r})
"""
_END_S: Final = 5.0


def could_help(rootfs: RootFS, error: SetupError) -> bool:
    """Return whether the kernel refused a union, so that the program can be tried instead."""
    target = error.target or ""
    refused = target.startswith(("overlay on ", "id map of /")) and target != "id map of /dev"
    return rootfs.kind == "overlay" and rootfs.union == "auto" and error.errno in _REFUSALS and refused


def explained(error: SetupError) -> SetupError:
    """Return the kernel's error with the remedy, if the program is not installed."""
    hint = (
        f"install {PROGRAM}, which does not need the kernel's overlayfs, and let this user open {_DEVICE}; or put the "
        "directories on another filesystem"
    )
    return UnsupportedError(error.operation, error.errno or EINVAL, error.target, hint)


def is_installed() -> bool:
    """Return whether the program is installed, and this user can open its device."""
    return which(PROGRAM) is not None and os.access(_DEVICE, os.R_OK | os.W_OK)


class FuseUnion:
    """A union that fuse-overlayfs serves. It owns the process and two descriptors; :meth:`close` ends all.

    Args:
        rootfs: of the kind ``overlay``.
        holder: the user namespace to enter, or -1.
        mappings: the id maps between the container and the program; empty if the ids are equal.

    Attributes:
        tree: descriptor of the detached mount.
        memory: descriptor of the filesystem in memory for the changes, or -1.

    Raises:
        UnsupportedError: the program, or something that it needs, is missing.
        SetupError: it can't be made.
    """

    def __init__(self, rootfs: RootFS, holder: int, mappings: Mappings) -> None:
        self.tree = self.memory = self._words = -1
        program = which(PROGRAM)
        if program is None:
            hint = "install the package of that name, or pass union='kernel' to the RootFS"
            raise UnsupportedError("start", ENOENT, PROGRAM, hint)
        request = {
            "program": program,
            "lowers": rootfs.lowers,
            "upper": rootfs.upper,
            "work": rootfs.work,
            "size": rootfs.size,
            "mappings": [[(m.inside, m.outside, m.count) for m in kind] for kind in mappings],
        }
        self._start(holder, request)

    def _start(self, holder: int, request: dict[str, Any]) -> None:
        import socket
        import subprocess

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._words = os.memfd_create("fuse-overlayfs")
        code = _START.format(path=sys.path, door=theirs.fileno(), holder=holder, request=request)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=self._words,
                stderr=self._words,
                pass_fds=(theirs.fileno(), *([holder] if holder >= 0 else [])),
                start_new_session=True,  # signals of a terminal are meant for the container, not for its helpers
            )
            theirs.close()
            self.tree, self.memory = self._received(ours)
        except BaseException:
            self.close()
            raise
        finally:
            theirs.close()
            ours.close()

    def _received(self, door: socket.socket) -> tuple[int, int]:
        import json
        import socket

        answer, files, _, _ = socket.recv_fds(door, 4096, 2)
        if files:
            return files[0], files[1] if len(files) > 1 else -1
        operation, number, target, hint = json.loads(answer or f'["start", {ESRCH}, "{PROGRAM}", ""]')
        raise SetupError(operation, number, target, hint or self.words())

    def __repr__(self) -> str:
        return f"<FuseUnion pid {self._process.pid}: {'closed' if self._words < 0 else 'serving'}>"

    def words(self) -> str:
        """Return the end of the program's output."""
        size = os.fstat(self._words).st_size
        return os.pread(self._words, 500, max(0, size - 500)).decode("utf-8", "replace").strip()

    def explained(self, error: SetupError) -> SetupError:
        """Return an error of the start with the program's output."""
        words = self.words()
        return SetupError(error.operation, error.errno or EINVAL, error.target, words) if words else error

    def inputs(self) -> dict[str, int]:
        """Return the inputs of a start from this object."""
        return {"union": self.tree} if self.memory < 0 else {"union": self.tree, "upper": self.memory}

    def attached(self) -> None:
        """Close the mounts, after the container has attached them. The program ends with them."""
        for fd in (self.tree, self.memory):
            if fd >= 0:
                os.close(fd)
        self.tree = self.memory = -1

    def close(self) -> None:
        """Wait for the program, which ends when its mount is gone. May be called twice."""
        import subprocess

        self.attached()
        if self._words >= 0:
            os.close(self._words)
            self._words = -1
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None and process.returncode is None:
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


# --- The process that becomes the program


def serve(door: int, holder: int, request: dict[str, Any]) -> None:
    """Prepare the mounts, send them to the owner, and exec the program.

    Args:
        door: a socket to the owner.
        holder: the user namespace to enter, or -1.
        request: the request of :class:`FuseUnion`.
    """
    import json
    import socket

    with socket.socket(fileno=door) as owner:
        try:
            words = _prepare(owner, holder, request)
        except OSError as error:
            hint = (
                "this user must be able to open it: udev sets mode 0666"
                if error.filename == _DEVICE
                else error.strerror
            )
            told = "prepare", error.errno or EINVAL, str(error.filename or PROGRAM), hint or ""
            owner.send(json.dumps(told).encode())
            return
    os.execv(request["program"], words)


def _prepare(owner: socket.socket, holder: int, request: dict[str, Any]) -> list[str]:
    import socket

    from containerkit._native import calls

    if holder >= 0:
        calls.setns(holder, k.CLONE_NEWUSER)
        os.close(holder)
    calls.unshare(k.CLONE_NEWNS)
    calls.mount("none", "/", None, k.MS_REC | k.MS_PRIVATE)
    memory = -1 if request["upper"] else _filesystem("tmpfs", {"mode": "755", **_size(request["size"])})
    options = _place_layers(request, memory)
    device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    tree = _filesystem(
        "fuse",
        {
            "fd": str(device),
            "rootmode": "40000",
            "user_id": "0",
            "group_id": "0",
            "default_permissions": None,
            "allow_other": None,
        },
        k.MOUNT_ATTR_NOSUID | k.MOUNT_ATTR_NODEV,
    )
    files = [tree] if memory < 0 else [tree, memory]
    socket.send_fds(owner, [b"ready"], files)
    for fd in files:
        os.close(fd)
    os.set_inheritable(device, True)
    return [request["program"], "-f", "-o", ",".join(options), f"/dev/fd/{device}"]


def _size(size: str | None) -> dict[str, str]:
    return {} if size is None else {"size": size}


def _filesystem(kind: str, options: dict[str, str | None] | dict[str, str], attributes: int = 0) -> int:
    from containerkit._native import calls

    context = calls.fsopen(kind)
    try:
        for name, value in options.items():
            if value is None:
                calls.fsconfig_set_flag(context, name)
            else:
                calls.fsconfig_set_string(context, name, value)
        calls.fsconfig_create(context)
        return calls.fsmount(context, attributes)
    finally:
        os.close(context)


def _place_layers(request: dict[str, Any], memory: int) -> list[str]:
    """Mount the layers below one directory, under names that need no quoting; return the program's options."""
    from containerkit._native import calls

    sources = list(request["lowers"])
    base = os.path.commonpath((request["upper"], request["work"])) if request["upper"] else ""
    if base:
        sources.append(base)
    trees = [calls.open_tree(k.AT_FDCWD, source, k.OPEN_TREE_CLONE) for source in sources]
    calls.mount("tmpfs", _PLACE, "tmpfs", k.MS_NOSUID | k.MS_NODEV)
    for number, tree in enumerate(trees):
        os.mkdir(f"{_PLACE}/{number}")
        calls.move_mount(tree, "", k.AT_FDCWD, f"{_PLACE}/{number}", k.MOVE_MOUNT_F_EMPTY_PATH)
        os.close(tree)
    lowers = ":".join(f"{_PLACE}/{number}" for number in range(len(request["lowers"])))
    if base:
        last = f"{_PLACE}/{len(trees) - 1}"
        os.symlink(f"{last}/{os.path.relpath(request['upper'], base)}", f"{_PLACE}/u")
        os.symlink(f"{last}/{os.path.relpath(request['work'], base)}", f"{_PLACE}/w")
        upper, work = f"{_PLACE}/u", f"{_PLACE}/w"
    else:
        os.mkdir(f"{_PLACE}/m")
        calls.move_mount(memory, "", k.AT_FDCWD, f"{_PLACE}/m", k.MOVE_MOUNT_F_EMPTY_PATH)
        upper, work = f"{_PLACE}/m/u0", f"{_PLACE}/m/w0"
        os.mkdir(upper)
        os.mkdir(work)
    # With a write cache, a full filesystem would only be reported when the file is closed.
    options = [f"lowerdir={lowers}", f"upperdir={upper}", f"workdir={work}", "writeback=0"]
    for name, kind in zip(("uidmapping", "gidmapping"), request["mappings"], strict=False):
        if kind:
            options.append(f"{name}=" + ":".join(f"{inside}:{outside}:{count}" for inside, outside, count in kind))
    return options

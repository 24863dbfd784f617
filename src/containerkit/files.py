"""The files of a running container, from outside.

Every path is resolved by a process that has joined the container and is its root, so that a link inside leads to where
it leads inside; the caller gets the open descriptor, and looks at what it is before it reads or writes.
"""

from __future__ import annotations

import os
import stat
import struct
from errno import EISDIR, ENOENT, ENXIO
from typing import TYPE_CHECKING, Any, Final

from containerkit import _native, deputy, payload, plan
from containerkit._native import constants as k
from containerkit.assembly import UPPER_FD
from containerkit.changes import Change, listed
from containerkit.command import User
from containerkit.engine import Program
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.mount import path_inside
from containerkit.plan import Block, Operation, Plan, Slot
from containerkit.streams import window_size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from containerkit.container import Container

__all__ = ["READ_LIMIT_BYTES", "Files", "changed"]

READ_LIMIT_BYTES: Final = 1024 * 1024 * 1024
"""The largest file that ``read`` takes unless it is told otherwise."""

_PATH_BYTES: Final = 4096
_CHUNK: Final = 1024 * 1024
_TIOCGPTPEER: Final = 0x5441
_TIOCSPTLCK: Final = 0x4004_5431
_TIOCSWINSZ: Final = 0x5414
_OPENED: Final = Slot("opened")


class Files:
    """What ``container.files`` is. Paths are absolute, as inside.

    All methods raise :class:`StateError` when the container does not run, :class:`SpecError` for a path that can't be,
    and :class:`SetupError` with the kernel's error number for a path that is not there, no file, or not to be had.
    """

    def __init__(self, container: Container) -> None:
        self._container = container

    # --- Single files

    def read(self, path: str, *, limit_bytes: int | None = READ_LIMIT_BYTES) -> bytes:
        """Return what is in a regular file.

        Args:
            path: the file.
            limit_bytes: refuse a larger one (default 1 GiB; None for no limit).

        Raises:
            SetupError: EFBIG when it is larger.
        """
        fd = self._open_regular(path, k.O_RDONLY)
        try:
            return _read_all(fd, path, limit_bytes)
        finally:
            os.close(fd)

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Return what is in a text file."""
        return self.read(path).decode(encoding)

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644, user: User | None = None) -> None:
        """Put bytes (or text, as UTF-8) into a file, made when it is missing; its folder must be there.

        Args:
            path: the file.
            content: what it shall hold, and nothing else.
            mode: the permissions of a new file (default 0o644).
            user: who shall own it (default root of the container).
        """
        raw = content.encode() if isinstance(content, str) else content
        if not isinstance(raw, (bytes, bytearray, memoryview)):
            raise SpecError(f"files.write: content must be bytes or str, not {type(content).__name__}")
        fd = self._open_regular(path, k.O_WRONLY | k.O_CREAT | os.O_TRUNC, mode=mode, user=user)
        try:
            _write_all(fd, memoryview(raw))
        finally:
            os.close(fd)

    def _open_regular(self, path: str, flags: int, *, mode: int = 0, user: User | None = None) -> int:
        # Not to wait for the other end of a fifo, not to take a terminal.
        try:
            fd = self._open(path, flags | k.O_NONBLOCK | k.O_NOCTTY, mode=mode, user=user)
        except SetupError as error:
            if error.errno == ENXIO:
                raise SetupError("open", ENXIO, path, "only regular files can be read and written") from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise SetupError("open", EISDIR, path, "only regular files can be read and written")
        return fd

    # --- Folders

    def make_folder(self, path: str, *, mode: int = 0o755) -> None:
        """Make a folder and those above it, where they are missing."""
        parts = _inside(path).strip("/").split("/")
        steps = [
            plan.make_directory(k.AT_FDCWD, os.fsencode("/" + "/".join(parts[:depth])), mode)
            for depth in range(1, len(parts) + 1)
            if parts[0]
        ]
        self._run(Program(self._plan(steps)))

    def listdir(self, path: str = "/") -> list[str]:
        """Return the names in a folder, sorted."""
        fd = self._open(path, k.O_RDONLY | k.O_DIRECTORY)
        try:
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    def exists(self, path: str) -> bool:
        """Tell whether there is something at a path, links followed."""
        try:
            os.close(self._open(path, k.O_PATH))
        except SetupError as error:
            if error.errno == ENOENT:
                return False
            raise
        return True

    def put(self, source: str | os.PathLike[str], target: str) -> None:
        """Copy a file or folder of the host into the container.

        Args:
            source: outside. Links in a folder are copied as links; devices, fifos and sockets are left out.
            target: the path that the copy shall have inside; files that are there are replaced.

        Side effects: new files belong to root of the container and keep their permissions, without set-id bits.
        """
        outside = os.fspath(source)
        status = os.stat(outside)
        inside = _inside(target)
        if stat.S_ISDIR(status.st_mode):
            self._put_folder(outside, inside, status.st_mode)
        elif stat.S_ISREG(status.st_mode):
            self._put_file(outside, inside, status.st_mode)
        else:
            raise SpecError(f"files.put: {outside} is neither a file nor a folder")

    def _put_folder(self, outside: str, inside: str, mode: int) -> None:
        if inside != "/":
            self.make_folder(inside, mode=mode & 0o777)
        with os.scandir(outside) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                below = f"{inside.rstrip('/')}/{entry.name}"
                if entry.is_symlink():
                    link = plan.make_symlink(k.AT_FDCWD, os.fsencode(below), os.fsencode(os.readlink(entry.path)))
                    self._run(Program(self._plan([link])))
                elif entry.is_dir(follow_symlinks=False):
                    self._put_folder(entry.path, below, entry.stat(follow_symlinks=False).st_mode)
                elif entry.is_file(follow_symlinks=False):
                    self._put_file(entry.path, below, entry.stat(follow_symlinks=False).st_mode)

    def _put_file(self, outside: str, inside: str, mode: int) -> None:
        source = os.open(outside, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            fd = self._open_regular(inside, k.O_WRONLY | k.O_CREAT | os.O_TRUNC, mode=mode & 0o777)
            try:
                while chunk := os.read(source, _CHUNK):
                    _write_all(fd, memoryview(chunk))
            finally:
                os.close(fd)
        finally:
            os.close(source)

    def get(self, source: str, target: str | os.PathLike[str]) -> tuple[str, ...]:
        """Copy a file or folder of the container to the host.

        Args:
            source: inside.
            target: the path that the copy shall have outside; nothing that is there is followed or replaced.

        Returns:
            The paths inside that were left out: a link might lead anywhere once it lies outside, and devices, fifos and
            sockets are no data.

        Raises:
            FileExistsError: there is something at ``target``.
        """
        left: list[str] = []
        inside = _inside(source)
        fd = self._open(inside, k.O_RDONLY | k.O_NONBLOCK | k.O_NOCTTY)
        try:
            self._get(fd, inside, os.fspath(target), left)
        finally:
            os.close(fd)
        return tuple(left)

    def _get(self, fd: int, inside: str, outside: str, left: list[str]) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(outside, 0o700)
            for name in sorted(os.listdir(fd)):
                self._get_entry(fd, name, f"{inside.rstrip('/')}/{name}", f"{outside}/{name}", left)
            os.chmod(outside, status.st_mode & 0o777)
        elif stat.S_ISREG(status.st_mode):
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            copy = os.open(outside, flags, status.st_mode & 0o777)
            try:
                while chunk := os.read(fd, _CHUNK):
                    _write_all(copy, memoryview(chunk))
            finally:
                os.close(copy)
        else:
            left.append(inside)

    def _get_entry(self, folder: int, name: str, inside: str, outside: str, left: list[str]) -> None:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
            left.append(inside)
            return
        # What lies there may be another thing by now: no link is followed, and what was opened is looked at again.
        below = self._open(inside, k.O_RDONLY | k.O_NONBLOCK | k.O_NOCTTY | k.O_NOFOLLOW)
        try:
            self._get(below, inside, outside, left)
        finally:
            os.close(below)

    # --- For the container itself

    def user(self, text: str) -> User:
        """Look up ``"user"`` or ``"user:group"``, names or ids, in the container's own /etc/passwd and /etc/group.

        Raises:
            SpecError: there is no such name inside.
        """
        name, _, group = text.partition(":")
        passwd, groups = self._table("/etc/passwd"), self._table("/etc/group")
        column = 2 if name.isdecimal() else 0
        entry = next((fields for fields in passwd if len(fields) >= 4 and fields[column] == name), None)
        if entry is not None and entry[2].isdecimal() and entry[3].isdecimal():
            name, uid, gid = entry[0], int(entry[2]), int(entry[3])
        elif column:
            uid, gid = int(name), 0  # an id needs no entry
        else:
            raise SpecError(f"user {text!r}: the container's /etc/passwd has no {name!r}")
        if group:
            entry = next((fields for fields in groups if fields[0] == group and len(fields) >= 3), None)
            if group.isdecimal():
                gid = int(group)
            elif entry is None or not entry[2].isdecimal():
                raise SpecError(f"user {text!r}: the container's /etc/group has no {group!r}")
            else:
                gid = int(entry[2])
        members = [
            int(fields[2])
            for fields in groups
            if len(fields) >= 4 and name in fields[3].split(",") and fields[2].isdecimal() and not name.isdecimal()
        ]
        return User(uid, gid, tuple(members) if self._container.sets_groups else ())

    def group(self, name: str) -> int:
        """Look up a group, by its name or id, in the container's own /etc/group.

        Raises:
            SpecError: there is no such name inside.
        """
        if name.isdecimal():
            return int(name)
        for fields in self._table("/etc/group"):
            if fields[0] == name and len(fields) >= 3 and fields[2].isdecimal():
                return int(fields[2])
        raise SpecError(f"groups: the container's /etc/group has no {name!r}")

    def _table(self, path: str) -> list[list[str]]:
        try:
            text = self.read(path, limit_bytes=16 * 1024 * 1024).decode(errors="replace")
        except SetupError as error:
            if error.errno == ENOENT:
                return []
            raise
        return [line.split(":") for line in text.splitlines()]

    def open_terminal(self, size: tuple[int, int] | None, _user: User) -> tuple[int, int]:
        """Open a new terminal of the container; return its master and its slave.

        The slave comes from the master itself, not from a path that could be something else (CVE-2025-52565).
        Source: ioctl_tty(2), TIOCGPTPEER.
        """
        import fcntl

        size = None if size is None else window_size(size)
        master = self._open("/dev/pts/ptmx", k.O_RDWR | k.O_NOCTTY)
        if os.fstat(master).st_rdev != os.makedev(5, 2):
            os.close(master)
            raise SetupError("open", ENXIO, "/dev/pts/ptmx", "what is mounted there is no devpts")
        try:
            fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("=i", 0))
            if size is not None:
                fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("=HHHH", *size, 0, 0))
            slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except BaseException:
            os.close(master)
            raise
        return master, slave

    def _open(self, path: str, flags: int, *, mode: int = 0, user: User | None = None) -> int:
        raw = os.fsencode(_inside(path))
        if len(raw) >= _PATH_BYTES:
            raise SpecError(f"path: longer than {_PATH_BYTES - 1} bytes")
        how = struct.pack("=QQQ", flags | k.O_CLOEXEC, mode if flags & k.O_CREAT else 0, k.RESOLVE_NO_MAGICLINKS)
        step = plan.call(
            "openat2",
            k.AT_FDCWD,
            Block(bytes(_PATH_BYTES), name="path"),
            Block(how),
            len(how),
            target=path,
            result=_OPENED,
        )
        steps: list[Operation] = [step]
        if user is not None:
            steps.append(plan.call("fchown", _OPENED, user.uid, user.gid, target=path))
        program = self._container.program((flags, mode, user), lambda: Program(self._plan(steps)))
        try:
            return self._run(program, path=raw.ljust(_PATH_BYTES, b"\0"))
        except SetupError as error:
            # The plan is shared by all paths: name the one that this was about.
            if error.operation != "openat2":
                raise
            raise SetupError("open", error.errno or 0, path, error.hint) from None

    def _plan(self, steps: list[Operation]) -> Plan:
        return payload.files_plan(self._container.kinds, steps, user=self._container.spec.namespaces.user != "host")

    def _run(self, program: Program, **blocks: bytes) -> int:
        inputs = {"target": self._container.fileno()}
        flags = _native.SHARE_FILES | _native.NO_PROCESS | _native.HIDE_MEMORY
        outcome = program.run(inputs, blocks=blocks, flags=flags)
        return program.slot(outcome, _OPENED.name) if _OPENED.name in program.slots else -1


def changed(container: Container) -> Iterator[Change]:
    """Yield the differences of a running container's root; see :meth:`containerkit.Container.changes`."""
    rootfs = container.rootfs
    if rootfs.upper is not None:
        yield from _compare(container, [(rootfs.upper, rootfs.lowers, "")], os.open)
        return
    if not rootfs.in_memory:
        raise StateError(f"{container!r}: its root filesystem has no writable layer of its own")
    upper = os.open(f"/proc/{container.pid}/fd/{UPPER_FD}", _FOLDER)
    try:
        pairs: list[tuple[str, tuple[str, ...], str]]
        if rootfs.kind == "tmpfs":
            pairs = [(".", (), "")]
        elif rootfs.kind == "overlay":
            pairs = [("u0", rootfs.lowers, "")]
        else:
            programs = container.shown_programs
            pairs = [("u0", ("/host",), "")]
            pairs += [(f"u{number}", (f"/{name}",), f"/{name}") for number, name in enumerate(programs, start=1)]
        yield from _compare(container, pairs, lambda path, flags: os.open(path, flags, dir_fd=upper))
    finally:
        os.close(upper)


_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _compare(container: Container, pairs: list[tuple[str, tuple[str, ...], str]], open_upper: Any) -> Iterator[Change]:
    apart = [mount.target for mount in container.spec.mounts] + [one.target for one in container.rootfs.volumes]
    made = {"/proc", "/sys", "/dev", *apart}
    marks = container.rootfs.union == "fuse"
    for name, lowers, prefix in pairs:
        opened = [open_upper(name, _FOLDER)]
        below: list[str | deputy.Lent] = []
        try:
            for lower in lowers:
                if lower == "/host" and container.rootfs.kind == "host":
                    opened.append(_open_staged(container, lower))
                    below.append(deputy.Lent(opened[-1]))
                else:
                    below.append(lower)
            for change in deputy.call(listed, (prefix, marks), deputy.Lent(opened[0]), *below):
                # The places of the mounts are the library's doing, not the container's.
                if change.path not in made:
                    yield change
        finally:
            for fd in opened:
                os.close(fd)


def _open_staged(container: Container, path: str) -> int:
    """Open a folder of the staging namespace, which nobody can reach by a path."""
    steps = []
    staged = container.staging_inputs()
    if staged["holder"] >= 0:
        steps.append(plan.setns(Slot("holder"), k.CLONE_NEWUSER, "holder user namespace"))
    steps += [
        plan.setns(Slot("staging"), k.CLONE_NEWNS, "staging"),
        plan.open_at(k.AT_FDCWD, path.encode(), k.O_RDONLY | k.O_DIRECTORY, _OPENED),
        plan.leave(),
    ]
    program = Program(Plan(tuple(steps)))
    outcome = program.run(staged, flags=_native.SHARE_FILES | _native.NO_PROCESS)
    return program.slot(outcome, _OPENED.name)


def _inside(path: str) -> str:
    return path_inside(path, "path")


def _read_all(fd: int, path: str, limit: int | None) -> bytes:
    chunks: list[bytes] = []
    total = 0
    while chunk := os.read(fd, _CHUNK):
        total += len(chunk)
        if limit is not None and total > limit:
            raise SetupError("read", 27, path, f"it is larger than limit_bytes={limit}")  # EFBIG
        chunks.append(chunk)
    return b"".join(chunks)


def _write_all(fd: int, content: memoryview) -> None:
    while content:
        content = content[os.write(fd, content) :]

"""Access the files of a running container from the host.

Every path is resolved by a process that has joined the container as its root, so symlinks are resolved inside. The
caller gets the open descriptor, and checks its type before it reads or writes.
"""

from __future__ import annotations

import os
import stat
import struct
from errno import EISDIR, EMFILE, ENFILE, ENOENT, ENXIO, ESTALE
from typing import TYPE_CHECKING, Any, Final

from containerkit import _native
from containerkit._linux.tree_copy import copy_in, copy_out, copy_rest
from containerkit._native import constants as k
from containerkit.compile import payload
from containerkit.compile.start import UPPER_FD
from containerkit.container.changes import Change, listed
from containerkit.container.entries import DIRECTORY_SLOT, Entries, Listed, inside_path
from containerkit.descriptors import Made, keep, lend
from containerkit.errors import DESCRIPTORS_HINT, SetupError, SpecError, StateError, telling_of_descriptors
from containerkit.plan import calls
from containerkit.plan.operation import Block, Operation, Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan
from containerkit.process.stdio import window_size
from containerkit.spec.command import User
from containerkit.spec.words import host_path
from containerkit.start import userns_helper
from containerkit.start.context import programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from containerkit._native.outcome import Outcome
    from containerkit.container.live import Live
    from containerkit.start.context import StartContext

__all__ = ["READ_LIMIT_BYTES", "Files", "changed"]

READ_LIMIT_BYTES: Final = 1024 * 1024 * 1024
"""The default limit of ``read``."""

_PATH_BYTES: Final = 4096
_CHUNK: Final = 1024 * 1024
_TIOCGPTPEER: Final = 0x5441
_TIOCSPTLCK: Final = 0x4004_5431
_TIOCSWINSZ: Final = 0x5414
_OPENED: Final = Slot("opened")


class Files(Entries, Listed):
    """The type of ``container.files``. Paths are absolute paths inside.

    All methods raise :class:`StateError` if the container does not run, :class:`SpecError` for an invalid path, and
    :class:`SetupError` with the kernel's error number if the path is missing, not a file, or not accessible.
    """

    def __init__(self, container: Live, context: Callable[[], StartContext]) -> None:
        self._container = container
        self._running_context = context

    @property
    def of(self) -> Live:
        """The container."""
        return self._container

    # --- Single files

    def read(self, path: str | os.PathLike[str], *, limit_bytes: int | None = READ_LIMIT_BYTES) -> bytes:
        """Return the content of a regular file.

        Args:
            path: the file.
            limit_bytes: refuse a larger one (default 1 GiB; None for no limit).

        Raises:
            SetupError: EFBIG if it is larger.
        """
        where = inside_path(path)
        return lend(lambda kept: _read_all(self._open_regular(kept, where, k.O_RDONLY), where, limit_bytes))

    def read_text(self, path: str | os.PathLike[str], encoding: str = "utf-8") -> str:
        """Return the content of a text file."""
        return self.read(path).decode(encoding)

    def write(
        self,
        path: str | os.PathLike[str],
        content: bytes | str,
        *,
        mode: int = 0o644,
        user: User | None = None,
        parents: bool = False,
    ) -> None:
        """Write bytes (or text, as UTF-8) to a file. It is created if it is missing.

        Args:
            path: the file.
            content: the complete new content.
            mode: the permissions of a new file (default 0o644).
            user: the owner of the file (default root of the container).
            parents: whether to create missing parent directories (default False: they must exist).
        """
        if parents:
            self.make_directory(os.path.dirname(inside_path(path)))
        self._put(path, content, os.O_TRUNC, mode, user)

    def append(self, path: str | os.PathLike[str], content: bytes | str, *, mode: int = 0o644) -> None:
        """Append bytes (or text, as UTF-8) to a file. It is created if it is missing.

        Args:
            path: the file. Its directory must exist.
            content: the content to append.
            mode: the permissions of a new file (default 0o644).
        """
        self._put(path, content, os.O_APPEND, mode, None)

    def _put(self, path: str | os.PathLike[str], content: bytes | str, how: int, mode: int, user: User | None) -> None:
        try:
            raw = content.encode() if isinstance(content, str) else content
        except UnicodeEncodeError as error:
            raise SpecError(f"files.write: content: {error}") from None
        if not isinstance(raw, (bytes, bytearray, memoryview)):
            raise SpecError(f"files.write: content must be bytes or str, not {type(content).__name__}")
        flags, where = k.O_WRONLY | k.O_CREAT | how, inside_path(path)
        lend(lambda kept: _write_all(self._open_regular(kept, where, flags, mode=mode, user=user), memoryview(raw)))

    def _open_regular(self, kept: list[int], path: str, flags: int, *, mode: int = 0, user: User | None = None) -> int:
        # Do not block on a fifo, and do not acquire a controlling terminal.
        try:
            fd = self._open(kept, path, flags | k.O_NONBLOCK | k.O_NOCTTY, mode=mode, user=user)
        except SetupError as error:
            if error.errno == ENXIO:
                raise SetupError("open", ENXIO, path, "only regular files can be read and written") from None
            raise
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SetupError("open", EISDIR, path, "only regular files can be read and written")
        return fd

    # --- Directories

    def make_directory(self, path: str | os.PathLike[str], *, mode: int = 0o755) -> None:
        """Create a directory and its parents, unless they exist."""
        parts = inside_path(path).strip("/").split("/")
        steps = [
            calls.make_directory(k.AT_FDCWD, os.fsencode("/" + "/".join(parts[:depth])), mode)
            for depth in range(1, len(parts) + 1)
            if parts[0]
        ]
        self._run(Program(self._plan(steps)), {})

    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]:
        """Return the names in a directory, sorted."""
        where = inside_path(path)
        return lend(lambda kept: sorted(os.listdir(self._open(kept, where, k.O_RDONLY | k.O_DIRECTORY))))

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Return whether a path exists. Symlinks are followed."""
        try:
            lend(lambda kept: self._open(kept, inside_path(path), k.O_PATH))
        except SetupError as error:
            if error.errno == ENOENT:
                return False
            raise
        return True

    def put(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Copy a file or directory of the host into the container.

        Args:
            source: the path on the host. In a directory, symlinks are copied as such; devices, fifos and sockets are
                left out.
            target: the path of the copy inside. Existing files are replaced.

        Side effects: new files belong to root of the container and keep their permissions, without set-id bits.
        """
        outside = host_path(source, "files.put: source")
        status = os.stat(outside)
        inside = inside_path(target)
        if stat.S_ISDIR(status.st_mode):
            self._put_directory(outside, inside, status.st_mode)
        elif stat.S_ISREG(status.st_mode):
            self._put_file(outside, inside, status.st_mode)
        else:
            raise SpecError(f"files.put: {outside} is neither a file nor a directory")

    def _put_directory(self, outside: str, inside: str, mode: int) -> None:
        if inside != "/":
            self.make_directory(inside, mode=mode & 0o777)
        flags = k.O_RDONLY | k.O_DIRECTORY
        _lend_for_a_copy(inside, lambda kept: copy_in(outside, self._open(kept, inside, flags), self))

    def _put_file(self, outside: str, inside: str, mode: int) -> None:
        def copy(kept: list[int]) -> None:
            source = keep(kept, os.open, outside, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            fd = self._open_regular(kept, inside, k.O_WRONLY | k.O_CREAT | os.O_TRUNC, mode=mode & 0o777)
            copy_rest(source, fd)

        lend(copy)

    # The interface :class:`containerkit._linux.tree_copy.Inside`.

    def open_directory(self, kept: list[int], path: bytes, directory: int) -> int:
        """Open a directory below an open one. Symlinks are resolved inside."""
        return self._open_below(kept, path, directory, k.O_RDONLY | k.O_DIRECTORY)

    def make_directory_at(self, name: bytes, directory: int, mode: int) -> None:
        """Make a directory in an open one, unless the name exists."""
        self._run(Program(self._plan([calls.make_directory(DIRECTORY_SLOT, name, mode)])), {}, directory)

    def make_symlink(self, name: bytes, directory: int, content: bytes) -> None:
        """Make a symlink in an open directory, unless the name exists."""
        self._run(Program(self._plan([calls.make_symlink(DIRECTORY_SLOT, name, content)])), {}, directory)

    def new_file(self, kept: list[int], name: bytes, directory: int, mode: int) -> int:
        """Open a regular file in an open directory for writing. It is created or truncated."""
        fd = self._open_below(kept, name, directory, k.O_WRONLY | k.O_CREAT | os.O_TRUNC, mode)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise SetupError("open", EISDIR, os.fsdecode(name), "only regular files can be read and written")
        return fd

    def get(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> tuple[str, ...]:
        """Copy a file or directory of the container to the host.

        Args:
            source: the path inside.
            target: the path of the copy on the host. An existing file is neither followed nor replaced.

        Returns:
            The skipped paths: symlinks, which might lead anywhere on the host, devices, fifos and sockets.

        Raises:
            FileExistsError: ``target`` exists.
        """
        inside, outside = inside_path(source), host_path(target, "files.get: target")
        flags = k.O_RDONLY | k.O_NONBLOCK | k.O_NOCTTY

        def copy(kept: list[int]) -> tuple[str, ...]:
            return copy_out(self._open(kept, inside, flags), inside, outside, self._read_below)

        return _lend_for_a_copy(inside, copy)

    def _read_below(self, kept: list[int], name: bytes, directory: int) -> int:
        return self._open_below(kept, name, directory, k.O_RDONLY | k.O_NOFOLLOW)

    # --- For the container itself

    def user(self, text: str) -> tuple[User, str]:
        """Look up ``"user"`` or ``"user:group"``, names or ids, in the container's own /etc/passwd and /etc/group.

        Returns:
            The user, and its home directory, or ``/`` if none is known.

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
            gid = self._group_of(text, group, groups)
        members = [
            int(fields[2])
            for fields in groups
            if len(fields) >= 4 and name in fields[3].split(",") and fields[2].isdecimal() and not name.isdecimal()
        ]
        return User(uid, gid, tuple(members) if self._running_context().host.sets_groups else ()), _home(entry)

    @staticmethod
    def _group_of(text: str, group: str, groups: list[list[str]]) -> int:
        if group.isdecimal():
            return int(group)
        entry = next((fields for fields in groups if fields[0] == group and len(fields) >= 3), None)
        if entry is None or not entry[2].isdecimal():
            raise SpecError(f"user {text!r}: the container's /etc/group has no {group!r}")
        return int(entry[2])

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

    def open_terminal(self, kept: list[int], size: tuple[int, int] | None, _user: User) -> None:
        """Open a new terminal of the container; append its master and its slave to a list.

        The slave is opened through the master, not by a path that could lead to another file (CVE-2025-52565).
        Source: ioctl_tty(2), TIOCGPTPEER.
        """
        import fcntl

        size = None if size is None else window_size(size)
        master = self._open(kept, "/dev/pts/ptmx", k.O_RDWR | k.O_NOCTTY)
        if os.fstat(master).st_rdev != os.makedev(5, 2):
            raise SetupError("open", ENXIO, "/dev/pts/ptmx", "the filesystem mounted there is not a devpts")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("=i", 0))
        if size is not None:
            fcntl.ioctl(master, _TIOCSWINSZ, struct.pack("=HHHH", *size, 0, 0))
        keep(kept, fcntl.ioctl, master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def _open(self, kept: list[int], path: str, flags: int, *, mode: int = 0, user: User | None = None) -> int:
        """Open a path inside. Return the descriptor, which is also appended to a list of the caller."""
        raw = os.fsencode(inside_path(path))
        if len(raw) >= _PATH_BYTES:
            raise SpecError(f"path: longer than {_PATH_BYTES - 1} bytes")
        how = struct.pack("=QQQ", flags | k.O_CLOEXEC, mode if flags & k.O_CREAT else 0, k.RESOLVE_NO_MAGICLINKS)
        step = calls.call(
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
            steps.append(calls.call("fchown", _OPENED, user.uid, user.gid, target=path))
        program = self._program((flags, mode, user), steps)
        try:
            return self._run_opening(kept, program, {"path": raw.ljust(_PATH_BYTES, b"\0")})
        except SetupError as error:
            # The plan is shared by all paths, so name this path in the error.
            if error.operation != "openat2":
                raise
            raise SetupError("open", error.errno or 0, path, error.hint) from None

    def _open_below(self, kept: list[int], path: bytes, directory: int, flags: int, mode: int = 0) -> int:
        """Open a path below an open directory, as root of the container, without blocking or acquiring a terminal."""
        flags |= k.O_CLOEXEC | k.O_NONBLOCK | k.O_NOCTTY
        how = struct.pack("=QQQ", flags, mode if flags & k.O_CREAT else 0, k.RESOLVE_NO_MAGICLINKS)
        block = Block(bytes(_PATH_BYTES), name="path")
        step = calls.call(
            "openat2", DIRECTORY_SLOT, block, Block(how), len(how), target="a name in a directory", result=_OPENED
        )
        program = self._program(("below", flags, mode), [step])
        try:
            return self._run_opening(kept, program, {"path": path.ljust(_PATH_BYTES, b"\0")}, directory)
        except SetupError as error:
            if error.operation != "openat2":
                raise
            raise SetupError("open", error.errno or 0, os.fsdecode(path), error.hint) from None

    def _program(self, key: object, steps: list[Operation]) -> Program:
        """Return the compiled plan of these operations, cached by a key."""
        key = self._running_context().host, self._container.spec.kinds, key
        return programs.get(key, lambda: Program(self._plan(steps)))

    def _plan(self, steps: list[Operation]) -> Plan:
        spec = self._container.spec
        return payload.files_plan(spec.kinds, steps, user=spec.namespaces.user != "host")

    def _run(self, program: Program, blocks: dict[str, bytes], directory: int = -1) -> Outcome:
        inputs = {"target": self._container.fileno(), DIRECTORY_SLOT.name: directory}
        flags = _native.SHARE_FILES | _native.NO_PROCESS | _native.HIDE_MEMORY
        return program.run(inputs, blocks=blocks, flags=flags)

    def _run_opening(self, kept: list[int], program: Program, blocks: dict[str, bytes], directory: int = -1) -> int:
        before = len(kept)
        outcome = self._run(program, blocks, directory)  # not by **, which would be a call of C: see descriptors.py
        try:
            kept.append(program.slot(outcome, _OPENED.name))
        except BaseException:  # a signal handler raised
            if len(kept) == before:
                os.close(program.slot(outcome, _OPENED.name))
            raise
        return kept[-1]


def changed(container: Live, context: StartContext) -> Iterator[Change]:
    """Yield the differences of a running container's root; see :meth:`containerkit.Container.changes`."""
    with telling_of_descriptors("changes"):
        yield from _changed(container, context)


def _changed(container: Live, context: StartContext) -> Iterator[Change]:
    rootfs = context.spec.rootfs
    if rootfs.upper is not None:
        yield from _compare(context, [(rootfs.upper, rootfs.lowers, "")], os.open)
        return
    if not rootfs.in_memory:
        raise StateError(f"{container!r}: its root filesystem has no writable layer of its own")
    upper = os.open(f"/proc/{container.pid}/fd/{UPPER_FD}", _DIRECTORY)
    try:
        pairs: list[tuple[str, tuple[str, ...], str]]
        if rootfs.kind == "tmpfs":
            pairs = [(".", (), "")]
        elif rootfs.kind == "overlay":
            pairs = [("u0", rootfs.lowers, "")]
        else:
            programs = context.host.programs
            pairs = [("u0", ("/host",), "")]
            pairs += [(f"u{number}", (f"/{name}",), f"/{name}") for number, name in enumerate(programs, start=1)]
        yield from _compare(context, pairs, lambda path, flags: os.open(path, flags, dir_fd=upper))
    finally:
        os.close(upper)


_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def _compare(context: StartContext, pairs: list[tuple[str, tuple[str, ...], str]], open_upper: Any) -> Iterator[Change]:
    spec = context.spec
    apart = [mount.target for mount in spec.mounts] + [one.target for one in spec.rootfs.volumes]
    made = {"/proc", "/sys", "/dev", *apart}
    marks = spec.rootfs.union == "fuse"
    for name, lowers, prefix in pairs:
        opened = [open_upper(name, _DIRECTORY)]
        below: list[str | userns_helper.Lent] = []
        try:
            for lower in lowers:
                if lower == "/host" and spec.rootfs.kind == "host":
                    opened.append(_open_staged(context, lower))
                    below.append(userns_helper.Lent(opened[-1]))
                else:
                    below.append(lower)
            for change in userns_helper.call(listed, (prefix, marks), userns_helper.Lent(opened[0]), *below):
                # The library made these mount points, not the container.
                if change.path not in made:
                    yield change
        finally:
            for fd in opened:
                os.close(fd)


def _open_staged(context: StartContext, path: str) -> int:
    """Open a directory of the staging namespace, which can't be reached by a path."""
    steps = []
    staged = context.staging.slots
    if staged["holder"] >= 0:
        steps.append(calls.setns(Slot("holder"), k.CLONE_NEWUSER, "holder user namespace"))
    steps += [
        calls.setns(Slot("staging"), k.CLONE_NEWNS, "staging"),
        calls.open_at(k.AT_FDCWD, path.encode(), k.O_RDONLY | k.O_DIRECTORY, _OPENED),
        calls.leave(),
    ]
    program = Program(Plan(tuple(steps)))
    outcome = program.run(staged, flags=_native.SHARE_FILES | _native.NO_PROCESS)
    return program.slot(outcome, _OPENED.name)


def _home(entry: list[str] | None) -> str:
    """Return the home directory in a line of /etc/passwd, or None if it is not a path. Source: passwd(5)."""
    path = entry[5] if entry is not None and len(entry) > 5 else ""
    return path if path.startswith("/") and path.isprintable() else "/"


def _lend_for_a_copy(path: str, do: Callable[[list[int]], Made]) -> Made:
    """Call ``lend``, and convert errors of a copied tree to clear ones."""
    hints = {ESTALE: "the directory was moved during the operation", EMFILE: DESCRIPTORS_HINT, ENFILE: DESCRIPTORS_HINT}
    try:
        return lend(do)
    except SetupError:
        raise
    except OSError as error:
        if error.errno not in hints:
            raise
        raise SetupError("copy", error.errno, path, hints[error.errno]) from error


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

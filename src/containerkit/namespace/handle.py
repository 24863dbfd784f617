"""A handle on a living namespace."""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, EPERM
from stat import S_ISLNK, S_ISREG

import attrs

from containerkit import _native
from containerkit._linux import procfs
from containerkit._native import calls, high
from containerkit._native import constants as k
from containerkit.errors import SetupError, SpecError, StateError, UnsupportedError
from containerkit.namespace.kind import Kind
from containerkit.namespace.visit import Visit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    Path = str | os.PathLike[str]

__all__ = ["Namespace"]


def _nsfs() -> int:
    """Return the device number of the filesystem that all namespaces are files of."""
    return os.stat("/proc/thread-self/ns/user").st_dev


@attrs.define(kw_only=True, eq=False, repr=False, weakref_slot=False)
class Namespace:
    """A handle on a living namespace. Two are equal, and hash alike, when they are handles on the same one.

    Made by :meth:`of`, :meth:`current`, :meth:`from_path`, :meth:`from_fd` or :meth:`from_pidfd`. It owns one file
    descriptor, which :meth:`close`, the end of a ``with`` block or the collection of the handle closes.

    Attributes:
        kind: which of the eight kinds.
        device: the device number of the filesystem of namespaces.
        inode: the number that, with ``device``, names it for as long as it lives; shown in ``/proc/PID/ns``.

    Source: namespaces(7).
    """

    kind: Kind
    device: int
    inode: int
    _fd: int

    # --- Where they come from

    @classmethod
    def of(cls, pid: int, kind: Kind | str, *, for_children: bool = False) -> Namespace:
        """Open a namespace of a process.

        Args:
            pid: the process.
            kind: such as ``"network"``.
            for_children: take the one that the process's future children will be in (pid and time only differ in it).

        Raises:
            SpecError: no such kind, or a pid that can't be one.
            SetupError: ``ESRCH`` when there is no such process, ``EACCES`` when it is not ours to look at.
            UnsupportedError: this kernel has no such kind.

        Source: proc_pid_ns(5).
        """
        if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
            raise SpecError(f"namespace: a pid is a positive integer, not {pid!r}")
        return cls._of(str(pid), Kind.of(kind), for_children=for_children)

    @classmethod
    def current(cls, kind: Kind | str, *, for_children: bool = False) -> Namespace:
        """Open a namespace of the calling thread.

        Args:
            kind: such as ``"network"``.
            for_children: take the one that its future children will be in.

        Raises:
            SpecError: no such kind.
            SetupError: ``ENOENT`` when the pid namespace for children has no process yet.
            UnsupportedError: this kernel has no such kind.

        Source: proc_pid_ns(5).
        """
        return cls._of("thread-self", Kind.of(kind), for_children=for_children)

    @classmethod
    def _of(cls, process: str, kind: Kind, *, for_children: bool) -> Namespace:
        path = f"/proc/{process}/ns/{kind.file_for_children if for_children else kind.file}"
        try:
            return cls._adopt(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
        except FileNotFoundError:
            if not os.path.exists(f"/proc/thread-self/ns/{kind.file}"):
                hint = f"a kernel built with {kind.value} namespaces"
                raise UnsupportedError("open", ENOENT, path, hint) from None
            hint = "there is no such process" if process != "thread-self" else "no process was born into it yet"
            raise SetupError("open", ENOENT, path, hint) from None
        except OSError as error:
            hint = "looking at another user's process takes CAP_SYS_PTRACE" if error.errno != ENOENT else ""
            raise SetupError("open", error.errno or 0, path, hint) from None

    @classmethod
    def from_path(cls, path: Path, kind: Kind | str | None = None) -> Namespace:
        """Open a namespace by a path: one of ``/proc/PID/ns``, or where it was kept by :meth:`persist`.

        Args:
            path: the file.
            kind: what it must be; None takes any.

        Raises:
            SpecError: the file is no namespace, or one of another kind.
            SetupError: it can't be opened.

        Source: namespaces(7).
        """
        shown = os.fspath(path)
        try:
            # Looked at before it is opened: opening a device or a fifo has effects.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if os.stat(path).st_dev == _nsfs() else -1
        except OSError as error:
            raise SetupError("open", error.errno or 0, shown) from None
        except ValueError as error:
            raise SpecError(f"{shown!r}: {error}") from None
        if fd < 0:
            raise SpecError(f"{shown} is no namespace")
        return cls._adopt(fd, shown, kind)

    @classmethod
    def from_fd(cls, fd: int, kind: Kind | str | None = None) -> Namespace:
        """Make a handle from an open descriptor; it is duplicated, so that yours stays yours.

        Args:
            fd: an open namespace.
            kind: what it must be; None takes any.

        Raises:
            SpecError: the descriptor is closed, no namespace, or one of another kind.

        Source: ioctl_ns(2).
        """
        try:
            own = os.dup(fd)  # closed on exec, by PEP 446
        except OSError as error:
            raise SpecError(f"fd {fd} is no namespace: {error.strerror}") from None
        return cls._adopt(own, f"fd {fd}", kind)

    @classmethod
    def from_pidfd(cls, pidfd: int, kind: Kind | str) -> Namespace:
        """Open a namespace of the process that a pidfd refers to, safe from the reuse of its pid.

        Args:
            pidfd: the process.
            kind: such as ``"network"``.

        Raises:
            SpecError: no such kind, or no pidfd.
            SetupError: ``ESRCH`` when the process has ended, ``EACCES`` when it is not ours to look at.
            UnsupportedError: this kernel has no such kind.

        Source: pidfd_open(2).
        """
        wanted = Kind.of(kind)
        try:
            pid = procfs.pid_of_pidfd(pidfd)
        except (ValueError, FileNotFoundError):
            raise SpecError(f"fd {pidfd} is no pidfd") from None
        except ProcessLookupError as error:
            raise SetupError("open", error.errno or 0, f"{wanted.value} namespace of pidfd {pidfd}") from None
        opened = cls.of(pid, wanted)
        try:
            calls.pidfd_send_signal(pidfd, 0)  # alive still, so the pid was its own all along
        except PermissionError:
            pass  # alive, and somebody else's
        except OSError as error:
            opened.close()
            raise SetupError("open", error.errno or 0, f"{wanted.value} namespace of pidfd {pidfd}") from None
        return opened

    @classmethod
    def _adopt(cls, fd: int, name: str, expected: Kind | str | None = None) -> Namespace:
        """Take a descriptor over; it is closed when it is not what it should be."""
        fd = high(fd)
        try:
            return cls._examine(fd, name, expected)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _examine(cls, fd: int, name: str, expected: Kind | str | None) -> Namespace:
        wanted = None if expected is None else Kind.of(expected)
        status = os.fstat(fd)
        if status.st_dev != _nsfs():  # asked first: what the request means to a device nobody knows
            raise SpecError(f"{name} is no namespace")
        flag = calls.ns_get_nstype(fd)
        kind = next(kind for kind in Kind if kind.flag == flag)
        if wanted is not None and kind is not wanted:
            raise SpecError(f"{name} is a namespace of kind {kind.value}, not {wanted.value}")
        return cls(kind=kind, device=status.st_dev, inode=status.st_ino, fd=fd)

    # --- Its descriptor

    def fileno(self) -> int:
        """Return the descriptor; it stays the handle's own.

        Raises:
            StateError: the handle was closed.
        """
        if self._fd < 0:
            raise StateError(f"{self!r}: the handle was closed")
        return self._fd

    def duplicate(self) -> Namespace:
        """Return another handle on the same namespace, with a descriptor of its own.

        Raises:
            StateError: the handle was closed.
            OSError: no more descriptors.
        """
        import fcntl

        fd = fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, _native.LOWEST)
        return Namespace(kind=self.kind, device=self.device, inode=self.inode, fd=fd)

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor; harmless when repeated.

        The namespace itself ends with its last process, descriptor and mount.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> Self:
        self.fileno()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Namespace):
            return NotImplemented
        return (self.device, self.inode) == (other.device, other.inode)

    def __hash__(self) -> int:
        return hash((self.device, self.inode))

    def __repr__(self) -> str:
        return f"<Namespace {self.kind.value} {self.inode}{' closed' if self.closed else ''}>"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a namespace's handle holds a file descriptor and can't be pickled: name it by its path or pid")

    # --- Its family

    @property
    def owner(self) -> Namespace | None:
        """The user namespace that owns it (for a user namespace: its parent), None when that is out of sight.

        Whoever has a capability there has it over this namespace. A new handle each time.

        Source: ioctl_ns(2), NS_GET_USERNS.
        """
        return self._relative(calls.ns_get_userns)

    @property
    def parent(self) -> Namespace | None:
        """The parent of a pid or user namespace; None for the other kinds, and when it is out of sight.

        A new handle each time.

        Source: ioctl_ns(2), NS_GET_PARENT.
        """
        return self._relative(calls.ns_get_parent) if self.kind in (Kind.PID, Kind.USER) else None

    def _relative(self, ask: Callable[[int], int]) -> Namespace | None:
        try:
            fd = ask(self.fileno())
        except OSError as error:
            if error.errno == EPERM:
                return None
            raise SetupError("ioctl", error.errno or 0, repr(self)) from None
        return self._adopt(fd, repr(self))

    @property
    def owner_uid(self) -> int | None:
        """The uid, in the caller's numbers, that made the owning user namespace (for a user namespace: itself).

        None when that namespace is out of sight; 65534 when the uid has no number here.

        Source: ioctl_ns(2), NS_GET_OWNER_UID.
        """
        if self.kind is Kind.USER:
            return calls.ns_get_owner_uid(self.fileno())
        owner = self.owner
        if owner is None:
            return None
        with owner:
            return owner.owner_uid

    def members(self) -> list[int]:
        """Return the pids of the processes inside, ascending.

        Seen are the processes that ``/proc`` shows and whose namespaces the caller may look at (those of other users
        take CAP_SYS_PTRACE); a process counts by its main thread. The answer may be out of date when it arrives.

        Source: proc_pid_ns(5).
        """
        wanted = f"{self.kind.file}:[{self.inode}]"
        found = []
        for pid in procfs.pids():
            try:
                if os.readlink(f"/proc/{pid}/ns/{self.kind.file}") == wanted:
                    found.append(pid)
            except OSError:  # ended by now, or not ours to look at
                continue
        return found

    # --- Keeping it

    def persist(self, path: Path) -> None:
        """Keep the namespace alive at a path, by a bind mount, until :meth:`unpersist`; processes may all end.

        Args:
            path: a file; made when missing, with mode 0444. Its folder must be there.

        Raises:
            SetupError: ``EEXIST`` when a namespace is kept there already; ``EPERM`` without CAP_SYS_ADMIN; ``ELOOP`` or
                ``EISDIR`` for what is no plain file; ``EINVAL`` or, by kernel, ``ELOOP`` for a mount namespace that is
                not younger than the caller's own.

        Source: namespaces(7), "The /proc/pid/ns/ directory"; move_mount(2).
        """
        shown = os.fspath(path)
        try:
            kept = _keeps(shown)
            made = not kept and _make_file(shown)
        except OSError as error:
            raise SetupError("persist", error.errno or 0, shown) from None
        except ValueError as error:
            raise SpecError(f"{shown!r}: {error}") from None
        if kept:
            raise SetupError("persist", EEXIST, shown, "a namespace is kept there: unpersist it first")
        try:
            self._bind(shown)
        except OSError as error:
            if made:
                os.unlink(shown)
            hint = ""
            if error.errno == EPERM:
                hint = "it takes CAP_SYS_ADMIN over the mount namespace"
            elif error.errno in (EINVAL, ELOOP) and self.kind is Kind.MOUNT:
                hint = "a mount namespace can be kept only in an older one, on a mount that is not shared"
            raise SetupError("persist", error.errno or 0, shown, hint) from None

    def _bind(self, path: str) -> None:
        tree = calls.open_tree(self.fileno(), "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH)
        try:
            place = os.open(path, k.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                mode = os.fstat(place).st_mode
                if not S_ISREG(mode):  # the kernel would even cover a symbolic link
                    number = ELOOP if S_ISLNK(mode) else EISDIR
                    raise OSError(number, os.strerror(number))
                calls.move_mount(tree, "", place, "", k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH)
            finally:
                os.close(place)
        finally:
            os.close(tree)

    @staticmethod
    def unpersist(path: Path) -> None:
        """Take away what :meth:`persist` put at a path, and the file; the namespace lives on while someone uses it.

        Args:
            path: the file.

        Raises:
            StateError: no namespace is kept there.
            SetupError: ``EPERM`` without CAP_SYS_ADMIN.

        Source: umount2(2).
        """
        shown = os.fspath(path)
        try:
            kept = _keeps(shown)
        except OSError as error:
            raise SetupError("unpersist", error.errno or 0, shown) from None
        if not kept:
            raise StateError(f"unpersist {shown}: no namespace is kept there")
        try:
            calls.umount2(shown, k.MNT_DETACH | k.UMOUNT_NOFOLLOW)
            os.unlink(shown)
        except OSError as error:
            hint = "it takes CAP_SYS_ADMIN over the mount namespace" if error.errno == EPERM else ""
            raise SetupError("unpersist", error.errno or 0, shown, hint) from None

    # --- Going there

    def enter(self) -> Visit:
        """Return a context manager that takes the calling thread into the namespace and always brings it back.

        Other threads stay where they are. What the visit means, kind by kind:

        * **network, ipc, uts, cgroup**: the thread is inside for the length of the block.
        * **mount**: likewise; the root and the working directory are those of the namespace inside, and the thread's
          own again afterwards. For this the thread stops sharing them (``unshare(CLONE_FS)``), for good: a later
          ``os.chdir`` in it, or in others, moves that thread only.
        * **pid**: the thread stays where it is, its children are born inside. It can't start threads inside the block.
        * **time**: the clocks (``time.monotonic`` too) change for the block; the process must have no other thread.
        * **user**: not possible, since nothing that has entered one may come back.

        Raises, on entering:
            UnsupportedError: a user namespace; a time namespace in a process with other threads.
            SetupError: ``EPERM`` without CAP_SYS_ADMIN over the namespace and over one's own; ``EINVAL`` for a pid
                namespace that is not below one's own.

        Raises, on leaving:
            CleanupError: the kernel did not let the thread back, because the block dropped the capabilities for it or
                because another thread is leaving. The thread is in the wrong namespace then and must not go on: let
                the error end it.

        Source: setns(2).
        """
        return Visit(self)


def _keeps(path: str) -> bool:
    try:
        return os.lstat(path).st_dev == _nsfs()
    except FileNotFoundError:
        return False


def _make_file(path: str) -> bool:
    """Make an empty file to mount on; returns False when there is one already."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError:
        return False
    return True

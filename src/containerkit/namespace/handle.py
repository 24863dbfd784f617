"""Handles on existing namespaces."""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, EPERM
from stat import S_ISLNK, S_ISREG

from containerkit import _native
from containerkit._linux import procfs
from containerkit._native import calls, high
from containerkit._native import constants as k
from containerkit.errors import SetupError, SpecError, StateError, UnsupportedError
from containerkit.namespace.kind import Kind
from containerkit.namespace.visit import Visit
from containerkit.values import define

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from containerkit.namespace.kind import KindName

    Path = str | os.PathLike[str]

__all__ = ["Namespace"]


def _nsfs() -> int:
    """Return the device number of nsfs, the filesystem of all namespaces."""
    return os.stat("/proc/thread-self/ns/user").st_dev


@define(kw_only=True, eq=False, repr=False, weakref_slot=False)
class Namespace:
    """A handle on an existing namespace. Handles on the same namespace are equal and have the same hash.

    Use :meth:`of`, :meth:`current`, :meth:`from_path`, :meth:`from_fd` or :meth:`from_pidfd` to get one. It owns a file
    descriptor. :meth:`close`, the end of a ``with`` block or garbage collection closes it.

    Attributes:
        kind: one of the eight kinds.
        device: the device number of the filesystem of namespaces.
        inode: together with ``device`` it identifies the namespace during its lifetime. ``/proc/PID/ns`` shows it.

    Source: namespaces(7).
    """

    kind: Kind
    device: int
    inode: int
    _fd: int

    # --- Opening

    @classmethod
    def of(cls, pid: int, kind: Kind | KindName, *, for_children: bool = False) -> Namespace:
        """Open a namespace of a process.

        Args:
            pid: the process.
            kind: such as ``"network"``.
            for_children: open the one for the process's future children. It can differ only for pid and time.

        Raises:
            SpecError: the kind is unknown, or the pid is invalid.
            SetupError: ``ESRCH`` if there is no such process, ``EACCES`` if the caller may not inspect it.
            UnsupportedError: this kernel does not have the kind.

        Source: proc_pid_ns(5).
        """
        if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
            raise SpecError(f"namespace: a pid must be a positive integer, not {pid!r}")
        return cls._of(str(pid), Kind.of(kind), for_children=for_children)

    @classmethod
    def current(cls, kind: Kind | KindName, *, for_children: bool = False) -> Namespace:
        """Open a namespace of the calling thread.

        Args:
            kind: such as ``"network"``.
            for_children: open the one for its future children.

        Raises:
            SpecError: the kind is unknown.
            SetupError: ``ENOENT`` if the pid namespace for children has no process yet.
            UnsupportedError: this kernel does not have the kind.

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
                hint = f"use a kernel built with {kind.value} namespaces"
                raise UnsupportedError("open", ENOENT, path, hint) from None
            hint = "there is no such process" if process != "thread-self" else "no process has been created in it yet"
            raise SetupError("open", ENOENT, path, hint) from None
        except OSError as error:
            hint = "inspecting another user's process needs CAP_SYS_PTRACE" if error.errno != ENOENT else ""
            raise SetupError("open", error.errno or 0, path, hint) from None

    @classmethod
    def from_path(cls, path: Path, kind: Kind | KindName | None = None) -> Namespace:
        """Open a namespace by its path, in ``/proc/PID/ns`` or where :meth:`persist` put it.

        Args:
            path: the file.
            kind: the required kind. None accepts any kind.

        Raises:
            SpecError: the file is not a namespace, or one of another kind.
            SetupError: the file can't be opened.

        Source: namespaces(7).
        """
        shown = os.fspath(path)
        try:
            # Checked before it is opened, because opening a device or a FIFO has side effects.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if os.stat(path).st_dev == _nsfs() else -1
        except OSError as error:
            raise SetupError("open", error.errno or 0, shown) from None
        except ValueError as error:
            raise SpecError(f"{shown!r}: {error}") from None
        if fd < 0:
            raise SpecError(f"{shown} is not a namespace")
        return cls._adopt(fd, shown, kind)

    @classmethod
    def from_fd(cls, fd: int, kind: Kind | KindName | None = None) -> Namespace:
        """Make a handle from an open descriptor. The descriptor is duplicated and still belongs to the caller.

        Args:
            fd: a descriptor of a namespace.
            kind: the required kind. None accepts any kind.

        Raises:
            SpecError: the descriptor is closed, is not a namespace, or is one of another kind.

        Source: ioctl_ns(2).
        """
        try:
            own = os.dup(fd)  # closed on exec, by PEP 446
        except OSError as error:
            raise SpecError(f"fd {fd} is not a namespace: {error.strerror}") from None
        return cls._adopt(own, f"fd {fd}", kind)

    @classmethod
    def from_pidfd(cls, pidfd: int, kind: Kind | KindName) -> Namespace:
        """Open a namespace of the process that a pidfd refers to. Unlike a pid, a pidfd can't be reused.

        Args:
            pidfd: a pidfd of the process.
            kind: such as ``"network"``.

        Raises:
            SpecError: the kind is unknown, or the descriptor is not a pidfd.
            SetupError: ``ESRCH`` if the process has ended, ``EACCES`` if the caller may not inspect it.
            UnsupportedError: this kernel does not have the kind.

        Source: pidfd_open(2).
        """
        wanted = Kind.of(kind)
        try:
            pid = procfs.pid_of_pidfd(pidfd)
        except (ValueError, FileNotFoundError):
            raise SpecError(f"fd {pidfd} is not a pidfd") from None
        except ProcessLookupError as error:
            raise SetupError("open", error.errno or 0, f"{wanted.value} namespace of pidfd {pidfd}") from None
        opened = cls.of(pid, wanted)
        try:
            calls.pidfd_send_signal(pidfd, 0)  # still alive, so the pid has belonged to it all the time
        except PermissionError:
            pass  # alive, but owned by another user
        except OSError as error:
            opened.close()
            raise SetupError("open", error.errno or 0, f"{wanted.value} namespace of pidfd {pidfd}") from None
        return opened

    @classmethod
    def _adopt(cls, fd: int, name: str, expected: Kind | KindName | None = None) -> Namespace:
        """Take over a descriptor. It is closed if it is not what is expected."""
        fd = high(fd)
        try:
            return cls._examine(fd, name, expected)
        except BaseException:
            os.close(fd)
            raise

    @classmethod
    def _examine(cls, fd: int, name: str, expected: Kind | KindName | None) -> Namespace:
        wanted = None if expected is None else Kind.of(expected)
        status = os.fstat(fd)
        if status.st_dev != _nsfs():  # checked first, because the ioctl could mean anything to another device
            raise SpecError(f"{name} is not a namespace")
        flag = calls.ns_get_nstype(fd)
        kind = next(kind for kind in Kind if kind.flag == flag)
        if wanted is not None and kind is not wanted:
            raise SpecError(f"{name} is a namespace of kind {kind.value}, not {wanted.value}")
        return cls(kind=kind, device=status.st_dev, inode=status.st_ino, fd=fd)

    # --- The descriptor

    def fileno(self) -> int:
        """Return the descriptor. The handle still owns it.

        Raises:
            StateError: the handle is closed.
        """
        if self._fd < 0:
            raise StateError(f"{self!r}: the handle is closed")
        return self._fd

    def duplicate(self) -> Namespace:
        """Return another handle on the same namespace, with its own descriptor.

        Raises:
            StateError: the handle is closed.
            OSError: the process has no free descriptors.
        """
        import fcntl

        fd = fcntl.fcntl(self.fileno(), fcntl.F_DUPFD_CLOEXEC, _native.LOWEST)
        return Namespace(kind=self.kind, device=self.device, inode=self.inode, fd=fd)

    @property
    def closed(self) -> bool:
        """Whether the handle is closed."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor. May be called twice.

        The namespace itself ends when no process, descriptor or mount refers to it.
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
        raise TypeError("a Namespace holds a file descriptor and can't be pickled: pass a path or a pid instead")

    # --- Related namespaces

    @property
    def owner(self) -> Namespace | None:
        """The user namespace that owns it (for a user namespace: its parent), or None if the caller can't see it.

        Capabilities in the owner are capabilities over this namespace. Each access returns a new handle.

        Source: ioctl_ns(2), NS_GET_USERNS.
        """
        return self._relative(calls.ns_get_userns)

    @property
    def parent(self) -> Namespace | None:
        """The parent of a pid or user namespace. None for other kinds, or if the caller can't see it.

        Each access returns a new handle.

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
        """The uid that created the owning user namespace (for a user namespace: this one), as the caller sees it.

        None if the caller can't see that namespace; 65534 if the uid is not mapped here.

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
        """Return the pids of the processes in the namespace, in ascending order.

        It lists processes that ``/proc`` shows and that the caller may inspect (those of other users need
        CAP_SYS_PTRACE). The namespace of the main thread counts. The list may already be outdated when it is returned.

        Source: proc_pid_ns(5).
        """
        wanted = f"{self.kind.file}:[{self.inode}]"
        found = []
        for pid in procfs.pids():
            try:
                if os.readlink(f"/proc/{pid}/ns/{self.kind.file}") == wanted:
                    found.append(pid)
            except OSError:  # it has ended, or the caller may not inspect it
                continue
        return found

    # --- Persistence

    def persist(self, path: Path) -> None:
        """Keep the namespace alive with a bind mount on a path until :meth:`unpersist`, even without processes.

        Args:
            path: the file. It is created with mode 0444 if it does not exist. Its directory must exist.

        Raises:
            SetupError: ``EEXIST`` if a namespace is mounted there; ``EPERM`` without CAP_SYS_ADMIN; ``ELOOP`` or
                ``EISDIR`` if it is not a regular file; ``EINVAL``, on some kernels ``ELOOP``, for a mount namespace
                that is not newer than the caller's own. Linux 6.18 may also refuse a newer one that was made on
                another processor, because it numbers namespaces by processor.

        Source: namespaces(7), "The /proc/pid/ns/ directory"; move_mount(2).
        """
        shown = os.fspath(path)
        try:
            kept = _keeps_namespace(shown)
            made = not kept and _make_file(shown)
        except OSError as error:
            raise SetupError("persist", error.errno or 0, shown) from None
        except ValueError as error:
            raise SpecError(f"{shown!r}: {error}") from None
        if kept:
            raise SetupError("persist", EEXIST, shown, "a namespace is mounted there: unpersist it first")
        try:
            self._bind(shown)
        except OSError as error:
            if made:
                os.unlink(shown)
            hint = ""
            if error.errno == EPERM:
                hint = "it needs CAP_SYS_ADMIN over the mount namespace"
            elif error.errno in (EINVAL, ELOOP) and self.kind is Kind.MOUNT:
                hint = "a mount namespace can be kept only by an older one, on a mount that is not shared"
            raise SetupError("persist", error.errno or 0, shown, hint) from None

    def _bind(self, path: str) -> None:
        tree = calls.open_tree(self.fileno(), "", k.OPEN_TREE_CLONE | k.AT_EMPTY_PATH)
        try:
            place = os.open(path, k.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                mode = os.fstat(place).st_mode
                if not S_ISREG(mode):  # the kernel would even mount over a symlink
                    number = ELOOP if S_ISLNK(mode) else EISDIR
                    raise OSError(number, os.strerror(number))
                calls.move_mount(tree, "", place, "", k.MOVE_MOUNT_F_EMPTY_PATH | k.MOVE_MOUNT_T_EMPTY_PATH)
            finally:
                os.close(place)
        finally:
            os.close(tree)

    @staticmethod
    def unpersist(path: Path) -> None:
        """Remove the mount and the file that :meth:`persist` created. The namespace lives while it is in use.

        Args:
            path: the file.

        Raises:
            StateError: no namespace is mounted there.
            SetupError: ``EPERM`` without CAP_SYS_ADMIN.

        Source: umount2(2).
        """
        shown = os.fspath(path)
        try:
            kept = _keeps_namespace(shown)
        except OSError as error:
            raise SetupError("unpersist", error.errno or 0, shown) from None
        if not kept:
            raise StateError(f"unpersist {shown}: no namespace is mounted there")
        try:
            calls.umount2(shown, k.MNT_DETACH | k.UMOUNT_NOFOLLOW)
            os.unlink(shown)
        except OSError as error:
            hint = "it needs CAP_SYS_ADMIN over the mount namespace" if error.errno == EPERM else ""
            raise SetupError("unpersist", error.errno or 0, shown, hint) from None

    # --- Entering

    def enter(self) -> Visit:
        """Return a context manager that moves the calling thread into the namespace and back again.

        Other threads are not moved. What this means for each kind:

        * **network, ipc, uts, cgroup**: the thread is inside for the duration of the block.
        * **mount**: likewise. Root and working directory are those of the namespace inside the block, and the
          thread's own afterwards. For this the thread permanently stops sharing them (``unshare(CLONE_FS)``): later
          calls of ``os.chdir`` in this thread do not affect other threads, and theirs do not affect this one.
        * **pid**: the thread does not move, its children are created inside. It can't start threads in the block.
        * **time**: the clocks (``time.monotonic`` too) change for the block. The process must have no other thread.
        * **user**: not possible, because a thread can't leave a user namespace that it has entered.

        Raises:
            UnsupportedError: on entering, for a user namespace, or a time namespace in a process with other threads.
            SetupError: on entering; ``EPERM`` without CAP_SYS_ADMIN over the namespace and over the caller's own;
                ``EINVAL`` for a pid namespace that is not below the caller's own.
            CleanupError: on leaving, if the kernel refuses it, because the block dropped the necessary capabilities or
                another thread leaves. The thread is then in the wrong namespace and must not continue: let the error
                end it.

        Source: setns(2).
        """
        return Visit(self)


def _keeps_namespace(path: str) -> bool:
    try:
        return os.lstat(path).st_dev == _nsfs()
    except FileNotFoundError:
        return False


def _make_file(path: str) -> bool:
    """Create an empty file to mount on. Return False if one exists."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    except FileExistsError:
        return False
    return True

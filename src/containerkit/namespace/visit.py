"""A temporary visit of a thread to a namespace."""

from __future__ import annotations

import os
from _thread import get_native_id
from errno import EINVAL, EPERM

from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.errors import CleanupError, SetupError, StateError, UnsupportedError
from containerkit.namespace.kind import Kind

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from containerkit.namespace.handle import Namespace

__all__ = ["Visit"]


class Visit:
    """A visit of one thread to a namespace, made by :meth:`Namespace.enter`. It can be used for one ``with`` block."""

    __slots__ = ("_held", "_home", "_namespace", "_thread")

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._home: Namespace | None = None
        self._held: tuple[int, ...] = ()  # descriptors of the root and of the working directory
        self._thread = 0

    def __repr__(self) -> str:
        state = f"by thread {self._thread}" if self._home else "not started"
        return f"<Visit to {self._namespace!r} {state}>"

    def __enter__(self) -> Namespace:
        if self._home is not None:
            raise StateError(f"{self!r}: a visit can be used for one with block only; call enter() again")
        kind, fd = self._namespace.kind, self._namespace.fileno()
        home = self._namespace.current(kind, for_children=kind is Kind.PID)
        try:
            if home != self._namespace:
                self._prepare(home)
                calls.setns(fd, kind.flag)
        except OSError as error:
            self._drop(home)
            raise self._refused(error) from None
        except BaseException:
            self._drop(home)
            raise
        self._home, self._thread = home, get_native_id()
        return self._namespace

    def _prepare(self, home: Namespace) -> None:
        """Refuse a visit that can't be undone, and save what setns changes in addition to the namespace."""
        if home.kind is Kind.USER:
            raise OSError(EINVAL, "")
        if home.kind is Kind.TIME and home != home.current(Kind.TIME, for_children=True):
            raise StateError("enter: this process has unshared a time namespace for its children, and would lose it")
        if home.kind is Kind.MOUNT:
            calls.unshare(k.CLONE_FS)
            self._held = tuple(os.open(path, k.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY) for path in ("/", "."))

    def _refused(self, error: OSError) -> SetupError:
        kind, number, target = self._namespace.kind, error.errno or 0, repr(self._namespace)
        if kind is Kind.USER:
            hint = "a thread can't leave a user namespace again: run the work in a separate process that joins it"
            return UnsupportedError("setns", number, target, hint)
        if kind is Kind.TIME and number != EPERM:
            hint = "a process with other threads can't change its time namespace: do it in a cloned process"
            return UnsupportedError("setns", number, target, hint)
        hint = ""
        if number == EPERM:
            hint = "it needs CAP_SYS_ADMIN over the user namespaces that own it and this thread's own"
        elif kind is Kind.PID:
            hint = "children can be created only in this thread's own pid namespace or one below it"
        return SetupError("setns", number, target, hint)

    def _drop(self, home: Namespace) -> None:
        held, self._held = self._held, ()
        for fd in held:
            os.close(fd)
        home.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        home = self._home
        if home is None or self._thread != get_native_id():
            raise StateError(f"{self!r}: only the thread that entered can leave, and only once")
        try:
            if home != self._namespace:
                self._return(home)
        except OSError as refused:
            left = f"thread {self._thread} is still inside {self._namespace!r} and must end ({refused})"
            raise CleanupError((left,)) from refused
        finally:
            self._home = None
            self._drop(home)

    def _return(self, home: Namespace) -> None:
        calls.setns(home.fileno(), home.kind.flag)
        if self._held:
            root, cwd = self._held
            os.fchdir(root)
            os.chroot(".")  # setns set the root to that of the mount namespace, which may differ from the previous root
            os.fchdir(cwd)

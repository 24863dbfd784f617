"""A helper process in an unprivileged user's own user namespace, for files of all ids that are granted to the user.

A user with ranges in /etc/subuid and /etc/subgid may have files of many owners, from containers and images. On the host
these files belong to other ids, so the user can't make, remove or even read them. In the *holder*, the user namespace
of the user's containers (see :mod:`containerkit.start.staging`), the user is root over them. A process with threads
can't enter it, so a helper does. It is started when it is first needed, executes each :func:`call` in a fork, and ends
with the last :func:`kept`, or with its owner.

Root needs no helper, nor does a user with a single id. For them the function is called directly.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager, suppress
from errno import ECHILD

from containerkit._native import constants as k
from containerkit.errors import SetupError
from containerkit.spec.idmap import IdMapping, mapping_text
from containerkit.start import staging
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from typing import Any, Final

    from containerkit.start.staging import Staging

__all__ = ["Callback", "Lent", "call", "kept", "key"]

_START: Final = """
import sys
sys.path[:] = {path!r}
from containerkit.start.userns_helper import serve
serve({control}, {holder}, {mappings!r})
"""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_MOST_FILES: Final = 16


class Lent(NamedTuple):
    """A descriptor among the arguments of a call. The function gets a number that is valid in its process."""

    fd: int


class Callback(NamedTuple):
    """A function among the arguments of a call. The helper calls it in this process. Its result is ignored."""

    function: Callable[..., object]


class _Place:
    """The state of this process: the namespace that it has entered, and its helper."""

    def __init__(self, entered: str | None = None) -> None:
        self.lock = threading.Lock()
        self.entered = entered
        self.users = 0
        self.helper: Helper | None = None


_place = _Place()


def _after_fork() -> None:
    """Forget the helper in a forked child, because the helper of the parent serves only the parent."""
    global _place  # noqa: PLW0603 - one for a process
    if _place.helper is not None:
        _place.helper.forget()
    _place = _Place(_place.entered)


os.register_at_fork(after_in_child=_after_fork)


def _stage() -> Staging | None:
    """Return the staging whose holder must be entered for files of all ids, or None if that is not needed."""
    if _place.entered is not None or os.geteuid() == 0 or not sys.executable:
        return None
    if max(map(len, staging.own_mappings())) < 2:
        return None
    stage = staging.staging(host=False)
    return stage if max(map(len, stage.mappings)) > 1 else None


def key() -> str:
    """Return a key of the ids of files on disk. It is empty if they are the ids inside.

    It changes with the user's ranges, because files made for one set of ranges can't be used with another.
    """
    if _place.entered is not None:
        return _place.entered
    stage = _stage()
    return "" if stage is None else _key_of(stage.mappings)


def _key_of(mappings: staging.Mappings) -> str:
    from hashlib import sha256

    return sha256(b"/".join(map(mapping_text, mappings))).hexdigest()[:16]


@contextmanager
def kept() -> Iterator[None]:
    """Keep the helper during a ``with`` statement, so that several calls use the same one.

    Side effects: a process, from the first call on, until the last such statement ends.
    """
    with _place.lock:
        _place.users += 1
    try:
        yield
    finally:
        with _place.lock:
            _place.users -= 1
            leaving = _place.helper if not _place.users else None
            if leaving is not None:
                _place.helper = None
        if leaving is not None:
            leaving.close()


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a process that can make, read and remove files of all ids.

    Args:
        function: of a module; it and its arguments are pickled.
        args: its arguments; :class:`Lent` and :class:`Callback` among them become descriptors and functions.

    Returns:
        The result of the function.

    Raises:
        SetupError: the helper can't be started, or ended before it answered.
        BaseException: what the function raises.

    Source: user_namespaces(7), setns(2).
    """
    stage = _stage()
    if stage is None:
        return function(*(_own(value) for value in args))
    with kept():
        with _place.lock:
            if _place.helper is None:
                _place.helper = Helper(stage)
            helper = _place.helper
        return helper.call(function, *args)


def _own(value: Any) -> Any:
    if isinstance(value, Lent):
        return value.fd
    return value.function if isinstance(value, Callback) else value


class Helper:
    """The helper process and a socket to it. This object owns both, until :meth:`close`.

    Args:
        stage: whose holder it enters.

    Raises:
        SetupError: it can't be started.
    """

    def __init__(self, stage: Staging) -> None:
        import socket
        import subprocess

        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        mappings = [[(m.inside, m.outside, m.count) for m in kind] for kind in stage.mappings]
        code = _START.format(path=sys.path, control=theirs.fileno(), holder=stage.holder, mappings=mappings)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-c", code],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), stage.holder),
                env=_environment(),
            )
        except OSError as error:
            self._control.close()
            raise SetupError(
                "start", error.errno or ECHILD, sys.executable, "the helper process runs this program"
            ) from error
        finally:
            theirs.close()

    def __repr__(self) -> str:
        state = "closed" if self._control.fileno() < 0 else "ready"
        return f"<Helper pid {self._process.pid}: {state}>"

    def close(self) -> None:
        """End it, and wait until it is gone. Calls in progress are not finished. May be called twice."""
        self._control.close()
        self._process.wait()

    def forget(self) -> None:
        """Close the copy of a forked child."""
        self._control.close()
        self._process.returncode = 0  # another process must wait for it

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function there; see :func:`call`."""
        import socket
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            lent = [value.fd for value in args if isinstance(value, Lent)]
            module = function.__module__.encode()
            with suppress(BrokenPipeError):  # it has ended, so there will be no answer
                socket.send_fds(self._control, [module], [theirs.fileno(), *lent])
            theirs.close()
            connection = Connection(ours.detach())
        with connection:
            try:
                with _pidfd_of_peer(connection) as pidfd:
                    connection.send((function, [_sent(value) for value in args]))
                    answer = _answer(connection, pidfd, args)
            except (EOFError, ConnectionError):
                hint = "the process in the user's own namespace ended before it answered"
                raise SetupError("call", ECHILD, f"{function.__module__}.{function.__qualname__}", hint) from None
        if isinstance(answer, _Raised):
            raise answer.error
        return answer


class _Raised(NamedTuple):
    """The exception that a function raised."""

    error: BaseException


@contextmanager
def _pidfd_of_peer(connection: Connection) -> Iterator[int]:
    """Receive the pid of the fork that executes a call, and return a pidfd. The kernel reaps the fork when it ends."""
    pid = connection.recv()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise EOFError from None
    try:
        # It sends nothing until it gets a request. If there is data, it has ended, and its pid may have been reused.
        if connection.poll(0):
            raise EOFError
        yield pidfd
    finally:
        os.close(pidfd)


def _answer(connection: Connection, pidfd: int, args: tuple[Any, ...]) -> Any:
    """Wait for the answer, and execute callbacks in the meantime. If this is interrupted, interrupt the helper too."""
    import signal

    try:
        while True:
            kind, value, *more = connection.recv()
            if kind != "callback":
                return value
            args[value].function(*more[0], **more[1])
            connection.send(None)
    except (EOFError, ConnectionError):
        raise
    except BaseException:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGINT)
        with suppress(EOFError, OSError):
            while connection.recv()[0] == "callback":  # it cleans up, and reports this in its last message
                connection.send(None)
        raise


def _sent(value: Any) -> tuple[str, Any]:
    if isinstance(value, Lent):
        return "lent", None
    return ("callback", None) if isinstance(value, Callback) else ("value", value)


def _environment() -> dict[str, str]:
    """Return the environment, with the values that Python otherwise looks up by the user id (root's inside)."""
    from pathlib import Path

    return {"HOME": str(Path.home()), **os.environ}


# --- The other side


def serve(control: int, holder: int, mappings: list[list[tuple[int, int, int]]]) -> None:
    """Enter the holder and fork for each call, until the owner has ended. The helper process runs this.

    Args:
        control: a socket. Each message names a module, and contains the call's socket and descriptors.
        holder: the user namespace.
        mappings: its (inside, outside, count) for users and for groups.
    """
    import signal
    import socket
    from importlib import import_module

    _enter(holder, mappings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # signals of a terminal: each call handles them, and then the owner
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    parent = os.getpid()
    with socket.socket(fileno=control) as door:
        while True:
            module, files, _, _ = socket.recv_fds(door, 4096, _MOST_FILES)
            if not module:
                return
            with suppress(ImportError):
                import_module(module.decode())  # once for all calls
            if os.fork() == 0:
                break
            for fd in files:
                os.close(fd)
    _execute_call(parent, files)


def _enter(holder: int, mappings: list[list[tuple[int, int, int]]]) -> None:
    from containerkit._native.calls import prctl, setns

    setns(holder, k.CLONE_NEWUSER)
    os.close(holder)
    # Gaining the capabilities of the new namespace made it undumpable, and root owns its files in /proc.
    prctl(_PR_SET_DUMPABLE, 1)
    uids, gids = (tuple(IdMapping(*fields) for fields in kind) for kind in mappings)
    _place.entered = _key_of((uids, gids))
    staging.pass_on((uids, gids))


def _execute_call(parent: int, files: list[int]) -> None:
    """Execute one call in its own process."""
    import signal
    from multiprocessing.connection import Connection

    from containerkit._native.calls import prctl

    prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with Connection(files[0]) as connection, suppress(EOFError, BrokenPipeError):
        lent = iter(files[1:])
        connection.send(os.getpid())
        try:
            function, sent = connection.recv()
            args = [_received(connection, number, kind, value, lent) for number, (kind, value) in enumerate(sent)]
            answer = function(*args)
        except BaseException as error:  # noqa: BLE001 - all of them are raised in the caller
            answer = _Raised(error)
        try:
            connection.send(("answer", answer))
        except (AttributeError, TypeError):  # it can't be pickled, so its text is sent
            connection.send(("answer", _Raised(RuntimeError(repr(answer)))))


def _received(connection: Connection, number: int, kind: str, value: Any, lent: Iterator[int]) -> Any:
    if kind == "lent":
        return next(lent)
    if kind == "value":
        return value
    lock = threading.Lock()

    def forward(*args: Any, **named: Any) -> None:
        with lock:
            connection.send(("callback", number, args, named))
            connection.recv()

    return forward

"""A process in the own user namespace of an unprivileged user, for files of all the ids that the user is granted.

A user with ranges in /etc/subuid and /etc/subgid may have files of many owners: what containers write, and what images
hold. Outside these are strangers' files, that the user can neither make nor remove nor even read. In the *holder*, the
user namespace that the user's containers lie in (see :mod:`containerkit.start.staging`), the user is root of them. A
process with threads can't enter it, so another does: it is started when it is first needed, does what :func:`call` asks
for, each time in a fork of its own, and ends with the last :func:`hired`, or with its owner.

Root needs no deputy, nor does a user with a single id: there a call is just a call.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager, suppress
from errno import ECHILD
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from containerkit._native import constants as k
from containerkit.errors import SetupError
from containerkit.spec.idmap import IdMapping, mapping_text
from containerkit.start import staging as ground

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection

    from containerkit.start.staging import Staging

__all__ = ["Callback", "Lent", "call", "hired", "key"]

_START: Final = """
import sys
sys.path[:] = {path!r}
from containerkit.start.userns_helper import serve
serve({control}, {holder}, {mappings!r})
"""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4
_MOST_FILES: Final = 16


class Lent(NamedTuple):
    """A descriptor among the arguments of a call; the function gets a number that is good where it runs."""

    fd: int


class Callback(NamedTuple):
    """A function among the arguments of a call: called by the other, it runs here. What it returns is lost."""

    function: Callable[..., object]


class _Place:
    """Where this process stands: what it has entered, and the deputy that it employs."""

    def __init__(self, entered: str | None = None) -> None:
        self.lock = threading.Lock()
        self.entered = entered
        self.users = 0
        self.deputy: Deputy | None = None


_place = _Place()


def _after_fork() -> None:
    """A forked child has no deputy: that of its parent serves the parent alone."""
    global _place  # noqa: PLW0603 - one for a process
    if _place.deputy is not None:
        _place.deputy.forget()
    _place = _Place(_place.entered)


os.register_at_fork(after_in_child=_after_fork)


def _stage() -> Staging | None:
    """Return the staging whose holder has to be entered for files of all ids; None where that is not needed."""
    if _place.entered is not None or os.geteuid() == 0 or not sys.executable:
        return None
    if max(map(len, ground.own_mappings())) < 2:
        return None
    stage = ground.staging(host=False)
    return stage if max(map(len, stage.mappings)) > 1 else None


def key() -> str:
    """Return what names the ids that files on disk have: empty where they are those that they have inside.

    It changes with the user's ranges: what was made for one set of ranges is of no use with another.
    """
    if _place.entered is not None:
        return _place.entered
    stage = _stage()
    return "" if stage is None else _key_of(stage.mappings)


def _key_of(mappings: ground.Mappings) -> str:
    from hashlib import sha256

    return sha256(b"/".join(map(mapping_text, mappings))).hexdigest()[:16]


@contextmanager
def hired() -> Iterator[None]:
    """Keep the deputy for the time of a ``with`` statement, so that several calls start one only.

    Side effects: a process, from the first call on, until the last such statement ends.
    """
    with _place.lock:
        _place.users += 1
    try:
        yield
    finally:
        with _place.lock:
            _place.users -= 1
            leaving = _place.deputy if not _place.users else None
            if leaving is not None:
                _place.deputy = None
        if leaving is not None:
            leaving.close()


def call(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function where files of all ids can be made, read and removed.

    Args:
        function: of a module; it and its arguments are pickled.
        args: its arguments; :class:`Lent` and :class:`Callback` among them become descriptors and functions.

    Returns:
        What it returns.

    Raises:
        SetupError: the deputy can't be started, or ended before it answered.
        BaseException: what the function raises.

    Source: user_namespaces(7), setns(2).
    """
    stage = _stage()
    if stage is None:
        return function(*(_own(value) for value in args))
    with hired():
        with _place.lock:
            if _place.deputy is None:
                _place.deputy = Deputy(stage)
            deputy = _place.deputy
        return deputy.call(function, *args)


def _own(value: Any) -> Any:
    if isinstance(value, Lent):
        return value.fd
    return value.function if isinstance(value, Callback) else value


class Deputy:
    """The process, as its owner sees it. It owns the process and a socket to it; :meth:`close` ends both.

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
            raise SetupError("start", error.errno or ECHILD, sys.executable, "the deputy runs this program") from error
        finally:
            theirs.close()

    def __repr__(self) -> str:
        state = "closed" if self._control.fileno() < 0 else "ready"
        return f"<Deputy pid {self._process.pid}: {state}>"

    def close(self) -> None:
        """Let it go, and wait until it is gone; what it is doing is not finished. May be called twice."""
        self._control.close()
        self._process.wait()

    def forget(self) -> None:
        """Close the copy of a forked child."""
        self._control.close()
        self._process.returncode = 0  # it is not this process's to wait for

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function there; see :func:`call`."""
        import socket
        from multiprocessing.connection import Connection

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            lent = [value.fd for value in args if isinstance(value, Lent)]
            module = function.__module__.encode()
            with suppress(BrokenPipeError):  # it has gone: there will be no answer either
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
    """What a function raised."""

    error: BaseException


@contextmanager
def _pidfd_of_peer(connection: Connection) -> Iterator[int]:
    """Hear who does what is asked for, and lend a pidfd of it: nobody but the kernel reaps it, at its end at once."""
    pid = connection.recv()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        raise EOFError from None
    try:
        # It says no more until it was asked: if there is something, it is its end, and the number may be another's.
        if connection.poll(0):
            raise EOFError
        yield pidfd
    finally:
        os.close(pidfd)


def _answer(connection: Connection, pidfd: int, args: tuple[Any, ...]) -> Any:
    """Wait for the answer, calling back meanwhile; when that is broken off, break off the other side too."""
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
            while connection.recv()[0] == "callback":  # it tidies up, and says so by its last word
                connection.send(None)
        raise


def _sent(value: Any) -> tuple[str, Any]:
    if isinstance(value, Lent):
        return "lent", None
    return ("callback", None) if isinstance(value, Callback) else ("value", value)


def _environment() -> dict[str, str]:
    """Return the environment, with what else would be looked up by the user id: inside that is root's."""
    from pathlib import Path

    return {"HOME": str(Path.home()), **os.environ}


# --- The other side


def serve(control: int, holder: int, mappings: list[list[tuple[int, int, int]]]) -> None:
    """Enter the holder and fork for each call, until the owner has gone. This is what the deputy's process runs.

    Args:
        control: a socket; each message names a module, and brings the socket of the call and what is lent.
        holder: the user namespace.
        mappings: its (inside, outside, count) for users and for groups.
    """
    import signal
    import socket
    from importlib import import_module

    _enter(holder, mappings)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: each call deals with it, and then the owner
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
    _attend(parent, files)


def _enter(holder: int, mappings: list[list[tuple[int, int, int]]]) -> None:
    from containerkit._native.calls import prctl, setns

    setns(holder, k.CLONE_NEWUSER)
    os.close(holder)
    # The capabilities of the new namespace have made it secret to itself, and its own files in /proc with it.
    prctl(_PR_SET_DUMPABLE, 1)
    uids, gids = (tuple(IdMapping(*fields) for fields in kind) for kind in mappings)
    _place.entered = _key_of((uids, gids))
    ground.pass_on((uids, gids))


def _attend(parent: int, files: list[int]) -> None:
    """Do what one call asks for, in a process of its own."""
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
        except BaseException as error:  # noqa: BLE001 - all of them are the caller's
            answer = _Raised(error)
        try:
            connection.send(("answer", answer))
        except (AttributeError, TypeError):  # it can't be pickled: as its text then
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

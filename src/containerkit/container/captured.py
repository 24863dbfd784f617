"""Commands that are run to their end: the part that ``run``, ``Container.run`` and ``Template.run`` share.

:class:`ArgumentCache` caches their evaluated arguments, :class:`Terms` has the timeout and the output limit, and
:class:`Captured` is the running command.
"""

from __future__ import annotations

import contextlib
import signal
import time
from _thread import allocate_lock, get_ident
from errno import EINTR

from containerkit import _native
from containerkit.errors import SpecError
from containerkit.process.communicate import Communication
from containerkit.process.process import Process
from containerkit.process.stdio import Streams
from containerkit.typed import Generic, NamedTuple, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

    from containerkit._native.outcome import Left
    from containerkit.options import Input
    from containerkit.plan.program import Program
    from containerkit.process.communicate import LineCallbacks
    from containerkit.process.result import Cause, CompletedProcess, Usage
    from containerkit.process.seccomp_notify import Supervision
    from containerkit.process.stdio import Text
    from containerkit.spec.command import Command

__all__ = ["FOREVER", "ArgumentCache", "Captured", "Terms", "complete"]


_PLAIN: Final = frozenset({bool, int, str, bytes, type(None)})

Made = TypeVar("Made")


class ArgumentCache(Generic[Made]):
    """Caches the objects made from the last sets of keyword arguments, if these are immutable values.

    Args:
        size: the number of sets.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._kept: dict[Any, Made] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Remove all."""
        self._kept.clear()

    def get(
        self, arguments: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Made], lasts: Callable[[Made], bool]
    ) -> Made:
        """Return the cached object for the same arguments, or make it.

        Args:
            arguments: the arguments.
            make: makes the object.
            lasts: returns whether the same arguments would give an equal object later.
        """
        # The key includes the types: True and 1 are different.
        key = tuple([(name, type(value), _fixed(value)) for name, value in arguments.items()]) if arguments else ()
        try:
            known = self._kept.get(key)
        except TypeError:  # something in it is mutable
            return make(arguments)
        if known is not None:
            return known
        made = make({name: value.copy() if type(value) in (list, dict) else value for name, value in arguments.items()})
        if all(_is_plain(value) for value in arguments.values()) and lasts(made):
            while len(self._kept) >= self._size:
                self._kept.pop(next(iter(self._kept)), None)
            self._kept[key] = made
        return made


def _fixed(value: Any) -> Any:
    if type(value) is dict:
        return tuple(value.items())
    return tuple(value) if type(value) is list else value


def _is_plain(value: Any) -> bool:
    """Return whether equal values of a type always have the same meaning."""
    kind = type(value)
    if kind is dict:
        return all(type(each) is str for pair in value.items() for each in pair)
    if kind in (list, tuple, frozenset):
        return all(type(each) is str or _is_ours(type(each)) for each in value)
    return kind in _PLAIN or _is_ours(kind)


def _is_ours(kind: type) -> bool:
    return kind.__module__.startswith("containerkit.")


class Terms(NamedTuple):
    """The terms of a command that is run to its end.

    Attributes:
        began: when the call began, by the monotonic clock.
        timeout: how many seconds to wait for it (None for no limit).
        limit: how many bytes it may write (None for no limit).
        check: whether to raise if its status is not 0.
        callbacks: the functions that get its lines.
    """

    began: float
    timeout: float | None
    limit: int | None
    check: bool
    callbacks: LineCallbacks | None = None

    @classmethod
    def of(
        cls, timeout: float | None, limit: int | None, *, check: bool, callbacks: LineCallbacks | None = None
    ) -> Terms:
        """Return the terms of a call that begins now.

        Raises:
            SpecError: the timeout or the limit is invalid.
        """
        began = time.monotonic()
        # "not >=" also refuses NaN
        if timeout is not None and (
            isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0
        ):
            raise SpecError(f"timeout: {timeout!r} is not a number of seconds")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit < 2**63):
            raise SpecError(f"output_limit_bytes: {limit!r} is not a number of bytes")
        return cls(began, timeout, limit, check, callbacks)


FOREVER: Final = Terms(0.0, None, None, check=False)
"""The terms of a held command until its own are known."""


class Captured:
    """A command that is started, read to its end and reaped in two calls of C.

    Its stdin is empty, and both outputs are captured. It represents the process in a container's list, from its start
    to its end. A signal handler may raise at any moment. The caller must then call :meth:`call_off`.

    Args:
        command: the command.
        text: how to decode its output.
        terms: its terms.
        owner: the owner of its pipes, a uid outside. None for the caller.
        finish: called at its end, with this object or with the process that it has become.
        books: the list of the container's processes, in which other threads can find it.
        early: whether to return when no process runs any more, before the kernel has removed the namespaces.

    Attributes:
        returncode, usage, cause: as of :class:`containerkit.CompletedProcess`; None until it has ended.
    """

    supervision: Supervision | None = None

    def __init__(
        self,
        command: Command,
        text: Text | None,
        terms: Terms,
        owner: int | None,
        finish: Callable[[Any], None] | None = None,
        books: set[Process[Any] | Captured] | None = None,
        *,
        early: bool = False,
    ) -> None:
        self.command = command
        self.text = text
        self.terms = terms
        self.returncode: int | None = None
        self.usage: Usage | None = None
        self.cause: Cause | None = None
        self._owner = owner
        self._finish = finish
        self._books = books
        self._early = early
        self._program: Program | None = None
        self._rest: Program | None = None
        self._run: Any = None
        self._deadline: float | None = None
        self._signals = allocate_lock()
        self._under_way = allocate_lock()
        self._under_way.acquire()
        self._over = False
        self._thread = get_ident()
        self._heard: tuple[bytes, bytes] | None = None
        self._streams: Streams | None = None
        self._taken = False
        self._process: Process[Any] | None = None

    # --- From its start to its end

    def begin(
        self,
        program: Program,
        inputs: Mapping[str, int],
        blocks: Mapping[str, bytes] | None = None,
        flags: int = 0,
    ) -> None:
        """Start it.

        Args:
            program: the plan by which it starts.
            inputs, blocks, flags: as for :meth:`containerkit.plan.program.Program.run`.

        Raises:
            SetupError: an operation failed. Nothing runs.
        """
        self._set_deadline()
        self._start(program, inputs, self.command.argv, self.command.envp, blocks, flags)

    def hold(self, program: Program, inputs: Mapping[str, int], blocks: Mapping[str, bytes]) -> None:
        """Start it up to the point where it needs its argv, for :meth:`continue_held`.

        Raises:
            SetupError: an operation failed. Nothing runs.
        """
        self._start(program, inputs, (), (), blocks, _native.HOLD)

    def _start(
        self,
        program: Program,
        inputs: Mapping[str, int],
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        blocks: Mapping[str, bytes] | None,
        flags: int,
    ) -> None:
        keep, books = self._books is not None, self._books
        run = program.captured(self._owner, self.terms.limit, self._deadline, early=self._early, keep=keep)
        self._program, self._run = program, run
        if books is not None:
            books.add(self)
        program.begin(run, inputs, argv=argv, envp=envp, blocks=blocks, flags=flags)

    def continue_held(
        self, rest: Program, command: Command, text: Text | None, terms: Terms, finish: Callable[[Any], None]
    ) -> None:
        """Continue a held command.

        Args:
            rest: the plan with the remaining operations.
            command, text, terms, finish: as for the class; they are known now.

        Raises:
            SetupError: it could not be continued.
        """
        self.command, self.text, self.terms, self._rest, self._finish = command, text, terms, rest, finish
        self._set_deadline()
        rest.go(self._run, command.argv, command.envp, terms.limit, self._deadline)

    def _set_deadline(self) -> None:
        timeout = self.terms.timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def complete(self) -> CompletedProcess[Any]:
        """Read its output to the end, and return the result.

        Raises:
            SetupError: the exec of a held command failed. Nothing runs.
            ContainerTimeout, ExitError, OutOfMemory: as for ``run``.
        """
        return self._completed(self._read_to_end())

    def _read_to_end(self) -> Left:
        run = self._run
        # Python runs signal handlers in between. They may raise, or stop the container and this command.
        while not self._over and run.see_out() == EINTR:
            continue
        if run.failed:  # the call did not wait for the exec
            assert self._program is not None
            raise self._program.failure_of_either(run.outcome(), self._rest or self._program)
        left: Left = run.left()
        self._end()
        return left if self._heard is None else left._replace(heard=self._heard)

    def _completed(self, left: Left) -> CompletedProcess[Any]:
        from containerkit.process.result import result_fields

        if left.ending is None:  # timeout, too much output, or anything else unusual
            return complete(self._taken_over(left), None, self.terms, heard=left.heard, deadline=self._deadline)
        self.returncode, self.usage, self.cause = result_fields(left.ending)
        if self._finish is not None:
            self._finish(self)
            self._finish = None  # break the reference cycle
        written: tuple[Any, Any] = left.heard
        if self.text is not None:
            written = self.text.decode(written[0], cut=False), self.text.decode(written[1], cut=False)
        done = _result(self, written, self.terms.began)
        if self.terms.check:
            done.check_returncode()
        return done

    def call_off(self) -> None:
        """End it after an exception at any moment. May be called twice."""
        run = self._run
        if run is None:
            return
        run.drop()
        if self._process is not None or run.pidfd >= 0:
            left = run.left()
            self._heard = self._heard or left.heard
            self._taken_over(left).close()
        self._end()
        self._finish = None
        if self._books is not None:
            self._books.discard(self)

    def _end(self) -> None:
        if self._books is None:
            return  # no other thread knows it
        with self._signals:
            self._over = True
            self._run.release()
        if self._under_way.locked():
            self._under_way.release()

    def _taken_over(self, left: Left) -> Process[Any]:
        """Return it as a process that must still be waited for. Repeated calls return the same object."""
        streams = self._streams
        if streams is None:
            streams = self._streams = Streams([], [None, None, None], [])
        if not self._taken:
            streams.own = [None, *left.ends]
            self._taken = True
        if self._process is None:
            self._process = Process(
                self.command, left.pid, left.pidfd, streams, report=left.report, text=self.text, finish=self._finish
            )
            if self._books is not None:
                self._books.add(self._process)
                self._books.discard(self)
        return self._process

    @property
    def is_held(self) -> bool:
        """Whether it is still held."""
        return bool(self._run.is_held)

    @property
    def is_leaving(self) -> bool:
        """Whether it and all its descendants have ended. The init must still be reaped."""
        return bool(self._run.is_leaving)

    def end_if_held(self) -> None:
        """End it if it is held, or wait for an init that is about to end. Otherwise do nothing."""
        self._run.drop()
        self._run.reap()

    # --- As a process

    @property
    def args(self) -> list[str]:
        """Its argv as text."""
        return self.command.words

    def poll(self) -> int | None:
        """Return the exit status if it has ended, else None. Does not wait."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal. Has no effect if it has ended."""
        with self._signals:
            pidfd = -1 if self._over else self._run.pidfd
            if pidfd >= 0:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)

    def kill(self) -> None:
        """End it: SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for its end.

        Args:
            timeout: seconds (default: no limit).

        Raises:
            ContainerTimeout: it is still running.
        """
        if self._thread == get_ident():  # called by a signal handler that interrupted this command's own call
            self.call_off()
            return
        if not self._under_way.acquire(timeout=-1 if timeout is None else timeout):
            from containerkit.errors import ContainerTimeout  # late: it imports subprocess

            raise ContainerTimeout(self.command.words, timeout or 0)
        self._under_way.release()


def complete(
    process: Process[Any],
    given: Input,
    terms: Terms,
    *,
    heard: tuple[bytes, bytes] | None = None,
    deadline: float | None = None,
) -> CompletedProcess[Any]:
    """Communicate with a process to its end and return the result.

    Args:
        process: the process.
        given: its input, as for ``run``.
        terms: its terms.
        heard, deadline: the output so far, and the deadline by the monotonic clock.

    Raises:
        ContainerTimeout, ExitError, OutOfMemory: as for ``run``.
    """
    try:
        talk = Communication(process, given, terms.timeout, terms.limit, terms.callbacks)
        if heard is not None:
            talk.continue_with(heard, deadline)
        written = talk.hold()
    except TimeoutError as error:
        process.close()
        from containerkit.errors import ContainerTimeout  # late: it imports subprocess

        if isinstance(error, ContainerTimeout):
            error.result = _result(process, (error.stdout, error.stderr), terms.began)
        raise
    except BaseException:
        process.close()
        raise
    done = _result(process, written, terms.began)
    if process.supervision is not None and process.supervision.error is not None:
        raise process.supervision.error
    if terms.check:
        done.check_returncode()
    return done


def _result(process: Process[Any] | Captured, written: tuple[Any, Any], began: float) -> CompletedProcess[Any]:
    from containerkit.process.result import CompletedProcess

    assert process.returncode is not None
    assert process.usage is not None
    return CompletedProcess.now(process.args, process.returncode, written, process.usage, process.cause, began)

"""A container that is held on a node: the driver's side."""

from __future__ import annotations

import queue
import signal
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, AnyStr, Generic, Literal, Self, overload

from containerkit.errors import SpecError, StateError
from containerkit.fleet.errors import FleetError, NodeLost
from containerkit.meanings import explained
from containerkit.spec.words import sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Unpack

    from containerkit.fleet.engine import Outcome, StreamName, Task
    from containerkit.fleet.options import HeldRunOptions
    from containerkit.fleet.workers import Carried, WorkerEngine
    from containerkit.options import Input, ListOf, Word
    from containerkit.process.result import CompletedProcess

__all__ = ["FleetContainer", "FleetFiles", "FleetProcess"]

_END: Any = None


class FleetContainer:
    """A container on a node of a fleet, for any number of commands; made by :meth:`Fleet.container`.

    ::

        with fleet.container(image="alpine:3.20") as c:
            c.files.write("/tmp/text", "any")
            print(c.run(["wc", "-c", "/tmp/text"], text=True).stdout)

    It occupies the resources of one task on its node, until :meth:`stop` or the end of ``with``. It ends with its node
    and with this program. Its methods may be called from any thread.

    Attributes:
        files: its files.
    """

    def __init__(self, engine: WorkerEngine[Any], task: Task) -> None:
        self._engine = engine
        self._task = task
        self._lock = threading.Lock()
        self._calls: dict[int, tuple[Future[Any], Callable[[str, Any], None] | None]] = {}
        self._number = 0
        self._ready = threading.Event()
        self._gone = threading.Event()
        self._over: BaseException | None = None
        self._node: str | None = None
        self._carried: Carried[Any] | None = None
        self.files = FleetFiles(self)

    def __repr__(self) -> str:
        state = "stopped" if self._over is not None else f"on {self._node}" if self._node else "waits for a node"
        return f"<FleetContainer {self._task.id} {state}>"

    @property
    def node(self) -> str | None:
        """The name of its node; None before there is one."""
        return self._node

    @property
    def stopped(self) -> bool:
        """Whether it has ended."""
        return self._gone.is_set()

    # --- Life

    def start(self, timeout: float | None = None) -> Self:
        """Wait for a free node, and until the container runs there.

        Args:
            timeout: in seconds (default: no limit).

        Raises:
            SpecError, SetupError, ImageError: it can't be started.
            NodeLost: its node was lost in the meantime.
            TimeoutError: no node was free in time; the request was withdrawn.
        """
        from containerkit.fleet.held import Holding

        if self._carried is None:
            self._carried = self._engine.submit(self._task, self, kind=Holding, heard=self._heard)
        if not self._ready.wait(timeout):
            self.stop()
            raise TimeoutError(f"{self!r}: no node was free within {timeout} s")
        if self._over is not None:
            raise self._over
        return self

    def stop(self, timeout: float | None = None) -> bool:
        """Stop it with all its commands, and wait for its end. May be called twice.

        Args:
            timeout: how long to wait, in seconds (default: no limit).

        Returns:
            Whether it has ended.
        """
        if self._carried is None:
            return True
        self._carried.cancel()
        return self._gone.wait(timeout)

    def __enter__(self) -> Self:
        return self if self._ready.is_set() else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- Commands

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        **options: Unpack[HeldRunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        **options: Unpack[HeldRunOptions],
    ) -> CompletedProcess[bytes]: ...

    @explained
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: Input = None,  # noqa: A002 - an argument of subprocess
        text: bool | None = None,
        **options: Unpack[HeldRunOptions],
    ) -> CompletedProcess[Any]:
        """Run a command in it and wait for its end.

        Args:
            argv: the program, which is looked up inside, and its arguments.
            input: what it finds on stdin (default: nothing, /dev/null).
            text: whether its output is text, in UTF-8 (default: bytes).
            options: see :class:`containerkit.fleet.options.HeldRunOptions`.

        Raises:
            SpecError, SetupError, ContainerTimeout, ExitError: as for :meth:`Container.run`.
            StateError: the container does not run.
            NodeLost: its node was lost.
        """
        more: dict[str, Any] = dict(options)
        calls = {name: more.pop(f"on_{name}", None) for name in ("stdout", "stderr")}
        heard = {name: call for name, call in calls.items() if call is not None}
        listener = (lambda stream, line: heard[stream](line)) if heard else None
        done: CompletedProcess[Any] = self._begun(argv, input, text, more, listener, heard)[1].result()
        return done

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        **options: Unpack[HeldRunOptions],
    ) -> FleetProcess[str]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        **options: Unpack[HeldRunOptions],
    ) -> FleetProcess[bytes]: ...

    @explained
    def popen(
        self,
        argv: ListOf[Word],
        *,
        input: Input = None,  # noqa: A002 - an argument of subprocess
        text: bool | None = None,
        **options: Unpack[HeldRunOptions],
    ) -> FleetProcess[Any]:
        """Start a command in it, and stream its output to this program.

        Args:
            argv: the program, which is looked up inside, and its arguments.
            input: what it finds on stdin (default: nothing, /dev/null).
            text: whether its output is text, in UTF-8 (default: bytes).
            options: see :class:`containerkit.fleet.options.HeldRunOptions`.

        Its output is not kept unless ``capture_output=True`` is given.

        Raises:
            StateError: the container does not run.
        """
        lines: queue.SimpleQueue[Any] = queue.SimpleQueue()
        more: dict[str, Any] = {"capture_output": False, **options}
        for name in ("on_stdout", "on_stderr"):
            if more.pop(name, None) is not None:
                raise SpecError(f"popen: {name}: read the lines from the returned process, or use run()")
        number, future = self._begun(
            argv, input, text, more, lambda stream, line: lines.put((stream, line)), ("stdout", "stderr")
        )
        future.add_done_callback(lambda _: lines.put(_END))
        return FleetProcess(self, number, future, lines)

    def _begun(
        self,
        argv: ListOf[Word],
        given: Input,
        text: object,
        options: dict[str, Any],
        listener: Callable[[str, Any], None] | None,
        listened: Iterable[str],
    ) -> tuple[int, Future[Any]]:
        more = dict(options) if text is None else {**options, "text": text}
        if isinstance(given, (bytearray, memoryview)):
            given = bytes(given)
        return self.call("run", (sequence(argv, "argv"), given, more, frozenset(listened)), listener)

    def call(
        self, method: str, given: tuple[Any, ...], listener: Callable[[str, Any], None] | None = None
    ) -> tuple[int, Future[Any]]:
        """Send a call to the node. Return its number and its future.

        Raises:
            StateError: the container does not run.
            SpecError: an argument can't be sent.
        """
        future: Future[Any] = Future()
        with self._lock:
            if self._over is not None or not self._ready.is_set() or self._carried is None:
                raise StateError(f"{self!r}: it is not running")
            self._number += 1
            number = self._number
            self._calls[number] = future, listener
        try:
            self._engine.channel.tell(self._carried.held, "call", self._task.id, number, method, given)
        except Exception as error:
            self._calls.pop(number, None)
            raise SpecError(f"{self!r}: an argument can't be sent to the node: {error}") from error
        return number, future

    def signal(self, number: int, which: int) -> None:
        """Send a signal to the command of a call. Does nothing if it has ended."""
        if self._carried is not None:
            self._engine.channel.tell(self._carried.held, "call", self._task.id, 0, "signal", (number, which))

    # --- Events from the node

    def _heard(self, word: str, *rest: Any) -> None:
        if word == "ready":
            self._ready.set()
        elif word == "line":
            _, listener = self._calls.get(rest[0], (None, None))
            if listener is not None:
                listener(*rest[1:])
        elif word == "answer":
            number, good, value = rest
            with self._lock:
                found = self._calls.pop(number, None)
            if found is not None:
                found[0].set_result(value) if good else found[0].set_exception(value)

    def began(self, node: str) -> None:
        """Called when a node begins it."""
        self._node = node

    def wrote(self, stream: StreamName, data: str | bytes) -> None:
        """Not called: lines arrive with the calls."""

    def ended(self, outcome: Outcome) -> None:
        """Called at its end. Ends all calls."""
        error = outcome.error or FleetError(f"{self!r}: it ended")
        with self._lock:
            self._over = error
            calls, self._calls = list(self._calls.values()), {}
        self._ready.set()
        self._gone.set()
        for future, _ in calls:
            kind = NodeLost(str(error), self._node or "") if outcome.lost else StateError(f"{self!r}: it was stopped")
            future.set_exception(kind)


class FleetProcess(Generic[AnyStr]):
    """A command in a container on a node; made by :meth:`FleetContainer.popen`.

    ``for stream, line in process`` yields its output when it arrives, without newlines: ``("stdout", b"...")``.
    Unread output is kept in memory.
    """

    def __init__(
        self, container: FleetContainer, number: int, future: Future[Any], lines: queue.SimpleQueue[Any]
    ) -> None:
        self._container = container
        self._number = number
        self._future = future
        self._lines = lines

    def __iter__(self) -> Iterator[tuple[StreamName, AnyStr]]:
        while (line := self._lines.get()) is not _END:
            yield line
        self._lines.put(_END)  # for another iteration

    def poll(self) -> int | None:
        """Return the exit status if it has ended, else None. Does not wait.

        Raises:
            SetupError, ContainerTimeout, NodeLost: it could not be started, timed out, or its node was lost.
        """
        return self.wait().returncode if self._future.done() else None

    def wait(self, timeout: float | None = None) -> CompletedProcess[AnyStr]:
        """Wait for the end.

        Args:
            timeout: in seconds (default: no limit).

        Returns:
            The result; its output is None unless ``capture_output=True`` was given.

        Raises:
            TimeoutError: it is still running.
            SetupError, ContainerTimeout, ExitError: as for ``run``.
            NodeLost, StateError: its node was lost, or its container was stopped.
        """
        done: CompletedProcess[AnyStr] = self._future.result(timeout)
        return done

    def send_signal(self, number: int) -> None:
        """Send a signal. Does nothing if it has ended."""
        self._container.signal(self._number, int(number))

    def kill(self) -> None:
        """Kill it and the processes that it has started."""
        self.send_signal(signal.SIGKILL)


class FleetFiles:
    """The files of a container on a node, by absolute paths inside. Like ``Container.files``, for whole files."""

    def __init__(self, container: FleetContainer) -> None:
        self._container = container

    def _ask(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self._container.call("files", (name, args, kwargs))[1].result()

    def read(self, path: str) -> bytes:
        """Return the content of a file, at most 1 GiB."""
        content: bytes = self._ask("read", path)
        return content

    def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Return the content of a file as text."""
        content: str = self._ask("read_text", path, encoding)
        return content

    def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write or replace a file. Text is written in UTF-8; ``mode`` is that of a new file."""
        self._ask("write", path, content, mode=mode)

    def append(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Append to a file, which is created if it is missing."""
        self._ask("append", path, content, mode=mode)

    def make_directory(self, path: str, *, mode: int = 0o755) -> None:
        """Create a directory and its missing parents. Does nothing if it exists."""
        self._ask("make_directory", path, mode=mode)

    def listdir(self, path: str = "/") -> list[str]:
        """Return the names in a directory, sorted."""
        names: list[str] = self._ask("listdir", path)
        return names

    def exists(self, path: str) -> bool:
        """Return whether a path exists."""
        found: bool = self._ask("exists", path)
        return found

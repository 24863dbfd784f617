"""Commands in new containers, for asyncio, and the implementation of ``run`` for any container."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from containerkit.aio.calling import in_thread, settled, undone
from containerkit.aio.process import LINE_LIMIT_BYTES, AsyncProcess, AsyncTextProcess, Attended, Opening, dispose
from containerkit.aio.waiting import LineCallbacks
from containerkit.container.arguments import run_streams
from containerkit.container.captured import Terms, complete
from containerkit.container.run import begin
from containerkit.errors import SpecError
from containerkit.meanings import explained
from containerkit.process.communicate import LineCallbacks as Listening
from containerkit.process.lines import Lines
from containerkit.process.process import OUTPUT_LIMIT_BYTES
from containerkit.process.stdio import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from containerkit.container.lifecycle import Container
    from containerkit.options import AnyLaunchOptions, Input, LaunchOptions, Listener, ListOf, OneShotOptions, Word
    from containerkit.process.process import Process
    from containerkit.process.result import CompletedProcess

    Made = tuple[Process[Any], Container | None]
    Start = Callable[[dict[str, Any]], Made]
    """Starts a command with the given streams, in a thread."""

__all__ = ["attended", "opened", "popen", "run", "told_to"]

_STREAMS = frozenset({"stdin", "stdout", "stderr"})


@overload
async def run(
    argv: ListOf[Word],
    *,
    input: str | None = None,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[str]: ...


@overload
async def run(
    argv: ListOf[Word],
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[str]: ...


@overload
async def run(
    argv: ListOf[Word],
    *,
    input: bytes | bytearray | memoryview | None = None,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[bytes]: ...


@explained
async def run(
    argv: ListOf[Word],
    *,
    input: Input = None,  # noqa: A002 - subprocess's own argument
    timeout: float | None = None,  # noqa: ASYNC109 - as in containerkit.run: the command is killed
    check: bool = False,
    capture_output: bool = True,
    output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
    init: bool = True,
    on_stdout: Listener | None = None,
    on_stderr: Listener | None = None,
    **more: Unpack[AnyLaunchOptions],
) -> CompletedProcess[Any]:
    """Run one command in a new container and wait for its end, as :func:`containerkit.run` does.

    Args:
        argv: the program, which is looked up inside, and its arguments.
        input: its standard input (default: empty, /dev/null).
        text, encoding, errors: as in :func:`subprocess.run`; text is UTF-8 unless an encoding is given.
        options: see :class:`containerkit.options.OneShotOptions`.

    Raises:
        SpecError, SetupError, ContainerTimeout, ExitError: as there.
        CancelledError: the task was cancelled; the command is dead and reaped, and its container has ended.
    """

    def start(streams: dict[str, Any]) -> Made:
        return begin(argv, {key: value for key, value in streams.items() if key not in _STREAMS}, streams, init=init)

    return await attended(
        start,
        more,
        given=input,
        timeout_s=timeout,
        check=check,
        capture=capture_output,
        limit=output_limit_bytes,
        told=told_to(on_stdout, on_stderr, kept=capture_output),
    )


async def attended(
    start: Start,
    more: Mapping[str, Any],
    *,
    given: Input,
    timeout_s: float | None,
    check: bool,
    capture: bool,
    limit: int | None,
    told: Told | None = None,
) -> CompletedProcess[Any]:
    """Do the work of ``run`` for a command that ``start`` starts. The other arguments are those of ``run``.

    Raises:
        SpecError, SetupError, ContainerTimeout, ExitError, CancelledError: as there.
    """
    terms = Terms.of(timeout_s, limit, check=check, callbacks=None if told is None else told.rest)
    options = run_streams(given, more, capture=capture, callbacks=None if told is None else told.rest)
    fed = _encoded(given, more)
    made = await undone(in_thread(start, options), dispose)
    callbacks = LineCallbacks(made[0], fed, limit)
    if told is not None:
        callbacks = LineCallbacks(made[0], fed, limit if capture else None, told.listeners(more))
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    try:
        await callbacks.until(deadline)
    except BaseException:
        ended = in_thread(dispose, made)
        await settled(ended)
        ended.result()
        raise
    try:
        return await undone(in_thread(_completed, made, terms, callbacks.heard, deadline))
    finally:
        if told is not None:
            told.finish()


class Told:
    """Passes the lines of a command to listeners in the event loop.

    Args:
        callbacks: the listeners.
    """

    def __init__(self, callbacks: Listening) -> None:
        self._calls = callbacks.on_stdout, callbacks.on_stderr
        self._told = [0, 0]
        self._all: tuple[list[Any], list[Any]] = ([], [])
        out, err = (each.append if call else None for each, call in zip(self._all, self._calls, strict=True))
        self.rest = Listening(out, err, callbacks.kept)

    def listeners(self, more: Mapping[str, Any]) -> Any:
        """Return functions that receive the pieces of both streams."""
        text = Text.of(more.get("text"), more.get("encoding"), more.get("errors"))
        return tuple(
            Lines(partial(self._tell, number), text).feed if self._calls[number] else None for number in (0, 1)
        )

    def _tell(self, number: int, line: Any) -> None:
        self._told[number] += 1
        call = self._calls[number]
        assert call is not None
        call(line)

    def finish(self) -> None:
        """Pass on the lines that arrived after the loop had stopped reading."""
        for number, lines in enumerate(self._all):
            for line in lines[self._told[number] :]:
                self._tell(number, line)


def told_to(on_stdout: Listener | None, on_stderr: Listener | None, *, kept: bool) -> Told | None:
    """Return an object that passes lines to the listeners, or None without listeners.

    Raises:
        SpecError: a listener is not callable.
    """
    callbacks = Listening.of(on_stdout, on_stderr, kept=kept)
    return None if callbacks is None else Told(callbacks)


def _completed(made: Made, terms: Terms, heard: tuple[bytes, bytes], deadline: float | None) -> CompletedProcess[Any]:
    process, container = made
    try:
        return complete(process, None, terms, heard=heard, deadline=deadline)
    finally:
        if container is not None:
            container.stop()


def _encoded(given: Input, more: Mapping[str, Any]) -> bytes:
    if isinstance(given, str):
        text = Text.of(True, more.get("encoding"), more.get("errors"))
        assert text is not None
        return given.encode(*text)
    return bytes(given or b"")


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    init: bool = True,
    line_limit_bytes: int = LINE_LIMIT_BYTES,
    **options: Unpack[LaunchOptions],
) -> Opening[AsyncTextProcess]: ...


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    init: bool = True,
    line_limit_bytes: int = LINE_LIMIT_BYTES,
    **options: Unpack[LaunchOptions],
) -> Opening[AsyncTextProcess]: ...


@overload
def popen(
    argv: ListOf[Word],
    *,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    init: bool = True,
    line_limit_bytes: int = LINE_LIMIT_BYTES,
    **options: Unpack[LaunchOptions],
) -> Opening[AsyncProcess]: ...


@explained
def popen(
    argv: ListOf[Word],
    *,
    init: bool = True,
    line_limit_bytes: int = LINE_LIMIT_BYTES,
    **options: Unpack[AnyLaunchOptions],
) -> Opening[Any]:
    """Start one command in a new container: ``p = await popen(...)``, or ``async with popen(...) as p:``.

    Args:
        argv: the program, which is looked up inside, and its arguments.
        init: as for :func:`containerkit.run` (default True).
        line_limit_bytes: the maximum length of a line that is read (default 65536).
        options: see :class:`containerkit.options.AnyLaunchOptions`.

    Its streams contain bytes (:class:`AsyncProcess`), or str with ``text``, ``encoding`` or ``errors``
    (:class:`AsyncTextProcess`). The container ends with the command.

    Raises:
        SpecError, SetupError: as for :func:`containerkit.run`, when the result is awaited.
        CancelledError: the task was cancelled; nothing is running or left behind.
    """
    return Opening(opened(lambda more: begin(argv, more, {}, init=init), options, line_limit_bytes))


async def opened(start: Start, options: Mapping[str, Any], limit: int) -> Attended[Any]:
    """Return a command that ``start`` starts. The other arguments are those of ``popen``.

    Raises:
        SpecError, SetupError, CancelledError: as there.
    """
    text = Text.of(options.get("text"), options.get("encoding"), options.get("errors"))
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise SpecError(f"line_limit_bytes: {limit!r} is not a number of bytes")
    # The streams of the process contain bytes; the event loop decodes them.
    options = {name: value for name, value in options.items() if name not in ("text", "encoding", "errors")}
    made = await undone(in_thread(start, options), dispose)
    kind: type[Attended[Any]] = AsyncProcess if text is None else AsyncTextProcess
    return await kind.of(made, limit, text)

"""A process in a container, for asyncio: its streams, its end."""

from __future__ import annotations

import asyncio
import os
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any, AnyStr, Final, Generic, Self, TypeVar

from containerkit.aio.calling import in_thread, settled, undone
from containerkit.aio.streams import Source, Writer
from containerkit.aio.text import TextReader, TextWriter
from containerkit.aio.waiting import readable
from containerkit.errors import SpecError
from containerkit.process.communicate import check_input

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator
    from types import TracebackType

    from containerkit.container.lifecycle import Container
    from containerkit.process.process import Process
    from containerkit.process.result import Cause, Usage
    from containerkit.process.stdio import Text

__all__ = ["LINE_LIMIT_BYTES", "AsyncProcess", "AsyncTextProcess", "Opening", "dispose"]

LINE_LIMIT_BYTES: Final = 2**16
"""The maximum length of a line in bytes, and half of the read-ahead, as in asyncio."""


def dispose(made: tuple[Process[Any], Container | None]) -> None:
    """Kill a command and the container that was made for it, and wait until both have ended."""
    process, container = made
    try:
        process.close()
    finally:
        if container is not None:
            container.stop()


class Attended(Generic[AnyStr]):
    """A process that the event loop watches, with streams of bytes or text.

    Attributes:
        stdin, stdout, stderr: its streams; None if it is not a pipe.
    """

    stdin: Any
    stdout: Any
    stderr: Any

    def __init__(self, process: Process[Any], container: Container | None = None) -> None:
        self.stdin = self.stdout = self.stderr = None
        self._process = process
        self._container = container
        self._input: Writer | None = None
        self._outputs: list[Source] = []
        self._ending: asyncio.Task[int] | None = None
        self._closed = False

    @classmethod
    async def of(
        cls,
        made: tuple[Process[Any], Container | None],
        line_limit_bytes: int = LINE_LIMIT_BYTES,
        text: Text | None = None,
    ) -> Self:
        """Take over a started command, and its own container, if it has one.

        Args:
            made: the command, and the container to stop at its end.
            line_limit_bytes: the maximum length of a line.
            text: the encoding of its streams (default: they contain bytes).

        Raises:
            CancelledError: the task was cancelled; the command is dead and reaped.
        """
        self = cls(*made)
        try:
            self._connect(line_limit_bytes, text)
        except BaseException:
            await self.aclose()
            raise
        return self

    def _connect(self, limit: int, text: Text | None) -> None:
        """Watch copies of its pipes, and close the originals. The descriptors of a terminal stay open."""
        process = self._process
        if process.stdin is not None:
            self._input = Writer.of(process.stdin.fileno())
            self.stdin = self._input if text is None else TextWriter(self._input, text)
        if process.stdout is not None:
            self.stdout = self._output(process.stdout.fileno(), limit, text)
        if process.stderr is not None:
            self.stderr = self._output(process.stderr.fileno(), limit, text)
        if not process.terminal:
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()

    def _output(self, fd: int, limit: int, text: Text | None) -> asyncio.StreamReader | TextReader:
        source = Source.of(fd, limit)
        self._outputs.append(source)
        return source.reader if text is None else TextReader(source.reader, text, limit)

    def __repr__(self) -> str:
        return f"<Async{repr(self._process)[1:]}"

    # --- Facts

    @property
    def args(self) -> list[str]:
        """Its argv."""
        return self._process.args

    @property
    def pid(self) -> int:
        """Its pid on the host."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or the negative signal number; None until it was waited for."""
        return self._process.returncode

    @property
    def usage(self) -> Usage | None:
        """Its resource usage; None until it was waited for."""
        return self._process.usage

    @property
    def cause(self) -> Cause | None:
        """Why it ended; None until it was waited for."""
        return self._process.cause

    # --- Signals

    def send_signal(self, number: int) -> None:
        """Send a signal. Does nothing if it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end: SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """End it: SIGKILL."""
        self._process.kill()

    # --- Waiting

    async def wait(self) -> int:
        """Wait for the end. Any number of tasks may wait.

        Returns:
            The exit status, or the negative signal number.

        Cancelling the task, as ``asyncio.wait_for(p.wait(), 5)`` does, only ends the wait.
        """
        if self._process.returncode is not None and self._container is None:
            return self._process.returncode
        if self._ending is None or self._ending.cancelled():
            self._ending = asyncio.get_running_loop().create_task(self._end())
        return await asyncio.shield(self._ending)

    async def _end(self) -> int:
        if self._process.returncode is None:
            copy = self._process.watched(lambda fd: os.dup(fd) if fd >= 0 else -1)
            try:
                await readable(copy)
            finally:
                if copy >= 0:
                    os.close(copy)
        return await undone(in_thread(self._reap))

    def _reap(self) -> int:
        status = self._process.wait()
        container, self._container = self._container, None
        if container is not None:
            container.stop()
        return status

    async def communicate(self, input: AnyStr | None = None) -> tuple[AnyStr | None, AnyStr | None]:  # noqa: A002 - asyncio's own argument
        """Send input, read both outputs, and wait.

        Args:
            input: bytes for its stdin, or str if its streams are text; it is closed afterwards.

        Returns:
            Its output on stdout and stderr; None if that is not a pipe. It ends with the process: others that it left
            running may keep the pipes open.

        Raises:
            SpecError: the input has another type, or there is no pipe for it; the command is dead and reaped.
            CancelledError: the task was cancelled; it is dead and reaped.
        """
        reading = [asyncio.ensure_future(reader.read()) for reader in (self.stdout, self.stderr) if reader is not None]
        try:
            await self._feed(input)
            await self.wait()
            for source in self._outputs:
                source.read_all()
            heard = [await each for each in reading]
        except BaseException:
            for each in reading:
                each.cancel()
            await self.aclose()
            raise
        out = heard.pop(0) if self.stdout is not None else None
        return out, heard.pop(0) if self.stderr is not None else None

    async def _feed(self, given: AnyStr | None) -> None:
        stdin = self.stdin
        if stdin is None:
            if given:
                raise SpecError("input: stdin is not a pipe")
            return
        check_input(given, text=isinstance(stdin, TextWriter))
        feeding = asyncio.ensure_future(self._write(stdin, given))
        ended = asyncio.ensure_future(self.wait())
        try:  # it may end without reading
            await asyncio.wait((feeding, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            feeding.cancel()
            ended.cancel()
            stdin.close()

    @staticmethod
    async def _write(stdin: Any, given: Any) -> None:
        with suppress(BrokenPipeError):  # it closed its stdin: not an error, as in communicate of subprocess
            if given:
                stdin.write(given)
                await stdin.drain()
        stdin.close()

    # --- The end

    async def aclose(self) -> None:
        """Kill it if it is running, wait for it, and close its streams. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._close_streams()
        container, self._container = self._container, None
        cancelled = await settled(ended := in_thread(dispose, (self._process, container)))
        if self._ending is not None and not self._ending.done():
            cancelled = await settled(self._ending) or cancelled
        ended.result()
        if cancelled is not None:
            raise cancelled

    def _close_streams(self) -> None:
        for source in self._outputs:
            source.close()
        if self._input is not None:
            self._input.abort()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                if self.stdin is not None:
                    self.stdin.close()
                await self.wait()
        finally:
            await self.aclose()

    def __del__(self) -> None:
        if self._closed:
            return
        self._close_streams()
        if self._process.returncode is None:
            warnings.warn(
                f"{self!r} was never waited for: use 'async with', or aclose()", ResourceWarning, stacklevel=2
            )
            dispose((self._process, self._container))


class AsyncProcess(Attended[bytes]):
    """A process in a container, returned by ``popen`` of this package.

    It resembles :class:`asyncio.subprocess.Process`. Streams contain bytes. All signals are sent through a pidfd.
    ``async with`` waits for it at the end, and kills it first after an exception.

    Attributes:
        stdin: the writer of its standard input; None if that is not a pipe.
        stdout, stderr: the readers of its output, also for ``async for line in p.stdout``; None if not a pipe.
    """

    stdin: Writer | None
    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None


class AsyncTextProcess(Attended[str]):
    """A process with text streams, returned by ``popen(..., text=True)``; otherwise like :class:`AsyncProcess`.

    Attributes:
        stdin: the writer of its standard input, for str; None if that is not a pipe.
        stdout, stderr: the readers of its output as str, also for ``async for line in p.stdout``; None if not a pipe.
    """

    stdin: TextWriter | None
    stdout: TextReader | None
    stderr: TextReader | None


Awaited = TypeVar("Awaited", bound=Attended[Any])


class Opening(Generic[Awaited]):
    """The result of ``popen`` before the start: ``p = await popen(...)``, or ``async with popen(...) as p:``."""

    def __init__(self, start: Coroutine[Any, Any, Awaited]) -> None:
        self._start = start
        self._process: Awaited | None = None

    def __await__(self) -> Generator[Any, None, Awaited]:
        """Start it."""
        return self._start.__await__()

    async def __aenter__(self) -> Awaited:
        """Start it. ``__aexit__`` waits for its end."""
        self._process = await self._start
        return self._process

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._process is not None:
            await self._process.__aexit__(kind, value, traceback)

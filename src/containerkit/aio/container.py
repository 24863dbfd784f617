"""Containers for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from containerkit.aio.calling import call, in_thread, undone
from containerkit.aio.process import LINE_LIMIT_BYTES, AsyncProcess, AsyncTextProcess, Opening
from containerkit.aio.running import attended, opened, told_to
from containerkit.aio.waiting import readable
from containerkit.container.lifecycle import Container
from containerkit.errors import SpecError, StateError
from containerkit.meanings import explained
from containerkit.process.process import OUTPUT_LIMIT_BYTES

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Iterable
    from types import TracebackType
    from typing import Unpack

    from containerkit.cgroup import Limits
    from containerkit.cgroup.events import EventKind, Events
    from containerkit.cgroup.pressure import PressureTrigger
    from containerkit.cgroup.stats import Stats
    from containerkit.container.live import State
    from containerkit.container.log import Log
    from containerkit.options import (
        AnyPopenOptions,
        ContainerOptions,
        Input,
        Listener,
        ListOf,
        PopenOptions,
        RunOptions,
        Word,
    )
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.rootfs import RootFS

__all__ = ["AsyncContainer", "AsyncFiles"]


@explained
class AsyncContainer:
    """A container for asyncio. It runs from the start of ``async with`` (or :meth:`start`) to its end.

    ::

        async with AsyncContainer() as c:
            done = await c.run(["python3", "-c", "print(6 * 7)"], text=True)

    Args:
        rootfs: the root filesystem (default ``RootFS.host()``).
        id: a unique name of at most 64 letters, digits and ``_.-`` (default: random).
        options: see :class:`containerkit.options.ContainerOptions`.

    Raises:
        SpecError: a value is invalid; nothing was made.

    Attributes:
        container: the same container with blocking methods.
    """

    def __init__(
        self,
        rootfs: RootFS | None = None,
        *,
        id: str | None = None,  # noqa: A002 - as in Container
        **options: Unpack[ContainerOptions],
    ) -> None:
        self.container = Container(rootfs, id=id, **options)

    @classmethod
    def of(cls, container: Container) -> Self:
        """Wrap a container that was created in another way: from a template, by attaching, by a restore.

        Args:
            container: the container. ``async with`` starts it if it is not running, and stops it at the end.
        """
        self = cls.__new__(cls)
        self.container = container
        return self

    def __repr__(self) -> str:
        return f"<Async{repr(self.container)[1:]}"

    @property
    def id(self) -> str:
        """Its name."""
        return self.container.id

    @property
    def state(self) -> State:
        """Its state, as in :attr:`Container.state`."""
        return self.container.state

    @property
    def pid(self) -> int:
        """The pid of its init on the host.

        Raises:
            StateError: it is not running.
        """
        return self.container.pid

    # --- Life

    async def start(self) -> Self:
        """Start it.

        Raises:
            StateError, SetupError, SpecError: as for :meth:`Container.start`.
            CancelledError: the task was cancelled; the container is gone.
        """
        await undone(in_thread(self.container.start), Container.stop)
        return self

    async def stop(self, grace_s: float = 0, *, stop_signal: int | None = None) -> None:
        """Kill all its processes and wait for their end. May be called twice.

        Args:
            grace_s, stop_signal: as for :meth:`Container.stop`.

        A cancellation takes effect after it has ended.
        """
        stop = self.container.stop
        if grace_s:
            await call(stop, grace_s, stop_signal=stop_signal)
        else:
            await undone(in_thread(stop, stop_signal=stop_signal))

    async def __aenter__(self) -> Self:
        if self.container.state == "created":
            await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def wait(self) -> None:
        """Wait until the container has ended for any reason.

        Raises:
            StateError: it is not running.
        """
        await readable(self.container.fileno())

    async def pause(self) -> None:
        """Freeze all of its processes, as :meth:`Container.pause` does.

        Raises:
            StateError, UnsupportedError: as there.
            CancelledError: the task was cancelled; the container is not paused.
        """
        await undone(in_thread(self.container.pause), lambda _: self.container.resume())

    async def resume(self) -> None:
        """Let its processes continue.

        Raises:
            StateError: it is not paused.
        """
        await undone(in_thread(self.container.resume))

    async def update(self, limits: Limits) -> None:
        """Change the limits while it runs, as :meth:`Container.update` does.

        Raises:
            StateError, SpecError, UnsupportedError, SetupError: as there.
        """
        await undone(in_thread(self.container.update, limits))

    # --- Facts

    async def stats(self) -> Stats:
        """Return the statistics of every controller of the container's control group.

        Raises:
            StateError: it is not running, or has no ``limits`` and so no control group.
        """
        return await undone(in_thread(self.container.stats))

    async def every(self, seconds: float) -> AsyncIterator[Stats]:
        """Yield :meth:`stats` repeatedly, until the container has ended.

        Args:
            seconds: the interval, more than 0.

        Raises:
            SpecError: an invalid interval.
            StateError: it was never started, or has no ``limits``.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
            raise SpecError(f"every: {seconds!r} is not a number of seconds above 0")
        yield await self.stats()
        while True:
            await asyncio.sleep(seconds)
            try:
                told = await self.stats()
            except StateError:
                return
            yield told

    def events(self, kinds: Iterable[EventKind] | None = None, *, triggers: Iterable[PressureTrigger] = ()) -> Events:
        """Return the future events of its control group: ``async for event in c.events():``.

        Args:
            kinds, triggers: as for :meth:`CGroup.events`.

        It ends with the container. It owns descriptors: use ``with``, or ``close()`` if you leave the loop early.

        Raises:
            StateError: it was never started, or has no ``limits`` and so no control group.
            UnsupportedError: the kernel does not report such events.
        """
        group = self.container.cgroup
        if group is None:
            raise StateError(f"{self!r}: it has no control group; pass limits=Limits(...)")
        return group.events(kinds=kinds, triggers=triggers)

    @property
    def log(self) -> Log:
        """A file that its commands can write to, as :attr:`Container.log`.

        Raises:
            StateError: it is not running.
        """
        return self.container.log

    async def logs(self, *, tail: int | None = None) -> str:
        """Return the content of :attr:`log`, as :meth:`Container.logs` does.

        Args:
            tail: at most so many lines, the latest (default: all).

        Raises:
            SpecError: an invalid number of lines.
        """
        return await call(self.container.logs, tail=tail)

    @property
    def files(self) -> AsyncFiles:
        """The files inside."""
        return AsyncFiles(self.container)

    # --- Commands

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        line_limit_bytes: int = LINE_LIMIT_BYTES,
        **options: Unpack[PopenOptions],
    ) -> Opening[AsyncTextProcess]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        line_limit_bytes: int = LINE_LIMIT_BYTES,
        **options: Unpack[PopenOptions],
    ) -> Opening[AsyncTextProcess]: ...

    @overload
    def popen(
        self,
        argv: ListOf[Word],
        *,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        line_limit_bytes: int = LINE_LIMIT_BYTES,
        **options: Unpack[PopenOptions],
    ) -> Opening[AsyncProcess]: ...

    @explained
    def popen(
        self, argv: ListOf[Word], *, line_limit_bytes: int = LINE_LIMIT_BYTES, **options: Unpack[AnyPopenOptions]
    ) -> Opening[Any]:
        """Start a command in the container: ``p = await c.popen(...)``, or ``async with c.popen(...) as p:``.

        Args:
            argv: the program, which is looked up inside, and its arguments.
            line_limit_bytes: the maximum length of a line that is read (default 65536).
            options: see :class:`containerkit.options.AnyPopenOptions`.

        Its streams contain bytes or str, as for :func:`containerkit.aio.popen`.

        Raises:
            StateError, SpecError, SetupError: as for :meth:`Container.popen`, when the result is awaited.
            CancelledError: the task was cancelled; the command is dead and reaped.
        """
        popen = self.container.popen
        return Opening(opened(lambda more: (popen(argv, **more), None), options, line_limit_bytes))

    @overload
    async def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    async def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    async def run(
        self,
        argv: ListOf[Word],
        *,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[RunOptions],
    ) -> CompletedProcess[bytes]: ...

    @explained
    async def run(
        self,
        argv: ListOf[Word],
        *,
        input: Input = None,  # noqa: A002 - subprocess's own argument
        timeout: float | None = None,  # noqa: ASYNC109 - as in Container.run: the command is killed
        check: bool = False,
        capture_output: bool = True,
        output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
        on_stdout: Listener | None = None,
        on_stderr: Listener | None = None,
        **more: Unpack[AnyPopenOptions],
    ) -> CompletedProcess[Any]:
        """Run a command in the container and wait for its end, as :meth:`Container.run` does.

        Args:
            argv: the program and its arguments.
            input: its standard input (default: empty, /dev/null).
            text, encoding, errors: as in :func:`subprocess.run`; text is UTF-8 unless an encoding is given.
            options: see :class:`containerkit.options.RunOptions`.

        Raises:
            StateError, SpecError, SetupError, ContainerTimeout, ExitError: as there.
            CancelledError: the task was cancelled; the command is dead and reaped.
        """
        popen = self.container.popen
        return await attended(
            lambda streams: (popen(argv, **streams), None),
            more,
            given=input,
            timeout_s=timeout,
            check=check,
            capture=capture_output,
            limit=output_limit_bytes,
            told=told_to(on_stdout, on_stderr, kept=capture_output),
        )

    exec = popen


class AsyncFiles:
    """The files inside a container, for asyncio. Use :func:`containerkit.aio.call` for other methods of ``files``.

    Each method raises the same errors as that of :attr:`Container.files`.
    """

    def __init__(self, container: Container) -> None:
        self._files = container.files

    async def read(self, path: str) -> bytes:
        """Return the content of a file."""
        return await call(self._files.read, path)

    async def read_text(self, path: str, encoding: str = "utf-8") -> str:
        """Return the content of a file as text."""
        return await call(self._files.read_text, path, encoding)

    async def write(self, path: str, content: bytes | str, *, mode: int = 0o644) -> None:
        """Write a file. A new file gets the permission bits ``mode``."""
        await call(self._files.write, path, content, mode=mode)

    async def listdir(self, path: str = "/") -> list[str]:
        """Return the names in a directory."""
        return await call(self._files.listdir, path)

    async def exists(self, path: str) -> bool:
        """Return whether a path exists."""
        return await call(self._files.exists, path)

    async def put(self, source: str | os.PathLike[str], target: str) -> None:
        """Copy a file or directory of the host into the container."""
        await call(self._files.put, source, target)

    async def get(self, source: str, target: str | os.PathLike[str]) -> tuple[str, ...]:
        """Copy a file or directory out of the container. Return the paths that were not copied."""
        return await call(self._files.get, source, target)

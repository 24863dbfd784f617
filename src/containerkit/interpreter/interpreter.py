"""The interpreter, which runs code piece by piece, with snapshots."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Final, Self

from containerkit.container.captured import Terms
from containerkit.descriptors import Closing
from containerkit.errors import SpecError, StateError
from containerkit.interpreter.branch import Branch, LostError, Talk, check_open
from containerkit.interpreter.execution import Execution, ExecutionCause, ExecutionError, Logs, Result
from containerkit.interpreter.home import Home
from containerkit.process.result import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from containerkit.container.files import Files
    from containerkit.container.lifecycle import Container
    from containerkit.container.template import Template
    from containerkit.options import ContainerOptions, ListOf, Word
    from containerkit.spec.rootfs import RootFS

__all__ = ["Interpreter", "Snapshot"]

OUTPUT_LIMIT_BYTES: Final = 16 * 1024 * 1024
_GRACE_S: Final = 1.0
"""The time that interrupted code has to end after its timeout, in seconds."""


class Interpreter(Closing):
    """Python in a container. Variables are kept from one piece of code to the next.

    ::

        with Interpreter(limits=Limits(memory="512M")) as i:
            i.run_code("x = 40")
            before = i.snapshot()
            i.run_code("x = None")
            i.rollback(before)
            assert i.run_code("x + 2").text == "42"

    One piece of code runs at a time; other threads wait. The container has no network unless ``network=`` is given;
    ``egress=`` then restricts what it can reach.

    Args:
        root: the root filesystem, or a template (default ``RootFS.host()``).
        python: the interpreter inside, 3.9 or later (default ``"python3"``).
        preload: modules that are imported once, before any code (default none).
        workspace: the working directory. It is in memory, and snapshots include it (default ``"/workspace"``).
        extra_env: variables (default none).
        timeout: the default timeout of a piece of code, in seconds (default: no limit).
        output_limit_bytes: how much of the output and results of a piece of code is kept (default 16 MiB).
        options: see :class:`containerkit.options.ContainerOptions`.

    With a template, no options can be given.

    Raises:
        SpecError: an invalid value. Nothing was made.
        SetupError: the container or Python did not start. The message has what Python wrote. Nothing is left behind.
    """

    def __init__(
        self,
        root: Template | RootFS | None = None,
        *,
        python: str = "python3",
        preload: ListOf[str] = (),
        workspace: str = "/workspace",
        extra_env: Mapping[str, Word] | None = None,
        timeout: float | None = None,
        output_limit_bytes: int = OUTPUT_LIMIT_BYTES,
        **options: Unpack[ContainerOptions],
    ) -> None:
        Terms.of(timeout, output_limit_bytes, check=False)  # refuses invalid numbers
        self._timeout = timeout
        self._limit = output_limit_bytes
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._closed = False
        self._current: Branch | None = None
        self._home = Home(root, python, preload, workspace, extra_env, options)
        try:
            self._current = self._home.fresh()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Interpreter {'closed' if self._closed else 'open'} in {self.container!r}>"

    @property
    def container(self) -> Container:
        """The container."""
        return self._home.container

    @property
    def files(self) -> Files:
        """The files inside: ``i.files.write("/workspace/data.csv", ...)``."""
        return self.container.files

    @property
    def workspace(self) -> str:
        """The working directory inside."""
        return self._home.workspace

    # --- Running

    def run_code(
        self,
        code: str,
        *,
        timeout: float | None = None,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
        on_result: Callable[[Result], object] | None = None,
    ) -> Execution:
        """Run a piece of code. An exception in the code is part of the result and is not raised here.

        When the timeout expires, the code gets KeyboardInterrupt. If it does not end within a second, it is killed and
        all variables are lost. The next piece then starts in a fresh process.

        Args:
            code: one or more statements. ``await`` is allowed at the top level.
            timeout: in seconds (default: that of the interpreter).
            on_stdout, on_stderr: functions that are called with each piece of text when it is written.
            on_result: a function that is called with each result that is shown before the end.

        Returns:
            The results, the output, the error, and why it ended.

        Raises:
            StateError: it was closed, or the container has stopped.
            SpecError: an invalid value.

        An exception in one of the functions ends the code and is raised here. All variables are then lost, except after
        KeyboardInterrupt that the code heeds as well.
        """
        if not isinstance(code, str):
            raise SpecError(f"code: must be a string, not {type(code).__name__}")
        if timeout is not None:
            Terms.of(timeout, None, check=False)  # as above
        seconds = self._timeout if timeout is None else timeout
        with self._lock:
            self._check_open()
            if self._current is None:
                self._current = self._home.fresh()
            began = time.monotonic()
            deadline = None if seconds is None else began + seconds
            show = None if on_result is None else (lambda shown: on_result(Result(data=shown)))
            talk = Talk(self._current, on_stdout, on_stderr, show, self._limit)
            kills = self._oom_kills()
            try:
                cause, lost = self._converse(self._current, talk, code, deadline)
                talk.finish()
            except BaseException as error:  # of a callback or a signal handler
                if not isinstance(error, KeyboardInterrupt) or not self._heeds(talk):
                    self._give_up()
                raise
            if lost:
                self._give_up()
            if cause == "lost" and self._oom_kills() > kills:
                cause = "oom"
            return self._execution(talk, cause, began, lost=lost)

    def _heeds(self, talk: Talk) -> bool:
        """Interrupt the code too, and return whether that has ended it."""
        try:
            self.interrupt()
            return talk.hold(time.monotonic() + _GRACE_S)
        except BaseException:  # noqa: BLE001 - the caller raises the first exception
            return False

    def _converse(self, branch: Branch, talk: Talk, code: str, deadline: float | None) -> tuple[ExecutionCause, bool]:
        try:
            branch.send("run", code, deadline=deadline)
            if talk.hold(deadline):
                return "done", False
            branch.interrupt()
            return "timeout", not talk.hold(time.monotonic() + _GRACE_S)
        except LostError:
            late = deadline is not None and time.monotonic() >= deadline
            return ("timeout" if late else "lost"), True

    def _execution(self, talk: Talk, cause: ExecutionCause, began: float, *, lost: bool) -> Execution:
        answer = talk.answer or {}
        results = [Result(data=shown) for shown in talk.shown]
        main = answer.get("result")
        if isinstance(main, dict):
            results.append(Result(data=main, is_main_result=True))
        out, err = talk.texts
        error = _error(answer.get("error"))
        return Execution(
            results=tuple(results),
            logs=Logs(stdout=out, stderr=err),
            error=error,
            usage=self._usage(answer.get("usage")),
            cause="error" if cause == "done" and error is not None else cause,
            state_lost=lost,
            truncated=talk.truncated,
            duration_s=time.monotonic() - began,
        )

    def _usage(self, told: object) -> Usage:
        names = ("user_us", "system_us", "max_rss_bytes")
        known = told if isinstance(told, dict) else {}
        numbers = {name: known[name] for name in names if isinstance(known.get(name), int)}
        group = self.container.cgroup
        return Usage(**numbers, memory_peak_bytes=None if group is None else group.usage().memory_peak_bytes)

    def _oom_kills(self) -> int:
        group = self.container.cgroup
        return 0 if group is None else group.oom_kills or 0

    def _give_up(self) -> None:
        """Kill the process. The next code runs in a new one."""
        branch, self._current = self._current, None
        if branch is not None:
            branch.close()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt in the running code. May be called from any thread."""
        branch = self._current
        if branch is not None:
            branch.interrupt()

    # --- State

    def reset(self) -> None:
        """Delete all variables. Files stay."""
        with self._lock:
            self._check_open()
            self._give_up()
            self._current = self._home.fresh()

    def snapshot(self) -> Snapshot:
        """Save variables, modules and the files of the workspace.

        Memory is shared with the running state until one of them writes to it. Threads of the code and files outside
        the workspace are not saved.

        Raises:
            StateError: it was closed, or the last code lost all state.
            SetupError: not enough memory or processes.
        """
        with self._lock:
            place = self._home.save_place()
            return Snapshot(self._forked(save=place), self._home, place)

    def rollback(self, snapshot: Snapshot) -> None:
        """Restore a snapshot. It can be restored again later.

        Args:
            snapshot: of this interpreter, or one that has been forked from it or that it was forked from.

        Raises:
            StateError: the snapshot was closed, its process was ended from inside, or it is of another container.
        """
        with self._lock:
            self._check_open()
            if snapshot.home is not self._home:
                raise StateError("rollback: the snapshot is of another container")
            check_open(snapshot.branch, "rollback: the snapshot")
            try:
                branch = snapshot.branch.fork(restore=snapshot.place)
            except LostError as error:
                raise StateError(f"rollback: the snapshot is lost: {error}") from None
            self._give_up()
            self._current = branch

    def fork(self) -> Interpreter:
        """Return another interpreter with a copy of this one's variables, in the same container.

        Files and limits are shared. The container ends when the last of its interpreters is closed.

        Raises:
            StateError: it was closed, or there is no state.
        """
        with self._lock:
            branch = self._forked()
            other = object.__new__(type(self))
            other.__dict__.update(self.__dict__, _lock=threading.RLock(), _current=branch)
            self._home.enter()
            return other

    def _forked(self, **more: str) -> Branch:
        self._check_open()
        if self._current is None:
            self._current = self._home.fresh()
        try:
            return self._current.fork(**more)
        except LostError as error:
            raise StateError(f"{self!r}: it can't be forked: {error}") from None

    # --- Life

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("interpreter: it was closed")

    def close(self) -> None:
        """End it, and with the last interpreter the container. May be called twice. Does nothing in a forked child."""
        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        self._give_up()
        self._home.leave()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __del__(self) -> None:
        home = getattr(self, "_home", None)
        if home is not None and not self._closed and self._owner == os.getpid() and not sys.is_finalizing():
            warnings.warn(f"{self!r} was never closed: use 'with', or close()", ResourceWarning, stacklevel=2)
            self.close()


class Snapshot(Closing):
    """A saved state, made by :meth:`Interpreter.snapshot`.

    It is a waiting process. It ends with the container, or by :meth:`close`.
    """

    def __init__(self, branch: Branch, home: Home, place: str) -> None:
        self.branch = branch
        self.home = home
        self.place = place

    def close(self) -> None:
        """Delete it. May be called twice."""
        if self.branch.is_open:
            self.branch.close()
            self.home.remove(self.place)

    def __del__(self) -> None:
        self.branch.close()


def _error(told: object) -> ExecutionError | None:
    if not isinstance(told, dict):
        return None
    name, value, traceback = (str(told.get(field, "")) for field in ("name", "value", "traceback"))
    return ExecutionError(name=name, value=value, traceback=traceback)

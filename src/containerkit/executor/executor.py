"""A :class:`concurrent.futures.Executor` whose tasks run in containers."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections import deque
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar

from containerkit.container.captured import Terms
from containerkit.errors import ContainerError, OutOfMemory, SetupError, SpecError
from containerkit.executor._calling import Shown, dumped, shown_directories
from containerkit.executor.errors import RemoteError, TaskError, TaskTimeout, WorkerLost
from containerkit.executor.messages import EndedError, OverdueError, receive, send
from containerkit.executor.plain import exception_of, unpacked
from containerkit.executor.zygote import Ended, Forked, Zygote, source_of
from containerkit.meanings import explained
from containerkit.process.process import DEVNULL
from containerkit.spec.mount import Mount
from containerkit.spec.words import sequence
from containerkit.weak import WeakMembers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Unpack

    from containerkit.options import ContainerOptions, ListOf, Stream
    from containerkit.process.result import Cause, Usage
    from containerkit.spec.rootfs import RootFS

__all__ = ["ContainerExecutor", "TaskFuture"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

Isolation = Literal["container", "fork", "worker"]

RESULT_LIMIT_BYTES: Final = 2**31
"""The default limit of the size of a result, in bytes."""

_BY_VALUE: Final = b"cloudpickle.cloudpickle"
"""Near the beginning of what is pickled by value: the module that is imported to unpickle it."""
_FIRST_PART: Final = 65536


class TaskFuture(Future[Result]):
    """The future of a task in a container.

    Attributes:
        usage: the resource usage of its interpreter; None until it is done, and with ``isolation="worker"``.
        cause: why its interpreter ended: ``"exit"``, ``"signal"``, ``"timeout"``, ``"oom"``; None until it is done.
    """

    usage: Usage | None = None
    cause: Cause | None = None


class _Work:
    __slots__ = ("args", "function", "future", "kwargs")

    def __init__(self, future: TaskFuture[Any], function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.future = future
        self.function = function
        self.args = args
        self.kwargs = kwargs

    def clear(self) -> None:
        """Drop the call, because a thread keeps this object for longer than the call takes."""
        del self.future, self.function, self.args, self.kwargs


@explained
class ContainerExecutor(Executor):
    """Runs calls in containers, by default each in a fresh one with a warm interpreter.

    ::

        with ContainerExecutor(4, preload=["numpy"], limits=Limits(memory="512M"), timeout=30) as executor:
            future = executor.submit(function, argument)
            print(future.result(), future.usage)

    Use it like any :class:`concurrent.futures.Executor`, also with ``loop.run_in_executor``. A task can't harm the
    caller or other tasks: if it kills its interpreter, only its own result is lost.

    Args:
        max_workers: the number of tasks that run at a time (default: the number of processors).
        rootfs: the root filesystem of tasks (default ``RootFS.host()`` with the caller's Python and its packages).
        isolation: ``"container"`` for a fresh container for each task (default); ``"fork"`` for a fresh interpreter in
            one container, as PID 1 of a new pid namespace, where tasks share files and network; ``"worker"`` for
            containers that are reused.
        preload: modules that are imported once, before the first task.
        path: directories of the host with modules for the tasks. With the default root they are mounted read-only at
            the same paths, otherwise they must exist inside. Functions of other modules are sent by value, which
            requires cloudpickle.
        python: the interpreter inside (default: the caller's with the default root, else ``python3``).
        timeout: the time limit of a task in seconds, after which its interpreter is killed (default: no limit).
        results: ``"plain"`` for numbers, strings, bytes, containers of them, and numpy arrays, which are read without
            running any code (default); ``"pickle"`` for any object, for trusted tasks: unpickling runs their code in
            the caller.
        result_limit_bytes: the maximum size of a result (default 2 GiB).
        initializer, initargs: called in each interpreter before its first task.
        env: the environment of tasks (default: that of any command).
        stdout, stderr: the output of tasks (default ``DEVNULL``).
        user: the user of tasks, an id or a pair of ids (default: root of the container).
        options: see :class:`containerkit.options.ContainerOptions`.

    Limits apply to each task with ``"container"``, to each worker with ``"worker"``, to all together with ``"fork"``.

    Raises:
        SpecError: a value is invalid; nothing was made.
        SetupError: the interpreter does not start, or a module of ``preload`` can't be imported.

    Side effects, until :meth:`shutdown`: a container with an interpreter, up to ``max_workers`` threads for tasks,
    twice as many that replace used containers, and up to ``max_workers`` containers that are ready.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        rootfs: RootFS | None = None,
        *,
        isolation: Isolation = "container",
        preload: ListOf[str] = (),
        path: ListOf[str | os.PathLike[str]] = (),
        python: str | None = None,
        timeout: float | None = None,
        results: Literal["plain", "pickle"] = "plain",
        result_limit_bytes: int = RESULT_LIMIT_BYTES,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[object, ...] = (),
        env: Mapping[str, str] | None = None,
        stdout: Stream = DEVNULL,
        stderr: Stream = DEVNULL,
        user: int | tuple[int, int] | None = None,
        **options: Unpack[ContainerOptions],
    ) -> None:
        self._max_workers = _number_of_workers(max_workers)  # dask reads this attribute
        Terms.of(timeout, result_limit_bytes, check=False)
        _check_choices(isolation, results, initializer)
        self._isolation = isolation
        self._timeout = timeout
        self._results = results
        self._limit = result_limit_bytes
        self._initializer = None if initializer is None else (initializer, tuple(initargs))
        self._owner = os.getpid()
        self._shown: Shown | None = None
        directories = [os.fspath(each) for each in sequence(path, "path")]
        self._fields: dict[str, Any] = {
            **options, "rootfs": rootfs, "python": python or "python3", "path": directories, "env": env, "user": user,
            "stdout": stdout, "stderr": stderr, "preload": [*sequence(preload, "preload")],
        }  # fmt: skip
        if rootfs is None:
            self._show_python(python, directories)
        self._lock = threading.Lock()
        self._replacing = threading.Lock()  # held for long: submit() does not acquire it
        self._ready: deque[Forked] = deque()
        self._pending: WeakMembers[TaskFuture[Any]] = WeakMembers()
        self._down = False
        self._zygote = self._made_zygote()
        self._retired: list[Zygote] = []
        self._threads = ThreadPoolExecutor(self._max_workers, thread_name_prefix="containerkit executor")
        replacers = 2 * self._max_workers  # they mostly wait for the kernel
        self._replacers = ThreadPoolExecutor(replacers, thread_name_prefix="containerkit executor replaces")
        self._unreplaced = threading.BoundedSemaphore(replacers)

    def _show_python(self, python: str | None, path: list[str]) -> None:
        """Mount the caller's Python, its packages and the directories of its modules read-only."""
        shown = shown_directories(path)
        mounts = [Mount.bind(each, each, readonly=True) for each in shown]
        self._fields["mounts"] = [*mounts, *sequence(self._fields.get("mounts") or (), "mounts")]
        # A virtual environment may be reached through a symlink. Only the target of the symlink is mounted.
        directory, name = os.path.split(sys.executable)
        self._fields["python"] = python or os.path.join(os.path.realpath(directory), name)
        self._shown = Shown([os.path.realpath(each) for each in ("/usr", *shown)])

    def _made_zygote(self) -> Zygote:
        kind: Any = "fork" if self._isolation == "fork" else "container"
        return Zygote(source_of("containerkit.executor._inside_task"), isolation=kind, **self._fields)

    @property
    def max_workers(self) -> int:
        """The number of tasks that run at a time."""
        return self._max_workers

    @staticmethod
    def default_workers() -> int:
        """Return the default number of tasks that run at a time: the number of processors."""
        return _number_of_workers(None)

    # --- As an executor

    def submit(self, fn: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs) -> TaskFuture[Result]:
        """Make a call in a container, and return its future.

        Args:
            fn, args, kwargs: the call; all of it is pickled.

        The future raises the exceptions of the call, and :class:`TaskTimeout`, :class:`WorkerLost`,
        :class:`containerkit.OutOfMemory`, or :class:`TaskError` if the call or its result can't be sent.

        Raises:
            RuntimeError: it was shut down.
        """
        if os.getpid() != self._owner:
            raise RuntimeError(
                "cannot schedule new futures: this executor belongs to the parent of this forked process"
            )
        future: TaskFuture[Result] = TaskFuture()
        with self._lock:
            if self._down:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._threads.submit(self._serve, _Work(future, fn, args, kwargs))
            self._pending.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - Executor's own
        """Accept no more calls, and end after all accepted calls have ended. May be called twice.

        Args:
            wait: return only after the end, when nothing is left behind (default True).
            cancel_futures: cancel calls that have not begun (default False).
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            first, self._down = not self._down, True
            pending = list(self._pending) if cancel_futures else []
        for future in pending:
            future.cancel()
        if first and not wait:
            threading.Thread(target=self._wind_up, name="containerkit executor ends").start()
            self._threads.shutdown(wait=False)
            return
        self._wind_up()

    def _wind_up(self) -> None:
        self._threads.shutdown(wait=True)
        self._replacers.shutdown(wait=True)
        while self._ready:
            self._ready.popleft().close()
        self._zygote.close()
        self._close_retired()

    # --- A task, in a thread

    def _serve(self, work: _Work) -> None:
        future = work.future
        if not future.set_running_or_notify_cancel():
            return
        worker: Forked | None = None
        lasts = False
        try:
            content = (b"p" if self._results == "pickle" else b"d") + self._dumped(work)
            if _BY_VALUE in content[:_FIRST_PART]:
                self._zygote.load("cloudpickle")  # otherwise each fork would import it anew
            worker = self._taken(content)
            value, error = self._answer(worker)
            lasts = self._isolation == "worker"
        except BaseException as problem:  # noqa: BLE001 - raised again in the caller
            value, error = None, self._explained(problem, worker, work)
        if worker is not None and not lasts:
            try:
                self._count(worker.end(), future)
            except BaseException as problem:  # noqa: BLE001 - as above, for example too many open files
                value, error = None, problem if error is None else error
        work.clear()  # the caller may need to hold the only reference to the result
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
        del value, error, future, work
        if worker is not None:
            self._go_on(worker, lasts=lasts)

    def _dumped(self, work: _Work) -> bytes:
        try:
            return dumped((work.function, work.args, work.kwargs), work.function, self._shown)
        except (
            SystemExit,
            KeyboardInterrupt,
            GeneratorExit,
        ) as error:  # it would end the process that asks for the result
            raise TaskError(f"{work.function!r:.100}: it can't be sent: pickling raised {error!r:.100}") from error

    def _taken(self, content: bytes) -> Forked:
        """Return an interpreter that has received the task. Replace one that has ended in the meantime."""
        while True:
            try:
                worker = self._ready.popleft()
            except IndexError:
                break
            try:
                send(worker, b"t", content)
            except EndedError:
                worker.close()
            else:
                return worker
        worker = self._made()
        try:
            send(worker, b"t", content)
        except BaseException:
            worker.close()
            raise
        return worker

    def _made(self) -> Forked:
        worker = self._forked()
        try:
            if self._initializer is not None:
                self._initialize(worker, self._initializer)
        except BaseException:
            worker.close()
            raise
        return worker

    def _forked(self) -> Forked:
        with self._replacing:
            zygote = self._zygote
        try:
            return zygote.fork()
        except SetupError:  # it has ended, or the host has changed; after any other failure the next one fails too
            with self._replacing:
                if self._zygote is zygote:
                    self._zygote = self._made_zygote()
                    self._retired.append(zygote)
                zygote = self._zygote
            return zygote.fork()

    def _close_retired(self) -> None:
        """Close the replaced zygotes that have no forks left."""
        with self._replacing:
            idle = [each for each in self._retired if not each.busy]
            self._retired = [each for each in self._retired if each not in idle]
        for each in idle:
            each.close()

    def _initialize(self, worker: Forked, initializer: tuple[Callable[..., object], tuple[Any, ...]]) -> None:
        send(worker, b"i", dumped(initializer, initializer[0], self._shown))
        _, error = self._answer(worker)
        if error is not None:
            raise TaskError(f"initializer: {type(error).__name__}: {error}") from error

    def _answer(self, worker: Forked) -> tuple[Any, BaseException | None]:
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        kind, content = receive(worker, deadline, self._limit)
        if kind == b"i":
            return None, None
        if kind == b"d":
            return unpacked(content), None
        if kind == b"f":
            return None, exception_of(unpacked(content))
        if self._results == "pickle" and kind == b"p":
            return pickle.loads(content), None  # noqa: S301 - asked for by results="pickle"
        if self._results == "pickle" and kind == b"x":
            error, trace = pickle.loads(content)  # noqa: S301 - as above
            error.__cause__ = RemoteError(trace)
            return None, error
        raise TaskError("a task sent an invalid message")

    def _explained(self, problem: BaseException, worker: Forked | None, work: _Work) -> BaseException:
        """Return the error for the caller, from an exception that occurred in place of an answer."""
        if worker is None or not isinstance(problem, (EndedError, OverdueError)):
            return problem
        name = getattr(work.function, "__qualname__", repr(work.function))
        if isinstance(problem, OverdueError):
            work.future.cause = "timeout"
            assert self._timeout is not None
            return TaskTimeout(f"{name}: it took longer than {self._timeout} seconds, and was killed", self._timeout)
        fate = worker.end()
        assert fate.returncode is not None
        if fate.cause == "oom":
            return OutOfMemory(fate.returncode, [name], cause="oom")
        how = f"exited with {fate.returncode}" if fate.returncode >= 0 else f"was ended by signal {-fate.returncode}"
        lost = f"{name}: its interpreter {how} before there was a result"
        return WorkerLost(lost, fate.cause or "exit", fate.returncode, fate.usage)

    @staticmethod
    def _count(fate: Ended, future: TaskFuture[Any]) -> None:
        future.usage = fate.usage
        if future.cause is None:
            # After its answer we have killed it, so the signal is not its own failure.
            future.cause = fate.cause if fate.cause == "oom" else "exit"

    def _go_on(self, worker: Forked, *, lasts: bool) -> None:
        """Prepare an interpreter for the next task, after the result of the last one was delivered.

        Another thread replaces the used one while this thread runs the next task, because the kernel takes long to
        destroy a container. If many must be replaced, this thread helps.
        """
        if lasts and not self._down:
            self._ready.append(worker)
        elif self._unreplaced.acquire(blocking=False):
            self._replacers.submit(self._replace_behind, worker)
        else:
            self._replace(worker)

    def _replace_behind(self, worker: Forked) -> None:
        try:
            self._replace(worker)
        finally:
            self._unreplaced.release()

    def _replace(self, worker: Forked) -> None:
        worker.close()
        if self._retired:
            self._close_retired()
        if self._down or len(self._ready) >= self._max_workers:
            return
        try:
            self._ready.append(self._made())
        except (ContainerError, OSError):  # the next task tries again, and reports the error
            return


def _number_of_workers(wanted: int | None) -> int:
    if wanted is None:
        return len(os.sched_getaffinity(0))
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise SpecError(f"max_workers must be greater than 0, not {wanted!r}")
    return wanted


def _check_choices(isolation: str, results: str, initializer: object) -> None:
    if isolation not in ("container", "fork", "worker"):
        raise SpecError(f"isolation: {isolation!r} is not one of 'container', 'fork', 'worker'")
    if results not in ("plain", "pickle"):
        raise SpecError(f"results: {results!r} is neither 'plain' nor 'pickle'")
    if initializer is not None and not callable(initializer):
        raise SpecError(f"initializer: {initializer!r} is not callable")

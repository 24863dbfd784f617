"""A backend for joblib: each call of ``Parallel`` is made in a container.

::

    import containerkit.adapters.joblib  # registers "containerkit"
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("containerkit", n_jobs=4, timeout=30):
        Parallel()(delayed(function)(n) for n in range(100))

What is built on joblib, such as scikit-learn, then runs its calls there, too. Needs joblib 1.4 or later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib.parallel import ParallelBackendBase, SequentialBackend, register_parallel_backend

from containerkit.executor import ContainerExecutor

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.executor import TaskFuture

__all__ = ["ContainerBackend"]


class ContainerBackend(ParallelBackendBase):
    """What joblib makes of ``parallel_config("containerkit", ...)``.

    Each call has a container of its own: calls are put together only by ``Parallel(batch_size=...)``.

    Args:
        executor: runs the calls (default: one that is made for each use of ``Parallel``, with ``joblib`` preloaded).
            Its interpreters need joblib: ``preload=["joblib"]`` spares each task the import.
        options: those of :class:`containerkit.executor.ContainerExecutor`, without ``executor``.

    Raises:
        SpecError: a value that can't be, once it is used.
    """

    supports_retrieve_callback = True
    default_n_jobs = -1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        *,
        executor: ContainerExecutor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.parallel: Any = None
        self._given = executor
        self._own: ContainerExecutor | None = None
        self._options = options
        self._futures: set[TaskFuture[Any]] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """Return how many calls run at a time.

        Args:
            n_jobs: as joblib has it: -1 for all processors, or all workers of the executor that was given.

        Raises:
            ValueError: 0.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        most = ContainerExecutor.default_workers() if self._given is None else self._given.max_workers
        wanted = 1 if n_jobs is None else n_jobs
        wanted = max(1, most + 1 + wanted) if wanted < 0 else wanted
        return wanted if self._given is None else min(most, wanted)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Make the executor where none was given, and return how many calls run at a time.

        What joblib tells beside is about memory that its own backends map for their workers.
        """
        self.parallel = parallel
        workers = self.effective_n_jobs(n_jobs)
        if self._given is None and self._own is None:
            self._own = ContainerExecutor(workers, **{"preload": ["joblib"], **self._options})
        return workers

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> TaskFuture[Any]:
        """Let a batch of calls be made in a container."""
        executor = self._given or self._own
        assert executor is not None
        future = executor.submit(func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """Return what a batch came to."""
        return out.result()

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Return what a ``Parallel`` inside of a call uses: it runs one call after the other."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - joblib's own
        """Cancel what has not begun; what runs goes on to its end, and nobody waits for it."""
        for future in list(self._futures):
            future.cancel()
        if not ensure_ready:
            self.terminate()

    def terminate(self) -> None:
        """End the executor that was made here."""
        own, self._own = self._own, None
        if own is not None:
            own.shutdown(cancel_futures=True)


register_parallel_backend("containerkit", ContainerBackend)

"""A backend for joblib that makes each call of ``Parallel`` in a container.

::

    import containerkit.adapters.joblib  # registers "containerkit"
    from joblib import Parallel, delayed, parallel_config

    with parallel_config("containerkit", n_jobs=4, timeout=30):
        Parallel()(delayed(function)(n) for n in range(100))

Libraries that use joblib, such as scikit-learn, then run their calls there too. Needs joblib 1.4 or later.
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
    """The backend for ``parallel_config("containerkit", ...)``.

    Each call runs in a separate container, unless ``Parallel(batch_size=...)`` combines calls.

    Args:
        executor: runs the calls (default: a new one for each use of ``Parallel``, with ``joblib`` preloaded). Its
            interpreters need joblib: ``preload=["joblib"]`` avoids the import in each task.
        options: those of :class:`containerkit.executor.ContainerExecutor`, without ``executor``.

    Raises:
        SpecError: an invalid value, at the first use.
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
        """Return the number of calls that run at a time.

        Args:
            n_jobs: as in joblib: -1 for all processors, or for all workers of the given executor.

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
        """Create the executor if none was given, and return the number of calls that run at a time.

        The other arguments of joblib concern memory that its own backends map for their workers.
        """
        self.parallel = parallel
        workers = self.effective_n_jobs(n_jobs)
        if self._given is None and self._own is None:
            self._own = ContainerExecutor(workers, **{"preload": ["joblib"], **self._options})
        return workers

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> TaskFuture[Any]:
        """Make a batch of calls in a container."""
        executor = self._given or self._own
        assert executor is not None
        future = executor.submit(func)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: TaskFuture[Any]) -> Any:
        """Return the results of a batch."""
        return out.result()

    def get_nested_backend(self) -> tuple[Any, int | None]:
        """Return the backend for a ``Parallel`` inside a call: it runs one call after the other."""
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - joblib's own
        """Cancel calls that have not begun. Running calls continue, without anyone waiting for them."""
        for future in list(self._futures):
            future.cancel()
        if not ensure_ready:
            self.terminate()

    def terminate(self) -> None:
        """Shut down the executor, unless it was given."""
        own, self._own = self._own, None
        if own is not None:
            own.shutdown(cancel_futures=True)


register_parallel_backend("containerkit", ContainerBackend)

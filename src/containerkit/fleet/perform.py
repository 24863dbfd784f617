"""The worker's side of a task: pulls its image once for the node, runs it, and reports its end to the driver."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from containerkit.fleet.engine import Outcome
from containerkit.fleet.errors import FleetError
from containerkit.fleet.link import Link, loads

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from containerkit.container.lifecycle import Container
    from containerkit.fleet.channel import Ticket
    from containerkit.fleet.engine import Task
    from containerkit.process.process import Process
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.rootfs import RootFS

__all__ = ["Attending", "perform", "root_of"]


class Attending:
    """A task on its node, which may be cancelled at any moment.

    Args:
        link: the connection to its driver.
        id: the id of the task.
    """

    def __init__(self, link: Link, id: str) -> None:  # noqa: A002 - the name everywhere else
        self.id = id
        self.link = link
        self._lock = threading.Lock()
        self._cancelled = False
        self._end: Callable[[], object] | None = None

    def check(self) -> None:
        """Check that it was not cancelled.

        Raises:
            FleetError: it was cancelled.
        """
        if self._cancelled:
            raise FleetError(f"task {self.id}: cancelled")

    def ends_by(self, end: Callable[[], object]) -> None:
        """Set the function that ends it from now on. It is called at once if the task was already cancelled."""
        with self._lock:
            self._end = end
            cancelled = self._cancelled
        if cancelled:
            end()

    def cancel(self) -> None:
        """End it, or prevent its beginning."""
        with self._lock:
            self._cancelled = True
            end = self._end
        if end is not None:
            end()

    def call(self, *message: Any) -> None:
        """Accept a call. A plain task has none."""

    def work(self, task: Task) -> Outcome:
        """Run it and return the outcome."""
        from containerkit.errors import ContainerTimeout, ExitError

        began = time.monotonic()
        try:
            result = self._run(task)
        except Exception as error:  # noqa: BLE001 - raised again in the driver
            known = error.result if isinstance(error, (ContainerTimeout, ExitError)) else None
            return Outcome(result=known, error=error, run_s=time.monotonic() - began)
        return Outcome(result=result, run_s=time.monotonic() - began)

    def _run(self, task: Task) -> CompletedProcess[Any]:
        """Do the work of :func:`containerkit.run`, with a command that another thread can end."""
        from containerkit.container.arguments import run_streams
        from containerkit.container.captured import Terms, complete
        from containerkit.container.run import begin
        from containerkit.process.communicate import LineCallbacks
        from containerkit.process.process import OUTPUT_LIMIT_BYTES

        options = dict(task.options)
        init, check = options.pop("init", True), options.pop("check", False)
        capture = options.pop("capture_output", True)
        limit = options.pop("output_limit_bytes", OUTPUT_LIMIT_BYTES)
        callbacks = LineCallbacks.of(*(self._listener(each, task) for each in ("stdout", "stderr")), kept=capture)
        if task.limits is not None:
            options["limits"] = task.limits
        root = root_of(task)
        if root is not None:
            options["rootfs"] = root
        self.check()
        terms = Terms.of(task.timeout, limit, check=check, callbacks=callbacks)
        options = run_streams(task.given, options, capture=capture, callbacks=callbacks)
        process, container = begin(task.argv, options, {}, init=init)
        return self._attended(process, container, lambda: complete(process, task.given, terms))

    def _attended(
        self, process: Process[Any], container: Container | None, finish: Callable[[], CompletedProcess[Any]]
    ) -> CompletedProcess[Any]:
        try:
            self.ends_by(process.kill_all)
            return finish()
        finally:
            if container is not None:
                container.stop()
            self.check()

    def _listener(self, stream: str, task: Task) -> Callable[[Any], None] | None:
        if stream not in task.listened:
            return None
        return lambda line: self.link.write(self.id, stream, line)


def perform(
    ticket: Ticket,
    node: str,
    kind: Callable[[Link, str], Attending] = Attending,
    *,
    tls: Callable[[], ssl.SSLContext] | None = None,
) -> None:
    """Run a task for a driver, if it is still wanted. The engine calls this in a worker.

    Args:
        ticket: where to get the task.
        node: the name of this node.
        kind: the class that runs it.
        tls: returns the certificates of this node, for a driver that requires TLS (default: it has none).

    Raises:
        NodeLost: the driver can't be reached.
    """
    link = Link.to(ticket, tls)
    job = kind(link, ticket.id)
    outcome = Outcome(error=FleetError(f"task {ticket.id}: the worker was interrupted"))
    try:
        content = link.claim(job, node)
        if content is None:
            link.forget(job)
            return
        outcome = job.work(loads(content))
    finally:
        link.end(job, outcome)


def root_of(task: Task) -> RootFS | None:
    """Return the root filesystem of a task. One worker at a time pulls an image that this node does not have.

    Raises:
        ImageError: it is not available.
    """
    if task.image is None:
        return task.rootfs
    from containerkit.fleet.images import pulled

    return pulled(task.image)

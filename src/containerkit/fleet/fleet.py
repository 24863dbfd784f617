"""Commands in containers on many nodes."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import as_completed
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, overload

import attrs

from containerkit.errors import SpecError, StateError
from containerkit.fleet.container import FleetContainer
from containerkit.fleet.describe import check_container, check_fits, check_retries, task_of
from containerkit.fleet.engine import Engine, Task
from containerkit.fleet.flight import Flight
from containerkit.fleet.mapping import mapped
from containerkit.fleet.report import Books
from containerkit.fleet.workers import WorkerEngine
from containerkit.late import load
from containerkit.meanings import explained
from containerkit.process.stdio import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Unpack

    from containerkit.fleet.engine import Node
    from containerkit.fleet.future import FleetFuture
    from containerkit.fleet.options import AnyFleetOptions, FleetOptions, KubernetesOptions
    from containerkit.fleet.report import Report
    from containerkit.options import ContainerOptions, Input, ListOf, Word
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.rootfs import RootFS

__all__ = ["Fleet"]

Item = TypeVar("Item")

_NODES_KNOWN_S: Final = 10.0


class Fleet:
    """Runs commands in containers on the nodes of an engine, each in a fresh container on a free node.

    ::

        with Fleet.ray("auto") as fleet:
            future = fleet.submit(["sort", "/etc/services"], image="debian:12", limits=Limits(cpus=1, memory="1G"))
            print(future.result().returncode, future.node)

    Make one with :meth:`ray`, :meth:`dask`, :meth:`executor` or :meth:`kubernetes`. The engine finds a node with free
    resources for the limits of a task, which are also the limits of its container. The end of ``with`` waits for all
    tasks, and cancels them after an exception. If this program ends in any other way, its containers end too.

    Args:
        engine: distributes the tasks.
        elastic: let tasks that are too large for all nodes wait for larger ones, instead of refusing them (default
            False).
    """

    def __init__(self, engine: Engine, *, elastic: bool = False) -> None:
        if not isinstance(engine, Engine):
            raise SpecError(f"Fleet: {engine!r:.100} is not an Engine; use Fleet.ray, .dask, .executor or .kubernetes")
        self._engine = engine
        self._elastic = elastic
        self._name = f"ck-{secrets.token_hex(6)}"
        self._lock = threading.Lock()
        self._number = 0
        self._flying: set[FleetFuture[Any]] = set()
        self._containers: list[FleetContainer] = []
        self._books = Books()
        self._images: dict[str, str] = {}
        self._resolving = threading.Lock()
        self._nodes: tuple[float, tuple[Node, ...]] = (-_NODES_KNOWN_S, ())
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._flying)} tasks under way"
        return f"<Fleet {self._name} on {self._engine.name}, {state}>"

    @classmethod
    def ray(cls, address: str | None = "auto", *, listen: str | None = None, elastic: bool = False) -> Self:
        """Return a fleet on a Ray cluster. This program must run on a node of it.

        Args:
            address: of the cluster, as for ``ray.init``; None starts one on this machine (default ``"auto"``). If the
                program is already connected to a cluster, that one is used.
            listen: the address on which this program listens for its workers (default: this node's in the cluster).
            elastic: see the class.

        Raises:
            UnsupportedError: Ray is not installed.
            SpecError: the cluster is reached through a Ray client, or uses TLS and the certificate can't be read.
            ConnectionError: no such cluster.
        """
        return cls(load("containerkit.fleet.ray:RayEngine")(address, listen), elastic=elastic)

    @classmethod
    def dask(cls, client: object, *, listen: str | None = None, elastic: bool = False) -> Self:
        """Return a fleet on a Dask cluster.

        Args:
            client: a ``distributed.Client``. The caller closes it.
            listen: the address on which this program listens for its workers (default: the one from which it reaches
                the scheduler).
            elastic: see the class.

        Raises:
            UnsupportedError: Dask is not installed.
            SpecError: it is not a client, or its cluster uses TLS and it has no certificate.
        """
        return cls(load("containerkit.fleet.dask:DaskEngine")(client, listen), elastic=elastic)

    @classmethod
    def executor(cls, executor: Executor, *, listen: str = "127.0.0.1") -> Self:
        """Return a fleet on any :class:`concurrent.futures.Executor`.

        An executor does not reserve resources: limits of tasks only limit their containers.

        Args:
            executor: the executor. The caller shuts it down.
            listen: the address on which this program listens, which workers must reach (default: 127.0.0.1, for
                workers on this machine).

        Raises:
            SpecError: it is not an executor, or this machine does not have the address.
        """
        return cls(load("containerkit.fleet.executor:ExecutorEngine")(executor, listen))

    @classmethod
    @explained
    def kubernetes(cls, namespace: str = "default", **options: Unpack[KubernetesOptions]) -> Self:
        """Return a fleet on a Kubernetes cluster, each task a Job.

        Args:
            namespace: the namespace of the Jobs (default ``"default"``).
            options: see :class:`containerkit.fleet.options.KubernetesOptions`.

        Raises:
            UnsupportedError: Kubernetes' client is not installed.
            SpecError: an invalid value, or no credentials.
        """
        return cls(load("containerkit.fleet.kubernetes:KubernetesEngine")(namespace, **options))

    # --- Tasks

    @overload
    def submit(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[FleetOptions],
    ) -> FleetFuture[CompletedProcess[str]]: ...

    @overload
    def submit(
        self,
        argv: ListOf[Word],
        *,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[FleetOptions],
    ) -> FleetFuture[CompletedProcess[bytes]]: ...

    @overload
    def submit(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[FleetOptions],
    ) -> FleetFuture[CompletedProcess[str]]: ...

    @explained
    def submit(
        self,
        argv: ListOf[Word],
        *,
        input: Input = None,  # noqa: A002 - an argument of subprocess
        **options: Unpack[AnyFleetOptions],
    ) -> FleetFuture[Any]:
        """Run a command in a new container on some node, and return its future.

        Args:
            argv: the program, which is looked up inside, and its arguments.
            input: what it finds on stdin (default: nothing, /dev/null).
            text, encoding, errors: as in :func:`subprocess.run`; text is UTF-8 unless an encoding is given.
            options: see :class:`containerkit.fleet.options.FleetOptions`.

        Paths of binds and roots are those of the node. Functions that receive lines are called in another thread of
        this program. A slow one delays the other tasks of that worker.

        The future's ``result()`` raises the errors of :func:`containerkit.run`, and :class:`NodeLost`.

        Raises:
            SpecError: an invalid value; nothing was made.
            ImageError: the image is not available.
            StateError: the fleet is closed.
            FleetError: the engine does not accept it.
        """
        more: dict[str, Any] = dict(options)
        retries = check_retries(more.pop("retries", 0))
        task = task_of(self._next_name(), argv, input, more)
        flight = Flight(
            self._engine,
            self._placed(task),
            retries=retries,
            books=self._books,
            listeners={each: more[f"on_{each}"] for each in ("stdout", "stderr") if more.get(f"on_{each}") is not None},
            text=Text.of(more.get("text"), more.get("encoding"), more.get("errors")),
        )
        future = flight.future
        self._books.submitted()
        self._flying.add(future)
        future.add_done_callback(self._flying.discard)
        try:
            flight.launch()
        except BaseException:
            self._books.refused()
            self._flying.discard(future)
            raise
        return future

    @overload
    def map(
        self,
        argv_of: Callable[[Item], ListOf[Word]],
        items: Iterable[Item],
        *,
        progress: bool = False,
        buffersize: int | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[FleetOptions],
    ) -> Iterator[CompletedProcess[str]]: ...

    @overload
    def map(
        self,
        argv_of: Callable[[Item], ListOf[Word]],
        items: Iterable[Item],
        *,
        progress: bool = False,
        buffersize: int | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[FleetOptions],
    ) -> Iterator[CompletedProcess[bytes]]: ...

    @overload
    def map(
        self,
        argv_of: Callable[[Item], ListOf[Word]],
        items: Iterable[Item],
        *,
        progress: bool = False,
        buffersize: int | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[FleetOptions],
    ) -> Iterator[CompletedProcess[str]]: ...

    @explained
    def map(
        self,
        argv_of: Callable[[Item], ListOf[Word]],
        items: Iterable[Item],
        *,
        progress: bool = False,
        buffersize: int | None = None,
        **options: Unpack[AnyFleetOptions],
    ) -> Iterator[CompletedProcess[Any]]:
        """Run a command for each item, and return their results in the order of the items.

        ::

            for done in fleet.map(lambda name: ["gzip", "-t", name], names, mounts=[Mount.bind("/data", "/data")]):
                print(done.args, done.returncode)

        Args:
            argv_of: returns the argv for an item. It is called in this program.
            items: the items.
            progress: show a bar on stderr, if that is a terminal (default False).
            buffersize: how many tasks may be running or have unread results (default: all). With a number the iterable
                may be endless.
            text, encoding, errors: as for :meth:`submit`.
            options: see :class:`containerkit.fleet.options.FleetOptions`.

        The iteration raises the error of a failed task at its position. The remaining tasks are then cancelled, as they
        are when the iterator is closed.

        Raises:
            SpecError, ImageError, StateError, FleetError: as for :meth:`submit`.
            UnsupportedError: ``progress``, and rich is not installed.
        """
        submit: Any = self.submit
        return mapped(lambda item: submit(argv_of(item), **options), items, buffersize=buffersize, progress=progress)

    @staticmethod
    def as_completed(futures: Iterable[FleetFuture[Item]], timeout: float | None = None) -> Iterator[FleetFuture[Item]]:
        """Yield futures as they are done, as :func:`concurrent.futures.as_completed` does.

        Args:
            futures: the futures, of any fleets.
            timeout: for all of them, in seconds (default: no limit).

        Raises:
            TimeoutError: not all are done in time.
        """
        found: Any = as_completed(futures, timeout)
        return iter(found)

    @explained
    def container(
        self,
        rootfs: RootFS | None = None,
        *,
        image: str | None = None,
        **options: Unpack[ContainerOptions],
    ) -> FleetContainer:
        """Return a container that is held on some node for any number of commands. Use it with ``with``.

        Args:
            rootfs: the root filesystem, on the node (default ``RootFS.host()``).
            image: an image instead of ``rootfs``.
            options: see :class:`containerkit.options.ContainerOptions`.

        Raises:
            SpecError: an invalid value, or the workers of the engine are not Python processes; nothing was made.
            ImageError: the image is not available.
        """
        if not isinstance(self._engine, WorkerEngine):
            raise SpecError(f"Fleet.container: {self._engine.name} holds no containers; submit() runs single commands")
        more: dict[str, Any] = dict(options)
        check_container("Fleet.container", image, rootfs, more)
        limits = more.pop("limits", None)
        task = Task(id=self._next_name(), argv=(), image=image, rootfs=rootfs, limits=limits, options=more)
        made = FleetContainer(self._engine, self._placed(task))
        with self._lock:
            self._containers = [each for each in self._containers if not each.stopped]
            self._containers.append(made)
        return made

    def _next_name(self) -> str:
        with self._lock:
            if self._closed:
                raise StateError(f"{self!r}: it is closed")
            self._number += 1
            return f"{self._name}-{self._number}"

    def _placed(self, task: Task) -> Task:
        """Return a task for submission: check that it fits a node, and resolve its image to a digest."""
        if task.limits is not None and not self._elastic:
            check_fits(task, self._known_nodes())
        if task.image is None:
            return task
        with self._resolving:
            if task.image not in self._images:
                from containerkit.fleet.images import resolved

                self._images[task.image] = resolved(task.image)
            return attrs.evolve(task, image=self._images[task.image])

    def _known_nodes(self) -> tuple[Node, ...]:
        asked, nodes = self._nodes
        if time.monotonic() > asked + _NODES_KNOWN_S:
            nodes = self._engine.nodes()
            self._nodes = time.monotonic(), nodes
        return nodes

    # --- The whole

    def nodes(self) -> tuple[Node, ...]:
        """Return the present nodes, sorted by name."""
        return self._engine.nodes()

    def report(self) -> Report:
        """Return the outcomes of the tasks so far, as data. ``print(fleet.report())`` shows a table."""
        return self._books.report()

    def close(self, *, cancel: bool = False) -> None:
        """Wait for all tasks, and release the engine. May be called twice. Held containers are stopped.

        Args:
            cancel: cancel all tasks, and wait until nothing is running any more (default False).
        """
        with self._lock:
            first, self._closed = not self._closed, True
            containers = list(self._containers)
        futures = list(self._flying)
        for future in futures if cancel else ():
            future.cancel()
        for future in futures:
            future.gone()
        for container in containers:
            container.stop()
        if first:
            self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(cancel=kind is not None)

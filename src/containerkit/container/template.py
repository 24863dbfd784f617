"""Templates: make as much as possible in advance for containers of one description."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

from containerkit import late
from containerkit.compile.facts import Mode
from containerkit.container.arguments import RUN_ARGUMENTS
from containerkit.container.captured import ArgumentCache
from containerkit.container.lifecycle import Container
from containerkit.container.ready import Stock, why_not_kept_ready
from containerkit.container.run import Recipe, perform
from containerkit.descriptors import Closing
from containerkit.errors import SpecError, StateError
from containerkit.meanings import explained
from containerkit.namespace import Namespaces
from containerkit.pool.networks import NetworkPool
from containerkit.process.communicate import LineCallbacks
from containerkit.process.process import OUTPUT_LIMIT_BYTES
from containerkit.spec.container import CONFINEMENT, DESCRIPTION, Spec, build, check_names
from containerkit.spec.rootfs import resolve
from containerkit.start.context import StartContext
from containerkit.values import evolve

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from containerkit.network.pool import EndpointPool
    from containerkit.options import AnyPopenOptions, Input, Listener, ListOf, TemplateOptions, TemplateRunOptions, Word
    from containerkit.process.result import CompletedProcess

__all__ = ["Template"]

_OF_NETWORKS: Final = frozenset({"network", "publish", "egress", "dns", "hosts"})
"""The arguments that a prepared network replaces."""

_READY: Final = 16
"""The default number of containers that are kept ready."""


def _lasts(_: Recipe) -> bool:
    """Return True: names are resolved once, for the lifetime of the template."""
    return True


@explained
class Template(Closing):
    """Prepares everything in advance for containers of one description. Made by :meth:`Container.prepare`.

    ::

        with Container.prepare(RootFS.image("python:3.12"), networks=8) as template:
            template.run(["python3", "-c", code], timeout=5)
            with template.container() as c:
                c.run(["true"])

    The description is checked, names are resolved, and plans are compiled once. The name of an image means the same
    image as long as the template exists. Any number of threads may start from it.

    Args:
        networks: how many network namespaces are kept ready; default 0. They are empty (at most 4096, see
            :class:`NetworkPool`) or, with ``network``, already connected to it (at most 1023).
        ready: how many containers are kept ready, with their network. Only the exec of the command of :meth:`run` is
            left to do. 0 to 1024. The default is 0, or with ``networks`` the same number, at most 16, if such
            containers can be kept ready.
        options: see :class:`containerkit.options.TemplateOptions`.

    Raises:
        SpecError: a value is invalid; ``networks`` for a container without a new network namespace; ``ready`` for a
            container that can't wait for its command. The error gives the reason.
        UnsupportedError: ``networks`` for an unprivileged user, or a feature that this host does not have.
        SetupError: an operation failed.

    A ready container shows directories of the host and the mounts in them as they were when it was made. It is not used
    after one of the directories has been replaced or, for ``RootFS.host()``, the host's mounts have changed. If a
    container shows nothing of the host except its root, :meth:`run` returns when all its processes have ended. The
    kernel then removes its namespaces in the background.

    Side effects, until :meth:`close`: with ``networks`` a thread and as many descriptors; with ``ready`` a thread, and
    for each container 2 processes and 5 descriptors. Until its exec a process shares the caller's memory. Meanwhile the
    kernel treats the caller like a process with threads in setns(2) and unshare(2).
    """

    def __init__(self, *, networks: int = 0, ready: int | None = None, **options: Unpack[TemplateOptions]) -> None:
        self.spec: Spec = build(options)
        if networks and self.spec.namespaces.network != "new":
            raise SpecError("networks: only a container with its own network namespace can have one kept ready")
        self._owner = os.getpid()
        self._closed = False
        self._recipes: ArgumentCache[Recipe] = ArgumentCache()
        self._fields: dict[str, Any] = {**options, "rootfs": resolve(self.spec.rootfs)}
        self._stock: Stock | None = None
        self._pool: NetworkPool | EndpointPool | None = None
        if networks and self.spec.wishes_for_network:
            self._pool, fields = late.load(late.POOLED)(self.spec, networks)
            self._fields = {name: value for name, value in self._fields.items() if name not in _OF_NETWORKS} | fields
        elif networks:
            self._pool = NetworkPool(networks)
            namespaces = options.get("namespaces", Namespaces())
            self._fields["namespaces"] = evolve(namespaces, network=self._pool)
        try:
            self.spec = build(self._fields)
            context = StartContext.prepare(self.spec)
            try:
                context.compile(Mode(command=None, reads_upper=True))
            finally:
                context.release()
            self._stock = self._stocked(ready, networks)
        except BaseException:
            self.close()
            raise

    def _stocked(self, wanted: int | None, networks: int) -> Stock | None:
        size = min(networks, _READY) if wanted is None else wanted
        if size == 0:
            return None
        recipe = self._recipe({})
        spec, command = recipe.spec, recipe.command
        if isinstance(self._pool, NetworkPool):  # each gets a network during its start in the background
            spec = evolve(spec, namespaces=evolve(spec.namespaces, network="new"))
        if reason := why_not_kept_ready(spec, command):
            if wanted is None:
                return None
            raise SpecError(f"ready: this container can't wait for its command: {reason}")
        assert command is not None
        return Stock(spec, command, size)

    def container(self, id: str | None = None) -> Container:  # noqa: A002 - as in Container
        """Return a container of this description, to be started.

        Raises:
            StateError: the template was closed.
            SpecError: the id is invalid.
        """
        self._check_open()
        return Container(id=id, **self._fields)

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: Literal[True],
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[TemplateRunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: str | None = None,
        text: bool | None = None,
        encoding: str,
        errors: str | None = None,
        **options: Unpack[TemplateRunOptions],
    ) -> CompletedProcess[str]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: bytes | bytearray | memoryview | None = None,
        text: Literal[False] | None = None,
        encoding: None = None,
        errors: None = None,
        **options: Unpack[TemplateRunOptions],
    ) -> CompletedProcess[bytes]: ...

    @overload
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: None = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        **options: Unpack[TemplateRunOptions],
    ) -> CompletedProcess[str] | CompletedProcess[bytes]: ...

    @explained
    def run(
        self,
        argv: ListOf[Word],
        *,
        input: Input = None,  # noqa: A002 - subprocess's own argument
        timeout: float | None = None,
        check: bool = False,
        capture_output: bool = True,
        output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
        init: bool = True,
        on_stdout: Listener | None = None,
        on_stderr: Listener | None = None,
        **more: Unpack[AnyPopenOptions],
    ) -> CompletedProcess[Any]:
        """Run one command in its own container, as :func:`containerkit.run` does.

        Args:
            argv, input, text, encoding, errors: as for :func:`containerkit.run`.
            options: see :class:`containerkit.options.TemplateRunOptions`.

        The container is described by the template.

        Raises:
            StateError: the template was closed.
            SpecError, SetupError, ContainerTimeout, ExitError: as there.
        """
        self._check_open()
        if strange := more.keys() & (DESCRIPTION - CONFINEMENT):
            raise SpecError(
                f"{min(strange)!r} is not an argument of a command; the template already describes the container"
            )
        check_names("run", more, RUN_ARGUMENTS)
        return perform(
            self._recipe,
            more,
            argv,
            given=input,
            timeout=timeout,
            check=check,
            capture_output=capture_output,
            limit=output_limit_bytes,
            init=init,
            take=None if self._stock is None else self._stock.take,
            callbacks=LineCallbacks.of(on_stdout, on_stderr, kept=capture_output),
        )

    def _recipe(self, more: Mapping[str, Any]) -> Recipe:
        return self._recipes.get(more, self._made_recipe, _lasts)

    def _made_recipe(self, more: Mapping[str, Any]) -> Recipe:
        return Recipe.of({**self._fields, **more})

    @property
    def ready(self) -> int:
        """The number of containers that are ready now."""
        return 0 if self._stock is None else len(self._stock)

    def wait_full(self, timeout: float | None = None) -> bool:
        """Wait until everything requested is ready. Return whether it was in time.

        Args:
            timeout: seconds (default: no limit).
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for kept in (self._pool, self._stock):
            if kept is not None and not kept.wait_full(None if deadline is None else deadline - time.monotonic()):
                return False
        return True

    def _check_open(self) -> None:
        if self._closed:
            raise StateError(f"{self!r}: it was closed")

    def close(self) -> None:
        """Release everything that is ready. Running containers continue.

        May be called twice, and has no effect in a forked child.
        """
        if os.getpid() != self._owner or self._closed:
            return
        self._closed = True
        if self._stock is not None:
            self._stock.close()
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        return f"<Template of {self.spec.rootfs.kind} {self.spec.rootfs.name or ''}".rstrip() + f" {state}>"

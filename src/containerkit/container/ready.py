"""Containers that are started in advance and wait for their command."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, Self

from containerkit import _native
from containerkit.compile import payload
from containerkit.compile.facts import Mode
from containerkit.compile.start import why_not_held
from containerkit.container.captured import FOREVER, Captured
from containerkit.errors import SpecError
from containerkit.plan.program import Program
from containerkit.pool.background import Supply
from containerkit.spec.network import Attach
from containerkit.start.cgroup import account
from containerkit.start.context import StartContext, programs, sources

if TYPE_CHECKING:
    from containerkit.container.captured import Terms
    from containerkit.process.process import Process
    from containerkit.process.result import CompletedProcess
    from containerkit.process.stdio import Text
    from containerkit.spec.command import Command
    from containerkit.spec.container import Spec

__all__ = ["Ready", "Stock", "why_not_kept_ready"]

_LARGEST: Final = 1024


def why_not_kept_ready(spec: Spec, command: Command | None) -> str | None:
    """Return the reason why containers of a description can't be kept ready, or None if they can.

    Args:
        spec: the container.
        command: any of its commands, or None if only a running container can resolve it.
    """
    if command is None:
        return "its user is a name, which only a running container can look up"
    if spec.rootfs.union == "fuse":
        return "a fuse-overlayfs process serves its root"
    if _native.interpreter().Run is None:
        return "the compiled module is missing"
    if any(port.host_port for port in spec.publish) or _has_fixed_address(spec.network):
        return "only one container can have its fixed port, address or MAC"
    return why_not_held(spec, command)


def _has_fixed_address(network: object) -> bool:
    listed = network if isinstance(network, tuple) else (network,)
    return any(isinstance(each, Attach) and bool(each.addresses or each.mac) for each in listed)


class Ready:
    """A container that is started up to the exec of its command, used once.

    Args:
        stock: the stock that made it.
        context: the context of its start.
        captured: its held command.
        seen: the state of the paths that it shows.
    """

    __slots__ = ("__weakref__", "_captured", "_context", "_over", "_seen", "_stock")

    def __init__(self, stock: Stock, context: StartContext, captured: Captured, seen: object) -> None:
        self._over = False
        self._stock = stock
        self._context = context
        self._captured = captured
        self._seen = seen

    @classmethod
    def make(cls, stock: Stock) -> Self:
        """Start one.

        Raises:
            SpecError: a described path does not exist.
            SetupError: an operation failed. Nothing is left behind.
        """
        spec, command = stock.spec, stock.command
        seen = sources(spec)
        context = StartContext.prepare(spec)
        try:
            owner = context.outside(command.user.uid)
            captured = Captured(command, None, FOREVER, owner, early=_leaves_nothing(spec))
            context.begin_with_fallbacks(Mode(command=command, held=True), captured.hold)
        except BaseException:
            context.release()
            raise
        return cls(stock, context, captured, seen)

    @property
    def is_current(self) -> bool:
        """Return whether a container that is started now would show the same files."""
        return self._seen == sources(self._stock.spec)

    def run(self, command: Command, text: Text | None, terms: Terms) -> CompletedProcess[Any]:
        """Run a command in it to its end.

        Args:
            command, text, terms: as for :class:`containerkit.container.captured.Captured`.

        Raises:
            SetupError: it failed. Nothing runs any more.
            ContainerTimeout, ExitError, OutOfMemory: as for ``run``.
        """
        try:
            rest = programs.get(("rest", command.shape), lambda: Program(payload.rest_plan(command)))
            self._captured.continue_held(rest, command, text, terms, self._finish)
            return self._captured.complete()
        except BaseException:
            self._captured.call_off()
            self._release()
            raise

    def _finish(self, process: Process[Any] | Captured) -> None:
        """Read the group of an ended command, and release its context."""
        try:
            if self._context.membership is not None:
                account(process, self._context.membership.group)
        finally:
            self._release()

    def _release(self) -> None:
        """Release its context once. After the stock knows that it has ended, another thread may do this too."""
        if self._over:
            return
        if not self._captured.is_leaving:  # otherwise the stock releases it when the init has ended
            self._context.release()
        self.mark_used()

    def mark_used(self) -> None:
        """Report to the stock that it was used. May be called twice."""
        if not self._over:
            self._over = True
            self._stock.used(self)

    def end(self) -> None:
        """End unclaimed containers and release their resources."""
        self._over = True
        if self._captured.is_held or self._captured.is_leaving:
            self._captured.end_if_held()
            self._context.release()

    def __del__(self) -> None:
        # A signal handler raised while it had no owner.
        if not self._over and self._stock.is_ours and not sys.is_finalizing():
            self.mark_used()


def _leaves_nothing(spec: Spec) -> bool:
    """Return whether nothing visible outlives its last process: no directory of the host, no control group."""
    binds = any(mount.type == "bind" for mount in spec.mounts)
    return not binds and spec.rootfs.upper is None and spec.limits is None


class Stock:
    """Keeps containers ready, and fills itself up in the background.

    Each is used once. If none is left, a start makes its own container. Any number of threads may use it.

    Args:
        spec: the description, which :func:`why_not_kept_ready` accepts.
        command: the command. Its argv and environment don't matter.
        size: the number of ready containers, 1 to 1024. Each is two processes, 5 descriptors and about 200 KiB.

    Raises:
        SpecError: the size is invalid.

    Side effects: a thread, until :meth:`close`.
    """

    def __init__(self, spec: Spec, command: Command, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= _LARGEST:
            raise SpecError(f"ready: must be from 0 to {_LARGEST}, not {size!r}")
        self.spec = spec
        self.command = command
        self._shape = command.shape[-1]
        self._supply: Supply[Ready] = Supply(size, lambda: Ready.make(self), Ready.end, "ready containers", eager=False)
        self.wait_full = self._supply.wait_full
        self.close = self._supply.close

    @property
    def is_ours(self) -> bool:
        """Whether this is the process that made it."""
        return self._supply.is_ours

    def take(self, command: Command) -> Ready | None:
        """Return a container for this command, or None."""
        if command.shape[-1] != self._shape:
            return None
        while (taken := self._supply.take()) is not None and not taken.is_current:
            taken.mark_used()
        return taken

    def used(self, ready: Ready) -> None:
        """Put a container back, so that the stock ends it."""
        self._supply.give_back(ready)

    def __len__(self) -> int:
        return len(self._supply)

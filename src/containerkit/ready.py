"""Containers that are started already and wait for their command, for starts that can't wait for a container."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Self

from containerkit import _native, payload
from containerkit.assembly import Mode, why_not_held
from containerkit.engine import Program
from containerkit.errors import SpecError
from containerkit.ground import Ground, programs, sources
from containerkit.supply import Supply

if TYPE_CHECKING:
    from containerkit._native.outcome import Left
    from containerkit.command import Command
    from containerkit.engine import Capture, Held
    from containerkit.spec import Spec

__all__ = ["Ready", "Stock", "why_never_ready"]

_LARGEST: Final = 1024


def why_never_ready(spec: Spec, command: Command | None) -> str | None:
    """Return what keeps containers of a description from being kept ready; None where they can be.

    Args:
        spec: the container.
        command: any of its commands; None when only a live container can tell what that is.
    """
    if command is None:
        return "its user is a name, which a live container has to look up"
    if spec.rootfs.union == "fuse":
        return "its root is served by a process of its own"
    if _native.interpreter().Run is None:
        return "the compiled module is missing"
    return why_not_held(spec, command)


class Ready:
    """A container that is started up to the exec of its command, used once.

    Args:
        stock: whose it was.
        ground: what it stands on.
        held: its start.
        seen: what was found at the paths that it shows.
    """

    __slots__ = ("__weakref__", "_held", "_over", "_seen", "_stock", "ground")

    def __init__(self, stock: Stock, ground: Ground, held: Held, seen: object) -> None:
        self.ground = ground
        self._over = False
        self._stock = stock
        self._held = held
        self._seen = seen

    @classmethod
    def make(cls, stock: Stock) -> Self:
        """Start one.

        Raises:
            SpecError: something that the description names is not there.
            SetupError: an operation failed; nothing is left behind.
        """
        spec, command = stock.spec, stock.command
        seen = sources(spec)
        ground = Ground.prepare(spec)
        try:
            held = ground.hold(Mode(command=command, held=True), command.user.uid, early=_leaves_nothing(spec))
        except BaseException:
            ground.release()
            raise
        return cls(stock, ground, held, seen)

    @property
    def is_true(self) -> bool:
        """Whether one that is started now would show the same."""
        return self._seen == sources(self._stock.spec)

    def complete(self, command: Command, capture: Capture) -> Left:
        """Run a command in it to its end.

        Raises:
            SetupError: it failed; nothing runs any more.
        """
        rest = programs.get(("rest", command.shape), lambda: Program(payload.rest_plan(command)))
        return self._held.complete(rest, argv=command.argv, envp=command.envp, capture=capture)

    @property
    def is_leaving(self) -> bool:
        """Whether its init is yet to end, after all else: the stock waits for that, and gives back the ground."""
        return self._held.is_leaving

    def over(self) -> None:
        """Tell the stock that it was used; harmless when repeated."""
        if not self._over:
            self._over = True
            self._stock.used(self)

    def end(self) -> None:
        """End what nobody else has in hand, and give back what it stood on then."""
        self._over = True
        if self._held.waits or self._held.is_leaving:
            self._held.end()
            self.ground.release()

    def __del__(self) -> None:
        # A signal handler has raised where nobody had it in hand.
        if not self._over and self._stock.is_ours and not sys.is_finalizing():
            self.over()


def _leaves_nothing(spec: Spec) -> bool:
    """Whether nothing that others could see outlasts its last process: no folder of theirs, no control group."""
    binds = any(mount.type == "bind" for mount in spec.mounts)
    return not binds and spec.rootfs.upper is None and spec.limits is None


class Stock:
    """Keeps containers ready, and fills itself up in the background.

    Each is used once. When none is left a start makes its own container. Any number of threads may take from it.

    Args:
        spec: what they are; :func:`why_never_ready` knows nothing against it.
        command: what they are made for: the words, and the environment, don't matter.
        size: how many it keeps, 1 to 1024; each is two processes, 5 descriptors and about 200 KiB.

    Raises:
        SpecError: a size that can't be.

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
        """Return a container for this command; None where there is none."""
        if command.shape[-1] != self._shape:
            return None
        while (taken := self._supply.take()) is not None and not taken.is_true:
            taken.over()
        return taken

    def used(self, ready: Ready) -> None:
        """Take back what was taken, to end what is left of it."""
        self._supply.give_back(ready)

    def __len__(self) -> int:
        return len(self._supply)

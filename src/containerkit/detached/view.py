"""A detached container as any other: a view on it for commands and files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import attrs

from containerkit.container.attached import Attached
from containerkit.container.changes import listed
from containerkit.detached import store
from containerkit.detached.events import emit
from containerkit.errors import SpecError, StateError
from containerkit.security.confinement import Confinement
from containerkit.spec.container import CONFINEMENT, check_names

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from containerkit.cgroup import Limits
    from containerkit.container.changes import Change
    from containerkit.container.live import State
    from containerkit.detached.container import Detached
    from containerkit.detached.store import Entry
    from containerkit.spec.container import Spec
    from containerkit.spec.rootfs import RootFS

__all__ = ["View", "changes", "view"]


class _Record:
    """What a view has to know; it owns nothing but, until it is taken, the pidfd."""

    def __init__(self, entry: Entry) -> None:
        from containerkit.detached.container import Detached

        self.detached: Detached = Detached(entry)
        status, run, _ = self.detached.looked_at()
        stopped = StateError(f"container {entry.id!r} does not run: 'containerkit start {entry.id}' starts it")
        if status not in ("running", "paused"):
            raise stopped
        self.id = entry.id
        self.root = store.records_root()
        self.pid = int(run["init"])
        self.groups: list[str] = run["leaves"] or run["groups"]
        self.run = run
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            raise stopped from None
        if not entry.is_kept() or entry.end_of(run["run"]) is not None:
            os.close(self.pidfd)
            raise stopped

    def status(self) -> str:
        """Return ``running``, ``paused`` or ``stopped``, as it is now."""
        try:
            status, run, _ = self.detached.looked_at()
        except StateError:
            return "stopped"
        return status if status in ("running", "paused") and run["run"] == self.run["run"] else "stopped"

    def close(self) -> None:
        """Do nothing: it owns nothing."""


class View(Attached):
    """A view on a detached container; see :meth:`containerkit.Container.attach`."""

    def __init__(self, entry: Entry, confinement: Mapping[str, Any]) -> None:
        check_names("attach", confinement, CONFINEMENT)
        record = _Record(entry)
        self._detached = record.detached
        self._adopt(record, lambda: _fields(record, confinement))

    def pause(self) -> None:
        """Stop all of its processes where they are; see :meth:`containerkit.Detached.pause`."""
        self._detached.pause()

    def resume(self) -> None:
        """Let them go on."""
        self._detached.resume()

    def update(self, limits: Limits) -> None:
        """Change its limits, now and for later starts; see :meth:`containerkit.Detached.update`."""
        self._detached.update(limits)

    def changes(self) -> Iterator[Change]:
        """Yield what it has changed; see :meth:`containerkit.Detached.changes`."""
        yield from self._detached.changes()

    def note(self, action: str, **attributes: Any) -> None:
        """Append an event; see :func:`containerkit.events`."""
        emit(self._detached.entry, action, **attributes)

    @property
    def state(self) -> State:
        """``"running"``, ``"paused"``, ``"stopped"``; ``"detached"`` once let go."""
        return super().state

    def _remedy(self, verb: str) -> str:
        return f"containerkit {'unpause' if verb == 'resume' else verb} {self.id}"


def _fields(record: _Record, confinement: Mapping[str, Any]) -> dict[str, Any]:
    spec = record.detached.description().spec
    own = {field.name: getattr(spec.confinement, field.name) for field in attrs.fields(Confinement)}
    return {"rootfs": record.detached.resolved_root(), "mounts": spec.mounts, **own, **confinement}


def view(name: str, confinement: Mapping[str, Any]) -> View | None:
    """Return a view on a detached container; None where none is called so.

    Raises:
        StateError: it does not run.
    """
    try:
        entry = store.find(name)
    except (StateError, SpecError):
        return None
    return View(entry, confinement)


def changes(root: RootFS, spec: Spec, who: str) -> Iterator[Change]:
    """Yield what the writable layer on disk adds, changes and deletes.

    Raises:
        StateError: there is none.
    """
    from containerkit.start import userns_helper

    if root.upper is None:
        raise StateError(
            f"{who}: its root has no writable layer on disk: what it writes is in its memory, or in a directory"
        )
    apart = [mount.target for mount in spec.mounts] + [one.target for one in root.volumes]
    made = {"/proc", "/sys", "/dev", *apart}
    upper = os.open(root.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = userns_helper.call(listed, ("", root.union == "fuse"), userns_helper.Lent(upper), *root.lowers)
    finally:
        os.close(upper)
    for change in found:
        if change.path not in made and not any(change.path.startswith(f"{path}/") for path in apart):
            yield change

"""A view of a detached container, for commands and files."""

from __future__ import annotations

import os

from containerkit.container.attached import Attached
from containerkit.container.changes import listed
from containerkit.detached import store
from containerkit.detached.events import emit
from containerkit.errors import SpecError, StateError
from containerkit.security.confinement import Confinement
from containerkit.spec.container import CONFINEMENT, check_names
from containerkit.values import fields_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from containerkit.cgroup import Limits
    from containerkit.container.changes import Change
    from containerkit.container.live import State
    from containerkit.detached.container import Detached
    from containerkit.detached.events import Action
    from containerkit.detached.store import Entry
    from containerkit.spec.container import Spec
    from containerkit.spec.rootfs import RootFS

__all__ = ["View", "changes", "view"]


class _Record:
    """The record behind a view. It owns only the pidfd, until that is taken."""

    def __init__(self, entry: Entry) -> None:
        from containerkit.detached.container import Detached

        self.detached: Detached = Detached(entry)
        status, run, _ = self.detached.looked_at()
        stopped = StateError(f"container {entry.id!r} is not running; 'containerkit start {entry.id}' starts it")
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
    """A view of a detached container; see :meth:`containerkit.Container.attach`."""

    def __init__(self, entry: Entry, confinement: Mapping[str, Any]) -> None:
        check_names("attach", confinement, CONFINEMENT)
        record = _Record(entry)
        self._detached = record.detached
        self._adopt(record, lambda: _fields(record, confinement))

    def pause(self) -> None:
        """Freeze all of its processes; see :meth:`containerkit.Detached.pause`."""
        self._detached.pause()

    def resume(self) -> None:
        """Let its processes continue."""
        self._detached.resume()

    def update(self, limits: Limits) -> None:
        """Change its limits, now and for later starts; see :meth:`containerkit.Detached.update`."""
        self._detached.update(limits)

    def changes(self) -> Iterator[Change]:
        """Yield its changes; see :meth:`containerkit.Detached.changes`."""
        yield from self._detached.changes()

    def note(self, action: Action, **attributes: str | int) -> None:
        """Append an event; see :func:`containerkit.events`."""
        emit(self._detached.entry, action, None, **attributes)

    @property
    def state(self) -> State:
        """``"running"``, ``"paused"``, ``"stopped"``; ``"detached"`` after the end of the view."""
        return super().state

    def _remedy(self, verb: str) -> str:
        return f"containerkit {'unpause' if verb == 'resume' else verb} {self.id}"


def _fields(record: _Record, confinement: Mapping[str, Any]) -> dict[str, Any]:
    spec = record.detached.description().spec
    own = {field.name: getattr(spec.confinement, field.name) for field in fields_of(Confinement)}
    return {"rootfs": record.detached.resolved_root(), "mounts": spec.mounts, **own, **confinement}


def view(name: str, confinement: Mapping[str, Any]) -> View | None:
    """Return a view of a detached container, or None if there is none of this name.

    Raises:
        StateError: it is not running.
    """
    try:
        entry = store.find(name)
    except (StateError, SpecError):
        return None
    return View(entry, confinement)


def changes(root: RootFS, spec: Spec, who: str) -> Iterator[Change]:
    """Yield the additions, changes and deletions in the writable layer on disk.

    Raises:
        StateError: it has no writable layer on disk.
    """
    from containerkit.start import userns_helper

    if root.upper is None:
        raise StateError(f"{who}: its root has no writable layer on disk: writes go to memory, or to a directory")
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

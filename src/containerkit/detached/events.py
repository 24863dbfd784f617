"""Events of detached containers: one stream for each user, to which all processes that act on containers append.

It is in ``/run/containerkit/events`` (of a user: below ``$XDG_RUNTIME_DIR``), in the format of the logs: a line is
``TIME event F {...}``. ``current`` is a symlink to the current log. Keepers append the end of a run, which only they
notice. Other events are appended by the process that causes them. Records do not depend on events: if the filesystem is
full, an event is lost, but the record is correct.

Source: write(2), O_APPEND: data of one call stays together.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress

from containerkit.detached import logs, store
from containerkit.errors import SetupError, StateError
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final, Literal

    from containerkit.detached.logs import Moment
    from containerkit.detached.store import Entry

    Action = Literal[
        "create", "start", "die", "oom", "stop", "kill", "pause", "unpause", "rename", "update", "exec_start",
        "health_status", "commit", "destroy",
    ]  # fmt: skip

__all__ = ["ContainerEvent", "emit", "events", "identify"]

_MOST_BYTES: Final = 1 << 20
_MOST_LOGS: Final = 4
_LOOK_AGAIN_S: Final = 1.0
_LONGEST: Final = 2048
"""The limit of the size of name and labels in bytes. Longer labels are omitted, because the keeper reads no more."""


class ContainerEvent(NamedTuple):
    """An event of a detached container.

    Attributes:
        time: in UTC, as RFC 3339 with nanoseconds.
        action: ``create``, ``start``, ``die``, ``oom``, ``stop``, ``kill``, ``pause``, ``unpause``, ``rename``,
            ``update``, ``exec_start``, ``health_status``, ``commit`` or ``destroy``.
        id: of the container.
        name: its name at that time; empty for none.
        image: the name of its image; empty for another root.
        labels: its labels.
        attributes: further fields, such as ``exit_code`` of ``die`` and ``signal`` of ``kill``.
    """

    time: str
    action: Action
    id: str
    name: str
    image: str
    labels: Mapping[str, str]
    attributes: Mapping[str, str | int]

    def fits(self, name: str, wanted: str) -> bool:
        """Return whether it matches a filter of :func:`events`."""
        if name == "label":
            key, equals, value = wanted.partition("=")
            return key in self.labels and (not equals or self.labels[key] == value)
        if name == "id":
            return self.id.startswith(wanted)
        found: str = getattr(self, name)
        return found == wanted


def _place() -> str:
    return os.path.join(os.path.dirname(store.records_root()), "events")


def identify(entry: Entry, config: Mapping[str, Any]) -> None:
    """Write the file with the container's identity that its keeper uses for its own events.

    Raises:
        SetupError: the filesystem of the records is full.
    """
    entry.write_bytes("event", _who(entry, config).encode())


def _who(entry: Entry, config: Mapping[str, Any]) -> str:
    """Return the common fields of a container's events, as the inner part of a JSON object."""
    known = {"id": entry.id, "name": config["name"], "image": config["image"]}
    text = json.dumps({**known, "labels": dict(config["labels"])})
    return (text if len(text) <= _LONGEST else json.dumps({**known, "labels": {}}))[1:-1]


def emit(entry: Entry, action: Action, config: Mapping[str, Any] | None = None, **attributes: str | int) -> None:
    """Append an event. One that can't be written is lost.

    Args:
        entry: the record of the container.
        action: the kind of event.
        config: the configuration in the record (default: it is read).
        attributes: further fields.
    """
    with suppress(OSError, StateError):
        who = _who(entry, entry.config if config is None else config)
        more = "".join(f", {json.dumps(key)}: {json.dumps(value)}" for key, value in attributes.items())
        now = time.time_ns()
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now // 1_000_000_000))
        line = f'{seconds}.{now % 1_000_000_000:09}Z event F {{"action": "{action}", {who}{more}}}\n'
        _append(line.encode())


def _append(line: bytes) -> None:
    place = _place()
    fd = _open(place)
    try:
        os.write(fd, line)
        if os.fstat(fd).st_size > _MOST_BYTES:
            _rotate(place, fd)
    finally:
        os.close(fd)


def _open(place: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(f"{place}/current", flags, 0o600)
    except FileNotFoundError:
        os.makedirs(place, mode=0o700, exist_ok=True)
        with suppress(FileExistsError):
            os.symlink("log.1", f"{place}/current")
        return os.open(f"{place}/current", flags, 0o600)


def _rotate(place: str, full: int) -> None:
    """Begin another log, unless another process has done so in the meantime."""
    gate = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        last = logs.last_log(place)
        if not os.path.samestat(os.fstat(full), os.stat(f"{place}/log.{last}")):
            return
        os.close(os.open(f"{place}/log.{last + 1}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.symlink(f"log.{last + 1}", f"{place}/current.{os.getpid()}")
        os.replace(f"{place}/current.{os.getpid()}", f"{place}/current")
        for number in logs.numbers(place)[:-_MOST_LOGS]:
            os.unlink(f"{place}/log.{number}")
    finally:
        os.close(gate)


def events(
    *,
    since: Moment | None = None,
    until: Moment | None = None,
    follow: bool = False,
    action: Action | None = None,
    name: str | None = None,
    image: str | None = None,
    id: str | None = None,  # noqa: A002 - the term of the OCI
    label: str | None = None,
) -> Iterator[ContainerEvent]:
    """Yield the events of this user's detached containers, the oldest first.

    Args:
        since, until: only events in this period, as for :meth:`Detached.logs`.
        follow: wait for more, until the time of ``until`` (default False).
        action, name, image: only events with this action, or of containers with this name or image.
        id: only events of containers whose id begins with this.
        label: only events of containers with this label: ``NAME`` or ``NAME=VALUE``.

    Raises:
        SpecError: an invalid time.
        SetupError: the events can't be read.

    About 20,000 events are kept, until the next reboot. If a keeper was killed, the event ``die`` of its container has
    an ``error`` instead of an ``exit_code``, and the time at which a process noticed that.
    """
    given = {"action": action, "name": name, "image": image, "id": id, "label": label}
    start = "" if since is None else logs.moment(since, "since")
    end = "~" if until is None else logs.moment(until, "until")
    filters = {key: value for key, value in given.items() if value is not None}
    return _read(start, end, filters, follow=follow)


def _read(start: str, end: str, filters: Mapping[str, str], *, follow: bool) -> Iterator[ContainerEvent]:
    place = _place()
    try:
        os.close(_open(place))
    except OSError as error:
        raise SetupError("open", error.errno or 0, place, "the events can't be read") from None
    watch = _Watch(end)
    watch.look()
    for line in logs.read(place, since=start, until=end, follow=watch.goes_on if follow else None):
        event = _parsed(line)
        if event is not None and all(event.fits(name, wanted) for name, wanted in filters.items()):
            yield event


class _Watch:
    """Looks for containers whose keepers were killed, which appends their events, until a time."""

    def __init__(self, end: str) -> None:
        self._end = end
        self._next = 0.0

    def goes_on(self) -> bool:
        self.look()
        return logs.moment(time.time(), "now") < self._end

    def look(self) -> None:
        """Look, but not more often than once in a second."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _LOOK_AGAIN_S
        from containerkit.detached.known import Known

        for entry in store.entries():
            with suppress(StateError):  # it was removed meanwhile
                Known(entry).looked_at()


def _parsed(line: logs.LogLine) -> ContainerEvent | None:
    try:
        told = json.loads(line.text)
        known = {name: told.pop(name) for name in ("action", "id", "name", "image", "labels")}
    except (ValueError, KeyError):  # truncated by a full filesystem, or of another version
        return None
    return ContainerEvent(line.time, attributes=told, **known)

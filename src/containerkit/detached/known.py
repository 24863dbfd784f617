"""The recorded facts about a detached container, and its state."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from containerkit.errors import SpecError, StateError
from containerkit.typed import Literal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping
    from typing import Any, Final

    from containerkit.detached.description import Description
    from containerkit.detached.logs import LogLine, Moment
    from containerkit.detached.settings import Keeping
    from containerkit.detached.store import Entry
    from containerkit.spec.mount import Mount
    from containerkit.spec.network import Port
    from containerkit.spec.rootfs import RootFS

__all__ = ["KEEPER_KILLED", "NO_GROUP", "Known", "Status", "health_state", "shell_status", "signal_number"]

Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]
"""The status of a detached container. ``"dead"``: its keeper was killed, so its exit status is unknown."""

KEEPER_KILLED: Final = "its keeper was killed"
"""The cause that is told for a container whose keeper has ended without a record of the end."""

NO_GROUP: Final = "it has no control group; pass limits=Limits(...), or start it with a limit such as --pids-limit"

HEALTH_FILE: Final = "health.json"
"""The file of a record with the results of health checks."""


def shell_status(code: int | None) -> int:
    """Return an exit status as a shell reports it: 128 + N for signal N; -1 if unknown."""
    return -1 if code is None else code if code >= 0 else 128 - code


def signal_number(value: int | str) -> int:
    """Return the number of a signal: 15, ``"15"``, ``"TERM"`` or ``"SIGTERM"``.

    Raises:
        SpecError: no signal.
    """
    import signal  # late: commands that only list do not need it

    text = str(value)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    if text.isascii() and text.isdecimal() and 1 <= int(text) <= signal.SIGRTMAX:
        return int(text)
    if name in signal.Signals.__members__:
        return int(signal.Signals[name])
    raise SpecError(f"signal: {value!r:.100} is neither a number from 1 to {int(signal.SIGRTMAX)} nor a signal's name")


def health_state(entry: Entry, status: str, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``status``, ``streak`` and ``log`` of the checks of a run; None if there are none, or it has ended.

    Args:
        entry: the record.
        status: the status of the container.
        run: its last start.
    """
    if not run.get("checked") or status not in ("running", "paused"):
        return None
    content = entry.read(HEALTH_FILE)
    return content if content is not None and content["run"] == run["run"] else None


class Known:
    """The recorded facts about a detached container, and its state.

    Attributes:
        id: the container's.
        entry: its record.
    """

    def __init__(self, entry: Entry) -> None:
        self.id: str = entry.id
        self.entry = entry

    def __repr__(self) -> str:
        try:
            return f"<Detached {self.name or self.id} {self.status}>"
        except StateError:
            return f"<Detached {self.id} gone>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self.entry.path == other.entry.path

    def __hash__(self) -> int:
        return hash(self.entry.path)

    # --- Facts

    @property
    def keeping(self) -> Keeping:
        """Its settings.

        Raises:
            StateError: its record was removed.
        """
        from containerkit.detached.settings import Keeping

        return Keeping.of(self.entry.config)

    @property
    def last_run(self) -> dict[str, Any]:
        """The record of the last start; empty before the first."""
        return self.entry.read("run.json") or {}

    @property
    def name(self) -> str:
        """Its name; empty for none."""
        return self.keeping.name

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.keeping.labels

    @property
    def status(self) -> Status:
        """Its present status.

        Raises:
            StateError: its record was removed.
        """
        return self.looked_at()[0]

    def looked_at(self) -> tuple[Status, dict[str, Any], dict[str, str] | None]:
        """Return its status, its last start, and the end of that.

        The keeper can change the files in between, so the order matters: a keeper that still lives has lived all the
        time, and one that has ended has written the end before.
        """
        for _ in range(5):
            kept = self.entry.is_kept()
            run = self.last_run
            end = self.entry.end_of(int(run.get("run", 0))) if run else None
            if kept != self.entry.is_kept() or run.get("run") != self.last_run.get("run"):
                continue
            break
        if not run:
            self.entry.config  # noqa: B018 - raises if the record was removed
            return "created", run, None
        if kept and end is None:
            return ("paused" if self._is_frozen(run) else "running"), run, None
        if kept:
            return ("restarting" if self._starts_again(end) else "exited"), run, end
        if end is None:
            self._note_loss(run)
            return "dead", run, None
        return "exited", run, end

    def _note_loss(self, run: Mapping[str, Any]) -> None:
        """Append the event that a killed keeper could not append: once, by the first process that notices."""
        with suppress(OSError, StateError):  # as for each event: one that can't be written is lost
            mark = self.entry.file(f"lost.{run['run']}")
            if os.path.exists(mark) or self.entry.is_kept() or self.last_run.get("run") != run["run"]:
                return
            os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            from containerkit.detached.events import emit

            emit(self.entry, "die", error=KEEPER_KILLED)

    def _starts_again(self, end: Mapping[str, str] | None) -> bool:
        policy = self._policy()
        failed = end is None or end["status"] != "0"
        return not os.path.exists(self.entry.file("stopped")) and (policy == 2 or (policy == 1 and failed))

    def _policy(self) -> int:
        with suppress(OSError, ValueError), open(self.entry.file("policy"), encoding="utf-8") as file:
            return int(file.read())
        return 0

    @staticmethod
    def _is_frozen(run: Mapping[str, Any]) -> bool:
        for group in run["groups"]:
            for name, frozen in (("cgroup.freeze", "1"), ("freezer.state", "FROZEN")):
                with suppress(OSError), open(f"{group}/{name}", encoding="utf-8") as file:
                    if file.read().strip() == frozen:
                        return True
        return False

    @property
    def pid(self) -> int | None:
        """The pid of its command on the host; None if it is not running."""
        status, run, _ = self.looked_at()
        return int(run["pid"]) if status in ("running", "paused") else None

    @property
    def exit_code(self) -> int | None:
        """The exit status of the last run, or the negative number of the signal that ended it.

        None while it is running, before the first start, and if the keeper was killed.
        """
        _, _, end = self.looked_at()
        return None if end is None else os.waitstatus_to_exitcode(int(end["status"]))

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed a process of the last run because memory ran out."""
        end = self.looked_at()[2]
        return end is not None and end["oom"] == "1"

    @property
    def started_at(self) -> float | None:
        """The time of the last start, in seconds since 1970; None before the first."""
        return self.last_run.get("started")

    @property
    def finished_at(self) -> str | None:
        """The time at which the last run ended, in UTC as RFC 3339; None if unknown."""
        end = self.looked_at()[2]
        return None if end is None else end["finished"]

    @property
    def restarts(self) -> int:
        """The number of restarts by its policy since it was last started by hand."""
        return int(self.last_run.get("restarts", 0))

    @property
    def image(self) -> str:
        """The name of its image; empty for another root."""
        return self.keeping.image

    @property
    def argv(self) -> list[str]:
        """Its command."""
        return list(self.description().argv)

    @property
    def command_line(self) -> tuple[list[str], str]:
        """The arguments of the ``run`` that created it, and its working directory; empty if created from Python."""
        keeping = self.keeping
        return list(keeping.command_line), keeping.directory

    @property
    def stop_timeout_s(self) -> float:
        """The time that it has to end by itself, in seconds."""
        return self.keeping.stop_timeout_s

    @property
    def keeper(self) -> int | None:
        """The pid of its keeper; None if it is not running."""
        run = self.last_run
        return int(run["keeper"]) if run and self.entry.is_kept() else None

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """Its mounts."""
        return self.description().spec.mounts

    @property
    def created_at(self) -> float:
        """The time of its creation, in seconds since 1970."""
        return float(self.entry.config["created"])

    @property
    def health(self) -> str | None:
        """``"starting"``, ``"healthy"`` or ``"unhealthy"`` while it is running; None without a health check."""
        status, run, _ = self.looked_at()
        found = health_state(self.entry, status, run)
        return None if found is None else str(found["status"])

    @property
    def has_group(self) -> bool:
        """Whether it was last started in a control group."""
        return bool(self.last_run.get("groups"))

    @property
    def addresses(self) -> list[str]:
        """Its addresses on a network; empty if it is not running, or has no network that another process serves."""
        status, run, _ = self.looked_at()
        return list(run.get("network", {}).get("addresses", ())) if status in ("running", "paused") else []

    @property
    def ports(self) -> list[Port]:
        """Its published ports with the assigned ports of the host; empty if it is not running."""
        from containerkit.spec.network import Port

        status, run, _ = self.looked_at()
        told = run.get("network", {}).get("ports", ()) if status in ("running", "paused") else ()
        return [Port(**each) for each in told]

    @property
    def error(self) -> str | None:
        """The error of the last restart by its policy, or None."""
        content = self.entry.read("error.json")
        return None if content is None else str(content["error"])

    def summary(self) -> dict[str, Any]:
        """Return the fields for a list of containers, from one read of the record.

        ``status``, ``pid``, ``exit_code``, ``created``, ``health`` and ``labels`` are those of the attributes;
        ``init`` is the pid of the last run's init; ``started`` and ``finished`` are times, None if unknown.
        """
        status, run, end = self.looked_at()
        config = self.entry.config
        return {
            "id": self.id,
            "name": config["name"],
            "image": config["image"],
            "command": config["argv"],
            "created": config["created"],
            "started": run.get("started"),
            "finished": None if end is None else end["finished"],
            "status": status,
            "init": run.get("init"),
            "pid": run["pid"] if status in ("running", "paused") else None,
            "exit_code": None if end is None else os.waitstatus_to_exitcode(int(end["status"])),
            "health": None if (found := health_state(self.entry, status, run)) is None else found["status"],
            "ports": run.get("network", {}).get("ports", []) if status in ("running", "paused") else [],
            "labels": config["labels"],
        }

    def inspect(self) -> dict[str, Any]:
        """Return all facts about it, with Docker's names.

        ``State.ExitCode`` is 128 + N for signal N, as in a shell; -1 if unknown.
        """
        from containerkit.detached.inspection import inspection

        return inspection(self)

    def description(self) -> Description:
        """Return its description.

        Raises:
            StateError: its record was removed, or is of another version.
        """
        from containerkit.detached.description import Description

        try:
            with open(self.entry.file("description"), "rb") as file:
                return Description.load(file.read())
        except FileNotFoundError:
            raise StateError(f"container {self.id}: its record was removed") from None

    def goes_on(self) -> bool:
        """Return whether it is running, or will be restarted by its policy."""
        try:
            return self.status in ("running", "paused", "restarting")
        except StateError:
            return False

    # --- Output

    def logs(
        self,
        *,
        follow: bool = False,
        since: Moment | None = None,
        until: Moment | None = None,
        tail: int | None = None,
        pieces: bool = False,
    ) -> Iterator[LogLine]:
        """Yield the output of its command.

        Args:
            follow: wait for more, until it has ended or the time of ``until`` has come (default False).
            since, until: only output in this period: a datetime, seconds since 1970, a timedelta or text such as
                ``"10m"`` before now, or a time of RFC 3339.
            tail: at most so many lines, the latest.
            pieces: also yield incomplete lines when they arrive, such as a prompt (default False: whole lines up to
                1 MiB).

        Raises:
            SpecError: an invalid time or number.
            SetupError: the logs can't be read.
        """
        from containerkit.detached.logs import read

        asked = self._asked_of_logs(since, until, tail)
        return read(self.entry.state_path, **asked, follow=self._following(asked, follow=follow), pieces=pieces)

    def log_steps(
        self,
        *,
        follow: bool = False,
        since: Moment | None = None,
        until: Moment | None = None,
        tail: int | None = None,
        pieces: bool = False,
    ) -> Generator[LogLine | int, None, None]:
        """Yield the lines of :meth:`logs`, and an inotify descriptor to wait for where it would wait.

        It is for event loops, such as :func:`containerkit.aio.logs`, because it never blocks.

        Args:
            follow, since, until, tail, pieces: as for :meth:`logs`.

        Raises:
            SpecError, SetupError: as for :meth:`logs`.
        """
        from containerkit.detached.logs import steps

        asked = self._asked_of_logs(since, until, tail)
        return steps(self.entry.state_path, **asked, follow=self._following(asked, follow=follow), pieces=pieces)

    def _following(self, asked: Mapping[str, Any], *, follow: bool) -> Callable[[], bool] | None:
        """Return the function that tells whether more of what is asked for may come; None if nobody waits for it."""
        if not follow:
            return None
        from containerkit.detached.logs import moment

        end = asked["until"]
        return lambda: (end == "~" or moment(time.time(), "now") <= end) and self.goes_on()

    @staticmethod
    def _asked_of_logs(since: Moment | None, until: Moment | None, tail: int | None) -> dict[str, Any]:
        from containerkit.detached.logs import moment

        if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
            raise SpecError(f"tail: {tail!r:.100} is not a number of lines")
        start = "" if since is None else moment(since, "since")
        return {"since": start, "until": "~" if until is None else moment(until, "until"), "tail": tail}

    def resolved_root(self) -> RootFS:
        """Return its resolved root of the last start."""
        run = self.last_run
        if not run:
            raise StateError(f"{self!r}: it was never started")
        import pickle

        found: RootFS = pickle.loads(bytes.fromhex(run["root"]))  # noqa: S301 - only the user can write it
        return found

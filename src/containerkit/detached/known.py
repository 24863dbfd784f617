"""What is known of a detached container."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal

from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from containerkit.detached.description import Description, Keeping
    from containerkit.detached.logs import LogLine, Moment
    from containerkit.detached.store import Entry
    from containerkit.spec.mount import Mount
    from containerkit.spec.network import Port
    from containerkit.spec.rootfs import RootFS

__all__ = ["Known", "Status", "health_state", "shell_status"]

Status = Literal["created", "running", "paused", "restarting", "exited", "dead"]
"""The status of a detached container. ``"dead"``: its keeper was killed, so it is not known how the container ended."""

HEALTH_FILE: Final = "health.json"
"""The file of a record that tells what its health checks have found."""


def shell_status(code: int | None) -> int:
    """Return an exit status as a shell has it: 128 + N for signal N; -1 where nobody knows."""
    return -1 if code is None else code if code >= 0 else 128 - code


def health_state(entry: Entry, status: str, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return ``status``, ``streak`` and ``log`` of the checks of a run; None where there are none, or it is over.

    Args:
        entry: the record.
        status: what the container does.
        run: its last start.
    """
    if not run.get("checked") or status not in ("running", "paused"):
        return None
    content = entry.read(HEALTH_FILE)
    return content if content is not None and content["run"] == run["run"] else None


class Known:
    """What is on record of a detached container, and what it does now.

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

    # --- What is known of it

    @property
    def keeping(self) -> Keeping:
        """How it is kept.

        Raises:
            StateError: its record is gone.
        """
        from containerkit.detached.description import Keeping

        return Keeping.of(self.entry.config)

    @property
    def last_run(self) -> dict[str, Any]:
        """What its record says of the last start; empty before the first."""
        return self.entry.read("run.json") or {}

    @property
    def name(self) -> str:
        """Its name; empty where it has none but its id."""
        return self.keeping.name

    @property
    def labels(self) -> Mapping[str, str]:
        """Its labels."""
        return self.keeping.labels

    @property
    def status(self) -> Status:
        """What it does now.

        Raises:
            StateError: its record is gone.
        """
        return self.looked_at()[0]

    def looked_at(self) -> tuple[Status, dict[str, Any], dict[str, str] | None]:
        """Return what it does, its last start, and how that ended.

        What is read can be changed by the keeper in between, so the order counts: a keeper that lives was there all the
        time, and one that has ended by then had written its last word before.
        """
        for _ in range(5):
            kept = self.entry.is_kept()
            run = self.last_run
            end = self.entry.end_of(int(run.get("run", 0))) if run else None
            if kept != self.entry.is_kept() or run.get("run") != self.last_run.get("run"):
                continue
            break
        if not run:
            self.entry.config  # noqa: B018 - raises where the record is gone
            return "created", run, None
        if kept and end is None:
            return ("paused" if self._is_frozen(run) else "running"), run, None
        if kept:
            return ("restarting" if self._starts_again(end) else "exited"), run, end
        return ("dead" if end is None else "exited"), run, end

    def _starts_again(self, end: Mapping[str, str] | None) -> bool:
        policy = self._policy()
        failed = end is None or end["status"] != "0"
        return not os.path.exists(self.entry.file("stopped")) and (policy == 2 or (policy == 1 and failed))

    def _policy(self) -> int:
        with suppress(OSError, ValueError), open(self.entry.file("policy"), encoding="ascii") as file:
            return int(file.read())
        return 0

    @staticmethod
    def _is_frozen(run: Mapping[str, Any]) -> bool:
        for group in run["groups"]:
            for name, frozen in (("cgroup.freeze", "1"), ("freezer.state", "FROZEN")):
                with suppress(OSError), open(f"{group}/{name}", encoding="ascii") as file:
                    if file.read().strip() == frozen:
                        return True
        return False

    @property
    def pid(self) -> int | None:
        """The pid of its command, outside; None while it does not run."""
        status, run, _ = self.looked_at()
        return int(run["pid"]) if status in ("running", "paused") else None

    @property
    def exit_code(self) -> int | None:
        """The exit status of the last run, or the negative number of the signal that ended it.

        None while it runs, before the first start, and where the keeper was killed.
        """
        _, _, end = self.looked_at()
        return None if end is None else os.waitstatus_to_exitcode(int(end["status"]))

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel killed a process of the last run for its memory."""
        end = self.looked_at()[2]
        return end is not None and end["oom"] == "1"

    @property
    def started_at(self) -> float | None:
        """When it was started last, in seconds since 1970; None before."""
        return self.last_run.get("started")

    @property
    def finished_at(self) -> str | None:
        """When the last run ended, in UTC as RFC 3339; None where nobody knows."""
        end = self.looked_at()[2]
        return None if end is None else end["finished"]

    @property
    def restarts(self) -> int:
        """How often its policy has started it again since it was started by hand."""
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
        """The words of ``run`` that made it, and the working directory of that; empty for what Python made."""
        keeping = self.keeping
        return list(keeping.command_line), keeping.directory

    @property
    def stop_timeout_s(self) -> float:
        """How many seconds it has to end by itself."""
        return self.keeping.stop_timeout_s

    @property
    def keeper(self) -> int | None:
        """The pid of its keeper; None while it does not run."""
        run = self.last_run
        return int(run["keeper"]) if run and self.entry.is_kept() else None

    @property
    def mounts(self) -> tuple[Mount, ...]:
        """What is mounted in it."""
        return self.description().spec.mounts

    @property
    def created_at(self) -> float:
        """When it was put on record, in seconds since 1970."""
        return float(self.entry.config["created"])

    @property
    def health(self) -> str | None:
        """``"starting"``, ``"healthy"`` or ``"unhealthy"`` while it runs; None where its health is not checked."""
        status, run, _ = self.looked_at()
        found = health_state(self.entry, status, run)
        return None if found is None else str(found["status"])

    @property
    def addresses(self) -> list[str]:
        """Its addresses on a network; empty while it does not run, and where it is on none that others serve."""
        status, run, _ = self.looked_at()
        return list(run.get("network", {}).get("addresses", ())) if status in ("running", "paused") else []

    @property
    def ports(self) -> list[Port]:
        """Its published ports, with the host's ports that they have got; empty while it does not run."""
        from containerkit.spec.network import Port

        status, run, _ = self.looked_at()
        told = run.get("network", {}).get("ports", ()) if status in ("running", "paused") else ()
        return [Port(**each) for each in told]

    @property
    def error(self) -> str | None:
        """Why its policy could not start it again; None where it could."""
        content = self.entry.read("error.json")
        return None if content is None else str(content["error"])

    def summary(self) -> dict[str, Any]:
        """Return what a list of containers shows of it, with a single look at the record.

        ``status``, ``pid``, ``exit_code``, ``created``, ``health`` and ``labels`` are those of the attributes;
        ``init`` is the pid of the last run's init.
        """
        status, run, end = self.looked_at()
        config = self.entry.config
        return {
            "id": self.id,
            "name": config["name"],
            "image": config["image"],
            "command": config["argv"],
            "created": config["created"],
            "status": status,
            "init": run.get("init"),
            "pid": run["pid"] if status in ("running", "paused") else None,
            "exit_code": None if end is None else os.waitstatus_to_exitcode(int(end["status"])),
            "health": None if (found := health_state(self.entry, status, run)) is None else found["status"],
            "ports": run.get("network", {}).get("ports", []) if status in ("running", "paused") else [],
            "labels": config["labels"],
        }

    def inspect(self) -> dict[str, Any]:
        """Return all that is known of it, by the names that Docker's users know.

        ``State.ExitCode`` is 128 + N for signal N, as a shell has it; -1 where nobody knows.
        """
        from containerkit.detached.inspection import inspection

        return inspection(self)

    def description(self) -> Description:
        """Return what it is made from.

        Raises:
            StateError: its record is gone, or another version's.
        """
        from containerkit.detached.description import Description

        try:
            with open(self.entry.file("description"), "rb") as file:
                return Description.load(file.read())
        except FileNotFoundError:
            raise StateError(f"container {self.id}: its record is gone") from None

    def goes_on(self) -> bool:
        """Return whether it runs, or will by its policy."""
        try:
            return self.status in ("running", "paused", "restarting")
        except StateError:
            return False

    # --- What it has written

    def logs(
        self,
        *,
        follow: bool = False,
        since: Moment | None = None,
        until: Moment | None = None,
        tail: int | None = None,
        pieces: bool = False,
    ) -> Iterator[LogLine]:
        """Yield what its command has written.

        Args:
            follow: wait for more, until it has ended (default False).
            since, until: only what was written then: a datetime, seconds since 1970, a timedelta or text such as
                ``"10m"`` for so long ago, or a time as RFC 3339 has it.
            tail: only so many of the last lines.
            pieces: also pieces of lines, as they came: a prompt is one (default False: whole lines up to 1 MiB).

        Raises:
            SpecError: no time, or no number.
            SetupError: the logs can't be read.
        """
        from containerkit.detached.logs import read

        asked = self._asked_of_logs(since, until, tail)
        return read(self.entry.state_path, **asked, follow=self.goes_on if follow else None, pieces=pieces)

    def log_steps(
        self,
        *,
        follow: bool = False,
        since: Moment | None = None,
        until: Moment | None = None,
        tail: int | None = None,
        pieces: bool = False,
    ) -> Generator[LogLine | int, None, None]:
        """Yield what :meth:`logs` does, and, where it would wait, an inotify descriptor to be waited for.

        It is for event loops, such as :func:`containerkit.aio.logs`: nothing of it waits.

        Args:
            follow, since, until, tail, pieces: as for :meth:`logs`.

        Raises:
            SpecError, SetupError: as for :meth:`logs`.
        """
        from containerkit.detached.logs import steps

        asked = self._asked_of_logs(since, until, tail)
        return steps(self.entry.state_path, **asked, follow=self.goes_on if follow else None, pieces=pieces)

    @staticmethod
    def _asked_of_logs(since: Moment | None, until: Moment | None, tail: int | None) -> dict[str, Any]:
        from containerkit.detached.logs import moment

        if tail is not None and (isinstance(tail, bool) or not isinstance(tail, int) or tail < 0):
            raise SpecError(f"tail: {tail!r:.100} is not a number of lines")
        start = "" if since is None else moment(since, "since")
        return {"since": start, "until": "~" if until is None else moment(until, "until"), "tail": tail}

    def resolved_root(self) -> RootFS:
        """Return what its root stood for at the last start."""
        run = self.last_run
        if not run:
            raise StateError(f"{self!r}: it was never started")
        import pickle

        found: RootFS = pickle.loads(bytes.fromhex(run["root"]))  # noqa: S301 - nobody but the user can write it
        return found

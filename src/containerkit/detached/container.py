"""The class of detached containers."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import contextmanager, suppress

from containerkit.detached import store
from containerkit.detached.events import emit, identify
from containerkit.detached.known import KEEPER_KILLED, NO_GROUP, Known, signal_number
from containerkit.errors import SetupError, StateError
from containerkit.values import asdict, evolve, fields_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any, Final, Unpack

    from containerkit.cgroup import CGroup, Limits
    from containerkit.cgroup.stats import Stats
    from containerkit.container.changes import Change
    from containerkit.container.lifecycle import Container
    from containerkit.image import Image
    from containerkit.image.options import CommitOptions
    from containerkit.options import ConfinementOptions

__all__ = ["Detached", "containers", "find"]

_END_S: Final = 10.0
_LIVE: Final = ("running", "paused", "restarting")
"""The time that a killed container has to end, in seconds."""


class Detached(Known):
    """A detached container, returned by :meth:`containerkit.Container.detach` and :func:`containers`.

    It owns nothing: any number of objects, in any process, can represent the same container.

    Attributes:
        id: the container's.
    """

    # --- Life

    def start(self) -> None:
        """Start it again after its end.

        Raises:
            StateError: it is running.
            ContainerError: the start failed.
        """
        status = self.status
        if status in _LIVE:
            raise StateError(f"{self!r}: it is {status}")
        self._wait_for_keeper()
        for name in ("stopped", "error.json"):
            with suppress(FileNotFoundError):
                os.unlink(self.entry.file(name))
        from containerkit.detached.begin import begin  # late: other calls start nothing

        begin(self.entry)

    def ask_to_end(self, run: int) -> None:
        """Ask a run to end as :meth:`stop` does, without waiting: for a caller that ends with it."""
        asked = self.keeping.stop_signal
        self._mark_stopped()
        self.signal_command(
            signal_number(asked if asked is not None else self.last_run.get("stop_signal", signal.SIGTERM)), run
        )
        emit(self.entry, "stop")

    def stop(self, grace_s: float | None = None, *, stop_signal: int | str | None = None) -> None:
        """Ask it to end, and kill it after a time. It is not restarted. Does nothing if it is not running.

        Args:
            grace_s: the time that it has to end, in seconds (default: its ``stop_timeout_s``).
            stop_signal: the signal that asks it to end (default: its own, or that of its image, or SIGTERM).

        Raises:
            SpecError: an invalid signal.
            StateError: its record was removed.
        """
        keeping = self.keeping
        status, run, _ = self.looked_at()
        asked = stop_signal if stop_signal is not None else keeping.stop_signal
        number = signal_number(asked if asked is not None else run.get("stop_signal", signal.SIGTERM))
        self._mark_stopped()
        if status == "paused":
            self.resume()
        if status in ("running", "paused"):
            self.signal_command(number, int(run["run"]))
            deadline = time.monotonic() + (keeping.stop_timeout_s if grace_s is None else grace_s)
            while self.entry.end_of(run["run"]) is None and self.entry.is_kept():
                if time.monotonic() >= deadline:
                    break
                self._sleep_until_end(run, deadline - time.monotonic())
        self._end()
        if status in _LIVE:
            emit(self.entry, "stop")

    def kill(self, signal: int | str = "SIGKILL") -> None:
        """Send a signal to its command. After SIGKILL this returns when it has ended, and it is not restarted.

        Raises:
            SpecError: an invalid signal.
            StateError: it is not running.
        """
        number = signal_number(signal)
        status, run, _ = self.looked_at()
        if status not in _LIVE:
            raise StateError(f"{self!r}: it does not run")
        emit(self.entry, "kill", signal=number)
        if number != 9:
            self.signal_command(number, int(run["run"]))
            return
        self._mark_stopped()
        if status == "paused":
            self.resume()
        self._end()

    def restart(self, grace_s: float | None = None) -> None:
        """Stop it if it is running, and start it. Arguments and errors as for :meth:`stop` and :meth:`start`."""
        self.stop(grace_s)
        self.start()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the run.

        Args:
            timeout: in seconds (default: no limit).

        Returns:
            As :attr:`exit_code`.

        Raises:
            ContainerTimeout: it is still running.
            StateError: it was never started, its keeper was killed, or the record was removed at its end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            status, run, end = self.looked_at()
            if end is not None:
                return os.waitstatus_to_exitcode(int(end["status"]))
            if status in ("created", "dead"):
                why = (
                    "it was never started" if status == "created" else f"{KEEPER_KILLED}, so its exit status is unknown"
                )
                raise StateError(f"{self!r}: {why}")
            left = 86_400.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                from containerkit.errors import ContainerTimeout  # late: it imports subprocess

                raise ContainerTimeout(self.argv, timeout or 0.0)
            self._sleep_until_end(run, left)

    def pause(self) -> None:
        """Freeze all of its processes.

        Raises:
            StateError: it is not running.
            UnsupportedError: it has no control group that can be frozen.
        """
        from containerkit.detached.freezing import freeze

        status, run, _ = self.looked_at()
        if status != "running":
            raise StateError(f"{self!r}: it is {status}, not running")
        freeze(self.id, run)
        emit(self.entry, "pause")

    def resume(self) -> None:
        """Let its processes continue.

        Raises:
            StateError: it is not paused.
        """
        from containerkit.detached.freezing import thaw

        status, run, _ = self.looked_at()
        if status != "paused":
            raise StateError(f"{self!r}: it is {status}, not paused")
        thaw(self.id, run)
        emit(self.entry, "unpause")

    def rename(self, name: str) -> None:
        """Give it another name.

        Raises:
            SpecError: it can't be one.
            StateError: another container has it.
        """
        config = self.entry.config
        former = config["name"]
        self.entry.rename(name, {**config, "name": name})
        identify(self.entry, {**config, "name": name})
        emit(self.entry, "rename", former=former)

    def update(self, limits: Limits | None = None, *, restart: str | None = None) -> None:
        """Change its limits or its policy, now and for later starts. None leaves a value unchanged.

        Raises:
            SpecError, UnsupportedError, SetupError: the limits can't be set; the former ones still apply.
            StateError: it is running without a control group.
        """
        if restart is not None:
            keeping = evolve(self.keeping, restart=restart)
            self.entry.write("config.json", {**self.entry.config, **asdict(keeping)})
            from containerkit.detached.begin import write_policy
            from containerkit.detached.settings import Policy

            write_policy(self.entry, Policy.parse(restart), self.restarts)
            emit(self.entry, "update", restart=restart)
        if limits is None:
            return
        if self.status in ("running", "paused"):
            with self._group() as group:
                group.update(limits)
        description = self.description()
        former = description.spec.limits
        if former is not None:
            given = {
                f.name: v for f in fields_of(type(limits)) if f.init and (v := getattr(limits, f.name)) is not None
            }
            limits = evolve(former, **given)
        changed = evolve(description, spec=evolve(description.spec, limits=limits))
        self.entry.write_bytes("description", changed.dump())
        emit(self.entry, "update", limits=str(limits))

    def remove(self, *, force: bool = False) -> None:
        """Remove its record and all its files.

        Args:
            force: kill it first, if it is running (default False).

        Raises:
            StateError: it is running.
            CleanupError: a file could not be removed.
        """
        status = self.status
        if status in _LIVE and not force:
            raise StateError(f"{self!r}: it is {status}: stop it first, or pass force=True (rm --force)")
        config = self.entry.config
        was_live = status in _LIVE
        while True:
            if status in _LIVE:
                with suppress(StateError):
                    self.kill()
            try:
                self._wait_for_keeper()
                self.entry.remove()
                break
            except StateError:
                if was_live and not os.path.exists(self.entry.path):  # its keeper has removed it, as it was told
                    return
                status = self.status
                if not force or status not in _LIVE:  # otherwise it was started in the meantime
                    raise
        emit(self.entry, "destroy", config)

    def abandon(self) -> None:
        """Remove it after its start was interrupted, even if another process is still starting it."""
        config = self.entry.config
        while True:
            self._end()
            try:
                self.entry.remove()
                break
            except StateError:
                if not os.path.exists(self.entry.path):
                    raise
                # Otherwise the process that is starting it has locked it just now.
        emit(self.entry, "destroy", config)

    # --- Statistics and changes

    def stats(self) -> Stats:
        """Return the statistics of its control group.

        Raises:
            StateError: it is not running, or has no control group.
        """
        with self._group() as group:
            return group.stats()

    def members(self) -> list[int]:
        """Return the pids of all its processes on the host.

        Raises:
            StateError: it is not running.
        """
        with self.attach() as view:
            return view.members()

    def changes(self) -> Iterator[Change]:
        """Yield the files that it has added, changed and deleted below its root, running or not.

        Raises:
            StateError: it was never started, or its root keeps no changes on disk.
        """
        from containerkit.detached.view import changes

        yield from changes(self.resolved_root(), self.description().spec, repr(self))

    def commit(
        self, reference: str | None = None, *, author: str = "", message: str = "", **defaults: Unpack[CommitOptions]
    ) -> Image:
        """Make an image from its changes; see :func:`containerkit.image.commit`.

        Args:
            reference: the new image's name, or None.
            author: the author.
            message: a message for the history.
            defaults: see :class:`containerkit.image.options.CommitOptions`.

        Raises:
            StateError: its root keeps no changes, or it is not running and its root was in memory.
        """
        from containerkit.detached.health import image_of
        from containerkit.image import commit

        spec = self.description().spec
        base = image_of(spec, pull="never") if spec.rootfs.kind == "image" else None
        with self.opened() as view:
            made = commit(view, reference, base=base, author=author, message=message, **defaults)
        emit(self.entry, "commit", reference=reference or "", digest=str(made.digest))
        return made

    @contextmanager
    def opened(self) -> Iterator[Container]:
        """Yield a container for its files, running or not. It can't be started at the same time.

        Raises:
            StateError: it is not running, and was never started or its root was in memory.
            SetupError: the container for the files can't be started.
        """
        if self.status in ("running", "paused"):
            with self.attach() as view:
                yield view
            return
        from containerkit.detached.opened import opened

        with opened(self) as container:
            yield container

    def attach(self, **confinement: Unpack[ConfinementOptions]) -> Container:
        """Return a view of it for ``run``, ``popen`` and ``files``; see :meth:`containerkit.Container.attach`.

        Raises:
            StateError: it is not running.
        """
        from containerkit.detached.view import View

        return View(self.entry, confinement)

    # ---

    @contextmanager
    def _group(self) -> Iterator[CGroup]:
        status, run, _ = self.looked_at()
        if status not in ("running", "paused"):
            raise StateError(f"{self!r}: it does not run")
        from containerkit.container.attached import group_at  # late: most calls need no container of the library

        group = group_at(self.id, run["groups"])
        if group is None:
            raise StateError(f"{self!r}: {NO_GROUP}")
        try:
            yield group
        finally:
            group.close()

    def _mark_stopped(self) -> None:
        # A start has reserved the file, because the filesystem may be full, and a stop may be the remedy.
        with suppress(FileNotFoundError):
            os.replace(self.entry.file("stopped.new"), self.entry.file("stopped"))
            return
        try:
            os.close(os.open(self.entry.file("stopped"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except FileNotFoundError:
            raise StateError(f"container {self.id}: its record was removed") from None
        except OSError as error:
            raise SetupError("open", error.errno or 0, self.entry.file("stopped")) from None

    def signal_command(self, number: int, run: int) -> None:
        """Send a signal to the command of a run. Does nothing if it has ended.

        Its pid can't be reused before its keeper reaps it. This is checked after the pidfd is opened.
        """
        last = self.last_run
        if last.get("run") != run:
            return
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(int(last["pid"]))
            try:
                if self.entry.is_kept() and self.entry.end_of(run) is None:
                    signal.pidfd_send_signal(pidfd, number)
            finally:
                os.close(pidfd)

    def _sleep_until_end(self, run: Mapping[str, Any], most_s: float) -> None:
        """Sleep until the command has ended, at most for the given time. If it has already ended, sleep briefly."""
        try:
            pidfd = os.pidfd_open(int(run["pid"]))
        except ProcessLookupError:
            time.sleep(min(0.001, max(0.0, most_s)))
            return
        try:
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(min(most_s, 3600.0) * 1000):
                time.sleep(0.0005)
        finally:
            os.close(pidfd)

    def _end(self) -> None:
        """Kill the keeper, and with it the container. Return when it has ended."""
        self._wait_for_keeper(end=True)

    def _wait_for_keeper(self, *, end: bool = False) -> None:
        """Wait for the end of the keeper.

        Args:
            end: ask it to end, also one that another process is just starting (default False).
        """
        deadline, pause_s, asked = time.monotonic() + _END_S, 0.0002, 0
        while self.entry.is_kept():
            if end and (keeper := int(self.last_run.get("keeper", 0))) != asked and self._end_keeper(keeper):
                asked = keeper
            if time.monotonic() > deadline:
                raise StateError(f"{self!r}: it has not ended within {_END_S:g} s")
            time.sleep(pause_s)
            pause_s = min(0.01, 1.5 * pause_s)

    def _end_keeper(self, pid: int) -> bool:
        """Send SIGTERM to the keeper of this pid. Return False if that process holds no lock of the record."""
        with suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                # The pid of a former keeper may belong to another process by now.
                if os.readlink(f"/proc/{pid}/fd/{store.KEEPER_LOCK}") == self.entry.file("lock"):
                    signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                    signal.pidfd_send_signal(pidfd, signal.SIGCONT)  # a stopped one would not take notice
                    return True
            finally:
                os.close(pidfd)
        return False


def find(name: str) -> Detached:
    """Return the detached container of a name, an id, or the beginning of an id.

    Raises:
        StateError: no such container, or there are several.
    """
    return Detached(store.find(name))


def containers(*, all: bool = False) -> list[Detached]:  # noqa: A002 - as in ps -a
    """Return the detached containers of this user, the oldest first.

    Args:
        all: also those that are not running (default False).
    """
    found = [Detached(entry) for entry in store.entries()]
    return found if all else [one for one in found if one.goes_on()]

"""One container of a service, from its start to its end: its command, log, health and restarts."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from subprocess import PIPE
from typing import TYPE_CHECKING, Any, Final, Literal

from containerkit._linux import procfs
from containerkit.container.lifecycle import Container
from containerkit.errors import ContainerError, ContainerTimeout, SpecError, StateError
from containerkit.project.health import watch
from containerkit.project.journal import Happening
from containerkit.project.output import Output
from containerkit.project.shapes import duration_s
from containerkit.spec.command import User

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from containerkit.process.process import Process
    from containerkit.project.journal import Journal, LogLine
    from containerkit.project.realize import Recipe

__all__ = ["Replica", "Restart", "signal_number", "write_files"]

_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 60.0
_LASTING_S: Final = 10.0  # after a run of this length the pauses begin anew with the shortest
_KILL_S, _KILL_AGAIN_S = 2.0, 0.002

Status = Literal["created", "running", "restarting", "paused", "exited"]


def signal_number(text: str) -> int:
    """Return the number of a signal.

    Raises:
        SpecError: no such signal.
    """
    try:
        if text.isdecimal():
            return int(signal.Signals(int(text)))
        return int(signal.Signals[f"SIG{text.upper().removeprefix('SIG')}"])
    except (KeyError, ValueError):
        raise SpecError(f"{text!r:.60} is not a signal") from None


def write_files(container: Container, recipe: Recipe) -> None:
    """Write the files of a recipe into a running container, before its command starts.

    Raises:
        SetupError: a file can't be written.
    """
    for path, content, mode, uid, gid in recipe.files:
        container.files.make_directory(os.path.dirname(path))
        container.files.write(path, content.encode(errors="surrogateescape"), mode=mode, user=User(uid, gid))


class Restart:
    """Decides whether a command that has ended is restarted.

    Args:
        keys: of the service.

    Raises:
        SpecError: no such policy.

    Source: the compose specification, "restart"; deploy specification, "restart_policy".
    """

    def __init__(self, keys: Mapping[str, Any]) -> None:
        policy = keys.get("deploy", {}).get("restart_policy", {})
        words = {"none": "no", "any": "always"}
        text = keys.get("restart") or words.get(policy.get("condition", ""), policy.get("condition", "no"))
        name, _, count = text.partition(":")
        if name not in ("no", "always", "unless-stopped", "on-failure") or (count and not count.isdecimal()):
            raise SpecError(f"restart: {text!r:.60} is not one of no, always, unless-stopped, on-failure[:NUMBER]")
        self.policy = name
        self.most = int(count) if count else policy.get("max_attempts")
        self.delay_s = duration_s(policy["delay"]) if "delay" in policy else None
        self.window_s = duration_s(policy["window"]) if "window" in policy else None

    def wanted(self, code: int, times: int) -> bool:
        """Return whether a command that has ended with a status is restarted, after so many restarts."""
        if self.policy == "no" or (self.policy == "on-failure" and code == 0):
            return False
        return self.most is None or times < self.most


if TYPE_CHECKING:
    from containerkit.container.commands import Commands as _LikeContainer
else:
    _LikeContainer = object


class Replica(_LikeContainer):
    """One container of a service, with the methods of a running container: ``run``, ``popen``, ``files``.

    Attributes:
        name: of the container.
        service: the name of its service.
        fingerprint: of the service when the container was created.
        status: ``"created"``, ``"running"``, ``"restarting"``, ``"paused"`` or ``"exited"``.
        health: ``None`` without a check, else ``"starting"``, ``"healthy"`` or ``"unhealthy"``.
        exit_code: of the command when it last ended; 128+N if signal N ended it.
        restarts: how often the command was restarted.
        exits: how often it has ended.
        output: what its command writes.
        is_kept: whether the command was stopped, and the container keeps its files for the next one.
    """

    def __init__(
        self,
        name: str,
        service: str,
        keys: Mapping[str, Any],
        recipe: Recipe,
        *,
        fingerprint: str,
        network: Mapping[str, Any],
        journal: Journal[LogLine],
        happened: Journal[Happening],
        changed: Callable[[], object],
    ) -> None:
        self.name, self.service, self.fingerprint = name, service, fingerprint
        self.status: Status = "created"
        self.is_kept = False
        self.exit_code: int | None = None
        self.restarts = self.exits = 0
        self.started_at = 0.0
        self.container = Container(**recipe.container, **network)
        self._keys, self._recipe, self._happened, self._changed = keys, recipe, happened, changed
        self.output = Output(service, name, keys.get("logging", {}), journal)
        self.health: str | None = self._first_health()
        self._restart = Restart(keys)
        self._grace_s = duration_s(keys.get("stop_grace_period", "10s"))
        self._stopping = threading.Event()
        self._again = threading.Event()
        self._process: Process[Any] | None = None
        self._thread: threading.Thread | None = None
        self._stdin: Any = None
        self._end = -1

    def __repr__(self) -> str:
        return f"<Replica {self.name}: {self.status}>"

    def __getattr__(self, name: str) -> Any:
        """Delegate all other attributes to the container: ``run``, ``popen``, ``files`` and so on."""
        if name.startswith("_") or name == "container":
            raise AttributeError(name)
        return getattr(self.container, name)

    # --- Life

    def start(self) -> None:
        """Start it: its container, or after ``stop(keep=True)`` only its command.

        Raises:
            SetupError: it could not be started; nothing is left behind.
        """
        try:
            if not self.is_kept:
                self.note("create")
                self.container.start()
                write_files(self.container, self._recipe)
            self.is_kept = False
            self._stopping = threading.Event()  # the checks of the former command have ended with the former event
            self.set_health(self._first_health())
            self._begin()
            for hook in self._keys.get("post_start", ()):
                self._hook(hook)
        except BaseException:
            self.container.stop()
            self.status = "exited"
            raise
        self._thread = threading.Thread(target=self._attend, name=self.name, daemon=True)
        self._thread.start()
        if self._recipe.is_watched:
            threading.Thread(target=self._watch, name=self.name, daemon=True).start()

    def _begin(self) -> None:
        options: dict[str, Any] = dict(self._recipe.command)
        if self._keys.get("tty"):
            options["pty"] = True
        else:
            options |= {"stdin": PIPE if self._keys.get("stdin_open") else -3, "stdout": PIPE, "stderr": PIPE}
        self._process = self.container.popen(self._recipe.argv, **options)
        self._end = os.dup(self._process.fileno())  # the first one who waits for the process closes its own
        self._stdin = self._process.stdin  # kept open as long as the command runs
        self.status, self.started_at = "running", time.time()
        self.note("start")
        self._changed()

    def _hook(self, hook: Mapping[str, Any]) -> None:
        options: dict[str, Any] = {**self._recipe.command}
        if "user" in hook:
            options["user"] = hook["user"]
        if "working_dir" in hook:
            options["cwd"] = hook["working_dir"]
        env = {name: value for name, value in hook.get("environment", {}).items() if value is not None}
        options["env"] = {**options.get("env", {}), **env}
        self.container.run(hook["command"], check=True, **options)

    def _attend(self) -> None:
        """Read the output, and restart the command, until it has ended for good."""
        pause, tries = _FIRST_PAUSE_S, 0
        while True:
            assert self._process is not None
            began = time.monotonic()
            try:
                self.output.follow(self._process, self._end)
            finally:
                os.close(self._end)
            code = self._process.wait()
            self._process.close()
            self.exit_code = code if code >= 0 else 128 - code
            self.exits += 1
            self.output.end()
            self.note("die", exitCode=str(self.exit_code))
            if self._restart.window_s is not None and time.monotonic() - began > self._restart.window_s:
                tries = 0
            asked = self._again.is_set()
            self._again.clear()
            if self._stopping.is_set() or not (asked or self._restart.wanted(self.exit_code, tries)):
                break
            if time.monotonic() - began > _LASTING_S:
                pause = _FIRST_PAUSE_S
            self.status = "restarting"
            self._changed()
            if not asked:
                self._stopping.wait(self._restart.delay_s if self._restart.delay_s is not None else pause)
                pause = min(pause * 2, _LONGEST_PAUSE_S)
                self.restarts += 1
                tries += 1
            if self._stopping.is_set() or not self._begun_again():
                break
        if not self._stopping.is_set():  # otherwise stop() decides about the container
            with suppress(ContainerError):
                self.container.stop()
        self.status = "exited"
        self._changed()

    def _begun_again(self) -> bool:
        try:
            self._begin()
        except ContainerError as error:
            self.output.say(f"containerkit: {error}")
            return False
        return True

    def stop(self, grace_s: float | None = None, *, keep: bool = False) -> None:
        """Ask the command to end, wait, then kill what is left. May be called twice.

        Args:
            grace_s: how long to wait, in seconds (default: the service's ``stop_grace_period``, or 10).
            keep: keep the container for the next :meth:`start`, unless it shares the host's pid namespace, or has
                ended by itself (default False).
        """
        if self.status in ("running", "paused", "restarting"):
            self.note("stop")
        if not self._stopping.is_set() and self.status == "running":
            for hook in self._keys.get("pre_stop", ()):
                with suppress(ContainerError):
                    self._hook(hook)
        self._stopping.set()
        number = self._stop_signal()
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ContainerError, OSError):
                process.send_signal(number)
                if self.status == "paused":
                    self.container.resume()
                process.wait(self._grace_s if grace_s is None else grace_s)
        self.is_kept = keep and self.container.spec.namespaces.pid == "new" and self._kill_all()
        if not self.is_kept:
            self.container.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self.status = "exited"
        self._changed()

    def _kill_all(self) -> bool:
        """Kill all processes of the container but its init.

        Returns:
            Whether its init alone is left. It is not, if it has ended, or if processes multiply too fast.
        """
        deadline = time.monotonic() + _KILL_S
        with suppress(ContainerError, OSError):
            while time.monotonic() < deadline:
                pidfds = self._pidfds_of_others()
                if not pidfds:
                    return True
                for pidfd in pidfds:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    os.close(pidfd)
                time.sleep(_KILL_AGAIN_S)
        return False

    def _pidfds_of_others(self) -> list[int]:
        """Return a pidfd for each process but the init. The caller closes them."""
        opened: dict[int, int] = {}
        still: set[int] = set()
        try:
            for pid in self._others():
                with suppress(ProcessLookupError):
                    opened[pid] = os.pidfd_open(pid)
            still = self._others()  # a number that now belongs to another process is not among them
        finally:
            for pid in opened.keys() - still:
                os.close(opened.pop(pid))
        return list(opened.values())

    def _others(self) -> set[int]:
        # An init of an inner pid namespace is in that namespace. Once its parent is killed, it is a child of ours.
        init = self.container.pid
        return {*self.container.members(), *procfs.children(init)} - {init}

    def _stop_signal(self) -> int:
        text = self._recipe.stop_signal
        return self.container.rootfs.stop_signal if text is None else signal_number(text)

    def restart(self, grace_s: float | None = None) -> None:
        """End the command and start it again, in the same container.

        Raises:
            StateError: it is not running.
        """
        process = self._process
        if process is None or self.status not in ("running", "restarting"):
            raise StateError(f"{self.name}: it is not running; 'up' starts it")
        self._again.set()
        self.note("restart")
        with suppress(ContainerError):
            process.send_signal(self._stop_signal())
            try:
                process.wait(self._grace_s if grace_s is None else grace_s)
            except ContainerTimeout:
                process.kill()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send the command a signal."""
        if self._process is not None:
            self._process.send_signal(number)
            self.note("kill", signal=str(int(number)))

    def pause(self) -> None:
        """Freeze all of its processes."""
        self.container.pause()
        self.status = "paused"
        self.note("pause")

    def unpause(self) -> None:
        """Let its processes continue."""
        self.container.resume()
        self.status = "running"
        self.note("unpause")

    @property
    def pid(self) -> int | None:  # type: ignore[override] # None between two commands
        """The command's process id outside; None if it is not running."""
        return self._process.pid if self._process is not None and self.status == "running" else None

    @property
    def was_stopped(self) -> bool:
        """Whether it has been asked to end, and not to restart."""
        return self._stopping.is_set()

    @property
    def labels(self) -> dict[str, str]:
        """Its labels."""
        return dict(self._keys.get("labels", {}))

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations."""
        return dict(self._keys.get("annotations", {}))

    @property
    def argv(self) -> tuple[str, ...]:
        """Its command."""
        return self._recipe.argv

    def options(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of an additional command: those of the service, overridden by the caller's."""
        found = {**self._recipe.command}
        if request.get("env"):
            found["env"] = {**found.get("env", {}), **request["env"]}
        for name in ("user", "cwd"):
            if request.get(name):
                found[name] = request[name]
        if request.get("privileged"):
            from containerkit.security.capabilities import Capabilities

            found |= {"capabilities": Capabilities.all(), "seccomp": None}
        return found

    def ports(self) -> list[str]:
        """Return its published ports, such as ``0.0.0.0:8080->80/tcp``."""
        from containerkit.network.later import published_of

        if self.status == "exited":
            return []
        return [
            f"{each.port.host}:{each.host_port}->{each.port.container_port}/{each.port.protocol}"
            for each in published_of(self.container)
        ]

    # --- Health

    def _first_health(self) -> str | None:
        return "starting" if self._recipe.check is not None or self._recipe.started is not None else None

    def _watch(self) -> None:
        made = self._recipe
        watch(self, made.command, self._stopping, ready=made.check, alive=made.alive, started=made.started)

    def set_health(self, health: str | None) -> None:
        """Set its health, and wake those who wait for it."""
        if self.health != health:
            self.health = health
            if health in ("healthy", "unhealthy"):
                self.note(f"health_status: {health}")
            self._changed()

    def note(self, action: str, **attributes: str) -> None:
        """Add an event of this container to those of the project."""
        named = {"name": self.name, "image": self._keys.get("image", ""), **attributes}
        self._happened.add([Happening(time.time(), self.service, self.name, action, named)])

    @property
    def has_terminal(self) -> bool:
        """Whether its command has a terminal."""
        return bool(self._keys.get("tty"))

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal. Nothing happens if it has none."""
        if self.has_terminal and self._process is not None:
            self._process.resize(rows, columns)

    @property
    def stdin(self) -> int | None:
        """The descriptor of its standard input, or of its terminal; None if it reads nothing."""
        given = self._stdin if self.status == "running" else None
        return None if given is None else int(given.fileno())

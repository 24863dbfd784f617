"""The worker's side of a held container: starts it, serves the driver's calls, stops it."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import StateError
from containerkit.fleet.engine import Outcome
from containerkit.fleet.errors import FleetError
from containerkit.fleet.perform import Attending, root_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.container.lifecycle import Container
    from containerkit.fleet.engine import Task
    from containerkit.fleet.link import Link
    from containerkit.process.process import Process
    from containerkit.process.result import CompletedProcess

__all__ = ["FILE_CALLS", "Holding"]

FILE_CALLS: Final = frozenset(
    {"read", "read_text", "write", "append", "make_directory", "listdir", "exists"}
)  # fmt: skip
"""The methods of files that the driver may call."""


class Holding(Attending):
    """A container that is held for a driver.

    Args:
        link: the connection to its driver.
        id: the id of the task.
    """

    def __init__(self, link: Link, id: str) -> None:  # noqa: A002 - the name everywhere else
        super().__init__(link, id)
        self._stop = threading.Event()
        self._container: Container | None = None
        self._commands: dict[int, Process[Any]] = {}
        self._early: dict[int, list[int]] = {}

    def work(self, task: Task) -> Outcome:
        """Hold the container until it is stopped."""
        from containerkit.container.lifecycle import Container

        began = time.monotonic()
        try:
            fields = dict(task.options)
            root = root_of(task)
            if root is not None:
                fields["rootfs"] = root
            if task.limits is not None:
                fields["limits"] = task.limits
            self.check()
            with Container(**fields) as container:
                self._container = container
                self.ends_by(self._stop.set)
                self._say("ready")
                self._stop.wait()
        except Exception as error:  # noqa: BLE001 - raised again in the driver
            return Outcome(error=error, run_s=time.monotonic() - began)
        return Outcome(error=FleetError(f"container {self.id}: it was stopped"), run_s=time.monotonic() - began)

    def call(self, *message: Any) -> None:
        """Serve a call in a separate thread."""
        number, method, given = message
        if method == "signal":
            self._signal(*given)
            return
        self._early[number] = []
        thread = threading.Thread(target=self._serve, args=(number, method, given), name="containerkit call")
        thread.daemon = True
        thread.start()

    def _signal(self, number: int, which: int) -> None:
        """Send a signal to a command. A command that is about to start gets it after its start."""
        with self._lock:
            process = self._commands.get(number)
            if process is None:
                self._early.get(number, []).append(which)
                return
        process.kill_all() if which == signal.SIGKILL else process.send_signal(which)

    def _serve(self, number: int, method: str, given: tuple[Any, ...]) -> None:
        try:
            assert self._container is not None
            if method == "run":
                value: Any = self._command(number, *given)
            else:
                value = self._of_files(*given)
            answer: tuple[bool, Any] = (True, value)
        except Exception as error:  # noqa: BLE001 - raised again in the driver
            stopped = StateError(f"container {self.id}: it was stopped")
            answer = (False, stopped if self._stop.is_set() else error)
        self._early.pop(number, None)
        try:
            self._say("answer", number, *answer)
        except OSError:
            return  # the driver has ended, and so does the container
        except Exception as error:  # noqa: BLE001 - pickling runs foreign code
            told = FleetError(f"container {self.id}: the answer can't be sent: {error!r:.500}")
            with contextlib.suppress(OSError):
                self._say("answer", number, False, told)

    def _of_files(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self._container is not None
        if name not in FILE_CALLS:
            raise FleetError(f"container {self.id}: no call {name!r:.100}")
        return getattr(self._container.files, name)(*args, **kwargs)

    def _command(
        self, number: int, argv: Any, given: Any, options: dict[str, Any], listened: frozenset[str]
    ) -> CompletedProcess[Any]:
        from containerkit.container.arguments import run_streams
        from containerkit.container.captured import Terms, complete
        from containerkit.process.communicate import LineCallbacks
        from containerkit.process.process import OUTPUT_LIMIT_BYTES

        assert self._container is not None
        options = dict(options)
        timeout, check = options.pop("timeout", None), options.pop("check", False)
        capture = options.pop("capture_output", True)
        limit = options.pop("output_limit_bytes", OUTPUT_LIMIT_BYTES)
        callbacks = LineCallbacks.of(
            *(self._heard(number, each, listened) for each in ("stdout", "stderr")), kept=capture
        )
        terms = Terms.of(timeout, limit, check=check, callbacks=callbacks)
        streams = run_streams(given, options, capture=capture, callbacks=callbacks)
        process = self._container.popen(argv, **streams)
        with self._lock:
            self._commands[number] = process
            early = self._early.get(number, [])
        try:
            for which in early:
                self._signal(number, which)
            return complete(process, given, terms)
        finally:
            del self._commands[number]

    def _heard(self, number: int, stream: str, listened: frozenset[str]) -> Callable[[Any], None] | None:
        if stream not in listened:
            return None
        return lambda line: self.link.write(self.id, (number, stream), line)

    def _say(self, *message: Any) -> None:
        self.link.send("heard", self.id, *message)

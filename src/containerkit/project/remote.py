"""The client of a project that another process holds."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from containerkit._linux.listeners import refuse_stopped
from containerkit.errors import StateError
from containerkit.project.sockets import socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from containerkit.project.project import Project

__all__ = ["NotUpError", "Remote", "detach"]


class NotUpError(StateError):
    """No process holds the project."""


class Remote:
    """A running project that a separate process holds.

    Args:
        name: of the project.

    Raises:
        NotUpError: it is not up.
        StateError: its process was stopped by a signal.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._connect().close()

    def _connect(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            made.connect(socket_path(self.name))
        except OSError:
            made.close()
            raise NotUpError(f"project {self.name}: it is not up; 'up' starts it") from None
        try:
            refuse_stopped(made, f"project {self.name}")
        except StateError:
            made.close()
            raise
        return made

    def ask(self, verb: str, *, fds: tuple[int, ...] = (), **request: Any) -> Any:
        """Send a request and return its result.

        Raises:
            StateError: it could not be done, or the project went down in the meantime.
        """
        items = list(self.stream(verb, fds=fds, **request))
        return items[-1]

    def stream(self, verb: str, *, fds: tuple[int, ...] = (), **request: Any) -> Iterator[Any]:
        """Send a request and iterate over its items. The result is last.

        Raises:
            StateError: it could not be done, or the project went down in the meantime.
        """
        line = json.dumps({"verb": verb, **request}).encode() + b"\n"
        with self._connect() as connection:
            if fds:
                line = line[socket.send_fds(connection, [line], list(fds)) :]
            if line:  # even nothing can't be sent to a supervisor that has answered already
                connection.sendall(line)
            with connection.makefile("rb") as answers:
                for answer in answers:
                    (kind, value), *_ = json.loads(answer).items()
                    if kind == "error":
                        raise StateError(value)
                    yield value
                    if kind == "done":
                        return
        raise StateError(f"project {self.name}: it ended before it answered")


def project_request(project: Project) -> dict[str, Any]:
    """Return a project as part of a request."""
    return {
        "model": project.model, "directory": project.directory, "variables": dict(project.variables),
        "files": project.files,
    }  # fmt: skip


def detach(project: Project, log: Callable[[str], object], *, by_fork: bool = False, **options: Any) -> Remote:
    """Start a project in a separate process, and return when it is up.

    Args:
        project: the project.
        log: called with each step.
        by_fork: fork the caller, which must have no other threads. A fork is ready sooner than a new interpreter
            (default False).
        options: of :meth:`containerkit.project.project.Project.up`.

    Raises:
        StateError: it could not be started; nothing is left behind.
    """
    ready, told = os.pipe()
    try:
        pid = _forked(project, told, options) if by_fork else _started(project, told, options)
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(told)
    with os.fdopen(ready) as answers:
        for line in answers:
            (kind, value), *_ = json.loads(line).items()
            if kind == "error":
                os.waitpid(pid, 0)
                raise StateError(value)
            if kind == "done":
                return Remote(project.name)
            log(value)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    raise StateError(f"project {project.name}: its supervisor ended while it started (status {status})")


def _started(project: Project, told: int, options: dict[str, Any]) -> int:
    request = json.dumps({**project_request(project), "options": options}).encode()
    command = [sys.executable, "-m", "containerkit.project.detached", str(told)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, pass_fds=(told,),
        start_new_session=True, cwd="/",
    )  # fmt: skip
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(request)
    process.returncode = 0  # it is reaped by its id, or continues
    return process.pid


def _forked(project: Project, told: int, options: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        from containerkit.project.detached import hold

        os.setsid()
        os.chdir("/")
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if int(name) > 2 and os.get_inheritable(int(name)):
                    os.close(int(name))
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for number in range(3):
            os.dup2(null, number)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        status = hold(project, told, options)
    finally:
        os._exit(status)  # never return into the caller's code

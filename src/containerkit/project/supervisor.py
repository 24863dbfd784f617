"""A project that outlives the process that started it: another process holds it, and answers requests on a socket.

A request is one line of JSON, with the descriptors that a command inherits. Answers are lines of JSON: any number of
``{"item": ...}``, then ``{"done": ...}`` or ``{"error": ...}``. Only the user can access the socket's directory.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
from contextlib import suppress
from subprocess import DEVNULL
from typing import TYPE_CHECKING, Any, Final

from containerkit._linux.listeners import has_listener
from containerkit.errors import ContainerError, SpecError, StateError
from containerkit.project.project import Project
from containerkit.project.replica import signal_number
from containerkit.project.sockets import alone, socket_path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.project.replica import Replica
    from containerkit.project.stack import Stack

__all__ = ["Supervisor"]

_LINE: Final = 1 << 26
_FDS: Final = 3


class Supervisor:
    """Answers requests about a stack, each in a separate thread, until the project is down.

    Args:
        stack: the running project.

    Raises:
        StateError: another process already holds the project.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.ended = threading.Event()
        self._path = socket_path(stack.project.name)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with alone():
                self._bind()
        except BaseException:
            self._listening.close()
            raise
        threading.Thread(target=self._serve, daemon=True).start()

    def _bind(self) -> None:
        if has_listener(self._path):
            raise StateError(f"project {self.stack.project.name}: it is already up; 'down' ends it")
        # Bound to a temporary name and renamed, so that every socket with the final name has had a listener.
        aside = f"{self._path}.{os.getpid()}"
        with suppress(FileNotFoundError):
            os.unlink(aside)
        self._listening.bind(aside)
        self._listening.listen(64)
        os.rename(aside, self._path)

    def close(self) -> None:
        """Stop answering."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        with suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.ended.set()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        fds: list[int] = []
        try:
            with connection:
                _, uid, _ = struct.unpack("=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
                if uid not in (0, os.geteuid()):
                    return
                request, fds = _received(connection)
                try:
                    self._reply(request, fds, _Reply(connection))
                finally:  # even if the client was killed before the answer
                    if request["verb"] == "down" and not request.get("services"):
                        self.close()
        except (OSError, ValueError):
            return
        finally:
            for fd in fds:
                os.close(fd)

    def _reply(self, request: dict[str, Any], fds: list[int], reply: _Reply) -> None:
        try:
            reply.send("done", self._do(request, fds, reply))
        except ContainerError as error:
            reply.send("error", ": ".join((*getattr(error, "__notes__", ()), str(error))))

    def _do(self, request: dict[str, Any], fds: list[int], reply: _Reply) -> Any:
        verb = str(request["verb"])
        known: dict[str, Callable[..., Any]] = {
            "apply": self._apply, "down": self._down, "ps": self._ps, "logs": self._logs, "exec": self._exec,
            "run": self._run, "top": self._top, "scale": self._scale, "restart": self._restart, "wait": self._wait,
            "port": self._port, "signal": self._signal, "stop": self._stop, "copy": self._copy, "remove": self._remove,
            "files": lambda *_: self.stack.project.files, "events": self._events, "attach": self._attach,
            "commit": self._commit, "stats": self._stats, "tty": lambda request, *_: self._one(request).has_terminal,
        }  # fmt: skip
        if verb not in known:
            raise SpecError(f"unknown request {verb!r:.60}")
        return known[verb](request, fds, reply)

    def _apply(self, request: dict[str, Any], _: list[int], reply: _Reply) -> Any:
        project = Project.of(request["model"], request["directory"], request["variables"], request["files"])
        plan = self.stack.apply(
            project,
            services=request.get("services"),
            scale=request.get("scale"),
            deps=request.get("deps", True),
            recreate=request.get("recreate", False),
            keep=request.get("keep", False),
            create=request.get("create", False),
        )
        for step in plan.steps:
            reply.send("item", f"{step.action} {step.target}")
        if request.get("wait") is not None:
            self.stack.wait_ready(request["wait"])

    def _down(self, request: dict[str, Any], _: list[int], __: _Reply) -> None:
        if request.get("services"):
            self.stack.remove(*request["services"], grace_s=request.get("grace_s"))
            return
        self.stack.down(grace_s=request.get("grace_s"), remove_volumes=bool(request.get("volumes")))

    def _chosen(self, request: dict[str, Any]) -> list[Replica]:
        services = request.get("services") or ()
        self.stack.check_names(services)
        return [each for each in self.stack.containers() if not services or each.service in services]

    def _ps(self, request: dict[str, Any], _: list[int], __: _Reply) -> list[dict[str, Any]]:
        services = request.get("services") or ()
        more = [each for each in self.stack.one_offs if not services or each.service in services]
        rows = [_row(each) for each in (*self._chosen(request), *(more if request.get("all") else ()))]
        return rows + [
            {**_NEVER_STARTED, "Name": name, "Service": service}
            for name, service in self.stack.created.items()
            if not services or service in services
        ]

    def _logs(self, request: dict[str, Any], _: list[int], reply: _Reply) -> None:
        lines = self.stack.logs(
            *(request.get("services") or ()), follow=bool(request.get("follow")), since=request.get("since") or 0.0,
            until=request.get("until"), tail=request.get("tail"), stop=reply.is_gone,
        )  # fmt: skip
        for line in lines:
            reply.send("item", line)

    def _one(self, request: dict[str, Any]) -> Replica:
        found = self.stack.containers(request.get("service") or request["services"][0])
        index = int(request.get("index") or 1)
        if len(found) < index or found[index - 1].status == "exited":
            raise StateError(f"service {request.get('service')}: its container {index} is not running")
        return found[index - 1]

    def _exec(self, request: dict[str, Any], fds: list[int], reply: _Reply) -> int:
        replica = self._one(request)
        replica.note(f"exec_start: {' '.join(request['argv'])}")
        if request.get("detach"):
            process = replica.container.popen(
                request["argv"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, **replica.options(request)
            )
            threading.Thread(target=_ended, args=(process,), daemon=True).start()
            return 0
        return _commanded(replica.container, replica.options(request), request["argv"], fds, reply, request.get("size"))

    def _run(self, request: dict[str, Any], fds: list[int], reply: _Reply) -> int | str:
        project = Project.of(request["model"], request["directory"], request["variables"], request["files"])
        name, aliases = request.get("name"), bool(request.get("aliases"))
        if request.get("detach"):
            return self.stack.run_detached(
                project, request["service"], request["argv"], name=name, aliases=aliases,
                remove=bool(request.get("remove")), **request.get("options", {}),
            ).name  # fmt: skip
        with self.stack.one_off(project, request["service"], name=name, aliases=aliases) as (container, recipe):
            argv = request["argv"] or recipe.argv
            options = {**recipe.command, **request.get("options", {})}
            return _commanded(container, options, argv, fds, reply, request.get("size"))

    def _attach(self, request: dict[str, Any], fds: list[int], reply: _Reply) -> int | None:
        """Show the output of a container, and pass on input. Return its status, or None if the client has detached."""
        from containerkit.project.relay import attach

        replica = self._one(request)
        keys = request.get("keys", "").encode("latin-1")
        replica.note("attach")
        return attach(replica, fds if request.get("stdin") else [-1, *fds[1:]], reply.fileno(), keys)

    def _events(self, request: dict[str, Any], _: list[int], reply: _Reply) -> None:
        for each in self.stack.events(
            *(request.get("services") or ()), since=request.get("since") or 0.0, until=request.get("until"),
            stop=reply.is_gone,
        ):  # fmt: skip
            reply.send("item", each)

    def _commit(self, request: dict[str, Any], _: list[int], __: _Reply) -> str:
        from containerkit.image import Image, commit
        from containerkit.project.images import tag_of

        replica, project = self._one(request), self.stack.project
        tag = tag_of(project, replica.service, project.model["services"][replica.service])
        more = {name: request[name] for name in ("author", "message") if request.get(name)}
        base = Image.get(tag, pull="never")
        return str(commit(replica.container, request["reference"], base=base, **more).digest)

    def _stats(self, request: dict[str, Any], _: list[int], __: _Reply) -> list[dict[str, Any]]:
        from containerkit.container.usage import usage_of

        return [
            {"name": each.name, "usage": usage_of(each.container).to_json()}
            for each in self._chosen(request)
            if each.status in ("running", "paused")
        ]

    def _top(self, request: dict[str, Any], _: list[int], __: _Reply) -> Any:
        return [
            {"name": each.name, "processes": [_process(pid) for pid in each.container.members()]}
            for each in self._chosen(request)
            if each.status != "exited"
        ]

    def _scale(self, request: dict[str, Any], _: list[int], __: _Reply) -> None:
        for service, count in request["scale"].items():
            self.stack.scale(service, count, deps=request.get("deps", True))

    def _restart(self, request: dict[str, Any], _: list[int], __: _Reply) -> None:
        deps = request.get("deps", True)
        self.stack.restart(*(request.get("services") or ()), grace_s=request.get("grace_s"), deps=deps)

    def _stop(self, request: dict[str, Any], _: list[int], __: _Reply) -> None:
        self.stack.stop(*(request.get("services") or ()), grace_s=request.get("grace_s"))

    def _wait(self, request: dict[str, Any], _: list[int], __: _Reply) -> dict[str, int]:
        return self.stack.wait(*(request.get("services") or ()))

    def _port(self, request: dict[str, Any], _: list[int], __: _Reply) -> list[Any]:
        found = self.stack.port(request["service"], request["target"], request["protocol"], request.get("index") or 1)
        return list(found)

    def _signal(self, request: dict[str, Any], _: list[int], __: _Reply) -> None:
        what = request["signal"]
        for each in [self._one(request)] if request.get("index") else self._chosen(request):
            if what in ("pause", "unpause"):
                each.pause() if what == "pause" else each.unpause()
            elif each.status == "running":
                each.kill(signal_number(what))

    def _remove(self, request: dict[str, Any], _: list[int], __: _Reply) -> list[str]:
        """Forget containers that have ended. With ``stop``, end the running ones first."""
        if request.get("stop"):
            self.stack.stop(*(request.get("services") or ()))
        return self.stack.forget(*(request.get("services") or ()))

    def _copy(self, request: dict[str, Any], _: list[int], __: _Reply) -> None:
        files = self._one(request).container.files
        if request["out"]:
            files.get(request["inside"], request["outside"])
        else:
            files.put(request["outside"], request["inside"])


def _ended(process: Any) -> None:
    with suppress(ContainerError), process:
        process.wait()


_NEVER_STARTED: Final[dict[str, Any]] = {
    "State": "created", "Health": "", "ExitCode": None, "Pid": None, "Restarts": 0, "StartedAt": 0.0, "Command": "",
    "Ports": [], "Fingerprint": "", "Labels": {}, "Annotations": {},
}  # fmt: skip
"""The row of a container that was created and never started, without its names."""


def _row(each: Replica) -> dict[str, Any]:
    return {
        "Name": each.name, "Service": each.service, "State": each.status, "Health": each.health or "",
        "ExitCode": each.exit_code, "Pid": each.pid, "Restarts": each.restarts, "StartedAt": each.started_at,
        "Command": " ".join(each.argv), "Ports": each.ports(),
        "Fingerprint": each.fingerprint, "Labels": each.labels, "Annotations": each.annotations,
    }  # fmt: skip


def _process(pid: int) -> dict[str, Any]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            argv = file.read().decode("utf-8", "replace").rstrip("\0").split("\0")
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return {"pid": pid, "uid": None, "command": ""}
    return {"pid": pid, "uid": uid, "command": " ".join(argv)}


def _commanded(
    container: Any,
    options: dict[str, Any],
    argv: Sequence[str],
    fds: list[int],
    reply: _Reply,
    size: Sequence[int] | None,
) -> int:
    """Run a command with the caller's own streams, or with a terminal of the container that is relayed to the caller's.

    It is killed when the caller disconnects.

    Args:
        size: rows and columns of the terminal; None for the caller's own streams.
    """
    stdin, stdout, stderr = fds
    if size is not None:
        from containerkit.project.relay import relay

        with container.popen(argv, pty=tuple(size), **options) as process:
            relay(process, stdin, stdout, reply.fileno())
            return _status(process.wait())
    with container.popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, **options) as process:
        with suppress(ContainerError):
            poll = select.poll()
            poll.register(process.fileno(), select.POLLIN)
            poll.register(reply.fileno(), select.POLLIN | select.POLLHUP)
            if any(fd == reply.fileno() for fd, _ in poll.poll()):
                process.kill_all()
        return _status(process.wait())


def _status(code: int) -> int:
    return code if code >= 0 else 128 - code


class _Reply:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def fileno(self) -> int:
        return self._connection.fileno()

    def is_gone(self) -> bool:
        readable, _, _ = select.select([self._connection], [], [], 0)
        return bool(readable)

    def send(self, kind: str, value: Any) -> None:
        self._connection.sendall(json.dumps({kind: value}).encode() + b"\n")


def _received(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, fds, _, _ = socket.recv_fds(connection, 65536, _FDS)
    while not data.endswith(b"\n"):
        more = connection.recv(1 << 20)
        if not more or len(data) > _LINE:
            break
        data += more
    try:
        request = json.loads(data)
        return {**request, "verb": request["verb"]}, fds
    except (ValueError, TypeError, KeyError):
        for fd in fds:
            os.close(fd)
        raise ValueError("no request") from None

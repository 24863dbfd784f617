"""The process that holds one project: a fork of the command line, or a separate process.

``python -m containerkit.project.detached FD < REQUEST``
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from containerkit.errors import ContainerError
from containerkit.project.project import Project
from containerkit.project.stack import Stack
from containerkit.project.supervisor import Supervisor

__all__ = ["hold", "main"]


def main() -> int:
    """Read a project from stdin, start it, report on it through a descriptor, and hold it."""
    told = int(sys.argv[1])
    os.set_inheritable(told, False)
    request = json.loads(sys.stdin.buffer.read())
    project = Project.of(request["model"], request["directory"], request["variables"], request["files"])
    return hold(project, told, request["options"])


def hold(project: Project, told: int, options: dict[str, Any]) -> int:
    """Start a project, report on it, and hold it until a request or SIGTERM ends it.

    Args:
        project: the project.
        told: the descriptor of a pipe. Each step is written to it, then the result of the start.
        options: of :meth:`containerkit.project.stack.Stack.apply`, ``wait``, ``build`` and ``pull``.

    Returns:
        The exit status of this process.
    """

    def tell(kind: str, value: Any) -> None:
        os.write(told, json.dumps({kind: value}).encode() + b"\n")

    stack = Stack(
        project, log=lambda text: tell("item", text) if not quiet.is_set() else None, build=options.pop("build", False),
        pull=options.pop("pull", None),
    )  # fmt: skip
    quiet = threading.Event()
    wait = options.pop("wait", None)
    try:
        supervisor = Supervisor(stack)
        try:
            stack.apply(**options)
            if wait is not None:
                stack.wait_ready(wait)
        except BaseException:
            stack.down(grace_s=0)
            supervisor.close()
            raise
    except (ContainerError, OSError) as error:
        tell("error", ": ".join((*getattr(error, "__notes__", ()), str(error))))
        return 1
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=_end, args=(stack, supervisor)).start())
    quiet.set()
    with suppress(BrokenPipeError):  # the caller was killed in the meantime; the project is up
        tell("done", None)
    os.close(told)
    supervisor.ended.wait()
    stack.down()
    return 0


def _end(stack: Stack, supervisor: Supervisor) -> None:
    try:
        stack.down()
    finally:
        supervisor.close()


if __name__ == "__main__":
    sys.exit(main())

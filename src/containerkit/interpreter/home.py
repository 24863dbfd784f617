"""The container of interpreters, and the process in it from which they are all forked."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import threading
from functools import lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from containerkit.container.lifecycle import Container
from containerkit.container.template import Template
from containerkit.errors import ContainerError, SetupError, SpecError, StateError
from containerkit.interpreter.branch import Branch, LostError
from containerkit.process.process import DEVNULL, PIPE, Process
from containerkit.security.checks import text_of
from containerkit.spec.mount import Mount
from containerkit.spec.words import path_inside, sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.options import ListOf, Word
    from containerkit.spec.rootfs import RootFS

__all__ = ["Home"]

_ENVIRONMENT: Final = {"MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8:replace"}
_SNAPSHOTS: Final = "/dev/shm/containerkit-snapshots"
_TOLD_BYTES: Final = 10_000


@lru_cache(maxsize=1)
def _agent() -> str:
    return resources.files("containerkit.interpreter").joinpath("agent.py").read_text(encoding="utf-8")


class Home:
    """A container with a process that has imported the common modules, and that runs no code itself.

    It ends with the last interpreter in it. Arguments: see :class:`containerkit.interpreter.Interpreter`.
    """

    def __init__(
        self,
        root: Template | RootFS | None,
        python: str,
        preload: ListOf[str],
        workspace: str,
        extra_env: Mapping[str, Word] | None,
        options: Mapping[str, Any],
    ) -> None:
        names = sequence(preload, "preload")
        for name in names:
            if not all(part.isidentifier() for part in text_of(name, "preload").split(".")):
                raise SpecError(f"preload: {name!r:.100} is not the name of a module")
        self.workspace = path_inside(workspace, "workspace")
        self._words = [text_of(python, "python"), "-u", "-c", _agent()]
        self._setup = [self.workspace, *names]
        self._extra_env = {**_ENVIRONMENT, **(extra_env or {})}
        self.container = self._described(root, options)
        self.lock = threading.RLock()
        self._guests = 1
        self._numbers = itertools.count(1)
        self._base: Branch | None = None
        self._process: Process[Any] | None = None
        self.container.start()
        try:
            self._begin()
        except BaseException:
            self.container.stop()
            raise

    def _described(self, root: Template | RootFS | None, options: Mapping[str, Any]) -> Container:
        if isinstance(root, Template):
            if options:
                raise SpecError(f"{min(options)!r} can't be combined with a template, which defines the container")
            return root.container()
        own = Mount.tmpfs(self.workspace, mode=0o755)
        mounts = sequence(options.get("mounts", ()), "mounts")
        if not any(mount.target == self.workspace for mount in mounts):
            mounts = (*mounts, own)
        return Container(root, **{**options, "mounts": mounts})

    def _begin(self) -> None:
        """Start the process from which all others are forked."""
        ours, theirs = socket.socketpair()
        try:
            process = self.container.popen(
                [*self._words, str(theirs.fileno()), *self._setup],
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=PIPE,
                pass_fds=[theirs.fileno()],
                extra_env=self._extra_env,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        streams = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC), os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        base = Branch(ours, streams)
        try:
            base.greet()
        except LostError:
            base.close()
            process.kill()
            raise _not_begun(process) from None
        except BaseException:
            base.close()
            process.close()
            raise
        self._base, self._process = base, process

    def fresh(self) -> Branch:
        """Return a new process that has run no code. Restart the first process if it has ended.

        Raises:
            StateError: the container has stopped.
            SetupError: Python does not start.
        """
        with self.lock:
            if self._base is not None:
                with contextlib.suppress(LostError):
                    return self._base.fork()
            self._end_base()
            self._end_others()
            if self.container.state != "running":
                raise StateError(f"{self.container!r}: it has stopped, and its interpreters have ended")
            self._begin()
            assert self._base is not None
            try:
                return self._base.fork()
            except LostError as error:
                raise SetupError("fork", 11, "an interpreter", f"{error}: raise Limits(memory=..., pids=...)") from None

    def _end_others(self) -> None:
        """Kill the processes that code has left running. They may be so many that no other can be started."""
        container = self.container
        with contextlib.suppress(ContainerError):  # without a freezer a fork bomb is faster than this loop
            container.pause()
            try:
                init = container.pid
                for pid in container.members():
                    if pid != init:
                        _kill_member(container, pid)
            finally:
                container.resume()

    def _end_base(self) -> None:
        base, process, self._base, self._process = self._base, self._process, None, None
        if base is not None:
            base.close()
        if process is not None:
            process.close()

    def save_place(self) -> str:
        """Return the directory for the files of a new snapshot."""
        return f"{_SNAPSHOTS}/{next(self._numbers)}"

    def remove(self, place: str) -> None:
        """Remove the files of a snapshot."""
        with contextlib.suppress(ContainerError):  # the container has stopped, or they were removed inside
            self.container.files.remove(place, recursive=True, missing_ok=True)

    def enter(self) -> None:
        """Count another interpreter."""
        with self.lock:
            self._guests += 1

    def leave(self) -> None:
        """Count one interpreter less. The last one stops the container."""
        with self.lock:
            self._guests -= 1
            if self._guests:
                return
            self._end_base()
            self.container.stop()


def _not_begun(process: Process[Any]) -> SetupError:
    """Return the error for a Python that did not start, with its output."""
    _, err = process.communicate(timeout=10)
    told = err[-_TOLD_BYTES:].decode(errors="replace").strip()
    return SetupError("start", 8, "the interpreter inside", f"its output: {told[-2000:] or 'nothing'}")  # ENOEXEC


def _kill_member(container: Container, pid: int) -> None:
    """Kill a process of a container through a pidfd, because its pid may now belong to a process of the host."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if pid in container.members():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)

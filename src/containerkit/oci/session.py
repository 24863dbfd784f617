"""The runtime's side of the protocol with a process that executes a tape. ``create`` and ``exec`` share it."""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.oci import kernel, protocol
from containerkit.oci.errors import RuntimeFailure, StepError
from containerkit.oci.host import inherited_descriptors
from containerkit.oci.tape import Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from containerkit.oci.channel import Channel
    from containerkit.oci.config import Config, Process
    from containerkit.oci.main import Call
    from containerkit.oci.store import Entry

__all__ = ["Partner"]


class Partner:
    """One process that is being started.

    Args:
        call: the call of the command line.
        config: the container's configuration.
        process: the process to run.
        foreground: whether the caller waits for it, so that its terminal may be the caller's.

    Attributes:
        pid, pidfd: the process, once it exists.
        master: its terminal, if the caller keeps it; else -1.
        tape: its steps.
        entry: the container's record.
    """

    entry: Entry

    def __init__(self, call: Call, config: Config, process: Process, *, foreground: bool) -> None:
        self.call = call
        self.config = config
        self.process = process
        self.foreground = foreground
        self.pid = 0
        self.pidfd = -1
        self.master = -1
        self.tape = Tape()

    def check_console(self) -> None:
        """Check that ``--console-socket`` is given if and only if there is a terminal to send.

        Raises:
            RuntimeFailure: the socket is missing, or there is no terminal to send.
        """
        wanted = self.call.flags.text("console-socket")
        if self.process.terminal and not self.foreground and not wanted:
            raise RuntimeFailure("process.terminal is true: --console-socket must name a socket for the terminal")
        if wanted and not self.process.terminal:
            raise RuntimeFailure("--console-socket needs process.terminal to be true")

    def preserved(self) -> list[int]:
        """Return the caller's descriptors that the process keeps. Source: sd_listen_fds(3)."""
        return inherited_descriptors(self.call.flags.number("preserve-fds") + self.listened())

    @staticmethod
    def listened() -> int:
        """Return how many of them are sockets of socket activation, which come first."""
        count = os.environ.get("LISTEN_FDS", "")
        return int(count) if count.isascii() and count.isdecimal() else 0

    def serve_start(self, channel: Channel, answers: Mapping[bytes, Callable[[int], None]], last: bytes) -> None:
        """Answer the process's letters, up to the last one.

        Raises:
            RuntimeFailure: a step of the process or of the runtime failed.
        """
        answers = {b"t": self._on_terminal, b"s": self._on_listener, **answers}
        letter = b""
        while letter != last:
            message = protocol.receive(channel)
            if message is None:
                raise RuntimeFailure("the process died during its start")
            if isinstance(message, protocol.Failure):
                raise self.failure(message)
            letter, number = message
            answers[letter](number)
            channel.send(b"g")
        protocol.wait_acknowledged(channel)

    def failure(self, failure: protocol.Failure) -> StepError:
        """Return the error of a step that failed."""
        name, target, hint = self.tape.names[failure.index] if failure.index < len(self.tape) else ("start", "", "")
        if name == "execve":
            return StepError("exec", failure.errno, f'"{target}"')
        return StepError(name, failure.errno, target, hint)

    def take(self, number: int, what: str) -> int:
        """Duplicate one of the process's descriptors."""
        try:
            return kernel.pidfd_getfd(self.pidfd, number)
        except OSError as error:
            raise kernel.refused("pidfd_getfd", error, what) from None

    def kill(self) -> None:
        """Kill and reap the process. May be called twice."""
        pidfd, self.pidfd = self.pidfd, -1
        if pidfd < 0:
            return
        try:
            kernel.call("pidfd_send_signal", pidfd, 9, 0, 0)
            self.before_reaping()
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED | k.WALL)
        except (ProcessLookupError, ChildProcessError):
            return
        finally:
            os.close(pidfd)

    def before_reaping(self) -> None:
        """Prepare for the end of a killed process, such as by thawing it."""

    def state(self) -> dict[str, Any]:
        """Return the container's state as an agent reads it."""
        return self.entry.state()

    def _on_terminal(self, number: int) -> None:
        from containerkit.oci import console

        master = self.take(number, "terminal")
        if not console.is_master(master):
            os.close(master)
            raise RuntimeFailure("/dev/pts of the container is not a devpts, so no terminal can be made")
        console.set_size(master, self.process.console_size)
        wanted = self.call.flags.text("console-socket")
        if not wanted:
            console.pass_newlines(master)
            self.master = master
            return
        try:
            console.send_descriptor(wanted, master, b"/dev/ptmx")
        finally:
            os.close(master)

    def _on_listener(self, number: int) -> None:
        """Hand the seccomp listener to its agent.

        Source: OCI runtime-spec, config-linux.md, "The Container Process State".
        """
        from containerkit import jsontext
        from containerkit.oci import console

        profile = self.config.linux.seccomp or {}
        message = {
            "ociVersion": self.config.oci_version,
            "fds": ["seccompFd"],
            "pid": self.pid,
            "metadata": profile.get("listenerMetadata", ""),
            "state": self.state(),
        }
        listener = self.take(number, "seccomp listener")
        try:
            console.send_descriptor(profile["listenerPath"], listener, jsontext.dumps(message).encode())
        finally:
            os.close(listener)

"""Hooks that run in the container's namespaces: ``createContainer`` and ``startContainer``.

The sealed init starts both, in its mode ``walk``. So a hook can't reach the host while the kernel resolves the hook's
path, its ``#!`` line and its ELF interpreter: ``/proc/self/exe`` is the sealed init, and all descriptors except the
three streams are closed.

A ``createContainer`` hook is a program of the host, and runs as root of the container's user namespace before the
pivot. A ``startContainer`` hook is a program of the image, and is confined like the container's own program. It joins
as ``exec`` does, with the user, capabilities, filter, labels and control groups of ``process``.
"""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.oci import protocol
from containerkit.oci.channel import Channel
from containerkit.oci.errors import StepError
from containerkit.oci.execute import Joining
from containerkit.oci.flags import Flags
from containerkit.oci.hooks import argv_of, take_streams
from containerkit.oci.log import Log
from containerkit.oci.main import Call
from containerkit.oci.namespaces import FLAGS, Stage, walk
from containerkit.oci.payload import strip
from containerkit.oci.tape import ARGV, ENVP, Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.oci.config import Config, Hook
    from containerkit.oci.hooks import Starter
    from containerkit.oci.store import Entry

__all__ = ["before_pivot", "confined"]


def before_pivot(
    stage: Stage, rootfs: str, env: Sequence[bytes], places: Sequence[str], time_namespace: str
) -> Starter:
    """Return a function that starts a ``createContainer`` hook.

    Its path is resolved on the host's files. Its working directory is the container's root. Without ``env`` it has the
    environment of ``process``.

    Args:
        stage: the container's namespaces.
        rootfs: the path of the root filesystem.
        env: the environment of ``process``.
        places: the directories of the control groups.
        time_namespace: the path of the time namespace; empty if it is the runtime's own.
    """

    def start(hook: Hook, source: int, sink: int) -> int:
        from containerkit.oci.cgroups import open_doors

        doors = open_doors(places)
        time = [os.open(time_namespace, os.O_RDONLY | os.O_CLOEXEC)] if time_namespace else []
        envp = env if hook.env is None else [os.fsencode(variable) for variable in hook.env]
        ours, theirs = Channel.pair()
        try:
            with ours:
                with theirs:
                    channel = theirs.fileno()
                    tape = _inner_tape(hook.path, rootfs, doors, time, (source, sink))
                    passed = [*doors, *time, source, sink]
                    _, pidfd = walk(stage, tape, argv_of(hook), envp, channel, passed)
                message = protocol.receive(ours)
        finally:
            for fd in (*doors, *time):
                os.close(fd)
        if isinstance(message, protocol.Failure):
            _reap(pidfd)
            name, target, hint = tape.names[message.index]
            raise StepError(name, message.errno, target, hint)
        return pidfd

    return start


def _reap(pidfd: int) -> None:
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | k.WALL)
    finally:
        os.close(pidfd)


def _inner_tape(path: str, rootfs: str, doors: Sequence[int], time: Sequence[int], streams: tuple[int, int]) -> Tape:
    tape = Tape()
    for fd in doors:
        tape.call("write", fd, b"0", 1, target="join the control groups")
    for fd in time:
        tape.call("setns", fd, FLAGS["time"], target="time namespace")
    tape.call("chdir", os.fsencode(rootfs), target=rootfs)
    take_streams(tape, *streams)
    strip(tape, ())
    tape.step(k.STEP_SIGNALS, "reset_signals")
    tape.call("execve", os.fsencode(path), ARGV, ENVP, target=path)
    return tape


def confined(entry: Entry, config: Config) -> Starter:
    """Return a function that starts a ``startContainer`` hook. Without ``env`` the hook has that of ``process``.

    Args:
        entry: the record of a created container.
        config: the configuration that the container was created from.
    """

    def start(hook: Hook, source: int, sink: int) -> int:
        joining = _Joining(entry, config, hook, (source, sink))
        joining.join()
        return joining.pidfd

    return start


class _Joining(Joining):
    """A hook that enters a container: an ``exec`` without flags, with the hook's streams."""

    def __init__(self, entry: Entry, config: Config, hook: Hook, streams: tuple[int, int]) -> None:
        assert config.process is not None
        process = type(config.process)()
        process.__dict__.update(config.process.__dict__)
        process.args = [hook.path]
        process.terminal = False
        process.exec_cpu_affinity = None
        if hook.env is not None:
            process.env = hook.env
        super().__init__(_plain_call(entry), config, process, entry, foreground=False)
        self.hook = hook
        self.streams = streams
        take_streams(self.tape, *streams)

    def preserved(self) -> list[int]:
        """Return none: the caller's descriptors are for the container's program."""
        return []

    def _own_streams(self) -> None:
        """Do nothing: the caller's streams are for the container's program."""

    def _start(self, channel: int, passed: list[int]) -> None:
        super()._start(channel, [*passed, *self.streams])

    def _argv(self) -> list[bytes]:
        return argv_of(self.hook)

    def _environment(self) -> list[str]:
        return self.process.env if self.hook.env is not None else super()._environment()


def _plain_call(entry: Entry) -> Call:
    """Return a call that names the container and has no flag."""
    options, flags = Flags(), Flags()
    options.add("root", os.path.dirname(entry.path))
    flags.arguments = [entry.id]
    return Call(options, flags, Log())

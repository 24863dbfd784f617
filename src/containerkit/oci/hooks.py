"""Hooks: programs that are run at points of the lifecycle, with the container's state on their standard input.

This module starts the hooks that run in the runtime's namespaces. :mod:`.innerhooks` starts those that run in the
container's namespaces.

Source: OCI runtime-spec, config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle".
"""

from __future__ import annotations

import os
import select
from errno import EACCES, ENOENT, ENOTDIR

from containerkit import jsontext
from containerkit._native import constants as k
from containerkit.oci import kernel
from containerkit.oci.errors import RuntimeFailure, StepError, strerror
from containerkit.oci.tape import ARGV, ENVP, Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from containerkit.oci.config import Hook

    Starter = Callable[[Hook, int, int], int]
    """Starts a hook with the state and its output, both descriptors, and returns a pidfd."""

__all__ = ["argv_of", "in_runtime_namespaces", "run", "take_streams"]


def run(kind: str, hooks: Sequence[Hook], state: dict[str, Any], start: Starter, *, first: int = 0) -> None:
    """Run hooks one after the other.

    Args:
        kind: their name in the configuration, for messages.
        hooks: the hooks.
        state: the container's state.
        start: the function that starts one.
        first: the number of the first hook in the configuration.

    Raises:
        RuntimeFailure: one of them could not be started, failed, or took too long.
    """
    for number, hook in enumerate(hooks, start=first):
        what = f"{kind} hook #{number} {hook.path}"
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("state", "output")]
        try:
            os.write(files[0], jsontext.dumps(state).encode())
            os.lseek(files[0], 0, os.SEEK_SET)
            _run_one(what, hook, files[0], files[1], start)
        finally:
            for fd in files:
                os.close(fd)


def _run_one(what: str, hook: Hook, source: int, sink: int, start: Starter) -> None:
    try:
        pidfd = start(hook, source, sink)
    except (OSError, RuntimeFailure) as error:
        raise RuntimeFailure(f"error running {what}: {_cause(error)}") from None
    try:
        status = wait_for(pidfd, hook.timeout)
    finally:
        os.close(pidfd)
    if status:
        size = os.lseek(sink, 0, os.SEEK_END)
        told = os.pread(sink, 4096, max(0, size - 4096)).decode(errors="replace").strip()
        cause = "timed out" if status is True else f"exit status {status}" if status > 0 else _signal(-status)
        raise RuntimeFailure(f"error running {what}: {cause}" + (f", output: {told}" if told else ""))


def _signal(number: int) -> str:
    from signal import strsignal

    return f"signal {number} ({(strsignal(number) or 'unknown').lower()})"


_EXECS = ("exec", "execve")


def _cause(error: OSError | RuntimeFailure) -> str:
    is_ours = isinstance(error, RuntimeFailure)
    if isinstance(error, OSError) and (not is_ours or (isinstance(error, StepError) and error.operation in _EXECS)):
        return strerror(error.errno or 0)
    return str(error)


def argv_of(hook: Hook) -> list[bytes]:
    """Return a hook's argument vector."""
    return [os.fsencode(word) for word in hook.args or [hook.path]]


def in_runtime_namespaces(bundle: str) -> Starter:
    """Return a function that starts a hook in the runtime's namespaces.

    It has the runtime's privileges and, without ``env``, the runtime's environment. Its working directory is the
    bundle, or ``/`` if the bundle no longer exists.

    Args:
        bundle: the path of the bundle.
    """

    def start(hook: Hook, source: int, sink: int) -> int:
        envp = [name + b"=" + value for name, value in os.environb.items()]
        if hook.env is not None:
            envp = [os.fsencode(variable) for variable in hook.env]
        _, pidfd, _ = kernel.spawn(_outer_tape(hook.path, bundle, source, sink), argv_of(hook), envp)
        return pidfd

    return start


def _outer_tape(path: str, bundle: str, source: int, sink: int) -> Tape:
    tape = Tape()
    tape.call("chdir", b"/", target="/")
    tape.call("chdir", os.fsencode(bundle), target=bundle, ok=(EACCES, ENOENT, ENOTDIR))
    take_streams(tape, source, sink)
    tape.call("close_range", 3, 2**32 - 1, k.CLOSE_RANGE_CLOEXEC)
    tape.step(k.STEP_SIGNALS, "reset_signals")
    tape.call("execve", os.fsencode(path), ARGV, ENVP, target=path)
    return tape


def take_streams(tape: Tape, source: int, sink: int) -> None:
    """Add the steps that make descriptors the standard streams."""
    for fd, number in ((source, 0), (sink, 1), (sink, 2)):
        tape.call("dup3", fd, number, 0, target=("stdin", "stdout", "stderr")[number])


def wait_for(pidfd: int, timeout_s: int | None) -> int | bool:
    """Wait for a child. Kill it if the timeout expires.

    Returns:
        Its exit status, the negative number of the signal that killed it, or True if the timeout expired.
    """
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    late = not poller.poll(None if timeout_s is None else timeout_s * 1000)
    if late:
        kernel.call("pidfd_send_signal", pidfd, 9, 0, 0)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | k.WALL)
    if late:
        return True
    if ended is None:
        return 0
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

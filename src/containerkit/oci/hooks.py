"""Hooks: programs that are run at points of the life cycle, with the container's state on their standard input.

Source: OCI runtime-spec, config.md, "POSIX-platform Hooks"; runtime.md, "Lifecycle".
"""

from __future__ import annotations

import os
import select

from containerkit._native import constants as k
from containerkit.oci import jsontext, kernel
from containerkit.oci.errors import RuntimeFailure, StepError, strerror
from containerkit.oci.tape import ARGV, ENVP, Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from containerkit.oci.config import Hook

__all__ = ["run", "wait_for"]

_SIGPIPE, _SIGXFSZ = 13, 25


def run(kind: str, hooks: Sequence[Hook], state: dict[str, Any], inside: tuple[int, int] | None = None) -> None:
    """Run hooks one after the other.

    Args:
        kind: their name in the configuration, for messages.
        hooks: what to run.
        state: the container's state.
        inside: a pidfd of the container's first process and the ``CLONE_NEW*`` to join, for hooks that run there.

    Raises:
        RuntimeFailure: one of them could not be started, failed, or took too long.
    """
    for number, hook in enumerate(hooks):
        what = f"{kind} hook #{number} {hook.path}"
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("state", "output")]
        try:
            os.write(files[0], jsontext.dumps(state).encode())
            os.lseek(files[0], 0, os.SEEK_SET)
            _run_one(what, hook, files[0], files[1], inside)
        finally:
            for fd in files:
                os.close(fd)


def _run_one(what: str, hook: Hook, source: int, sink: int, inside: tuple[int, int] | None) -> None:
    argv = [os.fsencode(word) for word in hook.args or [hook.path]]
    envp = [os.fsencode(variable) for variable in hook.env]
    try:
        if inside is None:
            pid = _spawn(hook.path, argv, envp, source, sink)
            pidfd = os.pidfd_open(pid)
        else:
            _, pidfd, _ = kernel.spawn(_inner_tape(hook.path, source, sink, inside), argv, envp, hides=True)
    except (OSError, StepError) as error:
        raise RuntimeFailure(f"error running {what}: {strerror(error.errno or 0)}") from None
    try:
        status = wait_for(pidfd, hook.timeout)
    finally:
        os.close(pidfd)
    if status:
        size = os.lseek(sink, 0, os.SEEK_END)
        told = os.pread(sink, 4096, max(0, size - 4096)).decode(errors="replace").strip()
        cause = "timed out" if status is True else f"exit status {status}" if status > 0 else f"signal {-status}"
        raise RuntimeFailure(f"error running {what}: {cause}" + (f", output: {told}" if told else ""))


def _spawn(path: str, argv: list[bytes], envp: Sequence[bytes], source: int, sink: int) -> int:
    variables = dict(variable.partition(b"=")[::2] for variable in envp)
    actions = [(os.POSIX_SPAWN_DUP2, source, 0), (os.POSIX_SPAWN_DUP2, sink, 1), (os.POSIX_SPAWN_DUP2, sink, 2)]
    return os.posix_spawn(path, argv, variables, file_actions=actions, setsigdef=[_SIGPIPE, _SIGXFSZ], setsigmask=[])


def _inner_tape(path: str, source: int, sink: int, inside: tuple[int, int]) -> Tape:
    tape = Tape()
    tape.call("setns", *inside, target="the container's namespaces")
    cloned = tape.step(k.STEP_CLONE, "clone", k.CLONE_PARENT, 0, 0, 0, 0, 0, target="hook", result=tape.slot("pid"))
    tape.step(k.STEP_RELEASE, "release")
    tape.step(k.STEP_LEAVE, "leave")
    tape.aim_here(cloned)
    tape.step(k.STEP_AWAIT, "await_release")
    for fd, number in ((source, 0), (sink, 1), (sink, 2)):
        tape.call("dup3", fd, number, 0)
    tape.step(k.STEP_SIGNALS, "reset_signals")
    tape.call("execve", os.fsencode(path), ARGV, ENVP, target=path)
    return tape


def wait_for(pidfd: int, timeout_s: int | None) -> int | bool:
    """Wait for a child; kill it when the time is up.

    Returns:
        Its exit status, minus the signal that killed it, or True if it took too long.
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

"""Record which system calls a program makes, and derive the smallest filter that allows them.

The program runs under :func:`recording_filter`, which notifies a supervisor of every call. The supervisor lets all of
them continue. A call is counted when it is requested, whether or not it succeeds. ::

    recorder = Recorder("x86_64")
    with Supervisor(descriptor, recorder) as supervisor:
        supervisor.join()
    profile(recorder.calls).to_oci()

The listener must be sent before the program makes a call: :func:`containerkit.security.notify.install_and_send`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from errno import ENOSYS
from typing import TYPE_CHECKING, Final

from containerkit.security.checks import check_bool, text_of
from containerkit.security.checks import names as strings
from containerkit.security.listener import CONTINUE, Continue, Listener
from containerkit.security.seccomp.profile import ALLOW, NOTIFY, Action, Rule, Seccomp

if TYPE_CHECKING:
    from containerkit.options import ListOf
    from containerkit.security.listener import SyscallRequest

__all__ = ["ALWAYS", "Recorder", "profile", "record", "recording_filter"]

ALWAYS: Final = ("execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn")
"""The calls that every program needs, even if a recorded run does not make them: start, end, return from a signal."""


class Recorder:
    """A handler for a supervisor. It counts calls and lets all of them continue.

    Attributes:
        calls: the count of each call by name. Calls of another architecture have its name as prefix, as ``x86:read``.
    """

    def __init__(self, machine: str) -> None:
        self._machine = text_of(machine, "machine")
        self.calls: Counter[str] = Counter()

    def __call__(self, request: SyscallRequest) -> Continue:
        """Count one call."""
        own = request.architecture == self._machine
        self.calls[request.name if own else f"{request.architecture}:{request.name}"] += 1
        return CONTINUE


def recording_filter() -> Seccomp:
    """Return a filter that notifies of every call of any architecture."""
    return Seccomp(default_action=NOTIFY, foreign_action=NOTIFY)


def record(descriptor: int, machine: str) -> Counter[str]:
    """Count calls until no process has the filter.

    Args:
        descriptor: the descriptor of the listener, which this function owns from now on.
        machine: the architecture whose calls have no prefix, as in ``uname -m``.

    Returns:
        The count of each call; see :attr:`Recorder.calls`.
    """
    recorder = Recorder(machine)
    with Listener(descriptor) as listener:
        while listener.pending(None) is not None:
            request = listener.receive()
            if request is not None:
                listener.reply(request, recorder(request))
    return recorder.calls


def profile(names: ListOf[str] | Mapping[str, int], *, log: bool = False) -> Seccomp:
    """Return a filter that allows only some calls, and what every program needs.

    Args:
        names: the names, or the result of :func:`record`. With calls of another architecture, the filter accepts that
            architecture too. Numbers without a name (``syscall_N``) are left out: they fail with ``ENOSYS``.
        log: whether the kernel logs and allows the other calls, to check that the recording is complete.

    Raises:
        SpecError: a call is unknown.
    """
    allowed: set[str] = set(ALWAYS)
    architectures: set[str] = set()
    check_bool(log, "log")
    for each in strings(list(names) if isinstance(names, Mapping) else names, "system calls"):
        architecture, colon, name = each.rpartition(":")
        if colon:
            architectures.add(architecture)
        if not name.startswith("syscall_"):
            allowed.add(name)
    made = Seccomp(
        default_action=Action.errno(),
        unknown_action=Action.errno(ENOSYS),
        architectures=sorted(architectures),
        rules=[Rule(names=sorted(allowed), action=ALLOW)],
    )
    return made.log() if log else made

"""Which system calls a program makes, and the least filter that lets it make them.

The program runs under :func:`recording_filter`, which tells every call to a supervisor, and the supervisor lets every
one continue. A call is counted when it is asked for, whether or not it succeeds. ::

    recorder = Recorder("x86_64")
    with Supervisor(descriptor, recorder) as supervisor:
        supervisor.join()
    profile(recorder.calls).to_oci()

The listener has to leave the program before it makes a call: :func:`containerkit.security.notify.handed_over`.
"""

from __future__ import annotations

from collections import Counter
from errno import ENOSYS
from typing import TYPE_CHECKING, Final

from containerkit.security.listener import CONTINUE, Continue, Listener
from containerkit.security.seccomp.profile import ALLOW, NOTIFY, Action, Rule, Seccomp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.security.listener import SyscallRequest

__all__ = ["ALWAYS", "Recorder", "profile", "record", "recording_filter"]

ALWAYS: Final = ("execve", "exit", "exit_group", "restart_syscall", "rt_sigreturn")
"""What any program needs, although it may not be seen in a run: to start, to end and to come back from a signal."""


class Recorder:
    """A supervisor's handler that counts calls and lets them all continue.

    Attributes:
        calls: how often each was made, by name; calls through another entry have it before, as ``x86:read``.
    """

    def __init__(self, machine: str) -> None:
        self._machine = machine
        self.calls: Counter[str] = Counter()

    def __call__(self, request: SyscallRequest) -> Continue:
        """Count one call."""
        own = request.architecture == self._machine
        self.calls[request.name if own else f"{request.architecture}:{request.name}"] += 1
        return CONTINUE


def recording_filter() -> Seccomp:
    """Return the filter that tells every call, through whichever entry it comes."""
    return Seccomp(default_action=NOTIFY, foreign_action=NOTIFY)


def record(descriptor: int, machine: str) -> Counter[str]:
    """Count calls until no process is left that has the filter.

    Args:
        descriptor: the listener's, owned from now on.
        machine: whose calls go without a prefix, as in ``uname -m``.

    Returns:
        How often each call was made; see :attr:`Recorder.calls`.
    """
    recorder = Recorder(machine)
    with Listener(descriptor) as listener:
        while listener.pending(None) is not None:
            request = listener.receive()
            if request is not None:
                listener.reply(request, recorder(request))
    return recorder.calls


def profile(names: Iterable[str], *, log: bool = False) -> Seccomp:
    """Return the filter that allows just some calls, and what any program needs.

    Args:
        names: as :func:`record` counts them; those of another entry make the filter take calls from there too. Numbers
            without a name (``syscall_N``) are left out: they are unknown to the filter and fail with ``ENOSYS``.
        log: have the kernel log the others and let them happen, to see whether the recording was complete.

    Raises:
        SpecError: no such call.
    """
    allowed: set[str] = set(ALWAYS)
    architectures: set[str] = set()
    for each in names:
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

"""Filters for system calls.

:mod:`.profile` describes a filter, :mod:`.default` is the default of containers, :mod:`.oci` reads profiles of other
tools, and :mod:`.compiler` writes the program that the kernel runs. The names are imported on first use, because a
container with the default filter needs only :mod:`.ready`.
"""

from containerkit.late import lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.security.seccomp.profile import (
        ALLOW,
        KILL_PROCESS,
        KILL_THREAD,
        LOG,
        NOTIFY,
        TRAP,
        Action,
        Condition,
        Rule,
        Seccomp,
    )

__all__ = [
    "ALLOW",
    "KILL_PROCESS",
    "KILL_THREAD",
    "LOG",
    "NOTIFY",
    "TRAP",
    "Action",
    "Condition",
    "Rule",
    "Seccomp",
]

__getattr__, __dir__ = lazy(globals(), dict.fromkeys(__all__, "profile"))

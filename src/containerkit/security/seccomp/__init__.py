"""Which system calls a process may make.

:mod:`.profile` describes a filter, :mod:`.default` is the one that containers have, :mod:`.oci` reads those of other
tools, and :mod:`.compiler` writes the program that the kernel runs.
"""

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

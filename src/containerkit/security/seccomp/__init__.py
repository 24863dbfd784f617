"""Filters for system calls.

:mod:`.profile` describes a filter, :mod:`.default` is the default of containers, :mod:`.oci` reads profiles of other
tools, and :mod:`.compiler` writes the program that the kernel runs. The names are imported on first use, because a
container with the default filter needs only :mod:`.ready`.
"""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from containerkit.security.seccomp import profile

    return getattr(profile, name)

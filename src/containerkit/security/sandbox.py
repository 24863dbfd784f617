"""A sandbox without namespaces, for hosts that forbid them: Landlock, seccomp and no capabilities.

It restricts the very process that asks for it, or a child just before its ``execve``; no privilege is needed. What that
doesn't give is said in its report: without namespaces other processes, the host's name, its mounts and its network
interfaces stay in sight, and without a control group nothing limits memory or time. ::

    Sandbox(landlock=Landlock().allow_execute("/usr", "/lib").allow_write("/tmp/work")).apply()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError, StateError
from containerkit.security import landlock as walls
from containerkit.security.capabilities import Capabilities, after_setuid, no_new_privs
from containerkit.security.landlock import Landlock, Report
from containerkit.security.seccomp import Seccomp

if TYPE_CHECKING:
    from containerkit.plan import Operation

__all__ = ["Sandbox"]

_UNCOVERED: Final = (
    "host names, mounts, network interfaces and other processes stay in sight: there is no namespace",
    "memory, processor time and the number of processes are unlimited: there is no control group",
    "the user is the caller's own, on files that a rule allows as everywhere",
)


@attrs.frozen(kw_only=True)
class Sandbox:
    """What a process without namespaces is held by.

    Attributes:
        landlock: the files, ports and processes it may reach; by default none at all.
        seccomp: the system calls it may make: ``"default"`` for those of a container, or None for all.

    Raises:
        SpecError: something else was given.
    """

    landlock: Landlock = attrs.field(factory=Landlock)
    seccomp: Any = "default"

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.landlock, Landlock):
            raise SpecError(f"landlock: {self.landlock!r} is no Landlock")
        if self.seccomp not in ("default", None) and not isinstance(self.seccomp, Seccomp):
            raise SpecError(f"seccomp: {self.seccomp!r} is neither 'default', None nor a Seccomp")

    @property
    def filter(self) -> Seccomp | None:
        """The filter of system calls, with the default resolved."""
        return Seccomp.default() if self.seccomp == "default" else self.seccomp

    def operations(self, kernel_abi: int) -> tuple[Operation, ...]:
        """Return the operations, for the end of a plan; ``execve`` comes next.

        Args:
            kernel_abi: what :func:`containerkit.security.landlock.abi` says.

        Raises:
            UnsupportedError: the kernel can't hold all of a strict ruleset.
        """
        chosen = self.filter
        return (
            no_new_privs(),
            *self.landlock.operations(kernel_abi),
            # The bounding set stays, since emptying it takes privilege; after no_new_privs no execve gains from it.
            *after_setuid(Capabilities.none()),
            *(chosen.operations() if chosen is not None else ()),
        )

    def report(self, kernel_abi: int) -> Report:
        """Return what a kernel with that Landlock ABI enforces of it."""
        files = self.landlock.report(kernel_abi)
        also = ["no capabilities", "no new privileges", *(["seccomp"] if self.filter is not None else [])]
        return attrs.evolve(files, enforced=(*files.enforced, *also), uncovered=(*files.uncovered, *_UNCOVERED))

    def apply(self, *, this_thread_only: bool = False) -> Report:
        """Restrict this process, for good, and all it starts from now on.

        Args:
            this_thread_only: leave the process's other threads as they are; see :meth:`Landlock.apply`.

        Raises:
            StateError: there are other threads.
            UnsupportedError: the kernel can't hold all of a strict ruleset.
            SetupError: a path of a rule isn't there, or the kernel refuses.
        """
        from containerkit.security.direct import perform

        if not this_thread_only and walls.has_other_threads():
            raise StateError("other threads would stay unrestricted: apply it before they start")
        kernel_abi = walls.abi()
        perform(self.operations(kernel_abi))
        return self.report(kernel_abi)

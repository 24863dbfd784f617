"""All that holds a process, as one value: capabilities, system calls, files, labels, keys."""

from __future__ import annotations

from errno import ENOSYS
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit import plan
from containerkit.errors import SpecError
from containerkit.plan import Operation, Slot
from containerkit.security import capabilities as capability
from containerkit.security.capabilities import Capabilities

if TYPE_CHECKING:
    from containerkit.security.landlock import Landlock
    from containerkit.security.lsm import AppArmor, SELinux
    from containerkit.security.personality import Personality
    from containerkit.security.seccomp import Seccomp

__all__ = ["Confinement"]

LISTENER: Final = Slot("listener")
SUPERVISOR: Final = Slot("supervisor")
"""The socket through which the listener of a filter that notifies goes to its supervisor."""
PROC: Final = Slot("caller's proc")
"""The caller's own procfs: what is at /proc inside may be made to look like one (CVE-2019-19921)."""

_KEYRING_HINT: Final = "the user's quota of keys is used up: see kernel.keys.maxkeys, or pass keyring='host'"


def _keyring(value: str) -> str:
    if value not in ("new", "host"):
        raise SpecError(f"keyring: {value!r} is neither 'new' nor 'host'")
    return value


def _apparmor(value: AppArmor | str | None) -> AppArmor | None:
    if value is None:
        return None
    from containerkit.security.lsm import AppArmor

    if not isinstance(value, (AppArmor, str)):
        raise SpecError(f"apparmor: {value!r} is no name of a profile")
    return AppArmor(value) if isinstance(value, str) else value


def _selinux(value: SELinux | str | None) -> SELinux | None:
    if value is None:
        return None
    from containerkit.security.lsm import SELinux

    if not isinstance(value, (SELinux, str)):
        raise SpecError(f"selinux: {value!r} is no context")
    return SELinux(value) if isinstance(value, str) else value


def _personality(value: Personality | str | None) -> Personality | None:
    if value is None:
        return None
    from containerkit.security.personality import Personality

    if not isinstance(value, (Personality, str)):
        raise SpecError(f"personality: {value!r} is no Personality")
    return Personality(value) if isinstance(value, str) else value


@attrs.frozen(kw_only=True)
class Confinement:
    """What a process may do. The default is what untrusted code can be given.

    Args:
        capabilities: the five sets, and the securebits (default none at all).
        seccomp: the filter of system calls; ``"default"`` for the one that goes with the capabilities, None for none.
            One that notifies needs a ``syscall_handler`` where the command is started.
        landlock: a ruleset as a second wall inside (default none).
        no_new_privs: an exec never gives more rights (default True).
        keyring: ``"new"`` for a session keyring of its own (default), ``"host"`` for the caller's.
        oom_score_adj: -1000 to 1000; how readily the kernel kills it for memory (default: as the caller).
        apparmor: the name of a loaded profile, from the exec on (default: the caller's).
        selinux: the context, ``user:role:type`` or ``user:role:type:level``, from the exec on (default: by the
            policy).
        personality: the execution domain, ``"LINUX32"`` or a
            :class:`~containerkit.security.personality.Personality` (default: the caller's).

    Raises:
        SpecError: a value that can't be.

    Source: capabilities(7), seccomp(2), session-keyring(7), proc_pid_attr(5), personality(2).
    """

    capabilities: Capabilities = attrs.field(factory=Capabilities.none)
    seccomp: Any = "default"
    landlock: Landlock | None = None
    no_new_privs: bool = True
    keyring: str = attrs.field(default="new", converter=_keyring)
    oom_score_adj: int | None = None
    apparmor: AppArmor | None = attrs.field(default=None, converter=_apparmor)
    selinux: SELinux | None = attrs.field(default=None, converter=_selinux)
    personality: Personality | None = attrs.field(default=None, converter=_personality)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.capabilities, Capabilities):
            raise SpecError(f"capabilities: {self.capabilities!r} is no Capabilities; say Capabilities.docker(), ...")
        known = self.seccomp in ("default", None) or type(self.seccomp).__name__ == "Seccomp"
        if not known:
            raise SpecError(f"seccomp: {self.seccomp!r} is neither 'default', None nor a Seccomp")
        if self.landlock is not None and type(self.landlock).__name__ != "Landlock":
            raise SpecError(f"landlock: {self.landlock!r} is no Landlock")
        adjustment = self.oom_score_adj
        if adjustment is not None and (not isinstance(adjustment, int) or not -1000 <= adjustment <= 1000):
            raise SpecError(f"oom_score_adj: {adjustment!r} is not from -1000 to 1000")

    @property
    def filter(self) -> Seccomp | None:
        """The filter of system calls, with the default resolved."""
        if self.seccomp != "default":
            chosen: Seccomp | None = self.seccomp
            return chosen
        from containerkit.security.seccomp import Seccomp

        return Seccomp.default(self.capabilities.bounding)

    @property
    def notifies(self) -> bool:
        """Whether the filter needs a supervisor."""
        return not isinstance(self.seccomp, str) and self.seccomp is not None and bool(self.seccomp.notifies)

    def first(self) -> list[Operation]:
        """Return the operations that come before all others, while the caller's descriptors are in the slots."""
        kept = [SUPERVISOR] if self.notifies else []
        if self.apparmor is not None or self.selinux is not None:
            kept.append(PROC)
        # F_SETFD: they stay open although the address space may change on the way
        return [plan.call("fcntl", slot, 2, 0, target=slot.name) for slot in kept]

    def adjust(self) -> list[Operation]:
        """Return the operations that take an address space of one's own.

        The kernel gives a changed score to every process that shares the memory, and until the exec that is the caller.
        Source: __set_oom_adj() in fs/proc/base.c.
        """
        if self.oom_score_adj is None:
            return []
        hint = "it can't be lower than the caller's own"
        return plan.write_file(b"self/oom_score_adj", b"%d" % self.oom_score_adj, hint, PROC)

    def own_keyring(self) -> list[Operation]:
        """Return the operations that leave the caller's keys behind."""
        if self.keyring == "host":
            return []
        # KEYCTL_JOIN_SESSION_KEYRING
        return [plan.call("keyctl", 1, 0, target="own session keyring", tolerate=(ENOSYS,), hint=_KEYRING_HINT)]

    def before_user(self, *, keep: bool) -> list[Operation]:
        """Return the operations that come before the process is its user: they need privilege.

        Args:
            keep: the process becomes a user other than root and keeps its permitted capabilities.
        """
        steps = self._labels()
        if self.personality is not None:
            steps.append(self.personality.operation())
        steps += self.own_keyring()
        steps += capability.before_setuid(self.capabilities, last_cap=last_capability(), keep=keep)
        if not self.no_new_privs:
            steps += [*self._landlock(), *self.install()]  # they take CAP_SYS_ADMIN, which is about to go
        return steps

    def after_user(self) -> list[Operation]:
        """Return the operations that come once the process is its user."""
        return list(capability.after_setuid(self.capabilities))

    def walls(self) -> list[Operation]:
        """Return the operations that come after all others but the limits and the filter."""
        return [capability.no_new_privs(), *self._landlock()] if self.no_new_privs else []

    def last(self) -> list[Operation]:
        """Return the operations right before the exec."""
        return self.install() if self.no_new_privs else []

    def install(self) -> list[Operation]:
        """Return the operations that install the filter, and hand its listener over if it has one."""
        if self.seccomp == "default" and not self.capabilities.bounding:
            from containerkit.security.seccomp import ready

            prepared = ready.operations()
            if prepared is not None:
                return list(prepared)
        chosen = self.filter
        if chosen is None:
            return []
        if not self.notifies:
            return list(chosen.operations())
        from containerkit.security.notify import handed_over

        return list(handed_over(chosen, socket=SUPERVISOR, listener=LISTENER))

    def _landlock(self) -> list[Operation]:
        if self.landlock is None:
            return []
        from containerkit.security.landlock import abi

        return list(self.landlock.operations(abi()))

    def _labels(self) -> list[Operation]:
        steps: list[Operation] = []
        for label in (self.apparmor, self.selinux):
            if label is not None:
                from containerkit.security.lsm import active

                steps += label.operations(modules=active(), proc=PROC)
        return steps


_last: list[int] = []


def last_capability() -> int:
    """Return the number of the last capability that this kernel knows.

    Raises:
        OSError: it can't be read, for want of descriptors perhaps; a guess would leave one that is not dropped.
    """
    if not _last:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            _last.append(int(file.read()))
    return _last[0]

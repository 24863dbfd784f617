"""All restrictions of a process as one value: capabilities, system calls, files, labels, keys."""

from __future__ import annotations

import os
from errno import ENOSYS

from containerkit.errors import SpecError
from containerkit.meanings import explained
from containerkit.plan import calls
from containerkit.plan.operation import Operation, Slot
from containerkit.security import capabilities as capability
from containerkit.security.capabilities import Capabilities
from containerkit.security.checks import check_bool, check_number
from containerkit.values import field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Literal

    from containerkit.options import Keyring
    from containerkit.security.landlock import Landlock
    from containerkit.security.lsm import AppArmor, SELinux
    from containerkit.security.personality import Personality
    from containerkit.security.seccomp import Seccomp

__all__ = ["Confinement"]

LISTENER: Final = Slot("listener")
SUPERVISOR: Final = Slot("supervisor")
"""The socket over which the listener of a notifying filter is sent to its supervisor."""
PROC: Final = Slot("caller's proc")
"""The caller's own procfs. What is mounted on /proc inside could be an imitation (CVE-2019-19921)."""

PASSING: Final = int.from_bytes(os.urandom(8), "little") >> 1
"""A secret argument. A filter that is installed early allows the library's own ``openat2`` with this argument.

An unprivileged program can't read its filter. Source: ptrace(2), PTRACE_SECCOMP_GET_FILTER.
"""

_KEYRING_HINT: Final = "the user's quota of keys is exhausted: see kernel.keys.maxkeys, or pass keyring='host'"


def _keyring(value: Keyring) -> Keyring:
    if not isinstance(value, str) or value not in ("new", "host"):
        raise SpecError(f"keyring: {value!r} is neither 'new' nor 'host'")
    return value


def _apparmor(value: AppArmor | str | None) -> AppArmor | None:
    if value is None:
        return None
    from containerkit.security.lsm import AppArmor

    if not isinstance(value, (AppArmor, str)):
        raise SpecError(f"apparmor: {value!r} is not the name of a profile")
    return AppArmor(value) if isinstance(value, str) else value


def _selinux(value: SELinux | str | None) -> SELinux | None:
    if value is None:
        return None
    from containerkit.security.lsm import SELinux

    if not isinstance(value, (SELinux, str)):
        raise SpecError(f"selinux: {value!r} is not a context")
    return SELinux(value) if isinstance(value, str) else value


def _personality(value: Personality | str | None) -> Personality | None:
    if value is None:
        return None
    from containerkit.security.personality import Personality

    if not isinstance(value, (Personality, str)):
        raise SpecError(f"personality: {value!r} is not a Personality")
    return Personality(value) if isinstance(value, str) else value


def _is_filter(value: object) -> bool:
    if value is None or (isinstance(value, str) and value == "default"):
        return True
    from containerkit.security.seccomp import Seccomp

    return isinstance(value, Seccomp)


def _is_landlock(value: object) -> bool:
    from containerkit.security.landlock import Landlock

    return isinstance(value, Landlock)


@explained
@frozen(kw_only=True)
class Confinement:
    """The restrictions of a process. The default is suitable for untrusted code.

    Args:
        options: see :class:`containerkit.options.ConfinementOptions`.

    Raises:
        SpecError: a value is invalid.

    Source: capabilities(7), seccomp(2), session-keyring(7), proc_pid_attr(5), personality(2).
    """

    capabilities: Capabilities = field(factory=Capabilities.none)
    seccomp: Seccomp | Literal["default"] | None = "default"
    set_id_bits: bool | None = None
    landlock: Landlock | None = None
    no_new_privs: bool = True
    keyring: Keyring = field(default="new", converter=_keyring)
    oom_score_adj: int | None = None
    apparmor: AppArmor | None = field(default=None, converter=_apparmor)
    selinux: SELinux | None = field(default=None, converter=_selinux)
    personality: Personality | None = field(default=None, converter=_personality)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.capabilities, Capabilities):
            raise SpecError(f"capabilities: {self.capabilities!r} is not a Capabilities, such as Capabilities.docker()")
        if not _is_filter(self.seccomp):
            raise SpecError(f"seccomp: {self.seccomp!r} is neither 'default', None nor a Seccomp")
        check_bool(self.no_new_privs, "no_new_privs")
        if self.set_id_bits is not None and not isinstance(self.set_id_bits, bool):
            raise SpecError(f"set_id_bits: {self.set_id_bits!r} is neither True, False nor None")
        if self.landlock is not None and not _is_landlock(self.landlock):
            raise SpecError(f"landlock: {self.landlock!r} is not a Landlock")
        if self.oom_score_adj is not None:
            check_number(self.oom_score_adj, "oom_score_adj", -1000, 1000)

    @property
    def filter(self) -> Seccomp | None:
        """The filter of system calls. The default is resolved, and set-id bits are refused unless they are allowed."""
        chosen = self.seccomp
        if isinstance(chosen, str):
            from containerkit.security.seccomp import Seccomp

            chosen = Seccomp.default(self.capabilities.bounding)
        if chosen is None or self.set_id_bits:
            return chosen
        from containerkit.security.seccomp.guards import without_set_id_bits

        attributes = "CAP_SETFCAP" in self.capabilities.bounding
        return without_set_id_bits(chosen, attributes=attributes, passing=self.passing or None)

    @property
    def notifies(self) -> bool:
        """Whether the filter needs a supervisor."""
        return not isinstance(self.seccomp, str) and self.seccomp is not None and bool(self.seccomp.notifies)

    @property
    def writes_proc(self) -> bool:
        """Whether an operation writes through the caller's procfs."""
        return self.apparmor is not None or self.selinux is not None or self.oom_score_adj is not None

    @property
    def kept(self) -> list[Slot]:
        """The descriptors that must stay open when all others are closed."""
        return [SUPERVISOR] if self.notifies else []

    @property
    def passing(self) -> int:
        """The sixth argument with which an installed filter allows the library's own ``openat2``, or 0."""
        return 0 if self.no_new_privs or self.set_id_bits or self.seccomp is None else PASSING

    def adjust(self) -> list[Operation]:
        """Return the operations that need an address space of their own.

        The kernel applies a changed OOM score to every process that shares the memory.
        Source: __set_oom_adj() in fs/proc/base.c.
        """
        if self.oom_score_adj is None:
            return []
        hint = "it can't be lower than the caller's own"
        return calls.write_file(b"self/oom_score_adj", b"%d" % self.oom_score_adj, hint, PROC)

    def own_keyring(self) -> list[Operation]:
        """Return the operations that give the process a new session keyring instead of the caller."""
        if self.keyring == "host":
            return []
        # KEYCTL_JOIN_SESSION_KEYRING
        return [calls.call("keyctl", 1, 0, target="own session keyring", tolerate=(ENOSYS,), hint=_KEYRING_HINT)]

    def before_user(self, *, keep: bool) -> list[Operation]:
        """Return the operations before the change of user. They need privileges.

        Args:
            keep: whether the process becomes a user other than root and keeps its permitted capabilities.
        """
        steps = self._labels()
        if self.personality is not None:
            steps.append(self.personality.operation())
        steps += self.own_keyring()
        return [*steps, *capability.before_setuid(self.capabilities, last_cap=last_capability(), keep=keep)]

    def early_labels_and_landlock(self) -> list[Operation]:
        """Return the operations that need CAP_SYS_ADMIN if no_new_privs is not set. The change of user drops it."""
        return [] if self.no_new_privs else [*self._landlock(), *self.install()]

    def after_user(self) -> list[Operation]:
        """Return the operations after the change of user."""
        return list(capability.after_setuid(self.capabilities))

    def labels_and_landlock(self) -> list[Operation]:
        """Return the operations that come after all others except the limits and the filter."""
        return [capability.no_new_privs(), *self._landlock()] if self.no_new_privs else []

    def last(self) -> list[Operation]:
        """Return the operations immediately before the exec."""
        return self.install() if self.no_new_privs else []

    def install(self) -> list[Operation]:
        """Return the operations that install the filter and send its listener, if there is one, to the supervisor."""
        if self.seccomp == "default" and not self.capabilities.bounding and not self.passing:
            from containerkit.security.seccomp import ready

            prepared = ready.operations(ready.DEFAULT if self.set_id_bits else ready.WITHOUT_SET_ID_BITS)
            if prepared is not None:
                return list(prepared)
        chosen = self.filter
        if chosen is None:
            return []
        if not self.notifies:
            return list(chosen.operations())
        from containerkit.security.notify import install_and_send

        return list(install_and_send(chosen, socket=SUPERVISOR, listener=LISTENER))

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
        OSError: as for :func:`containerkit._linux.last_capability.last_capability`.
    """
    if not _last:
        from containerkit._linux import last_capability as linux

        _last.append(linux.last_capability())
    return _last[0]

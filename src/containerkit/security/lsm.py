"""Labels of the Linux security modules: an AppArmor profile, an SELinux context.

A label takes effect at the next ``execve``. It is written to the process's own attributes in procfs. The procfs must be
genuine: a file that imitates it would accept the label without effect. So pass the descriptor of a freshly mounted
procfs.

Source: proc_pid_attr(5), apparmor(7), selinux(8).
"""

from __future__ import annotations

import os
from errno import ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

import attrs

from containerkit._linux.textfile import read_or_empty
from containerkit._native import constants as k
from containerkit.errors import SpecError, UnsupportedError
from containerkit.plan.calls import close, open_at, write
from containerkit.plan.operation import Operation, Slot
from containerkit.security import checks

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AppArmor", "SELinux", "active"]

_ATTRIBUTE: Final = Slot("security label")


def _check(label: str, what: str) -> str:
    if (
        not checks.text_of(label, what)
        or any(ord(letter) < 0x20 or letter == "\x7f" for letter in label)
        or label != label.strip()
    ):
        raise SpecError(f"not {what}: {label!r}")
    return label


def _profile(name: str) -> str:
    return _check(name, "an AppArmor profile")


def _context(label: str) -> str:
    parts = _check(label, "an SELinux context").split(":", 3)
    if len(parts) < 3 or not all(parts) or any(" " in part for part in parts):
        raise SpecError(f"not an SELinux context (user:role:type or user:role:type:level): {label!r}")
    return label


def active(root: str = "/") -> frozenset[str]:
    """Return the names of the security modules that the running kernel enforces.

    Without securityfs, AppArmor and SELinux are detected by their own files.

    Args:
        root: the directory that contains /sys and /proc.
    """
    listed = read_or_empty(f"{root}/sys/kernel/security/lsm")
    if listed:
        return frozenset(listed.split(","))
    found = set()
    if read_or_empty(f"{root}/sys/module/apparmor/parameters/enabled") == "Y":
        found.add("apparmor")
    if "selinuxfs" in read_or_empty(f"{root}/proc/filesystems").split():
        found.add("selinux")
    return frozenset(found)


@attrs.frozen
class AppArmor:
    """An AppArmor profile for the program to execute.

    Attributes:
        profile: the name of a loaded profile, or ``unconfined``.

    Raises:
        SpecError: the name is empty or contains control characters.
    """

    profile: str = attrs.field(converter=_profile)

    def operations(self, *, modules: Iterable[str], proc: int | Slot | None = None) -> tuple[Operation, ...]:
        """Return the operations that request the profile.

        Args:
            modules: the result of :func:`active`.
            proc: the descriptor of a procfs that can be trusted. Default: whatever is at /proc.

        Raises:
            UnsupportedError: the kernel does not enforce AppArmor.
        """
        _must_be_active("apparmor", modules, f"profile {self.profile}", "apparmor")
        hint = f"load the profile {self.profile} with apparmor_parser, or pass apparmor=None"
        # If several modules are stacked, each has its own directory. The plain file belongs to the first module.
        own = _open(proc, "attr/apparmor/exec", hint)._replace(tolerate=(ENOENT,), leap=1)
        return (
            own,
            _open(proc, "attr/exec", hint),
            write(_ATTRIBUTE, b"exec " + os.fsencode(self.profile), f"AppArmor profile {self.profile}", hint),
            close(_ATTRIBUTE),
        )


@attrs.frozen
class SELinux:
    """An SELinux context for the program to execute.

    Attributes:
        label: ``user:role:type`` or ``user:role:type:level``.

    Raises:
        SpecError: the label has another form.
    """

    label: str = attrs.field(converter=_context)

    def operations(self, *, modules: Iterable[str], proc: int | Slot | None = None) -> tuple[Operation, ...]:
        """Return the operations that request the context. The arguments are those of :meth:`AppArmor.operations`.

        Raises:
            UnsupportedError: the kernel does not enforce SELinux.
        """
        _must_be_active("selinux", modules, f"context {self.label}", "selinux")
        hint = "the policy must define the context and allow the transition to it, or pass selinux=None"
        return (
            _open(proc, "attr/exec", hint),
            write(_ATTRIBUTE, os.fsencode(self.label), f"SELinux context {self.label}", hint),
            close(_ATTRIBUTE),
        )

    def mount_options(self) -> dict[str, str | None]:
        """Return the mount option that gives every file of a filesystem this context. Source: mount(8), "context="."""
        return {"context": f'"{self.label}"' if "," in self.label else self.label}


def _must_be_active(module: str, modules: Iterable[str], target: str, argument: str) -> None:
    if module not in modules:
        hint = (
            f"the kernel doesn't enforce {module} (see /sys/kernel/security/lsm): boot with it, or pass {argument}=None"
        )
        raise UnsupportedError("write", EOPNOTSUPP, target, hint)


def _open(proc: int | Slot | None, name: str, hint: str) -> Operation:
    """Open an attribute of the calling thread, which will execute the program."""
    if proc is None:
        return open_at(k.AT_FDCWD, os.fsencode(f"/proc/thread-self/{name}"), k.O_WRONLY, _ATTRIBUTE, hint=hint)
    return open_at(proc, os.fsencode(f"thread-self/{name}"), k.O_WRONLY, _ATTRIBUTE, target=f"/proc/{name}", hint=hint)

"""The execution domain of a process: the kernel type that it sees, and a few quirks for old programs.

The default seccomp filter refuses to change it from inside, except to harmless values.

Source: personality(2), linux/personality.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError
from containerkit.plan.calls import call
from containerkit.security.checks import names, text_of

if TYPE_CHECKING:
    from containerkit.options import ListOf
    from containerkit.plan.operation import Operation

__all__ = ["Personality"]

_DOMAINS: Final = {"LINUX": 0x0000, "LINUX32": 0x0008}
_FLAGS: Final = {
    "uname26": 0x0020000,
    "addr_no_randomize": 0x0040000,
    "mmap_page_zero": 0x0100000,
    "addr_compat_layout": 0x0200000,
    "read_implies_exec": 0x0400000,
    "addr_limit_32bit": 0x0800000,
    "short_inode": 0x1000000,
    "whole_seconds": 0x2000000,
    "sticky_timeouts": 0x4000000,
    "addr_limit_3gb": 0x8000000,
}


def _domain(name: str) -> str:
    if text_of(name, "personality") not in _DOMAINS:
        raise SpecError(f"unknown personality {name!r}: one of {', '.join(_DOMAINS)}")
    return name


def _flags(values: ListOf[str]) -> frozenset[str]:
    found = frozenset(names(values, "personality flags"))
    if wrong := found - _FLAGS.keys():
        raise SpecError(f"unknown personality flag {min(wrong)!r}: of {', '.join(_FLAGS)}")
    return found


@attrs.frozen
class Personality:
    """An execution domain.

    Attributes:
        domain: ``LINUX``, or ``LINUX32``, with which ``uname`` reports a 32-bit machine.
        flags: such as ``addr_no_randomize`` for reproducible addresses.

    Raises:
        SpecError: an unknown domain or flag.
    """

    domain: str = attrs.field(default="LINUX", converter=_domain)
    flags: frozenset[str] = attrs.field(default=frozenset(), converter=_flags, kw_only=True)

    @property
    def value(self) -> int:
        """The kernel's number."""
        return _DOMAINS[self.domain] | sum(_FLAGS[flag] for flag in self.flags)

    def operation(self) -> Operation:
        """Return the operation that sets it. It must come before the seccomp filter. ``execve`` keeps the setting."""
        words = " ".join([self.domain, *sorted(self.flags)])
        return call("personality", self.value, target=words, hint="this machine's kernel has no such domain")

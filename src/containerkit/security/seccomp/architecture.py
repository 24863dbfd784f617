"""The instruction sets a filter can be written for, and the numbers of their system calls."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Final, NamedTuple

from containerkit.errors import SpecError

__all__ = ["ARCHITECTURES", "X32_BIT", "Architecture", "architecture", "calls_of", "is_call", "native_names"]

X32_BIT: Final = 0x40000000
"""A bit that marks calls of the x32 ABI. Their architecture token is that of x86_64."""

_LITTLE: Final = 0x40000000
_WIDE: Final = 0x80000000
_N32: Final = 0x20000000


class Architecture(NamedTuple):
    """One instruction set, with its names in the kernel and in profile formats.

    Attributes:
        name: as in ``uname -m``, with ``x86`` for i386 and ``x32`` for the third ABI of x86_64.
        token: the ``AUDIT_ARCH_*`` value in ``seccomp_data.arch``.
        oci: the name in an OCI profile.
        golang: the name in the ``arches`` lists of a Docker profile.
        table: the module below :mod:`.tables` that has its numbers.
        bits: the number of significant bits of an argument.
        big_endian: whether the low half of an argument comes second.
        offset: added to the numbers of the table.
        multiplexed: whether it has ``socketcall`` and ``ipc``, and so a second path to each of their calls.
    """

    name: str
    token: int
    oci: str
    golang: str
    table: str
    bits: int = 64
    big_endian: bool = False
    offset: int = 0
    multiplexed: bool = False


def _mips(suffix: str, golang: str, token: int, bits: int) -> list[Architecture]:
    return [
        Architecture(
            name=f"mips{end}{suffix}",
            token=token | (_LITTLE if end else 0),
            oci=f"SCMP_ARCH_MIPS{end.upper()}{suffix.upper()}",
            golang=golang + ("le" if end else ""),
            table=f"mips{suffix}",
            bits=bits,
            big_endian=not end,
            multiplexed=not suffix,
        )
        for end in ("", "el")
    ]


ARCHITECTURES: Final[dict[str, Architecture]] = {
    each.name: each
    for each in [
        Architecture("x86_64", 62 | _LITTLE | _WIDE, "SCMP_ARCH_X86_64", "amd64", "x86_64"),
        Architecture("x86", 3 | _LITTLE, "SCMP_ARCH_X86", "386", "x86", 32, multiplexed=True),
        Architecture("x32", 62 | _LITTLE | _WIDE, "SCMP_ARCH_X32", "amd64p32", "x32", 32, offset=X32_BIT),
        Architecture("aarch64", 183 | _LITTLE | _WIDE, "SCMP_ARCH_AARCH64", "arm64", "aarch64"),
        Architecture("arm", 40 | _LITTLE, "SCMP_ARCH_ARM", "arm", "arm", 32),
        Architecture("riscv64", 243 | _LITTLE | _WIDE, "SCMP_ARCH_RISCV64", "riscv64", "riscv64"),
        Architecture("loongarch64", 258 | _LITTLE | _WIDE, "SCMP_ARCH_LOONGARCH64", "loong64", "loongarch64"),
        Architecture("ppc64le", 21 | _LITTLE | _WIDE, "SCMP_ARCH_PPC64LE", "ppc64le", "ppc64", multiplexed=True),
        Architecture("ppc64", 21 | _WIDE, "SCMP_ARCH_PPC64", "ppc64", "ppc64", big_endian=True, multiplexed=True),
        Architecture("ppc", 20, "SCMP_ARCH_PPC", "ppc", "ppc", 32, big_endian=True, multiplexed=True),
        Architecture("s390x", 22 | _WIDE, "SCMP_ARCH_S390X", "s390x", "s390x", big_endian=True, multiplexed=True),
        Architecture("s390", 22, "SCMP_ARCH_S390", "s390", "s390", 32, big_endian=True, multiplexed=True),
        *_mips("", "mips", 8, 32),
        *_mips("64", "mips64", 8 | _WIDE, 64),
        *_mips("64n32", "mips64p32", 8 | _WIDE | _N32, 32),
    ]
}
"""By name. Source: linux/audit.h, linux/elf-em.h, seccomp(2)."""

_TABLES: Final = tuple(dict.fromkeys(each.table for each in ARCHITECTURES.values()))


def architecture(name: str) -> Architecture:
    """Return an architecture by its name or by its name in an OCI profile.

    Raises:
        SpecError: the name is unknown.
    """
    found = ARCHITECTURES.get(name)
    if found is None:
        found = next((each for each in ARCHITECTURES.values() if each.oci == name), None)
    if found is None:
        raise SpecError(f"unknown architecture {name!r}: must be one of {', '.join(ARCHITECTURES)}")
    return found


@cache
def calls_of(table: str) -> dict[str, int]:
    """Return the numbers of a table's system calls by name, in the order of the numbers."""
    text: str = import_module(f"containerkit.security.seccomp.tables.{table}").CALLS
    calls: dict[str, int] = {}
    number = 0
    for word in text.split():
        if word.isdigit():
            number = int(word)
        else:
            calls[word] = number
            number += 1
    return calls


def is_call(name: str) -> bool:
    """Return whether any architecture has a system call of that name."""
    return any(name in calls_of(table) for table in _TABLES)


@cache
def native_names(machine: str) -> dict[int, str]:
    """Return the names of a machine's own system calls by number."""
    own = architecture(machine)
    return {number + own.offset: name for name, number in calls_of(own.table).items()}

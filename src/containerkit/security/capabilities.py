"""The five capability sets of a process, and the operations that set them.

Setting them is split by the change of user: the bounding set and the securebits need ``CAP_SETPCAP``, so they come
before it, and the other sets after it, since the change itself clears some of them.
"""

# ruff: noqa: SIM905 - lists of names read better as one text

from __future__ import annotations

from errno import EINVAL
from struct import pack
from typing import TYPE_CHECKING, Final

import attrs

from containerkit._native import constants as k
from containerkit.errors import SpecError, UnsupportedError
from containerkit.plan import Block, Operation, call, prctl

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["NAMES", "Capabilities", "after_setuid", "before_setuid", "canonical", "no_new_privs"]

NAMES: Final = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
"""By their numbers, 0 to 40. Source: capabilities(7), linux/capability.h."""

_NUMBERS: Final = {name: number for number, name in enumerate(NAMES)}

_DOCKER: Final = (
    "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL "
    "AUDIT_WRITE"
).split()

_SECUREBITS: Final = {
    "noroot": 0x01,
    "noroot_locked": 0x02,
    "no_setuid_fixup": 0x04,
    "no_setuid_fixup_locked": 0x08,
    "keep_caps": 0x10,
    "keep_caps_locked": 0x20,
    "no_cap_ambient_raise": 0x40,
    "no_cap_ambient_raise_locked": 0x80,
}
_VERSION_3: Final = 0x20080522
_SETS: Final = ("bounding", "permitted", "effective", "inheritable", "ambient")


def canonical(name: str) -> str:
    """Return a capability's name as ``CAP_NET_RAW``, given it with or without the prefix and in any case.

    Raises:
        SpecError: there is no such capability.
    """
    full = name.upper()
    full = full if full.startswith("CAP_") else f"CAP_{full}"
    if full in _NUMBERS:
        return full
    from difflib import get_close_matches

    near = get_close_matches(full, NAMES, 1)
    raise SpecError(f"unknown capability {name!r}" + (f": did you mean {near[0]!r}" if near else ""))


def _names(names: Iterable[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise SpecError(f"a capability set takes several names: [{names!r}]")
    return frozenset(canonical(name) for name in names)


def _securebits(names: Iterable[str]) -> frozenset[str]:
    wrong = frozenset(names) - _SECUREBITS.keys()
    if wrong:
        raise SpecError(f"unknown securebit {min(wrong)!r}: of {', '.join(_SECUREBITS)}")
    return frozenset(names)


@attrs.frozen(kw_only=True)
class Capabilities:
    """The capabilities of a process just before its ``execve``.

    What it holds after that is the kernel's to compute. Root gets ``bounding`` (and ``inheritable``); another user
    only what is ``ambient``, or what the file that is executed grants.

    Attributes:
        bounding: the most that anything executed later can ever gain.
        permitted: what the process may use.
        effective: what it does use.
        inheritable: what a file may let through to the program in it.
        ambient: what programs without file capabilities keep, for a user who isn't root.
        securebits: of ``noroot no_setuid_fixup keep_caps no_cap_ambient_raise``, each also with ``_locked``.

    Raises:
        SpecError: an unknown name, or sets that the kernel refuses: ``effective`` has to lie in ``permitted``,
            ``inheritable`` in ``bounding``, and ``ambient`` in both ``permitted`` and ``inheritable``.

    Source: capabilities(7).
    """

    bounding: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    permitted: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    effective: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    inheritable: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    ambient: frozenset[str] = attrs.field(default=frozenset(), converter=_names)
    securebits: frozenset[str] = attrs.field(default=frozenset(), converter=_securebits)

    def __attrs_post_init__(self) -> None:
        for inner, outer in (
            ("effective", "permitted"),
            ("inheritable", "bounding"),
            ("ambient", "permitted"),
            ("ambient", "inheritable"),
        ):
            extra = getattr(self, inner) - getattr(self, outer)
            if extra:
                raise SpecError(f"{min(extra)} is {inner} but not {outer}")
        if self.ambient and "no_cap_ambient_raise" in self.securebits:
            raise SpecError("the securebit no_cap_ambient_raise forbids ambient capabilities")

    @classmethod
    def none(cls) -> Capabilities:
        """Return no capability at all, now or after any ``execve``: what a container has by default."""
        return cls()

    @classmethod
    def of(cls, *names: str, ambient: bool = False) -> Capabilities:
        """Return just these; see :meth:`add`."""
        return cls().add(*names, ambient=ambient)

    @classmethod
    def docker(cls) -> Capabilities:
        """Return the fourteen that Docker and podman's Docker mode give to root in a container."""
        return cls.of(*_DOCKER)

    @classmethod
    def all(cls, last_cap: int = len(NAMES) - 1) -> Capabilities:
        """Return every one up to the kernel's last, /proc/sys/kernel/cap_last_cap."""
        return cls.of(*NAMES[: last_cap + 1])

    @classmethod
    def from_masks(
        cls, *, bounding: int = 0, permitted: int = 0, effective: int = 0, inheritable: int = 0, ambient: int = 0
    ) -> Capabilities:
        """Return the sets that bit masks stand for, such as those of /proc/PID/status; unknown bits are dropped."""
        masks = dict(zip(_SETS, (bounding, permitted, effective, inheritable, ambient), strict=True))
        return cls(
            **{which: [name for name, bit in _NUMBERS.items() if mask >> bit & 1] for which, mask in masks.items()}
        )

    def add(self, *names: str, ambient: bool = False) -> Capabilities:
        """Return these and some more.

        Args:
            names: with or without ``CAP_``, in any case.
            ambient: also keep them through the ``execve`` of a user who isn't root.

        Raises:
            SpecError: an unknown name.
        """
        more = _names(names)
        sets = _SETS if ambient else _SETS[:3]
        return attrs.evolve(self, **{which: getattr(self, which) | more for which in sets})

    def drop(self, *names: str) -> Capabilities:
        """Return these without some, in all five sets.

        Raises:
            SpecError: an unknown name.
        """
        less = _names(names)
        return attrs.evolve(self, **{which: getattr(self, which) - less for which in _SETS})

    def mask(self, which: str) -> int:
        """Return one of the sets as a bit mask."""
        names: frozenset[str] = getattr(self, which)
        return sum(1 << _NUMBERS[name] for name in names)

    def __str__(self) -> str:
        sets = {which: sorted(name[4:].lower() for name in getattr(self, which)) for which in _SETS}
        told = [f"{which}: {' '.join(names)}" for which, names in sets.items() if names]
        return "; ".join(told) or "no capabilities"


def _check_host(wanted: Capabilities, last_cap: int, available: Iterable[str] | None) -> None:
    every = frozenset(name for which in _SETS for name in getattr(wanted, which))
    newer = sorted(name for name in every if _NUMBERS[name] > last_cap)
    if newer:
        hint = f"a newer kernel, or capabilities.drop({newer[0]!r})"
        raise UnsupportedError("capset", EINVAL, newer[0], hint)
    missing = sorted(every - _names(available)) if available is not None else []
    if missing:
        hint = (
            f"this process lacks it and can't give it: start with it, use a new user namespace, or "
            f"capabilities.drop({missing[0]!r})"
        )
        raise UnsupportedError("capset", EINVAL, missing[0], hint)


def before_setuid(
    wanted: Capabilities, *, last_cap: int, keep: bool = False, available: Iterable[str] | None = None
) -> tuple[Operation, ...]:
    """Return what has to run while the process still has ``CAP_SETPCAP``: the bounding set, the securebits.

    Args:
        wanted: the sets to reach.
        last_cap: the number in /proc/sys/kernel/cap_last_cap; those this module has no name for are dropped too.
        keep: hold on to the permitted set across a change to a user who isn't root. Implied by capabilities that are
            permitted; without any there is nothing to keep.
        available: what the process holds, where it is not all: outside a new user namespace.

    Raises:
        UnsupportedError: the kernel or the process lacks one that is wanted.

    Source: capabilities(7), PR_CAPBSET_DROP(2const), PR_SET_SECUREBITS(2const), PR_SET_KEEPCAPS(2const).
    """
    _check_host(wanted, last_cap, available)
    bounding = wanted.mask("bounding")
    steps = [
        prctl(f"drop {_name(number)} from the bounding set", k.PR_CAPBSET_DROP, number, hint=_SETPCAP)
        for number in range(last_cap + 1)
        if not bounding >> number & 1
    ]
    keep = keep or bool(wanted.permitted)
    bits = sum(_SECUREBITS[name] for name in wanted.securebits)
    if bits:
        bits |= _SECUREBITS["keep_caps"] if keep else 0
        steps.append(prctl(f"securebits {bits:#x}", k.PR_SET_SECUREBITS, bits, hint=_SETPCAP))
    elif keep:
        steps.append(prctl("keep capabilities", k.PR_SET_KEEPCAPS, 1))
    return tuple(steps)


_SETPCAP: Final = "it needs CAP_SETPCAP: use a new user namespace, or start as root"


def after_setuid(wanted: Capabilities) -> tuple[Operation, ...]:
    """Return what has to run once the process is the user it shall be: the four other sets.

    The ambient set is emptied first, so that nothing of the caller's is inherited.

    Source: capset(2), PR_CAP_AMBIENT(2const).
    """
    low, high = (
        [wanted.mask(which) >> shift & 0xFFFFFFFF for which in ("effective", "permitted", "inheritable")]
        for shift in (0, 32)
    )
    header = Block(pack("=Ii", _VERSION_3, 0))
    clear = prctl("clear the ambient set", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL)
    hint = "the process lacks one of them: use a new user namespace, or drop it from the sets"
    sets = call("capset", header, Block(pack("=6I", *low, *high)), target=str(wanted), hint=hint)
    raised = [
        prctl(f"raise {name} to the ambient set", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, _NUMBERS[name])
        for name in sorted(wanted.ambient, key=_NUMBERS.__getitem__)
    ]
    return (clear, sets, *raised)


def no_new_privs() -> Operation:
    """Return the operation after which no ``execve`` gains anything from set-user-ID bits or file capabilities.

    Source: PR_SET_NO_NEW_PRIVS(2const).
    """
    return prctl("no_new_privs", k.PR_SET_NO_NEW_PRIVS, 1)


def _name(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"capability {number}"

"""The five capability sets of a process, and the operations that set them.

They are set in two parts, before and after the change of user. The bounding set and the securebits need
``CAP_SETPCAP`` and come before it. The other sets come after it, because the change itself clears some of them.
"""

# ruff: noqa: SIM905 - lists of names are easier to read as one text

from __future__ import annotations

from errno import EINVAL
from struct import pack

from containerkit._native import constants as k
from containerkit.errors import SpecError, UnsupportedError
from containerkit.plan.calls import call, prctl
from containerkit.plan.operation import Block, Operation
from containerkit.security.checks import check_bool, check_number, names, text_of
from containerkit.values import evolve, field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.options import ListOf

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
"""The names in the order of their numbers, 0 to 40. Source: capabilities(7), linux/capability.h."""

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
_LARGEST: Final = 2**31 - 1
_LARGEST_MASK: Final = 2**64 - 1
_SETS: Final = ("bounding", "permitted", "effective", "inheritable", "ambient")


def canonical(name: str) -> str:
    """Normalise the name of a capability to the form ``CAP_NET_RAW``. The prefix is optional, and case is ignored.

    Raises:
        SpecError: the name is unknown.
    """
    full = text_of(name, "capability").upper()
    full = full if full.startswith("CAP_") else f"CAP_{full}"
    if full in _NUMBERS:
        return full
    from difflib import get_close_matches

    near = get_close_matches(full, NAMES, 1)
    raise SpecError(f"unknown capability {name!r}" + (f": did you mean {near[0]!r}" if near else ""))


def _names(values: ListOf[str]) -> frozenset[str]:
    return frozenset(canonical(name) for name in names(values, "capabilities"))


def _securebits(values: ListOf[str]) -> frozenset[str]:
    found = frozenset(names(values, "securebits"))
    if wrong := found - _SECUREBITS.keys():
        raise SpecError(f"unknown securebit {min(wrong)!r}: must be one of {', '.join(_SECUREBITS)}")
    return found


@frozen(kw_only=True)
class Capabilities:
    """The capability sets of a process just before its ``execve``.

    The kernel computes the sets of the process after ``execve``. Root gets ``bounding`` (and ``inheritable``). Another
    user gets only ``ambient``, or what the executed file grants.

    Attributes:
        bounding: the maximum that any program executed later can gain.
        permitted: the capabilities that the process may use.
        effective: the capabilities that are in effect.
        inheritable: the capabilities that a file with file capabilities can give to its program.
        ambient: the capabilities that a user other than root keeps in programs without file capabilities.
        securebits: names from ``noroot no_setuid_fixup keep_caps no_cap_ambient_raise``, each also with ``_locked``.

    Raises:
        SpecError: a name is unknown, or the kernel would refuse the sets: ``effective`` must be a subset of
            ``permitted``, ``inheritable`` of ``bounding``, and ``ambient`` of both ``permitted`` and ``inheritable``.

    Source: capabilities(7).
    """

    bounding: frozenset[str] = field(default=frozenset(), converter=_names)
    permitted: frozenset[str] = field(default=frozenset(), converter=_names)
    effective: frozenset[str] = field(default=frozenset(), converter=_names)
    inheritable: frozenset[str] = field(default=frozenset(), converter=_names)
    ambient: frozenset[str] = field(default=frozenset(), converter=_names)
    securebits: frozenset[str] = field(default=frozenset(), converter=_securebits)

    def __attrs_post_init__(self) -> None:
        for inner, outer in (
            ("effective", "permitted"),
            ("inheritable", "bounding"),
            ("ambient", "permitted"),
            ("ambient", "inheritable"),
        ):
            extra = getattr(self, inner) - getattr(self, outer)
            if extra:
                raise SpecError(
                    f"capabilities: {min(extra)} is {inner} but not {outer}; each {inner} one must also be {outer}"
                )
        if self.ambient and "no_cap_ambient_raise" in self.securebits:
            raise SpecError("the securebit no_cap_ambient_raise forbids ambient capabilities")

    @classmethod
    def none(cls) -> Capabilities:
        """Return empty sets: no capability now or after any ``execve``. This is the default of containers."""
        return cls()

    @classmethod
    def of(cls, *names: str, ambient: bool = False) -> Capabilities:
        """Return sets of only these capabilities; see :meth:`add`."""
        return cls().add(*names, ambient=ambient)

    @classmethod
    def docker(cls) -> Capabilities:
        """Return the fourteen capabilities that Docker gives to root in a container."""
        return cls.of(*_DOCKER)

    @classmethod
    def all(cls, last_cap: int = len(NAMES) - 1) -> Capabilities:
        """Return all capabilities up to the last one of the kernel, /proc/sys/kernel/cap_last_cap.

        Raises:
            SpecError: the number is invalid.
        """
        check_number(last_cap, "last_cap", 0, _LARGEST)
        return cls.of(*NAMES[: last_cap + 1])

    @classmethod
    def from_masks(
        cls, *, bounding: int = 0, permitted: int = 0, effective: int = 0, inheritable: int = 0, ambient: int = 0
    ) -> Capabilities:
        """Return the sets for bit masks such as those in /proc/PID/status. Unknown bits are dropped.

        Raises:
            SpecError: a value is not a mask of 64 bits, or the kernel would refuse the sets.
        """
        masks = dict(zip(_SETS, (bounding, permitted, effective, inheritable, ambient), strict=True))
        for which, mask in masks.items():
            check_number(mask, which, 0, _LARGEST_MASK)
        return cls(
            **{which: [name for name, bit in _NUMBERS.items() if mask >> bit & 1] for which, mask in masks.items()}
        )

    def add(self, *names: str, ambient: bool = False) -> Capabilities:
        """Return these sets with more capabilities.

        Args:
            names: with or without ``CAP_``, in any case.
            ambient: whether a user other than root keeps them after ``execve``. Default False.

        Raises:
            SpecError: a name is unknown.
        """
        check_bool(ambient, "ambient")
        more = _names(names)
        sets = _SETS if ambient else _SETS[:3]
        return evolve(self, **{which: getattr(self, which) | more for which in sets})

    def drop(self, *names: str) -> Capabilities:
        """Return these sets without some capabilities, which are removed from all five.

        Raises:
            SpecError: a name is unknown.
        """
        less = _names(names)
        return evolve(self, **{which: getattr(self, which) - less for which in _SETS})

    def mask(self, which: str) -> int:
        """Return one of the sets as a bit mask.

        Raises:
            SpecError: the set is unknown.
        """
        if text_of(which, "capability set") not in _SETS:
            raise SpecError(f"unknown capability set {which!r}: one of {', '.join(_SETS)}")
        names: frozenset[str] = getattr(self, which)
        return sum(1 << _NUMBERS[name] for name in names)

    def __str__(self) -> str:
        sets = {which: sorted(name[4:].lower() for name in getattr(self, which)) for which in _SETS}
        told = [f"{which}: {' '.join(names)}" for which, names in sets.items() if names]
        return "; ".join(told) or "no capabilities"


def _check_host(wanted: Capabilities, last_cap: int, available: ListOf[str] | None) -> None:
    every = frozenset(name for which in _SETS for name in getattr(wanted, which))
    newer = sorted(name for name in every if _NUMBERS[name] > last_cap)
    if newer:
        hint = f"use a newer kernel, or capabilities.drop({newer[0]!r})"
        raise UnsupportedError("capset", EINVAL, newer[0], hint)
    missing = sorted(every - _names(available)) if available is not None else []
    if missing:
        hint = (
            f"this process can't grant a capability that it does not have: start with it, use a new user namespace, or "
            f"capabilities.drop({missing[0]!r})"
        )
        raise UnsupportedError("capset", EINVAL, missing[0], hint)


def before_setuid(
    wanted: Capabilities, *, last_cap: int, keep: bool = False, available: ListOf[str] | None = None
) -> tuple[Operation, ...]:
    """Return the operations that need ``CAP_SETPCAP``: they set the bounding set and the securebits.

    Args:
        wanted: the sets to establish.
        last_cap: the number in /proc/sys/kernel/cap_last_cap. Capabilities unknown to this module are dropped too.
        keep: whether to keep the permitted set across a change to a user other than root. Permitted capabilities imply
            it.
        available: the capabilities of the process (default: all, as in a new user namespace).

    Raises:
        UnsupportedError: the kernel does not know a capability, or the process does not have it.

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
    """Return the operations that set the four other sets, after the change of user.

    The ambient set is cleared first, so that nothing is inherited from the caller.

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
    """Return the operation after which no ``execve`` gains privileges from set-user-ID bits or file capabilities.

    Source: PR_SET_NO_NEW_PRIVS(2const).
    """
    return prctl("no_new_privs", k.PR_SET_NO_NEW_PRIVS, 1)


def _name(number: int) -> str:
    return NAMES[number] if number < len(NAMES) else f"capability {number}"

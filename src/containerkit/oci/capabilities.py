"""Converts the names of the five capability sets to bit masks.

The names repeat :data:`containerkit.security.capabilities.NAMES`, whose module loads attrs. A test compares them.
"""

# ruff: noqa: SIM905 - lists of names read better as one text

from __future__ import annotations

from struct import pack

from containerkit._native import constants as k
from containerkit.oci import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Capabilities
    from containerkit.oci.log import Log
    from containerkit.oci.tape import Tape

__all__ = ["NAMES", "Masks", "own_permitted", "read"]

NAMES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
        "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
        "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
        "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
_BITS = {name: 1 << number for number, name in enumerate(NAMES)}
_SETS = ("bounding", "effective", "inheritable", "permitted", "ambient")
_SETPCAP = "it needs CAP_SETPCAP: use a new user namespace, or start as root"


class Masks:
    """The wanted sets, a bit for each capability."""

    __slots__ = ("ambient", "bounding", "dropped", "effective", "inheritable", "not_ambient", "permitted", "unknown")

    def __init__(self) -> None:
        self.bounding = self.effective = self.inheritable = self.permitted = self.ambient = 0
        self.dropped: list[str] = []
        self.unknown: list[str] = []
        self.not_ambient: list[str] = []

    def limit(self, available: int) -> None:
        """Remove the capabilities that the starting process does not have and so can't grant.

        Source: OCI runtime-spec, config.md, "capabilities": such values are ignored, with a warning.
        """
        wanted = self.bounding | self.effective | self.inheritable | self.permitted | self.ambient
        self.dropped += [name for name, bit in _BITS.items() if wanted & ~available & bit]
        for which in _SETS:
            setattr(self, which, getattr(self, which) & available)
        self.effective &= self.permitted
        possible = self.permitted & self.inheritable
        self.not_ambient += [name for name, bit in _BITS.items() if self.ambient & ~possible & bit]
        self.ambient &= possible

    def warn(self, journal: Log) -> None:
        """Warn of capabilities that can't be granted."""
        if self.unknown:
            journal.warning("process.capabilities: unknown, ignored: " + ", ".join(dict.fromkeys(self.unknown)))
        if self.dropped:
            journal.warning(
                "process.capabilities: the runtime does not have these, ignored: " + ", ".join(self.dropped)
            )
        if self.not_ambient:
            names = ", ".join(self.not_ambient)
            journal.warning(f"process.capabilities.ambient: not both permitted and inheritable, ignored: {names}")


def read(wanted: Capabilities | None) -> Masks:
    """Return the masks of a description. Without one all sets are empty. Unknown names are recorded.

    Source: OCI runtime-spec, config.md, "capabilities": the runtime warns about them and should not fail.
    """
    masks = Masks()
    for which in _SETS if wanted is not None else ():
        mask = 0
        for name in getattr(wanted, which):
            bit = _BITS.get(name.upper())
            if bit is None:
                masks.unknown.append(name)
                continue
            mask |= bit
        setattr(masks, which, mask)
    return masks


def own_permitted() -> int:
    """Return the permitted capabilities of this process. Source: proc_pid_status(5), CapPrm."""
    text = files.read("/proc/self/status")
    at = text.index(b"CapPrm:")
    return int(text[at + 7 : text.index(b"\n", at)].strip(), 16)


def before_setuid(tape: Tape, masks: Masks, last: int) -> None:
    """Add the steps that need ``CAP_SETPCAP``: set the bounding set, and keep the permitted set when the user changes.

    Source: capabilities(7), PR_CAPBSET_DROP(2const), PR_SET_KEEPCAPS(2const).
    """
    for number in range(last + 1):
        if not masks.bounding >> number & 1:
            name = NAMES[number] if number < len(NAMES) else f"capability {number}"
            target = f"drop {name} from the bounding set"
            tape.call("prctl", k.PR_CAPBSET_DROP, number, 0, 0, 0, target=target, hint=_SETPCAP)
    tape.call("prctl", k.PR_SET_KEEPCAPS, 1, 0, 0, 0, target="keep capabilities")


def after_setuid(tape: Tape, masks: Masks) -> None:
    """Add the steps that set the other four sets. Source: capset(2), PR_CAP_AMBIENT(2const)."""
    tape.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, target="clear the ambient set")
    three = (masks.effective, masks.permitted, masks.inheritable)
    words = [value & 0xFFFFFFFF for value in three] + [value >> 32 for value in three]
    header = tape.block(pack("=Ii", 0x20080522, 0))
    tape.call("capset", header, tape.block(pack("=6I", *words)), target="capabilities")
    for number, name in enumerate(NAMES):
        if masks.ambient >> number & 1:
            tape.call("prctl", k.PR_CAP_AMBIENT, k.PR_CAP_AMBIENT_RAISE, number, 0, 0, target=f"raise {name}")

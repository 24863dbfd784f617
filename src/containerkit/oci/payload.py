"""The steps by which a process inside becomes the command: terminal, user, privileges, program.

All steps that can fail come before the gate, so that ``create`` reports errors. Only those that must be last come after
it.
"""

from __future__ import annotations

import os
from errno import EACCES, EBADF, ENOENT, ENOSYS, ENOTDIR, EPERM
from struct import pack

from containerkit._native import constants as k
from containerkit.oci import capabilities, protocol
from containerkit.oci.checks import RLIMITS
from containerkit.oci.config import POLICIES
from containerkit.oci.errors import ConfigError
from containerkit.oci.tape import ARGV, ENVP

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from containerkit.oci.capabilities import Masks
    from containerkit.oci.config import Linux, MemoryPolicy, Personality, Process, Scheduler
    from containerkit.oci.host import Host
    from containerkit.oci.tape import Slot, Tape

__all__ = ["Payload", "candidates", "unique"]

_TIOCSPTLCK, _TIOCGPTPEER, _TIOCSCTTY = 0x40045431, 0x5441, 0x540E
_F_GETFD, _F_DUPFD_CLOEXEC = 1, 1030
_SET_MODE_FILTER = 1
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
MEMORY_MODES = (
    "MPOL_DEFAULT",
    "MPOL_PREFERRED",
    "MPOL_BIND",
    "MPOL_INTERLEAVE",
    "MPOL_LOCAL",
    "MPOL_PREFERRED_MANY",
    "MPOL_WEIGHTED_INTERLEAVE",
)
MEMORY_FLAGS = {"MPOL_F_STATIC_NODES": 1 << 15, "MPOL_F_RELATIVE_NODES": 1 << 14, "MPOL_F_NUMA_BALANCING": 1 << 13}
_AFFINITY_BYTES = 1024
"""The largest number of processors that a kernel supports: CONFIG_NR_CPUS is at most 8192."""

_LABEL_HINT = "the security module is not enabled on this host, or does not know the profile"


def candidates(process: Process) -> list[bytes]:
    """Return the paths where the program may be, in order. Source: execvp(3)."""
    program = os.fsencode(process.args[0])
    if b"/" in program:
        return [program]
    path = _DEFAULT_PATH
    for variable in process.env:
        if variable.startswith("PATH="):
            path = variable[5:]
    return [os.fsencode(directory or ".") + b"/" + program for directory in path.split(":")]


def unique(variables: Iterable[str]) -> list[str]:
    """Return an environment in which each name occurs once, with its last value."""
    found: dict[str, str] = {}
    for variable in variables:
        found[variable.partition("=")[0]] = variable
    return list(found.values())


def strip(tape: Tape, kept: Sequence[int], telling: int = k.TELL_OUTSIDE) -> None:
    """Add the step that closes all descriptors except the standard streams, ``kept`` (ascending) and that for failures.

    Source: ``CK_STEP_STRIP`` and ``enum ck_telling`` in ``_native/native.h``.
    """
    numbers = tape.block(pack(f"={len(kept)}i", *kept)) if kept else 0
    tape.step(k.STEP_STRIP, "close_range", numbers, len(kept), telling, 0, target="all but what is kept")


class Payload:
    """Writes the end of a tape.

    Args:
        tape: the tape to which the steps are added.
        process: the process.
        path: its JSON path in the configuration.
        masks: its capabilities.
        held: the capabilities of the process before they are set.
        filters: the seccomp program, if any, with its flags.
        may_set_groups: whether setgroups(2) is allowed inside.
        keeps_groups: whether the process keeps the caller's additional groups, instead of its own.
    """

    def __init__(
        self,
        tape: Tape,
        process: Process,
        path: str,
        masks: Masks,
        *,
        held: int,
        filters: tuple[bytes, int] | None,
        may_set_groups: bool,
        keeps_groups: bool,
    ) -> None:
        self.tape = tape
        self.process = process
        self.path = path
        self.masks = masks
        self.held = held
        self.filters = filters
        self.may_start_threads = True
        self.may_set_groups = may_set_groups
        self.keeps_groups = keeps_groups

    # --- before the gate

    def open_terminal(self, root: int | Slot, path: bytes) -> Slot:
        """Add the steps that make a terminal on the container's own devpts. Return its other end.

        The peer is opened through the master itself, because no path inside is trusted (CVE-2025-52565).

        Source: TIOCGPTPEER in ioctl_tty(2), pts(4).
        """
        tape = self.tape
        master, peer = tape.slot("terminal master"), tape.slot("terminal")
        how = pack("=QQQ", k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC, 0, k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS)
        hint = "a terminal needs a devpts mount on /dev/pts"
        tape.call("openat2", root, path, tape.block(how), 24, target="/dev/pts/ptmx", result=master, hint=hint)
        tape.call("ioctl", master, _TIOCSPTLCK, tape.block(pack("=i", 0)), target="unlock the terminal")
        flags = k.O_RDWR | k.O_NOCTTY | k.O_CLOEXEC
        tape.call("ioctl", master, _TIOCGPTPEER, flags, target="open the terminal", result=peer)
        uid = self.process.user.uid
        if uid:
            tape.call("fchown", peer, uid, 2**32 - 1, target="terminal", ok=(EPERM,))
        return peer

    def session(self, terminal: Slot | None) -> None:
        """Add the steps that give the process a session and, on a terminal, its standard streams."""
        tape = self.tape
        tape.call("setsid", ok=(EPERM,))
        if terminal is not None:
            tape.call("ioctl", terminal, _TIOCSCTTY, 0, target="controlling terminal")
            for number in range(3):
                tape.call("dup3", terminal, number, 0, target=("stdin", "stdout", "stderr")[number])

    def keyring(self, name: str) -> None:
        """Add the step that leaves the caller's session keyring. Source: KEYCTL_JOIN_SESSION_KEYRING."""
        label = f"_ses.{name}".encode()
        self.tape.call("keyctl", k.KEYCTL_JOIN_SESSION_KEYRING, label, target="session keyring", ok=(ENOSYS, EPERM))

    def configure(self, linux: Linux, host: Host, proc: Slot | int, channel: int) -> None:
        """Add the steps that set the attributes of the process in their order, up to its exec.

        Args:
            linux: that section of the configuration.
            host: facts about the machine.
            proc: the descriptor of the procfs.
            channel: the descriptor of the socket to the caller, for a listener's descriptor.
        """
        self.labels(proc)
        self.scheduling()
        self.personality(linux.personality)
        self.memory_policy(linux.memory_policy)
        if not host.raises_limits:
            self.limits()
        self.identity(host.last_cap)
        if linux.seccomp is not None and linux.seccomp.get("listenerPath"):
            self.listen(channel)

    def labels(self, proc: Slot | int) -> None:
        """Add the steps that set the AppArmor and SELinux labels for the exec.

        They are written through the host's own procfs, which no process inside can replace.
        """
        wanted = []
        if self.process.apparmor_profile and self.process.apparmor_profile != "unconfined":
            wanted.append(("attr/apparmor/exec", f"exec {self.process.apparmor_profile}"))
        if self.process.selinux_label:
            wanted.append(("attr/exec", self.process.selinux_label))
        for file, value in wanted:
            at = self.tape.slot("label")
            path = f"thread-self/{file}".encode()
            text = value.encode()
            self.tape.call("openat", proc, path, k.O_WRONLY | k.O_CLOEXEC, 0, target=value, result=at, hint=_LABEL_HINT)
            self.tape.call("write", at, self.tape.block(text), len(text), target=value, hint=_LABEL_HINT)
            self.tape.step(k.STEP_CLOSE, "close", at)

    def scheduling(self) -> None:
        """Add the steps for the scheduler and the priority of input and output."""
        process = self.process
        if process.scheduler is not None:
            content = _scheduler(process.scheduler, f"{self.path}.scheduler")
            hint = "a real-time policy needs CAP_SYS_NICE outside"
            self.tape.call("sched_setattr", 0, self.tape.block(content), 0, target=process.scheduler.policy, hint=hint)
        if process.io_priority is not None:
            value = _IO_CLASSES[process.io_priority.cls] << 13 | process.io_priority.priority
            self.tape.call("ioprio_set", 1, 0, value, target=process.io_priority.cls)

    def personality(self, wanted: Personality | None) -> None:
        """Add the step for the execution domain. Source: personality(2)."""
        if wanted is None:
            return
        if wanted.flags:
            raise ConfigError("linux.personality.flags", "no flag is defined for Linux")
        self.tape.call("personality", 8 if wanted.domain == "LINUX32" else 0, target=wanted.domain)

    def memory_policy(self, wanted: MemoryPolicy | None) -> None:
        """Add the step for the NUMA policy. Source: set_mempolicy(2)."""
        if wanted is None:
            return
        path = "linux.memoryPolicy"
        if wanted.mode not in MEMORY_MODES:
            raise ConfigError(f"{path}.mode", f"{wanted.mode!r} is not one of {', '.join(MEMORY_MODES)}")
        mode = MEMORY_MODES.index(wanted.mode)
        for index, flag in enumerate(wanted.flags):
            if flag not in MEMORY_FLAGS:
                raise ConfigError(f"{path}.flags[{index}]", f"{flag!r} is not one of {', '.join(MEMORY_FLAGS)}")
            mode |= MEMORY_FLAGS[flag]
        mask = number_mask(wanted.nodes, f"{path}.nodes")
        size = (mask.bit_length() + 63) // 64 * 8
        nodes = self.tape.block(mask.to_bytes(size, "little")) if size else 0
        self.tape.call("set_mempolicy", mode, nodes, size * 8 + 1 if size else 0, target=wanted.mode)

    def affinity(self, text: str, path: str) -> None:
        """Add the step that binds the process to processors. Source: sched_setaffinity(2)."""
        if text:
            mask = number_mask(text, path)
            size = (mask.bit_length() + 63) // 64 * 8
            block = self.tape.block(mask.to_bytes(size, "little"))
            self.tape.call("sched_setaffinity", 0, size, block, target=f"processors {text}")

    def reset_affinity(self) -> None:
        """Add the step that lets the process run on all processors of its cpuset, whatever the caller's affinity is.

        The kernel ignores processors outside of the cpuset. Source: sched_setaffinity(2).
        """
        everywhere = self.tape.block(b"\xff" * _AFFINITY_BYTES)
        self.tape.call("sched_setaffinity", 0, _AFFINITY_BYTES, everywhere, target="all processors", ok=(EPERM, ENOSYS))

    def limits(self) -> None:
        """Add the steps that set resource limits, if the runtime may not set those of another user's process.

        Source: getrlimit(2), prlimit.
        """
        hint = "raising a hard limit needs CAP_SYS_RESOURCE"
        for index, limit in enumerate(self.process.rlimits):
            block = self.tape.block(pack("=QQ", limit.soft, limit.hard))
            target = f"{self.path}.rlimits[{index}] {limit.type}"
            self.tape.call("prlimit64", 0, RLIMITS[limit.type], block, 0, target=target, hint=hint)

    def identity(self, last_cap: int) -> None:
        """Add the steps that change to the user and to the working directory."""
        tape, user = self.tape, self.process.user
        entered = self._enter_directory()
        capabilities.before_setuid(tape, self.masks, last_cap)
        hint = "the id is not mapped in the container's user namespace: see linux.uidMappings and gidMappings"
        if not self.keeps_groups:
            groups = list(dict.fromkeys(user.additional_gids))
            members = tape.block(pack(f"={len(groups)}I", *groups)) if groups else 0
            ok = () if self.may_set_groups or groups else (EPERM,)
            tape.call("setgroups", len(groups), members, target=str(groups), ok=ok, hint=hint)
        tape.call("setresgid", user.gid, user.gid, user.gid, target=f"gid {user.gid}", hint=hint)
        tape.call("setresuid", user.uid, user.uid, user.uid, target=f"uid {user.uid}", hint=hint)
        if user.uid:
            self._enter_again(entered)
        tape.call("umask", 0o022 if user.umask is None else user.umask)

    def _enter_directory(self) -> Slot:
        """Add the steps by which root enters the working directory. Return the register that then holds it.

        No magic link is followed, so the directory can't be outside (CVE-2024-21626).
        """
        tape = self.tape
        at, entered = tape.slot("cwd"), tape.slot("cwd entered")
        refused = (EACCES, EPERM) if self.process.user.uid else ()
        opened = self._open_directory(at, refused)
        tried = tape.call("fchdir", at, target=self._directory, ok=refused)
        tape.call("fcntl", at, _F_DUPFD_CLOEXEC, 3, target=self._directory, result=entered)
        tape.skip_here(opened)
        tape.skip_here(tried)
        return entered

    def _open_directory(self, at: Slot, ok: tuple[int, ...]) -> int:
        how = pack("=QQQ", k.O_PATH | k.O_DIRECTORY | k.O_CLOEXEC, 0, k.RESOLVE_NO_MAGICLINKS)
        path = os.fsencode(self.process.cwd)
        tape = self.tape
        return tape.call("openat2", k.AT_FDCWD, path, tape.block(how), 24, target=self._directory, result=at, ok=ok)

    @property
    def _directory(self) -> str:
        return f'chdir to cwd ("{self.process.cwd}") set in {self.path}.cwd'

    def _enter_again(self, entered: Slot) -> None:
        """Add the steps by which the user enters it. They must succeed if root failed, as on a network filesystem."""
        tape = self.tape
        at = tape.slot("cwd again")
        opened = self._open_directory(at, (EACCES, EPERM))
        tried = tape.call("fchdir", at, target=self._directory, ok=(EACCES, EPERM))
        tape.skip_here(opened)
        there = tape.call("fcntl", entered, _F_GETFD, target=self._directory, ok=(EBADF,))
        self._open_directory(at, ())
        tape.call("fchdir", at, target=self._directory)
        tape.leap_here(tried)
        tape.leap_here(there)

    def listen(self, channel: int) -> None:
        """Add the steps that install a filter with an agent, while the runtime can still pass the listener on."""
        tape = self.tape
        listener = tape.slot("listener")
        if self.process.no_new_privileges:
            tape.call("prctl", k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, target="no_new_privs")
        else:
            self.raise_all()
        self.install_filter(listener)
        self.may_start_threads = False
        protocol.hand_over(tape, channel, b"s", listener, "seccomp listener")
        tape.step(k.STEP_CLOSE, "close", listener)

    # --- after the gate

    def finish(self, kept: Sequence[int]) -> None:
        """Add the last steps: privileges, filter, descriptors, signals, the exec.

        Args:
            kept: the descriptors that stay open besides the standard streams, in rising order.
        """
        tape = self.tape
        # A filter that is already installed may forbid the thread that reports the exec.
        telling = k.TELL_OUTSIDE if self.may_start_threads else k.TELL_MARKED
        strip(tape, kept, telling)
        if self.process.no_new_privileges:
            capabilities.after_setuid(tape, self.masks)
            tape.call("prctl", k.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, target="no_new_privs")
            tape.step(k.STEP_SIGNALS, "reset_signals")
            self.install_filter()
        else:
            tape.step(k.STEP_SIGNALS, "reset_signals")
            if self.filters is not None:
                self.raise_all()
                self.install_filter()
            capabilities.after_setuid(tape, self.masks)
        name = self.process.args[0]
        *others, last = candidates(self.process)
        for path in others:
            tape.call("execve", path, ARGV, ENVP, target=name, ok=(ENOENT, ENOTDIR, EACCES))
        tape.call("execve", last, ARGV, ENVP, target=name)

    def raise_all(self) -> None:
        """Add the step that makes the kept capabilities effective again: a filter needs CAP_SYS_ADMIN."""
        low, high = self.held & 0xFFFFFFFF, self.held >> 32
        header = self.tape.block(pack("=Ii", 0x20080522, 0))
        sets = self.tape.block(pack("=6I", low, low, 0, high, high, 0))
        self.tape.call("capset", header, sets, target="all permitted capabilities")

    def install_filter(self, listener: Slot | None = None) -> None:
        """Add the steps that install the seccomp filter. Source: seccomp(2)."""
        if self.filters is None:
            return
        program, flags = self.filters
        self.filters = None
        content = self.tape.block(program)
        header = self.tape.block(pack("=H6xQ", len(program) // 8, 0), (8, content))
        hint = "it needs noNewPrivileges or CAP_SYS_ADMIN, and a kernel with CONFIG_SECCOMP_FILTER"
        target = f"filter of {len(program) // 8} instructions"
        self.tape.call("seccomp", _SET_MODE_FILTER, flags, header, target=target, result=listener, hint=hint)


def _scheduler(wanted: Scheduler, path: str) -> bytes:
    """Return struct sched_attr. Source: sched_setattr(2)."""
    if wanted.policy not in POLICIES:
        raise ConfigError(f"{path}.policy", f"{wanted.policy} is not a policy of Linux")
    flags = 0
    for index, flag in enumerate(wanted.flags):
        if flag not in _SCHEDULER_FLAGS:
            raise ConfigError(f"{path}.flags[{index}]", f"{flag!r} is not one of {', '.join(_SCHEDULER_FLAGS)}")
        flags |= _SCHEDULER_FLAGS[flag]
    realtime = wanted.policy in ("SCHED_FIFO", "SCHED_RR")
    if realtime != bool(wanted.priority):
        raise ConfigError(f"{path}.priority", "must be 1 to 99 for SCHED_FIFO and SCHED_RR, and 0 for the others")
    times = (wanted.runtime, wanted.deadline, wanted.period)
    number = POLICIES.index(wanted.policy)
    return pack("=IIQiIQQQ", 48, number, flags, wanted.nice, wanted.priority, *times)


def number_mask(text: str, path: str) -> int:
    """Return the bit mask of a list such as ``0-3,8``.

    Raises:
        ConfigError: it is not such a list.
    """
    mask = 0
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) > 65535:
            raise ConfigError(path, f"{text!r} is not a list of numbers such as 0-3,8")
        for number in range(int(first), int(last or first) + 1):
            mask |= 1 << number
    return mask

"""The steps by which the first process sets up its namespaces before anything is mounted."""

from __future__ import annotations

import os
from struct import pack

from containerkit._native import constants as k
from containerkit.oci import protocol
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config
    from containerkit.oci.namespaces import Stage
    from containerkit.oci.tape import Tape

__all__ = ["enter_late", "offsets", "set_names", "set_time_offsets"]

_SIOCSIFFLAGS = 0x8914


def enter_late(tape: Tape, config: Config, stage: Stage, proc: int, channel: int) -> None:
    """Add the steps that need a process with its own memory, or one that is already in its control groups.

    Args:
        tape: the tape to which the steps are added.
        config: the container's configuration.
        stage: its namespaces.
        proc: the host's procfs.
        channel: the descriptor of the socket to the runtime.
    """
    for kind, fd in stage.joins:
        if kind == "time":
            tape.call("setns", fd, k.CLONE_NEWTIME, target="time namespace")
    if config.is_new("cgroup"):
        tape.call("unshare", k.CLONE_NEWCGROUP, target="cgroup namespace")
    if config.is_new("time") and not stage.sets_time_early:
        tape.call("unshare", k.CLONE_NEWTIME, target="time namespace")
        if config.linux.time_offsets:
            _time_offsets(tape, config, stage, proc, channel)
    if config.is_new("network"):
        _loopback(tape)


def _time_offsets(tape: Tape, config: Config, stage: Stage, proc: int, channel: int) -> None:
    """Add the steps for time offsets. The /proc files of a process that is not dumpable belong to the host's root."""
    if stage.changes_user and stage.privileged:
        protocol.pause(tape, channel, b"o", "time namespace is there")
        return
    at = tape.slot("time offsets")
    text = offsets(config)
    flags = k.O_WRONLY | k.O_CLOEXEC
    tape.call("openat", proc, b"self/timens_offsets", flags, 0, target="linux.timeOffsets", result=at)
    tape.call("write", at, tape.block(text), len(text), target="linux.timeOffsets")
    tape.step(k.STEP_CLOSE, "close", at)


def offsets(config: Config) -> bytes:
    """Return the offsets as the kernel takes them. Source: time_namespaces(7)."""
    return "".join(f"{name} {each.secs} {each.nanosecs}\n" for name, each in config.linux.time_offsets.items()).encode()


def set_time_offsets(pid: int, config: Config) -> None:
    """Set the offsets of a waiting process from outside.

    Raises:
        RuntimeFailure: the kernel refused them.
    """
    try:
        fd = os.open(f"/proc/{pid}/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, offsets(config))
        finally:
            os.close(fd)
    except OSError as error:
        raise RuntimeFailure(f"write linux.timeOffsets: {strerror(error.errno or 0)}") from None


def _loopback(tape: Tape) -> None:
    """Add the steps that bring up ``lo``. Source: netdevice(7)."""
    at = tape.slot("socket")
    tape.call("socket", 1, 2 | k.O_CLOEXEC, 0, target="for lo", result=at)
    tape.call("ioctl", at, _SIOCSIFFLAGS, tape.block(pack("=16sH22x", b"lo", 0x41)), target="lo up")
    tape.step(k.STEP_CLOSE, "close", at)


def set_names(tape: Tape, config: Config) -> None:
    """Add the steps that set the host and domain name."""
    for name, value in (("sethostname", config.hostname), ("setdomainname", config.domainname)):
        if value:
            text = os.fsencode(value)
            tape.call(name, tape.block(text), len(text), target=value)

"""The protocol between the container's first process and the runtime while the container is made.

They share a message socket (SOCK_SEQPACKET). The tape writes one letter, waits for an answer and acknowledges it. The
acknowledgement fails if the runtime has died, so that an unfinished container does not continue alone::

    first process                runtime
    -------------                -------
    "n"  namespaces exist        joins the control groups, maps ids of mounts, moves devices, notes the pid
    "o"  time namespace exists   sets its offsets, if the process itself may not
    "i"  + descriptor            maps the ids of a mount that was cloned inside
    "m"  mounts exist            runs the hooks prestart, createRuntime, createContainer
    "t"  + descriptor            takes the terminal's master and sends it to the console socket
    "s"  + descriptor            takes the seccomp listener and sends it to its agent
    "r"  ready                   looks for the program, sets resource limits, writes record and pid file
    8 bytes                      struct ck_failure: a step failed

Source: unix(7), ``_native/native.h``.
"""

from __future__ import annotations

from struct import unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.channel import Channel
    from containerkit.oci.tape import Data, Slot, Tape

__all__ = ["ACKNOWLEDGED", "Failure", "hand_over", "pause", "receive", "wait_acknowledged"]

ACKNOWLEDGED = b"a"
_HANDED = 12


class Failure:
    """A step of the tape that failed."""

    __slots__ = ("errno", "index")

    def __init__(self, index: int, errno: int) -> None:
        self.index = index
        self.errno = errno


def pause(tape: Tape, channel: int, letter: bytes, why: str) -> None:
    """Add the steps that report progress to the runtime and wait for its answer."""
    tape.call("write", channel, letter, 1, target=why)
    _await(tape, channel, why)


def hand_over(tape: Tape, channel: int, letter: bytes, slot: Slot, why: str) -> None:
    """Add the steps that send the number of a descriptor to the runtime and wait until it has duplicated it."""
    message = tape.block(letter.ljust(_HANDED, b"\0"), (4, slot))
    tape.call("write", channel, message, _HANDED, target=why)
    _await(tape, channel, why)


def _await(tape: Tape, channel: int, why: str) -> None:
    room: Data = tape.block(b"\0" * 8)
    tape.call("read", channel, room, 1, target=why)
    tape.call("write", channel, ACKNOWLEDGED, 1, target=why, hint="the runtime has died")


def receive(channel: Channel) -> tuple[bytes, int] | Failure | None:
    """Wait for a message.

    Returns:
        The letter and the descriptor's number, a failure, or None at the end: the first process has exec'd or died.
    """
    while True:
        message = channel.receive()
        if not message:
            return None
        if len(message) == 8:
            return Failure(*unpack_from("=ii", message))
        if message != ACKNOWLEDGED:
            number = unpack_from("=i", message, 4)[0] if len(message) == _HANDED else -1
            return message[:1], number


def wait_acknowledged(channel: Channel) -> None:
    """Wait until the last answer is acknowledged. If the channel were closed earlier, the runtime would seem dead."""
    channel.receive()

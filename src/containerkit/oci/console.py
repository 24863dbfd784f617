"""Terminals: send the master to its owner, or copy between it and the caller's own terminal."""

from __future__ import annotations

import os
from struct import pack, unpack

from containerkit.oci import kernel
from containerkit.oci.channel import Channel
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from containerkit.oci.config import Box

__all__ = ["Proxy", "is_master", "pass_newlines", "send_descriptor", "set_size"]

_TIOCGWINSZ, _TIOCSWINSZ = 0x5413, 0x5414


def send_descriptor(path: str, fd: int, message: bytes) -> None:
    """Connect to a socket and send a descriptor.

    Raises:
        RuntimeFailure: nobody accepts it.

    Source: SCM_RIGHTS in unix(7).
    """
    try:
        with Channel.connected(path) as channel:
            channel.send_descriptor(fd, message)
    except OSError as error:
        raise RuntimeFailure(f"send a descriptor to {path}: {strerror(error.errno or 0)}") from None


def is_master(fd: int) -> bool:
    """Return whether a descriptor is a terminal's master, and not a file of the image in its place (CVE-2025-52565)."""
    return os.fstat(fd).st_rdev == os.makedev(5, 2) and kernel.filesystem_of(fd) == kernel.DEVPTS_SUPER_MAGIC


def set_size(master: int, box: Box | None) -> None:
    """Give a terminal its size in characters. Source: TIOCSWINSZ in ioctl_tty(2)."""
    import fcntl

    if box is not None and (box.height or box.width):
        fcntl.ioctl(master, _TIOCSWINSZ, pack("=4H", box.height, box.width, 0, 0))


def pass_newlines(master: int) -> None:
    """Turn off the conversion of newlines, because readers of its output expect no carriage returns.

    Source: termios(3).
    """
    import termios

    attributes = termios.tcgetattr(master)
    attributes[1] &= ~termios.ONLCR
    termios.tcsetattr(master, termios.TCSANOW, attributes)


class Proxy:
    """Copies between the caller's terminal and the container's for as long as the container runs.

    Args:
        master: the container's terminal; the proxy owns it.
    """

    def __init__(self, master: int) -> None:
        self.master = master
        self._saved: list[object] | None = None

    def __enter__(self) -> Self:
        import termios

        try:
            self._saved = termios.tcgetattr(0)
        except termios.error:
            return self
        import tty

        tty.setraw(0)
        self._process_output()
        self.follow_size()
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        if self._saved is not None:
            termios.tcsetattr(0, termios.TCSANOW, self._saved)  # type: ignore[arg-type] # what tcgetattr returned, which typeshed types otherwise
            self._saved = None
        master, self.master = self.master, -1
        if master >= 0:
            os.close(master)

    @staticmethod
    def _process_output() -> None:
        """Make the caller's terminal convert newlines, because the container's terminal does not."""
        import termios

        attributes = termios.tcgetattr(0)
        attributes[1] |= termios.OPOST | termios.ONLCR
        termios.tcsetattr(0, termios.TCSANOW, attributes)

    def follow_size(self) -> None:
        """Set the size to that of the caller's terminal."""
        import fcntl

        try:
            size = fcntl.ioctl(0, _TIOCGWINSZ, bytes(8))
        except OSError:
            return
        if unpack("=4H", size)[0]:
            fcntl.ioctl(self.master, _TIOCSWINSZ, size)

    def copy(self, source: int, sink: int) -> bool:
        """Copy the available bytes. Return False at the end."""
        try:
            content = os.read(source, 65536)
        except OSError:  # the other end of the terminal is closed
            return False
        while content:
            content = content[os.write(sink, content) :]
            if not content:
                return True
        return False

"""Messages to and from tasks, in the caller. Nothing that a task sends is trusted."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from containerkit.errors import ContainerError
from containerkit.executor.errors import TaskError

if TYPE_CHECKING:
    from containerkit.executor.zygote import Forked

__all__ = ["EndedError", "OverdueError", "receive", "send"]

_HEAD: Final = struct.Struct("<cQ")
_LARGE: Final = 65536
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_WRITE
"""The seals that keep a mapping readable. Reading a mapping of a truncated file would raise SIGBUS."""


class EndedError(ContainerError):
    """The other side has ended before its message was complete."""


class OverdueError(ContainerError):
    """The deadline passed before a message arrived."""


def send(worker: Forked, kind: bytes, content: bytes) -> None:
    """Send a message; a large one in a memfd.

    Raises:
        EndedError: the other side has ended.
    """
    assert worker.sock is not None
    head = _HEAD.pack(kind, len(content))
    try:
        if len(content) <= _LARGE:
            worker.sock.sendall(head + content)
            return
        fd = os.memfd_create("task", os.MFD_CLOEXEC)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(fd, rest) :]
            os.lseek(fd, 0, os.SEEK_SET)
            socket.send_fds(worker.sock, [head], [fd])
        finally:
            os.close(fd)
    except (BrokenPipeError, ConnectionResetError):
        raise EndedError("the interpreter has ended") from None


def receive(worker: Forked, deadline: float | None, limit: int) -> tuple[bytes, memoryview]:
    """Return the kind and the content of a message. A large content is in memory that is sealed against changes.

    Args:
        worker: the sender.
        deadline: by the monotonic clock, in seconds.
        limit: the maximum number of bytes.

    Raises:
        EndedError: the sender has ended.
        OverdueError: the deadline passed.
        TaskError: the message is invalid or too long.
    """
    assert worker.sock is not None
    head, ancillary = _first(worker, deadline)
    fds = array.array("i")
    for _, _, data in ancillary:
        fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    try:
        while len(head) < _HEAD.size:
            head += _some(worker, _HEAD.size - len(head), deadline)
        kind, length = _HEAD.unpack(head)
        if length > limit:
            raise TaskError(f"a task sent {length} bytes, of at most {limit} (hint: raise result_limit_bytes)")
        if fds:
            return kind, _mapped(fds[0], length)
        if length > _LARGE:
            raise TaskError("a task sent what is not a message")
        content = bytearray()
        while len(content) < length:
            content += _some(worker, length - len(content), deadline)
        return kind, memoryview(bytes(content))
    finally:
        for fd in fds:
            os.close(fd)


def _first(worker: Forked, deadline: float | None) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    assert worker.sock is not None
    _await(worker, deadline)
    try:
        head, ancillary, _, _ = worker.sock.recvmsg(_HEAD.size, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        head, ancillary = b"", []
    if not head:
        raise EndedError("the interpreter has ended")
    return head, ancillary


def _some(worker: Forked, size: int, deadline: float | None) -> bytes:
    assert worker.sock is not None
    _await(worker, deadline)
    try:
        content = worker.sock.recv(size)
    except ConnectionResetError:
        content = b""
    if not content:
        raise EndedError("the interpreter has ended")
    return content


def _await(worker: Forked, deadline: float | None) -> None:
    """Wait for input, or for the end of the sender, whose other processes may keep the socket open."""
    assert worker.sock is not None
    poll = select.poll()
    poll.register(worker.sock, select.POLLIN)
    poll.register(worker.status, select.POLLIN)
    left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
    ready = dict(poll.poll(left))
    if not ready:
        raise OverdueError("the deadline has passed")
    if worker.sock.fileno() not in ready:
        raise EndedError("the interpreter has ended")


def _mapped(fd: int, length: int) -> memoryview:
    try:
        sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:
        sealed = 0
    if sealed & _SEALS != _SEALS or os.fstat(fd).st_size != length or length == 0:
        raise TaskError("a task sent an invalid message: its file is not sealed, or has another size")
    return memoryview(mmap.mmap(fd, length, prot=mmap.PROT_READ))

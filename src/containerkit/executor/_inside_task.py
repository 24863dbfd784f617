"""Runs tasks in a forked interpreter inside the container. The zygote receives the source of this module.

A message has a header of 9 bytes, the kind and the length, and then the content. Large contents are passed in a sealed
memfd instead. Results contain data and no code; :mod:`containerkit.executor.plain` reads them.
"""

import array
import contextlib
import fcntl
import json
import os
import pickle
import socket
import struct
import sys
import traceback

HEAD = struct.Struct("<cQ")
LARGE = 65536
SEALS = 0xF  # no more seals, no other size, no writes. Source: fcntl(2), F_ADD_SEALS
ADD_SEALS = 1033


def receive(sock):
    head, ancillary, _, _ = sock.recvmsg(HEAD.size, socket.CMSG_SPACE(4))
    while head and len(head) < HEAD.size:
        head += sock.recv(HEAD.size - len(head))
    if not head:
        return b"", b""
    kind, length = HEAD.unpack(head)
    for _, _, data in ancillary:
        (fd,) = array.array("i", data[:4])
        with os.fdopen(fd, "rb") as file:
            return kind, file.read()
    parts = bytearray()
    while len(parts) < length:
        part = sock.recv(min(length - len(parts), 1 << 20))
        if not part:
            return b"", b""
        parts += part
    return kind, bytes(parts)


def send(sock, kind, *parts):
    for stream in (sys.stdout, sys.stderr):  # the caller may kill this process after the answer
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    length = sum(len(part) for part in parts)
    head = HEAD.pack(kind, length)
    if length <= LARGE:
        sock.sendall(b"".join([head, *parts]))
        return
    fd = os.memfd_create("result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for part in parts:
            rest = memoryview(part).cast("B")
            while len(rest):
                rest = rest[os.write(fd, rest) :]
        fcntl.fcntl(fd, ADD_SEALS, SEALS)
        sock.sendmsg([head], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    finally:
        os.close(fd)


def plain(value, buffers):
    """Return a value for JSON. A type that JSON does not have becomes a mapping with one key, the name of the type."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"int": hex(value)}
    if kind is list:
        return [plain(each, buffers) for each in value]
    if kind is dict:
        return {"dict": [[plain(key, buffers), plain(each, buffers)] for key, each in value.items()]}
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [plain(each, buffers) for each in value]}
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (bytes, bytearray):
        buffers.append(value)
        return {kind.__name__: len(buffers) - 1}
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and value.dtype.kind in "biufcSUmM":
        array_like = value if value.flags.c_contiguous else value.copy(order="C")
        buffers.append(memoryview(array_like.reshape(-1).view("u1")) if array_like.size else b"")
        return {"array": [len(buffers) - 1, value.dtype.str, list(value.shape)]}
    if kind.__module__ == "numpy" and hasattr(value, "dtype") and value.dtype.kind in "biufcSUmM":
        buffers.append(value.tobytes())
        return {"scalar": [len(buffers) - 1, value.dtype.str]}
    raise TypeError(
        "a result of type %s.%s is not plain data; only plain data is read without running code in the caller "
        "(hint: return plain data, or pass results='pickle' if the tasks are trusted)"
        % (kind.__module__, kind.__name__)
    )


def packed(value):
    buffers = []
    text = json.dumps(plain(value, buffers)).encode()
    table = struct.pack("<II", len(text), len(buffers)) + b"".join(struct.pack("<Q", len(each)) for each in buffers)
    parts = [table, text]
    at = len(table) + len(text)
    for each in buffers:
        gap = -at % 64
        parts += [bytes(gap), each]
        at += gap + len(each)
    return parts


def told(error):
    """Return an exception as data: the name of its class, and its arguments if they are plain data."""
    arguments = []
    for each in error.args:
        try:
            plain(each, [])
            json.dumps(plain(each, []))
        except (TypeError, ValueError, RecursionError):
            arguments.append(repr(each))
        else:
            arguments.append(repr(each) if isinstance(each, (bytes, bytearray)) else each)
    return {
        "module": type(error).__module__,
        "name": type(error).__qualname__,
        "args": arguments,
        "text": str(error),
        "traceback": "".join(traceback.format_exception(type(error), error, error.__traceback__)),
    }


def pickled(value):
    """Pickle a value. Objects of classes that the call has brought by value are returned by value.

    The caller then has them as objects of its own class, because cloudpickle keeps an identity with each class.
    """
    try:
        return pickle.dumps(value, 5)
    except Exception:
        if "cloudpickle" not in sys.modules:
            raise
        return sys.modules["cloudpickle"].dumps(value, 5)


def perform(sock, request):
    try:
        results, call = request[:1], request[1:]
        function, args, kwargs = pickle.loads(call)
        value = function(*args, **kwargs)
        if results == b"p":
            send(sock, b"p", pickled(value))
        else:
            send(sock, b"d", *packed(value))
    except BaseException as error:
        report(sock, request[:1], error)


def report(sock, results, error):
    with contextlib.suppress(BaseException):  # an exception that can't be pickled is sent as text
        if results == b"p":
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            data = pickled((error, text))
            pickle.loads(data)  # some can be pickled but not unpickled
            send(sock, b"x", data)
            return
    send(sock, b"f", *packed(told(error)))


def main(sock):
    while True:
        kind, request = receive(sock)
        if kind == b"i":  # the initializer of each worker
            try:
                function, args = pickle.loads(request)
                function(*args)
            except BaseException as error:
                report(sock, b"d", error)
                return
            send(sock, b"i")
        elif kind == b"t":
            perform(sock, request)
        else:
            return


def rehearse():
    """Perform calls in the zygote, before any task. Forks then find what these import, look up and specialize."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for call in [(abs, (-1,), {})] * 16 + [(int, ("x",), {})]:
            content = b"d" + pickle.dumps(call, 5)
            ours.sendall(HEAD.pack(b"t", len(content)) + content)
        ours.shutdown(socket.SHUT_WR)
        main(theirs)

"""Create or look for one object of each kind that lets unrelated processes share memory and messages.

``shared_memory.py make NUMBER`` creates them, reports it, and waits for the end of its stdin. ``look NUMBER`` prints the
objects that it has found as JSON. Everybody may read and write the objects.
"""

import ctypes
import json
import os
import socket
import sys

IPC_CREAT = 0o1000
libc = ctypes.CDLL(None, use_errno=True)
libc.mq_open.restype = ctypes.c_int


class Attributes(ctypes.Structure):
    """``struct mq_attr``, mq_open(3)."""

    _fields_ = [(name, ctypes.c_long) for name in ("flags", "maxmsg", "msgsize", "curmsgs", "a", "b", "c", "d")]


def done(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def system_v(make, number):
    flags = IPC_CREAT | 0o666 if make else 0
    yield "System V memory", lambda: done(libc.shmget(number, 4096, flags))
    yield "System V semaphores", lambda: done(libc.semget(number, 1, flags))
    yield "System V messages", lambda: done(libc.msgget(number, flags))


def posix(make, number):
    name = f"/containerkit-{number}"
    flags = os.O_RDWR | (os.O_CREAT if make else 0)
    attributes = Attributes(0, 1, 8, 0, 0, 0, 0, 0)
    yield "POSIX messages", lambda: done(libc.mq_open(name.encode(), flags, 0o666, ctypes.byref(attributes)))
    yield "POSIX memory", lambda: done(libc.shm_open(name.encode(), flags, 0o666))
    yield "POSIX semaphore", lambda: os.open(f"/dev/shm/sem.{name[1:]}", flags, 0o666)


def socket_of(make, number):
    kept = socket.socket(socket.AF_UNIX)
    name = f"\0containerkit-{number}"

    def serve():
        kept.bind(name)
        kept.listen()

    yield "abstract socket", serve if make else lambda: kept.connect(name)


def main(verb, number):
    os.umask(0)
    found = {}
    held = []
    for source in (system_v, posix, socket_of):
        for what, try_it in source(verb == "make", number):
            held.append(try_it)
            try:
                try_it()
            except OSError as error:
                found[what] = False
                if verb == "make":
                    raise SystemExit(f"{what}: {error}") from None
            else:
                found[what] = True
    print(json.dumps(found), flush=True)
    if verb == "make":
        sys.stdin.read()
        remove(number)


def remove(number):
    libc.shmctl(libc.shmget(number, 4096, 0), 0, None)
    libc.semctl(libc.semget(number, 1, 0), 0, 0)
    libc.msgctl(libc.msgget(number, 0), 0, None)
    libc.mq_unlink(f"/containerkit-{number}".encode())
    for name in (f"containerkit-{number}", f"sem.containerkit-{number}"):
        os.unlink(f"/dev/shm/{name}")


main(sys.argv[1], int(sys.argv[2]))

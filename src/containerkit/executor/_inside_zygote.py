"""The program of the zygote, inside its container. The Python inside receives its source.

It imports nothing of the library, and runs with Python 3.8 and later.

Each page of memory that a fork touches first costs it 1 to 3 microseconds: the kernel copies it or finds it. So a fork
runs as little code as possible, and what it needs is made before it.
"""

import _signal
import array
import ast
import contextlib
import ctypes
import gc
import importlib
import os
import select
import socket
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
SYSCALL, PRCTL, SETNS, UNSHARE = LIBC.syscall, LIBC.prctl, LIBC.setns, LIBC.unshare
CLONE_NEWPID = 0x20000000
CLOSE_RANGE = 436
PIDFD_OPEN = 434
PR_SET_PDEATHSIG = 1
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24


def checked(result, what):
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def prepared(operations):
    """Return the calls of the confinement with all their memory, so that nothing is allocated after the fork."""
    kept = []

    def pointer(content):
        memory = ctypes.create_string_buffer(content, len(content))
        kept.append(memory)
        return memory

    def block(content, patches):
        memory = pointer(content)
        for at, kind, value in patches:
            target = ctypes.addressof(pointer(value) if kind == "bytes" else block(*value))
            ctypes.memmove(ctypes.addressof(memory) + at, target.to_bytes(8, sys.byteorder), 8)
        return memory

    def argument(kind, value):
        if kind == "number":
            return ctypes.c_ulong(value & (2**64 - 1))
        if kind == "bytes":
            return pointer(value + b"\0")
        return block(*value) if kind == "block" else value  # the name of a slot

    return [
        (name, [ctypes.c_long(call), *[argument(*each) for each in arguments]], result, tolerated, skip, leap)
        for name, call, arguments, result, tolerated, skip, leap in operations
    ], kept


def needed(operations, prctl):
    """Leave out what the zygote, and so each fork, has already: capabilities that its bounding set lacks."""
    if any(skip or leap for *_, skip, leap in operations):  # the numbers of operations that may be left out
        return operations

    def has_effect(call, arguments):
        if call != prctl or arguments[0] != ("number", PR_CAPBSET_DROP):
            return True
        return PRCTL(PR_CAPBSET_READ, arguments[1][1], 0, 0, 0) != 0

    return [each for each in operations if has_effect(each[1], each[2])]


def confine(operations):
    slots = {}
    left_out = 0
    for name, given, result, tolerated, skip, leap in operations:
        if left_out:
            left_out -= 1
            continue
        values = given
        if slots:
            values = [ctypes.c_ulong(slots[each]) if isinstance(each, str) else each for each in given]
        if values[0].value < 0:
            os.close(values[1].value)
            continue
        done = SYSCALL(*values)
        if done < 0:
            number = ctypes.get_errno()
            if number not in tolerated:
                raise OSError(number, os.strerror(number), name)
            left_out = skip
            continue
        if result:
            slots[result] = done
        left_out = leap


def close_others(kept):
    """Close all descriptors but the standard streams and one. Source: close_range(2), Linux 5.9."""
    for first, last in (3, kept - 1), (kept + 1, 2**32 - 1):
        if first <= last and SYSCALL(CLOSE_RANGE, ctypes.c_uint(first), ctypes.c_uint(last), 0) < 0:
            os.closerange(first, min(last, 4096) + 1)


def child(zygote, kinds, fds):
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fds[0])
    try:
        checked(PRCTL(PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0), "die with the zygote")
        _signal.set_wakeup_fd(-1)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        os.setsid()
        for kind, fd in zip(kinds, fds[2:]):
            if kind == "group":  # the caller has opened it, and its privileges permit the join
                os.write(fd, b"0")
            elif kind != "pid":
                checked(SETNS(fd, 0), "join the " + kind + " namespace")
        close_others(sock.fileno())
        confine(zygote.operations)
    except BaseException as error:
        what = "%d %s" % (getattr(error, "errno", None) or 0, getattr(error, "filename", None) or error)
        sock.sendall(b"e" + what.encode()[:1000])
        os._exit(1)
    sock.sendall(b"r")
    code = 1
    try:
        zygote.program["main"](sock)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code & 255)


class Zygote:
    def __init__(self, control):
        self.control = control
        self.status = {}
        self.own_pid_namespace = -1

    def set_up(self):
        size = int.from_bytes(self.control.recv(4, socket.MSG_WAITALL), "little")
        told = ast.literal_eval(self.control.recv(size, socket.MSG_WAITALL).decode())
        sys.path += told["path"]
        for name in told["preload"]:
            importlib.import_module(name)
        self.operations, self.kept = prepared(needed(told["operations"], told["prctl"]))
        self.program = {"__name__": "containerkit", "__builtins__": __builtins__}
        exec(compile(told["program"], "<containerkit>", "exec"), self.program)
        self.program.get("rehearse", int)()
        gc.collect()
        gc.freeze()  # a collection in a fork would copy all of this memory

    def load(self, name):
        with contextlib.suppress(Exception):  # a fork that needs it tells why it can't be imported
            importlib.import_module(name)
        gc.collect()
        gc.freeze()

    def reap(self):
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            fd = self.status.pop(pid, None)
            if fd is not None:
                numbers = (status, usage.ru_utime * 1e6, usage.ru_stime * 1e6, usage.ru_maxrss)
                with contextlib.suppress(OSError):
                    os.write(fd, " ".join(str(int(each)) for each in numbers).encode())
                os.close(fd)

    def fork(self, kinds, fds):
        """Fork for one request. The descriptors are a socket, the pipe that reports its end, and the namespaces."""
        if "pid" in kinds:
            checked(SETNS(fds[2 + kinds.index("pid")], 0), "join the pid namespace")
        else:
            if self.own_pid_namespace < 0:
                self.own_pid_namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            checked(SETNS(self.own_pid_namespace, 0), "join the pid namespace")
            checked(UNSHARE(CLONE_NEWPID), "make a pid namespace")
        pid = os.fork()
        if pid == 0:
            child(self, kinds, fds)
        pidfd = checked(SYSCALL(PIDFD_OPEN, pid, 0), "pidfd_open")  # before anything waits for it
        self.status[pid] = fds.pop(1)
        return pid, pidfd

    def await_request(self):
        """Wait for a request, and reap forks meanwhile.

        A signal may come just before a call that blocks, when its handler in Python does not run any more. That of C
        runs, and writes to a pipe.
        """
        while True:
            ready = [fd for fd, _ in self.poll.poll()]
            if self.woken in ready:
                os.read(self.woken, 4096)
                self.reap()
            if self.control.fileno() in ready:
                return

    def serve(self):
        self.woken, waking = os.pipe()
        for fd in self.woken, waking:
            os.set_blocking(fd, False)
        self.poll = select.poll()
        for fd in self.woken, self.control.fileno():
            self.poll.register(fd, select.POLLIN)
        _signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        _signal.signal(_signal.SIGCHLD, lambda *_: None)
        self.control.sendall(b"ready")
        while True:
            self.await_request()
            message, fds = receive(self.control)
            if not message:
                return
            verb, *words = message.decode().split()
            if verb == "load":
                self.load(words[0])
                self.control.sendall(b"loaded")
                continue
            try:
                pid, pidfd = self.fork(words, fds)
            except OSError as error:
                self.control.sendall(("error %s" % error).encode())
            else:
                ancillary = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [pidfd]))
                self.control.sendmsg([b"%d" % pid], [ancillary])
                os.close(pidfd)
            for fd in fds:
                os.close(fd)


def receive(control):
    message, ancillary, _, _ = control.recvmsg(200, socket.CMSG_SPACE(4 * 16), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % 4])
    return message, list(fds)


if __name__ == "__main__":
    zygote = Zygote(socket.socket(fileno=int(sys.argv[1])))
    sys.argv[:] = [""]
    try:
        zygote.set_up()
    except BaseException as error:
        zygote.control.sendall(("%s: %s" % (type(error).__name__, error)).encode()[:1000])
        raise
    zygote.serve()

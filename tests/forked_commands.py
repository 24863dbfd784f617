"""Run command lines in forks of a process that has already imported them.

A fork does the same as the program, without 0.1 s for the import. It is for
tests of the effects of commands. Tests of how programs start, end and are interrupted start the programs themselves.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback

MOST = 60_000
"""How many bytes of input fit into a pipe that nobody reads yet."""

PROGRAMS = {"containerkit": "containerkit.cli", "containerkit.oci": "containerkit.oci.main"}
"""The modules whose function ``main`` is the program."""

# --- The process that forks


def serve(connection):
    """Fork a process for each request, and report its wait status, until the requesting side has ended."""
    import containerkit
    from containerkit import meanings

    meanings.omit()  # as the program does
    for package in ("cli", "detached", "image", "network", "oci", "project", "start", "volume"):
        path = f"{containerkit.__path__[0]}/{package}"
        for module in pkgutil.walk_packages([path], f"containerkit.{package}."):
            if "_inside" not in module.name and not module.name.endswith("__main__"):
                with contextlib.suppress(ImportError):  # of an extra that is not installed
                    importlib.import_module(module.name)
    gc.collect()
    gc.freeze()
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            connection.close()
            become(descriptors, **json.loads(message))
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(f"{pid}".encode())
        connection.send(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}".encode())


def become(descriptors, program, words, environment, directory, mask):
    """Run the program in this process, to its end."""
    status = 1
    try:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin, sys.stdout, sys.stderr = (opened(number) for number in range(3))
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(directory)
        os.umask(mask)
        sys.argv = [program, *words]
        status = importlib.import_module(PROGRAMS[program]).main()
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except SystemExit as error:
        status = error.code or 0
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def opened(number):
    """Return the file that the interpreter makes for a standard stream."""
    modes = ({}, {"mode": "w"}, {"mode": "w", "buffering": 1, "errors": "backslashreplace"})
    return open(number, closefd=False, **modes[number])


# --- The tests' side


_connections = []


@contextlib.contextmanager
def started():
    """Start the process that forks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, __file__, f"{theirs.fileno()}"]
    with subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL), ours:
        theirs.close()
        _connections.append(ours)
        yield
        _connections.remove(ours)


def run(program, words, *, env=None, cwd=None, input=None, streams=None, text=False, timeout=60):  # noqa: A002 - subprocess's name
    """Behave like :func:`subprocess.run` with ``python -m PROGRAM WORDS`` and ``capture_output``.

    The test, or a fixture of it, needs the fixture ``forked``. ``input`` is short. Without it, stdin is the null device.
    With ``streams``, which are three descriptors, nothing is captured.
    """
    request = {
        "program": program,
        "words": list(map(str, words)),
        "environment": dict(os.environ if env is None else env),
        "directory": os.path.abspath(cwd or "."),
        "mask": mask(),
    }
    (connection,) = _connections
    connection.settimeout(timeout)
    with contextlib.ExitStack() as opened:
        readers, writers = {}, []
        for name in ("stdout", "stderr") if streams is None else ():
            reader, writer = os.pipe()
            readers[name] = opened.enter_context(open(reader, "rb", buffering=0))
            writers.append(opened.enter_context(open(writer, "wb", buffering=0)))
        descriptors = streams or [source(input, opened), *(writer.fileno() for writer in writers)]
        socket.send_fds(connection, [json.dumps(request).encode()], descriptors)
        for writer in writers:
            writer.close()
        pid = int(connection.recv(64))
        try:
            told = read_all(readers, timeout)
            status = int(connection.recv(64))
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            connection.settimeout(None)
            connection.recv(64)
            raise
    if text:
        told = {name: data.decode() for name, data in told.items()}
    return subprocess.CompletedProcess([program, *words], status, told.get("stdout"), told.get("stderr"))


def source(content, opened):
    """Return a descriptor from which the content can be read."""
    if content is None:
        return opened.enter_context(open(os.devnull)).fileno()
    data = content.encode() if isinstance(content, str) else content
    assert len(data) <= MOST, "this would wait for a reader for ever"
    reader, writer = os.pipe()
    opened.callback(os.close, reader)
    with open(writer, "wb") as file:
        file.write(data)
    return reader


def mask():
    found = os.umask(0o022)
    os.umask(found)
    return found


def read_all(readers, timeout):
    """Read each file to its end, and return the contents by name."""
    told = dict.fromkeys(readers, b"")
    with selectors.DefaultSelector() as selector:
        for name, file in readers.items():
            selector.register(file, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(timeout)
            if not ready:
                raise TimeoutError(f"nothing was written for {timeout} s; so far: {told}")
            for key, _ in ready:
                data = os.read(key.fd, 1 << 16)
                told[key.data] += data
                if not data:
                    selector.unregister(key.fileobj)
    return told


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

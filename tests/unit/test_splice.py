"""The splice of published ports: what a connection costs, and what happens without free descriptors."""

import os
import socket
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress

import pytest

from containerkit.network.splice import Splicer


@pytest.fixture
def spliced():
    """The address of a port that is spliced to an echo server."""
    target = socket.create_server(("127.0.0.1", 0), backlog=512)
    accepted = []

    def serve():
        while True:
            try:
                made, _ = target.accept()
            except OSError:
                return
            accepted.append(made)
            threading.Thread(target=echo, args=(made,), daemon=True).start()

    def echo(made):
        with suppress(OSError):  # a client that resets its connection
            while data := made.recv(65_536):
                made.sendall(data)
            made.shutdown(socket.SHUT_WR)

    threading.Thread(target=serve, daemon=True).start()
    splicer = Splicer()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)

    def connect():
        made = socket.socket()
        made.setblocking(False)
        made.connect_ex(target.getsockname())
        return made

    splicer.listen(listener, connect)
    yield listener.getsockname()
    splicer.close()
    target.shutdown(socket.SHUT_RDWR)
    for each in (target, listener, *accepted):
        each.close()


def test_idle_connections_hold_no_pipes(spliced):
    before = len(os.listdir("/proc/self/fd"))
    clients = [socket.create_connection(spliced, 10) for _ in range(40)]
    try:
        for number, client in enumerate(clients):
            client.sendall(b"%d" % number)
        for number, client in enumerate(clients):
            assert client.recv(9) == b"%d" % number
        # Each is four sockets here: the client's, two of the splice, the server's.
        assert len(os.listdir("/proc/self/fd")) - before <= 4 * len(clients) + 8 + 4
    finally:
        for client in clients:
            client.close()


def test_bytes_that_a_closed_connection_left_in_a_pipe_reach_no_other(spliced):
    for _ in range(3):
        with socket.create_connection(spliced, 10) as leaving:
            leaving.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            leaving.settimeout(0.2)
            try:
                while True:  # nobody reads the echo, so bytes stay in the pipe
                    leaving.sendall(b"secret" * 10_000)
            except TimeoutError:
                pass
        with socket.create_connection(spliced, 10) as next_one:
            next_one.sendall(b"mine")
            next_one.shutdown(socket.SHUT_WR)
            assert next_one.recv(99) == b"mine"
            assert next_one.recv(99) == b""


def test_clients_wait_for_free_descriptors_without_using_a_processor():
    code = """
    import os, resource, socket, time
    from containerkit.network.splice import Splicer
    target = socket.create_server(("127.0.0.1", 0))
    listener = socket.create_server(("127.0.0.1", 0))
    def connect():
        made = socket.socket()
        made.connect(target.getsockname())
        made.setblocking(False)
        return made
    splicer = Splicer()
    splicer.listen(listener, connect)
    client = socket.socket()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")), hard))
    client.connect(listener.getsockname())
    client.sendall(b"waiting")
    used = time.process_time()
    time.sleep(0.5)
    used = time.process_time() - used
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    print(target.accept()[0].recv(99).decode(), used < 0.1)
    splicer.close()
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "waiting True\n", done

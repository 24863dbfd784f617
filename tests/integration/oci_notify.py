"""Both ends of a service manager's socket: a program that sends messages, and a listener."""

from __future__ import annotations

import shutil
import socket
import subprocess

import pytest

SAY = r"""
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
int main(int argc, char **argv) {
    struct sockaddr_un there = {AF_UNIX};
    strncpy(there.sun_path, getenv("NOTIFY_SOCKET"), sizeof there.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (connect(fd, (struct sockaddr *)&there, sizeof there) < 0)
        return 9;
    for (int i = 1; i < argc; i++)
        if (send(fd, argv[i], strlen(argv[i]), 0) < 0)
            return 8;
    return 0;
}
"""


@pytest.fixture(scope="session")
def say(tmp_path_factory):
    """A static program that sends each of its arguments to the socket."""
    if shutil.which("gcc") is None:
        pytest.skip("no compiler: apt-get install gcc libc6-dev")
    directory = tmp_path_factory.mktemp("say")
    (directory / "say.c").write_text(SAY)
    subprocess.run(["gcc", "-static", "-o", str(directory / "say"), str(directory / "say.c")], check=True)
    return directory / "say"


class Manager:
    """A service manager that listens."""

    def __init__(self, name):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(name)
        self.socket.settimeout(30)

    def heard(self):
        """Return all messages up to the sender's barrier."""
        messages = []
        while b"BARRIER=1" not in messages:
            messages.append(self.socket.recv(4096))  # without room for descriptors: the kernel closes them
        return messages

    def heard_nothing(self):
        self.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            self.socket.recv(4096)
        return True

"""A terminal with a simulated user, for tests."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import subprocess
import sys
import termios
import time

LOGIN = "import os, sys; os.login_tty(int(sys.argv[1])); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"


class Screen:
    """Runs the interpreter with ``words`` on a new terminal, types keys and reads the screen."""

    def __init__(self, *words, rows=30, columns=100, env=None):
        self.master, self.slave = os.openpty()
        self.resize(rows, columns)
        self.modes = termios.tcgetattr(self.slave)
        self.shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-c", LOGIN, str(self.slave), *words],
            pass_fds=[self.slave],
            stdin=subprocess.DEVNULL,
            env=env,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        for fd in (self.master, self.slave):
            if fd >= 0:
                os.close(fd)

    def resize(self, rows, columns):
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("=HHHH", rows, columns, 0, 0))

    def type(self, keys):
        os.write(self.master, keys)

    def expect(self, text, timeout_s=20):
        """Read until ``text`` is shown. Return and discard everything up to its end."""
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            left = deadline - time.monotonic()
            assert left > 0, f"{text!r} was not shown within {timeout_s} s, but {self.shown!r}"
            self._read(left)
        before, text, self.shown = self.shown.partition(text)
        return before + text

    def _read(self, timeout_s):
        if select.select([self.master], [], [], timeout_s)[0]:
            self.shown += os.read(self.master, 65536)

    def wait(self, timeout_s=20):
        """Return the exit status. Read in the meantime, because a full terminal would block the process."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"still running, showed {self.shown!r}"
            self._read(0.01)
        while select.select([self.master], [], [], 0)[0]:
            self.shown += os.read(self.master, 65536)
        return self.process.returncode

    def signal(self, number):
        os.kill(self.process.pid, number)

    def modes_now(self):
        return termios.tcgetattr(self.slave)

    def until(self, condition, timeout_s=20):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"did not come to be; showed {self.shown!r}"
            self._read(0.01)

"""Runs attempts in a child process, so that restrictions do not affect the test run."""

import ctypes
import json
import os
import signal
import subprocess
import sys

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long


def attempt(number, *args):
    """Make a raw system call. Return its value or the negative error number."""
    words = [ctypes.c_long(each) if isinstance(each, int) else each for each in args]
    result = LIBC.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 else result


def in_child(work, *, timeout_s=20):
    """Run a function in a forked child.

    Returns:
        Its result (through JSON), or ("signal", number) or ("exit", status, error text) if it did not return.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.close(read_end)
            signal.alarm(timeout_s)
            answer = json.dumps({"value": work()}).encode()
            status = 0
        except BaseException as error:  # noqa: BLE001 - the parent shows it
            answer = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        try:
            os.write(write_end, answer)
        finally:
            os._exit(status)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return ("signal", os.WTERMSIG(status))
    answer = json.loads(content) if content else {}
    if "value" not in answer:
        return ("exit", os.WEXITSTATUS(status), answer.get("error"))
    return answer["value"]


def compiled(source, directory, name, *flags):
    """Compile a C program and return its path."""
    path = directory / name
    (directory / f"{name}.c").write_text(source)
    subprocess.run(
        ["gcc", "-O1", "-o", str(path), str(directory / f"{name}.c"), *flags], check=True, capture_output=True
    )
    return path


def status_field(name):
    """Return one field of /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith(name + ":"))


def python(code, *args, **options):
    """Run code in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", code, *args], check=False, capture_output=True, text=True, timeout=30, **options
    )

"""Forks of a zygote and of an interpreter: they hold no descriptor of the caller's, nor of each other.

A fork executes nothing, so what it holds is what its code can use. It lists its own descriptors.
"""

import os

import pytest

from containerkit.executor import ContainerExecutor, zygote
from containerkit.interpreter import Interpreter, home

LIST = """
import os
def held():
    found = []
    for fd in range(1024):
        try:
            status = os.fstat(fd)
        except OSError:
            continue
        found.append((fd, status.st_dev, status.st_ino, status.st_mode >> 12))
    return found
"""
"""A function that returns all descriptors. It needs no /proc."""

OF_A_CHILD = """
import subprocess, sys
text = TEXT + "import json; print(json.dumps(held()))"
done = subprocess.run([sys.executable, "-c", text], stdout=subprocess.PIPE, close_fds=False)
"""
SOCKET = 0o14


def listed(_):
    """Return the descriptors of a task, and those of a program that it executes."""
    import json
    import time

    space = {"TEXT": LIST}
    exec(LIST, space)
    own = space["held"]()
    time.sleep(0.2)  # while others run
    exec(OF_A_CHILD, space)
    return own, json.loads(space["done"].stdout)


@pytest.fixture
def of_the_caller(tmp_path):
    """Open descriptors of many numbers, every other one inheritable, and return what they refer to."""
    opened, known = [], set()
    for number in range(8):
        (tmp_path / str(number)).write_text("of the caller")
        opened.append(os.open(tmp_path / str(number), os.O_RDONLY))
        os.set_inheritable(opened[-1], number % 2 == 0)
        status = os.fstat(opened[-1])
        known.add((status.st_dev, status.st_ino))
    yield known
    for fd in opened:
        os.close(fd)


def check(own, of_a_child, known):
    """Three streams and the socket to the caller; a program that is executed has the streams alone."""
    assert [0, 1, 2] == [fd for fd, *_ in own if fd < 3]
    assert [SOCKET] == [kind for fd, _, _, kind in own if fd > 2]
    assert [0, 1, 2] == [fd for fd, *_ in of_a_child]
    assert not known & {(device, inode) for _, device, inode, _ in own + of_a_child}


@pytest.mark.parametrize("kind", ["container", "fork", "worker"])
def test_task_holds_its_own_descriptors_alone(kind, of_the_caller):
    with ContainerExecutor(2, isolation=kind) as made:
        for own, of_a_child in made.map(listed, range(4)):
            check(own, of_a_child, of_the_caller)


@pytest.mark.parametrize(
    ("remedy", "without", "more"),
    [
        ("        close_others(sock.fileno())\n", "", lambda own, _: sum(fd > 2 for fd, *_ in own) > 4),
        (", socket.MSG_CMSG_CLOEXEC)", ")", lambda _, of_a_child: any(kind == SOCKET for *_, kind in of_a_child)),
    ],
    ids=["of the zygote", "at an exec"],
)
def test_task_holds_more_without_the_remedy(monkeypatch, remedy, without, more):
    def unguarded(module):
        text = zygote_source(module)
        assert (remedy in text) == module.endswith("_inside_zygote")
        return text.replace(remedy, without)

    zygote_source = zygote.source_of
    monkeypatch.setattr(zygote, "source_of", unguarded)
    with ContainerExecutor(1) as made:
        assert more(*made.submit(listed, 0).result())


IN_A_BRANCH = f"TEXT = {LIST!r}\nexec(TEXT)\nown = held()\n{OF_A_CHILD}\nprint(own, done.stdout.decode(), sep=';')"


def listed_by(interpreter):
    own, of_a_child = interpreter.run_code(IN_A_BRANCH).stdout.split(";")
    return [eval(each, {}) for each in (own, of_a_child)]


def test_branch_holds_its_own_descriptors_alone(of_the_caller):
    with Interpreter() as first, Interpreter() as another:
        check(*listed_by(first), of_the_caller)
        with first.snapshot() as saved, first.fork() as forked:
            check(*listed_by(forked), of_the_caller)
            first.rollback(saved)
            check(*listed_by(first), of_the_caller)
        check(*listed_by(another), of_the_caller)


@pytest.mark.parametrize(
    ("remedy", "without", "more"),
    [
        ("            self.channel.sock.close()\n", "", lambda own, _: sum(kind == SOCKET for *_, kind in own) > 1),
        ('CLOEXEC = getattr(_socket, "MSG_CMSG_CLOEXEC", 0)', "CLOEXEC = 0", lambda _, child: len(child) > 3),
    ],
    ids=["of its parent", "at an exec"],
)
def test_branch_holds_more_without_the_remedy(monkeypatch, remedy, without, more):
    text = home._agent()
    assert remedy in text
    kept = "self.kept, self.channel = self.channel, Channel(channel)"  # the end of the object would close it
    text = text.replace(remedy, without).replace("self.channel = Channel(channel)", kept)
    monkeypatch.setattr(home, "_agent", lambda: text)
    with Interpreter() as interpreter:
        assert more(*listed_by(interpreter))

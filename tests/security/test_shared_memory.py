"""Objects that unrelated processes share: those of a container are invisible in others and outside, and the reverse."""

import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
from attacker import as_user

from containerkit import PIPE, Container, Mount, Namespaces

pytestmark = pytest.mark.usefixtures("nothing_left")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user can't join another container's namespaces")

SCRIPT = Path(__file__).with_name("shared_memory.py").read_text()
KINDS = {
    "System V memory",
    "System V semaphores",
    "System V messages",
    "POSIX messages",
    "POSIX memory",
    "POSIX semaphore",
    "abstract socket",
}
IN_DEV_SHM = {"POSIX memory", "POSIX semaphore"}


def command(verb, number):
    return ["/usr/bin/python3", "-c", SCRIPT, verb, str(number)]


def in_container(container):
    return container.popen


def outside(argv, **streams):
    return subprocess.Popen(argv, **streams)


@contextmanager
def made(start, number):
    """Create one of each, and keep them for the duration of the block."""
    with start(command("make", number), stdin=PIPE, stdout=PIPE, stderr=PIPE) as maker:
        said = maker.stdout.readline()
        assert said, maker.stderr.read()
        assert KINDS == set(json.loads(said))
        try:
            yield
        finally:
            maker.stdin.close()
            assert b"" == maker.stderr.read()


def found(start, number):
    with start(command("look", number), stdout=PIPE, stderr=PIPE) as looker:
        said, complaint = looker.stdout.read(), looker.stderr.read()
    assert said, complaint
    return sorted(kind for kind, there in json.loads(said).items() if there)


def number():
    return 0x7000_0000 + os.getpid()


def sights():
    """Return which objects, of one container and of the host, are visible from each place."""
    with Container() as one, Container() as other:
        seen = {}
        with made(in_container(one), number()):
            seen["of one, in itself"] = found(in_container(one), number())
            seen["of one, in another"] = found(in_container(other), number())
            seen["of one, outside"] = found(outside, number())
        with made(outside, number()):
            seen["of outside, outside"] = found(outside, number())
            seen["of outside, in one"] = found(in_container(one), number())
    return seen


ISOLATED = {
    "of one, in itself": sorted(KINDS),
    "of one, in another": [],
    "of one, outside": [],
    "of outside, outside": sorted(KINDS),
    "of outside, in one": [],
}


def test_containers_share_no_memory_and_no_messages():
    """The test has a control: the creator does find them."""
    assert ISOLATED == sights()


@pytest.mark.parametrize("ranges", [False, True])
def test_containers_of_an_unprivileged_user_share_none(ranges):
    """For the kernel their processes belong to the same user, so only the namespaces separate them."""
    assert ISOLATED == as_user(sights, ranges=ranges)


@needs_root
def test_joined_namespaces_share_their_objects():
    with Container() as one:
        joined = Namespaces(ipc=one.namespace("ipc"), network=one.namespace("network"))
        with Container(namespaces=joined) as other, made(in_container(one), number()):
            assert sorted(KINDS - IN_DEV_SHM) == found(in_container(other), number())


@needs_root
def test_shared_mount_on_dev_shm_shares_its_objects(tmp_path):
    tmp_path.chmod(0o1777)
    mount = Mount.bind(str(tmp_path), "/dev/shm")
    with Container(mounts=[mount]) as one, Container(mounts=[mount]) as other, made(in_container(one), number()):
        assert sorted(IN_DEV_SHM) == found(in_container(other), number())


@needs_root
def test_namespaces_of_the_host_share_their_objects():
    """The documented exception."""
    shared = Namespaces(ipc="host", network="host")
    with Container(namespaces=shared) as one, made(outside, number()):
        assert sorted(KINDS - IN_DEV_SHM) == found(in_container(one), number())

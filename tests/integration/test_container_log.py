"""The log of a container: what its commands write to it."""

import os
import threading
import time

import pytest

from containerkit import STDOUT, Container, SpecError, StateError, aio
from containerkit.container.log import LOG_BYTES

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_commands_write_to_the_log_and_it_stays_after_the_end():
    with Container() as c:
        assert "" == c.logs()
        with c.popen(["sh", "-c", "echo one; echo two >&2; echo three"], stdout=c.log, stderr=STDOUT) as p:
            p.wait()
        c.run(["echo", "of run"])
        assert "one\ntwo\nthree\n" == c.logs()
        c.run(["sh", "-c", "echo by its name >/dev/stdout"], stdout=c.log)
        assert "by its name\n" == c.logs(tail=1)
        assert "" == c.logs(tail=0)
        for wrong in (-1, True, "1"):
            with pytest.raises(SpecError, match="tail"):
                c.logs(tail=wrong)
        log = c.log
    assert "one\ntwo\nthree\nby its name\n" == c.logs()
    with pytest.raises(StateError):
        log.fileno()
    with pytest.raises(StateError):
        Container().log.fileno()


def test_no_command_waits_for_a_reader_and_the_latest_is_kept():
    with Container() as c:
        done = c.run(["sh", "-c", "head -c 3000000 /dev/zero; echo end"], stdout=c.log, timeout=60)
        assert 0 == done.returncode
        assert LOG_BYTES == len(c.logs())
        assert c.logs().endswith("\0end\n")


def test_logs_of_many_containers_take_one_thread():
    containers = [Container(hostname=f"c{n}").start() for n in range(5)]
    try:
        for each in containers:
            each.popen(["sh", "-c", "while :; do hostname; sleep 0.01; done"], stdout=each.log)
        deadline = time.monotonic() + 30
        while not all(each.logs() for each in containers):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert 1 == len([each for each in threading.enumerate() if each.name == "containerkit logs"])
    finally:
        for each in containers:
            each.stop()
    assert [{f"c{n}"} for n in range(5)] == [set(each.logs().split()) for each in containers]


def test_log_of_a_forked_child_is_not_that_of_its_parent():
    with Container() as c:
        c.run(["echo", "x"], stdout=c.log)
        child = os.fork()
        if child == 0:
            try:
                with Container() as mine:
                    mine.run(["echo", "y"], stdout=mine.log)
                    os._exit(0 if mine.logs() == "y\n" else 1)
            finally:
                os._exit(2)
        assert 0 == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert "x\n" == c.logs()


def test_log_in_asyncio():
    import asyncio

    async def main():
        async with aio.AsyncContainer() as c:
            async with c.popen(["echo", "from a task"], stdout=c.log):
                pass
            return await c.logs(tail=5)

    assert "from a task\n" == asyncio.run(main())

"""The logs of detached containers: nothing is lost, and they are bounded."""

import asyncio
import os
import signal
import time
from datetime import UTC, datetime, timedelta

import pytest
from detached_samples import Kept
from waiting import wait_for

from containerkit import aio
from containerkit.detached import logs
from containerkit.errors import SpecError


@pytest.fixture
def kept():
    made = Kept()
    yield made
    made.remove()


def test_follower_gets_every_line_in_order(kept):
    one = kept.make("seq", "200000", log_max_bytes=64 << 20)
    assert list(range(1, 200001)) == [int(line.text) for line in one.logs(follow=True)]


def test_follower_crosses_rotations(kept):
    one = kept.make("seq", "100000", log_max_bytes=1 << 19, log_files=50)
    assert list(range(1, 100001)) == [int(line.text) for line in one.logs(follow=True)]
    assert len([name for name in os.listdir(one.entry.state_path) if name.startswith("log.")]) > 5


def test_logs_are_bounded_by_size_and_count(kept):
    one = kept.make("seq", "100000", log_max_bytes=1 << 17, log_files=2)
    one.wait(30)
    wait_for(lambda: one.status == "exited")
    sizes = [os.path.getsize(f"{one.entry.state_path}/{n}") for n in os.listdir(one.entry.state_path) if "log." in n]
    assert len(sizes) == 2
    assert max(sizes) <= 1 << 17
    assert list(one.logs())[-1].text == b"100000\n"


def test_reader_goes_on_with_the_next_log_when_one_was_removed_before_it_was_opened(tmp_path):
    (tmp_path / "log.1").touch()
    found = logs._Logs(str(tmp_path), bool)
    (tmp_path / "log.1").unlink()
    assert list(found.more()) == []
    (tmp_path / "log.7").write_bytes(b"2026-01-02T03:04:05.000000000Z stdout F later\n")
    assert [line.text for line in found.more()] == [b"later\n"]
    found.close()


def test_reader_skips_no_log_that_was_begun_while_it_looked(tmp_path, monkeypatch):
    head, listing = b"2026-01-02T03:04:05.000000000Z stdout F ", logs.numbers
    found = logs._Logs(str(tmp_path), lambda: pytest.fail("nothing was removed"))

    def numbers(directory):
        for number in (1, 2):
            (tmp_path / f"log.{number}").write_bytes(head + b"%d\n" % number)
        return listing(directory)

    monkeypatch.setattr(logs, "numbers", numbers)
    assert [line.text for line in found.more()] == [b"1\n", b"2\n"]
    found.close()


def test_line_whose_end_was_removed_is_not_joined_with_a_later_one(tmp_path):
    head = b"2026-01-02T03:04:05.000000000Z stdout "
    (tmp_path / "log.1").write_bytes(head + b"P begun\n")
    found = logs.steps(str(tmp_path), follow=lambda: not (tmp_path / "log.3").exists())
    assert isinstance(next(found), int)
    (tmp_path / "log.3").write_bytes(head + b"F later\n")
    assert [each.text for each in found if isinstance(each, logs.LogLine)] == [b"later\n"]


def test_reader_of_a_record_that_is_undone_reads_what_comes_instead(tmp_path):
    path, head = tmp_path / "log.1", b"2026-01-02T03:04:05.000000000Z stdout F "
    path.write_bytes(head + b"one\n" + head + b"tw")
    found = logs._Logs(str(tmp_path), bool)
    assert [line.text for line in found.more()] == [b"one\n"]
    with path.open("r+b") as file:  # as the keeper does when the disk is full
        file.truncate(len(head) + 4)
        file.seek(0, os.SEEK_END)
        file.write(head + b"another that is longer\n")
    assert [line.text for line in found.more()] == [b"another that is longer\n"]
    found.close()


def test_follower_of_logs_that_rotate_fast_reaches_the_end(kept):
    one = kept.shell("seq 200000; echo last; sleep 0.5; echo end", log_max_bytes=1 << 12, log_files=1)
    assert [str(line) for line in one.logs(follow=True)][-2:] == ["last\n", "end\n"]


def test_streams_and_bytes_are_kept_apart(kept):
    one = kept.shell(r"printf 'a\377b\n'; sleep 0.1; echo err >&2; sleep 0.1; printf tail")
    one.wait(10)
    wait_for(lambda: one.status == "exited")
    assert [("stdout", b"a\xffb\n"), ("stderr", b"err\n"), ("stdout", b"tail")] == [
        (line.stream, line.text) for line in one.logs()
    ]


def test_long_lines_are_whole(kept):
    one = kept.make("python3", "-c", "print('x' * 300000); print('y')")
    one.wait(10)
    wait_for(lambda: one.status == "exited")
    assert [b"x" * 300000 + b"\n", b"y\n"] == [line.text for line in one.logs()]


def test_pieces_come_before_their_line_is_whole(kept):
    one = kept.shell("printf 'prompt> '; sleep 30")
    line = next(one.logs(follow=True, pieces=True))
    assert line.text == b"prompt> "


def test_tail_since_and_until(kept):
    one = kept.shell("echo one; sleep 0.3; echo two; sleep 0.1; printf three")
    one.wait(10)
    wait_for(lambda: one.status == "exited")
    lines = list(one.logs())
    assert ["two\n", "three"] == [str(line) for line in one.logs(tail=2)]
    assert [] == list(one.logs(tail=0))
    between = datetime.fromisoformat(lines[0].time[:26]).replace(tzinfo=UTC) + timedelta(seconds=0.15)
    assert ["two\n", "three"] == [str(line) for line in one.logs(since=between)]
    assert ["one\n"] == [str(line) for line in one.logs(until=between)]
    assert 3 == len(list(one.logs(since="1h")))
    assert [] == list(one.logs(since=time.time() + 5))


@pytest.mark.parametrize("options", [{"since": "yesterday"}, {"until": object()}, {"tail": -1}, {"tail": True}])
def test_times_and_numbers_that_cannot_be_are_refused(kept, options):
    one = kept.make("true")
    with pytest.raises(SpecError):
        one.logs(**options)


def test_time_is_of_the_reading(kept):
    before = time.time()
    one = kept.shell("echo x")
    one.wait(10)
    wait_for(lambda: list(one.logs()))
    (line,) = one.logs()
    stamp = datetime.fromisoformat(line.time[:26]).replace(tzinfo=UTC).timestamp()
    assert before - 0.001 <= stamp <= time.time() + 0.001
    assert len(line.time) == len("2026-11-26T10:00:00.123456789Z")


# --- In asyncio


def test_asyncio_follows_and_leaves(kept):
    container = kept.shell("trap 'echo last; exit' USR1; echo first; echo second >&2; while :; do sleep 0.01; done")

    async def follow():
        seen = []
        async for line in aio.logs(container, follow=True):
            seen.append((line.stream, str(line)))
            if len(seen) == 2:
                container.kill(signal.SIGUSR1)
        return seen

    async def last():
        return [str(line) async for line in aio.logs(container, tail=1)]

    async def leave():
        lines = aio.logs(container, follow=True)
        first = str(await anext(lines))
        await lines.aclose()
        return first

    assert sorted(asyncio.run(follow())) == [("stderr", "second\n"), ("stdout", "first\n"), ("stdout", "last\n")]
    assert asyncio.run(last()) == ["last\n"]
    assert asyncio.run(leave()) in ("first\n", "second\n")

    async def wrong():
        await anext(aio.logs(container, tail=-1))

    with pytest.raises(SpecError):
        asyncio.run(wrong())

"""Progress: bars on a terminal, no output elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from containerkit.image.progress import ProgressEvent, terminal_progress

EVENTS = [
    ProgressEvent(action="download", subject="sha256:" + "a" * 64, done_bytes=5, total_bytes=10),
    ProgressEvent(action="download", subject="sha256:" + "a" * 64, done_bytes=10, total_bytes=10, status="done"),
    ProgressEvent(action="build", subject="RUN true", status="exists"),
]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream):
    with terminal_progress(stream) as progress:
        for event in EVENTS:
            progress(event)
    return stream.getvalue()


def test_progress_is_silent_where_there_is_no_terminal():
    assert "" == shown(io.StringIO())


def test_progress_draws_bars_on_a_terminal():
    pytest.importorskip("rich")
    text = shown(Terminal())
    assert "download aaaaaaaaaaaa" in text
    assert "build RUN true" in text


def test_progress_writes_lines_where_rich_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert "download aaaaaaaaaaaa: done\nbuild RUN true: exists\n" == shown(Terminal())

"""The check for left-behind objects: it detects a test's own objects and ignores those of others."""

import os
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
RECORDS = Path("/run/containerkit/oci")


@pytest.fixture
def foreign():
    """A directory like that of another user of the machine."""
    path = tempfile.mkdtemp()
    yield path
    shutil.rmtree(path)


def leave_mount(place):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "left", place], check=True)


@pytest.fixture(autouse=True)
def _little_patience(left_of, monkeypatch):
    """The check waits for the kernel, which here has nothing to remove."""
    hooks = left_of.__globals__
    monkeypatch.setitem(hooks, "left_behind", partial(hooks["left_behind"], patience_s=0.5))


def test_a_mount_of_a_test_is_noticed_and_a_strangers_is_not(left_of, tmp_path, foreign):
    try:
        assert {} == left_of(lambda: leave_mount(foreign))
        assert ["mounts"] == list(left_of(lambda: leave_mount(tmp_path)))
    finally:
        for place in (foreign, tmp_path):
            subprocess.run(["umount", place], check=True)


def test_a_record_of_a_test_is_noticed_and_a_strangers_is_not(left_of, tmp_path, foreign):
    made = []

    def leave_record(bundle):
        path = RECORDS / f"left-behind-test-{os.getpid()}-{len(made)}"
        path.mkdir(parents=True)
        made.append(path)
        (path / "state.json").write_text(f'{{"bundle": "{bundle}"}}')

    try:
        assert {} == left_of(lambda: leave_record(foreign))
        assert ["run"] == list(left_of(lambda: leave_record(tmp_path)))
    finally:
        for path in made:
            shutil.rmtree(path)

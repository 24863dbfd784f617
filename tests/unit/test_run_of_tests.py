"""The hooks of tests/conftest.py, in runs of tests."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run_tests(directory, text, *words):
    """Run the tests of a text with the hooks of all tests; return the status, and both outputs as one.

    Of the plugins that are installed only those that a run needs are loaded, because hypothesis takes long to import.
    """
    (directory / "test_these.py").write_text(textwrap.dedent(text))
    plugins = ["-p", "conftest", "-p", "xdist", "-p", "pytest_timeout", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugins, *words, "test_these.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stdout


def test_modules_that_are_named_are_there():
    pytest.importorskip("xdist")
    from scheduling import SAME_FOR_EVERY_USER, TOGETHER

    there = {path.stem for path in TESTS.rglob("test_*.py")}
    named = [module for modules in TOGETHER.values() for module in modules]
    assert len(named) == len(set(named))
    assert set(named) <= there
    assert there >= SAME_FOR_EVERY_USER


def test_modules_that_say_the_same_for_every_user_are_left_out_on_request(tmp_path):
    (tmp_path / "test_odd_arguments.py").write_text("def test_one(): pass\n")
    for options, count in (([], 2), (["--beside-root"], 1)):
        status, output = run_tests(tmp_path, "def test_other(): pass", *options, ".")
        assert (0, True) == (status, f"{count} passed" in output), output


def test_worker_of_a_hanging_test_is_replaced_although_its_child_lives(tmp_path):
    status, output = run_tests(
        tmp_path,
        """
        import os, signal, pytest

        @pytest.mark.timeout(1, method="thread")
        def test_long():
            if os.fork() == 0:
                os.setsid()
            while True:
                signal.pause()

        @pytest.mark.parametrize("number", range(6))
        def test_short(number):
            pass
        """,
        "-n1",
    )
    assert status == 1
    assert "1 failed, 6 passed" in output
    assert "test_these.py::test_long takes more than 1.0 s" in output
    assert "in test_long" in output

"""What tests/conftest.py sees to in a run of tests."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def run_tests(directory, text, *words):
    """Run the tests of a text with the hooks of all tests; return the status, and both outputs as one."""
    (directory / "test_these.py").write_text(textwrap.dedent(text))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "conftest", "-p", "no:cacheprovider", *words, "test_these.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
    )
    return done.returncode, done.stdout


def test_modules_that_stay_together_exist():
    pytest.importorskip("xdist")
    from scheduling import TOGETHER

    named = [module for modules in TOGETHER.values() for module in modules]
    assert len(named) == len(set(named))
    assert set(named) <= {path.stem for path in TESTS.rglob("test_*.py")}


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

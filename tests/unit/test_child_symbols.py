"""Code that runs in the caller's memory calls no function of libc, because that may take a lock of another thread."""

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

import containerkit

NATIVE = Path(containerkit.__file__).parent / "_native"
CHILD = [NATIVE / name for name in ("child.c", "exec_steps.c", "populate.c", "image.c")]

pytestmark = pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("nm"), reason="needs gcc and binutils")


def wanted_by(sources, place):
    """Return the symbols that the sources use and that none of them defines."""
    flags = runpy.run_path(str(NATIVE / "build.py"), run_name="build")["COMPILE"]
    made = place / "made.o"
    subprocess.run(["gcc", *flags, f"-I{NATIVE}", "-r", "-nostdlib", "-o", made, *sources], check=True)
    told = subprocess.run(["nm", "-u", made], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in told.splitlines()}


def test_child_calls_no_function_of_libc(tmp_path):
    assert set() == wanted_by(CHILD, tmp_path)


def test_calls_of_libc_are_found(tmp_path):
    source = tmp_path / "calls.c"
    source.write_text("#include <stdlib.h>\nvoid *made(void) { return malloc(10); }\n")
    assert {"malloc"} == wanted_by([*CHILD, source], tmp_path)

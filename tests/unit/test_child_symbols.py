"""Code that runs in the caller's memory calls no function of libc, because that may take a lock of another thread."""

import runpy
import shutil
import subprocess
from pathlib import Path

import pytest

import containerkit

NATIVE = Path(containerkit.__file__).parent / "_native"
OWN = {"ck_make_board", "ck_populate", "ck_write_image"}

pytestmark = pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("nm"), reason="needs gcc and binutils")


def wanted_by(source, place):
    """Return the undefined symbols of a compiled source."""
    flags = runpy.run_path(str(NATIVE / "build.py"), run_name="build")["COMPILE"]
    made = place / "made.o"
    subprocess.run(["gcc", *flags, f"-I{NATIVE}", "-c", "-o", made, source], check=True)
    told = subprocess.run(["nm", "-u", made], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in told.splitlines()}


@pytest.mark.parametrize("name", ["child.c", "populate.c", "image.c"])
def test_child_takes_nothing_from_libc(name, tmp_path):
    assert wanted_by(NATIVE / name, tmp_path) <= OWN


def test_what_calls_libc_is_found(tmp_path):
    source = tmp_path / "calls.c"
    source.write_text("#include <stdlib.h>\nvoid *made(void) { return malloc(10); }\n")
    assert "malloc" in wanted_by(source, tmp_path)

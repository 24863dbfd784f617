"""Builds the C parts for aarch64 with Debian's cross compiler and this machine's Python headers."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

import containerkit

COMPILER = "aarch64-linux-gnu-gcc"
NATIVE = Path(containerkit.__file__).parent / "_native"
_STABLE = "-DPy_LIMITED_API=0x030b0000"


def needs_compiler():
    """Skip where the C parts can't be compiled for aarch64."""
    if shutil.which(COMPILER) is None:
        pytest.skip("no cross compiler: apt-get install gcc-aarch64-linux-gnu")
    if not Path("/usr/aarch64-linux-gnu/include/asm/types.h").exists():
        pytest.skip("no headers for the cross compiler: apt-get install libc6-dev-arm64-cross")
    if not (NATIVE / "init.c").exists():
        pytest.skip("no C sources beside what is installed")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        pytest.skip("no headers of Python: apt-get install python3-dev")


def python_headers(directory):
    """Return the options for Python's headers. Both architectures have the same settings in Debian's pyconfig.h.

    Args:
        directory: for a copy of pyconfig.h, at the path where Debian's includes that of another architecture.
    """
    include = Path(sysconfig.get_path("include"))
    own = Path("/usr/include", sysconfig.get_config_var("MULTIARCH") or "", include.name, "pyconfig.h")
    if own.exists():
        other = directory / "aarch64-linux-gnu" / include.name
        other.mkdir(parents=True)
        shutil.copy(own, other)
    return [f"-I{include}", f"-I{directory}"]


def build(target, directory):
    """Build the init and the extension, by the stable ABI, without a warning.

    Args:
        target: the directory for them.
        directory: for intermediate files.
    """
    parts = runpy.run_path(str(NATIVE / "build.py"))
    parts["build_programs"]([COMPILER, "-Werror"], target)
    code = directory / "_lib.c"
    parts["ffibuilder"].emit_c_code(str(code))
    command = [COMPILER, "-shared", "-fPIC", *parts["COMPILE"], _STABLE, f"-I{NATIVE}", *python_headers(directory)]
    sources = [code, *(NATIVE / name for name in parts["SOURCES"])]
    done = subprocess.run([*command, "-o", target / "_lib.abi3.so", *sources], capture_output=True, text=True)
    assert (0, "") == (done.returncode, done.stderr)

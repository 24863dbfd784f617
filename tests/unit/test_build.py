"""The Python versions for which the C parts are built."""

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import containerkit

BUILD = Path(containerkit.__file__).parent / "_native" / "build.py"
PROJECT = Path(__file__).resolve().parents[2]
SETUP = """
import runpy, sys, sysconfig
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = int(sys.argv.pop(1))
runpy.run_path("setup.py", run_name="__main__")
"""


@pytest.mark.parametrize("free_threaded", [False, True])
def test_stable_abi_is_asked_for_where_there_is_one(free_threaded):
    variables = sysconfig.get_config_vars()
    before = variables.get("Py_GIL_DISABLED")
    variables["Py_GIL_DISABLED"] = int(free_threaded)
    try:
        built = runpy.run_path(str(BUILD))
    finally:
        variables["Py_GIL_DISABLED"] = before
    *_, options = built["ffibuilder"]._assigned_source
    assert (not free_threaded) == options["py_limited_api"] == built["LIMITED_API"]


@pytest.fixture
def project(tmp_path):
    """A copy of the sources."""
    pytest.importorskip("setuptools")
    if not (PROJECT / "setup.py").exists() or not BUILD.with_name("init.c").exists():
        pytest.skip("no sources beside what is installed")
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists() or shutil.which("gcc") is None:
        pytest.skip("no compiler, or no headers of Python: apt-get install gcc python3-dev")
    copy = tmp_path / "project"
    left_out = shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__", "init", "keeper", "front")
    shutil.copytree(PROJECT / "src", copy / "src", ignore=left_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, copy)
    return copy


@pytest.mark.parametrize("free_threaded", [False, True])
def test_setup_builds_for_both_kinds_of_python(project, tmp_path, free_threaded):
    compiler = tmp_path / "gcc"  # what is built is not run, so it is not optimized, which takes longer than the rest
    compiler.write_text(f'#!/bin/sh\nexec {shutil.which("gcc")} "$@" -O0\n')
    compiler.chmod(0o755)
    places = ["--build-lib", tmp_path / "lib", "--build-temp", tmp_path / "between"]
    command = [sys.executable, "-c", SETUP, str(int(free_threaded)), "-v", "build_ext", *places]
    environment = {**os.environ, "CC": str(compiler), "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=110, env=environment)
    assert 0 == done.returncode, done.stderr
    native = tmp_path / "lib/containerkit/_native"
    (extension,) = native.glob("_lib.*")
    assert extension.name == "_lib" + (sysconfig.get_config_var("EXT_SUFFIX") if free_threaded else ".abi3.so")
    assert free_threaded == ("-D_CFFI_NO_LIMITED_API" in done.stdout + done.stderr)
    for program in ("init", "keeper", "front"):
        assert os.access(native / program, os.X_OK)

"""The C parts for the other architecture: they compile without a warning and link, and the init runs."""

import shutil
import subprocess

import pytest
from aarch64 import build, needs_compiler

RUNNER = "qemu-aarch64-static"
AARCH64 = 183  # EM_AARCH64 in elf.h


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    needs_compiler()
    target = tmp_path_factory.mktemp("aarch64")
    build(target, tmp_path_factory.mktemp("between"))
    return target


@pytest.mark.parametrize("name", ["init", "_lib.abi3.so"])
def test_it_is_a_program_of_that_machine(built, name):
    head = (built / name).read_bytes()[:64]
    assert (b"\x7fELF", AARCH64) == (head[:4], int.from_bytes(head[18:20], "little"))


def test_init_is_static_and_needs_no_libc(built):
    told = subprocess.run(["readelf", "-lW", built / "init"], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in told
    assert "DYNAMIC" not in told


def test_extension_takes_from_libc_and_python_alone(built):
    command = ["readelf", "-dW", built / "_lib.abi3.so"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {"libc.so.6"} == {line.partition("[")[2].rstrip("]") for line in told.splitlines() if "(NEEDED)" in line}


@pytest.mark.skipif(shutil.which(RUNNER) is None, reason=f"no {RUNNER}: apt-get install qemu-user-static")
def test_init_runs(built):
    done = subprocess.run([RUNNER, built / "init"], capture_output=True, text=True, timeout=20)
    assert (126, "") == (done.returncode, done.stdout)
    assert "the sealed init of a container is not an interpreter" in done.stderr

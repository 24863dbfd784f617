"""The C parts for the other architecture: they compile without a warning and link, and the programs run."""

import json
import os
import shutil
import subprocess

import pytest
from aarch64 import build, needs_compiler

from containerkit._native import front
from containerkit.oci import store

RUNNER = "qemu-aarch64-static"
AARCH64 = 183  # EM_AARCH64 in elf.h


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    needs_compiler()
    target = tmp_path_factory.mktemp("aarch64")
    build(target, tmp_path_factory.mktemp("between"))
    return target


@pytest.mark.parametrize("name", ["init", "keeper", "front", "_lib.abi3.so"])
def test_it_is_a_program_of_that_machine(built, name):
    head = (built / name).read_bytes()[:64]
    assert (b"\x7fELF", AARCH64) == (head[:4], int.from_bytes(head[18:20], "little"))


@pytest.mark.parametrize("name", ["init", "keeper", "front"])
def test_program_is_static_and_needs_no_libc(built, name):
    told = subprocess.run(["readelf", "-lW", built / name], capture_output=True, text=True, check=True).stdout
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


@pytest.mark.skipif(shutil.which(RUNNER) is None, reason=f"no {RUNNER}: apt-get install qemu-user-static")
def test_front_end_prints_a_state_signals_and_deletes(built, tmp_path, monkeypatch):
    monkeypatch.setattr(front, "FRONT", str(built / "front"))
    (tmp_path / "front").write_bytes(front.configured("/bin/false", ""))
    (tmp_path / "front").chmod(0o755)
    process = subprocess.Popen(["sleep", "100"])

    def call(*words):
        command = [RUNNER, tmp_path / "front", "--root", tmp_path, *words, "one"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout

    with store.reserve(str(tmp_path), "one") as entry:
        texts = dict.fromkeys(("ociVersion", "bundle", "rootfs", "created", "owner", "freezer", "unit"), "")
        lists = {"annotations": {"a": "b"}, "groups": [], "hooks": [], "joinsPid": False}
        entry.save(phase="created", pid=process.pid, start_time=store.start_time(process.pid), **texts, **lists)
        expected = entry.state()
    assert expected == json.loads(call("state"))
    call("delete", "--force")
    assert -9 == process.wait(10)
    assert not os.path.exists(tmp_path / "one")

"""What exists at the exec of a program that a keeper or a supervisor starts: its own descriptors alone.

The parents of these programs are not the caller, which has ended for most of them. They are known by their tracer.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import lookup_child
import lookup_kept_child
import pytest
from test_lookup import at_the_exec, compiled_victim, filled_root, needs_strace, open_directory

import containerkit

pytestmark = [
    needs_strace,
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs to run as root"),
    pytest.mark.usefixtures("nothing_left"),
]

UNGUARDED = """
import sys
if not hasattr(sys, "unguarded"):
    sys.unguarded = True
    import lookup_child
    lookup_child.unguarded()
"""
"""Removes the remedy in each interpreter, those that keepers start among them."""


@pytest.fixture(scope="module")
def root():
    with open_directory() as directory:
        program = compiled_victim(directory)
        place = directory / "root"
        place.mkdir()
        filled_root(place, program)
        shutil.copy(program, place / "quick")
        yield place


def scan(way, root, images, *places):
    """Start programs under strace(1), which delays each process before its execve."""
    source = os.path.dirname(os.path.dirname(containerkit.__file__))
    path = os.pathsep.join(map(str, (*places, source, os.path.dirname(lookup_child.__file__))))
    environment = {**os.environ, "PYTHONPATH": path, "CONTAINERKIT_IMAGES": str(images)}
    words = ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=execve", "-e", "inject=execve:delay_enter=200000"]
    command = [*words, "--seccomp-bpf", sys.executable, lookup_kept_child.__file__, way, str(root), "/quick"]
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    for _ in range(3):  # on a busy machine it may be over before it is inspected
        with subprocess.Popen(command, env=environment, text=True, **streams) as traced:
            found = at_the_exec(traced, is_traced_by)
            told = traced.stderr.read()
        assert traced.returncode == 0, told
        if found:
            break
    return found


def is_traced_by(pid, tracer):
    return f"\nTracerPid:\t{tracer}\n" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("way", lookup_kept_child.WAYS)
def test_program_that_a_keeper_or_supervisor_starts_holds_its_own_descriptors_alone(way, root, tmp_path):
    assert {"0", "1", "2"} == scan(way, root, tmp_path / "images")


@pytest.mark.parametrize("way", lookup_kept_child.WAYS)
def test_program_holds_more_without_the_remedy(way, root, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(UNGUARDED)
    assert "the interpreter" in scan(way, root, tmp_path / "images", tmp_path)

"""The README's first example on the other architecture: Debian's kernel and programs for arm64, in QEMU."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from aarch64 import build, needs_compiler
from harness import aarch64, missing, run_in_guest, why_not

import containerkit

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

PACKAGES = "busybox-static,dash,python3,linux-image-cloud-arm64"
WHEELS = (
    "--platform=manylinux_2_17_aarch64",
    "--python-version=3.11",
    "--only-binary=:all:",
)  # Python 3.11: bookworm's
UNREACHABLE = re.compile(
    r"Temporary failure|Could not (resolve|connect|handshake)|Unable to connect|Network is unreachable|timed out|"
    r"Connection refused|Name or service not known|Failed to establish a new connection"
)
SEARCHED = "/opt/own:/opt/packages"

JOB = """
from containerkit import Container, Limits, probe, run
from containerkit._native import interpreter

print(interpreter().NAME)
print(run(["uname", "-nm"], text=True, check=True).stdout, end="")
with Container(limits=Limits(memory="64M")) as c:
    print(c.run(["python3", "-c", "print(6 * 7)"], text=True, timeout=60, check=True).stdout, end="")
    print(c.run(["sh", "-c", "mount -t tmpfs x /mnt || echo refused"], text=True).stdout, end="")
    print(c.run(["sh", "-c", "kill -KILL $$"]).cause)
print(bool(probe(60).seccomp_notify))
"""


def fetch(*words):
    """Run a program that downloads packages. Skip only if the network is missing; any other failure is ours."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=400)
    if done.returncode and UNREACHABLE.search(done.stderr):
        pytest.skip(f"{words[0]} can't fetch packages: {done.stderr[-500:]}")
    assert 0 == done.returncode, done.stderr


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A root with Python and a kernel, and in /opt the library, built for it, and what it imports."""
    needs_compiler()
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        ("depmod", "kmod"),
        ("qemu-system-aarch64", "qemu-system-arm"),
    ):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install {package}")
    root = tmp_path_factory.mktemp("root")
    # Nothing of the packages is run, so that the programs of another machine are only files.
    fetch("mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract", f"--include={PACKAGES}", "bookworm", str(root))
    for release in (root / "lib/modules").iterdir():
        subprocess.run(["depmod", "-b", root, release.name], check=True)
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *WHEELS)
    fetch(*pip, "--target", str(root / "opt/packages"), "attrs>=23.2", "cffi>=1.16")
    own = root / "opt/own/containerkit"
    source = Path(containerkit.__file__).parent
    shutil.copytree(source, own, ignore=shutil.ignore_patterns("__pycache__", "*.so", "init"))
    build(own / "_native", tmp_path_factory.mktemp("between"))
    found = aarch64(root)
    assert not missing(found), missing(found)
    yield found
    shutil.rmtree(root)


@pytest.fixture
def guest(machine):
    def run(*words):
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": SEARCHED, "PYTHONDONTWRITEBYTECODE": "1"}
        return run_in_guest(["python3", *words], machine=machine, environment=environment)

    return run


def test_job_of_the_library(guest):
    done = guest("-W", "error", "-c", JOB)
    expected = ["compiled", "container aarch64", "42", "refused", "signal", "True"]
    assert (0, expected) == (done.returncode, [line for line in done.output.splitlines() if "mount:" not in line])


def test_job_of_the_command_line(guest):
    done = guest("-m", "containerkit", "run", "--", "uname", "-a")
    assert (0, ["Linux", "container"]) == (done.returncode, done.output.split()[:2])
    assert "aarch64" in done.output

"""Attacks that need changes to a machine's settings: a guest, which has files in /proc that this machine lacks."""

from __future__ import annotations

import json
import sys

import pytest
from harness import PROJECT, run_in_guest, why_not

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(why_not()), reason=why_not() or "-"),
]

ATTEMPTS = """
import glob, json, os, sys, time
from containerkit import RootFS, run

root = RootFS.host(idmap=False)  # the guest's own root is an overlay
everybody = {"rootfs": root, "text": True}


def crash(**options):
    run(["sh", "-c", "kill -SEGV $$"], rootfs=root, **options)
    time.sleep(1)
    found = glob.glob("/tmp/core-*")
    for path in found:
        os.unlink(path)
    return len(found)


def attempt(script, **options):
    done = run(["sh", "-c", script], **everybody, **options)
    return [done.returncode, done.stdout[:20], done.stderr[-60:]]


with open("/proc/sys/kernel/core_pattern", "w") as file:
    file.write("|/usr/bin/touch /tmp/core-%i")
said = {
    "cores": [crash(), crash(rlimits={"core": 0})],
    "kcore": attempt("wc -c < /proc/kcore"),
    "kcore unmasked": attempt("head -c 4 /proc/kcore | wc -c", masked_paths=()),
    "sysrq": attempt("echo h > /proc/sysrq-trigger"),
    "sysrq unmasked": attempt("echo h > /proc/sysrq-trigger", readonly_paths=()),
}
print("SAID" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    done = run_in_guest(
        [sys.executable, "-c", ATTEMPTS], environment={"PYTHONPATH": str(PROJECT / "src")}, timeout_s=240
    )
    assert 0 == done.returncode, done.output
    return json.loads(next(line for line in done.output.splitlines() if line.startswith("SAID"))[4:])


def test_crash_starts_no_program_of_the_host(said):
    assert [0, 1] == said["cores"], "by default none; with a limit of 0, which is what others set, one"


def test_memory_of_the_kernel_reads_as_empty(said):
    assert [0, "0\n", ""] == said["kcore"]


def test_memory_of_the_kernel_is_not_held_by_the_mask_alone(said):
    assert "Permission denied" in said["kcore unmasked"][2] or "not permitted" in said["kcore unmasked"][2]


@pytest.mark.parametrize("which", ["sysrq", "sysrq unmasked"])
def test_sysrq_cannot_be_triggered(said, which):
    status, _, error = said[which]
    assert 0 != status
    assert "Read-only" in error or "Permission denied" in error

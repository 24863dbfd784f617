"""What tests of container engines have in common: their command lines, and what is taken down after them."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

IDS = 65_536


def needs(*programs):
    """Skip where a program is missing.

    Args:
        programs: pairs of a program and the Debian package that has it.
    """
    for program, package in programs:
        if not os.path.exists(program) and not shutil.which(program):
            pytest.skip(f"no {program}: apt-get install {package}")


class Engine:
    """A command line; what it prints is returned.

    Args:
        words: the program with its global flags.
        environment: variables on top of this process's own.
        more: passed on to subprocess.run().
    """

    def __init__(self, words, environment=None, **more):
        self.words = list(map(str, words))
        self.environment = {**os.environ, **(environment or {})}
        self.more = more

    def __call__(self, *words, status=0, both=False, **more):
        done = subprocess.run(
            [*self.words, *map(str, words)], env=self.environment,
            capture_output=True, text=True, timeout=120, check=False, **self.more, **more,
        )  # fmt: skip
        assert status == done.returncode, f"{' '.join(map(str, words))}: {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr if both else done.stdout

    def on_terminal(self, *words):
        """Run with a terminal, by script(1)."""
        line = " ".join([*self.words, *map(str, words)])
        done = subprocess.run(
            ["script", "-qec", line, "/dev/null"], env=self.environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=60, check=True, **self.more,
        )  # fmt: skip
        return done.stdout


def _remove_user(name, seconds=20):
    """Remove a user once its last process, which was killed a moment ago, is gone."""
    end = time.monotonic() + seconds
    while (done := subprocess.run(["userdel", name], capture_output=True, text=True, check=False)).returncode:
        assert "currently used by process" in done.stderr, done.stderr
        assert time.monotonic() < end, done.stderr
        time.sleep(0.1)


@contextlib.contextmanager
def user_with_ids(kind, first):
    """Make a user with 65536 uids and gids to give to containers, whose home is removed with all that is in it.

    Args:
        kind: a part of its name.
        first: the first of its ids, from which a thousand ranges are free.

    Yields:
        Its name and its home.
    """
    needs(("useradd", "passwd"), ("newuidmap", "uidmap"))
    name = f"ck-{kind}-{os.getpid()}"
    first += os.getpid() % 1000 * IDS
    ranges = f"{first}-{first + IDS - 1}"
    with tempfile.TemporaryDirectory(prefix=f"ck-{kind}-", dir="/var/tmp") as home:
        subprocess.run(["useradd", "--system", "--no-create-home", "--home-dir", home, name], check=True)
        try:
            subprocess.run(["usermod", "--add-subuids", ranges, "--add-subgids", ranges, name], check=True)
            Path(home).chmod(0o755)
            yield name, Path(home)
        finally:
            _remove_user(name)


def unmount_below(path):
    """Unmount what an engine has left below a directory."""
    with open("/proc/self/mountinfo") as file:
        found = [line.split()[4] for line in file if line.split()[4].startswith(str(path))]
    for mount in reversed(found):
        subprocess.run(["umount", "-l", mount], check=False)


def remove_plain_groups():
    """Remove the directories that podman makes for controllers of version 1 that nothing mounts.

    They lie in the tmpfs that holds the mounts, and their files are plain ones: podman itself then can't remove the
    group of a pod below them.
    """
    for controller in ("hugetlb", "net_cls", "net_prio", "perf_event"):
        path = f"/sys/fs/cgroup/{controller}"
        if os.path.isdir(path) and not os.path.ismount(path) and not os.path.islink(path):
            shutil.rmtree(path)

"""Helpers for the tests of detached containers."""

import contextlib
import os

import pytest

from containerkit import Container, containers
from containerkit.errors import ContainerError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting, and giving files to other owners, takes root")
needs_groups = pytest.mark.skipif(os.geteuid() != 0, reason="control groups take root here")


def runs(pid):
    """Return whether a process exists and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Kept:
    """Creates detached containers, and removes them and all others that were created in the meantime."""

    def __init__(self):
        self.before = {one.id for one in containers(all=True)}

    def make(self, *command, rootfs=None, limits=None, **options):
        spec = {} if limits is None else {"limits": limits}
        return Container(rootfs, **spec).detach(options.pop("name", ""), command=list(command), **options)

    def shell(self, script, **options):
        return self.make("sh", "-c", script, **options)

    def new(self):
        return [one for one in containers(all=True) if one.id not in self.before]

    def remove(self):
        for one in self.new():
            path = one.entry.state_path
            with contextlib.suppress(ContainerError):
                one.remove(force=True)
            assert not os.path.exists(path)

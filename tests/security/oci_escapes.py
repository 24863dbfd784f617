"""Bundles that attack, with their own control groups, for the security tests of the OCI command."""

# ruff: noqa: F811 - fixtures are used by name

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
from oci_bundles import ONE, RUN, Bundle, Runtime, groups_named, make_rootfs, mounts_below, rootfs  # noqa: F401 - a fixture

needs_runc = pytest.mark.skipif(shutil.which("runc") is None, reason="runc is the peer: apt-get install runc")


@pytest.fixture
def own_rootfs(tmp_path, rootfs):
    """A root filesystem that a test may change."""
    root = make_rootfs(tmp_path / "spoilt")
    (root / "tmp").chmod(0o1777)
    return root


@pytest.fixture
def group(tmp_path):
    """A name of control groups that no other test run on this machine uses."""
    return f"{tmp_path.name}-{os.getpid()}"


@pytest.fixture
def spoilt(tmp_path, own_rootfs, group):
    bundle = Bundle(tmp_path / "bundle", own_rootfs)
    bundle.linux["cgroupsPath"] = f"/{group}"
    return bundle


@pytest.fixture
def oci(tmp_path, group):
    """A runtime whose containers, control groups and mounts must be gone afterwards."""
    runtime = Runtime(tmp_path / "state")
    yield runtime
    if os.path.isdir(runtime.root) and ONE in os.listdir(runtime.root):
        runtime("delete", "--force", ONE)
    assert [] == mounts_below(tmp_path)
    assert [] == groups_named(group)


def program(path, body):
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def image_program(root, name, body):
    """Write a script to an image and return its path there."""
    program(root / name, body)
    return f"/{name}"


def loader():
    """Return the path of Python's ELF interpreter."""
    told = subprocess.run(
        ["readelf", "-l", os.path.realpath(sys.executable)], capture_output=True, text=True, check=True
    )
    return told.stdout.partition("interpreter: ")[2].partition("]")[0]

"""podman and buildah of an unprivileged user with ranges of ids, as packaged by Debian, with this runtime."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from oci_bundles import as_root, make_rootfs, needs_busybox
from oci_engines import Engine, needs, user_with_ids

import containerkit

pytestmark = as_root

PYTHON = os.environ.get("CONTAINERKIT_TEST_PYTHON", sys.executable)
SOURCE = os.path.dirname(os.path.dirname(containerkit.__file__))


@pytest.fixture(scope="module")
def user():
    """A user with subordinate ids, and its home."""
    with user_with_ids("oci", 1_600_000_000) as made:
        yield made


@pytest.fixture(scope="module")
def runtime(user):
    """The runtime, in a directory where the user can run it."""
    _, home = user
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    program = home / "containerkit-oci"
    try:
        subprocess.run([PYTHON, "-m", "containerkit.oci", "launcher", program], env=environment, check=True)
        subprocess.run([program, "--version"], user=54_321, group=54_321, extra_groups=[], check=True, cwd="/")
    except (PermissionError, subprocess.CalledProcessError):
        pytest.skip("an unprivileged user can't run this interpreter: name another in CONTAINERKIT_TEST_PYTHON")
    return program


@pytest.fixture(scope="module")
def environment(user, runtime):
    """A separate configuration and storage for the engines, with an image."""
    name, home = user
    needs_busybox()
    needs(("podman", "podman"), ("conmon", "conmon"))
    make_rootfs(home / "rootfs")
    subprocess.run(["tar", "-C", home / "rootfs", "-cf", home / "image.tar", "."], check=True)
    shutil.rmtree(home / "rootfs")
    (home / "containers.conf").write_text(
        '[containers]\ndefault_ulimits=["nofile=1024:1024","nproc=1024:1024"]\nnetns="none"\n'
        '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nruntime="ck"\nruntime_supports_nocgroup=["ck"]\n'
        f'[engine.runtimes]\nck=["{runtime}"]\n'
    )
    (home / "storage.conf").write_text(f'[storage]\ndriver="vfs"\ngraphroot="{home}/graph"\nrunroot="{home}/run"\n')
    (home / "runtime-dir").mkdir(mode=0o700)
    for path in (home, *home.iterdir()):
        shutil.chown(path, name)
    return {
        "CONTAINERS_CONF": str(home / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "runtime-dir"),
    }


@pytest.fixture(scope="module")
def podman(user, environment):
    name, home = user
    group = int(subprocess.run(["id", "-g", name], capture_output=True, check=True).stdout)
    engine = Engine(["podman"], environment, user=name, group=group, extra_groups=[], cwd=home)
    engine("import", home / "image.tar", "box")
    try:
        yield engine
    finally:
        engine("rm", "--all", "--force", "--time", "0")
        engine("rmi", "--all", "--force")
        pause = home / "runtime-dir/libpod/tmp/pause.pid"  # podman's own process, which keeps its namespaces
        os.kill(int(pause.read_text()), signal.SIGKILL)


@pytest.fixture
def buildah(podman, environment):
    needs(("buildah", "buildah"))
    return Engine(["buildah"], environment, **podman.more)


def test_podman_of_a_user_runs_a_container(podman):
    assert "0\n" == podman("run", "--rm", "box", "id", "-u")
    assert "1000\n" == podman("run", "--rm", "--user", "1000", "box", "id", "-u")
    podman("run", "--rm", "box", "sh", "-c", "exit 5", status=5)


def test_podman_of_a_user_gives_a_tmpfs_and_a_read_only_root(podman):
    script = "grep -c ' /scratch tmpfs' /proc/mounts; touch /scratch/a && echo written; touch /a 2>&1"
    out = podman("run", "--rm", "--read-only", "--tmpfs", "/scratch", "box", "sh", "-c", f"{script}; true")
    assert ["1", "written"] == out.splitlines()[:2]
    assert "Read-only file system" in out


def test_podman_of_a_user_runs_detached_and_execs(podman):
    podman("run", "--detach", "--name", "long", "box", "sleep", "100")
    assert "0\n" == podman("exec", "long", "id", "-u")
    assert "long\n" == podman("ps", "--format", "{{.Names}}")
    podman("rm", "--force", "--time", "0", "long")
    assert "" == podman("ps", "--all", "--quiet")


def test_podman_of_a_user_gives_a_terminal_and_binds(podman):
    assert "/dev/pts/0\n" == podman.on_terminal("run", "--rm", "-t", "box", "tty")
    assert Path("/etc/hostname").read_text() == podman(
        "run", "--rm", "--volume", "/etc/hostname:/name:ro", "box", "cat", "/name"
    )


def test_buildah_of_a_user_runs_a_command(buildah, runtime):
    name = buildah("from", "localhost/box").strip()
    try:
        out = buildah("run", "--runtime", runtime, "--isolation", "rootless", "--network", "host", name, "id", "-u")
        assert "0\n" == out
    finally:
        buildah("rm", name)

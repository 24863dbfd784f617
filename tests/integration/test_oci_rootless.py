"""The OCI runtime without the rights of the host's root: for an ordinary user, and inside a user namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from oci_bundles import Bundle, as_root, make_rootfs, needs_busybox

import containerkit
from containerkit.oci.specification import rootless

pytestmark = as_root

USER = 54_321
PYTHON = os.environ.get("CONTAINERKIT_TEST_PYTHON", sys.executable)
SOURCE = os.path.dirname(os.path.dirname(containerkit.__file__))


@pytest.fixture
def place():
    """A folder that everybody can reach."""
    needs_busybox()
    with tempfile.TemporaryDirectory(prefix="ck-oci-", dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def words(place, *verb):
    return [PYTHON, "-m", "containerkit.oci", "--root", str(place / "state"), *map(str, verb)]


def runs(prefix, command, cwd, **more):
    environment = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}
    return subprocess.run(
        [*prefix, *command], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, **more
    )


@pytest.fixture
def ordinary(place):
    """Run as an ordinary user in a bundle of its own."""
    probe = [PYTHON, "-c", "import containerkit.oci.kernel"]
    try:
        reachable = runs([], probe, "/", user=USER, group=USER, extra_groups=[]).returncode == 0
    except PermissionError:
        reachable = False
    if not reachable:
        pytest.skip("an ordinary user can't run this interpreter: name another in CONTAINERKIT_TEST_PYTHON")
    bundle = Bundle(place / "bundle", make_rootfs(place / "rootfs"))
    bundle.config = rootless(USER, USER)
    bundle.process.update(terminal=False)
    bundle.config["root"] = {"path": str(place / "rootfs"), "readonly": True}
    for folder, folders, files in os.walk(place):
        for name in (".", *folders, *files):
            os.chown(os.path.join(folder, name), USER, USER, follow_symlinks=False)

    def verb(*more, check=True):
        bundle.write()
        done = runs([], words(place, *more), bundle.path, user=USER, group=USER, extra_groups=[])
        assert done.returncode == 0 or not check, done.stderr
        return done

    verb.bundle = bundle
    return verb


def test_ordinary_user_runs_a_container(ordinary):
    ordinary.bundle.runs("id -u; cat /proc/self/uid_map; echo x >/dev/null && echo null; touch /x 2>&1; hostname")
    out = ordinary("run", "one").stdout
    assert ["0", "0", str(USER), "1", "null"] == out.split()[:5]
    assert "Read-only file system" in out
    assert out.endswith("containerkit\n")


def test_ordinary_user_execs_and_deletes(ordinary):
    ordinary.bundle.runs("sleep", "100")
    with open(os.devnull, "r+b") as nothing:
        ordinary.bundle.write()
        subprocess.run(
            words(Path(ordinary.bundle.path).parent, "run", "--detach", "one"),
            env={**os.environ, "PYTHONPATH": SOURCE}, cwd=ordinary.bundle.path, user=USER, group=USER, extra_groups=[],
            stdin=nothing, stdout=nothing, stderr=nothing, check=True,
        )  # fmt: skip
    assert "0\n" == ordinary("exec", "one", "id", "-u").stdout
    assert '"status": "running"' in ordinary("state", "one").stdout
    ordinary("delete", "--force", "one")
    assert "does not exist" in ordinary("state", "one", check=False).stderr


@pytest.mark.parametrize("flags", [("--user", "--map-root-user"), ("--user", "--map-root-user", "--mount")])
def test_root_of_a_user_namespace_runs_a_container(place, flags):
    if not shutil.which("unshare"):
        pytest.skip("no unshare: apt-get install util-linux")
    bundle = Bundle(place / "bundle", make_rootfs(place / "rootfs"))
    for mount in bundle.config["mounts"]:
        mount["options"] = [option for option in mount.get("options", []) if option != "gid=5"]
    bundle.runs("id -u; stat -c %t:%T /dev/null; ls /bin/busybox; cat /proc/self/uid_map")
    bundle.write()
    done = runs(["unshare", *flags], words(place, "run", "one"), bundle.path)
    assert done.returncode == 0, done.stderr
    assert ["0", "1:3", "/bin/busybox", "0", "0", "1"] == done.stdout.split()

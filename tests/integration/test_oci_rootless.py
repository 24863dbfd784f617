"""The OCI runtime without the privileges of the host's root: for an unprivileged user, and in a user namespace."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from oci_bundles import ONE, Bundle, as_root, make_rootfs, needs_busybox
from oci_engines import user_with_ids

import containerkit
from containerkit.oci.specification import rootless

pytestmark = as_root

USER = 54_321 + os.getpid() % 4000  # other test runs kill the processes of their own user
PYTHON = os.environ.get("CONTAINERKIT_TEST_PYTHON", sys.executable)
SOURCE = os.path.dirname(os.path.dirname(containerkit.__file__))


@pytest.fixture
def place():
    """A directory that every user can access."""
    needs_busybox()
    with tempfile.TemporaryDirectory(prefix="ck-oci-", dir="/var/tmp") as path:
        Path(path).chmod(0o755)
        yield Path(path)


def words(place, *verb):
    """Return a call of the program that engines start, where a test has one; otherwise of Python alone."""
    program = place / "runtime"
    command = [str(program)] if program.exists() else [PYTHON, "-m", "containerkit.oci"]
    return [*command, "--root", str(place / "state"), *map(str, verb)]


def runs(prefix, command, cwd, **more):
    environment = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/"}
    return subprocess.run(
        [*prefix, *command], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, **more
    )


@pytest.fixture
def ordinary(place):
    """Run as an unprivileged user in its own bundle."""
    probe = [PYTHON, "-c", "import containerkit.oci.kernel"]
    try:
        reachable = runs([], probe, "/", user=USER, group=USER, extra_groups=[]).returncode == 0
    except PermissionError:
        reachable = False
    if not reachable:
        pytest.skip("an ordinary user can't run this interpreter: name another in CONTAINERKIT_TEST_PYTHON")
    assert 0 == runs([], [PYTHON, "-m", "containerkit.oci", "launcher", place / "runtime"], "/").returncode
    bundle = Bundle(place / "bundle", make_rootfs(place / "rootfs"))
    bundle.config = rootless(USER, USER)
    bundle.process.update(terminal=False)
    bundle.config["root"] = {"path": str(place / "rootfs"), "readonly": True}
    for directory, directories, files in os.walk(place):
        for name in (".", *directories, *files):
            os.chown(os.path.join(directory, name), USER, USER, follow_symlinks=False)

    def verb(*more, check=True):
        bundle.write()
        done = runs([], words(place, *more), bundle.path, user=USER, group=USER, extra_groups=[])
        assert done.returncode == 0 or not check, done.stderr
        return done

    verb.bundle = bundle
    return verb


def test_unprivileged_user_runs_a_container(ordinary):
    ordinary.bundle.runs("id -u; cat /proc/self/uid_map; echo x >/dev/null && echo null; touch /x 2>&1; hostname")
    out = ordinary("run", ONE).stdout
    assert ["0", "0", str(USER), "1", "null"] == out.split()[:5]
    assert "Read-only file system" in out
    assert out.endswith("containerkit\n")


def test_unprivileged_user_execs_and_deletes(ordinary):
    ordinary.bundle.runs("sleep", "100")
    with open(os.devnull, "r+b") as nothing:
        ordinary.bundle.write()
        subprocess.run(
            words(Path(ordinary.bundle.path).parent, "run", "--detach", ONE),
            env={**os.environ, "PYTHONPATH": SOURCE}, cwd=ordinary.bundle.path, user=USER, group=USER, extra_groups=[],
            stdin=nothing, stdout=nothing, stderr=nothing, check=True,
        )  # fmt: skip
    assert "0\n" == ordinary("exec", ONE, "id", "-u").stdout
    assert '"status": "running"' in ordinary("state", ONE).stdout
    assert "already running" in ordinary("start", ONE, check=False).stderr
    assert "" == ordinary("kill", ONE, "0").stderr
    ordinary("delete", "--force", ONE)
    assert "does not exist" in ordinary("state", ONE, check=False).stderr


def test_unprivileged_user_sees_the_hosts_sysfs_with_its_network(ordinary):
    linux = ordinary.bundle.linux
    linux["namespaces"] = [each for each in linux["namespaces"] if each["type"] != "network"]
    mounts = [each for each in ordinary.bundle.config["mounts"] if each["destination"] != "/sys"]
    sysfs = {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid", "noexec", "nodev"]}
    ordinary.bundle.config["mounts"] = [*mounts, sysfs]
    ordinary.bundle.runs("ls /sys/class/net; ls /sys/fs/cgroup; touch /sys/x 2>&1; true")
    out = ordinary("run", ONE).stdout
    assert set(os.listdir("/sys/class/net")) <= set(out.split())
    assert out.endswith("touch: /sys/x: Read-only file system\n")


@pytest.mark.parametrize("flags", [("--user", "--map-root-user"), ("--user", "--map-root-user", "--mount")])
def test_root_of_a_user_namespace_runs_a_container(place, flags):
    if not shutil.which("unshare"):
        pytest.skip("no unshare: apt-get install util-linux")
    bundle = Bundle(place / "bundle", make_rootfs(place / "rootfs"))
    for mount in bundle.config["mounts"]:
        mount["options"] = [option for option in mount.get("options", []) if option != "gid=5"]
    bundle.runs("id -u; stat -c %t:%T /dev/null; ls /bin/busybox; cat /proc/self/uid_map")
    bundle.write()
    done = runs(["unshare", *flags], words(place, "run", ONE), bundle.path)
    assert done.returncode == 0, done.stderr
    assert ["0", "1:3", "/bin/busybox", "0", "0", "1"] == done.stdout.split()


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv: apt-get install util-linux")
@pytest.mark.parametrize("prefix", [[], ["setpriv", "--bounding-set=-mknod"]], ids=["with", "without"])
def test_nodes_are_those_that_are_there_where_none_may_be_made(place, prefix):
    bundle = Bundle(place / "bundle", make_rootfs(place / "rootfs"))
    bundle.runs("stat -c %t:%T /dev/null; echo x >/dev/null && grep -c ' /dev/null ' /proc/self/mountinfo")
    bundle.write()
    done = runs(prefix, words(place, "run", ONE), bundle.path)
    assert ["1:3", "1" if prefix else "0"] == done.stdout.split(), done.stderr


def test_limit_without_a_control_group_of_the_users_own_is_refused(ordinary):
    ordinary.bundle.linux["resources"] = {"pids": {"limit": 20}}
    told = ordinary("run", ONE, check=False).stderr
    assert "linux.resources.pids.limit: can't be enforced: this user may not make control groups here" in told
    assert "does not exist" in ordinary("state", ONE, check=False).stderr


def test_device_rules_bind_nobody_who_can_make_no_device(ordinary):
    ordinary.bundle.linux["resources"] = {"devices": [{"allow": False, "access": "rwm"}]}
    ordinary.bundle.runs("mknod /dev/own c 1 3 2>&1; echo x >/dev/null && echo null")
    assert ["mknod: /dev/own: Operation not permitted", "null"] == ordinary("run", ONE).stdout.splitlines()


def has_offsets(bundle):
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {
        "monotonic": {"secs": 7881, "nanosecs": 2_718_281},
        "boottime": {"secs": 1_000_000},
    }
    bundle.runs("cat /proc/self/timens_offsets; cat /proc/uptime")


def sees_offsets(text):
    lines = text.splitlines()
    assert [["monotonic", "7881", "2718281"], ["boottime", "1000000", "0"]] == [line.split() for line in lines[:2]]
    assert float(lines[2].split()[0]) >= 1_000_000


def test_unprivileged_user_has_a_time_namespace_with_offsets(ordinary):
    has_offsets(ordinary.bundle)
    sees_offsets(ordinary("run", ONE).stdout)


def test_time_offsets_where_the_users_own_id_is_not_inside(ordinary):
    """No user of the namespace can then read the sealed init, and its files below /proc belong to the host's root."""
    with user_with_ids("time", 1_600_000_000) as (name, home):
        user = pwd.getpwnam(name)
        bundle = Bundle(home / "bundle", make_rootfs(home / "rootfs"))
        bundle.config = rootless(user.pw_uid, user.pw_gid)
        bundle.process.update(terminal=False)
        bundle.config["root"] = {"path": str(home / "rootfs"), "readonly": True}
        (ids,) = [line for line in Path("/etc/subuid").read_text().splitlines() if line.startswith(f"{name}:")]
        for which in ("uidMappings", "gidMappings"):
            bundle.linux[which] = [{"containerID": 0, "hostID": int(ids.split(":")[1]), "size": 65_536}]
        has_offsets(bundle)
        bundle.write()
        for directory, directories, files in os.walk(home):
            for each in (".", *directories, *files):
                os.chown(os.path.join(directory, each), user.pw_uid, user.pw_gid, follow_symlinks=False)
        who = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        done = runs([], words(home, "run", ONE), bundle.path, **who)
        assert 0 == done.returncode, done.stderr
        sees_offsets(done.stdout)

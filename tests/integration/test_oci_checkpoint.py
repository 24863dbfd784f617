"""``checkpoint`` and ``restore`` by a CRIU that supports this kernel. CONTAINERKIT_CRIU names it."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from oci_bundles import ONE, RUN, TWO, Bundle, as_root, make_rootfs, oci, rootfs  # noqa: F401 - fixtures

from containerkit.oci.cgroups import hierarchies

CRIU = os.environ.get("CONTAINERKIT_CRIU", "")

COUNTS = (
    "i=0; while true; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; "
    "test -e /tmp/stop && exit 7; sleep 0.05; done"
)


def why_not():
    if not CRIU:
        return "CONTAINERKIT_CRIU names no criu of version 4: Debian 12's 3.17 fails on the vDSO of newer kernels"
    checked = subprocess.run([CRIU, "check"], capture_output=True, text=True, check=False)
    return f"criu check: {checked.stderr.strip()}" if checked.returncode else ""


pytestmark = [*as_root, pytest.mark.skipif(bool(reason := why_not()), reason=reason)]


@pytest.fixture
def criu(oci):
    """A runtime that uses that CRIU."""
    oci.words += ["--criu", CRIU]
    return oci


@pytest.fixture
def own(tmp_path, rootfs):
    return make_rootfs(tmp_path / "own")


@pytest.fixture
def bundle(tmp_path, own):
    return Bundle(tmp_path / "bundle", own).runs(COUNTS)


def count(root):
    return int((root / "tmp/count").read_text())


def goes_on(root, seconds=10):
    before, end = count(root), time.monotonic() + seconds
    while count(root) <= before:
        assert time.monotonic() < end, "it does not count on"
        time.sleep(0.02)


def start(criu, bundle):
    criu.start_one(bundle)
    root = Path(bundle.config["root"]["path"])
    while not (root / "tmp/count").exists():
        time.sleep(0.02)
    return root


def test_container_goes_on_where_it_was(criu, bundle, tmp_path):
    root = start(criu, bundle)
    criu("checkpoint", "--image-path", tmp_path / "images", ONE)
    criu.wait()
    reached = count(root)
    assert (tmp_path / "images/dump.log").exists()
    criu("delete", ONE)
    criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", "--detach", TWO)
    assert "running" == criu.status(TWO)
    goes_on(root)
    assert count(root) > reached
    assert (tmp_path / "images/restore.log").exists()
    assert "9\n" == criu("exec", TWO, "sh", "-c", "echo $((4+5))").stdout
    criu("pause", TWO)
    criu("resume", TWO)
    criu("delete", "--force", TWO)


def test_container_is_held_as_before(criu, bundle, tmp_path):
    """Namespaces, control groups, limits, filter, masks and capabilities are restored."""
    bundle.linux["resources"] = {"pids": {"limit": 30}}
    bundle.linux["cgroupsPath"] = f"/{ONE}"
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}],
    }
    seen = (
        "grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/1/status; wc -c </proc/keys; cat /proc/1/cgroup; mkdir /tmp/a 2>&1"
    )
    start(criu, bundle)
    before = criu("exec", ONE, "sh", "-c", f"{seen}; true").stdout
    criu("checkpoint", "--image-path", tmp_path / "images", ONE)
    criu.wait()
    criu("delete", ONE)
    bundle.linux["cgroupsPath"] = f"/{TWO}"
    bundle.write()
    criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", "--detach", TWO)
    assert before == criu("exec", TWO, "sh", "-c", f"{seen}; true").stdout
    pid = criu.state(TWO)["pid"]
    own = {os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "net", "ipc", "uts", "mnt", "cgroup")}
    assert not own & {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "net", "ipc", "uts", "mnt", "cgroup")}
    groups = Path(f"/proc/{pid}/cgroup").read_text()
    assert f":/{TWO}\n" in groups
    assert f":/{ONE}\n" not in groups
    assert "30" == next(Path("/sys/fs/cgroup").glob(f"**/{TWO}/pids.max")).read_text().strip()
    criu("delete", "--force", TWO)


def test_groups_of_others_are_not_made_again(criu, bundle, tmp_path):
    """The container is in the root of version 2 and of unmounted hierarchies, where others have groups."""
    roots = [each.mountpoint for each in hierarchies() if each.version == 2]
    if not roots:
        pytest.skip("version 2 of cgroups is not mounted")
    strangers = Path(roots[0]) / f"stranger-{RUN}"
    strangers.mkdir()
    try:
        start(criu, bundle)
        criu("checkpoint", "--image-path", tmp_path / "images", ONE)
        criu.wait()
        criu("delete", ONE)
    finally:
        strangers.rmdir()
    assert strangers.name.encode() not in (tmp_path / "images/cgroup.img").read_bytes()
    criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", "--detach", ONE)
    assert "running" == criu.status(ONE)
    assert not list(Path(roots[0]).glob(f"**/{strangers.name}"))
    criu("delete", "--force", ONE)


def test_group_of_version_2_is_the_new_one(criu, bundle, tmp_path):
    if not any(each.version == 2 for each in hierarchies()):
        pytest.skip("version 2 of cgroups is not mounted")
    bundle.linux["resources"] = {"unified": {"cgroup.max.depth": "7"}}
    bundle.linux["cgroupsPath"] = f"/{ONE}"
    start(criu, bundle)
    criu("checkpoint", "--image-path", tmp_path / "images", ONE)
    criu.wait()
    criu("delete", ONE)
    bundle.linux["cgroupsPath"] = f"/{TWO}"
    bundle.write()
    criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", "--detach", TWO)
    assert f"0::/{TWO}\n" in Path(f"/proc/{criu.state(TWO)['pid']}/cgroup").read_text()
    criu("delete", "--force", TWO)


def test_bundle_elsewhere_has_other_sources(criu, bundle, own, tmp_path):
    (tmp_path / "first").write_text("first\n")
    (tmp_path / "second").write_text("second\n")
    (own / "etc/name").symlink_to("../run/made/name")
    bundle.mounts("/etc/name", "bind", str(tmp_path / "first"), "rbind", "ro")
    start(criu, bundle)
    assert "first\n" == criu("exec", ONE, "cat", "/etc/name").stdout
    criu("checkpoint", "--image-path", tmp_path / "images", ONE)
    criu.wait()
    criu("delete", ONE)
    other = bundle.clone(tmp_path / "elsewhere")
    other.config["mounts"][-1]["source"] = str(tmp_path / "second")
    other.config["root"]["path"] = str(make_rootfs(tmp_path / "other"))
    (tmp_path / "other/etc/name").symlink_to("../run/made/name")
    other.write()
    (tmp_path / "other/tmp/count").write_text("0")
    criu.quiet("restore", "--bundle", other.path, "--image-path", tmp_path / "images", "--detach", TWO)
    assert "second\n" == criu("exec", TWO, "cat", "/etc/name").stdout
    goes_on(tmp_path / "other")
    criu("delete", "--force", TWO)


@pytest.mark.parametrize("joined", [True, False])
def test_network_of_others_is_found_again(criu, bundle, tmp_path, joined):
    """As in a pod, and with the host's network."""
    bundle.linux["namespaces"] = [each for each in bundle.linux["namespaces"] if each["type"] != "network"]
    with subprocess.Popen(["unshare", "--net", "sleep", "100"]) as owner:
        try:
            path = f"/proc/{owner.pid if joined else 'self'}/ns/net"
            while joined and os.readlink(path) == os.readlink("/proc/self/ns/net"):
                time.sleep(0.01)
            if joined:
                bundle.linux["namespaces"].append({"type": "network", "path": path})
            root = start(criu, bundle)
            criu("checkpoint", "--image-path", tmp_path / "images", ONE)
            criu.wait()
            criu("delete", ONE)
            criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", "--detach", TWO)
            goes_on(root)
            assert os.readlink(path) == os.readlink(f"/proc/{criu.state(TWO)['pid']}/ns/net")
            criu("delete", "--force", TWO)
        finally:
            owner.kill()


def test_restore_in_the_foreground_has_the_exit_status(criu, bundle, tmp_path):
    root = start(criu, bundle)
    criu("checkpoint", "--image-path", tmp_path / "images", ONE)
    criu.wait()
    criu("delete", ONE)
    (root / "tmp/stop").touch()
    code, _ = criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", TWO, check=False)
    assert 7 == code
    assert "does not exist" in criu.refused("state", TWO)


def test_checkpoint_leaves_a_container_running_when_asked_to(criu, bundle, tmp_path):
    root = start(criu, bundle)
    criu("checkpoint", "--image-path", tmp_path / "images", "--leave-running", ONE)
    assert "running" == criu.status(ONE)
    goes_on(root)


def test_checkpoint_goes_on_from_one_before(criu, bundle, tmp_path):
    if subprocess.run([CRIU, "check", "--feature", "mem_dirty_track"], capture_output=True).returncode:
        pytest.skip("this kernel does not track changes of memory: CONFIG_MEM_SOFT_DIRTY")
    root = start(criu, bundle)
    criu("checkpoint", "--image-path", tmp_path / "before", "--pre-dump", ONE)
    goes_on(root)
    criu("checkpoint", "--image-path", tmp_path / "images", "--parent-path", "../before", ONE)
    criu.wait()
    criu("delete", ONE)
    criu.quiet("restore", "--bundle", bundle.path, "--image-path", tmp_path / "images", "--detach", TWO)
    goes_on(root)
    criu("delete", "--force", TWO)


def test_restore_that_fails_leaves_nothing(criu, bundle, tmp_path):
    bundle.write()
    told = criu.refused("restore", "--bundle", bundle.path, "--image-path", tmp_path / "missing", ONE)
    assert f"--image-path {tmp_path}/missing: no such directory" in told
    (tmp_path / "empty").mkdir()
    told = criu.refused("restore", "--bundle", bundle.path, "--image-path", tmp_path / "empty", ONE)
    assert "criu restore: exit status 1" in told
    assert f"see {tmp_path}/empty/restore.log" in told
    assert "does not exist" in criu.refused("state", ONE)

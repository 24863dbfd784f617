"""The results of the probe, compared with this host."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

from containerkit._linux import features, mountinfo, trials
from containerkit._linux.features import Feature, HostReport, probe
from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.errors import SetupError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")


@pytest.fixture(scope="module")
def report():
    return probe()


def cgroups():
    """Return the groups of trials only, because other processes create groups at the same time."""
    return [
        name
        for mount in mountinfo.read()
        if "cgroup" in mount.filesystem
        for name in os.listdir(mount.mount_point)
        if name.startswith("containerkit-probe-")
    ]


def test_probe_leaves_nothing_behind():
    def children():
        with open("/proc/thread-self/children") as file:
            return set(file.read().split())

    before = sorted(os.listdir("/proc/self/fd")), mountinfo.read(), cgroups(), sorted(os.listdir("/mnt"))
    others = children()
    probe()
    assert before == (sorted(os.listdir("/proc/self/fd")), mountinfo.read(), cgroups(), sorted(os.listdir("/mnt")))
    assert children() <= others


def test_probe_names_this_machine(report):
    assert (os.uname().release, os.uname().machine) == (report.kernel, report.machine)


def test_probe_tries_each_feature(report):
    names = {feature.name for feature in report.features}
    assert names == {field.name for field in attrs.fields(HostReport) if field.type == "Feature"}
    assert set(trials.TRIALS) | {"id_map_helpers"} == names | {"privileged"}
    for feature in report.features:
        assert "did not end" not in feature.detail
        assert "canceled" not in feature.detail


def test_probe_hints_at_a_remedy_for_what_is_missing_alone(report):
    assert [bool(feature.hint) for feature in report.features] == [not feature for feature in report.features]
    assert [feature for feature in report.features if not feature.available] == list(report.missing)


def test_probe_prints_a_line_for_each(report):
    head, *lines = str(report).splitlines()
    assert f"Linux {report.kernel} on {report.machine}, with" in head
    assert [feature.title for feature in report.features] == [
        line[4:].split(" (hint")[0].split(":")[0] for line in lines
    ]
    assert {"yes", "no"} >= {line.split()[0] for line in lines}


def test_probe_report_is_a_value(report):
    assert report == pickle.loads(pickle.dumps(report))
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        report.kernel = ""


@needs_root
def test_probe_agrees_with_what_root_does_here(report):
    assert report.privileged
    pid = calls.clone(k.CLONE_NEWUTS)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    assert report.clone3
    assert {"mount", "uts", "ipc", "pid", "network"} <= report.namespace_kinds
    assert bool(report.landlock) == (report.landlock_abi > 0)
    assert bool(report.idmapped_mounts) == bool(report.idmapped_filesystems)


def test_probe_agrees_with_the_limit(report):
    limit = Path("/proc/sys/user/max_user_namespaces")
    assert (int(limit.read_text()) if limit.exists() else -1) == report.max_user_namespaces


IMPLICIT = {"devices", "freezer", "perf_event"}
"""The files that every group of version 2 has without a controller."""


@needs_root
def test_probe_names_the_controllers_that_groups_can_have(report):
    """In a separate process, because another test may have mounted a hierarchy privately, which this process keeps."""
    program = f"""
from containerkit import CGroup, UnsupportedError
from containerkit._linux.cgroupfs import offered_controllers
for name in {sorted(report.controllers)}:
    CGroup.create(controllers=["io" if name == "blkio" else name]).remove()
for name in sorted(set(offered_controllers()) - {set(report.controllers | IMPLICIT)}):
    try:
        CGroup.create(controllers=["io" if name == "blkio" else name]).remove()
    except UnsupportedError:
        continue
    raise SystemExit(f"a group has {{name}}, of which the probe knows nothing")
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert report.cgroup1 or report.cgroup2 or not report.controllers


@needs_root
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_probe_promises_no_groups_to_a_user_who_can_make_none():
    program = """
from containerkit import Limits, UnsupportedError, probe, run
report = probe()
print([bool(each) for each in (report.cgroup1, report.cgroup2, report.cgroup_kill)], sorted(report.controllers))
print([each.hint for each in report.missing if each.name == "cgroup2"])
try:
    run(["true"], limits=Limits(pids=50))
except UnsupportedError as error:
    print("refused")
"""
    user = ["setpriv", "--reuid=1500", "--regid=1500", "--clear-groups"]
    done = subprocess.run([*user, sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert "" == done.stderr
    told, hint, refused = done.stdout.splitlines()
    assert "[False, False, False] []" == told
    assert "delegated subtree" in hint or "mount cgroup2" in hint
    assert "refused" == refused


def probed_by(code):
    """Probe from another process. Return the names of missing features, and the hints."""
    program = f"{code}\nfrom containerkit._linux.features import probe\nr = probe()\nprint([(f.name, f.hint) for f in r.missing], r.privileged)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    missing, _, privileged = done.stdout.strip().rpartition(" ")
    return dict(eval(missing)), privileged == "True"


USERNS = {"user_namespaces", "nested_user_namespaces", "proc_in_user_namespace", "overlay_in_user_namespace"}


@needs_root
def test_probe_names_the_sysctl_that_forbids_user_namespaces():
    code = "t.enter_user_namespace(); t.write('/proc/sys/user/max_user_namespaces', '0')"
    missing, privileged = probed_by(f"from containerkit._linux import trial_steps as t; {code}")
    assert privileged
    assert set(missing) >= USERNS
    assert "sysctl user.max_user_namespaces=" in missing["user_namespaces"]


@needs_root
def test_probe_sees_a_limit_that_only_a_trial_can():
    """The limit of the outer namespace is used up, although the sysctl inside shows 2 billion."""
    code = "t.enter_user_namespace(); t.write('/proc/sys/user/max_user_namespaces', '1'); t.enter_user_namespace()"
    missing, privileged = probed_by(f"from containerkit._linux import trial_steps as t; {code}")
    assert privileged
    assert set(missing) >= USERNS
    assert "of an outer user namespace is reached" in missing["user_namespaces"]


@needs_root
def test_probe_sees_a_filter_that_forbids_calls():
    seccomp = (
        "import struct; from containerkit._native import calls, constants as k\n"
        # load the number; equal to openat2's: return errno ENOSYS; else allow
        f"insns = struct.pack('=HBBI', 0x20, 0, 0, 0) + struct.pack('=HBBI', 0x15, 0, 1, {k.SYSTEM_CALLS['openat2']})\n"
        "insns += struct.pack('=HBBI', 0x06, 0, 0, 0x00050026) + struct.pack('=HBBI', 0x06, 0, 0, 0x7FFF0000)\n"
        "import ctypes; buffer = ctypes.create_string_buffer(insns)\n"
        "calls.prctl(k.PR_SET_NO_NEW_PRIVS, 1)\n"
        "calls.prctl(22, 2, struct.pack('=H6xQ', 4, ctypes.addressof(buffer)))\n"
    )
    missing, _ = probed_by(seccomp)
    assert {"openat2", "system_calls"} == set(missing) - {feature.name for feature in probe().missing}
    assert "a seccomp filter of this process" in missing["openat2"]
    assert "--system-call-filter=openat2" in missing["system_calls"]


@needs_root
def test_probe_sees_a_filter_that_kills():
    seccomp = (
        "import struct; from containerkit._native import calls, constants as k\n"
        f"insns = struct.pack('=HBBI', 0x20, 0, 0, 0) + struct.pack('=HBBI', 0x15, 0, 1, {k.SYSTEM_CALLS['openat2']})\n"
        "insns += struct.pack('=HBBI', 0x06, 0, 0, 0x80000000) + struct.pack('=HBBI', 0x06, 0, 0, 0x7FFF0000)\n"
        "import ctypes; buffer = ctypes.create_string_buffer(insns)\n"
        "calls.prctl(k.PR_SET_NO_NEW_PRIVS, 1)\n"
        "calls.prctl(22, 2, struct.pack('=H6xQ', 4, ctypes.addressof(buffer)))\n"
        "from containerkit._linux.features import probe\n"
        "print(probe().openat2.detail)"
    )
    done = subprocess.run([sys.executable, "-c", seccomp], capture_output=True, text=True, check=True)
    assert "killed by signal 31\n" == done.stdout


@needs_root
def test_probe_of_an_unprivileged_user():
    """The interpreter and the packages are copied to a directory that the user can read, without the extension."""
    python = shutil.which("python3", path="/usr/bin:/bin")
    setpriv = shutil.which("setpriv")
    if not python or not setpriv:
        pytest.skip("needs /usr/bin/python3 and setpriv")
    home = Path("/tmp") / f"containerkit-test-{os.getpid()}"
    shutil.copytree(
        Path(features.__file__).parents[1], home / "containerkit", ignore=shutil.ignore_patterns("*.so", "__pycache__")
    )
    for name in ("attr", "attrs"):
        shutil.copytree(Path(attrs.__file__).parents[1] / name, home / name)
    try:
        code = "from containerkit._linux.features import probe\nr = probe()\nprint(r.privileged, bool(r.user_namespaces) == bool(r.user_namespaces_unprivileged))\nprint(r)"
        done = subprocess.run(
            [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups", python, "-B", "-c", code],
            env={"PYTHONPATH": str(home)},
            capture_output=True,
            text=True,
            check=True,
            cwd="/",
        )
    finally:
        shutil.rmtree(home)
    assert "False True" == done.stdout.splitlines()[0]
    assert "without the privilege to make namespaces" in done.stdout


def test_probe_in_time():
    """Trials that ended before the deadline count. The others are missing."""
    report = probe(timeout=60)
    assert report.clone3
    with pytest.raises(SetupError, match="the trials printed nothing"):
        probe(timeout=0.000_001)


def test_probe_without_an_interpreter_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(SetupError, match="the trials need the Python interpreter"):
        probe()
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with pytest.raises(SetupError, match="the trials printed nothing"):
        probe()


@pytest.mark.parametrize(
    ("path", "content", "remedy"),
    [
        ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces="),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "AppArmor profile that allows userns"),
        ("", "", "CONFIG_USER_NS"),
    ],
)
def test_probe_names_the_rule_that_forbids_user_namespaces(monkeypatch, path, content, remedy):
    """No host has all of these rules, so the test provides the content of the files."""
    monkeypatch.setattr(features, "read_or_empty", lambda asked: content if asked == path else "")
    assert remedy in features._hint("user_namespaces", "needed", 1)
    assert "needed" == features._hint("overlay", "needed", 1)


def test_feature_is_true_when_it_is_there():
    there = Feature(name="x", title="an x", available=True, detail="v1")
    assert (True, "yes an x: v1") == (bool(there), str(there))
    missing = Feature(name="x", title="an x", available=False, detail="no such device", hint="buy one")
    assert (False, "no  an x: no such device (hint: buy one)") == (bool(missing), str(missing))

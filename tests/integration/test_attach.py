"""The library's view of a container that the OCI command has created."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from oci_bundles import ONE, TWO, as_root, bundle, oci, rootfs, try_python_alone  # noqa: F401 - fixtures

from containerkit import PIPE, Container, Limits, StateError
from containerkit.errors import SpecError

pytestmark = as_root
pytest_generate_tests = try_python_alone

KINDS = {
    "mnt": "mount", "pid": "pid", "net": "network", "ipc": "ipc", "uts": "uts", "user": "user", "cgroup": "cgroup",
    "time": "time",
}  # fmt: skip
ON_THE_WAY = "for kind in mnt pid net ipc uts user cgroup time; do readlink /proc/self/ns/$kind; done"


def namespaces(pid):
    return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS]


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


@pytest.fixture
def running(oci, bundle):
    """A container with its own host name."""
    bundle.config["hostname"] = "recorded"
    bundle.runs("sleep", "100")
    return oci.start_one(bundle)


def test_attached_container_reports_its_properties(oci, running):
    with Container.attach(ONE, oci.root) as c:
        assert (running, "running", ONE) == (c.pid, c.state, c.id)
        assert f"<Container {ONE} running, pid {running}>" == repr(c)
        assert [running] == c.members()
        assert ONE in c.cgroup.path
        assert c.stats() is not None


def test_attach_runs_commands_in_its_namespaces(oci, running):
    with Container.attach(ONE, oci.root) as c:
        done = c.run(["sh", "-c", f"hostname; {ON_THE_WAY}"], text=True)
    assert (0, "") == (done.returncode, done.stderr)
    assert ["recorded", *namespaces(running)] == done.stdout.split()


def test_attach_joins_every_kind(oci, bundle):
    bundle.has_user_namespace()
    bundle.linux["namespaces"] += [{"type": "time"}]
    if not any(each["type"] == "cgroup" for each in bundle.linux["namespaces"]):
        bundle.linux["namespaces"] += [{"type": "cgroup"}]
    pid = oci.start_one(bundle.runs("sleep", "100"))
    assert not set(namespaces(pid)) & set(namespaces("self"))
    with Container.attach(ONE, oci.root) as c:
        done = c.run(["sh", "-c", ON_THE_WAY], text=True)
        assert namespaces(pid) == done.stdout.split()
        for file, kind in KINDS.items():
            with c.namespace(kind) as namespace:
                assert os.stat(f"/proc/{pid}/ns/{file}").st_ino == os.fstat(namespace.fileno()).st_ino
        # The user inside must own the pipes to open them again by name.
        assert "again\n" == c.run(["sh", "-c", "echo again >/dev/stdout"], user="1000:1000", text=True).stdout


def test_attach_holds_commands_as_the_library_does(oci, running):
    with Container.attach(ONE, oci.root) as c:
        status = c.run(["cat", "/proc/self/status"], text=True).stdout
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
    with Container.attach(ONE, oci.root, seccomp=None) as c:
        assert "Seccomp:\t0" in c.run(["cat", "/proc/self/status"], text=True).stdout


def test_attach_puts_commands_into_its_control_groups(oci, bundle):
    bundle.linux["resources"] = {"pids": {"limit": 30}}
    pid = oci.start_one(bundle.runs("sleep", "100"))
    with open(f"/proc/{pid}/cgroup") as file:
        wanted = file.read()
    with Container.attach(ONE, oci.root) as c, c.popen(["sleep", "100"]) as p:
        with open(f"/proc/{p.pid}/cgroup") as file:
            limited = [line for line in wanted.splitlines() if f"/{ONE}" in line]
            assert limited
            assert set(limited) <= set(file.read().splitlines())
        assert {pid, p.pid} == set(c.members())
        p.kill()
    # The end of a command does not end the container.
    assert "running" == oci.status(ONE)


def test_attach_talks_with_a_process(oci, running):
    with Container.attach(ONE, oci.root) as c:
        with c.popen(["cat"], stdin=PIPE, stdout=PIPE, text=True) as p:
            assert ("hello", None) == p.communicate("hello")
        with c.popen(["sh", "-c", "test -t 0 && echo terminal"], pty=True, text=True) as p:
            assert "terminal" == p.stdout.readline().strip()


def test_attach_reads_and_writes_its_files(oci, running, bundle):
    with Container.attach(ONE, oci.root) as c:
        c.files.write("/tmp/attached", "text")
        assert "text" == c.files.read_text("/tmp/attached")
        assert "text" == c.run(["cat", "/tmp/attached"], text=True).stdout
        assert ["attached"] == [name for name in c.files.listdir("/tmp") if name == "attached"]
        assert "worker" in c.files.read_text("/etc/passwd")
        assert "1000:1000" == c.run(["sh", "-c", "echo $(id -u):$(id -g)"], user="worker", text=True).stdout.strip()
        c.run(["rm", "/tmp/attached"], check=True)


def test_attach_lets_go_and_leaves_it_running(oci, running):
    with Container.attach(ONE, oci.root) as c:
        c.run(["true"], check=True)
    before = descriptors()
    with Container.attach(ONE, oci.root) as c:
        c.run(["true"], check=True)
        c.namespace("time").close()
    c.stop()
    assert before == descriptors()
    assert ("detached", f"<Container {ONE} detached>") == (c.state, repr(c))
    assert "running" == oci.status(ONE)
    with pytest.raises(StateError, match="it does not run"):
        c.run(["true"])


def test_attach_outlived_by_a_process_it_started(oci, running):
    with Container.attach(ONE, oci.root) as c:
        p = c.popen(["sleep", "100"])
    assert p.poll() is None
    p.kill()
    assert -9 == p.wait()


def test_attach_refuses_an_unknown_container(oci, running):
    before = descriptors()
    with pytest.raises(StateError, match=rf"'{TWO}' does not exist: 'containerkit ps --all --root"):
        Container.attach(TWO, oci.root)
    with pytest.raises(StateError, match=r"invalid container id '\.\./one'"):
        Container.attach("../one", oci.root)
    with pytest.raises(SpecError, match="'hostname'"):
        Container.attach(ONE, oci.root, hostname="x")
    assert before == descriptors()


def test_attach_refuses_a_stopped_container(oci, bundle):
    oci.start_one(bundle.runs("sleep", "100"))
    before = descriptors()
    with Container.attach(ONE, oci.root) as c:
        oci("kill", ONE, "KILL")
        oci.wait()
        assert "stopped" == c.state
        with pytest.raises(StateError, match="it has stopped"):
            c.run(["true"])
    with pytest.raises(StateError, match=rf"'{ONE}' has stopped: 'containerkit-oci delete {ONE}'"):
        Container.attach(ONE, oci.root)
    assert before == descriptors()


def test_attach_sees_a_pause_and_leaves_it_to_the_command(oci, running):
    with Container.attach(ONE, oci.root) as c:
        with pytest.raises(StateError, match=rf"containerkit-oci --root \S+ pause {ONE}"):
            c.pause()
        with pytest.raises(StateError, match=rf"containerkit-oci --root \S+ update {ONE}"):
            c.update(Limits(pids=10))
        with pytest.raises(StateError, match="its root was made by another"):
            c.changes()
        oci("pause", ONE)
        try:
            assert "paused" == c.state
            with pytest.raises(StateError, match=rf"containerkit-oci --root \S+ resume {ONE}"):
                c.run(["true"])
        finally:
            oci("resume", ONE)
        assert 0 == c.run(["true"]).returncode
        with pytest.raises(StateError, match="started before"):
            c.start()


def test_attach_to_a_container_that_waits_for_its_start(oci, bundle):
    oci.create(bundle.runs("sleep", "100"))
    with Container.attach(ONE, oci.root) as c:
        assert "created" == c.state
        assert 0 == c.run(["true"]).returncode
        oci("start", ONE)
        assert "running" == c.state


def ps(*words):
    shown = subprocess.run(
        [sys.executable, "-m", "containerkit", "ps", *words], capture_output=True, text=True, timeout=60, check=True
    )
    assert "" == shown.stderr
    return shown.stdout


def test_ps_lists_recorded_containers(oci, bundle, running):
    other = bundle.clone(bundle.path.parent / "other").runs("true")
    oci.start_one(other, TWO)
    oci.wait(TWO)
    one, two = oci.state(ONE), oci.state(TWO)
    head, *rows = ps("--root", oci.root).splitlines()
    assert ["ID", "PID", "STATUS", "BUNDLE", "CREATED"] == head.split()
    assert [[ONE, str(running), "running", str(bundle.path), one["created"]]] == [row.split() for row in rows]
    listed = json.loads(ps("--all", "--json", "--root", oci.root))
    assert [(ONE, running, "running"), (TWO, 0, "stopped")] == [
        (each["id"], each["pid"], each["status"]) for each in listed
    ]
    assert {"id", "pid", "status", "bundle", "created"} == set(listed[1])
    assert two["created"] == listed[1]["created"]


def test_ps_of_nothing(tmp_path):
    assert "ID  PID  STATUS  BUNDLE  CREATED\n" == ps("--root", str(tmp_path / "none"))
    assert [] == json.loads(ps("--json", "--root", str(tmp_path / "none")))


def test_ps_of_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    words = [sys.executable, "-m", "containerkit", "ps", "--root", str(tmp_path / "file")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (125, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"containerkit: open {tmp_path}/file: Not a directory (hint: --root")

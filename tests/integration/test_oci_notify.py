"""``NOTIFY_SOCKET``: a container tells the service manager of the runtime's caller that it is ready."""

# ruff: noqa: F811 - fixtures are taken by their names

from __future__ import annotations

import shutil
import subprocess

import pytest
from oci_bundles import ONE, RUN, TWO, as_root, bundle, oci, rootfs  # noqa: F401 - fixtures
from oci_notify import Manager, say  # noqa: F401 - fixtures

pytestmark = as_root


@pytest.fixture
def shared(tmp_path, say):
    """A directory that is /tmp in the container."""
    (tmp_path / "shared").mkdir()
    shutil.copy(say, tmp_path / "shared")
    return tmp_path / "shared"


@pytest.fixture
def service(bundle, shared):
    """A bundle whose program may use the socket."""
    bundle.process["env"] = ["PATH=/bin:/tmp"]
    return bundle.mounts("/tmp", "bind", str(shared), "bind")


@pytest.fixture
def manager(oci, tmp_path):
    oci.environment["NOTIFY_SOCKET"] = str(tmp_path / "manager")
    listening = Manager(str(tmp_path / "manager"))
    with listening.socket:
        yield listening


def starting(oci, name=ONE):
    return oci.popen("start", name, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WAITS = "until test -e /tmp/now; do sleep 0.02; done; say READY=1; exec sleep 100"


def test_start_waits_until_the_container_is_ready(oci, service, manager, shared):
    oci.create(service.runs(WAITS))
    with starting(oci) as start:
        oci.wait(ONE, "running")
        assert start.poll() is None
        (shared / "now").touch()
        messages = manager.heard()
        assert start.wait(30) == 0
        assert start.stderr.read() == ""
    assert [b"READY=1", b"MAINPID=%d" % oci.state(ONE)["pid"], b"BARRIER=1"] == messages


def test_manager_with_an_abstract_name_and_a_container_with_users_of_its_own(oci, service, shared):
    name = f"containerkit-test-{RUN}"
    oci.environment["NOTIFY_SOCKET"] = f"@{name}"
    listening = Manager(f"\0{name}")
    with listening.socket:
        oci.create(service.has_user_namespace().mounts("/run", "tmpfs", "tmpfs").runs(WAITS))
        with starting(oci) as start:
            (shared / "now").touch()
            assert [b"READY=1", b"MAINPID=%d" % oci.state(ONE)["pid"], b"BARRIER=1"] == listening.heard()
            assert start.wait(30) == 0
    assert "/run/notify/notify\n" == oci("exec", ONE, "sh", "-c", "ls /run/notify/*").stdout


def test_nothing_else_is_passed_on(oci, service, manager):
    """The manager would otherwise obey: it would watch another process, or keep descriptors."""
    service.runs("say MAINPID=1 FDSTORE=1 XREADY=1 READY=10 'STATUS=up\nREADY=1\nERRNO=2'; exec sleep 100")
    oci.create(service)
    with starting(oci) as start:
        assert [b"READY=1", b"MAINPID=%d" % oci.state(ONE)["pid"], b"BARRIER=1"] == manager.heard()
        assert start.wait(30) == 0


def test_run_in_the_foreground_stays_the_main_process(oci, service, manager):
    service.runs("say READY=1; read line; exit 7").write()
    with oci.popen("run", "--bundle", service.path, ONE, stdin=subprocess.PIPE) as run:
        assert [b"READY=1", b"BARRIER=1"] == manager.heard()
        run.stdin.close()
        assert run.wait(30) == 7


def test_container_that_ends_is_not_waited_for(oci, service, manager):
    oci.create(service.runs("true"))
    assert oci("start", ONE).stderr == ""
    assert oci.run(service.runs("false"), TWO, check=False).returncode == 1
    assert manager.heard_nothing()


def test_container_that_is_not_ready_can_be_deleted(oci, service, manager):
    oci.create(service.runs("sleep", "100"))
    with starting(oci) as start:
        oci.wait(ONE, "running")
        oci("delete", "--force", ONE)
        assert start.wait(30) == 0
    assert manager.heard_nothing()


def test_detached_run_returns_when_the_container_is_ready(oci, service, manager):
    service.runs("say READY=1; exec sleep 100").write()
    with oci.popen("run", "--detach", "--bundle", service.path, ONE, stdout=subprocess.DEVNULL) as run:
        messages = manager.heard()
        assert run.wait(30) == 0
    assert b"MAINPID=%d" % oci.state(ONE)["pid"] in messages


def test_manager_that_is_gone_is_a_warning(oci, service, tmp_path):
    oci.environment["NOTIFY_SOCKET"] = str(tmp_path / "nobody")
    done = oci.run(service.runs("say READY=1"))
    assert "warning: NOTIFY_SOCKET" in done.stderr
    assert "no such file or directory" in done.stderr


def test_socket_is_all_that_is_in_its_directory_and_nothing_can_be_written(oci, service, manager, tmp_path):
    place = tmp_path / "manager"
    done = oci.run(service.runs(f"ls {place}; touch {place}/x || rm {place}/notify || grep {place} /proc/mounts"))
    assert done.stdout.startswith("notify\n")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(done.stdout.split()[4].split(","))


def test_socket_of_the_configuration_is_left_to_its_writer(oci, service, manager):
    service.process["env"].append("NOTIFY_SOCKET=/run/other")
    done = oci.run(service.runs("echo $NOTIFY_SOCKET; grep -c notify /proc/mounts"), check=False)
    assert done.stdout == "/run/other\n0\n"


def test_without_a_manager_there_is_no_socket(oci, service):
    oci.environment.pop("NOTIFY_SOCKET", None)
    done = oci.run(service.runs("echo ${NOTIFY_SOCKET:-none}"))
    assert done.stdout == "none\n"


def test_version_names_systemd(oci):
    assert "+SYSTEMD" in oci("--version").stdout.split()

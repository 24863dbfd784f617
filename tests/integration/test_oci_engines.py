"""podman, containerd and Docker, as packaged by Debian, with this runtime.

Each engine uses directories and sockets of the test, and is stopped at its end.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from oci_bundles import RUN, as_root, groups_named
from oci_engines import (
    BOX,
    Engine,
    archive_of_engines,  # noqa: F401 - a fixture
    containerd_of,
    dockerd_of,
    eventually,
    needs,
    oci_archive,
    place_of_engines,  # noqa: F401 - a fixture
    remove_plain_groups,
    runtime_of_engines,  # noqa: F401 - a fixture
    unmount_below,
)
from oci_notify import Manager, say  # noqa: F401 - a fixture

from containerkit.oci.cgroups import hierarchies

pytestmark = as_root

GROUP = f"ck-engines-{RUN}"
"""The parent group of the engines' containers, instead of their default, which is shared on the machine."""


@pytest.fixture(scope="module", autouse=True)
def parent_groups():
    """Remove the control groups that engines create for their containers' groups, and leave behind."""
    yield
    for place in groups_named(GROUP):
        for directory, _, _ in os.walk(place, topdown=False):
            os.rmdir(directory)


# --- podman


class Podman(Engine):
    """podman, which accepts the parent of control groups only on the command line."""

    def __call__(self, *words, **more):
        return super().__call__(*self._below_a_group(words), **more)

    def on_terminal(self, *words):
        return super().on_terminal(*self._below_a_group(words))

    @staticmethod
    def _below_a_group(words):
        makes = {("run",): 1, ("pod", "create"): 2}
        count = makes.get(words[:1]) or makes.get(words[:2])
        if count is None or {"--pod", "--cgroups"} & set(words):
            return words  # in a pod the group belongs to the pod
        return *words[:count], "--cgroup-parent", f"/{GROUP}", *words[count:]


@pytest.fixture(autouse=True)
def _no_plain_groups():
    remove_plain_groups()
    yield
    remove_plain_groups()


@pytest.fixture(scope="module")
def podman(place, runtime, archive):
    needs(("podman", "podman"), ("conmon", "conmon"))
    home = place / "podman"
    home.mkdir()
    # Limits, because without CAP_SYS_RESOURCE none can be raised above the caller's.
    (home / "containers.conf").write_text(
        '[containers]\ndefault_ulimits=["nofile=1024:1024","nproc=1024:1024"]\nnetns="none"\n'
        '[engine]\ncgroup_manager="cgroupfs"\nevents_logger="file"\nruntime="ck"\nruntime_supports_nocgroup=["ck"]\n'
        f'lock_type="file"\ntmp_dir="{home}/tmp"\n'  # both are shared on the machine by default
        f'[engine.runtimes]\nck=["{runtime}"]\n'
    )
    (home / "storage.conf").write_text(f'[storage]\ndriver="vfs"\ngraphroot="{home}/graph"\nrunroot="{home}/run"\n')
    environment = {
        "CONTAINERS_CONF": str(home / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
    }
    engine = Podman(["podman"], environment)
    engine("import", archive, "box")
    yield engine
    engine("pod", "rm", "--all", "--force", "--time", "0")
    engine("rm", "--all", "--force", "--time", "0")
    engine("rmi", "--all", "--force")
    unmount_below(place)


def test_podman_runs(podman):
    assert "hello\n" == podman("run", "--rm", "box", "echo", "hello")
    podman("run", "--rm", "box", "sh", "-c", "exit 3", status=3)
    assert "given\n" == podman("run", "--rm", "-i", "box", "cat", input="given\n")


def test_podman_names_the_program_that_cannot_be_executed(podman):
    assert "not found" in podman("run", "--rm", "box", "nosuch", status=127, both=True)
    assert "permission denied" in podman("run", "--rm", "box", "/etc/passwd", status=126, both=True)


def test_podman_has_a_container_in_the_background(podman, tmp_path):
    podman("run", "-d", "--name", "d1", "box", "sh", "-c", "echo out; trap 'exit 7' TERM; while :; do sleep 0.1; done")
    eventually(lambda: podman("logs", "d1") == "out\n")
    assert "uid=1000(worker)" in podman("exec", "-u", "1000:1000", "d1", "id")
    assert "/tmp\nb\n" == podman("exec", "-e", "A=b", "-w", "/tmp", "d1", "sh", "-c", "pwd; echo $A")
    podman("exec", "d1", "sh", "-c", "exit 5", status=5)
    podman("exec", "d1", "nosuch", status=127)
    podman("exec", "-d", "d1", "sleep", "100")
    eventually(lambda: "sleep 100" in podman("top", "d1"))
    podman("pause", "d1")
    assert "paused" == podman("inspect", "d1", "--format", "{{.State.Status}}").strip()
    podman("unpause", "d1")
    assert "d1" in podman("stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "d1")
    (tmp_path / "file").write_text("copied")
    podman("cp", tmp_path / "file", "d1:/tmp/file")
    assert "copied" == podman("exec", "d1", "cat", "/tmp/file")
    podman("update", "--memory", "100m", "d1") if "update" in podman("--help") else None
    podman("stop", "d1")
    assert "7 exited" == podman("inspect", "d1", "--format", "{{.State.ExitCode}} {{.State.Status}}").strip()
    podman("start", "d1")
    podman("rm", "--force", "--time", "0", "d1")


def test_podman_kills(podman):
    podman("run", "-d", "--name", "k1", "box", "sleep", "100")
    podman("kill", "k1")
    assert "137\n" == podman("wait", "k1")
    podman("rm", "k1")


def test_podman_notifies_a_service_manager_when_the_container_is_ready(podman, say, tmp_path, monkeypatch):  # noqa: F811 - the fixture
    listening = Manager(str(tmp_path / "manager"))
    monkeypatch.setitem(podman.environment, "NOTIFY_SOCKET", str(tmp_path / "manager"))
    with listening.socket:
        words = ["run", "-d", "--name", "n1", "--sdnotify", "container", "-v", f"{say}:/say:ro", "box"]
        podman(*words, "sh", "-c", "test -S $NOTIFY_SOCKET && /say READY=1 && exec sleep 100")
        messages = []
        while not any(b"READY=1" in message.split(b"\n") for message in messages):
            messages.append(listening.socket.recv(4096))
    podman("rm", "--force", "--time", "0", "n1")


def test_podman_has_terminals(podman):
    assert "/dev/pts/0" in podman.on_terminal("run", "--rm", "-it", "box", "sh", "-c", "'tty; sleep 0.5'")
    podman("run", "-dt", "--name", "t1", "box", "sh")
    assert "/dev/pts/1" in podman.on_terminal("exec", "-it", "t1", "sh", "-c", "'tty; sleep 0.5'")
    podman("rm", "--force", "--time", "0", "t1")


def test_podman_options_of_security(podman):
    assert "uid=1000(worker) gid=1000(worker)" in podman("run", "--rm", "--user", "1000:1000", "box", "id")
    told = podman(
        "run", "--rm", "--cap-drop", "all", "--cap-add", "net_raw", "box", "grep", "CapEff", "/proc/self/status"
    )
    assert 1 << 13 == int(told.split()[1], 16)
    look = ("box", "grep", "-E", "Seccomp:|NoNew", "/proc/self/status")
    assert ["NoNewPrivs:", "0", "Seccomp:", "2"] == podman("run", "--rm", *look).split()
    assert ["NoNewPrivs:", "0", "Seccomp:", "0"] == podman(
        "run", "--rm", "--security-opt", "seccomp=unconfined", *look
    ).split()
    assert ["NoNewPrivs:", "1", "Seccomp:", "2"] == podman(
        "run", "--rm", "--security-opt", "no-new-privileges", *look
    ).split()
    assert "root\n" == podman("run", "--rm", "--privileged", "box", "sh", "-c", "test -e /dev/kmsg && echo root")


def test_podman_options_of_mounts(podman, tmp_path):
    told = podman("run", "--rm", "--read-only", "box", "sh", "-c", "touch /x 2>&1; touch /tmp/y && echo fine")
    assert "Read-only file system" in told
    assert told.endswith("fine\n")
    told = podman("run", "--rm", "--tmpfs", "/t:size=1m,noexec", "box", "grep", " /t ", "/proc/mounts")
    assert {"noexec", "size=1024k"} <= set(told.split()[3].split(","))
    (tmp_path / "file").write_text("mine\n")
    assert "mine\n" == podman(
        "run", "--rm", "-v", f"{tmp_path}:/v:ro", "box", "sh", "-c", "cat /v/file; touch /v/x 2>/dev/null; true"
    )
    podman("run", "--rm", "-v", f"{tmp_path}:/v:rw,noexec,rslave", "box", "touch", "/v/new")
    assert (tmp_path / "new").exists()
    assert "/dev/xnull" in podman("run", "--rm", "--device", "/dev/null:/dev/xnull", "box", "ls", "/dev/xnull")


def test_podman_options_of_limits(podman):
    script = (
        "cd /sys/fs/cgroup; cat pids/pids.max pids.max 2>/dev/null; "
        "cat memory/memory.limit_in_bytes memory.max 2>/dev/null; cat cpu/cpu.cfs_quota_us cpu.max 2>/dev/null; ulimit -n"
    )
    told = podman(
        "run",
        "--rm",
        "--pids-limit",
        "50",
        "--memory",
        "64m",
        "--cpus",
        "0.5",
        "--ulimit",
        "nofile=77:88",
        "--ulimit",
        "nproc=1024:1024",
        "box",
        "sh",
        "-c",
        script,
    )
    assert ["50", "67108864", "50000"] == told.split()[:3]
    assert "77" == told.split()[-1]
    assert "1\n" == podman(
        "run", "--rm", "--sysctl", "net.ipv4.ip_forward=1", "box", "cat", "/proc/sys/net/ipv4/ip_forward"
    )


def test_podman_has_an_init_and_health_checks(podman):
    if shutil.which("catatonit", path="/usr/libexec/podman:/usr/bin:/usr/local/bin"):
        assert "podman-init" in podman("run", "--rm", "--init", "box", "cat", "/proc/1/cmdline")
    podman("run", "-d", "--name", "h1", "--health-cmd", "true", "--health-interval", "disable", "box", "sleep", "100")
    podman("healthcheck", "run", "h1")
    podman("rm", "--force", "--time", "0", "h1")


def test_podman_pod_shares_namespaces(podman):
    podman(
        "pod",
        "create",
        "--name",
        "p1",
        "--share",
        "ipc,uts,net",
        "--infra-image",
        "box",
        "--infra-command",
        "sleep 1000",
        "--hostname",
        "poddy",
    )
    podman("run", "-d", "--pod", "p1", "--name", "a1", "box", "sleep", "100")
    podman("run", "-d", "--pod", "p1", "--name", "a2", "box", "sleep", "100")
    look = ("sh", "-c", "hostname; for n in ipc uts net; do readlink /proc/self/ns/$n; done")
    one, two = podman("exec", "a1", *look), podman("exec", "a2", *look)
    assert one == two
    assert one.startswith("poddy\n")
    podman("pod", "rm", "--force", "--time", "0", "p1")


def test_podman_user_namespace(podman):
    maps = ("--uidmap", "0:100000:2000", "--gidmap", "0:100000:2000")
    told = podman(
        "run", "--rm", *maps, "box", "sh", "-c", "id -u; cat /proc/self/uid_map; touch /root/x && stat -c %u /root/x"
    )
    assert ["0", "0", "100000", "2000", "0"] == told.split()


def test_podman_without_cgroups(podman):
    assert "out\n" == podman("run", "--rm", "--cgroups", "disabled", "box", "echo", "out")


@pytest.fixture
def podman_with_criu(podman, place):
    """podman, with a CRIU in its path that supports this kernel."""
    criu = os.environ.get("CONTAINERKIT_CRIU", "")
    if not criu:
        pytest.skip("CONTAINERKIT_CRIU names no criu of version 4: Debian 12's 3.17 fails on the vDSO of newer kernels")
    (place / "bin").mkdir(exist_ok=True)
    (place / "bin/criu").unlink(missing_ok=True)
    (place / "bin/criu").symlink_to(criu)
    return Podman(podman.words, {**podman.environment, "PATH": f"{place}/bin:{os.environ['PATH']}"})


_COUNTS = "i=0; while true; do i=$((i+1)); echo $i >/tmp/new; mv /tmp/new /tmp/count; echo $i; sleep 0.05; done"


@pytest.mark.parametrize("flags", [(), ("--tty",)], ids=["plain", "terminal"])
def test_podman_restores_a_container(podman_with_criu, flags):
    podman = podman_with_criu

    def count():
        return int(podman("exec", "counts", "sh", "-c", "sleep 0.2; cat /tmp/count"))

    podman("run", "--detach", *flags, "--name", "counts", "box", "sh", "-c", _COUNTS)
    reached = count()
    for _ in range(2):
        podman("container", "checkpoint", "counts")
        assert podman("ps", "--all", "--format", "{{.Status}}").startswith("Exited (0)")
        podman("container", "restore", "counts")
        before, reached = reached, count()
        assert before < reached < before + 100
    last = int(podman("logs", "--tail", "1", "counts"))
    eventually(lambda: int(podman("logs", "--tail", "1", "counts")) > last)
    podman("rm", "--force", "--time", "0", "counts")


def test_podman_restores_an_exported_container_under_another_name(podman_with_criu, place):
    podman = podman_with_criu
    podman("run", "--detach", "--name", "counts", "box", "sh", "-c", _COUNTS)
    podman("exec", "counts", "sleep", "0.5")
    podman("container", "checkpoint", "--export", place / "counts.tar", "counts")
    podman("rm", "--force", "--time", "0", "counts")
    podman("container", "restore", "--import", place / "counts.tar", "--name", "again")
    assert 2 < int(podman("exec", "again", "sh", "-c", "sleep 0.2; cat /tmp/count"))
    assert "again" in podman("exec", "again", "cat", "/etc/hosts")
    podman("rm", "--force", "--time", "0", "again")


# --- containerd


@pytest.fixture(scope="module")
def containerd(place):
    with containerd_of(place / "cd") as socket:
        yield socket


@pytest.fixture(scope="module")
def ctr(containerd, runtime, archive, place):
    """ctr with an image, which is imported from the archive."""
    engine = Engine(["ctr", "-a", containerd, "--namespace", GROUP])  # the parent of the groups has its name
    engine("image", "import", oci_archive(place, archive))
    engine.runs = ["--snapshotter", "native", "--runc-binary", runtime]
    yield engine
    for name in engine("task", "ls", "-q").split():
        engine("task", "rm", "--force", name)
    for name in engine("container", "ls", "-q").split():
        engine("container", "rm", name)


def test_containerd_runs(ctr):
    assert "hello\n" == ctr("run", "--rm", *ctr.runs, BOX, "c1", "echo", "hello")
    ctr("run", "--rm", *ctr.runs, BOX, "c1", "sh", "-c", "exit 4", status=4)
    assert "executable file not found" in ctr("run", "--rm", *ctr.runs, BOX, "c1", "nosuch", status=1, both=True)


def metrics(ctr, name):
    """Return the shim's report. It requires that every hierarchy of the kernel is mounted."""
    active = {line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    if active - {",".join(hierarchy.names) for hierarchy in hierarchies()}:
        return {}
    return dict(line.split(maxsplit=1) for line in map(str.strip, ctr("task", "metrics", name).splitlines()) if line)


def test_containerd_has_a_task(ctr):
    ctr("run", "-d", *ctr.runs, BOX, "c2", "sleep", "100")
    assert "uid=0(root)" in ctr("task", "exec", "--exec-id", "e1", "c2", "id")
    ctr("task", "exec", "--exec-id", "e2", "c2", "sh", "-c", "exit 6", status=6)
    ctr("task", "pause", "c2")
    assert "PAUSED" in ctr("task", "ls")
    ctr("task", "resume", "c2")
    assert "RUNNING" in ctr("task", "ls")
    assert "1" == metrics(ctr, "c2").get("pids.current", "1")
    assert 2 == len(ctr("task", "ps", "c2").splitlines())
    ctr("task", "kill", "--signal", "KILL", "c2")
    eventually(lambda: "STOPPED" in ctr("task", "ls"))
    ctr("task", "rm", "c2")
    ctr("container", "rm", "c2")


def test_containerd_has_a_terminal(ctr):
    assert "/dev/pts/0" in ctr.on_terminal("run", "-t", "--rm", *ctr.runs, BOX, "c3", "tty")


def test_containerd_limits_and_privileges(ctr):
    ctr("run", "-d", "--memory-limit", str(64 << 20), *ctr.runs, BOX, "c4", "sleep", "100")
    assert str(64 << 20) == metrics(ctr, "c4").get("memory.limit_in_bytes", str(64 << 20))
    ctr("task", "kill", "--signal", "KILL", "c4")
    eventually(lambda: "STOPPED" in ctr("task", "ls"))
    ctr("task", "rm", "c4")
    ctr("container", "rm", "c4")
    assert (
        "0000003fffffffff"[:4]
        == ctr("run", "--rm", "--privileged", *ctr.runs, BOX, "c5", "grep", "CapBnd", "/proc/self/status").split()[1][
            :4
        ]
    )


# --- Docker


@pytest.fixture(scope="module")
def docker(place, runtime, archive, containerd):
    # A separate network namespace, because the gossip port of a swarm is fixed.
    net = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    with dockerd_of(place / "dk", runtime, containerd, group=GROUP, net=net) as engine:
        engine("import", archive, "box")
        yield engine


NO_NET = ("--network", "none")


def test_docker_runs(docker):
    assert "hello\n" == docker("run", "--rm", *NO_NET, "box", "echo", "hello")
    docker("run", "--rm", *NO_NET, "box", "sh", "-c", "exit 3", status=3)
    docker("run", "--rm", *NO_NET, "box", "nosuch", status=127)
    docker("run", "--rm", *NO_NET, "box", "/etc/passwd", status=126)


def test_docker_has_a_container_in_the_background(docker):
    docker(
        "run",
        "-d",
        "--name",
        "d1",
        *NO_NET,
        "box",
        "sh",
        "-c",
        "echo out; trap 'exit 7' TERM; while :; do sleep 0.1; done",
    )
    eventually(lambda: docker("logs", "d1") == "out\n")
    assert "uid=0(root)" in docker("exec", "d1", "id")
    docker("exec", "d1", "sh", "-c", "exit 5", status=5)
    assert "trap" in docker("top", "d1")
    docker("pause", "d1")
    assert "paused" == docker("inspect", "d1", "--format", "{{.State.Status}}").strip()
    docker("unpause", "d1")
    docker("update", "--memory", "100m", "--memory-swap", "200m", "--pids-limit", "20", "d1")
    docker("restart", "-t", "1", "d1")
    docker("stop", "d1")
    assert "7" == docker("inspect", "d1", "--format", "{{.State.ExitCode}}").strip()
    docker("rm", "d1")


def test_docker_options(docker, tmp_path):
    assert "/dev/pts/0" in docker.on_terminal("run", "--rm", "-it", *NO_NET, "box", "tty")
    told = docker("run", "--rm", "--cap-drop", "all", *NO_NET, "box", "grep", "CapEff", "/proc/self/status")
    assert 0 == int(told.split()[1], 16)
    assert "docker-init" in docker("run", "--rm", "--init", *NO_NET, "box", "cat", "/proc/1/cmdline")
    told = docker(
        "run",
        "--rm",
        "--read-only",
        "--tmpfs",
        "/tmp",
        *NO_NET,
        "box",
        "sh",
        "-c",
        "touch /x 2>&1; touch /tmp/y && echo fine",
    )
    assert told.endswith("fine\n")
    docker("run", "--rm", "-v", f"{tmp_path}:/v", *NO_NET, "box", "touch", "/v/x")
    assert (tmp_path / "x").exists()
    assert "512\n" == docker("run", "--rm", "--ulimit", "nofile=512:512", *NO_NET, "box", "sh", "-c", "ulimit -n")
    docker(
        "run",
        "--rm",
        "-m",
        "20m",
        "--memory-swap",
        "20m",
        *NO_NET,
        "box",
        "sh",
        "-c",
        "x=$(head -c 99m /dev/zero | tr '\\0' a)",
        status=137,
    )


def test_docker_three_services_talk_through_a_volume_and_shared_namespaces(docker):
    docker("volume", "create", "shared")
    common = ("-v", "shared:/shared")
    docker(
        "run",
        "-d",
        "--name",
        "web",
        *NO_NET,
        *common,
        "box",
        "sh",
        "-c",
        "mkdir -p /www; echo page >/www/index.html; httpd -f -p 8080 -h /www",
    )
    docker(
        "run",
        "-d",
        "--name",
        "cache",
        "--network",
        "container:web",
        *common,
        "box",
        "sh",
        "-c",
        "until wget -qO /shared/page http://127.0.0.1:8080/; do sleep 0.1; done; sleep 100",
    )
    docker("run", "-d", "--name", "reader", *NO_NET, "--pid", "container:cache", *common, "box", "sleep", "100")
    eventually(lambda: "page" in docker("exec", "reader", "sh", "-c", "cat /shared/page 2>/dev/null; true"))
    docker("rm", "-f", "web", "cache", "reader")
    docker("volume", "rm", "shared")

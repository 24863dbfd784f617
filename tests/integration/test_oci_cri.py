"""Pods like those of a kubelet: containerd's CRI over its socket, with this runtime."""

from __future__ import annotations

import base64
import json
import os
import subprocess

import pytest
from cri import CRI, RefusedError
from oci_bundles import RUN, as_root, groups_named
from oci_engines import (
    BOX,
    Engine,
    archive_of_engines,  # noqa: F401 - a fixture
    eventually,
    needs,
    oci_archive,
    place_of_engines,  # noqa: F401 - a fixture
    runtime_of_engines,  # noqa: F401 - a fixture
    stop,
    unmount_below,
)

from containerkit.fleet.kubenode import configured
from containerkit.oci.cgroups import hierarchies

pytestmark = as_root

GROUP = f"ck-cri-{RUN}"
"""The control group of all pods, like a kubelet's kubepods."""

_CONFIGURATION = """
root = "{home}/root"
state = "{home}/state"
[grpc]
  address = "{home}/c.sock"
[ttrpc]
  address = "{home}/t.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  stream_server_port = "0"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{home}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""


def _network(home):
    ranges = [[{"subnet": "10.245.0.0/24"}]]
    addresses = {"type": "host-local", "dataDir": f"{home}/ipam", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [{"type": "ptp", "ipam": addresses}]}


@pytest.fixture(scope="module")
def socket(place, runtime, archive):
    """The socket of a containerd in a separate network namespace, which contains the veths and addresses of pods."""
    needs(("containerd", "containerd"), ("ctr", "containerd"), ("/usr/lib/cni/ptp", "containernetworking-plugins"))
    home = place / "cri"
    (home / "cni").mkdir(parents=True)
    (home / "cni/10-pods.conflist").write_text(json.dumps(_network(home)))
    common = _CONFIGURATION.format(home=home, image=BOX)
    (home / "config.toml").write_text(configured(f"version = 2\n{common}", runtime, records=f"{home}/oci"))
    path = os.environ["PATH"]
    if criu := os.environ.get("CONTAINERKIT_CRIU"):
        path = f"{os.path.dirname(criu)}:{path}"
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", "containerd", "-c"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            [*words, home / "config.toml"], stdout=log, stderr=log, env={**os.environ, "PATH": path}
        )
    try:
        eventually((home / "c.sock").exists, 60)
        yield home / "c.sock"
    finally:
        stop(process)
        unmount_below(place)
        for group in groups_named(GROUP):
            for directory, _, _ in os.walk(group, topdown=False):
                os.rmdir(directory)


@pytest.fixture(scope="module")
def ctr(socket, archive, place):
    engine = Engine(["ctr", "-a", socket, "--namespace", "k8s.io"])
    engine("image", "import", "--snapshotter", "native", oci_archive(place, archive))
    return engine


@pytest.fixture(scope="module")
def cri(socket, ctr):
    pytest.importorskip("grpc", reason="no grpcio: pip install grpcio protobuf")
    pytest.importorskip("google.protobuf", reason="no protobuf: pip install grpcio protobuf")
    client = CRI(str(socket), "/usr/bin/containerd")
    yield client
    client.close()


class Pod:
    """A sandbox and its containers."""

    def __init__(self, cri, name, logs, **sandbox):
        self.cri = cri
        self.security = {"namespace_options": {"network": "POD", "pid": "CONTAINER"}}
        self.config = {
            "metadata": {"name": name, "namespace": "default", "uid": f"{name}-{RUN}"},
            "hostname": name,
            "log_directory": str(logs),
            "labels": {"app": name},
            "linux": {"cgroup_parent": f"/{GROUP}", "security_context": self.security},
            **sandbox,
        }
        request = {"config": self.config, "runtime_handler": "containerkit"}
        self.id = cri("RunPodSandbox", request)["pod_sandbox_id"]

    def status(self):
        return self.cri("PodSandboxStatus", {"pod_sandbox_id": self.id})["status"]

    def create(self, name, *argv, **fields):
        linux = {"security_context": self.security, **fields.pop("linux", {})}
        config = {
            "metadata": {"name": name}, "image": {"image": BOX}, "command": list(argv), "log_path": f"{name}.log",
            "linux": linux, **fields,
        }  # fmt: skip
        request = {"pod_sandbox_id": self.id, "config": config, "sandbox_config": self.config}
        return self.cri("CreateContainer", request)["container_id"]

    def start(self, name, *argv, **fields):
        container = self.create(name, *argv, **fields)
        self.cri("StartContainer", {"container_id": container})
        return container

    def shell(self, container, script, timeout=30):
        """Return the output of a script in a container, which must succeed."""
        request = {"container_id": container, "cmd": ["sh", "-c", script], "timeout": timeout}
        done = self.cri("ExecSync", request)
        assert 0 == done["exit_code"], done
        return base64.b64decode(done["stdout"]).decode()

    def ended(self, container):
        """Wait for the end of a container, and return its status."""

        def status():
            return self.cri("ContainerStatus", {"container_id": container})["status"]

        eventually(lambda: "CONTAINER_EXITED" == status()["state"], 60)
        return status()

    def remove(self):
        self.cri("StopPodSandbox", {"pod_sandbox_id": self.id})
        self.cri("RemovePodSandbox", {"pod_sandbox_id": self.id})


@pytest.fixture
def pods(cri, tmp_path):
    """Creates pods. At the end no process, state, group or address of them is left."""
    made = []

    def make(name, **sandbox):
        made.append(Pod(cri, name, tmp_path / "logs", **sandbox))
        return made[-1]

    yield make
    for pod in made:
        pod.remove()
    assert [] == cri("ListPodSandbox")["items"]
    assert [] == cri("ListContainers")["containers"]
    for group in groups_named(GROUP):
        assert [] == [name for name in os.listdir(group) if os.path.isdir(f"{group}/{name}")]


def test_sandbox_is_made_by_this_runtime(pods, socket, cri):
    version = cri("Version")
    assert ("containerd", "v1") == (version["runtime_name"], version["runtime_api_version"])
    pod = pods("one")
    status = pod.status()
    assert ("SANDBOX_READY", "containerkit") == (status["state"], status["runtime_handler"])
    assert [pod.id] == os.listdir(socket.parent / "oci/k8s.io")  # the runtime's own record
    inside = pod.start("a", "sleep", "1000")
    assert {pod.id, inside} == set(os.listdir(socket.parent / "oci/k8s.io"))
    cri("StopPodSandbox", {"pod_sandbox_id": pod.id})
    assert "SANDBOX_NOTREADY" == pod.status()["state"]
    assert [] == os.listdir(socket.parent / "oci/k8s.io")


def test_pods_reach_each_other_and_their_containers_share_a_network(pods):
    one, two = pods("one"), pods("two")
    server = one.start("web", "sh", "-c", "mkdir /www && echo page >/www/index.html && exec httpd -f -p 8080 -h /www")
    client, beside = two.start("client", "sleep", "1000"), one.start("beside", "sleep", "1000")
    address = one.status()["network"]["ip"]
    wait = "until wget -qO- http://{}:8080/; do sleep 0.1; done"
    assert "page\n" == one.shell(beside, wait.format("127.0.0.1"))
    assert "page\n" == two.shell(client, wait.format(address))
    assert "one\n" == one.shell(server, "hostname")
    look = "for each in net ipc uts; do readlink /proc/self/ns/$each; done"
    assert one.shell(server, look) == one.shell(beside, look)
    assert one.shell(server, look) != two.shell(client, look)
    assert "httpd" not in one.shell(beside, "cat /proc/[0-9]*/comm")


def test_log_is_written_as_a_kubelet_reads_it(pods, tmp_path):
    pod = pods("one")
    container = pod.start("talks", "sh", "-c", "echo out; echo err >&2; printf unended; exit 3")
    status = pod.ended(container)
    assert (3, "Error") == (status["exit_code"], status["reason"])
    lines = [line.split(maxsplit=3)[1:] for line in (tmp_path / "logs/talks.log").read_text().splitlines()]
    assert {("stdout", "F", "out"), ("stderr", "F", "err")} <= set(map(tuple, lines))
    assert "unended" == [line for stream, *_, line in lines if stream == "stdout"][-1]  # the streams are not ordered


def test_exec_has_a_status_and_a_timeout(pods, cri):
    pod = pods("one")
    container = pod.start("a", "sleep", "1000")
    failed = cri("ExecSync", {"container_id": container, "cmd": ["sh", "-c", "echo no >&2; exit 5"], "timeout": 30})
    assert (5, b"no\n") == (failed["exit_code"], base64.b64decode(failed["stderr"]))
    with pytest.raises(RefusedError, match=r"timeout 1s exceeded"):
        cri("ExecSync", {"container_id": container, "cmd": ["sleep", "987"], "timeout": 1})
    assert "" == pod.shell(container, "pgrep -f '^sleep 987'; true")  # and it has ended
    with pytest.raises(RefusedError, match="executable file not found"):
        cri("ExecSync", {"container_id": container, "cmd": ["nosuch"], "timeout": 30})


def test_limits_are_written_counted_and_changed(pods, cri):
    pod = pods("one")
    resources = {"memory_limit_in_bytes": 64 << 20, "cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 512}
    container = pod.start("a", "sleep", "1000", linux={"resources": resources})
    group = groups_named(container)[0]
    assert group.endswith(f"/{GROUP}/{container}")

    def limit():
        for file in ("memory/memory.limit_in_bytes", "memory.max"):
            top, _, name = file.rpartition("/")
            path = os.path.join("/sys/fs/cgroup", top, GROUP, container, name)
            if os.path.exists(path):
                with open(path) as opened:
                    return int(opened.read())
        return None

    assert 64 << 20 == limit()
    cri("UpdateContainerResources", {"container_id": container, "linux": {"memory_limit_in_bytes": 32 << 20}})
    assert 32 << 20 == limit()
    if not _unmounted():
        stats = cri("ContainerStats", {"container_id": container})["stats"]
        assert 0 < int(stats["memory"]["working_set_bytes"]["value"]) < 32 << 20
        assert 0 < int(stats["cpu"]["usage_core_nano_seconds"]["value"])
        whole = cri("PodSandboxStats", {"pod_sandbox_id": pod.id})["stats"]["linux"]
        assert [container] == [each["attributes"]["id"] for each in whole["containers"]]
    full = pod.start("full", "sh", "-c", "x=$(head -c 99m /dev/zero | tr '\\0' a)", linux={"resources": resources})
    status = pod.ended(full)
    assert (137, True) == (status["exit_code"], status["reason"] in {"OOMKilled", "Error"})
    # containerd receives the kill and the end separately, and may report the reason before it knows of the kill.


def _unmounted():
    """Unmounted hierarchies of the kernel: containerd's shim requires all of them."""
    with open("/proc/self/cgroup") as file:
        active = {line.split(":")[1] for line in file}
    return active - {",".join(hierarchy.names) for hierarchy in hierarchies()}


def test_security_context_is_applied(pods, tmp_path):
    pod = pods("one")
    (tmp_path / "given").write_text("given\n")
    security = {
        **pod.security,
        "run_as_user": {"value": 1000},
        "run_as_group": {"value": 1000},
        "readonly_rootfs": True,
        "no_new_privs": True,
        "capabilities": {"drop_capabilities": ["ALL"]},
        "seccomp": {"profile_type": "RuntimeDefault"},
        "masked_paths": ["/proc/kcore", "/proc/keys"],
    }
    mounts = [{"container_path": "/given", "host_path": str(tmp_path / "given"), "readonly": True}]
    envs = [{"key": "A", "value": "b"}]
    container = pod.start("a", "sleep", "1000", linux={"security_context": security}, mounts=mounts, envs=envs)
    look = "id -u; id -g; echo $A; cat /given; touch /x 2>/dev/null || echo ro; grep -E 'CapEff|NoNew|Seccomp:' /proc/self/status"
    words = pod.shell(container, look).split()
    assert ["1000", "1000", "b", "given", "ro"] == words[:5]
    assert {"CapEff:": "0000000000000000", "NoNewPrivs:": "1", "Seccomp:": "2"} == dict(
        zip(words[5::2], words[6::2], strict=True)
    )


def test_stop_waits_for_the_grace_period(pods, cri):
    pod = pods("one")
    container = pod.start("polite", "sh", "-c", "trap 'exit 7' TERM; touch /ready; while :; do sleep 0.1; done")
    pod.shell(container, "until test -e /ready; do sleep 0.05; done")
    cri("StopContainer", {"container_id": container, "timeout": 60})
    assert 7 == pod.ended(container)["exit_code"]
    stubborn = pod.start("stubborn", "sleep", "1000")  # PID 1 ignores signals without a handler
    cri("StopContainer", {"container_id": stubborn, "timeout": 1})
    assert 137 == pod.ended(stubborn)["exit_code"]


def test_failure_to_start_is_reported(pods, cri):
    pod = pods("one")
    container = pod.create("a", "nosuch")
    with pytest.raises(RefusedError, match="executable file not found"):
        cri("StartContainer", {"container_id": container})


def test_daemon_has_no_checkpoint(pods, cri, tmp_path):
    """Of containerd 1.6 and 1.7. Newer ones ask the runtime as `ctr task checkpoint` does, which is tested below."""
    pod = pods("one")
    container = pod.start("a", "sleep", "1000")
    with pytest.raises(RefusedError, match="method CheckpointContainer not implemented") as caught:
        cri("CheckpointContainer", {"container_id": container, "location": str(tmp_path / "checkpoint.tar")})
    assert "UNIMPLEMENTED" == caught.value.code


def test_user_namespace_of_a_pod_is_the_one_that_the_daemon_asks_for(pods, socket):
    """Containerd asks for one since 2.0. Earlier ones drop this part of the request without a word."""
    maps = [{"host_id": 1_500_000, "container_id": 0, "length": 65536}]
    options = {"mode": "POD", "uids": maps, "gids": maps}
    security = {"namespace_options": {"network": "POD", "pid": "CONTAINER", "userns_options": options}}
    pod = pods("one", linux={"cgroup_parent": f"/{GROUP}", "security_context": security})
    pod.security = security
    container = pod.start("a", "sleep", "1000")
    (bundle,) = (socket.parent / "state").glob(f"*/k8s.io/{container}")
    linux = json.loads((bundle / "config.json").read_text())["linux"]
    asked = "user" in {each["type"] for each in linux["namespaces"]}
    found = pod.shell(container, "cat /proc/self/uid_map").split()
    assert (["0", "1500000", "65536"] if asked else ["0", "0", "4294967295"]) == found


def test_checkpoint_of_a_container_of_a_pod(pods, ctr, tmp_path):
    if not os.environ.get("CONTAINERKIT_CRIU"):
        pytest.skip("CONTAINERKIT_CRIU names no criu of version 4: Debian 12's 3.17 fails on the vDSO of newer kernels")
    pod = pods("one")
    container = pod.start("counts", "sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/count; sleep 0.05; done")
    pod.shell(container, "until test -e /count; do sleep 0.05; done")
    ctr("task", "checkpoint", "--image-path", tmp_path / "images", container)
    assert "inventory.img" in os.listdir(tmp_path / "images")

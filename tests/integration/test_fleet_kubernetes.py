"""A fleet on Kubernetes: Jobs, their results, faults of the server, and the cleanup; see kube_server.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from waiting import wait_for

pytest.importorskip("kubernetes", reason="no kubernetes: pip install containerkit[kubernetes]")
pytest.importorskip("kubernetes_validate", reason="no kubernetes-validate: pip install kubernetes-validate")

from kube_server import TOKEN, Cluster  # it needs both

from containerkit import ContainerTimeout, ExitError, ImageError, Limits, OutOfMemory, SpecError
from containerkit.fleet import Fleet, FleetError, NodeLost

IMAGE = "registry.test/box@sha256:" + "a" * 64


@pytest.fixture
def cluster(tmp_path):
    (tmp_path / "logs").mkdir()
    made = Cluster(tmp_path / "logs")
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": made.url}}],
        "users": [{"name": "test", "user": {"token": TOKEN}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }  # fmt: skip
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    made.kubeconfig = str(tmp_path / "kubeconfig")
    yield made
    made.close()


@pytest.fixture
def fleet(cluster):
    """A fleet. At its end no Job, pod or process of it is left."""
    with Fleet.kubernetes(namespace="work", kubeconfig=cluster.kubeconfig) as made:
        yield made
    assert {} == cluster.jobs
    assert {} == cluster.pods
    assert all(each.poll() is not None for each in cluster.processes.values())


def test_task_is_a_job_with_a_result(fleet, cluster):
    script = "echo out; echo err >&2; echo $A; pwd; exit 3"
    limits = Limits(cpus=0.5, memory="64M")
    future = fleet.submit(
        ["sh", "-c", script],
        image=IMAGE,
        limits=limits,
        env={"A": "b$(HOME)c"},
        cwd="/usr",
        user=(1000, 1001),
        text=True,
    )
    done = future.result(60)
    assert (3, "out\nerr\nb$(HOME)c\n/usr\n", None) == (done.returncode, done.stdout, done.stderr)
    assert (["sh", "-c", script], "exit", "node-1") == (done.args, done.cause, future.node)
    spec = cluster.seen[0]["spec"]
    pod = spec["template"]["spec"]
    assert (0, "Never", False, "containerkit") == (
        spec["backoffLimit"], pod["restartPolicy"], pod["hostUsers"], pod["runtimeClassName"],
    )  # fmt: skip
    container = pod["containers"][0]
    assert {"cpu": "500m", "memory": str(64 << 20)} == container["resources"]["limits"]
    assert (1000, 1001) == (container["securityContext"]["runAsUser"], container["securityContext"]["runAsGroup"])
    assert IMAGE == container["image"]


def test_many_tasks_give_each_its_result(fleet):
    results = fleet.map(lambda number: ["echo", str(number)], range(30), image=IMAGE)
    assert [f"{number}\n".encode() for number in range(30)] == [each.stdout for each in results]


def test_failures_are_those_of_run(fleet):
    with pytest.raises(ExitError) as caught:
        fleet.submit(["sh", "-c", "echo no; exit 4"], image=IMAGE, check=True).result(60)
    assert (4, b"no\n") == (caught.value.returncode, caught.value.stdout)
    with pytest.raises(ContainerTimeout) as late:
        fleet.submit(["sh", "-c", "echo begun; exec sleep 1000"], image=IMAGE, timeout=1, text=True).result(60)
    assert "begun\n" == late.value.stdout
    with pytest.raises(OutOfMemory):
        fleet.submit(["sh", "-c", "kill -9 $$"], image=IMAGE, limits=Limits(memory="64M"), check=True).result(60)
    done = fleet.submit(["sh", "-c", "yes | head -c 5000"], image=IMAGE, output_limit_bytes=1000).result(60)
    assert (1000, "output") == (len(done.stdout), done.cause)


@pytest.mark.parametrize(
    ("state", "error", "told"),
    [
        ({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}, ImageError, "no such image"),
        ({"waiting": {"reason": "CreateContainerError", "message": "no such volume"}}, FleetError, "no such volume"),
        (
            {"terminated": {"exitCode": 128, "reason": "StartError", "message": "nosuch: not found in $PATH"}},
            FleetError,
            "nosuch: not found",
        ),
    ],
)
def test_what_cannot_start_is_told(fleet, cluster, state, error, told):
    cluster.broken = state
    with pytest.raises(error, match=told):
        fleet.submit(["nosuch"], image=IMAGE).result(60)


def test_lines_are_heard_while_they_are_written(fleet):
    lines, second = [], threading.Event()

    def heard(line):
        lines.append(line)
        if len(lines) == 2:
            second.set()

    script = "echo one; echo two; while ! test -e $FLAG; do sleep 0.05; done; echo three"
    flag = f"/tmp/ck-fleet-{os.getpid()}-{time.monotonic_ns()}"
    future = fleet.submit(["sh", "-c", script], image=IMAGE, env={"FLAG": flag}, on_stdout=heard, text=True)
    try:
        assert second.wait(60)
        assert not future.done()
        with open(flag, "w"):
            pass
        assert "one\ntwo\nthree\n" == future.result(60).stdout
    finally:
        if os.path.exists(flag):
            os.unlink(flag)
    assert ["one", "two", "three"] == [each.rstrip("\n") for each in lines]


def test_cancelled_task_leaves_no_job(fleet, cluster):
    running = fleet.submit(["sleep", "1000"], image=IMAGE)
    wait_for(lambda: running.node)
    assert running.cancel()
    cluster.idle = True
    pending = fleet.submit(["sleep", "1000"], image=IMAGE)
    assert pending.cancel(force=True)
    wait_for(lambda: not cluster.jobs)
    assert all(each.poll() is not None for each in cluster.processes.values())


def test_lost_node_is_told_or_tried_again(fleet, cluster):
    lost = fleet.submit(["sleep", "1000"], image=IMAGE)
    wait_for(lambda: lost.node)
    cluster.lose_node()
    with pytest.raises(NodeLost, match="the node was lost"):
        lost.result(60)
    flag = os.path.join(cluster.directory, "flag")
    script = f"test -e {flag} && echo again && exit; touch {flag}; exec sleep 1000"
    again = fleet.submit(["sh", "-c", script], image=IMAGE, retries=2)
    wait_for(lambda: os.path.exists(flag))
    cluster.lose_node()
    assert (b"again\n", 2) == (again.result(60).stdout, again.attempts)


def test_pod_that_somebody_removes_is_lost(fleet, cluster):
    future = fleet.submit(["sleep", "1000"], image=IMAGE)
    wait_for(lambda: future.node)
    cluster.remove_pod(next(iter(cluster.pods)))
    with pytest.raises(NodeLost, match="removed"):
        future.result(60)


def test_faults_of_the_server_are_survived(fleet, cluster):
    cluster.refuse, cluster.lose, cluster.cut, cluster.expire = 3, 1, 1, 1
    results = [fleet.submit(["sh", "-c", "sleep 0.3; echo fine"], image=IMAGE) for _ in range(5)]
    assert [b"fine\n"] * 5 == [each.result(60).stdout for each in results]
    assert 5 == len(cluster.seen)  # a lost answer created no second Job


def test_cluster_without_user_namespaces_is_refused(fleet, cluster):
    cluster.drop_user_namespaces = True
    with pytest.raises(SpecError, match="user_namespaces=False"):
        fleet.submit(["true"], image=IMAGE)
    wait_for(lambda: not cluster.jobs)
    with Fleet.kubernetes(namespace="work", kubeconfig=cluster.kubeconfig, user_namespaces=False) as other:
        assert 0 == other.submit(["true"], image=IMAGE).result(60).returncode


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"image": None}, "use image="),
        ({"input": b"x"}, "no stdin"),
        ({"on_stderr": print}, "use on_stdout, which receives both"),
        ({"limits": Limits(pids=3)}, "limits: pids"),
        ({"user": "worker"}, "ids, not names"),
        ({"cwd": "tmp"}, "absolute|cwd"),
        ({"env": {"A": "\udc80"}}, "UTF-8"),
        ({"mounts": []}, "mounts: not supported"),
        ({"limits": Limits(memory="64G")}, "largest of 1 nodes"),
    ],
)
def test_what_a_pod_cannot_do_is_refused_before_anything_is_made(fleet, cluster, options, told):
    with pytest.raises(SpecError, match=told):
        fleet.submit(["true"], **{"image": IMAGE, **options})
    assert [] == cluster.seen


def test_deadline_is_put_off_while_the_driver_is_there(cluster):
    with Fleet.kubernetes(namespace="work", kubeconfig=cluster.kubeconfig, lease_s=15) as fleet:
        future = fleet.submit(["sleep", "1000"], image=IMAGE)
        wait_for(lambda: cluster.patches)
        (name, patch), *_ = cluster.patches
        assert name in cluster.jobs
        assert 15 < patch["spec"]["activeDeadlineSeconds"] <= 15 + 15
        future.cancel()
    assert {} == cluster.jobs


_DRIVER = """
import sys
from containerkit.fleet import Fleet
fleet = Fleet.kubernetes(namespace="work", kubeconfig=sys.argv[1], lease_s=15)
fleet.submit(["sleep", "1000"], image=sys.argv[2])
print("made", flush=True)
sys.stdin.read()
"""


def test_job_of_a_driver_that_was_killed_has_a_deadline(cluster):
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, cluster.kubeconfig, IMAGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with driver:
        assert b"made\n" == driver.stdout.readline()
        driver.send_signal(signal.SIGKILL)
    job = next(iter(cluster.jobs.values()))
    assert (15, 300) == (job["spec"]["activeDeadlineSeconds"], job["spec"]["ttlSecondsAfterFinished"])

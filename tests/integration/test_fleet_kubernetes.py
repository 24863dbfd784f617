"""A fleet on Kubernetes: Jobs, their results, faults of the server, and the cleanup; see kube_server.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

import pytest
from waiting import wait_for

from containerkit import ContainerTimeout, ExitError, ImageError, Limits, OutOfMemory, SpecError
from containerkit.fleet import Fleet, FleetError, NodeLost, Task, kubeapi, kubeattempt
from containerkit.fleet.kubejob import job_of

pytestmark = [
    pytest.mark.skipif(find_spec(package) is None, reason=f"no {package}: pip install {needed}")
    for package, needed in (("kubernetes", "containerkit[kubernetes]"), ("kubernetes_validate", "kubernetes-validate"))
]

IMAGE = "registry.test/box@sha256:" + "a" * 64


@pytest.fixture
def cluster(tmp_path):
    from kube_server import TOKEN, Cluster  # it imports both packages, which each worker that collects this would do

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
def test_failure_to_start_is_reported(fleet, cluster, state, error, told):
    cluster.broken = state
    with pytest.raises(error, match=told):
        fleet.submit(["nosuch"], image=IMAGE).result(60)


def test_lines_are_received_while_they_are_written(fleet):
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


def test_task_of_a_lost_node_is_lost_or_repeated(fleet, cluster):
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


def test_pod_that_another_client_removes_is_lost(fleet, cluster):
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


def test_throttling_server_is_left_alone_for_as_long_as_it_asks(fleet, cluster):
    cluster.throttle = 1
    assert 0 == fleet.submit(["true"], image=IMAGE).result(60).returncode
    first, second = [when for method, path, when in cluster.requests if method == "POST"]
    assert 1 <= second - first < 5


def test_conflicts_leave_no_job(fleet, cluster, monkeypatch):
    """Of a quota at the creation, of a controller at the removal."""
    monkeypatch.setattr(kubeapi, "_FIRST_PAUSE_S", 0.01)
    cluster.conflicts = 1
    future = fleet.submit(["sleep", "1000"], image=IMAGE)
    wait_for(lambda: future.node)
    cluster.conflicts = 8  # more than a request is repeated
    future.cancel()
    assert future.gone(60)
    assert {} == cluster.jobs


def test_foreign_job_of_the_same_name_is_not_taken_over(fleet, cluster, monkeypatch):
    monkeypatch.setattr(fleet._engine, "id", "ck-other")
    foreign = job_of(Task(id="taken", argv=("true",), image=IMAGE), "ck-foreign", fleet._engine.settings)
    cluster.idle = True
    cluster.make_job(foreign)
    with pytest.raises(FleetError, match="not of this fleet"):
        fleet._engine.submit(Task(id="taken", argv=("true",), image=IMAGE), None)
    assert ["taken"] == list(cluster.jobs)
    cluster.delete_job("taken")
    wait_for(lambda: not cluster.jobs)


def test_watch_that_is_too_old_or_cut_off_misses_nothing(fleet, cluster):
    future = fleet.submit(["sh", "-c", "sleep 1; echo fine"], image=IMAGE)
    wait_for(lambda: future.node)
    cluster.gone, cluster.expire, cluster.cut = 2, 2, 2
    assert b"fine\n" == future.result(60).stdout


def test_job_whose_creation_was_not_confirmed_is_removed(fleet, cluster, monkeypatch):
    monkeypatch.setattr(kubeapi, "_FIRST_PAUSE_S", 0.01)
    cluster.lose = 6  # all that the request is repeated
    with pytest.raises(FleetError, match="does not accept it"):
        fleet.submit(["sleep", "1000"], image=IMAGE)
    assert 1 == len(cluster.seen)
    wait_for(lambda: not cluster.jobs, 60)


def test_expired_token_is_read_again(fleet, cluster, monkeypatch):
    monkeypatch.setattr(kubeapi, "_RENEWED_EVERY_S", 0)
    future = fleet.submit(["sh", "-c", "sleep 1; echo fine"], image=IMAGE)
    with open(cluster.kubeconfig) as file:
        content = file.read()
    with open(cluster.kubeconfig, "w") as file:
        file.write(content.replace(cluster.token, "token-of-tomorrow"))
    cluster.token = "token-of-tomorrow"
    assert b"fine\n" == future.result(60).stdout
    assert 0 == fleet.submit(["true"], image=IMAGE).result(60).returncode


def test_task_whose_token_expires_is_lost_when_the_cluster_has_ended_it(fleet, cluster, monkeypatch):
    """Not before: until its deadline nobody can know. The cluster, here the test, ends the Job."""
    monkeypatch.setattr(kubeapi, "_RENEWED_EVERY_S", 0)
    monkeypatch.setattr(kubeattempt, "_LATE_S", 0.5)
    with Fleet.kubernetes(namespace="work", kubeconfig=cluster.kubeconfig, lease_s=15, grace_s=0) as other:
        future = other.submit(["sleep", "1000"], image=IMAGE)
        wait_for(lambda: future.node)
        (attempt,) = other._engine._attempts.values()
        attempt.deadline_s = 3  # as if most of the lease had passed
        accepted, cluster.token = cluster.token, "token-of-tomorrow"
        with pytest.raises(NodeLost, match=r"until its deadline.*401"):
            future.result(60)
        assert time.monotonic() > attempt.made + 3
    cluster.token = accepted
    for name in list(cluster.jobs):
        cluster.delete_job(name)
    wait_for(lambda: not cluster.jobs)


@pytest.mark.parametrize("how", ["evict", "remove_pod"])
def test_task_of_an_evicted_pod_is_lost(fleet, cluster, how):
    lost = fleet.submit(["sleep", "1000"], image=IMAGE)
    wait_for(lambda: lost.node)
    getattr(cluster, how)(next(iter(cluster.pods)))
    with pytest.raises(NodeLost, match="removed"):
        lost.result(60)
    assert "lost" == lost.cause


def test_pod_on_a_node_that_is_cut_off_is_lost(fleet, cluster, monkeypatch):
    """Its end is never confirmed. Without the time limit it would count as running for as long as the driver waits."""
    monkeypatch.setattr(kubeattempt, "_UNREACHABLE_S", 0.5)
    monkeypatch.setattr(kubeattempt, "_FORCE_AFTER_S", 0.2)
    future = fleet.submit(["sleep", "1000"], image=IMAGE)
    wait_for(lambda: future.node)
    (name,) = cluster.pods
    cluster.strand(name)
    with pytest.raises(NodeLost, match="its node does not confirm"):
        future.result(60)
    assert [name] == cluster.forced


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

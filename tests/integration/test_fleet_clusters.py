"""Fleets on clusters of Ray and of Dask: three nodes on this machine, each with a separate image store.

A cluster takes seconds to start, so all tests share one of each kind. The last tests kill its nodes.
"""

import os
import socket
import subprocess
import sys
from collections import Counter

import pytest
from fleet_samples import KINDS, NODES, cluster_of, lasting, none_of, processes_of, runs_of
from image_registry import REGISTRY, registry, relay, server
from image_samples import BUSYBOX, busybox_root
from waiting import wait_for

import containerkit
from containerkit import Limits, SpecError
from containerkit.fleet import NodeLost, channel, workers
from containerkit.image import Image, Store

pytestmark = pytest.mark.timeout(240)
privileged = os.geteuid() == 0
LIMITS = Limits(cpus=1, memory="100M") if privileged else None


@pytest.fixture(scope="module", params=list(KINDS))
def nodes(request, tmp_path_factory):
    with cluster_of(request.param, tmp_path_factory.mktemp(request.param)) as cluster:
        yield cluster


@pytest.fixture
def fleet(nodes):
    fleet = nodes.fleet()
    yield fleet
    fleet.close(cancel=True)  # tasks that a failed test has left


def test_tasks_run_on_all_nodes_as_far_as_their_limits_leave_room(fleet):
    known = {node.name: node.cpus for node in fleet.nodes()}
    assert (len(known), set(known.values())) == (NODES, {1})
    if not privileged:
        assert fleet.submit(["echo", "here"], text=True).result(100).stdout == "here\n"
        pytest.skip("needs root: control groups")
    commands = [lasting() for _ in range(NODES)]
    futures = [fleet.submit(command, limits=Limits(cpus=1)) for command in commands]
    wait_for(runs_of(*commands), 100)
    assert {future.node for future in futures} == set(known)
    waiting = fleet.submit(["echo", "then"], text=True, limits=Limits(cpus=1))
    assert not waiting.running()
    futures[0].cancel()
    assert waiting.result(100).stdout == "then\n"
    assert waiting.node == futures[0].node
    with pytest.raises(SpecError, match="largest of 3 nodes has 1"):
        fleet.submit(["true"], limits=Limits(cpus=2))
    for future in futures:
        future.cancel()
    assert all(future.gone(30) for future in futures)
    wait_for(none_of(*commands))


def test_lines_files_and_errors_pass_the_engine(fleet):
    lines = []
    future = fleet.submit(["sh", "-c", "seq 1000; exit 3"], text=True, limits=LIMITS, on_stdout=lines.append)
    assert (future.result(100).returncode, lines) == (3, [str(number) for number in range(1, 1001)])
    assert (future.attempts, future.cause, future.usage is not None) == (1, "exit", True)
    with fleet.container(limits=LIMITS) as held:
        assert held.node in {node.name for node in fleet.nodes()}
        held.files.write("/tmp/given", "content")
        assert held.run(["cat", "/tmp/given"], text=True).stdout == "content"
    assert [done.stdout for done in fleet.map(lambda each: ["echo", each], "abcd", limits=LIMITS)] == [
        b"a\n", b"b\n", b"c\n", b"d\n"
    ]  # fmt: skip


@pytest.mark.slow  # both engines take seconds to give up a worker
def test_force_ends_a_worker_that_does_not_answer(fleet, nodes, monkeypatch):
    """A stopped process simulates one that hangs: its connection is open, but it does not react."""
    monkeypatch.setattr(workers, "FORCE_AFTER_S", 0.2)
    monkeypatch.setattr(channel, "_ANSWERS_WITHIN_S", 0.2)
    command = lasting()
    future = fleet.submit(command, limits=LIMITS)
    wait_for(runs_of(command), 100)
    worker = _owner_of(command)
    os.kill(worker, 19)
    try:
        future.cancel(force=True)
        assert future.gone(60)
    finally:
        _continue(worker)
    wait_for(none_of(command))
    nodes.complete()


def _owner_of(command):
    """Return the pid of the owner of a command's container: its nearest ancestor that is a Python interpreter."""
    (pid,) = processes_of(command)
    while True:
        with open(f"/proc/{pid}/stat") as file:
            pid = int(file.read().rpartition(")")[2].split()[1])
        if "python" in os.readlink(f"/proc/{pid}/exe"):
            return pid


def _continue(pid):
    try:
        os.kill(pid, 18)
    except ProcessLookupError:
        return


@pytest.mark.skipif(REGISTRY is None, reason="needs Debian's package docker-registry")
@pytest.mark.skipif(not os.path.exists(BUSYBOX), reason="needs Debian's package busybox-static")
def test_an_image_is_resolved_once_and_pulled_once_for_each_node(fleet, nodes, tmp_path):
    busybox_root(tmp_path / "root")
    (tmp_path / "root/etc/filler").write_bytes(os.urandom(4 << 20))
    with registry(tmp_path / "registry") as backend:
        handler = relay(backend)
        with server(handler) as host:
            name = f"{host}/filled:{nodes.kind}"
            made = Image.from_directory(tmp_path / "root", store=Store(tmp_path / "store"), compression="none")
            made.push(name)
            layer = str(made.manifest.layers[0].digest)
            handler.seen.clear()
            futures = [fleet.submit(["true"], image=name, limits=LIMITS) for _ in range(12)]
            assert {future.result(100).returncode for future in futures} == {0}
            asked = Counter((method, path.rpartition("/")[2]) for method, path, _ in handler.seen)
    used = {future.node.partition("/")[0] for future in futures}
    assert asked["GET", layer] == len(used) == sum((nodes.directory / node / "blobs").is_dir() for node in used)
    assert sum(asked[method, nodes.kind] for method in ("GET", "HEAD")) == 1
    with pytest.raises(Exception, match="digest can't be determined"):
        fleet.submit(["true"], image=f"{host}/absent:1")


DRIVER = """
import sys
from containerkit.fleet import Fleet

if __name__ == "__main__":
    kind, address, *arguments = sys.argv[1:]
    if kind == "dask":
        from distributed import Client
        fleet = Fleet.dask(Client(address))
    else:
        fleet = Fleet.ray(address)
    for future in [fleet.submit(["sleep", each]) for each in arguments]:
        future.exception()
"""


def test_containers_end_when_their_driver_is_killed(nodes, tmp_path):
    path = tmp_path / "driver.py"
    path.write_text(DRIVER)
    commands = [lasting()]
    arguments = [nodes.kind, nodes.address, *(command[1] for command in commands)]
    with subprocess.Popen([sys.executable, path, *arguments], stderr=subprocess.DEVNULL) as driver:
        try:
            wait_for(runs_of(*commands), 100)
        finally:
            driver.kill()
    wait_for(none_of(*commands))


def _inside(rest):
    """Return a command line that runs a command in a container, with this Python and its packages."""
    source = os.path.dirname(os.path.dirname(containerkit.__file__))
    return (
        f"{sys.executable} -m containerkit run --share-net --hostname inside --python {sys.prefix} "
        f"--bind {source}:{source}:ro {rest} "
    )


@pytest.mark.skipif(not privileged, reason="needs root: files of the cluster's session are its own")
def test_workers_run_in_containers(nodes):
    """The processes of Ray and Dask on a node can run in a container, as docs/fleet.md describes."""
    if nodes.kind == "ray":
        import ray

        shared = "--namespace pid=host --namespace ipc=host --bind /tmp/ray --bind /dev/shm"
        python = _inside(f"{shared} $(compgen -e RAY_ | sed 's/^/-e /') -- {sys.executable}")
        call = ray.remote(lambda: (socket.gethostname(), os.path.exists("/run/containerkit")))
        found = ray.get(call.options(runtime_env={"py_executable": python}).remote(), timeout=100)
    else:
        command = f"exec {_inside(f'-- {sys.executable} -m distributed.cli.dask_worker')}"
        options = f"{nodes.address} --name inside --no-dashboard --no-nanny --local-directory /tmp"
        with subprocess.Popen(["bash", "-c", f"{command} {options}"], stderr=subprocess.DEVNULL) as worker:
            try:
                nodes.client.wait_for_workers(NODES + 1, timeout=60)
                call = nodes.client.submit(
                    lambda: (socket.gethostname(), os.path.exists("/run/containerkit")), workers=["inside"]
                )
                found = call.result(timeout=100)
            finally:
                worker.kill()
    assert found == ("inside", False)


def test_results_survive_a_node(fleet, nodes):
    """The last test: it leaves a cluster of two nodes."""
    commands = [lasting() for _ in range(NODES)]
    lasting_ones = [fleet.submit(command) for command in commands]
    wait_for(runs_of(*commands), 100)
    wait_for(lambda: all(future.running() for future in lasting_ones))
    lost = [future for future in lasting_ones if future.node.startswith("n1")]
    assert len(lost) == 1
    futures = [
        fleet.submit(["sh", "-c", f"sleep 0.1; echo {number}"], text=True, limits=LIMITS, retries=2)
        for number in range(20)
    ]
    nodes.kill_node("n1")
    for future in lasting_ones:
        if future in lost:
            assert isinstance(future.exception(100), NodeLost)
            assert (future.cause, future.attempts) == ("lost", 1)
        else:
            assert future.cancel()
    assert [future.result(100).stdout for future in futures] == [f"{number}\n" for number in range(20)]
    wait_for(none_of(*commands))

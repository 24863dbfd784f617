"""Helpers for the tests of fleets: commands that can be found, and clusters of three nodes on this machine."""

import contextlib
import os
import secrets
import signal
from contextlib import contextmanager

import pytest
from waiting import wait_for

NODES = 3


def lasting():
    """Return a command that runs for long, with an argument that no other process has."""
    return ["sleep", f"1000.{secrets.randbelow(10**12):012}"]


def processes_of(*commands):
    """Return the pids of all processes on this machine that run one of these commands, in any container."""
    wanted = {"\0".join(command).encode() + b"\0" for command in commands}
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read() in wanted:
                found.append(int(pid))
    return found


def runs_of(*commands):
    return lambda: len(processes_of(*commands)) == len(commands)


def none_of(*commands):
    return lambda: not processes_of(*commands)


class RayNodes:
    """A Ray cluster. Each node has a separate image store."""

    kind = "ray"

    def __init__(self, directory):
        from ray.cluster_utils import Cluster

        self.directory = directory
        self._head = {
            "num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False, **self._options("n0")
        }  # fmt: skip
        self.cluster = Cluster(initialize_head=True, head_node_args=self._head)
        self.nodes = {f"n{number}": self._add(f"n{number}") for number in range(1, NODES)}
        self.address = self.cluster.address

    def _options(self, name):
        return {"node_name": name, "env_vars": {"CONTAINERKIT_IMAGES": f"{self.directory}/{name}"}}

    def _add(self, name):
        return self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20, wait=False, **self._options(name))

    def connect(self):
        import ray

        ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == NODES)

    def fleet(self, **options):
        from containerkit.fleet import Fleet

        return Fleet.ray(self.address, **options)

    def complete(self):
        """Wait for the worker that replaces a killed one. A raylet starts it when it is needed."""

    def kill_node(self, name):
        """Kill the raylet of a node and its workers, as if the machine had failed. Workers would outlive the raylet."""
        (raylet,) = self.nodes.pop(name).all_processes["raylet"]
        pid = raylet.process.pid
        os.kill(pid, signal.SIGSTOP)
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            workers = [int(each) for each in file.read().split()]
        for each in (*workers, pid):
            os.kill(each, signal.SIGKILL)

    def close(self):
        import ray

        ray.shutdown()
        self.cluster.shutdown()


class DaskNodes:
    """A Dask cluster. Each worker is a process with a separate image store."""

    kind = "dask"

    def __init__(self, directory):
        from distributed import Client, Nanny, Scheduler, SpecCluster

        self.directory = directory
        workers = {
            f"n{number}": {
                "cls": Nanny,
                "options": {
                    "nthreads": 1,
                    "name": f"n{number}",
                    "resources": {"cpus": 1},
                    "env": {"CONTAINERKIT_IMAGES": f"{directory}/n{number}"},
                    "dashboard": False,
                    "memory_limit": 0,
                },
            }
            for number in range(NODES)
        }
        scheduler = {"cls": Scheduler, "options": {"dashboard": False, "dashboard_address": ":0", "port": 0}}
        self.cluster = SpecCluster(workers=workers, scheduler=scheduler, silence_logs=50)
        self.client = Client(self.cluster)
        self.address = self.cluster.scheduler_address

    def connect(self):
        self.client.wait_for_workers(NODES)

    def fleet(self, **options):
        from containerkit.fleet import Fleet

        return Fleet.dask(self.client, **options)

    def complete(self):
        """Wait for the worker that replaces a killed one. A cluster that is closed before fails to do so."""
        wait_for(lambda: all(nanny.status.name == "running" for nanny in self.cluster.workers.values()), 60)
        self.client.wait_for_workers(NODES, timeout=60)

    def kill_node(self, name):
        """Kill a worker, so that its nanny does not restart it."""
        nanny = self.cluster.workers[name]
        nanny.auto_restart = False
        os.kill(nanny.process.pid, signal.SIGKILL)

    def close(self):
        self.client.close()
        self.cluster.close()


KINDS = {"ray": ("ray", RayNodes), "dask": ("distributed", DaskNodes)}


@contextmanager
def cluster_of(kind, directory):
    """Run a cluster of an engine, or skip if its package is not installed."""
    package, made_by = KINDS[kind]
    pytest.importorskip(package, reason=f"needs the package {package}")
    nodes = made_by(directory)
    try:
        nodes.connect()
        yield nodes
    finally:
        nodes.close()

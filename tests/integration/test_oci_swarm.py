"""A swarm of two Docker daemons with this runtime, each in a separate network namespace; docker-compose on one."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from oci_bundles import RUN, as_root, groups_named
from oci_engines import (
    Engine,
    archive_of_engines,  # noqa: F401 - a fixture
    containerd_of,
    dockerd_of,
    eventually,
    needs,
    place_of_engines,  # noqa: F401 - a fixture
    runtime_of_engines,  # noqa: F401 - a fixture
)

pytestmark = as_root

GROUP = f"ck-swarm-{RUN}"
NAMES = ("one", "two")
SECONDS = 90

_STACK = """
version: "3.8"
services:
  web:
    image: box
    command: ["sh", "-c", "test -n \\"$$V\\" && exec sleep 1000"]
    environment: {V: "1"}
    networks: [host]
    secrets: [{source: key, target: key, mode: 0400}]
    configs: [{source: settings, target: /etc/settings}]
    stop_grace_period: 100ms
    deploy:
      replicas: 2
      restart_policy: {delay: 0s}
      update_config: {parallelism: 1, delay: 0s, monitor: 500ms, failure_action: rollback}
      rollback_config: {parallelism: 2, delay: 0s, monitor: 0s}
networks:
  host: {external: true, name: host}
secrets:
  key: {file: ./key}
configs:
  settings: {file: ./settings}
"""


@pytest.fixture(scope="module")
def networks():
    """Two connected network namespaces, by the names of the nodes."""
    needs(("ip", "iproute2"), ("nsenter", "util-linux"))
    names = {each: f"ck-{RUN}-{each}" for each in NAMES}

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    try:
        for name in names.values():
            ip("netns", "add", name)
        one, two = names.values()
        ip("-n", one, "link", "add", "cable", "type", "veth", "peer", "name", "cable", "netns", two)
        for number, name in enumerate(names.values(), 1):
            ip("-n", name, "address", "add", f"10.97.0.{number}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False)
        for group in groups_named(GROUP):
            for directory, _, _ in os.walk(group, topdown=False):
                os.rmdir(directory)


@pytest.fixture(scope="module")
def nodes(networks, place, runtime, archive):
    """The command lines of two daemons, by name."""
    with containerd_of(place / "cd") as socket:

        def daemon(name):
            net = ("nsenter", f"--net=/run/netns/{networks[name]}")
            return dockerd_of(place / name, runtime, socket, group=GROUP, net=net)

        with daemon("one") as one, daemon("two") as two:
            for engine in (one, two):
                engine("import", archive, "box")
            yield {"one": one, "two": two}


@pytest.fixture(scope="module")
def swarm(nodes):
    """Both daemons; the first is the manager. Both have the same host name, so nodes are identified by id."""
    one, two = nodes.values()
    address = ("--advertise-addr", "10.97.0.{0}", "--listen-addr", "10.97.0.{0}:2377")
    one("swarm", "init", *(each.format(1) for each in address))
    token = one("swarm", "join-token", "-q", "worker").strip()
    two("swarm", "join", "--token", token, *(each.format(2) for each in address), "10.97.0.1:2377")
    yield nodes
    two("swarm", "leave", "--force")
    one("swarm", "leave", "--force")


def inside(engine, *argv):
    """Return the output of a command in each container of a node."""
    return [engine("exec", each, *argv) for each in engine("ps", "-q").split()]


def replicas(manager, service):
    return manager("service", "ls", "--filter", f"name={service}", "--format", "{{.Replicas}}").split()[:1]


def update_state(manager, service):
    status = json.loads(manager("service", "inspect", service))[0].get("UpdateStatus", {})
    return status.get("State")


def everywhere(nodes, *argv):
    return [told for engine in nodes.values() for told in inside(engine, *argv)]


def versions(nodes):
    return everywhere(nodes, "sh", "-c", "echo $V")


def settled(nodes, service, count):
    """Wait until a service has this number of replicas, and no container of an earlier version."""
    manager = nodes["one"]
    eventually(lambda: replicas(manager, service) == [f"{count}/{count}"], SECONDS)
    eventually(lambda: sum(len(each("ps", "-q").split()) for each in nodes.values()) == count, SECONDS)


@pytest.fixture
def stack(swarm, tmp_path):
    """A stack of two replicas on two nodes. Return its name and that of its service."""
    manager = swarm["one"]
    (tmp_path / "stack.yml").write_text(_STACK)
    (tmp_path / "key").write_text("secret\n")
    (tmp_path / "settings").write_text("settings\n")
    name = f"s{RUN}"
    manager("stack", "deploy", "--resolve-image", "never", "-c", tmp_path / "stack.yml", name)
    yield name, f"{name}_web"
    manager("stack", "rm", name)
    eventually(lambda: all(each("ps", "-aq") == "" for each in swarm.values()), SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_stack_is_spread_updated_rolled_back_and_drained(swarm, stack):
    manager, (_, service) = swarm["one"], stack
    settled(swarm, service, 2)
    assert [1, 1] == [len(each("ps", "-q").split()) for each in swarm.values()]
    kinds = [
        each("inspect", "--format", "{{.HostConfig.Runtime}}", *each("ps", "-q").split()) for each in swarm.values()
    ]
    assert ["ck\n"] * 2 == kinds

    # secrets are files in memory, configs plain ones
    look = "cat /run/secrets/key /etc/settings; stat -c %a /run/secrets/key; grep ' /run/secrets/key ' /proc/mounts"
    for told in everywhere(swarm, "sh", "-c", look):
        assert ["secret", "settings", "400"] == told.split()[:3]
        assert "tmpfs" == told.split()[5]

    # a rolling update, and one that fails and is rolled back by itself
    manager("service", "update", "--detach", "--env-add", "V=2", service)
    eventually(lambda: update_state(manager, service) == "completed", SECONDS)
    settled(swarm, service, 2)
    assert ["2\n"] * 2 == versions(swarm)
    manager("service", "update", "--detach", "--env-add", "V=", service)  # makes the command fail
    eventually(lambda: update_state(manager, service) == "rollback_completed", SECONDS)
    settled(swarm, service, 2)
    assert ["2\n"] * 2 == versions(swarm)

    # a node is drained
    worker = swarm["two"]("info", "--format", "{{.Swarm.NodeID}}").strip()
    manager("node", "update", "--availability", "drain", worker)
    eventually(lambda: swarm["two"]("ps", "-q") == "", SECONDS)
    eventually(lambda: len(manager("ps", "-q").split()) == 2, SECONDS)
    assert ["2\n"] * 2 == versions(swarm)
    manager("node", "update", "--availability", "active", worker)


_COMPOSE = """
version: "2.4"
services:
  db:
    image: box
    network_mode: none
    command: ["sh", "-c", "sleep 0.3; echo up >/shared/state; exec sleep 1000"]
    volumes: ["shared:/shared"]
    healthcheck: {test: ["CMD", "test", "-e", "/shared/state"], interval: 100ms, retries: 100}
  web:
    image: box
    network_mode: none
    command: ["sh", "-c", "cat /shared/state; exec sleep 1000"]
    volumes: ["shared:/shared:ro"]
    read_only: true
    mem_limit: 64m
    pids_limit: 20
    depends_on: {db: {condition: service_healthy}}
volumes:
  shared: {}
"""


def test_compose_starts_services_in_their_order(nodes, tmp_path):
    needs(("docker-compose", "docker-compose"))
    (tmp_path / "docker-compose.yml").write_text(_COMPOSE)
    engine = nodes["one"]
    words = ["docker-compose", "-f", tmp_path / "docker-compose.yml", "-p", f"c{RUN}"]
    compose = Engine([*words], {"DOCKER_HOST": engine.words[-1], "PYTHONWARNINGS": "ignore"})
    compose("up", "-d", "--scale", "web=2")
    try:
        assert 2 == compose("logs", "--no-color", "web").count("| up")
        assert "Read-only file system" in compose("exec", "-T", "web", "touch", "/x", status=1, both=True)
        assert {"ck"} == set(
            engine("inspect", "--format", "{{.HostConfig.Runtime}}", *engine("ps", "-q").split()).split()
        )
    finally:
        compose("down", "--volumes", "--timeout", "0")
    assert "" == engine("ps", "-aq")

"""The pool of network namespaces, against the kernel."""

from __future__ import annotations

import os
import threading

import pytest

from containerkit import Container, Kind, Namespace, Namespaces, NetworkPool, SpecError, StateError, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make network namespaces that it owns")


@pytest.fixture
def pool():
    with NetworkPool(4) as pool:
        yield pool


def test_pool_gives_each_start_a_network_of_its_own(pool):
    namespaces = Namespaces(network=pool)
    seen = [run(["readlink", "/proc/self/ns/net"], namespaces=namespaces, text=True).stdout for _ in range(6)]

    assert len(set(seen)) == 6
    assert os.readlink("/proc/self/ns/net") not in {name.strip() for name in seen}


def test_pool_brings_the_loopback_up(pool):
    source = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname())"
    done = run(["python3", "-c", source], namespaces=Namespaces(network=pool), check=True)

    assert 0 == done.returncode


def test_pool_shows_the_network_in_sys_of_the_namespace_alone(pool):
    done = run(["ls", "/sys/class/net"], namespaces=Namespaces(network=pool), text=True, check=True)

    assert "lo\n" == done.stdout


def test_pool_fills_up_again(pool):
    assert pool.wait_full(10)
    with pool.take(), pool.take():
        assert pool.wait_full(10)
        assert 4 == len(pool)


def test_pool_serves_more_than_it_holds_from_many_threads(pool):
    taken = []
    lock = threading.Lock()

    def take():
        for _ in range(5):
            namespace = pool.take()
            with lock:
                taken.append(namespace)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert 20 == len({namespace.inode for namespace in taken})
    for namespace in taken:
        namespace.close()


def test_pool_leaves_the_caller_where_it_was(pool):
    before = os.readlink("/proc/thread-self/ns/net")
    for _ in range(6):
        pool.take().close()

    assert before == os.readlink("/proc/thread-self/ns/net")


def test_pool_keeps_the_container_in_the_network_that_was_taken(pool):
    with (
        Container(namespaces=Namespaces(network=pool)) as container,
        Namespace.of(container.pid, Kind.NETWORK) as inside,
    ):
        done = container.run(["readlink", "/proc/self/ns/net"], text=True)

        assert f"net:[{inside.inode}]\n" == done.stdout


def test_pool_that_was_closed_gives_nothing_and_holds_nothing():
    before = len(os.listdir("/proc/self/fd"))
    pool = NetworkPool(3)
    pool.wait_full(10)
    pool.close()
    pool.close()

    with pytest.raises(StateError, match="closed"):
        pool.take()
    assert before == len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("size", [0, -1, True, 1.5, "4", 5000])
def test_pool_refuses_a_size_that_cannot_be(size):
    with pytest.raises(SpecError, match="size"):
        NetworkPool(size)

"""What a network adds to a start, what a port costs beside ten thousand, the first connection, and what goes through.

Beside it podman with a bridge and without, where it is there: its own difference, on the same root filesystem.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import attrs

from benchmarks.floor import Floor
from benchmarks.measure import Ratio as _Ratio
from benchmarks.measure import Report, Rung, Series, interleave, main, options, quantile, ratio
from containerkit import Container, Network, Port, RootFS, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from containerkit import LiveNetwork

NONE, MADE, POOLED = "run(), no network", "run(), endpoint made", "template, endpoint ready"
READY = "template, no network, net ready"
FEW, MANY = "publish beside 0", "publish beside 10,000"
PODMAN = {"podman, none": "none", "podman, bridge": "bridge"}
PUBLISHED = 10_000
SECONDS = 1.0


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return the call, telling how long it took in microseconds."""

    def once() -> float:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e6

    return once


def refilled(template: Container, call: Callable[[], object]) -> Callable[[], float]:
    """Return the call, timed, with what it takes from waited for beforehand."""
    once = timed(call)

    def waiting() -> float:
        template.wait_full(30)  # type: ignore[attr-defined] # Container.prepare returns a Template
        return once()

    return waiting


def publishing(net: LiveNetwork, first: int) -> Callable[[], float]:
    """Return what publishes a port of a container's and takes it back; the publishing alone is timed."""
    attendant = net.router.attendant
    address = net.gateways[0].rpartition(".")[0] + ".200"
    numbers = iter(range(first, 20_000))  # below what the kernel gives away

    def once() -> float:
        port = Port(next(numbers), 80, host="0.0.0.0")
        began = time.perf_counter()
        published = attendant.publish(port, (address,))
        took = time.perf_counter() - began
        published.close()
        return took * 1e6

    return once


def crowd(net: LiveNetwork) -> None:
    """Publish ten thousand ports, by the rules alone: each with a socket takes as many descriptors."""
    rules = net.router.host_rules
    if rules is None:
        raise RuntimeError("an unprivileged user's ports have no rules")
    rules.publish("0.0.0.0", 20_000, "tcp", net.gateways[0], 20_000, count=PUBLISHED)


def first_connections(net: LiveNetwork, count: int) -> dict[str, list[float]]:
    """Return how long the first connection to fresh containers takes, in milliseconds, by the version of IP."""
    taken: dict[str, list[float]] = {"IPv4": [], "IPv6": []}
    for number in range(count):
        with Container(network=net) as container, container.popen(["python3", "-c", LISTEN], stdout=-1) as process:
            assert process.stdout is not None
            process.stdout.readline()
            version, address = list(zip(taken, net.addresses(container), strict=False))[number % 2]
            began = time.perf_counter()
            socket.create_connection((address, 80), 10).close()
            taken[version].append((time.perf_counter() - began) * 1e3)
    return taken


def flow(address: str, port: int, seconds: float) -> float:
    """Send for a while; return gigabits per second, as the receiver has counted them."""
    with socket.create_connection((address, port), 10) as made:
        chunk, end, sent = bytes(1 << 20), time.monotonic() + seconds, 0
        began = time.perf_counter()
        while time.monotonic() < end:
            made.sendall(chunk)
            sent += len(chunk)
        made.shutdown(socket.SHUT_WR)
        made.recv(1)  # the receiver has all of it
        return sent * 8 / (time.perf_counter() - began) / 1e9


LISTEN = """
import socket
s = socket.create_server(("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
print(flush=True)
s.accept()
"""
SINK = """
import socket
s = socket.create_server(("0.0.0.0", 80))
print(flush=True)
while True:
    c, _ = s.accept()
    buffer = bytearray(1 << 20)
    while c.recv_into(buffer): pass
    c.close()
"""


def sink_here() -> int:
    """Serve the same from a thread of this process, on the loopback; return the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            accepted, _ = listener.accept()
            buffer = bytearray(1 << 20)
            while accepted.recv_into(buffer):
                pass
            accepted.close()

    threading.Thread(target=serve, daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def throughput(net: LiveNetwork, samples: int) -> dict[str, list[float]]:
    """Return Gbit/s by the way that they take, in rounds."""
    wishes = [Port(0, 80), Port(0, 80, host="0.0.0.0")]
    with Container(network=net, publish=wishes) as inside, inside.popen(["python3", "-c", SINK], stdout=-1) as process:
        assert process.stdout is not None
        process.stdout.readline()
        local, outer = net.ports(inside)
        own = next(each for each in host_addresses() if not each.startswith("127."))
        ways = {
            "loopback, no container": ("127.0.0.1", sink_here()),
            "container's own address": (net.addresses(inside)[0], 80),
            "published port, host's address": (own, outer.host_port),
            "published port, 127.0.0.1": ("127.0.0.1", local.host_port),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(samples):
            for name, (address, port) in ways.items():
                found[name].append(flow(address, port, SECONDS))
        process.kill()
    return found


def host_addresses() -> list[str]:
    """Return the host's addresses of IPv4."""
    from containerkit.network import uplinks

    return sorted(each for each in uplinks.host_addresses() if ":" not in each)


def with_files_of_etc(directory: str) -> None:
    """Make what the files of a network's are mounted on."""
    os.makedirs(os.path.join(directory, "etc"), exist_ok=True)
    for name in ("hosts", "resolv.conf"):
        with open(os.path.join(directory, "etc", name), "a", encoding="ascii"):
            pass


def podman(floor: Floor, network: str) -> Callable[[], float]:
    """Return what starts one container by podman."""
    words = ["podman", "run", "--rm", f"--network={network}", "--rootfs", floor.directory, "/true"]
    return lambda: floor.spawn(*words)


@attrs.frozen
class Found:
    """What was measured: the starts, and what is told beside them."""

    series: dict[str, Series]
    first: dict[str, list[float]]
    flows: dict[str, list[float]]
    crowds: dict[str, float]


def look(asked: argparse.Namespace) -> Found:
    """Measure all of it."""
    with ExitStack() as stack:
        floor = stack.enter_context(Floor())
        with_files_of_etc(floor.directory)
        root = RootFS.dir(floor.directory, readonly=True)
        net = stack.enter_context(Network("benchmark").open())
        bare = stack.enter_context(Container.prepare(root, networks=8, ready=0))
        pooled = stack.enter_context(Container.prepare(root, networks=8, ready=0, network=net))
        rungs = [
            Rung(NONE, timed(lambda: run(["/true"], rootfs=root))),
            Rung(MADE, timed(lambda: run(["/true"], rootfs=root, network=net))),
            Rung(READY, refilled(bare, lambda: bare.run(["/true"]))),
            Rung(POOLED, refilled(pooled, lambda: pooled.run(["/true"]))),
        ]
        if asked.podman:
            rungs += [Rung(name, podman(floor, network), 0.2) for name, network in PODMAN.items()]
        series = interleave(rungs, asked.samples)
        series |= interleave([Rung(FEW, publishing(net, 10_000))], asked.samples)
        crowd(net)
        series |= interleave([Rung(MANY, publishing(net, 15_000))], asked.samples)
        first = first_connections(net, asked.containers)
        flows = throughput(net, asked.rounds)
        with Network("crowd").open() as many:
            crowds = {"no network": up(root, asked.crowd), "one bridge": up(root, asked.crowd, network=many)}
    return Found(series, first, flows, crowds)


def up(root: RootFS, count: int, **wishes: LiveNetwork) -> float:
    """Return how many seconds it takes until so many containers are up."""
    with ExitStack() as all_of_them:
        began = time.perf_counter()
        for _ in range(count):
            all_of_them.enter_context(Container(root, **wishes))
        return time.perf_counter() - began


def measure(asked: argparse.Namespace) -> Report:
    """Measure, and compare."""
    found = look(asked)
    rows = [
        (each.name, f"{each.median / 1000:.3f} ms", f"{each.quantile(0.95) / 1000:.3f} ms")
        for each in found.series.values()
    ]
    rows += [
        (f"first connection, {version}", f"{quantile(sorted(taken), 0.5):.2f} ms", f"most {max(taken):.2f} ms")
        for version, taken in found.first.items()
        if taken
    ]
    for name, rates in found.flows.items():
        rows.append((name, f"{quantile(sorted(rates), 0.5):.1f} Gbit/s", f"least {min(rates):.1f}"))
    rows += [(f"{asked.crowd} containers up, {name}", f"{took:.2f} s", "") for name, took in found.crowds.items()]
    pairs = ((MADE, NONE), (POOLED, READY), (MANY, FEW), (MADE, "podman, bridge"))
    ratios: dict[str, _Ratio] = {
        f"{one} / {two}": ratio(found.series[one].samples, found.series[two].samples)
        for one, two in pairs
        if one in found.series and two in found.series
    }
    rows += [(name, str(value), "ratio") for name, value in ratios.items()]
    data = {
        "series": {name: each.summary() for name, each in found.series.items()},
        "first_connection_ms": found.first,
        "gbit_per_s": found.flows,
        "crowd_s": found.crowds,
    }
    return Report("network", "Networks", ("", "median", "p95"), tuple(rows), data, ratios)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    made = options(__doc__ or "", samples=100)
    made.add_argument("--containers", type=int, default=100, help="whose first connection is timed (default 100)")
    made.add_argument("--crowd", type=int, default=500, help="that are up at once (default 500)")
    made.add_argument("--rounds", type=int, default=5, help="of throughput (default 5)")
    made.add_argument("--podman", action="store_true", help="start podman's beside them")
    return made


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("benchmarks.network: run it as root: rules at the host are part of it")
    main(measure, parser())

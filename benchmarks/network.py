"""The cost of a network at a start and of a port among ten thousand, the first connection, and the throughput.

For comparison docker and podman, if they are available: a start with a bridge and without, and a published port.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs

from benchmarks.engines import installed
from benchmarks.floor import Floor
from benchmarks.measure import Ratio as _Ratio
from benchmarks.measure import Report, Rung, Series, interleave, main, options, quantile, ratio
from containerkit import Attach, Container, Network, Port, RootFS, run

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from containerkit import LiveNetwork

NONE, MADE, POOLED = "run(), no network", "run(), endpoint made", "template, endpoint ready"
READY = "template, no network, net ready"
FEW, MANY = "publish beside 0", "publish beside 10,000"
PUBLISHED = 10_000
SECONDS = 1.0


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that makes the call and returns its duration in microseconds."""

    def once() -> float:
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e6

    return once


def refilled(template: Container, call: Callable[[], object]) -> Callable[[], float]:
    """Return the timed call. Before each call it waits until the template is full."""
    once = timed(call)

    def waiting() -> float:
        template.wait_full(30)  # type: ignore[attr-defined] # Container.prepare returns a Template
        return once()

    return waiting


def publishing(net: LiveNetwork, first: int) -> Callable[[], float]:
    """Return a function that publishes a port of a container and removes it. Only the publishing is timed."""
    attendant = net.router.attendant
    claim = net.claim(Attach(net), 0, (), has_default_route=True)
    numbers = iter(range(first, 20_000))  # below what the kernel gives away
    # The first port of a router also loads the programs of the short way.
    attendant.publish(Port(0, 80), claim.addresses, claim.wire).close()

    def once() -> float:
        port = Port(next(numbers), 80, host="0.0.0.0")
        began = time.perf_counter()
        published = attendant.publish(port, claim.addresses, claim.wire)
        took = time.perf_counter() - began
        published.close()
        return took * 1e6

    return once


def crowd(net: LiveNetwork) -> None:
    """Publish ten thousand ports by rules without sockets, because each socket needs a descriptor."""
    rules = net.router.host_rules
    if rules is None:
        raise RuntimeError("an unprivileged user's ports have no rules")
    rules.publish("0.0.0.0", 20_000, "tcp", net.gateways[0], 20_000, count=PUBLISHED)


def first_connections(net: LiveNetwork, count: int) -> dict[str, list[float]]:
    """Return the milliseconds of the first connection to fresh containers, by IP version."""
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
    """Send for some time. Return the gigabits per second that the receiver has counted."""
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


@contextmanager
def sink_here(floor: Floor) -> Iterator[int]:
    """Serve on the host. Yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    with subprocess.Popen([os.path.join(floor.directory, "sink"), str(port)]) as process:
        try:
            yield port
        finally:
            process.kill()


def ways(floor: Floor, root: RootFS, net: LiveNetwork, stack: ExitStack) -> dict[str, tuple[str, int]]:
    """Start the receivers. Return the addresses of each."""
    wishes = [Port(0, 80), Port(0, 80, host="0.0.0.0")]
    inside = stack.enter_context(Container(root, network=net, publish=wishes))
    process = stack.enter_context(inside.popen(["/sink"]))
    stack.callback(process.kill)
    local, outer = net.ports(inside)
    own = next(each for each in host_addresses() if not each.startswith("127."))
    found = {
        "loopback, no container": ("127.0.0.1", stack.enter_context(sink_here(floor))),
        "container's own address": (net.addresses(inside)[0], 80),
        "published port, host's address": (own, outer.host_port),
        "published port, 127.0.0.1": ("127.0.0.1", local.host_port),
    }
    for each in installed():
        stack.enter_context(each.ready(floor))
        port = stack.enter_context(each.sink(floor))
        found |= {f"{each.name}, host's address": (own, port), f"{each.name}, 127.0.0.1": ("127.0.0.1", port)}
    return found


def throughput(floor: Floor, root: RootFS, net: LiveNetwork, samples: int) -> dict[str, list[float]]:
    """Return the Gbit/s of each way, measured in rounds."""
    with ExitStack() as stack:
        places = ways(floor, root, net, stack)
        found: dict[str, list[float]] = {name: [] for name in places}
        time.sleep(0.5)  # all of them listen
        for _ in range(samples):
            for name, (address, port) in places.items():
                found[name].append(flow(address, port, SECONDS))
    return found


def host_addresses() -> list[str]:
    """Return the host's IPv4 addresses."""
    from containerkit.network import uplinks

    return sorted(each for each in uplinks.host_addresses() if ":" not in each)


def with_files_of_etc(directory: str) -> None:
    """Make the files on which a network's files are mounted."""
    os.makedirs(os.path.join(directory, "etc"), exist_ok=True)
    for name in ("hosts", "resolv.conf"):
        with open(os.path.join(directory, "etc", name), "a", encoding="ascii"):
            pass


@attrs.frozen
class Found:
    """The results: the starts, and further figures."""

    series: dict[str, Series]
    first: dict[str, list[float]]
    flows: dict[str, list[float]]
    crowds: dict[str, float]


def look(asked: argparse.Namespace) -> Found:
    """Measure everything."""
    with ExitStack() as stack:
        floor = stack.enter_context(Floor())
        with_files_of_etc(floor.directory)
        floor.build("root/sink", ("sink.c",), "-static", "-O2")
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
        for each in installed():
            stack.enter_context(each.ready(floor))
            rungs += [Rung(f"{each.name}, {on}", partial(each.once, floor, on), 0.2) for on in ("none", "bridge")]
        series = interleave(rungs, asked.samples)
        series |= interleave([Rung(FEW, publishing(net, 10_000))], asked.samples)
        crowd(net)
        series |= interleave([Rung(MANY, publishing(net, 15_000))], asked.samples)
        first = first_connections(net, asked.containers)
        flows = throughput(floor, root, net, asked.rounds)
        with Network("crowd").open() as many:
            crowds = {"no network": up(root, asked.crowd), "one bridge": up(root, asked.crowd, network=many)}
    return Found(series, first, flows, crowds)


def up(root: RootFS, count: int, **wishes: LiveNetwork) -> float:
    """Return the seconds until this number of containers is running."""
    with ExitStack() as all_of_them:
        began = time.perf_counter()
        for _ in range(count):
            all_of_them.enter_context(Container(root, **wishes))
        return time.perf_counter() - began


def measure(asked: argparse.Namespace) -> Report:
    """Measure and compare."""
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
    pairs = ((MADE, NONE), (POOLED, READY), (MANY, FEW), (MADE, "docker, bridge"), (MADE, "podman, bridge"))
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
    return made


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("benchmarks.network: run it as root: rules at the host are part of it")
    main(measure, parser())

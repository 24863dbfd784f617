"""The time from the call until the process is reaped, for the same program started by different means."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from subprocess import DEVNULL
from subprocess import run as run_plainly
from typing import TYPE_CHECKING, Any

import attrs

from benchmarks.floor import Floor
from benchmarks.measure import Ratio, Report, Rung, Series, interleave, main, options, ratio
from benchmarks.peers import PEERS
from containerkit import Container, Limits, Namespaces, RootFS, run
from containerkit.security.capabilities import Capabilities

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from containerkit import Template

FLOOR = "vfork+exec"
STATIC = "vfork+exec, static libc"
DYNAMIC = "vfork+exec, dynamic libc"

COMPARISONS = (
    ("run(), host root", "C twin, host root"),
    ("run(), host root", DYNAMIC),
    ("run(), host root", "subprocess.run, dynamic"),
    ("run(), directory", "C twin, directory"),
    ("run(), directory, no init", "C twin, directory, no init"),
    ("run(), directory, pooled net", "C twin, directory, pooled net"),
    ("run(), directory, security off", "C twin, directory, security off"),
    ("run(), directory, pooled net, security off", "C twin, directory, pooled net, security off"),
    ("run(), directory, pooled net", FLOOR),
    ("exec in a live container", FLOOR),
    ("with Container(), whole", FLOOR),
    ("C twin, directory, pooled net, static libc", STATIC),
    ("run(), directory, static libc", STATIC),
    ("template, pooled net, static libc", STATIC),
    ("template, ready, static libc", STATIC),
    ("template, pooled net", "C twin, directory, pooled net"),
    ("exec in a live container, static libc", STATIC),
    ("with Container(), whole, static libc", STATIC),
)
"""The ratios that are reported, in addition to those to each peer. Both sides of a ratio run the same program."""


@attrs.frozen
class Group:
    """Rungs that belong together: ``floor``, ``containerkit`` or ``peer``."""

    name: str
    rungs: tuple[Rung, ...]


def timed(call: Callable[[], object]) -> Callable[[], float]:
    """Return a function that makes the call and returns its duration in microseconds."""

    def measured() -> float:
        began = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - began) / 1000

    return measured


def floors(floor: Floor) -> Group:
    """Return the rungs in C."""
    directory = ("init", "net", "time", "security")
    pooled = ("init", "pooled", "time", "security")
    twins = {
        "host root": ("host", *directory),
        "host root, pooled net": ("host", *pooled),
        "directory": directory,
        "directory, no init": ("net", "time", "security"),
        "directory, no time namespace": ("init", "net", "security"),
        "directory, security off": ("init", "net", "time"),
        "directory, pooled net": pooled,
        "directory, pooled net, security off": ("init", "pooled", "time"),
        "directory, pooled net, static libc": (*pooled, "static"),
    }
    return Group(
        "floor",
        (
            Rung(FLOOR, lambda: floor.spawn(floor.true)),
            Rung(STATIC, lambda: floor.spawn(floor.static_true)),
            Rung(DYNAMIC, lambda: floor.spawn(floor.dynamic_true)),
            *(Rung(f"C twin, {name}", partial(floor.twin, *wishes)) for name, wishes in twins.items()),
        ),
    )


def _unconfined() -> dict[str, Any]:
    """Return the arguments that disable all restrictions of a command."""
    return {
        "capabilities": Capabilities.all(),
        "keyring": "host",
        "masked_paths": (),
        "nested_userns": True,
        "no_new_privs": False,
        "readonly_paths": (),
        "seccomp": None,
    }


def ours(floor: Floor, stack: ExitStack) -> Group:
    """Return the rungs of containerkit. The stack closes what they need."""
    directory = RootFS.dir(floor.directory, readonly=True)
    pool = stack.enter_context(
        stack.enter_context(Container(directory, namespaces=Namespaces(user="host"))).namespace("network")
    )
    pooled = Namespaces(network=pool)
    mount_alone = Namespaces(**dict.fromkeys(("pid", "network", "ipc", "uts", "user", "cgroup", "time"), "host"))
    some = Namespaces(network="host", user="host", cgroup="host", time="host")
    off = _unconfined()
    true = (["/true"], {"rootfs": directory})
    static = (["/static"], {"rootfs": directory})
    host: tuple[list[str], dict[str, Any]] = (["/bin/true"], {})
    wishes: dict[str, tuple[tuple[list[str], dict[str, Any]], dict[str, Any]]] = {
        "host root": (host, {}),
        "host root, no init": (host, {"init": False}),
        "host root, read-only": (host, {"rootfs": RootFS.host(readonly=True)}),
        "host root, pooled net": (host, {"namespaces": pooled}),
        "directory": (true, {}),
        "directory, no init": (true, {"init": False}),
        "directory, no time namespace": (true, {"namespaces": Namespaces(time="host")}),
        "directory, mount+pid+ipc+uts": (true, {"namespaces": some}),
        "directory, mount alone": (true, {"namespaces": mount_alone}),
        "directory, nothing captured": (true, {"capture_output": False}),
        "directory, security off": (true, off),
        "directory, limits": (true, _limits()),
        "directory, pooled net": (true, {"namespaces": pooled}),
        "directory, pooled net, security off": (true, {"namespaces": pooled, **off}),
        "directory, static libc": (static, {}),
    }
    rungs = [
        Rung(f"run(), {name}", timed(partial(run, argv, check=True, **{**base, **more})))
        for name, ((argv, base), more) in wishes.items()
    ]
    template = stack.enter_context(Container.prepare(directory, namespaces=pooled))
    stocked = stack.enter_context(Container.prepare(directory, ready=4))
    live = stack.enter_context(Container(directory))
    for end, words in (("", true[0]), (", static libc", static[0])):
        rungs.append(Rung(f"template, pooled net{end}", timed(partial(template.run, words, check=True))))
        rungs.append(Rung(f"template, ready{end}", partial(_ready, stocked, words)))
        rungs.append(Rung(f"exec in a live container{end}", timed(partial(live.run, words, check=True))))
        rungs.append(Rung(f"with Container(), whole{end}", timed(partial(_whole, directory, words))))
    return Group("containerkit", tuple(rungs))


def _ready(template: Template, argv: list[str]) -> float:
    """Measure a run in a container that was created before. It applies if starts are not faster than the creation."""
    template.wait_full(1)
    return timed(partial(template.run, argv, check=True))()


def _limits() -> dict[str, Any]:
    return {"limits": Limits(memory="256M", pids=64)}


def _whole(root: RootFS, argv: list[str]) -> None:
    with Container(root) as container:
        container.run(argv, check=True)


def peers(floor: Floor, scratch: str) -> Group:
    """Return the rungs of other installed programs."""
    plainly = partial(run_plainly, stdin=DEVNULL, capture_output=True, check=True)
    others = [
        Rung(peer.name, partial(floor.spawn, *peer.words(floor.directory, scratch)), 0.2 if peer.slow else 1.0)
        for peer in PEERS
        if peer.installed
    ]
    return Group(
        "peer",
        (
            Rung("subprocess.run", timed(partial(plainly, [floor.true]))),
            Rung("subprocess.run, dynamic", timed(partial(plainly, [floor.dynamic_true]))),
            *others,
        ),
    )


def compare(taken: dict[str, Series], group_of: dict[str, str]) -> dict[str, Ratio]:
    """Return the reported ratios, by ``one / two``."""
    others = [name for name, group in group_of.items() if group == "peer" and name != "subprocess.run, dynamic"]
    pairs = [*COMPARISONS, *[(ours, name) for name in others for ours in ("run(), directory", "template, ready")]]
    return {
        f"{one} / {two}": ratio(taken[one].samples, taken[two].samples)
        for one, two in pairs
        if one in taken and two in taken
    }


def measure(asked: argparse.Namespace) -> Report:
    """Measure all rungs."""
    with ExitStack() as stack:
        floor = stack.enter_context(Floor())
        floor.load_filter()
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="containerkit-peers-"))
        groups = [floors(floor), ours(floor, stack)]
        if not asked.no_peers:
            groups.append(peers(floor, scratch))
        group_of = {rung.name: group.name for group in groups for rung in group.rungs}
        taken = interleave([rung for group in groups for rung in group.rungs], asked.samples)
    return _report(taken, group_of)


def _report(taken: dict[str, Series], group_of: dict[str, str]) -> Report:
    ratios = compare(taken, group_of)
    rows = [
        (
            name,
            *(f"{series.quantile(share):,.0f}" for share in (0.5, 0.95, 0.99)),
            f"{series.median / taken[FLOOR].median:.2f}" if FLOOR in taken else "",
        )
        for name, series in taken.items()
    ]
    rows += [("", "", "", "", ""), *[(name, str(value), "", "", "") for name, value in ratios.items()]]
    bars = [{"name": name, "group": group_of[name], **_heights(series)} for name, series in taken.items()]
    rungs = {name: {"group": group_of[name], **series.summary()} for name, series in taken.items()}
    return Report(
        "latency",
        "Start, run and reap a program that does nothing (microseconds; ratios of medians with their 95 % interval)",
        ("", "p50", "p95", "p99", "x floor"),
        tuple(rows),
        {"rungs": rungs, "bars": bars},
        ratios,
    )


def _heights(series: Series) -> dict[str, float]:
    return {"p50_us": round(series.median, 1), "p95_us": round(series.quantile(0.95), 1)}


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    own = options(__doc__ or "", samples=100)
    own.add_argument("--no-peers", action="store_true", help="leave out the other programs")
    return own


if __name__ == "__main__":
    os.umask(0o022)
    main(measure, parser())

"""The time and processor time of commands: the verbs of ``containerkit``, and those of the OCI command.

Each verb is a process of its own, as a shell or an engine starts it. Processor time is that of the process and of the
children that it reaped. In each round every program performs its whole sequence of verbs once, and the order of the
programs is random.
"""

from __future__ import annotations

import atexit
import json
import os
import random
import shutil
import stat
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import attrs

from benchmarks.measure import WARM_UP, Report, Series, main, options, quantile, ratio
from containerkit.oci import launcher
from containerkit.oci.specification import default

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

BARE: Final = "bare interpreter"
OURS: Final = "containerkit-oci"
ALONE: Final = "containerkit-oci in Python"
DEADLINE_S: Final = 10.0


@attrs.frozen
class Cost:
    """What one process took.

    Attributes:
        elapsed_us: microseconds from the start to the reaping.
        cpu_us: microseconds of processor time, of the user and of the kernel.
    """

    elapsed_us: float
    cpu_us: float


@attrs.frozen
class Program:
    """A program and the verbs that are measured, in their order.

    Attributes:
        name: the program.
        verbs: the command line of each verb.
        pid_file: a file with the process that the verb ``kill`` ends, awaited before the next verb.
        slow: whether it takes so long that every fifth round is enough.
    """

    name: str
    verbs: dict[str, list[str]]
    pid_file: str = ""
    slow: bool = False

    def perform(self) -> dict[str, Cost]:
        """Perform all verbs once.

        Raises:
            RuntimeError: a verb failed.
        """
        costs = {}
        for verb, words in self.verbs.items():
            costs[verb] = spawn(words)
            if verb == "kill" and self.pid_file:
                await_end(int(Path(self.pid_file).read_text(encoding="ascii")))
        return costs


@cache
def _null() -> str:
    """Return a null device. Root makes its own: crun 1.8 gives its standard streams to the user of the container."""
    if os.geteuid() != 0:
        return os.devnull
    place = tempfile.mkdtemp(prefix="containerkit-null-")
    atexit.register(shutil.rmtree, place)
    os.mknod(f"{place}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    return f"{place}/null"


def spawn(words: Sequence[str]) -> Cost:
    """Run a command with its standard streams at a null device.

    Raises:
        RuntimeError: it failed.
    """
    # An installed package has its bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    null = [(os.POSIX_SPAWN_OPEN, number, _null(), os.O_RDWR, 0) for number in range(3)]
    began = time.perf_counter_ns()
    pid = os.posix_spawnp(words[0], words, environment, file_actions=null)
    _, status, usage = os.wait4(pid, 0)
    elapsed = (time.perf_counter_ns() - began) / 1000
    if status:
        raise RuntimeError(f"{' '.join(words)}: exit status {os.waitstatus_to_exitcode(status)}")
    return Cost(elapsed, (usage.ru_utime + usage.ru_stime) * 1e6)


def await_end(pid: int) -> None:
    """Wait until a process is a zombie or gone.

    Raises:
        RuntimeError: it did not end in ten seconds.
    """
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
        except OSError:
            return
        if stat.rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.001)
    raise RuntimeError(f"process {pid} did not end in {DEADLINE_S:g} s")


def find(name: str) -> str | None:
    """Return the path of a program: that of this interpreter's environment first."""
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return beside if os.access(beside, os.X_OK) else shutil.which(name)


def bundle(place: str) -> str:
    """Make an OCI bundle whose process sleeps, and return its path.

    Raises:
        RuntimeError: there is no busybox.
    """
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("the OCI verbs need a static busybox: install busybox-static")
    root = Path(place, "bundle/rootfs")
    for name in ("bin", "proc", "sys", "dev"):
        (root / name).mkdir(parents=True)
    shutil.copy(busybox, root / "bin/busybox")
    config = default()
    config["ociVersion"] = "1.0.2"
    config["process"].update(terminal=False, args=["/bin/busybox", "sleep", "60"])
    # crun 1.8 refuses control groups of both versions on one machine.
    config["linux"].pop("resources", None)
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    (root.parent / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(root.parent)


def write(place: str, name: str, content: bytes) -> str:
    """Write a program, and return its path."""
    path = Path(place, f"{name}.program")
    path.write_bytes(content)
    path.chmod(0o755)
    return str(path)


def shell_verbs(place: str) -> list[Program]:
    """Return the programs that a user types: the interpreter alone, ours, and others that start the same."""
    ours = find("containerkit")
    if ours is None:
        raise RuntimeError("the command containerkit is not installed: pip install .")
    name = f"bench-{os.getpid()}"
    sleep = ["sleep", "60"]
    programs = [
        Program(BARE, {"run": [sys.executable, "-c", "pass"]}),
        Program(
            "containerkit",
            {
                "run": [ours, "run", "--", "true"],
                "run -d": [ours, "run", "-d", "--name", name, "--", *sleep],
                "ps": [ours, "ps"],
                "exec": [ours, "exec", name, "true"],
                "logs": [ours, "logs", name],
                "rm -f": [ours, "rm", "-f", name],
            },
        ),
    ]
    if shutil.which("bwrap"):
        words = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "true"]
        programs.append(Program("bwrap", {"run": words}))
    if shutil.which("podman") and shutil.which("busybox") and os.geteuid() == 0:
        programs.append(_podman(place, name))
    return programs


def _podman(place: str, name: str) -> Program:
    root = Path(place, "podman-root")
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    podman = ["podman", "--runtime=runc", "--cgroup-manager=cgroupfs"]
    run = [*podman, "run", "--network=none", "--log-driver=k8s-file"]
    run += ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
    inside = ["--rootfs", str(root), "/bin/busybox"]
    verbs = {
        "run": [*run, "--rm", *inside, "true"],
        "run -d": [*run, "-d", "--name", name, *inside, "sleep", "60"],
        "ps": [*podman, "ps"],
        "exec": [*podman, "exec", name, "/bin/busybox", "true"],
        "logs": [*podman, "logs", name],
        "rm -f": [*podman, "rm", "-f", "-t", "0", name],
    }
    return Program("podman", verbs, slow=True)


def oci_verbs(place: str) -> list[Program]:
    """Return the OCI runtimes: ours as engines start it, ours without its front end, and others that are installed."""
    directory = bundle(place)
    paths = {OURS: write(place, OURS, launcher.program()), ALONE: write(place, ALONE, launcher.text().encode())}
    programs = []
    for name in (OURS, ALONE, "crun", "runc"):
        path = paths.get(name) or shutil.which(name)
        if path is None:
            continue
        one, pid_file = f"bench-{os.getpid()}", os.path.join(place, f"{name}.pid")
        # Without control groups crun has less to do than the others.
        words = [path, "--root", os.path.join(place, name), *(["--cgroup-manager=disabled"] if name == "crun" else [])]
        verbs = {
            "create": [*words, "create", "--bundle", directory, "--pid-file", pid_file, one],
            "state": [*words, "state", one],
            "start": [*words, "start", one],
            "exec": [*words, "exec", one, "/bin/busybox", "true"],
            "kill": [*words, "kill", one, "KILL"],
            "delete": [*words, "delete", one],
        }
        programs.append(Program(name, verbs, pid_file))
    return programs


def interleave(
    programs: list[Program], samples: int, tell: Callable[[str], object]
) -> dict[tuple[str, str], list[Cost]]:
    """Perform the sequences of all programs in rounds. A program that fails in its warm-up is left out."""
    alive = []
    for program in programs:
        try:
            for _ in range(WARM_UP):
                program.perform()
        except (RuntimeError, OSError) as error:
            tell(f"{program.name}: left out: {error}")
        else:
            alive.append(program)
    costs: dict[tuple[str, str], list[Cost]] = {}
    for number in range(samples):
        for program in random.sample(alive, len(alive)):
            if program.slow and number % 5:
                continue
            for verb, cost in program.perform().items():
                costs.setdefault((program.name, verb), []).append(cost)
    return costs


def measure(asked: argparse.Namespace) -> Report:
    """Measure all verbs of all programs that are installed."""
    with tempfile.TemporaryDirectory(prefix="containerkit-bench-") as place:
        os.chmod(place, 0o755)
        programs = shell_verbs(place)
        if os.geteuid() == 0:
            programs += oci_verbs(place)
        costs = interleave(programs, asked.samples, lambda line: print(line, file=sys.stderr, flush=True))
    times = {key: Series(" ".join(key), tuple(cost.elapsed_us for cost in each)) for key, each in costs.items()}
    cpu = {key: Series(" ".join(key), tuple(cost.cpu_us for cost in each)) for key, each in costs.items()}
    rows = [
        (
            series.name,
            f"{series.median / 1000:.1f}",
            f"{series.quantile(0.1) / 1000:.1f}",
            f"{cpu[key].median / 1000:.1f}",
        )
        for key, series in times.items()
    ]
    ratios = {}
    for (name, verb), series in times.items():
        for other in {"containerkit": (BARE, "bwrap", "podman"), OURS: (ALONE, "crun", "runc")}.get(name, ()):
            if (other, verb) in times:
                ratios[f"{name} {verb} / {other}"] = ratio(series.samples, times[other, verb].samples)
                if cpu[other, verb].median:
                    ratios[f"CPU time, {name} {verb} / {other}"] = ratio(
                        cpu[name, verb].samples, cpu[other, verb].samples
                    )
    bars = [
        {
            "name": series.name,
            "group": "floor" if name == BARE else "containerkit" if name in ("containerkit", OURS, ALONE) else "peer",
            "p50_us": series.median,
            "p95_us": quantile(sorted(series.samples), 0.95),
        }
        for (name, _), series in times.items()
    ]
    data = {
        "elapsed": {series.name: series.summary() for series in times.values()},
        "cpu": {series.name: series.summary() for series in cpu.values()},
        "bars": bars,
    }
    header = ("", "p50 ms", "p10 ms", "CPU p50 ms")
    return Report("commands", "Commands (milliseconds)", header, tuple(rows), data, ratios)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    return options(__doc__ or "", samples=50)


if __name__ == "__main__":
    main(measure, parser())

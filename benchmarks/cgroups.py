"""The cost of a start's groups: create them with limits on memory, processor and processes, join a child, remove them.

``python -m benchmarks.cgroups`` prints CGroup next to the same operations in C (``cgroups.c``). The start and end of
the child are excluded from both, because they are needed without groups too.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Self

from benchmarks.measure import Report, Rung, interleave, main, options, ratio
from containerkit.cgroup import CGroup, Limits

if TYPE_CHECKING:
    import argparse
    from types import TracebackType

LIMITS = Limits(memory="256M", pids=64, cpus=1.5)
WRITTEN = {
    "memory.limit_in_bytes": LIMITS.memory,
    "memory.memsw.limit_in_bytes": LIMITS.memory,
    "memory.max": LIMITS.memory,
    "memory.swap.max": 0,
    "pids.max": LIMITS.pids,
    "cpu.cfs_quota_us": 150000,
    "cpu.max": "150000 100000",
}
HERE = os.path.dirname(os.path.abspath(__file__))


class Floor:
    """The C program. It lets children join groups, and performs all operations itself on request.

    Raises:
        RuntimeError: there is no C compiler.
    """

    def __init__(self) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("the floor is written in C: install gcc, or set CC")
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with tempfile.TemporaryDirectory() as directory, theirs:
            program = os.path.join(directory, "cgroups")
            source = os.path.join(HERE, "cgroups.c")
            subprocess.run([compiler, "-O2", "-std=gnu11", "-D_GNU_SOURCE", "-o", program, source], check=True)
            words = [program, str(theirs.fileno()), *self.words()]
            self._process = subprocess.Popen(words, pass_fds=(theirs.fileno(),))

    @staticmethod
    def words() -> list[str]:
        """Return what the program must create: each hierarchy's base, and what CGroup would write there."""
        words: list[str] = []
        with CGroup.create(limits=LIMITS) as group:
            for part in group.parts:
                words.append(part.path.rpartition("/")[0])
                words += [f"{file}={value}" for file, value in WRITTEN.items() if part.exists(file)]
        return words

    def whole(self) -> float:
        """Perform all operations in C. Return microseconds."""
        self._socket.send(b"whole")
        return self._answer()

    def join(self, files: tuple[int, ...]) -> float:
        """Let a child join. Return microseconds."""
        socket.send_fds(self._socket, [b"join"], list(files))
        return self._answer()

    def _answer(self) -> float:
        (nanoseconds,) = struct.unpack("=Q", self._socket.recv(8))
        return float(nanoseconds) / 1000

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ours(floor: Floor) -> float:
    began = time.perf_counter()
    group = CGroup.create(limits=LIMITS)
    files = group.attach_files()
    made = time.perf_counter()
    joining = floor.join(files)
    joined = time.perf_counter()
    group.remove()
    return (made - began + time.perf_counter() - joined) * 1e6 + joining


def _with_usage(floor: Floor) -> float:
    began = time.perf_counter()
    group = CGroup.create(limits=LIMITS)
    files = group.attach_files()
    made = time.perf_counter()
    joining = floor.join(files)
    joined = time.perf_counter()
    group.usage()
    group.remove()
    return (made - began + time.perf_counter() - joined) * 1e6 + joining


def measure(asked: argparse.Namespace) -> Report:
    """Measure all three variants and return the table."""
    with Floor() as floor:
        rungs = [
            Rung("the same in C", floor.whole),
            Rung("CGroup: create, join, remove", lambda: _ours(floor)),
            Rung("CGroup: create, join, usage, remove", lambda: _with_usage(floor)),
        ]
        series = interleave(rungs, asked.samples)
    base = series["the same in C"]
    ratios = {name: ratio(one.samples, base.samples) for name, one in series.items() if one is not base}
    rows = tuple(
        (
            name,
            *(f"{one.quantile(share):.0f}" for share in (0.5, 0.95, 0.99)),
            str(ratios[name]) if name in ratios else "1",
        )
        for name, one in series.items()
    )
    return Report(
        name="cgroups",
        title="groups of a start with memory, pids and cpus limited, microseconds",
        header=("", "p50", "p95", "p99", "of C (95 %)"),
        rows=rows,
        data={"series": {name: one.summary() for name, one in series.items()}},
        ratios=ratios,
    )


if __name__ == "__main__":
    main(measure, options(__doc__.partition("\n")[0], samples=200))

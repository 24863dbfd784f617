"""The duration of each step of the plan of ``run()``.

A copy of the C interpreter is built with a clock around each step (``steps.c``) and walks the real plan. The clock
costs about 0.1 microseconds per step, so the sum is slightly more than the time of a start.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Self

from containerkit._native._lib import ffi

import containerkit
from benchmarks.measure import Report, main, options, quantile
from containerkit import RootFS, run
from containerkit._native import compiled
from containerkit._native.build import SOURCES
from containerkit.plan import program as engine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

HERE = os.path.dirname(os.path.abspath(__file__))
STEPS = 1024

_CALL = " = perform(request, step);"
"""The line of child.c that performs a step."""


class Stopwatch:
    """Replaces the real interpreter by the instrumented one while it is entered."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="containerkit-steps-")
        native = os.path.join(os.path.dirname(containerkit.__file__), "_native")
        library = os.path.join(self._place.name, "steps.so")
        compiler = shutil.which(os.environ.get("CC", "cc")) or "gcc"
        flags = (
            "-std=gnu11",
            "-O2",
            "-fno-stack-protector",
            "-shared",
            "-fPIC",
            "-w",
            f"-I{native}",
            f"-I{self._place.name}",
        )
        sources = [
            os.path.join(HERE, "steps.c"),
            *(os.path.join(native, name) for name in SOURCES if name not in ("child.c", "calls.c")),
        ]
        with open(os.path.join(native, "child.c"), encoding="utf-8") as file:
            original = file.read()
        timed = original.replace(_CALL, f" = timed_{_CALL[3:]}")
        if timed.count("timed_") != 1:
            raise RuntimeError("child.c has changed: update _CALL")
        with open(os.path.join(self._place.name, "timed_child.c"), "w", encoding="utf-8") as file:
            file.write(timed)
        subprocess.run([compiler, *flags, "-o", library, *sources], check=True)
        self._library = ctypes.CDLL(library)
        times = ctypes.c_int64 * STEPS
        self.began = times.in_dll(self._library, "ck_began")
        self.ended = times.in_dll(self._library, "ck_ended")
        self._lib: Any = vars(compiled)["lib"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def ck_spawn(self, *arguments: Any) -> int:
        """Call the instrumented interpreter with the addresses of the real one's arguments."""
        plain: list[Any] = []
        for value in arguments:
            if isinstance(value, bytes):
                plain.append(ctypes.c_char_p(value))
            elif isinstance(value, ffi.CData):
                plain.append(ctypes.c_void_p(int(ffi.cast("uintptr_t", value))))
            else:
                plain.append(ctypes.c_ssize_t(value))
        return int(self._library.ck_spawn(*plain))

    def reset(self) -> None:
        """Reset the durations, because a step that the next start skips has none."""
        for times in (self.began, self.ended):
            ctypes.memset(times, 0, ctypes.sizeof(times))

    def __enter__(self) -> Self:
        vars(compiled)["lib"] = self
        return self

    def __exit__(self, *_: object) -> None:
        vars(compiled)["lib"] = self._lib
        self._place.cleanup()


def _names(plan: Any, tape: Any) -> list[str]:
    """Return a description of each step of a tape."""
    operations = plan.operations
    return [operations[origin].describe() for origin in tape.origin]


def durations(watch: Stopwatch, count: int) -> Iterator[tuple[int, float]]:
    """Yield the microseconds of each step of the last start."""
    for number in range(count):
        yield number, (watch.ended[number] - watch.began[number]) / 1000


def measure(asked: argparse.Namespace) -> Report:
    """Time the steps of the default start, or of one in a directory."""
    seen: list[Any] = []
    real = engine.Program.run

    def remember(program: Any, *arguments: Any, **more: Any) -> Any:
        seen.append(program)
        return real(program, *arguments, **more)

    wish: dict[str, Any] = {"rootfs": RootFS.dir(asked.directory)} if asked.directory else {}
    taken: dict[int, list[float]] = defaultdict(list)
    engine.Program.run = remember  # type: ignore[assignment, method-assign] # measured in its place
    try:
        with Stopwatch() as watch:
            for number in range(asked.samples + 5):
                watch.reset()
                run(asked.command, capture_output=False, **wish)  # this uses ck_spawn
                program = seen[-1]
                names = _names(program.plan, program._tape)  # noqa: SLF001 - a tool that looks inside
                if number >= 5:
                    for step, time_us in durations(watch, len(names)):
                        if watch.ended[step] > watch.began[step]:
                            taken[step].append(time_us)
    finally:
        engine.Program.run = real  # type: ignore[method-assign] # put back
    middle = {step: quantile(sorted(values), 0.5) for step, values in taken.items()}
    order = sorted(middle, key=lambda step: -middle[step])
    shown = order[: asked.top] if asked.top else order
    rows = [(f"{step:3} {names[step]}", f"{middle[step]:.1f}") for step in shown]
    rows.append(("all steps", f"{sum(middle.values()):.1f}"))
    data = {"steps": [{"step": step, "name": names[step], "p50_us": round(middle[step], 2)} for step in sorted(middle)]}
    return Report("steps", "The steps of a start (microseconds, median)", ("step", "p50"), tuple(rows), data)


def parser() -> argparse.ArgumentParser:
    """Return the options."""
    own = options(__doc__ or "", samples=100)
    own.add_argument("--directory", default="", help="a root filesystem (default: the machine's own programs)")
    own.add_argument("--top", type=int, default=30, help="how many steps are shown, 0 for all (default 30)")
    own.add_argument("command", nargs="*", default=["/bin/true"], help="the command to run (default /bin/true)")
    return own


if __name__ == "__main__":
    main(measure, parser())

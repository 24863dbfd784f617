"""Docker and podman with the same network as the library: a bridge, and published ports.

Each runs the programs of the floor's root filesystem. Docker is measured only if its daemon answers.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from shutil import which
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.floor import Floor

__all__ = ["ENGINES", "Engine", "installed"]

_IMAGE: Final = f"containerkit-bench-{os.getpid()}"


def _done(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip()}")
    return done.stdout.strip()


@attrs.frozen
class Engine:
    """A container engine.

    Attributes:
        name: its command.
        runtime: options before the verb.
        takes_directory: whether it runs a directory as a root filesystem. Otherwise an image is imported.
        options: more options of ``run``.
    """

    name: str
    runtime: tuple[str, ...] = ()
    takes_directory: bool = False
    options: tuple[str, ...] = ()

    def _words(self, floor: Floor, program: str, *wishes: str) -> list[str]:
        root = ["--rootfs", floor.directory] if self.takes_directory else [_IMAGE]
        return [self.name, *self.runtime, "run", "--rm", *self.options, *wishes, *root, program]

    @contextmanager
    def ready(self, floor: Floor) -> Iterator[None]:
        """Import the image, and remove it at the end."""
        if self.takes_directory:
            yield
            return
        packed = subprocess.run(["tar", "-C", floor.directory, "-c", "."], capture_output=True, check=True)
        subprocess.run([self.name, "import", "-", _IMAGE], input=packed.stdout, check=True, capture_output=True)
        try:
            yield
        finally:
            _done(self.name, "rmi", "-f", _IMAGE)

    def once(self, floor: Floor, network: str) -> float:
        """Run ``/true`` on a network. Return how long it took, in microseconds."""
        return floor.spawn(*self._words(floor, "/true", f"--network={network}"))

    @contextmanager
    def sink(self, floor: Floor) -> Iterator[int]:
        """Run ``/sink`` with its port published on all addresses. Yield the port of the host."""
        known = _done(*self._words(floor, "/sink", "--detach", "--network=bridge", "--publish=0.0.0.0::80"))
        try:
            until = time.monotonic() + 10
            while not (shown := _done(self.name, "port", known, "80/tcp")) and time.monotonic() < until:
                time.sleep(0.05)
            yield int(shown.splitlines()[0].rpartition(":")[2])
        finally:
            _done(self.name, "kill", "--signal=KILL", known)


_LIMITS: Final = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")  # its own may be above the machine's
ENGINES: Final = (
    Engine("docker"),
    # crun refuses machines with both versions of control groups.
    Engine("podman", ("--runtime=runc",), takes_directory=True, options=("--log-driver=none", *_LIMITS)),
)


def installed() -> list[Engine]:
    """Return the engines that are available now."""
    found = []
    for each in ENGINES:
        if which(each.name) is not None:
            answer = subprocess.run([each.name, "ps"], capture_output=True, check=False, timeout=60)
            if answer.returncode == 0:
                found.append(each)
    return found

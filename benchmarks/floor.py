"""The floors in C (``floor.c``). They are built when needed and perform one start per request."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from typing import TYPE_CHECKING, Self

import containerkit
from containerkit.security.capabilities import Capabilities
from containerkit.security.seccomp import Seccomp

if TYPE_CHECKING:
    from types import TracebackType

HERE = os.path.dirname(os.path.abspath(__file__))
DIRECTORIES = ("proc", "sys", "dev", "etc", "tmp", "run", "bin", "usr", "var")  # systemd-nspawn requires a /usr


class Floor:
    """A process that performs requests in C, with a root filesystem that contains only the program ``/true``.

    Attributes:
        directory: the directory of that root filesystem.
        true: a program without libc that exits at once; ``/true`` inside.
        static_true: the same with libc, linked statically; ``/static`` inside.
        dynamic_true: the machine's own ``/bin/true``.

    Raises:
        RuntimeError: there is no C compiler.
    """

    def __init__(self) -> None:
        compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("the floors are written in C: install gcc, or set CC")
        self._compiler = compiler
        self._place = tempfile.TemporaryDirectory(prefix="containerkit-bench-")
        self.directory = os.path.join(self._place.name, "root")
        os.chmod(self._place.name, 0o755)
        for name in DIRECTORIES:
            os.makedirs(os.path.join(self.directory, name))
        self.true = self.build("root/true", ("true.c",), "-static", "-nostdlib")
        self.static_true = self.build("root/static", ("static.c",), "-static")
        self.dynamic_true = "/bin/true"
        program = self.build("floor", ("floor.c", "prepare.c", "twin.c"), "-O2", "-std=gnu11")
        init = os.path.join(os.path.dirname(containerkit.__file__), "_native", "init")
        self._process = subprocess.Popen(
            [program, init, self.directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        if self._read() != "ready":
            self.close()
            raise RuntimeError("the floor did not start; stderr has the reason")

    def build(self, name: str, sources: tuple[str, ...], *flags: str) -> str:
        """Build a program below the place of the floor, such as ``root/true``. Return its path."""
        target = os.path.join(self._place.name, name)
        paths = [os.path.join(HERE, source) for source in sources]
        subprocess.run([self._compiler, *flags, "-o", target, *paths], check=True)
        return target

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def ask(self, *words: str) -> float:
        """Perform one request. Return its duration in microseconds.

        Raises:
            RuntimeError: it failed; stderr has the reason.
        """
        assert self._process.stdin is not None
        self._process.stdin.write("\t".join(words) + "\n")
        answer = self._read()
        if not answer.isdecimal():
            raise RuntimeError(f"{' '.join(words)[:200]}: {answer or 'the floor is gone'}")
        return int(answer) / 1000

    def spawn(self, *words: str) -> float:
        """Time vfork, exec and wait of a program."""
        return self.ask("spawn", *words)

    def twin(self, *wishes: str) -> float:
        """Time the C twin of ``run()``. ``floor.c`` lists the wishes."""
        return self.ask("twin", ",".join(wishes))

    def load_filter(self) -> None:
        """Let the twins install containerkit's default filter of system calls, with the same instructions."""
        self.ask("filter", Seccomp.default(Capabilities.none().bounding).program().hex())

    def close(self) -> None:
        """End the process and remove what was built."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()
        self._place.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

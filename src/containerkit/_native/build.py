"""Builds what is compiled: the cffi extension ``_lib`` and the static ``init``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import cffi

HERE = Path(__file__).parent
SOURCES = ("spawn.c", "child.c", "listen.c", "run.c", "calls.c")
HEADERS = ("native.h", "spawn.h", "listen.h", "run.h", "calls.h", "syscalls.h", "cdef.h")
INIT_SOURCES = ("init.c", "enter.c", "child.c")
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers")

# The child runs on stacks of its own and shares thread-local storage with a live thread: no canary is read from there.
COMPILE = ("-std=gnu11", "-O2", "-fno-stack-protector", *WARNINGS)

INIT = (
    *("-std=gnu11", "-Os", "-static", "-nostdlib", "-nostartfiles", "-ffreestanding", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fno-pie", "-no-pie", "-fno-tree-loop-distribute-patterns"),
    *("-Wl,--build-id=none,-z,noexecstack,-z,norelro,-n", "-s", "-Wall", "-Wextra"),
)

ffibuilder = cffi.FFI()
ffibuilder.cdef((HERE / "cdef.h").read_text())
ffibuilder.set_source(
    "containerkit._native._lib",
    '#include "native.h"\n#include "spawn.h"\n#include "run.h"\n#include "calls.h"\n',
    # setuptools wants paths relative to setup.py, from where it runs this file.
    sources=[f"src/containerkit/_native/{name}" for name in SOURCES],
    include_dirs=["src/containerkit/_native"],
    depends=[f"src/containerkit/_native/{name}" for name in HEADERS],
    extra_compile_args=list(COMPILE),
    py_limited_api=True,
)


def build_init(compiler: list[str], target: Path) -> None:
    """Compile the init, with the walker in it, to a static program of a few kilobytes without libc.

    Raises:
        subprocess.CalledProcessError: the compiler failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([*compiler, *INIT, "-o", str(target), *[str(HERE / name) for name in INIT_SOURCES]], check=True)

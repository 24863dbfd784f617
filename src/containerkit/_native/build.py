"""Builds the compiled parts: the cffi extension ``_lib`` and the static programs ``init``, ``keeper`` and ``front``."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import cffi

HERE = Path(__file__).parent
SOURCES = (
    "spawn.c",
    "check.c",
    "child.c",
    "exec_steps.c",
    "populate.c",
    "image.c",
    "join.c",
    "beside.c",
    "listen.c",
    "run.c",
    "calls.c",
    "copy.c",
)
HEADERS = (
    "native.h",
    "spawn.h",
    "exec_steps.h",
    "populate.h",
    "image.h",
    "board.h",
    "parent.h",
    "listen.h",
    "run.h",
    "beside.h",
    "calls.h",
    "copy.h",
    "syscalls.h",
    "text.h",
    "cdef.h",
)
WARNINGS = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers")

# The child runs on its own stacks and shares thread-local storage with a live thread: no canary is read from there.
COMPILE = ("-std=gnu11", "-O2", "-fno-stack-protector", *WARNINGS)

INIT = (
    *("-std=gnu11", "-Os", "-static", "-nostdlib", "-nostartfiles", "-ffreestanding", "-fno-stack-protector"),
    *("-fno-asynchronous-unwind-tables", "-fno-pie", "-no-pie", "-fno-tree-loop-distribute-patterns"),
    *("-Wl,--build-id=none,-z,noexecstack,-z,norelro", "-s", "-Wall", "-Wextra"),
)
PROGRAMS = {
    # -n: one segment, because it has nothing to write to
    "init": ("-Wl,-n", "init.c", "enter.c", "child.c", "exec_steps.c", "populate.c", "image.c", "memory.c"),
    "keeper": ("keeper.c", "keeper_log.c", "memory.c"),
    "front": ("front.c", "front_record.c", "front_verbs.c", "memory.c"),
}

# One build for all versions, except free-threaded Python, which has no stable ABI before 3.15. Source: PEP 803.
LIMITED_API = not sysconfig.get_config_var("Py_GIL_DISABLED")

ffibuilder = cffi.FFI()
ffibuilder.cdef((HERE / "cdef.h").read_text())
ffibuilder.set_source(
    "containerkit._native._lib",
    "".join(f'#include "{name}.h"\n' for name in ("native", "spawn", "run", "calls", "copy", "beside")),
    # setuptools requires paths relative to setup.py, where it runs this file.
    sources=[f"src/containerkit/_native/{name}" for name in SOURCES],
    include_dirs=["src/containerkit/_native"],
    depends=[f"src/containerkit/_native/{name}" for name in HEADERS],
    extra_compile_args=list(COMPILE),
    py_limited_api=LIMITED_API,
)


def build_programs(compiler: list[str], directory: Path) -> None:
    """Compile the static programs of a few kilobytes without libc.

    The init contains the walker. The front end is the OCI command without an interpreter.

    Raises:
        subprocess.CalledProcessError: the compiler failed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name, parts in PROGRAMS.items():
        words = [part if part.startswith("-") else str(HERE / part) for part in parts]
        subprocess.run([*compiler, *INIT, "-o", str(directory / name), *words], check=True)

"""Run CRIU, always to its end. If it were killed, it would leave stopped or unknown processes behind.

If a signal handler of the caller raises in the meantime, its exception is raised after CRIU has ended.
"""

from __future__ import annotations

import os
from errno import ENOENT, EOPNOTSUPP
from typing import TYPE_CHECKING, Any, Final

from containerkit import _native
from containerkit._linux import criu
from containerkit.compile import process
from containerkit.descriptors import keep, keep_above, lend
from containerkit.errors import SetupError, UnsupportedError
from containerkit.plan import calls
from containerkit.plan.operation import Slot
from containerkit.plan.program import Program
from containerkit.plan.tape import Plan
from containerkit.process.process import Process
from containerkit.process.stdio import Streams
from containerkit.spec.command import Command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from containerkit._native.outcome import Outcome

__all__ = ["call", "criu_command", "find_program", "opened", "plain_plan"]

_OLDEST: Final = 4
"""The first version of CRIU that supports the vDSO of current kernels."""


def find_program(path: str | os.PathLike[str] | None) -> str:
    """Return CRIU's path after checking its version.

    Raises:
        UnsupportedError: CRIU is missing or too old.
    """
    found = criu.find(None if path is None else os.fspath(path))
    if found is None:
        raise UnsupportedError("criu", ENOENT, "", f"install CRIU {_OLDEST} or later, or pass criu=PATH")
    found = os.path.abspath(found)
    command = criu_command([found, "--version"])
    try:
        _, told = call(command, plain_plan(command), {})
    except SetupError as error:
        raise UnsupportedError("criu", error.errno or 0, found, "it is not a working CRIU: pass criu=PATH") from None
    version = next((line.split()[1] for line in told.splitlines() if line.startswith("Version:")), "")
    first = version.split(".")[0]
    if not first.isdecimal() or int(first) < _OLDEST:
        hint = f"its version is {version or 'unknown'}: before {_OLDEST} it fails on the vDSO of newer kernels"
        raise UnsupportedError("criu", EOPNOTSUPP, found, hint)
    return found


def criu_command(words: list[str], passed: Iterable[int] = ()) -> Command:
    """Return the command of CRIU. CRIU looks up its helpers in the caller's ``PATH``.

    Args:
        words: its argv; the first is a path.
        passed: descriptors that it inherits, under the caller's numbers.
    """
    return Command(argv=words, env={"PATH": os.environ.get("PATH", os.defpath)}, pass_fds=tuple(passed))


def plain_plan(command: Command) -> Plan:
    """Return the plan of a command in the caller's namespaces but in its own session, so Ctrl-C does not reach it."""
    return Plan(
        (
            calls.call("umask", 0o022),
            *process.session(command),
            calls.enter(Slot("image"), process.passed(command)),
            calls.reset_signals(),
            *process.execute(command),
        )
    )


def call(command: Command, how: Plan, slots: Mapping[str, int]) -> tuple[int, str]:
    """Run a command to its end.

    Args:
        command: the command.
        how: its plan.
        slots: the inputs of the plan, except the init and the standard streams.

    Returns:
        Its status and what it wrote.

    Raises:
        SetupError: it can't be started.
    """

    def work(kept: list[int]) -> tuple[int, str]:
        null = opened(kept, os.devnull, os.O_RDWR)
        told = keep_above(kept, keep(kept, os.memfd_create, "criu"), _native.LOWEST)
        streams = {"stdin": null, "stdout": told, "stderr": told}
        status = _wait_to_end(command, Program(how), {**slots, **streams, "image": _native.init_image()})
        return status, os.pread(told, os.fstat(told).st_size, 0).decode(errors="replace")

    return lend(work)


def _wait_to_end(command: Command, program: Program, slots: Mapping[str, int]) -> int:
    outcome: Outcome | None = None
    process: Process[Any] | None = None
    try:
        outcome = program.run(slots, argv=command.argv, envp=command.envp)
        process = _process(command, outcome)
        return process.wait()
    except BaseException:
        if outcome is not None:
            (process or _process(command, outcome)).wait()
        raise


def _process(command: Command, outcome: Outcome) -> Process[Any]:
    return Process(command, outcome.pid, outcome.pidfd, Streams([], [None, None, None], []))


def opened(kept: list[int], path: str, flags: int) -> int:
    """Open a file with a descriptor number that a start does not use, and append the descriptor to a list."""
    return keep_above(kept, keep(kept, os.open, path, flags | os.O_CLOEXEC), _native.LOWEST)

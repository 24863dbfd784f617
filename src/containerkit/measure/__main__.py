"""``python -m containerkit.measure -- COMMAND``: measures one command and prints the result."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, Any

from containerkit.errors import ContainerError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]

_FAILED = 125


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m containerkit.measure",
        usage="%(prog)s [OPTIONS] [--] COMMAND [ARGUMENT ...]",
        description="Measure a command in a container; the exit status is that of the command.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON (default: one line per field)")
    parser.add_argument("--output", metavar="FILE", help="the file for the command's output (default: stderr)")
    parser.add_argument("--cpu-limit", metavar="SECONDS", type=float, help="kill it after this processor time")
    parser.add_argument(
        "--soft-cpu-limit", metavar="SECONDS", type=float, help="send it SIGTERM after this processor time"
    )
    parser.add_argument("--wall-limit", metavar="SECONDS", type=float, help="kill it after this time")
    parser.add_argument("--memory-limit", metavar="SIZE", help="limit of memory, such as 4G")
    parser.add_argument("--cores", metavar="NUMBER", type=int, help="the number of exclusive processors")
    parser.add_argument("--siblings", action="store_true", help="use all processors of a physical core")
    parser.add_argument("--bind", metavar="SOURCE[:TARGET[:ro]]", action="append", default=[], help="repeatable")
    parser.add_argument("--cwd", metavar="DIR", help="the working directory inside (default: /)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure a command.

    Args:
        arguments: the arguments after the program's name (default: ``sys.argv[1:]``).

    Returns:
        The command's exit status, as a shell reports it; 125 if it could not be measured.
    """
    options = _parser().parse_args(arguments)
    words = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not words:
        print("measure: a command is required, such as: -- sleep 1", file=sys.stderr)  # noqa: T201 - a command line speaks
        return _FAILED
    from containerkit.measure.executor import RunExecutor

    try:
        with RunExecutor(cores=options.cores, siblings=options.siblings) as executor:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: executor.stop())
            done = executor.execute_run(
                words,
                output=2 if options.output is None else options.output,
                cpu_limit_s=options.cpu_limit,
                soft_cpu_limit_s=options.soft_cpu_limit,
                wall_limit_s=options.wall_limit,
                memory_limit=options.memory_limit,
                cwd=options.cwd,
                volumes=options.bind,
            )
    except (ContainerError, OSError) as error:
        print(f"measure: {error}", file=sys.stderr)  # noqa: T201 - a command line speaks
        return _FAILED
    print(done.to_json() if options.json else _lines(done.to_dict()))  # noqa: T201 - a command line speaks
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _lines(values: dict[str, Any]) -> str:
    told = [(name, value) for name, value in values.items() if value is not None]
    return "\n".join(f"{name}={' '.join(value) if name == 'argv' else value}" for name, value in told)


if __name__ == "__main__":
    sys.exit(main())

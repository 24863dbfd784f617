"""``python -m containerkit.mcp``: gives a model an interpreter in a container, over the Model Context Protocol.

It communicates on stdin and stdout, as MCP's clients expect. Needs ``pip install 'containerkit[mcp]'``.

Source: https://modelcontextprotocol.io/specification
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

from containerkit.errors import ContainerError, SpecError
from containerkit.interpreter import Interpreter

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit.interpreter import Execution, Snapshot

__all__ = ["main", "serve"]

Made = TypeVar("Made")

_INSTRUCTIONS: Final = (
    "Runs Python in a container without a network. Variables are kept from call to call; the working directory is "
    "/workspace. Take a snapshot before a risky step, and roll back if it fails."
)
_FAILED: Final = 125


class _Tools:
    """The tools that a model can call."""

    def __init__(self, interpreter: Interpreter, longest_s: float) -> None:
        self._interpreter = interpreter
        self._longest_s = longest_s
        self._snapshots: dict[str, Snapshot] = {}
        self._numbers = itertools.count(1)

    async def run_code(self, code: str, timeout_s: float | None = None) -> list[Any]:
        """Run Python code, and return its output, the value of its last expression, and its plots."""
        seconds = self._longest_s if timeout_s is None else min(timeout_s, self._longest_s)
        return _contents(await self._apart(lambda: self._interpreter.run_code(code, timeout=seconds)))

    async def read_file(self, path: str) -> str:
        """Return the text of a file in the container, 1 MiB at most."""
        read = self._interpreter.files.read
        return (await self._apart(lambda: read(self._at(path), limit_bytes=1 << 20))).decode(errors="replace")

    async def write_file(self, path: str, content: str) -> str:
        """Write text to a file in the container. Missing parent directories are created."""
        await self._apart(lambda: self._interpreter.files.write(self._at(path), content, parents=True))
        return f"wrote {self._at(path)}"

    async def list_files(self, path: str = ".") -> list[str]:
        """Return the names in a directory of the container."""
        return await self._apart(lambda: self._interpreter.files.listdir(self._at(path)))

    async def snapshot(self) -> str:
        """Save the variables and the files of the working directory. Return the name of the snapshot."""
        made = await self._apart(self._interpreter.snapshot)
        name = f"snapshot-{next(self._numbers)}"
        self._snapshots[name] = made
        return name

    async def rollback(self, name: str) -> str:
        """Restore a snapshot."""
        if name not in self._snapshots:
            raise SpecError(f"no snapshot {name!r}; the snapshots are {', '.join(self._snapshots) or 'none'}")
        await self._apart(lambda: self._interpreter.rollback(self._snapshots[name]))
        return f"back at {name}"

    async def reset(self) -> str:
        """Delete all variables. Files stay."""
        await self._apart(self._interpreter.reset)
        return "all variables are gone"

    def all(self) -> list[Callable[..., Any]]:
        """Return the tools."""
        return [
            getattr(self, name)
            for name in ("run_code", "read_file", "write_file", "list_files", "snapshot", "rollback", "reset")
        ]

    def _at(self, path: str) -> str:
        return path if path.startswith("/") else f"{self._interpreter.workspace}/{path}"

    async def _apart(self, call: Callable[[], Made]) -> Made:
        """Call a blocking function in a thread. If the client cancels the call, the code is interrupted."""
        try:
            return await asyncio.to_thread(call)
        except asyncio.CancelledError:
            self._interpreter.interrupt()
            raise


def _contents(done: Execution) -> list[Any]:
    """Return the outcome of code as contents of MCP: text and images."""
    from mcp.server.mcpserver import Image

    told = done.to_dict()
    told["results"] = [
        {mime: value for mime, value in shown.items() if not mime.startswith("image/")} for shown in told["results"]
    ]
    pictures = [Image(data=result.png, format="png") for result in done.results if result.png is not None]
    return [json.dumps(told), *pictures]


def serve(interpreter: Interpreter, *, timeout_s: float = 60) -> None:
    """Serve an interpreter on stdin and stdout until the client ends it.

    Args:
        interpreter: the interpreter for the tools.
        timeout_s: the time limit of a piece of code, in seconds (default 60).
    """
    from mcp.server import MCPServer

    from containerkit import __version__

    server: Any = MCPServer("containerkit", instructions=_INSTRUCTIONS, version=__version__, log_level="ERROR")
    for tool in _Tools(interpreter, timeout_s).all():
        server.add_tool(tool, structured_output=False)
    server.run("stdio")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m containerkit.mcp", description=__doc__.partition("\n")[0])
    parser.add_argument("--image", metavar="NAME", help="the image to use as / (default: the host's programs)")
    parser.add_argument("--venv", metavar="DIR", help="a virtual environment of the host to mount and use")
    parser.add_argument(
        "--preload", metavar="MODULE", action="append", default=[], help="a module that is imported once; repeatable"
    )
    parser.add_argument("--bind", metavar="SOURCE[:TARGET[:ro]]", action="append", default=[], help="repeatable")
    parser.add_argument("--memory", metavar="SIZE", help="limit of memory, such as 1G")
    parser.add_argument(
        "--cpus", metavar="NUMBER", type=float, help="limit of processor time in processors, such as 1.5"
    )
    parser.add_argument("--pids", metavar="NUMBER", type=int, help="limit of the number of processes")
    parser.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0, help="for each call (default 60)")
    return parser


def _interpreter(options: argparse.Namespace) -> Interpreter:
    from containerkit.cgroup import Limits
    from containerkit.spec.rootfs import RootFS

    wanted = {name: value for name in ("memory", "cpus", "pids") if (value := getattr(options, name)) is not None}
    if options.image is not None:
        root, python = RootFS.image(options.image), "python3"
    else:
        root = RootFS.host(python=options.venv)
        python = "python3" if options.venv is None else f"{options.venv}/bin/python"
    limits = Limits(**wanted) if wanted else None
    return Interpreter(root, python=python, preload=options.preload, limits=limits, volumes=options.bind)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the client ends it.

    Args:
        arguments: the arguments after the program's name (default: ``sys.argv[1:]``).

    Returns:
        The exit status.
    """
    options = _parser().parse_args(arguments)
    try:
        import mcp  # noqa: F401 - imported first, because it is the most likely to be missing
    except ImportError:
        print("mcp: needs the package mcp: pip install 'containerkit[mcp]'", file=sys.stderr)  # noqa: T201 - a command line speaks
        return _FAILED
    try:
        with _interpreter(options) as interpreter:
            serve(interpreter, timeout_s=options.timeout)
    except (ContainerError, OSError) as error:
        print(f"mcp: {error}", file=sys.stderr)  # noqa: T201 - a command line speaks
        return _FAILED
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

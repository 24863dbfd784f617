"""The commands that show the state, usage and changes of a detached container, and that copy files from and to it."""

from __future__ import annotations

import os
import sys
import time

from containerkit.cli import elsewhere
from containerkit.cli.detached import Verb, formatted, listed, say, say_safely, table
from containerkit.cli.plain import SUPPRESS
from containerkit.container.lifecycle import Container
from containerkit.detached.container import containers, find
from containerkit.errors import ContainerError, SpecError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager
    from typing import Any, Final

    from containerkit.container.usage import Usage
    from containerkit.detached.container import Detached

__all__ = ["STATS", "commit", "cp", "diff", "docker_fields", "figures", "inspect", "stats", "top"]


def _define_one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONTAINER", help="its name or id")


# --- inspect


def _define_inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="CONTAINER", help="its name or id")
    parser.add_argument(
        "-f", "--format", metavar="TEMPLATE", help="a template of Go, such as {{.State.Status}}; or json"
    )
    parser.add_argument("--type", choices=("container", "image", "volume", "network"), help="what it is (default: any)")
    parser.add_argument("-s", "--size", action="store_true", help="accepted: 'system df --verbose' shows sizes")


def _inspect(options: argparse.Namespace) -> int:
    import json

    from containerkit.cli.detached.anything import inspected

    found = [inspected(name, options.type) for name in options.names]
    if options.format == "json":
        options.format = None
    if options.format is None:
        say(json.dumps(found, indent=2))
        return 0
    for one in found:
        say(formatted(options.format, one))
    return 0


# --- top


def _define_top(parser: argparse.ArgumentParser) -> None:
    _define_one(parser)
    parser.add_argument("columns", nargs="*", help=SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _top(options: argparse.Namespace) -> int:
    if options.columns:
        raise SpecError(f"top: {options.columns[0]!r}: {elsewhere.COLUMNS}")
    one = find(options.name)
    rows = [["PID", "PPID", "STATE", "TIME", "COMMAND"]]
    for pid in one.members():
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                head, _, rest = file.read().rpartition(")")
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                words = file.read().replace("\0", " ").strip()
        except OSError:  # it has ended in the meantime
            continue
        fields = rest.split()
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        shown = words or f"[{head.partition('(')[2]}]"
        rows.append(
            [str(pid), fields[1], fields[0], f"{seconds:.2f}", "".join(c if c.isprintable() else "?" for c in shown)]
        )
    if options.json:
        import json

        say(json.dumps([dict(zip(map(str.lower, rows[0]), row, strict=True)) for row in rows[1:]], indent=2))
    else:
        say(table(rows))
    return 0


# --- stats


def _define_stats(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="CONTAINER", help="its name or id (default: all running ones)")
    parser.add_argument("--no-stream", action="store_true", help="print once (default if stdout is not a terminal)")
    parser.add_argument("--json", action="store_true", help="print JSON, once")
    parser.add_argument(
        "--format", metavar="TEMPLATE", help="a template of Go, such as {{.Name}} {{.CPUPerc}}, or json"
    )


def _stats(options: argparse.Namespace) -> int:
    chosen = [find(name) for name in options.names] or containers()
    once = options.no_stream or options.json or options.format is not None or not sys.stdout.isatty()
    before = _measured(chosen, given=bool(options.names))
    while True:
        time.sleep(0.2 if once else 1.0)
        now = _measured(chosen, given=bool(options.names))
        rows = [figures(one.id, one.name, now[one], before.get(one)) for one in chosen if one in now]
        if options.json:
            import json

            say(json.dumps(rows, indent=2))
            return 0
        if options.format not in (None, "table"):
            for line in listed(options.format, map(docker_fields, rows)):
                say(line)
            return 0
        text = table([STATS, *[[str(row[title.lower()]) for title in STATS] for row in rows]])
        if once:
            say(text)
            return 0
        say(f"\x1b[H\x1b[2J{text}")
        before = now


def docker_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a container's usage for templates, with Docker's names."""
    used, most = row["memory"], row["limit"]
    share = f"{used / most * 100:.2f}%" if isinstance(used, int) and isinstance(most, int) else "--"
    return {
        "ID": row["id"], "Container": row["id"], "Name": row["name"],
        "CPUPerc": row["cpu%"] if row["cpu%"] == "-" else f"{row['cpu%']}%",
        "MemUsage": used, "MemLimit": most, "MemPerc": share, "PIDs": row["pids"],
    }  # fmt: skip


STATS: Final = ("ID", "NAME", "CPU%", "MEMORY", "LIMIT", "PIDS")
"""The titles of the usage of containers."""


def _measured(chosen: list[Detached], *, given: bool) -> dict[Detached, tuple[float, Usage]]:
    from containerkit.container.usage import Usage

    found = {}
    for one in chosen:
        try:
            used = Usage.of_group(one.stats()) if one.has_group else Usage.of_processes(one.members())
            found[one] = (time.monotonic(), used)
        except ContainerError:  # it has ended
            if given:
                raise
    return found


def figures(key: str, name: str, now: tuple[float, Usage], before: tuple[float, Usage] | None) -> dict[str, Any]:
    """Return the usage of a container for a table.

    Args:
        key, name: its id and name.
        now: the time in seconds, and the usage at that time.
        before: the same from an earlier look, None for none.
    """
    used, percent = now[1], None
    if before is not None and used.cpu_us is not None and before[1].cpu_us is not None:
        percent = round((used.cpu_us - before[1].cpu_us) / max(1e-6, now[0] - before[0]) / 1e4, 2)
    shown = {
        "cpu%": percent, "memory": used.memory_bytes, "limit": used.memory_limit_bytes, "pids": used.processes,
    }  # fmt: skip
    return {"id": key, "name": name, **{title: "-" if value is None else value for title, value in shown.items()}}


# --- diff, commit, cp


def _define_diff(parser: argparse.ArgumentParser) -> None:
    _define_one(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def _diff(options: argparse.Namespace) -> int:
    letters = {"added": "A", "changed": "C", "deleted": "D"}
    if options.json:
        import json

        changes = find(options.name).changes()
        say(json.dumps([{"path": change.path, "kind": change.kind} for change in changes], indent=2))
        return 0
    for change in find(options.name).changes():
        say_safely(f"{letters[change.kind]} {change.path}")
    return 0


def _define_commit(parser: argparse.ArgumentParser) -> None:
    _define_one(parser)
    parser.add_argument("reference", metavar="NAME", help="the name of the new image, such as tools:1")
    parser.add_argument("-a", "--author", metavar="TEXT", default="", help="who made it")
    parser.add_argument("-m", "--message", metavar="TEXT", default="", help="a message for the history")


def _commit(options: argparse.Namespace) -> int:
    image = find(options.name).commit(options.reference, author=options.author, message=options.message)
    say(str(image.digest))
    return 0


def _define_cp(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="[CONTAINER:]SOURCE", help="the file or directory to copy")
    parser.add_argument(
        "target", metavar="[CONTAINER:]TARGET", help="the destination; exactly one of the two is in a container"
    )


def _place(text: str) -> tuple[str, str]:
    """Return the container and the path of ``NAME:PATH``. A path with a slash before the colon is one of the host."""
    name, colon, path = text.partition(":")
    return (name, path) if colon and name and "/" not in name else ("", text)


def _cp(options: argparse.Namespace) -> int:
    (source, inside), (target, into) = _place(options.source), _place(options.target)
    if bool(source) == bool(target):
        raise SpecError("cp: one argument must be CONTAINER:PATH, and the other a path of the host")
    if "-" in (options.source, options.target):
        raise SpecError(
            "cp: '-' is no stream of tar here: use 'containerkit exec CONTAINER tar -c PATH', or -x for the other way; "
            "./- is a file of that name"
        )
    with _opened(source or target) as view:
        if source:
            goal = os.path.join(into, os.path.basename(inside.rstrip("/"))) if os.path.isdir(into) else into
            left = view.files.get(_absolute(inside), goal)
            if left:
                raise StateError(f"cp: {len(left)} files could not be copied, such as {left[0]}")
        else:
            goal = _absolute(into)
            if goal.endswith("/") or _is_directory(view, goal):
                goal = f"{goal.rstrip('/')}/{os.path.basename(os.path.abspath(inside))}"
            view.files.put(inside, goal)
    return 0


def _opened(name: str) -> AbstractContextManager[Container]:
    """Return a detached container, running or not, or one of the OCI command."""
    try:
        one = find(name)
    except StateError:
        return Container.attach(name)
    return one.opened()


def _absolute(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"


def _is_directory(view: Container, path: str) -> bool:
    try:
        view.files.listdir(path)
    except (ContainerError, OSError):
        return False
    return True


inspect = Verb(_define_inspect, _inspect)
top = Verb(_define_top, _top)
stats = Verb(_define_stats, _stats)
diff = Verb(_define_diff, _diff)
commit = Verb(_define_commit, _commit)
cp = Verb(_define_cp, _cp)

"""List containers: detached ones, those that end with their owner, and those of the OCI command."""

from __future__ import annotations

import time
from contextlib import suppress

from containerkit import late
from containerkit.errors import SpecError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

__all__ = ["define", "docker_fields", "main"]

_COLUMNS: Final = ("id", "pid", "status", "bundle", "created")
_ALIVE: Final = ("created", "running", "paused")
_PLAIN: Final[dict[str, Any]] = {
    **dict.fromkeys(("name", "image"), ""),
    **dict.fromkeys(("started", "finished")),
    "command": [],
    "labels": {},
    "exit_code": None,
    "health": None,
    "ports": [],
}
"""The fields that are unknown for containers without a record of this library."""
_FILTERS: Final = ("name", "id", "status", "label", "ancestor", "health", "exited")
_COMMAND: Final = 30
"""The length of commands in the table."""
_TITLES: Final = ("id", "name", "image", "command", "created", "status", "kind")


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("-a", "--all", action="store_true", help="also list those that are not running")
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    parser.add_argument("--json", action="store_true", help="print JSON: one array")
    parser.add_argument(
        "--format",
        metavar="TEMPLATE",
        help="a template of Go, such as '{{.ID}} {{.Status}}' or 'table {{.Names}}'; or json, one object per line",
    )
    parser.add_argument("--no-trunc", action="store_true", help="do not shorten commands")
    parser.add_argument(
        "-f", "--filter", metavar="NAME=VALUE", action="append", default=[], help=f"{', '.join(_FILTERS)}; repeatable"
    )
    parser.add_argument("-n", "--last", metavar="NUMBER", help="list only the last created, also those not running")
    parser.add_argument("-l", "--latest", action="store_const", const="1", dest="last", help="the same as --last 1")
    parser.add_argument("--root", metavar="DIR", help="list only those of the OCI command with this state directory")


def main(options: argparse.Namespace) -> int:
    """Print the list and return 0.

    Raises:
        StateError, SetupError: the state can't be read.
    """
    if options.root is not None:
        return _say(_of_the_oci_command(options))
    from containerkit.cli.detached import listed, table

    filters = _filters(options.filter) if options.filter else []
    every = options.all or options.last is not None
    rows = [row for row in _rows(all_of_them=every) if all(_fits(row, *each) for each in filters)]
    if options.last is not None:
        rows = _last(rows, options.last)
    if options.quiet:
        return _say("\n".join(row["id"] for row in rows if row["id"]))
    if options.json:
        import json

        return _say(json.dumps(rows, indent=2))
    if options.format not in (None, "table"):
        return _say("\n".join(listed(options.format, map(docker_fields, rows))))
    width = None if options.no_trunc else _COMMAND
    shown = [[_shown(row, title, width) for title in _TITLES] for row in rows]
    return _say(table([[title.upper() for title in _TITLES], *shown]))


def docker_fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a container for templates, with Docker's names."""
    words, labels = " ".join(row["command"]), row["labels"]
    made = isinstance(row["created"], float)
    return {
        "ID": row["id"],
        "Names": row["name"],
        "Name": row["name"],
        "Image": row["image"],
        "Command": f'"{words}"',
        "CreatedAt": _at(row["created"]) if made else str(row["created"]),
        "RunningFor": f"{_ago(time.time() - row['created'])} ago" if made else "",
        "Status": _docker_status(row),
        "State": row["status"],
        "Ports": ", ".join(_port(each) for each in row["ports"]),
        "Labels": ",".join(f"{name}={value}" for name, value in labels.items()),
        "Label": lambda name: labels.get(name, ""),
        "Health": row["health"] or "",
        "Pid": row["pid"],
        "ExitCode": row["exit_code"],
        "Kind": row["kind"],
    }


def _docker_status(row: dict[str, Any]) -> str:
    """Return the status as Docker tells it: ``Up 5 min (healthy)``, ``Exited (0) 2 h ago``."""
    status = str(row["status"])
    if status in ("running", "paused"):
        since = row["started"] or row["created"]
        lasting = f" {_ago(time.time() - since)}" if isinstance(since, float) else ""
        marks = [each for each in (row["health"], "Paused" if status == "paused" else None) if each]
        return f"Up{lasting}{''.join(f' ({each})' for each in marks)}"
    if row["exit_code"] is None:
        return status.capitalize()
    from datetime import datetime

    ended = datetime.fromisoformat(row["finished"]).timestamp()
    return f"{status.capitalize()} ({row['exit_code']}) {_ago(time.time() - ended)} ago"


def _at(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(seconds))


def _port(port: dict[str, Any]) -> str:
    host = f"[{port['host']}]" if ":" in port["host"] else port["host"]
    last = port.get("count", 1) - 1
    outside, inside = (
        f"{port[name]}-{port[name] + last}" if last else port[name] for name in ("host_port", "container_port")
    )
    return f"{host}:{outside}->{inside}/{port['protocol']}"


def _say(text: str) -> int:
    if text:
        print(text, flush=True)  # noqa: T201 - a command line speaks
    return 0


def _shown(row: dict[str, Any], title: str, width: int | None) -> str:
    value = row[title]
    if title == "command":
        words = " ".join(value)
        words = words if width is None or len(words) <= width else f"{words[: width - 1]}…"
        return "".join(c if c.isprintable() else "?" for c in words)
    if title == "kind" and row.get("owner"):
        return f"{value} by {row['owner']}"
    if title == "created":
        return f"{_ago(time.time() - value)} ago" if isinstance(value, float) else str(value)
    if title == "status" and row["exit_code"] is not None:
        return f"{value} ({row['exit_code']})"
    if title == "status" and row["health"] is not None:
        return f"{value} ({row['health']})"
    return str(value)


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(max(0.0, seconds))} s"


def _rows(*, all_of_them: bool) -> list[dict[str, Any]]:
    # The class that starts them is not used: its import takes as long as listing hundreds of containers.
    from containerkit.detached import store
    from containerkit.detached.known import Known, shell_status
    from containerkit.detached.owned import owned

    rows = []
    inits = set()
    for one in map(Known, store.entries()):
        with suppress(StateError):  # it has ended in the meantime
            row = one.summary()
            inits.add(row.pop("init"))
            if not all_of_them and row["status"] not in ("running", "paused", "restarting"):
                continue
            if row["exit_code"] is not None:
                row["exit_code"] = shell_status(row["exit_code"])
            rows.append({**row, "kind": "detached"})
    with suppress(StateError):  # the state directory of the OCI command is unknown
        for state in late.load(late.KEEPERS["oci"]).states(None):
            inits.add(state["pid"])
            if all_of_them or state["status"] in _ALIVE:
                known = {name: state[name] for name in ("id", "pid", "status", "created")}
                rows.append({**_PLAIN, **known, "kind": "oci"})
    for each in owned(inits):
        known = {"id": each.id, "pid": each.pid, "command": list(each.argv), "created": each.started_at}
        rows.append({**_PLAIN, **known, "status": "running", "kind": "owned", "owner": each.owner})
    return rows


def _filters(texts: list[str]) -> list[tuple[str, str]]:
    """Return the filters of ``NAME=VALUE``.

    Raises:
        SpecError: another name.
    """
    from containerkit.cli import values

    found = [pair for text in texts for pair in values.pairs("--filter", [text]).items()]
    for name, _ in found:
        if name not in _FILTERS:
            raise SpecError(f"--filter {name!r}: choose from {', '.join(_FILTERS)}")
    return found


def _fits(row: dict[str, Any], name: str, value: str) -> bool:
    if name == "label":
        key, equals, wanted = value.partition("=")
        return key in row["labels"] and (not equals or row["labels"][key] == wanted)
    if name in ("name", "id"):
        return value in row[name]
    if name == "ancestor":
        return value in (row["image"], row["image"].removesuffix(":latest"))
    if name == "exited":
        return str(row["exit_code"]) == value
    return value == (row[name] or "none")


def _last(rows: list[dict[str, Any]], number: str) -> list[dict[str, Any]]:
    """Return the last created detached containers. Others are omitted, because not all have a time of creation."""
    if not number.isdecimal():
        raise SpecError(f"--last: {number!r} is not a number")
    made = sorted((row for row in rows if row["kind"] == "detached"), key=lambda row: float(row["created"]))
    return made[-int(number) :] if int(number) else []


def _of_the_oci_command(options: argparse.Namespace) -> str:
    states = [
        state
        for state in late.load(late.KEEPERS["oci"]).states(options.root)
        if options.all or state["status"] in _ALIVE
    ]
    if options.json:
        import json

        return json.dumps([{name: state[name] for name in _COLUMNS} for state in states], indent=2)
    from containerkit.cli.detached import table

    return table([[name.upper() for name in _COLUMNS], *[[str(state[name]) for name in _COLUMNS] for state in states]])

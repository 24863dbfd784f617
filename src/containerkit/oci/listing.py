"""``list`` and ``ps``: the containers, and the processes of one."""

from __future__ import annotations

import os

from containerkit import jsontext
from containerkit.oci import cgroups, store
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call

__all__ = ["list_containers", "ps"]

_COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


def list_containers(call: Call) -> int:
    """Print the containers below the root, as a table, as JSON, or their ids alone."""
    style = _style(call)
    states = store.states(call.root)
    if call.flags.has("quiet"):
        _print("".join(f"{state['id']}\n" for state in states))
    elif style == "json":
        _print(jsontext.dumps(states) + "\n")
    else:
        rows = [[str(state[column.lower()]) for column in _COLUMNS] for state in states]
        _print(_table([list(_COLUMNS), *rows]))
    return 0


def ps(call: Call) -> int:
    """Print the rows of ps(1) for a container's processes, or their pids as JSON. A stopped container has none."""
    style = _style(call)
    with store.open_entry(call.root, call.name) as entry:
        groups = entry.record.get("groups", [])
        alone = [] if entry.status() == "stopped" else [entry.pid]
        pids = sorted(cgroups.processes(groups)) if groups else alone
    if style == "json":
        _print(jsontext.dumps(pids) + "\n")
        return 0
    options = call.flags.arguments[1:] or ["-ef"]
    _print(_rows(options, set(pids)))
    return 0


def _style(call: Call) -> str:
    style = call.flags.text("format", "table")
    if style not in ("table", "json"):
        raise RuntimeFailure(f"--format: {style!r} is neither table nor json")
    return style


def _print(text: str) -> None:
    os.write(1, text.encode(errors="surrogateescape"))


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _rows(options: list[str], pids: set[int]) -> str:
    """Return the lines of the host's ps(1) for the container's processes."""
    import subprocess

    try:
        done = subprocess.run(["ps", *options], capture_output=True, text=True, errors="surrogateescape", check=False)
    except FileNotFoundError:
        raise RuntimeFailure("ps: not installed here; use --format json") from None
    if done.returncode:
        raise RuntimeFailure(f"ps {' '.join(options)}: {done.stderr.strip()}")
    head, *lines = done.stdout.splitlines()
    if "PID" not in head.split():
        raise RuntimeFailure("ps: its options must make it print the column PID")
    column = head.split().index("PID")
    chosen = [line for line in lines if line.split()[column].isdigit() and int(line.split()[column]) in pids]
    return "\n".join([head, *chosen]) + "\n"

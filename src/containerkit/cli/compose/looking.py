"""Verbs that show parts of a project."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.compose.common import load, moment, remote, show, table
from containerkit.cli.listing import names_wanted
from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from containerkit.project.project import Project
    from containerkit.project.remote import Remote

__all__ = ["VERBS", "print_line", "show_plan"]


def _config(options: argparse.Namespace) -> int:
    from containerkit.project.plan import fingerprint
    from containerkit.project.yaml12 import dump_yaml

    project = load(options, services=options.services, interpolate=not options.no_interpolate)
    model: dict[str, Any] = dict(project.model)
    services = model["services"]
    if options.services:
        model["services"] = services = {name: services[name] for name in options.services}
    lists: dict[str, Callable[[], Any]] = {
        "services": lambda: services, "volumes": lambda: model.get("volumes", {}),
        "networks": lambda: model.get("networks", {}), "models": lambda: model.get("models", {}),
        "images": lambda: [keys.get("image", f"{project.name}-{name}") for name, keys in services.items()],
        "profiles": lambda: sorted({each for keys in services.values() for each in keys.get("profiles", ())}),
        "hash": lambda: [f"{name} {fingerprint(project, name)}" for name in services],
    }  # fmt: skip
    if options.environment:
        for name, value in sorted(project.variables.items()):
            show(f"{name}={value}")
        return 0
    for name, listed in lists.items():
        if getattr(options, f"only_{name}"):
            for each in listed():
                show(each)
            return 0
    if not options.quiet:
        escaped = _escaped(model) if not options.no_interpolate else model
        text = json.dumps(escaped, indent=2) if options.format == "json" else dump_yaml(escaped).rstrip("\n")
        if options.output:
            with open(options.output, "w", encoding="utf-8") as file:
                file.write(text + "\n")
        else:
            print(text)  # noqa: T201 - the command line prints its output
    return 0


def _escaped(value: Any) -> Any:
    """Return a value in which dollar signs are escaped, so that it can be read again as a compose file."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {key: _escaped(each) for key, each in value.items()}
    return [_escaped(each) for each in value] if isinstance(value, list) else value


def _plan(options: argparse.Namespace) -> int:
    from containerkit.project import support

    project = load(options, services=options.services)
    support.unsupported(project)
    return show_plan(project, options)


def show_plan(project: Project, options: argparse.Namespace) -> int:
    """Print the steps that would start a project, or update it if it runs. Return 0."""
    import attrs

    from containerkit.errors import StateError
    from containerkit.project import plan as plans
    from containerkit.project.remote import Remote

    observed: dict[str, plans.Observed] = {}
    opened: tuple[str, ...] = ()
    try:
        rows = Remote(project.name).ask("ps")
        observed = {
            row["Name"]: plans.Observed(row["Service"], row["Fingerprint"])
            for row in rows
            if row["State"] not in ("created", "exited")
        }
        opened = tuple(project.model.get("networks", {})) if observed else ()
    except StateError:
        pass  # nothing runs
    plan = plans.up_plan(project, observed, open_networks=opened, services=options.services or None)
    show(json.dumps([attrs.asdict(step) for step in plan.steps], indent=2) if options.json else str(plan))
    return 0


def _ps(options: argparse.Namespace) -> int:
    rows = remote(options).ask("ps", services=options.services, all=options.all)
    states = _states(options)
    if states:
        rows = [row for row in rows if row["State"] in states]
    elif not options.all:
        rows = [row for row in rows if row["State"] not in ("created", "exited")]
    if options.only_services:
        for name in dict.fromkeys(row["Service"] for row in rows):
            show(name)
    elif options.quiet:
        for row in rows:
            show(row["Name"])
    elif options.format != "table":
        from containerkit.cli.listing import listed

        for line in listed(options.format, ({**row, "Names": row["Name"], "Status": _status(row)} for row in rows)):
            show(line)
    else:
        head = ("NAME", "SERVICE", "STATUS", "PORTS", "COMMAND")
        width = None if options.no_trunc else 40
        table(
            [
                head,
                *(
                    (row["Name"], row["Service"], _status(row), ", ".join(row["Ports"]), row["Command"][:width])
                    for row in rows
                ),
            ]
        )
    return 0


def _states(options: argparse.Namespace) -> set[str]:
    """Return the states that are selected.

    Raises:
        SpecError: another filter is given.
    """
    found = set(options.status)
    for text in options.filter:
        name, _, state = text.partition("=")
        if name != "status":
            raise SpecError(f"ps --filter {text!r:.60}: only status=STATE is supported; name services as arguments")
        found.add(state)
    return found


def _status(row: dict[str, Any]) -> str:
    if row["State"] == "exited":
        return f"exited ({row['ExitCode']})"
    return f"{row['State']} ({row['Health']})" if row["Health"] else str(row["State"])


def print_line(line: Any, *, prefix: bool = True, timestamps: bool = False) -> None:
    """Print a line of a log."""
    moment, _, container, _, text = line
    head = f"{container} | " if prefix else ""
    stamp = (
        time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f".{int(moment % 1 * 1e6):06}Z " if timestamps else ""
    )
    show(f"{head}{stamp}{text}")


def _volumes(options: argparse.Namespace) -> int:
    from containerkit.project import normal

    project = load(options, services=options.services)
    services = project.model["services"]
    used = {
        name
        for service, keys in services.items()
        if not options.services or service in options.services
        for name in normal.references(keys)["volumes"]
    }
    rows = [(each["name"], key) for key, each in project.model.get("volumes", {}).items() if key in used]
    if options.format != "table":
        from containerkit.cli.listing import listed

        for line in listed(options.format, ({"Name": name, "Key": key, "Driver": "local"} for name, key in rows)):
            show(line)
    elif options.quiet:
        for name, _ in rows:
            show(name)
    else:
        table([("VOLUME", "KEY"), *rows])
    return 0


def _version(options: argparse.Namespace) -> int:
    from containerkit import __version__

    if options.format == "json":
        show(json.dumps({"version": __version__}))
    else:
        show(__version__ if options.short else f"containerkit compose {__version__}")
    return 0


def _logs(options: argparse.Namespace) -> int:
    tail = int(options.tail) if options.tail and options.tail != "all" else None
    since = moment(options.since, "--since") if options.since is not None else None
    until = moment(options.until, "--until") if options.until is not None else None
    holder = remote(options)
    only = _named(holder, options)
    asked = holder.stream(
        "logs", services=options.services, follow=options.follow, tail=tail, since=since, until=until
    )  # fmt: skip
    for line in asked:
        if line is not None and only in (None, line[2]):
            print_line(line, prefix=not options.no_log_prefix, timestamps=options.timestamps)
    return 0


def _named(holder: Remote, options: argparse.Namespace) -> str | None:
    """Return the name of the container that ``--index`` selects; None for all."""
    if options.index is None:
        return None
    names = sorted(row["Name"] for row in holder.ask("ps", services=options.services))
    if len(options.services) != 1 or not 0 < options.index <= len(names):
        raise SpecError(f"--index {options.index}: name one service that has such a container")
    return str(names[options.index - 1])


def _top(options: argparse.Namespace) -> int:
    rows: list[tuple[Any, ...]] = [("CONTAINER", "PID", "UID", "COMMAND")]
    for each in remote(options).ask("top", services=options.services):
        rows += [(each["name"], one["pid"], one["uid"], one["command"]) for one in each["processes"]]
    table(rows)
    return 0


def _port(options: argparse.Namespace) -> int:
    asked = remote(options)
    host, number = asked.ask(
        "port", service=options.service, target=options.port, protocol=options.protocol, index=options.index
    )
    show(f"{host}:{number}")
    return 0


def _ls(options: argparse.Namespace) -> int:
    from containerkit.cli.commands import complain
    from containerkit.errors import StateError
    from containerkit.project.remote import Remote
    from containerkit.project.sockets import names

    rows: list[tuple[Any, ...]] = []
    wanted = names_wanted("ls", options.filter)
    for name in names():
        if not all(text in name for text in wanted):
            continue
        try:
            holder = Remote(name)
            states = [row["State"] for row in holder.ask("ps")]
        except StateError as error:  # it ended in the meantime, or can't answer
            complain(str(error))
            continue
        status = ", ".join(f"{state}({states.count(state)})" for state in dict.fromkeys(states))
        rows.append((name, status, _files(holder)))
    if options.quiet:
        for name, _, _ in rows:
            show(name)
    elif options.format == "json":
        show(json.dumps([dict(zip(("Name", "Status", "ConfigFiles"), row, strict=True)) for row in rows]))
    else:
        table([("NAME", "STATUS", "CONFIG FILES"), *rows])
    return 0


def _files(holder: Remote) -> str:
    from containerkit.errors import StateError

    try:
        return ",".join(holder.ask("files"))
    except StateError:  # an earlier version holds it
        return ""


def _images(options: argparse.Namespace) -> int:
    from containerkit.errors import ImageError
    from containerkit.image import Image
    from containerkit.project.images import tag_of

    project = load(options, services=options.services)
    rows: list[tuple[Any, ...]] = [("SERVICE", "IMAGE", "ID", "SIZE")]
    for name, keys in project.model["services"].items():
        if not options.services or name in options.services:
            tag = tag_of(project, name, keys)
            try:
                image = Image.get(tag, pull="never")
                rows.append((name, tag, image.id.short, image.size_bytes))
            except ImageError:
                rows.append((name, tag, "not here", ""))
    if options.quiet:
        for row in rows[1:]:
            show(str(row[2]))
    elif options.format == "json":
        show(json.dumps([dict(zip(("Service", "Image", "ID", "Size"), row, strict=True)) for row in rows[1:]]))
    else:
        table(rows)
    return 0


def _wait(options: argparse.Namespace) -> int:
    holder = remote(options)
    codes = holder.ask("wait", services=options.services)
    if options.down_project:
        holder.ask("down")
    for name, code in codes.items():
        show(f"{name} {code}")
    return int(max(codes.values(), default=0))


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "config": _config, "convert": _config, "plan": _plan, "ps": _ps, "logs": _logs, "top": _top, "port": _port,
    "ls": _ls, "images": _images, "wait": _wait, "volumes": _volumes, "version": _version,
}  # fmt: skip

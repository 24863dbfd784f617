"""The commands that show events of detached containers, and their published ports."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli import values
from containerkit.cli.detached import Verb, listed, say, say_safely
from containerkit.detached.container import find
from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse

    from containerkit.detached.events import ContainerEvent
    from containerkit.spec.network import Port

__all__ = ["events", "port"]

_FILTERS: Final = {"event": "action", "container": "container", "image": "image", "label": "label"}


def _define_events(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--since", metavar="TIME", help="start with past events: 10m, or 2026-01-02T03:04:05Z")
    parser.add_argument("--until", metavar="TIME", help="end at this time (default: continue)")
    parser.add_argument(
        "-f",
        "--filter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=f"{', '.join(_FILTERS)}; repeatable: any of the same name, all of different names",
    )
    parser.add_argument(
        "--format", metavar="TEMPLATE", help="a template of Go, such as {{.Action}} {{.Actor.ID}}; or json"
    )


def _events(options: argparse.Namespace) -> int:
    from containerkit.detached import events as stream
    from containerkit.detached.logs import moment

    wanted: dict[str, list[str]] = {}
    for text in options.filter:
        for name, value in values.pairs("--filter", [text]).items():
            if (name, value) == ("type", "container"):
                continue
            if name not in _FILTERS:
                raise SpecError(f"--filter {name!r}: choose from {', '.join(_FILTERS)}")
            wanted.setdefault(_FILTERS[name], []).append(value)
    since = time.time() if options.since is None else options.since
    follow = options.until is None or moment(options.until, "--until") > moment(time.time(), "now")
    chosen = (
        event
        for event in stream.events(since=since, until=options.until, follow=follow)
        if all(any(_fits(event, name, each) for each in some) for name, some in wanted.items())
    )
    if options.format is None:
        for event in chosen:
            say_safely(_line(event))
    else:
        for line in listed(options.format, map(_fields, chosen)):
            say(line)
    return 0


def _fits(event: ContainerEvent, name: str, wanted: str) -> bool:
    if name == "container":
        return event.name == wanted or event.id.startswith(wanted)
    if name == "action" and ":" in wanted:  # such as health_status: healthy
        return wanted.replace(" ", "") == f"{event.action}:{event.attributes.get('health', '')}"
    return event.fits(name, wanted)


def _line(event: ContainerEvent) -> str:
    known = {"name": event.name, "image": event.image, **event.labels, **event.attributes}
    told = ", ".join(f"{name}={value}" for name, value in known.items() if value not in ("", None))
    return f"{event.time} container {event.action} {event.id} ({told})"


def _fields(event: ContainerEvent) -> dict[str, Any]:
    attributes = {"name": event.name, "image": event.image, **event.labels, **event.attributes}
    return {
        "Type": "container",
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": {name: str(each) for name, each in attributes.items()}},
        "Time": event.time,
    }


def _define_port(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="CONTAINER", help="its name or id")
    parser.add_argument("port", metavar="PORT[/udp]", nargs="?", help="a port of the container (default: all)")


def _port(options: argparse.Namespace) -> int:
    one = find(options.name)
    found = [(number, at) for each in one.ports for number, at in _numbers(each)]
    if options.port is None:
        for number, at in found:
            say(f"{number} -> {at}")
        return 0
    asked = options.port if "/" in options.port else f"{options.port}/tcp"
    chosen = [at for number, at in found if number == asked]
    if not chosen:
        raise SpecError(f"port: {options.name} has no published port {asked}; omit the port to list them")
    say(os.linesep.join(chosen))
    return 0


def _numbers(port: Port) -> list[tuple[str, str]]:
    host = f"[{port.host}]" if ":" in port.host else port.host
    inside, outside = port.container_port, port.host_port
    return [(f"{inside + each}/{port.protocol}", f"{host}:{outside + each}") for each in range(port.count)]


events = Verb(_define_events, _events)
port = Verb(_define_port, _port)

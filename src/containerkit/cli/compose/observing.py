"""Verbs that look at a running project for some time: its events, its usage, the output of a container."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Final

from containerkit.cli import terminal
from containerkit.cli.compose.common import moment, remote, show
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

__all__ = ["VERBS"]

_STREAMS: Final = (0, 1, 2)


def _events(options: argparse.Namespace) -> int:
    since = time.time() if options.since is None else moment(options.since, "--since")
    until = None if options.until is None else moment(options.until, "--until")
    for event in remote(options).stream("events", services=options.services, since=since, until=until):
        if event is not None:
            show(_event(*event, as_json=options.json))
    return 0


def _event(when: float, service: str, container: str, action: str, attributes: dict[str, str], *, as_json: bool) -> str:
    stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) + f".{int(when % 1 * 1e6):06}"
    if as_json:
        return json.dumps(
            {
                "time": stamp.replace(" ", "T"), "type": "container", "action": action, "id": container,
                "service": service, "attributes": attributes,
            }
        )  # fmt: skip
    told = ", ".join(f"{name}={value}" for name, value in sorted(attributes.items()))
    return f"{stamp} container {action} {container} ({told})"


def _stats(options: argparse.Namespace) -> int:
    from containerkit.cli.detached.contents import STATS, docker_fields, figures
    from containerkit.cli.listing import listed, table
    from containerkit.container.usage import Usage

    holder = remote(options)
    once = options.no_stream or options.format != "table" or not sys.stdout.isatty()
    before: dict[str, tuple[float, Usage]] = {}
    first = True
    while True:
        now = {
            each["name"]: (time.monotonic(), Usage(**each["usage"]))
            for each in holder.ask("stats", services=options.services)
        }
        rows = [figures(name, name, used, before.get(name)) for name, used in now.items()]
        before = now
        if once and first:  # a share of the processor is that between two looks
            first = False
            time.sleep(0.2)
            continue
        if options.format != "table":
            for line in listed(options.format, map(docker_fields, rows)):
                show(line)
            return 0
        text = table([STATS, *([str(row[title.lower()]) for title in STATS] for row in rows)])
        sys.stdout.write(f"{text}\n" if once else f"\x1b[H\x1b[2J{text}\n")
        sys.stdout.flush()
        if once:
            return 0
        time.sleep(1)


def _attach(options: argparse.Namespace) -> int:
    from containerkit.cli.detached.attaching import keys_of

    keys, holder = keys_of(options.detach_keys), remote(options)
    if options.sig_proxy not in ("true", "false"):
        raise SpecError(f"--sig-proxy {options.sig_proxy!r:.60}: choose from true and false")

    def hand_on(number: int, _: object) -> None:
        with suppress(StateError):  # it has ended in the meantime
            holder.ask("signal", services=[options.service], index=options.index, signal=str(number))

    if options.sig_proxy == "true":
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, hand_on)
    asked = {"service": options.service, "index": options.index, "stdin": not options.no_stdin}
    tty = holder.ask("tty", service=options.service, index=options.index)
    with ExitStack() as stack:
        if tty and not options.no_stdin and terminal.is_wanted():
            stack.enter_context(terminal.RawMode(0))
        code = holder.ask("attach", fds=_STREAMS, keys=keys.decode("latin-1"), **asked)
    return 0 if code is None else int(code)


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "events": _events, "stats": _stats, "attach": _attach,
}  # fmt: skip

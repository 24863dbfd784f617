"""Run a command in a container of its own, and end with its exit status."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from containerkit.cli import arguments, terminal
from containerkit.cli.attend import Attendant, Relay
from containerkit.cli.commands import complain
from containerkit.cli.signals import FORWARDED, Signals
from containerkit.container import Container
from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from containerkit.image import Image
    from containerkit.process import Process
    from containerkit.rootfs import RootFS

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The default container is strict: all eight namespaces are new, nothing of the caller's environment, files or network is
inside but the machine's programs, and all that is written is gone with it. Each option above relaxes one thing.

The status is the command's, 128+N when signal N ended it, 127 when it is not there, 126 when it can't be executed, 124
when its time was up, 125 when containerkit itself failed.

  containerkit run -- uname -a
  containerkit run --bind .:/work --cwd /work -- make
  containerkit run --rootfs ./debian --share-net --env LANG -- bash
  containerkit run --image alpine:3.20
  containerkit run --image debian:12 --share-net --cap docker --commit tools:1 -- apt-get install -y curl
"""

_TIMED_OUT: Final = 124  # as timeout(1)
_ALSO_TAKEN: Final = frozenset({signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP})
_CAUSES: Final = {
    "oom": "the kernel killed it for its memory",
    "seccomp": "it was killed for a system call that the seccomp filter forbids",
}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    arguments.define(parser)
    parser.add_argument(
        "--commit", metavar="NAME", help="when it ends with status 0, make an image of what it has changed"
    )


def main(options: argparse.Namespace) -> int:
    """Run the command; returns its status.

    Raises:
        ContainerError: it could not be started.
    """
    image = arguments.image(options)
    words = arguments.words(options, image)
    fields = arguments.container(options, image)
    if options.commit is not None:
        _check_commit(options.commit, fields["rootfs"])
    timeout = arguments.timeout(options)
    pty = terminal.is_wanted() if options.pty is None else bool(options.pty)
    command = arguments.command(options, image, terminal=os.environ.get("TERM") if pty else None)
    began = time.perf_counter()
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(FORWARDED | _ALSO_TAKEN if pty else FORWARDED))
        container = stack.enter_context(Container(**fields))
        stop_signal = container.rootfs.stop_signal
        if pty:
            process = container.popen(words, pty=terminal.size(), **command)
            raw = stack.enter_context(terminal.RawMode(0))
            attendant: Attendant = Relay(process, signals, raw, timeout, stop_signal=stop_signal)
        else:
            process = container.popen(words, **command)
            attendant = Attendant(process, signals, timeout, stop_signal=stop_signal)
        in_time = attendant.stay()
        if not in_time:
            process.kill()
        status = process.wait()
        if options.commit is not None and status == 0 and in_time:
            _commit(container, image, options.commit)
    if options.time:
        _report(container, process, time.perf_counter() - began)
    if not in_time:
        complain(f"{words[0]}: the time of {options.timeout} s was up")
        return _TIMED_OUT
    if status and process.cause in _CAUSES:
        complain(f"{words[0]}: {_CAUSES[process.cause]}")
    return status if status >= 0 else 128 - status


def _check_commit(name: str, rootfs: RootFS) -> None:
    """Refuse what could not be committed before the command runs, not after it."""
    from containerkit.image import Reference

    Reference.parse(name)
    if rootfs.kind == "host" or rootfs.readonly:
        raise SpecError(
            "--commit: the machine's programs are no part of an image, and what can't be written to has no "
            "changes; it needs a root such as --image"
        )


def _commit(container: Container, image: Image | None, name: str) -> None:
    from containerkit.image import commit

    commit(container, name, base=image)


def _report(container: Container, process: Process, real_s: float) -> None:
    usage, timings = process.usage, container.timings
    assert usage is not None
    assert timings is not None
    lines: list[tuple[str, Any]] = [
        ("start", f"{timings.total_us / 1e6:.4f} s"),
        ("real", f"{real_s:.4f} s"),
        ("user", f"{usage.user_s:.4f} s"),
        ("sys", f"{usage.system_s:.4f} s"),
    ]
    for name, most in (("max rss", usage.max_rss_bytes), ("memory", usage.memory_peak_bytes)):
        if most is not None:
            lines.append((name, f"{most / 2**20:.1f} MiB"))
    print(*(f"{name:8} {value}" for name, value in lines), sep="\n", file=sys.stderr, flush=True)  # noqa: T201 - as asked

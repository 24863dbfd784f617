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

if TYPE_CHECKING:
    import argparse
    from typing import Any

    from containerkit.process import Process

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The default container is strict: all eight namespaces are new, nothing of the caller's environment, files or network is
inside but the machine's programs, and all that is written is gone with it. Each option above relaxes one thing.

The status is the command's, 128+N when signal N ended it, 127 when it is not there, 126 when it can't be executed, 124
when its time was up, 125 when containerkit itself failed.

  containerkit run -- uname -a
  containerkit run --bind .:/work --cwd /work -- make
  containerkit run --rootfs ./debian --share-net --env LANG -- bash
"""

_TIMED_OUT: Final = 124  # as timeout(1)
_ALSO_TAKEN: Final = frozenset({signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP})
_CAUSES: Final = {
    "oom": "the kernel killed it for its memory",
    "seccomp": "it was killed for a system call that the seccomp filter forbids",
}

define = arguments.define


def main(options: argparse.Namespace) -> int:
    """Run the command; returns its status.

    Raises:
        ContainerError: it could not be started.
    """
    words = arguments.words(options)
    fields = arguments.container(options)
    timeout = arguments.timeout(options)
    pty = terminal.is_wanted() if options.pty is None else bool(options.pty)
    command = arguments.command(options, terminal=os.environ.get("TERM") if pty else None)
    began = time.perf_counter()
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(FORWARDED | _ALSO_TAKEN if pty else FORWARDED))
        container = stack.enter_context(Container(**fields))
        if pty:
            process = container.popen(words, pty=terminal.size(), **command)
            raw = stack.enter_context(terminal.RawMode(0))
            attendant: Attendant = Relay(process, signals, raw, timeout)
        else:
            process = container.popen(words, **command)
            attendant = Attendant(process, signals, timeout)
        in_time = attendant.stay()
        if not in_time:
            process.kill()
        status = process.wait()
    if options.time:
        _report(container, process, time.perf_counter() - began)
    if not in_time:
        complain(f"{words[0]}: the time of {options.timeout} s was up")
        return _TIMED_OUT
    if status and process.cause in _CAUSES:
        complain(f"{words[0]}: {_CAUSES[process.cause]}")
    return status if status >= 0 else 128 - status


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

"""Run a command in a new container and exit with its status."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import ExitStack

from containerkit.cli import arguments, keeping
from containerkit.cli.attend import Attendant
from containerkit.cli.commands import complain
from containerkit.cli.signals import FORWARDED, Signals
from containerkit.container.arguments import has_names
from containerkit.container.run import begin
from containerkit.errors import ProgramNotFoundError, SpecError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any, Final

    from containerkit.container.lifecycle import Container
    from containerkit.image import Image
    from containerkit.process.process import Process
    from containerkit.spec.rootfs import RootFS

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The default container is strict: all eight namespaces are new, and the machine's programs are the only files. It exposes
nothing from the caller's environment and network, and writes never reach the host. Each option above relaxes one thing.

The status is that of the command, 128+N if signal N ended it, 127 if it does not exist, 126 if it can't be executed,
124 if the timeout expired, 125 if containerkit itself failed.

  containerkit run -- uname -a
  containerkit run --bind .:/work --cwd /work -- make
  containerkit run --rootfs ./debian --share-net --env LANG -- bash
  containerkit run --image alpine:3.20
  containerkit run -d --name web --image nginx --share-net --restart on-failure:3
  containerkit run --image debian:12 --share-net --cap docker --commit tools:1 -- apt-get install -y curl
"""

_TIMED_OUT: Final = 124  # as timeout(1)
_ALSO_TAKEN: Final = frozenset({signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP})
_CAUSES: Final = {
    "oom": "the kernel killed it because it was out of memory",
    "seccomp": "it was killed because of a system call that the seccomp filter forbids",
}


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    arguments.define(parser)
    keeping.define(parser.add_argument_group("detached containers"))
    parser.add_argument("--commit", metavar="NAME", help="if it ends with status 0, make an image from its changes")


def main(options: argparse.Namespace) -> int:
    """Run the command and return its status.

    Raises:
        ContainerError: the command could not be started.
    """
    try:
        return _run(options)
    except ProgramNotFoundError as error:
        if options.image is None and options.rootfs is None and error.target == arguments.words(options)[0]:
            complain(f"if {error.target!r} is an image, use --image: containerkit run --image {error.target} ...")
        raise


def _run(options: argparse.Namespace) -> int:
    keeping.check(options)
    image = arguments.image(options)
    words = arguments.words(options, image)
    fields = arguments.container(options, image)
    if options.detach:
        return keeping.detach(options, image, words, fields)
    if keeping.is_recorded(options):
        return keeping.attended(options, image, words, fields)
    if options.commit is not None:
        _check_commit(options.commit, fields["rootfs"])
    pty = _wants_terminal(options)
    command = arguments.command(options, image, terminal=os.environ.get("TERM") if pty else None)
    if pty or not _is_alone(options, fields, command):
        return _run_inside(options, image, words, fields, command, pty=pty)
    timeout = arguments.timeout(options)
    with Signals(FORWARDED) as signals, _alone(words, fields, command) as process:
        attendant = Attendant(process, signals, timeout, stop_signal=fields["rootfs"].stop_signal)
        return _ended(options, words, process, in_time=attendant.attend())


def _wants_terminal(options: argparse.Namespace) -> bool:
    if options.pty is not None or not os.isatty(0):
        return bool(options.pty)
    from containerkit.cli import terminal

    return terminal.is_wanted()


def _is_alone(options: argparse.Namespace, fields: dict[str, Any], command: dict[str, Any]) -> bool:
    """Return whether the container only has to live as long as the command. Then one start makes both."""
    stays = options.id is not None or options.commit is not None or options.time or bool(fields.get("network"))
    return not stays and fields["namespaces"].pid == "new" and not has_names(fields["rootfs"], command)


def _alone(words: list[str], fields: dict[str, Any], command: dict[str, Any]) -> Process[Any]:
    process, container = begin(words, {**fields, **command}, {}, init=True)
    assert container is None  # it has no names
    return process


def _run_inside(
    options: argparse.Namespace,
    image: Image | None,
    words: list[str],
    fields: dict[str, Any],
    command: dict[str, Any],
    *,
    pty: bool,
) -> int:
    """Run the command in a container that is there before it and after it."""
    from containerkit.cli import terminal
    from containerkit.cli.relay import Relay
    from containerkit.container.lifecycle import Container

    timeout = arguments.timeout(options)
    began = time.perf_counter()
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(FORWARDED | _ALSO_TAKEN if pty else FORWARDED))
        container = stack.enter_context(Container(**fields))
        command = arguments.with_home(command, container, options)
        stop_signal = container.rootfs.stop_signal
        if pty:
            process = container.popen(words, pty=terminal.size(), **command)
            raw = stack.enter_context(terminal.RawMode(0))
            attendant: Attendant = Relay(process, signals, raw, timeout, stop_signal=stop_signal)
        else:
            process = container.popen(words, **command)
            attendant = Attendant(process, signals, timeout, stop_signal=stop_signal)
        in_time = attendant.attend()
        if options.commit is not None and process.returncode == 0 and in_time:
            _commit(container, image, options.commit)
    if options.time:
        _report(container, process, time.perf_counter() - began)
    return _ended(options, words, process, in_time=in_time)


def _ended(options: argparse.Namespace, words: list[str], process: Process[Any], *, in_time: bool) -> int:
    """Say why the command has ended, and return the exit status."""
    status = process.returncode
    assert status is not None
    if not in_time:
        complain(f"{words[0]}: the timeout of {options.timeout} s expired")
        return _TIMED_OUT
    if status and process.cause in _CAUSES:
        complain(f"{words[0]}: {_CAUSES[process.cause]}")
    return status if status >= 0 else 128 - status


def _check_commit(name: str, rootfs: RootFS) -> None:
    """Refuse an impossible commit before the command runs."""
    from containerkit.image import Reference

    Reference.parse(name)
    if rootfs.kind == "host" or rootfs.readonly:
        raise SpecError(
            "--commit: the machine's programs do not belong to an image, and a read-only root has no changes; "
            "use a root such as --image"
        )


def _commit(container: Container, image: Image | None, name: str) -> None:
    from containerkit.image import commit

    commit(container, name, base=image)


def _report(container: Container, process: Process[Any], real_s: float) -> None:
    usage, timings = process.usage, container.timings
    assert usage is not None
    assert timings is not None
    lines: list[tuple[str, Any]] = [
        ("start", f"{timings.total_us / 1e6:.4f} s"),
        ("real", f"{real_s:.4f} s"),
        ("user", f"{usage.user_us / 1e6:.4f} s"),
        ("sys", f"{usage.system_us / 1e6:.4f} s"),
    ]
    for name, most in (("max rss", usage.max_rss_bytes), ("memory", usage.memory_peak_bytes)):
        if most is not None:
            lines.append((name, f"{most / 2**20:.1f} MiB"))
    print(*(f"{name:8} {value}" for name, value in lines), sep="\n", file=sys.stderr, flush=True)  # noqa: T201 - the command line prints its output

"""Record which system calls a command makes, and write a seccomp profile that allows only these."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from containerkit._native.constants import MACHINE
from containerkit.cli import arguments
from containerkit.cli.attend import Attendant
from containerkit.cli.commands import complain
from containerkit.cli.signals import FORWARDED, Signals
from containerkit.container.lifecycle import Container
from containerkit.errors import SpecError
from containerkit.security.record import Recorder, profile, recording_filter

if TYPE_CHECKING:
    import argparse
    from collections import Counter

    from containerkit.image import Image

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The command runs in a container with the options of 'containerkit run'. Every call that it makes is counted and allowed.
Calls that this run did not need are not in the profile, so record everything that the command must be able to do.
The status is that of the command.

  containerkit seccomp record --output wc.json -- wc -l /etc/passwd
  podman run --security-opt seccomp=wc.json ...
"""

_STOPPED: Final = 124  # as timeout(1)


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(metavar="record", required=True)
    record = actions.add_parser(
        "record",
        help="run a command and record its system calls",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=parser.formatter_class,
        allow_abbrev=False,
    )
    group = record.add_argument_group("the profile")
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="seccomp.json",
        help="the file for the profile, in the JSON format of OCI; '-' is stdout (default: seccomp.json)",
    )
    group.add_argument("--log", action="store_true", help="let the kernel log and allow other calls")
    group.add_argument("--count", action="store_true", help="print to stderr how often each call was made")
    arguments.define(record)


def main(options: argparse.Namespace) -> int:
    """Record a command and return its status.

    Raises:
        ContainerError: the command could not be started.
        OSError: the profile could not be written.
    """
    image = arguments.image(options)
    words = arguments.words(options, image)
    if options.pty:
        raise SpecError("--pty: seccomp record uses the caller's own streams; remove the option")
    recorder = Recorder(MACHINE)
    status = _run(words, options, image, recorder)
    if options.count:
        for name, count in recorder.calls.most_common():
            print(f"{count:8} {name}", file=sys.stderr)  # noqa: T201 - as asked
    _write(options.output, recorder.calls, log=options.log)
    return status


def _run(words: list[str], options: argparse.Namespace, image: Image | None, recorder: Recorder) -> int:
    """Run the command until it ends, and what it leaves behind until the container ends."""
    fields: dict[str, Any] = arguments.container(options, image)
    timeout = arguments.timeout(options)
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(FORWARDED))
        container = stack.enter_context(Container(**fields))
        command = arguments.with_home(arguments.command(options, image), container, options)
        process = container.popen(words, seccomp=recording_filter(), syscall_handler=recorder, **command)
        in_time = Attendant(process, signals, timeout).stay()
        if not in_time:
            process.kill()
        status = process.wait()
    if not in_time:
        complain(f"{words[0]}: the timeout of {options.timeout} s expired")
        return _STOPPED
    return status if status >= 0 else 128 - status


def _write(path: str, calls: Counter[str], *, log: bool) -> None:
    import json

    text = json.dumps(profile(calls, log=log).to_oci(MACHINE), indent=2) + "\n"
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)

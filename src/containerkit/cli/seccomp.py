"""Find out which system calls a command makes, and write the seccomp profile that allows just these."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

from containerkit._native.constants import MACHINE
from containerkit.cli import arguments
from containerkit.cli.attend import Attendant
from containerkit.cli.commands import complain
from containerkit.cli.signals import FORWARDED, Signals
from containerkit.container import Container
from containerkit.errors import SpecError
from containerkit.security.record import Recorder, profile, recording_filter

if TYPE_CHECKING:
    import argparse
    from collections import Counter

    from containerkit.image import Image

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
The command runs in a container, with the options of 'containerkit run', and every call that it makes is counted and
then made. A call that was not needed this time is not in the profile: record what the command is to be able to do.
The status is the command's.

  containerkit seccomp record --output wc.json -- wc -l /etc/passwd
  podman run --security-opt seccomp=wc.json ...
"""

_STOPPED: Final = 124  # as timeout(1)


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    actions = parser.add_subparsers(metavar="record", required=True)
    record = actions.add_parser(
        "record", description=__doc__, epilog=EPILOG, formatter_class=parser.formatter_class, allow_abbrev=False
    )
    group = record.add_argument_group("the profile")
    group.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        default="seccomp.json",
        help="where the profile goes, in the OCI's JSON format; '-' is stdout (default: seccomp.json)",
    )
    group.add_argument("--log", action="store_true", help="have the kernel log other calls instead of failing them")
    group.add_argument("--count", action="store_true", help="say on stderr how often each call was made")
    arguments.define(record)


def main(options: argparse.Namespace) -> int:
    """Record a command; returns its status.

    Raises:
        ContainerError: it could not be started.
        OSError: the profile could not be written.
    """
    image = arguments.image(options)
    words = arguments.words(options, image)
    if options.pty:
        raise SpecError("--pty: what is recorded has the caller's own streams")
    recorder = Recorder(MACHINE)
    status = _run(words, options, image, recorder)
    if options.count:
        for name, count in recorder.calls.most_common():
            print(f"{count:8} {name}", file=sys.stderr)  # noqa: T201 - as asked
    _write(options.output, recorder.calls, log=options.log)
    return status


def _run(words: list[str], options: argparse.Namespace, image: Image | None, recorder: Recorder) -> int:
    """Run the command to its end, and all that it leaves behind to the container's."""
    fields: dict[str, Any] = arguments.container(options, image)
    timeout = arguments.timeout(options)
    with ExitStack() as stack:
        signals = stack.enter_context(Signals(FORWARDED))
        container = stack.enter_context(Container(**fields))
        process = container.popen(
            words, seccomp=recording_filter(), syscall_handler=recorder, **arguments.command(options, image)
        )
        in_time = Attendant(process, signals, timeout).stay()
        if not in_time:
            process.kill()
        status = process.wait()
    if not in_time:
        complain(f"{words[0]}: the time of {options.timeout} s was up")
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

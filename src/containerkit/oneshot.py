"""One command in a container of its own: the fastest way."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import attrs

from containerkit import _native
from containerkit.assembly import Mode
from containerkit.container import Container
from containerkit.ground import Ground
from containerkit.invocation import (
    COMMAND_FIELDS,
    STREAM_ARGUMENTS,
    check_numbers,
    complete,
    describe,
    has_names,
    run_streams,
    with_defaults,
)
from containerkit.membership import account
from containerkit.process import OUTPUT_LIMIT_BYTES, Process
from containerkit.rootfs import resolve
from containerkit.spec import CONFINEMENT, Spec, build
from containerkit.streams import Streams, Text
from containerkit.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.result import CompletedProcess

__all__ = ["run"]


def run(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    input: Any = None,  # noqa: A002 - subprocess's own argument
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = True,
    output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
    init: bool = True,
    **more: Any,
) -> CompletedProcess:
    """Run one command in a container of its own and wait for its end: the fastest way.

    Args:
        argv: the words; the first is looked up inside.
        input, timeout, check, capture_output, output_limit_bytes: as for :meth:`Container.run`.
        init: run it as the child of a tiny PID 1 that reaps what it leaves (default True); otherwise it is PID 1
            itself, which starts sooner, but the kernel then keeps every signal from it for which it has no handler.
        more: arguments of :class:`Container` and of :meth:`Container.run`.

    Raises:
        SpecError: a value that can't be; nothing was made.
        SetupError: an operation failed; nothing is left behind.
        ContainerTimeout: with what it had written by then.
        ExitError: with ``check``.
    """
    check_numbers(timeout, output_limit_bytes)
    began = time.perf_counter()
    streams_and_command, description = _sort_arguments(more)
    spec = _resolved(description)
    inside = streams_and_command.get("pty") or streams_and_command.get("syscall_handler")
    if inside or has_names(spec.rootfs, streams_and_command):
        with Container(**description) as container:  # names and terminals are found inside
            return container.run(
                argv,
                input=input,
                timeout=timeout,
                check=check,
                capture_output=capture_output,
                output_limit_bytes=output_limit_bytes,
                **streams_and_command,
            )
    process = _start_one(argv, spec, run_streams(input, streams_and_command, capture=capture_output), init)
    return complete(process, began, input, timeout, output_limit_bytes, check=check)


def _sort_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    command = {n: v for n, v in arguments.items() if n in COMMAND_FIELDS - CONFINEMENT or n in STREAM_ARGUMENTS}
    return command, {n: v for n, v in arguments.items() if n not in command}


def _resolved(description: dict[str, Any]) -> Spec:
    """Return the description with the root that it stands for: an image has a say in what the command is."""
    spec = build(description)
    root = resolve(spec.rootfs)
    return spec if root is spec.rootfs else attrs.evolve(spec, rootfs=root)


def _start_one(argv: Any, spec: Spec, options: dict[str, Any], init: bool) -> Process:  # noqa: FBT001 - run's own
    fields = {name: value for name, value in options.items() if name in COMMAND_FIELDS}
    command = describe(spec, argv, with_defaults(spec.rootfs, fields))
    Supervision.of(command.confinement, None)  # refuses a filter that needs a supervisor
    text = Text.of(options.get("text"), options.get("encoding"), options.get("errors"))
    ground = Ground.prepare(spec)
    streams: Streams | None = None
    report = (-1, -1)
    has_init = init and spec.namespaces.pid == "new"
    try:
        streams = Streams.open(
            options.get("stdin"), options.get("stdout"), options.get("stderr"), ground.outside(command.user.uid)
        )
        if has_init:
            read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # nobody waits at it: PID 1 writes once and ends
            report = read, -1
            report = read, _native.high(write)
        outcome = ground.start(
            Mode(init=has_init, command=command),
            command.argv,
            command.envp,
            {**streams.inputs(), "report": report[1]},
        )
    except BaseException:
        ground.release()
        if streams is not None:
            streams.close()
        for fd in report:
            if fd >= 0:
                os.close(fd)
        raise
    streams.close_child()
    if has_init:
        os.close(report[1])
    return Process(
        command,
        outcome.pid,
        outcome.pidfd,
        streams,
        report=report[0],
        text=text,
        finish=lambda process: _finish(process, ground),
    )


def _finish(process: Process, ground: Ground) -> None:
    try:
        if ground.membership is not None:
            account(process, ground.membership.group)
    finally:
        ground.release()

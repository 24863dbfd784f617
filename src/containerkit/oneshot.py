"""One command in a container of its own: the fastest way."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import attrs

from containerkit import _native
from containerkit.assembly import Mode
from containerkit.container import Container
from containerkit.engine import Capture
from containerkit.ground import Ground
from containerkit.invocation import (
    COMMAND_FIELDS,
    STREAM_ARGUMENTS,
    Recall,
    check_numbers,
    complete,
    describe,
    has_names,
    owns_nothing,
    run_streams,
    with_defaults,
)
from containerkit.membership import account
from containerkit.process import OUTPUT_LIMIT_BYTES, Process
from containerkit.rootfs import resolve
from containerkit.spec import CONFINEMENT, Spec, build
from containerkit.streams import Streams, Text, require_open
from containerkit.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from containerkit._native.outcome import Left
    from containerkit.command import Command
    from containerkit.ready import Ready
    from containerkit.result import CompletedProcess, Fate

__all__ = ["Recipe", "perform", "run"]


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
    return perform(
        _recipe,
        more,
        argv,
        given=input,
        timeout=timeout,
        check=check,
        capture_output=capture_output,
        limit=output_limit_bytes,
        init=init,
    )


def perform(
    recipe_of: Callable[[dict[str, Any]], Recipe],
    more: dict[str, Any],
    argv: Any,
    *,
    given: Any,
    timeout: float | None,
    check: bool,
    capture_output: bool,
    limit: int | None,
    init: bool,
    take: Callable[[Command], Ready | None] | None = None,
) -> CompletedProcess:
    """Do what :func:`run` does; ``recipe_of`` tells what its other arguments come to, ``take`` what is ready for it."""
    check_numbers(timeout, limit)
    began = time.monotonic()
    recipe = recipe_of(more)
    if recipe.is_for_a_container:
        with Container(**recipe.description) as container:  # names and terminals are found inside
            return container.run(
                argv,
                input=given,
                timeout=timeout,
                check=check,
                capture_output=capture_output,
                output_limit_bytes=limit,
                **recipe.given,
            )
    if given is None and capture_output and recipe.captures and _native.interpreter().Run is not None:
        return _OneRun(recipe, argv, init, take).at_once(began, timeout, limit, check=check)
    streams = run_streams(given, recipe.given, capture=capture_output)
    process = _OneRun(recipe, argv, init).start(streams)
    return complete(process, began, given, timeout, limit, check=check)


class Recipe(NamedTuple):
    """What the arguments of ``run`` come to, but for the words of the command.

    Attributes:
        description: those that describe the container.
        given: the others.
        spec: the container.
        command: the command, with words that are to be replaced; None when only a container can run it.
        text: how its output is text.
        captures: it has the streams of its own that ``run`` gives to a command unless it is told otherwise.
    """

    description: dict[str, Any]
    given: dict[str, Any]
    spec: Spec
    command: Command | None
    text: Text | None
    captures: bool

    @property
    def is_for_a_container(self) -> bool:
        """Whether a live container must look something up before the command can start."""
        return self.command is None

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> Recipe:
        """Sort the arguments and check them all.

        Raises:
            SpecError: a value that can't be.
        """
        names = COMMAND_FIELDS - CONFINEMENT | STREAM_ARGUMENTS
        given = {name: value for name, value in arguments.items() if name in names}
        description = {name: value for name, value in arguments.items() if name not in names}
        spec = build(description)
        root = resolve(spec.rootfs)  # an image has a say in what the command is
        if root is not spec.rootfs:
            spec = attrs.evolve(spec, rootfs=root)
        if given.get("pty") or given.get("syscall_handler") or has_names(spec.rootfs, given):
            return cls(description, given, spec, None, None, captures=False)
        fields = {name: value for name, value in given.items() if name in COMMAND_FIELDS}
        command = describe(spec, ["-"], with_defaults(spec.rootfs, fields))
        Supervision.of(command.confinement, None)  # refuses a filter that needs a supervisor
        text = Text.of(given.get("text"), given.get("encoding"), given.get("errors"))
        captures = spec.namespaces.pid == "new" and not _STREAMS.intersection(given)
        return cls(description, given, spec, command, text, captures)


_STREAMS: Final = frozenset({"stdin", "stdout", "stderr"})
_recipes: Recall[Recipe] = Recall()


def _recipe(arguments: dict[str, Any]) -> Recipe:
    return _recipes.get(arguments, Recipe.of, _is_lasting)


def _is_lasting(recipe: Recipe) -> bool:
    """Whether it would come to the same again: no image is behind a name."""
    spec = recipe.spec
    return spec.rootfs is recipe.description.get("rootfs", spec.rootfs) and owns_nothing(spec)


class _OneRun:
    """One command that is about to run in a container of its own.

    Raises:
        SpecError: words that can't be, or something that the description names is not there.
        SetupError: something can't be had.
    """

    def __init__(
        self,
        recipe: Recipe,
        argv: Any,
        init: bool,  # noqa: FBT001 - run's own
        take: Callable[[Command], Ready | None] | None = None,
    ) -> None:
        assert recipe.command is not None
        self.text = recipe.text
        self.command = recipe.command.with_argv(argv)
        for fd in self.command.pass_fds:
            require_open(fd, "pass_fds")
        self.mode = Mode(init=init and recipe.spec.namespaces.pid == "new", command=self.command)
        self.ready = take(self.command) if take is not None and self.mode.init else None
        self.ground = Ground.prepare(recipe.spec) if self.ready is None else self.ready.ground

    def at_once(self, began: float, timeout: float | None, limit: int | None, *, check: bool) -> CompletedProcess:
        """Run it to its end in one call, and return what became of it.

        Raises:
            SetupError, ContainerTimeout, ExitError, OutOfMemory: as for ``run``.
        """
        owner = self.ground.outside(self.command.user.uid)
        capture = Capture(
            abandon=lambda left: self._taken_over(left).close(), owner=owner, limit=limit, timeout=timeout
        )
        left = self._left(capture)
        if left.ending is None:
            process = self._taken_over(left)
            until = capture.deadline
            return complete(process, began, None, timeout, limit, check=check, heard=left.heard, deadline=until)
        from containerkit.result import Fate

        try:
            fate = Fate.of(left.ending)
        except BaseException:  # a signal handler has raised
            self.ground.release()
            raise
        if self.ready is not None and self.ready.is_leaving:
            self.ready.over()
        else:
            self._finish(fate)
        return fate.completed(self.command.words, self.text, left.heard, began, check=check)

    def _left(self, capture: Capture) -> Left:
        try:
            if self.ready is not None:
                return self.ready.complete(self.command, capture)
            return self.ground.complete(self.mode, self.command.argv, self.command.envp, capture)
        except BaseException:
            self._over()
            self.ground.release()
            raise

    def _over(self) -> None:
        if self.ready is not None:
            self.ready.over()

    def start(self, options: dict[str, Any]) -> Process:
        """Start it with these streams."""
        streams: Streams | None = None
        report = (-1, -1)
        try:
            streams = Streams.open(
                options.get("stdin"),
                options.get("stdout"),
                options.get("stderr"),
                self.ground.outside(self.command.user.uid),
            )
            if self.mode.init:
                read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)  # nobody waits at it: PID 1 writes once and ends
                report = read, -1
                report = read, _native.high(write)
            slots = {**streams.inputs(), "report": report[1]}
            outcome = self.ground.start(self.mode, self.command.argv, self.command.envp, slots)
        except BaseException:
            self.ground.release()
            if streams is not None:
                streams.close()
            for fd in report:
                if fd >= 0:
                    os.close(fd)
            raise
        streams.close_child()
        if self.mode.init:
            os.close(report[1])
        return self._process(outcome.pid, outcome.pidfd, streams, report[0])

    def _taken_over(self, left: Left) -> Process:
        streams = Streams([], [None, *left.ends], [])
        return self._process(left.pid, left.pidfd, streams, left.report)

    def _process(self, pid: int, pidfd: int, streams: Streams, report: int) -> Process:
        return Process(self.command, pid, pidfd, streams, report=report, text=self.text, finish=self._finish)

    def _finish(self, fate: Process | Fate) -> None:
        self._over()
        try:
            if self.ground.membership is not None:
                account(fate, self.ground.membership.group)
        finally:
            self.ground.release()

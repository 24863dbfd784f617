"""Run one command in its own container. This is the fastest way."""

from __future__ import annotations

from functools import partial

from containerkit import _native, late
from containerkit.compile.facts import Mode
from containerkit.container.arguments import (
    COMMAND_FIELDS,
    RUN_ARGUMENTS,
    STREAM_ARGUMENTS,
    confine_for_streams,
    describe,
    has_names,
    owns_nothing,
    run_streams,
    with_defaults,
)
from containerkit.container.captured import ArgumentCache, Captured, Terms, complete
from containerkit.container.starting_process import StartingProcess
from containerkit.descriptors import keep
from containerkit.errors import of_descriptors
from containerkit.meanings import explained
from containerkit.process.communicate import LineCallbacks
from containerkit.process.process import OUTPUT_LIMIT_BYTES
from containerkit.process.seccomp_notify import Supervision
from containerkit.process.stdio import Text, require_open
from containerkit.security.checks import check_bool
from containerkit.spec.container import CONFINEMENT, DESCRIPTION, Spec, build, check_names
from containerkit.spec.rootfs import resolve
from containerkit.start.context import StartContext
from containerkit.typed import NamedTuple, overload
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Final, Literal, Unpack

    from containerkit.container.lifecycle import Container
    from containerkit.container.ready import Ready
    from containerkit.options import AnyLaunchOptions, Input, Listener, ListOf, OneShotOptions, Word
    from containerkit.process.process import Process
    from containerkit.process.result import CompletedProcess
    from containerkit.spec.command import Command

__all__ = ["Recipe", "begin", "perform", "recipe_of_run", "run"]


@overload
def run(
    argv: ListOf[Word],
    *,
    input: str | None = None,
    text: Literal[True],
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[str]: ...


@overload
def run(
    argv: ListOf[Word],
    *,
    input: str | None = None,
    text: bool | None = None,
    encoding: str,
    errors: str | None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[str]: ...


@overload
def run(
    argv: ListOf[Word],
    *,
    input: bytes | bytearray | memoryview | None = None,
    text: Literal[False] | None = None,
    encoding: None = None,
    errors: None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[bytes]: ...


@overload
def run(
    argv: ListOf[Word],
    *,
    input: None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **options: Unpack[OneShotOptions],
) -> CompletedProcess[str] | CompletedProcess[bytes]: ...


@explained
def run(
    argv: ListOf[Word],
    *,
    input: Input = None,  # noqa: A002 - subprocess's own argument
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = True,
    output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
    init: bool = True,
    on_stdout: Listener | None = None,
    on_stderr: Listener | None = None,
    **more: Unpack[AnyLaunchOptions],
) -> CompletedProcess[Any]:
    """Run one command in its own container and wait for its end. This is the fastest way.

    Args:
        argv: the program, which is looked up inside, and its arguments.
        input: its standard input (default: empty, /dev/null).
        text, encoding, errors: as in :func:`subprocess.run`; text is UTF-8 unless an encoding is given.
        options: see :class:`containerkit.options.OneShotOptions`.

    Raises:
        SpecError: a value is invalid. Nothing was made.
        SetupError: an operation failed. Nothing is left behind.
        ContainerTimeout: the timeout expired. The error has the output so far.
        ExitError: with ``check``.
    """
    callbacks: LineCallbacks | None = None
    if on_stdout is not None or on_stderr is not None:
        callbacks = LineCallbacks.of(on_stdout, on_stderr, kept=capture_output)
    return perform(
        recipe_of_run,
        more,
        argv,
        given=input,
        timeout=timeout,
        check=check,
        capture_output=capture_output,
        limit=output_limit_bytes,
        init=init,
        callbacks=callbacks,
    )


def perform(
    recipe_of: Callable[[Mapping[str, Any]], Recipe],
    more: Mapping[str, Any],
    argv: ListOf[Word],
    *,
    given: Input,
    timeout: float | None,
    check: bool,
    capture_output: bool,
    limit: int | None,
    init: bool,
    take: Callable[[Command], Ready | None] | None = None,
    callbacks: LineCallbacks | None = None,
) -> CompletedProcess[Any]:
    """Implement :func:`run`. ``recipe_of`` evaluates its other arguments. ``take`` returns a ready container."""
    terms = Terms.of(timeout, limit, check=check, callbacks=callbacks)
    if init is not True:
        check_bool(init, "init")
    try:
        recipe = recipe_of(more)
        if recipe.command is None:
            return _in_a_container(recipe, argv, terms, given, capture=capture_output)
        command, mode = _command(recipe, argv, init=init)
        if given is None and capture_output and recipe.captures and callbacks is None:
            ready = take(command) if take is not None and mode.init else None
            if ready is not None:
                return ready.run(command, recipe.text, terms)
            return _captured(recipe, mode, terms)
        streams = run_streams(given, recipe.given, capture=capture_output, callbacks=callbacks)
        return _communicated(recipe, command, mode, streams, given, terms)
    except OSError as error:
        if told := of_descriptors("run", error):
            raise told from error
        raise


def _command(recipe: Recipe, argv: ListOf[Word], *, init: bool) -> tuple[Command, Mode]:
    assert recipe.command is not None
    command = recipe.command.with_argv(argv)
    for fd in command.pass_fds:
        require_open(fd, "pass_fds")
    return command, Mode(init=init and recipe.spec.namespaces.pid == "new", command=command)


def begin(
    argv: ListOf[Word], more: Mapping[str, Any], streams: Mapping[str, Any], *, init: bool
) -> tuple[Process[Any], Container | None]:
    """Start one command in its own container, for a caller that does not wait for its end as ``run`` does.

    Args:
        argv: the program and its arguments.
        more: the arguments of ``run``, except those for waiting.
        streams: its standard streams: ``stdin``, ``stdout``, ``stderr``.
        init: as for ``run``.

    Returns:
        The command, and the container that the caller must stop afterwards; None if it ends with the command.

    Raises:
        SpecError, SetupError: as for ``run``.
    """
    check_bool(init, "init")
    recipe = recipe_of_run({**more, **streams})
    if recipe.command is None:
        return _started_in_a_container(recipe, argv)
    command, mode = _command(recipe, argv, init=init)
    starting = StartingProcess(recipe.text)
    try:
        _start(starting, recipe, command, mode, recipe.given)
        assert starting.process is not None
        return starting.process, None  # noqa: TRY300 - a handler may raise before another block begins
    except BaseException:
        starting.call_off()
        raise


def _started_in_a_container(recipe: Recipe, argv: ListOf[Word]) -> tuple[Process[Any], Container]:
    container: Container = late.load(late.KINDS["container"])(**recipe.description)
    born: list[Process[Any]] = []
    try:
        container.start()
        keep(born, partial(container.popen, **recipe.given), argv)
        return born[0], container
    except BaseException:
        for process in born:
            process.close()
        container.stop()
        raise


class Recipe(NamedTuple):
    """The evaluated arguments of ``run``, except its argv.

    Attributes:
        description: the arguments that describe the container.
        given: the other arguments.
        spec: the container.
        command: the command, with a placeholder as argv; None if only a running container can resolve it.
        text: how its output is decoded.
        captures: whether it can be run as :class:`Captured`, because it has the default streams of ``run``.
    """

    description: dict[str, Any]
    given: dict[str, Any]
    spec: Spec
    command: Command | None
    text: Text | None
    captures: bool

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Recipe:
        """Sort the arguments and check them all.

        Raises:
            SpecError: a value is invalid.
        """
        check_names("run", arguments, _ARGUMENTS)
        names = COMMAND_FIELDS - CONFINEMENT | STREAM_ARGUMENTS
        given = {name: value for name, value in arguments.items() if name in names}
        description = {name: value for name, value in arguments.items() if name not in names}
        spec = build(description)
        root = resolve(spec.rootfs)  # the image provides defaults of the command
        if root is not spec.rootfs:
            spec = evolve(spec, rootfs=root)
        if given.get("pty") or given.get("syscall_handler") or has_names(spec.rootfs, given):
            return cls(description, given, spec, None, None, captures=False)
        fields = {name: value for name, value in given.items() if name in COMMAND_FIELDS}
        command = describe(spec, ["-"], with_defaults(spec.rootfs, fields))
        Supervision.of(command.confinement, None)  # refuses a filter that needs a supervisor
        text = Text.of(given.get("text"), given.get("encoding"), given.get("errors"))
        alone = spec.namespaces.pid == "new" and _STREAMS.isdisjoint(given)
        return cls(description, given, spec, command, text, alone and _native.interpreter().Run is not None)


_ARGUMENTS: Final = RUN_ARGUMENTS | DESCRIPTION | {"init"}
_STREAMS: Final = frozenset({"stdin", "stdout", "stderr"})
recipes: ArgumentCache[Recipe] = ArgumentCache()


def recipe_of_run(arguments: Mapping[str, Any]) -> Recipe:
    """Return the evaluated arguments of ``run``."""
    return recipes.get(arguments, Recipe.of, _is_lasting)


def _is_lasting(recipe: Recipe) -> bool:
    """Return whether evaluating it again gives the same result, because it has no name of an image."""
    spec = recipe.spec
    return spec.rootfs is recipe.description.get("rootfs", spec.rootfs) and owns_nothing(spec)


def _in_a_container(
    recipe: Recipe, argv: ListOf[Word], terms: Terms, given: Input, *, capture: bool
) -> CompletedProcess[Any]:
    """Run it in a live container, where names and terminals can be looked up."""
    container: Container = late.load(late.KINDS["container"])(**recipe.description)
    with container:
        done: CompletedProcess[Any] = container.run(
            argv,
            input=given,
            timeout=terms.timeout,
            check=terms.check,
            capture_output=capture,
            output_limit_bytes=terms.limit,
            on_stdout=None if terms.callbacks is None else terms.callbacks.on_stdout,
            on_stderr=None if terms.callbacks is None else terms.callbacks.on_stderr,
            **recipe.given,
        )
    return done


def _captured(recipe: Recipe, mode: Mode, terms: Terms) -> CompletedProcess[Any]:
    """Run it in its own container from its start to its end."""
    assert mode.command is not None
    captured: Captured | None = None
    contexts: list[StartContext] = []
    try:
        context = StartContext.prepare(recipe.spec, contexts)
        owner = context.outside(mode.command.user.uid)
        captured = Captured(mode.command, recipe.text, terms, owner, partial(_finish, context))
        context.begin_with_fallbacks(mode, captured.begin)
        return captured.complete()
    except BaseException:
        if captured is not None:
            captured.call_off()
        for each in contexts:
            each.release()
        raise


def _finish(context: StartContext, process: Process[Any] | Captured) -> None:
    """Read the group of an ended command, and release its context."""
    try:
        if context.membership is not None:
            from containerkit.start.cgroup import account

            account(process, context.membership.group)
    finally:
        context.release()


def _communicated(
    recipe: Recipe, command: Command, mode: Mode, streams: dict[str, Any], given: Input, terms: Terms
) -> CompletedProcess[Any]:
    """Start it with these streams, and communicate with it to its end."""
    starting = StartingProcess(recipe.text)
    try:
        _start(starting, recipe, command, mode, streams)
        assert starting.process is not None
        return complete(starting.process, given, terms)
    except BaseException:
        starting.call_off()
        raise


def _start(starting: StartingProcess, recipe: Recipe, command: Command, mode: Mode, options: dict[str, Any]) -> None:
    """Start it with these streams. If this raises, the maker of its :class:`StartingProcess` must call it off."""
    contexts: list[StartContext] = []
    try:
        context = StartContext.prepare(recipe.spec, contexts)
        stdin, stdout, stderr = (options.get(name) for name in ("stdin", "stdout", "stderr"))
        starting.streams.add(stdin, stdout, stderr, context.outside(command.user.uid))
        command = confine_for_streams(command, starting.streams, recipe.spec, recipe.given)
        report = starting.open_report() if mode.init else -1
        slots = {**starting.streams.inputs(), "report": report}
        context.start(mode._replace(command=command), command.argv, command.envp, slots, starting.outcomes)
        starting.enter(command, partial(_finish, context))
        starting.close_child()
    except BaseException:
        starting.call_off()  # before its context is released
        for each in contexts:
            each.release()
        raise

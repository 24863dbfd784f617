"""Turns the arguments of ``Fleet.submit`` into a task, checked as far as that is possible away from its node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.container.arguments import COMMAND_FIELDS, describe, has_names, owns_nothing
from containerkit.container.captured import Terms
from containerkit.errors import SpecError
from containerkit.fleet.engine import Task
from containerkit.process.communicate import LineCallbacks, check_input
from containerkit.process.process import OUTPUT_LIMIT_BYTES
from containerkit.process.stdio import Text
from containerkit.security.checks import check_bool
from containerkit.spec.container import CONFINEMENT, DESCRIPTION, build, check_names
from containerkit.spec.rootfs import RootFS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.fleet.engine import Node, StreamName
    from containerkit.options import Input, ListOf, Word

__all__ = ["check_container", "check_fits", "check_retries", "task_of"]

_WAIT: Final = frozenset({"timeout", "check", "capture_output", "output_limit_bytes", "on_stdout", "on_stderr"})
_TEXT: Final = frozenset({"text", "encoding", "errors"})
_COMMAND: Final = COMMAND_FIELDS - {"pass_fds"}
_KNOWN: Final = DESCRIPTION | _COMMAND | _WAIT | _TEXT | {"image", "init", "input", "retries"}
_STREAMS: Final[tuple[StreamName, ...]] = ("stdout", "stderr")


def task_of(
    name: str, argv: ListOf[Word], given: Input, options: Mapping[str, Any], *, call: str = "Fleet.submit"
) -> Task:
    """Return the task of keyword arguments. Its image is not resolved yet.

    Args:
        name: its id.
        argv: the program and its arguments.
        given: its standard input.
        options: the other arguments.
        call: the name of the call, for errors.

    Raises:
        SpecError: a value is invalid, or only valid on this machine.
    """
    check_names(call, options, _KNOWN)
    more = dict(options)
    image, limits, rootfs, timeout = (more.pop(each, None) for each in ("image", "limits", "rootfs", "timeout"))
    check_container(call, image, rootfs, options)
    fields = {each: value for each, value in options.items() if each in _COMMAND}
    if has_names(rootfs or RootFS.host(), fields):  # names are looked up inside
        fields = {each: value for each, value in fields.items() if each not in ("user", "groups")}
    description = {each: value for each, value in options.items() if each in DESCRIPTION}
    command = describe(build(description), argv, {k: v for k, v in fields.items() if v is not None})
    Terms.of(timeout, options.get("output_limit_bytes", OUTPUT_LIMIT_BYTES), check=False)
    for each in ("init", "check", "capture_output"):
        check_bool(options.get(each, False), each)
    listeners = more.pop("on_stdout", None), more.pop("on_stderr", None)
    LineCallbacks.of(*listeners, kept=True)
    text = Text.of(options.get("text"), options.get("encoding"), options.get("errors"))
    check_input(given, text=text is not None)
    return Task(
        id=name,
        argv=tuple(command.argv),
        image=image,
        rootfs=rootfs,
        limits=limits,
        timeout=timeout,
        given=bytes(given) if isinstance(given, (bytearray, memoryview)) else given,
        options=more,
        listened=frozenset(stream for stream, call in zip(_STREAMS, listeners, strict=True) if call is not None),
    )


def check_container(call: str, image: object, rootfs: object, options: Mapping[str, Any]) -> None:
    """Refuse a description of a container that another machine can't follow.

    Raises:
        SpecError: the description is of that kind.
    """
    if image is not None and rootfs is not None:
        raise SpecError(f"{call}: give either image or rootfs")
    if image is not None and not isinstance(image, str):
        raise SpecError(f"{call}: image: {image!r:.100} is not the name of an image")
    described = {name: value for name, value in options.items() if name in DESCRIPTION}
    if described.get("rootfs", 0) is None:
        del described["rootfs"]
    spec = build({name: value for name, value in described.items() if name in DESCRIPTION - CONFINEMENT})
    if not owns_nothing(spec):
        raise SpecError(f"{call}: namespaces: namespaces of this machine's processes can't be joined on another one")


def check_retries(retries: object) -> int:
    """Return a number of retries.

    Raises:
        SpecError: it is not a number from 0 to 1000.
    """
    if isinstance(retries, bool) or not isinstance(retries, int) or not 0 <= retries <= 1000:
        raise SpecError(f"retries: {retries!r:.100} is not a number from 0 to 1000")
    return retries


def check_fits(task: Task, nodes: tuple[Node, ...]) -> None:
    """Refuse a task that is too large for every node. Engines would let it wait forever.

    Raises:
        SpecError: it is too large.
    """
    limits = task.limits
    if limits is None or not nodes:
        return
    for wanted, name, unit in ((limits.cpus, "cpus", "processors"), (limits.memory, "memory_bytes", "bytes")):
        offers = [getattr(node, name) for node in nodes]
        if not isinstance(wanted, (int, float)) or None in offers or wanted <= max(offers):
            continue
        raise SpecError(
            f"limits: {wanted} {unit}, but the largest of {len(nodes)} nodes has {max(offers):g} (hint: elastic=True "
            "of the fleet, for a cluster that will grow)"
        )

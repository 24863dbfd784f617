"""Print the operations that 'run' would perform with the same options, in order, without starting a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.cli import arguments
from containerkit.compile.facts import Mode
from containerkit.compile.payload import exec_plan
from containerkit.compile.start import start_plan
from containerkit.container.arguments import describe, with_defaults
from containerkit.container.lifecycle import Container
from containerkit.errors import SpecError
from containerkit.spec.command import User
from containerkit.start.context import StartContext

if TYPE_CHECKING:
    import argparse

    from containerkit.plan.tape import Plan

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
Each line is one operation, almost always one system call, and its target. The first list starts the container and its
init. The second list runs the command inside. With a network, a list before these creates the container's interface.

  containerkit explain --tmpfs /tmp:64M -- true
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    arguments.define(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Print the plans and return 0.

    Raises:
        ContainerError: the description is invalid.
    """
    image = arguments.image(options)
    words = arguments.words(options, image)
    container = Container(**arguments.container(options, image))
    fields = with_defaults(container.spec.rootfs, arguments.command(options, image))
    user = _user(fields.pop("user", "0"))
    command = describe(container.spec, words, {**fields, "user": user}, terminal=bool(options.pty))
    context = StartContext.prepare(container.spec)
    try:
        start = start_plan(context.spec, context.host, Mode(reads_upper=True))
        told = getattr(context.joined.get("network"), "plan", None)
        network = None if told is None else told()
    finally:
        context.release()
    run = exec_plan(command, container.spec.kinds, sets_groups=context.host.sets_groups)
    lists = {"the network": network, "the container": start, "the command": run}
    found = {title: plan for title, plan in lists.items() if plan is not None}
    if options.json:
        import json

        text = json.dumps({title.removeprefix("the "): _operations(plan) for title, plan in found.items()}, indent=2)
    else:
        text = "\n\n".join(_listed(title, plan) for title, plan in found.items())
    print(text, flush=True)  # noqa: T201 - the command line prints its output
    return 0


def _operations(plan: Plan) -> list[dict[str, str]]:
    return [{"operation": operation.name, "target": operation.target} for operation in plan]


def _user(text: str) -> User:
    user = User.parse(text)
    if user is None:
        raise SpecError(f"--user {text!r}: names are looked up inside a container; explain needs ids")
    return user


def _listed(title: str, plan: Plan) -> str:
    return f"{title}: {len(plan)} operations\n{plan}"

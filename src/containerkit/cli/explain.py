"""Print the operations that 'run' would do with the same options, in their order, without starting a container."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from containerkit.assembly import Mode, start_plan
from containerkit.cli import arguments
from containerkit.command import Command, User
from containerkit.container import Container
from containerkit.errors import SpecError
from containerkit.ground import Ground
from containerkit.invocation import with_defaults
from containerkit.payload import exec_plan

if TYPE_CHECKING:
    import argparse

    from containerkit.plan import Plan

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
Each line is one operation, almost always one system call, and what it is done to. The first list starts the container
and its init; the second runs the command inside.

  containerkit explain --tmpfs /tmp:64M -- true
"""

define = arguments.define


def main(options: argparse.Namespace) -> int:
    """Print the plans; returns 0.

    Raises:
        ContainerError: the description can't be.
    """
    image = arguments.image(options)
    words = arguments.words(options, image)
    container = Container(**arguments.container(options, image))
    fields = with_defaults(container.spec.rootfs, arguments.command(options, image))
    user = _user(fields.pop("user", "0"))
    command = Command(
        argv=words, user=user, terminal=bool(options.pty), confinement=container.spec.confinement, **fields
    )
    ground = Ground.prepare(container.spec)
    try:
        start = start_plan(ground.spec, ground.host, Mode(reads_upper=True))
    finally:
        ground.release()
    run = exec_plan(command, container.kinds, sets_groups=ground.host.sets_groups)
    print(f"{_listed('the container', start)}\n\n{_listed('the command', run)}", flush=True)  # noqa: T201 - as asked
    return 0


def _user(text: str) -> User:
    user = User.parse(text)
    if user is None:
        raise SpecError(f"--user {text!r}: names are looked up inside a container; explain takes ids")
    return user


def _listed(title: str, plan: Plan) -> str:
    return f"{title}: {len(plan)} operations\n{plan}"

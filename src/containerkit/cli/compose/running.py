"""Verbs that run commands in a project's containers, and copy files into them and out of them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from containerkit.cli.compose.common import load, remote, show
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from containerkit.project.project import Project
    from containerkit.project.remote import Remote

__all__ = ["VERBS"]

_STREAMS: Final = (0, 1, 2)


def _env(texts: list[str]) -> dict[str, str]:
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if equals or name in os.environ:
            found[name] = value if equals else os.environ[name]
    return found


def _exec(options: argparse.Namespace) -> int:
    if not options.command:
        raise SpecError("exec: a command is required, such as: exec web sh")
    with _terminal(options) as size:
        code: int = remote(options).ask(
            "exec", fds=_STREAMS, service=options.service, index=options.index, argv=options.command, size=size,
            env=_env(options.env), user=options.user, cwd=options.workdir, privileged=options.privileged,
            detach=options.detach,
        )  # fmt: skip
    return code


@contextmanager
def _terminal(options: argparse.Namespace) -> Iterator[tuple[int, int] | None]:
    """Yield the size of the caller's terminal, in raw mode, if the command gets a terminal; otherwise None."""
    from containerkit.cli import terminal

    if options.no_tty or options.detach or not terminal.is_wanted():
        yield None
        return
    with terminal.RawMode(0):
        yield terminal.size()


def _run(options: argparse.Namespace) -> int:
    from containerkit.project.remote import Remote, detach, project_request

    project = load(options, services=(options.service,))
    changed = _changed(project, options)
    _prepare(changed, options)
    argv: list[str] = options.command
    if options.entrypoint is not None:
        argv = [options.entrypoint, *argv]
    more = {name: value for name, value in (("user", options.user), ("cwd", options.workdir)) if value is not None}
    needed = list(project.model["services"][options.service].get("depends_on", ()))
    ours: Remote | None = None
    begun = False
    try:
        holder = Remote(project.name)
        if needed and not options.no_deps:
            holder.ask("apply", **project_request(project), services=needed)
    except StateError:
        # No process holds the project, so one holds it while the command runs; with --detach until 'down'.
        holder = ours = detach(project, lambda _: None, by_fork=True, services=[] if options.no_deps else needed)
    try:
        whole = _whole(changed, options, argv)
        with _terminal(options) as size:
            done: int | str = holder.ask(
                "run", fds=_STREAMS, **project_request(changed), service=options.service, argv=whole, options=more,
                name=options.name, aliases=options.use_aliases, size=size, detach=options.detach, remove=options.rm,
            )  # fmt: skip
            begun = options.detach
    finally:
        if ours is not None and not begun:
            ours.ask("down")
    if isinstance(done, str):
        show(done)
        return 0
    return done


def _prepare(project: Project, options: argparse.Namespace) -> None:
    """Refuse what is not supported, and build the image if that is wanted."""
    from containerkit.project import support
    from containerkit.project.images import build_image

    support.unsupported(project)
    keys = project.model["services"][options.service]
    if options.build and "build" in keys:
        build_image(project, options.service, keys)


def _whole(project: Project, options: argparse.Namespace, argv: list[str]) -> list[str]:
    """Return the argv of a command: the arguments follow the entrypoint, unless another one is given."""
    if options.entrypoint is not None or not argv:
        return argv
    from containerkit.project.images import image_of

    keys = project.model["services"][options.service]
    entrypoint = keys.get("entrypoint")
    if entrypoint is None:
        entrypoint = image_of(project, options.service, keys).defaults.entrypoint
    return [*entrypoint, *argv]


def _changed(project: Project, options: argparse.Namespace) -> Project:
    from containerkit.project import Project
    from containerkit.project.dotenv import read_dotenv
    from containerkit.project.shapes import Place
    from containerkit.project.short import port_list, volume

    if options.service not in project.model["services"]:
        raise SpecError(f"no service {options.service!r:.60}; the services are {', '.join(project.model['services'])}")
    keys = dict(project.model["services"][options.service])
    variables = dict(project.variables)
    for path in options.env_from_file:
        keys["environment"] = {**keys.get("environment", {}), **read_dotenv(os.path.abspath(path), variables)}
    keys["environment"] = {**keys.get("environment", {}), **_env(options.env)}
    keys["labels"] = {**keys.get("labels", {}), **dict(each.partition("=")[::2] for each in options.label)}
    for key, names in (("cap_add", options.cap_add), ("cap_drop", options.cap_drop)):
        if names:
            keys[key] = [*keys.get(key, ()), *names]
    at = Place("--publish", "command line", os.getcwd())
    keys["ports"] = [*(keys.get("ports", ()) if options.service_ports else ()), *port_list(options.publish, at)]
    if options.pull:
        keys["pull_policy"] = options.pull
    if options.command:
        keys["command"] = list(options.command)
    place = Place("--volume", "command line", os.getcwd())
    keys["volumes"] = [*keys.get("volumes", ()), *(volume(text, place) for text in options.volume)]
    services = {**project.model["services"], options.service: keys}
    return Project.of({**project.model, "services": services}, project.directory, project.variables, project.files)


def _cp(options: argparse.Namespace) -> int:
    (source, inside), (target, outside) = _place(options.source), _place(options.target)
    if (source is None) == (target is None):
        raise SpecError("cp: one argument must be SERVICE:PATH, the other a path of the host")
    if source is not None:
        here = os.path.join(outside, os.path.basename(inside)) if os.path.isdir(outside) else outside
        remote(options).ask(
            "copy", service=source, index=options.index, inside=inside, outside=os.path.abspath(here), out=True
        )
    elif target is not None:
        remote(options).ask(
            "copy", service=target, index=options.index, inside=outside, outside=os.path.abspath(inside), out=False
        )
    return 0


def _place(text: str) -> tuple[str | None, str]:
    """Return the service and the path of an argument. A path of the host has no service."""
    service, colon, path = text.partition(":")
    return (service, path) if colon and "/" not in service else (None, text)


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {"exec": _exec, "run": _run, "cp": _cp}

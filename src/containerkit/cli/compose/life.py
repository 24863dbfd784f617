"""Verbs that start, change and end a project."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.compose.common import load, note, numbers, remote, show, with_needed
from containerkit.cli.compose.looking import print_line, show_plan
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from containerkit.project.project import Project
    from containerkit.project.stack import Stack

__all__ = ["VERBS"]


def _up(options: argparse.Namespace) -> int:
    from containerkit.project import support
    from containerkit.project.remote import Remote, detach, project_request

    if options.detach and options.watch:
        raise SpecError("--watch: it needs a foreground; leave --detach out, or use 'compose watch' afterwards")
    project = load(options, services=options.services)
    if options.no_build:
        project = _without_builds(project)
    support.unsupported(project)
    if options.dry_run:
        options.json = False
        return show_plan(project, options)
    services = options.services or None
    wait = options.wait_timeout if options.wait else None
    scale = numbers(options.scale) or None
    try:
        running = Remote(project.name)
    except StateError:
        running = None
    if running is not None:
        request = project_request(project)
        for text in running.stream(
            "apply", **request, **_how(project, options), services=services, scale=scale, wait=wait
        ):
            if text is not None:
                note(text)
        return 0
    if options.detach or options.wait or options.no_start:
        detach(
            project, note, by_fork=True, **_how(project, options), services=services, scale=scale, wait=wait,
            build=options.build, pull=options.pull,
        )  # fmt: skip
        return 0
    return _attend(project, options, services, scale)


def _create(options: argparse.Namespace) -> int:
    options.no_start, options.detach, options.wait, options.watch = True, True, False, False
    options.no_deps = options.always_recreate_deps = False
    return _up(options)


def _without_builds(project: Project) -> Project:
    from containerkit.project import Project
    from containerkit.project.images import tag_of

    services = {
        name: {"image": tag_of(project, name, keys), **{key: each for key, each in keys.items() if key != "build"}}
        for name, keys in project.model["services"].items()
    }
    return Project.of({**project.model, "services": services}, project.directory, project.variables, project.files)


def _how(project: Project, options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments that select which running containers are replaced."""
    if options.no_deps and not options.services:
        raise SpecError("--no-deps: it needs names of services")
    every = options.force_recreate and options.always_recreate_deps and options.services
    return {
        "deps": not options.no_deps, "keep": options.no_recreate,
        "recreate": with_needed(project, options.services) if every else options.force_recreate,
        "create": options.verb == "create" or options.no_start,
    }  # fmt: skip


def _attend(
    project: Project, options: argparse.Namespace, services: list[str] | None, scale: dict[str, int] | None
) -> int:
    """Hold the project and show its logs. Stop it when all containers have ended, or at a signal.

    A second SIGTERM or SIGHUP ends this process, and with it the containers, without delay.
    """
    from containerkit.project.stack import Stack
    from containerkit.project.supervisor import Supervisor

    stack = Stack(project, log=note, build=options.build, pull=options.pull)
    supervisor = Supervisor(stack)
    following = threading.Thread(target=_follow, args=(stack, options), daemon=True)
    try:
        with _ended_by_signals():
            following.start()
            stack.apply(services=services, scale=scale, deps=not options.no_deps)
            if options.watch:
                from containerkit.cli.compose.watching import watch

                threading.Thread(target=watch, args=(project, options), daemon=True).start()
            return _until_ended(stack, options, supervisor)
    except _AskedToEnd as asked:
        return 128 + asked.number
    finally:
        stack.down(grace_s=options.timeout)
        supervisor.close()
        following.join(2)


class _AskedToEnd(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise at SIGTERM and SIGHUP, as Python does at SIGINT, so that services have their time to end.

    A signal that was ignored when the program started (because of nohup, for example) stays ignored.
    """

    def end(number: int, _: object) -> None:
        raise _AskedToEnd(number)

    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, end)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow(stack: Stack, options: argparse.Namespace) -> None:
    for line in stack.logs(follow=True):
        shown = stack.project.model["services"].get(line.service, {}).get("attach", True)
        if options.attach:
            shown = line.service in options.attach
        elif options.services and not options.attach_dependencies:
            shown = shown and line.service in options.services
        if shown and line.service not in options.no_attach:
            print_line(line, prefix=not options.no_log_prefix, timestamps=options.timestamps)


def _until_ended(stack: Stack, options: argparse.Namespace, supervisor: Any) -> int:
    aborts = options.abort_on_container_exit or options.exit_code_from is not None
    while not supervisor.ended.wait(0.1):
        ended = [each for each in stack.containers() if each.status == "exited"]
        failed = options.abort_on_container_failure and any(each.exit_code for each in ended)
        if len(ended) == len(stack.containers()) or (aborts and ended) or failed:
            break
    if options.abort_on_container_failure and options.exit_code_from is None:
        return max((each.exit_code or 0 for each in stack.containers() if each.status == "exited"), default=0)
    if options.exit_code_from is None:
        return 0
    found = stack.containers(options.exit_code_from)
    if not found:
        raise SpecError(f"--exit-code-from: the service {options.exit_code_from!r:.60} has no container")
    found[0].stop(options.timeout)  # another one may have ended first
    return found[0].exit_code or 0


def _down(options: argparse.Namespace) -> int:
    try:
        remote(options).ask("down", grace_s=options.timeout, volumes=options.volumes, services=options.services)
    except StateError:
        if not options.volumes and not options.rmi:
            raise
        from containerkit.project import volumes

        for each in load(options).model.get("volumes", {}).values() if options.volumes else ():
            if not each.get("external"):
                volumes.remove(each["name"])
    if options.rmi:
        _remove_images(options)
    return 0


def _remove_images(options: argparse.Namespace) -> None:
    """Remove the images of the services: all, or those that have no name in the files."""
    from containerkit.errors import ImageError
    from containerkit.image import Image
    from containerkit.project.images import tag_of

    project = load(options, services=options.services)
    for name, keys in project.model["services"].items():
        chosen = not options.services or name in options.services
        if chosen and (options.rmi == "all" or "image" not in keys):
            try:
                Image.get(tag_of(project, name, keys), pull="never").remove()
            except ImageError as error:
                note(str(error))


def _asking(verb: str) -> Callable[[argparse.Namespace], int]:
    def ask(options: argparse.Namespace) -> int:
        deps = not getattr(options, "no_deps", False)
        remote(options).ask(verb, services=options.services, grace_s=options.timeout, deps=deps)
        return 0

    return ask


def _start(options: argparse.Namespace) -> int:
    from containerkit.project.remote import project_request

    project = load(options, services=options.services)
    remote(options).ask("apply", **project_request(project), services=options.services or None, keep=True)
    return 0


def _signalling(word: str | None) -> Callable[[argparse.Namespace], int]:
    def ask(options: argparse.Namespace) -> int:
        remote(options).ask("signal", services=options.services, signal=word or options.signal)
        return 0

    return ask


def _scale(options: argparse.Namespace) -> int:
    remote(options).ask("scale", scale=numbers(options.numbers), deps=not options.no_deps)
    return 0


def _rm(options: argparse.Namespace) -> int:
    for name in remote(options).ask("remove", services=options.services, stop=options.stop):
        show(name)
    return 0


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {
    "up": _up, "down": _down, "restart": _asking("restart"), "stop": _asking("stop"), "start": _start,
    "pause": _signalling("pause"), "unpause": _signalling("unpause"), "kill": _signalling(None), "scale": _scale,
    "rm": _rm, "create": _create,
}  # fmt: skip

"""Verbs that run commands in a project's containers, and copy files into them."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Final

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
        )  # fmt: skip
    return code


@contextmanager
def _terminal(options: argparse.Namespace) -> Iterator[tuple[int, int] | None]:
    """Yield the size of the caller's terminal, in raw mode, if the command gets a terminal; otherwise None."""
    from containerkit.cli import terminal

    if options.no_tty or not terminal.is_wanted():
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
    try:
        holder = Remote(project.name)
        if needed and not options.no_deps:
            holder.ask("apply", **project_request(project), services=needed)
    except StateError:
        # No process holds the project, so this one holds it while the command runs.
        holder = ours = detach(project, lambda _: None, by_fork=True, services=[] if options.no_deps else needed)
    try:
        whole = _whole(changed, options, argv)
        with _terminal(options) as size:
            code: int = holder.ask(
                "run", fds=_STREAMS, **project_request(changed), service=options.service, argv=whole, options=more,
                name=options.name, aliases=options.use_aliases, size=size,
            )  # fmt: skip
    finally:
        if ours is not None:
            ours.ask("down")
    return code


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


# --- Watching


def _watch(options: argparse.Namespace) -> int:
    project = load(options, services=options.services)
    holder = remote(options)
    rules = [
        (name, rule)
        for name, keys in project.model["services"].items()
        if not options.services or name in options.services
        for rule in keys.get("develop", {}).get("watch", ())
    ]
    if not rules:
        raise SpecError("watch: no service has files to watch; add develop.watch")
    for _, rule in rules:
        if not os.path.exists(rule["path"]):
            raise SpecError(f"watch: no such file {rule['path']}")
    seen = [_state(rule) for _, rule in rules]
    for (service, rule), state in zip(rules, seen, strict=True):
        if rule.get("initial_sync"):
            _act(holder, project, service, rule, sorted(state), options)
    show(f"watching {len(rules)} paths")
    while True:
        time.sleep(options.interval)
        for number, (service, rule) in enumerate(rules):
            now = _state(rule)
            changed = sorted(
                path for path in now.keys() | seen[number].keys() if now.get(path) != seen[number].get(path)
            )
            seen[number] = now
            if changed:
                _act(holder, project, service, rule, changed, options)


def _state(rule: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Return the state of the files that a rule covers, by their paths below the rule's path."""
    root = rule["path"]
    if os.path.isfile(root):
        status = os.stat(root)
        return {"": (status.st_mtime_ns, status.st_size)}
    found = {}
    for directory, names, files in os.walk(root):
        below = os.path.relpath(directory, root)
        names[:] = [name for name in names if not _ignored(rule, os.path.normpath(os.path.join(below, name)))]
        for name in files:
            path = os.path.normpath(os.path.join(below, name))
            if _ignored(rule, path) or (rule.get("include") and not _matches(path, rule["include"])):
                continue
            try:
                status = os.stat(os.path.join(root, path))
            except OSError:  # removed in the meantime
                continue
            found[path] = (status.st_mtime_ns, status.st_size)
    return found


def _ignored(rule: dict[str, Any], path: str) -> bool:
    return path.split("/", maxsplit=1)[0] == ".git" or _matches(path, rule.get("ignore", ()))


def _matches(path: str, patterns: Any) -> bool:
    cleaned = [each.removeprefix("./").rstrip("/") for each in patterns]
    return any(fnmatch(path, each) or fnmatch(path, f"*/{each}") or path.startswith(f"{each}/") for each in cleaned)


def _act(
    holder: Remote,
    project: Project,
    service: str,
    rule: dict[str, Any],
    changed: list[str],
    options: argparse.Namespace,
) -> None:
    action: str = rule["action"]
    show(f"{service}: {action}: {', '.join(each or rule['path'] for each in changed[:5])}")
    try:
        if action == "rebuild":
            _rebuild(holder, project, service)
            return
        count = len([row for row in holder.ask("ps", services=[service]) if row["State"] != "exited"])
        for index in range(1, count + 1):
            if action.startswith("sync"):
                _sync(holder, service, index, rule, changed)
            if action == "sync+exec":
                argv = rule["exec"]["command"]
                holder.ask("exec", fds=_STREAMS, service=service, index=index, argv=argv)
        if action.endswith("restart"):
            holder.ask("restart", services=[service])
    except (StateError, SpecError) as error:
        from containerkit.cli.commands import complain

        complain(f"watch: {service}: {error}")
    del options


def _rebuild(holder: Remote, project: Project, service: str) -> None:
    from containerkit.project.images import build_image
    from containerkit.project.remote import project_request

    build_image(project, service, project.model["services"][service])
    holder.ask("apply", **project_request(project), services=[service], recreate=True)


def _sync(holder: Remote, service: str, index: int, rule: dict[str, Any], changed: list[str]) -> None:
    for path in changed:
        outside = os.path.join(rule["path"], path) if path else rule["path"]
        inside = os.path.join(rule["target"], path) if path else rule["target"]
        holder.ask("copy", service=service, index=index, outside=outside, inside=inside, out=False)


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {"exec": _exec, "run": _run, "watch": _watch, "cp": _cp}

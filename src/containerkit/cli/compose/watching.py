"""``compose watch``: update running containers when files change."""

from __future__ import annotations

import os
import time
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any, Final

from containerkit.cli.compose.common import load, note, show
from containerkit.errors import SpecError, StateError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from containerkit.project.project import Project
    from containerkit.project.remote import Remote

__all__ = ["VERBS", "watch"]

_STREAMS: Final = (0, 1, 2)
_INTERVAL_S: Final = 0.5


def _watch(options: argparse.Namespace) -> int:
    project = load(options, services=options.services)
    if not options.no_up:
        _bring_up(project, options)
    watch(project, options)
    return 0


def _bring_up(project: Project, options: argparse.Namespace) -> None:
    """Start the project, unless it is up."""
    from containerkit.project import support
    from containerkit.project.remote import NotUpError, Remote, detach

    try:
        Remote(project.name)
    except NotUpError:
        support.unsupported(project)
        detach(project, note, by_fork=True, services=options.services or None)


def watch(project: Project, options: argparse.Namespace) -> None:
    """Do what ``develop.watch`` says about files that change, until the process is interrupted.

    Raises:
        SpecError: there is nothing to watch.
        StateError: the project is not up.
    """
    from containerkit.project.remote import Remote

    holder, interval = Remote(project.name), getattr(options, "interval", _INTERVAL_S)
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
            _act(holder, project, service, rule, sorted(state))
    show(f"watching {len(rules)} paths")
    while True:
        time.sleep(interval)
        for number, (service, rule) in enumerate(rules):
            now = _state(rule)
            changed = sorted(
                path for path in now.keys() | seen[number].keys() if now.get(path) != seen[number].get(path)
            )
            seen[number] = now
            if changed:
                _act(holder, project, service, rule, changed)


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


VERBS: Final[dict[str, Callable[[argparse.Namespace], int]]] = {"watch": _watch}

"""Changing the limits of a live group: all of the change or none of it."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV
from typing import TYPE_CHECKING

import attrs

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.making import apply, resolved
from containerkit.cgroup.tree import Tree
from containerkit.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from containerkit.cgroup.directory import Directory
    from containerkit.cgroup.group import CGroup
    from containerkit.cgroup.limits import Limits

__all__ = ["update"]

_WRITE_ONLY = frozenset({"devices.allow", "devices.deny"})
"""Files that can't be read back, so that there is nothing to restore."""


def update(group: CGroup, limits: Limits) -> Limits:
    """Write the limits of a group and return all that hold now."""
    wish = resolved(limits)
    tree = Tree(group.parts)
    work: list[tuple[Directory, Setting | Attachment]] = []
    needed = wish.controllers()
    for name in sorted(needed):
        part = tree.serving(name)
        if part is None or (part.version == 2 and name not in part.available() | {"devices", "freezer"}):
            hint = f"the group was made without it; create it with controllers=[{name!r}] or with such a limit"
            raise UnsupportedError("update", ENODEV, name, hint)
    for part in group.parts:
        names = sorted(name for name in needed if tree.serving(name) is part)
        if names or (part.version == 2 and wish.unified):
            work += [(part, setting) for setting in tree.settings(part, names, wish)]
    former = [
        (part, setting.file, _former(part, setting.file))
        for part, setting in work
        if isinstance(setting, Setting) and setting.file not in _WRITE_ONLY
    ]
    try:
        _write_all(work)
    except BaseException:
        for part, file, value in reversed(former):
            _restore(part, file, value)
        raise
    return _merged(group.limits, wish)


def _write_all(work: list[tuple[Directory, Setting | Attachment]]) -> None:
    """Write all settings; those refused for their order are tried again after the others.

    The kernel holds pairs of limits against each other (memory and memory with swap, quota and burst), so that growing
    wants the one order and shrinking the other.
    """
    while work:
        later: list[tuple[Directory, Setting | Attachment]] = []
        refusal: SetupError | None = None
        for part, setting in work:
            try:
                apply(part, setting)
            except UnsupportedError:
                raise
            except SetupError as error:
                if error.errno not in {EINVAL, EBUSY}:
                    raise
                later.append((part, setting))
                refusal = refusal or error
        if refusal is not None and len(later) == len(work):
            raise refusal
        work = later


def _former(part: Directory, file: str) -> str:
    return (part.read(file) or "").strip()


def _restore(part: Directory, file: str, value: str) -> None:
    """Put back what was there; files keyed by device take one line at a time."""
    for line in value.splitlines() or [value]:
        if file == "memory.oom_control":
            key, _, number = line.partition(" ")
            if key != "oom_kill_disable":
                continue
            line = number  # noqa: PLW2901 - the file is read in another form than written
        try:
            part.write(file, line.encode())
        except OSError:
            continue


def _merged(former: Limits, wish: Limits) -> Limits:
    """Return the former limits with what the wish names in their place."""
    empty = type(wish)()
    fields = [field.name for field in attrs.fields(type(wish))]
    changes = {name: value for name in fields if (value := getattr(wish, name)) != getattr(empty, name)}
    rivals = (("cpus", "cpu_quota_us"), ("cpu_weight", "cpu_shares"))
    for pair in rivals:
        if any(name in changes for name in pair):
            changes = {**dict.fromkeys(pair), **changes}
    if not changes.get("cpu_idle") and ("cpu_weight" in changes or "cpu_shares" in changes):
        changes.setdefault("cpu_idle", None)
    return attrs.evolve(former, **changes)

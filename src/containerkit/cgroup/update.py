"""Change the limits of a group that exists: all of them or none."""

from __future__ import annotations

from errno import EBUSY, EINVAL, ENODEV
from typing import TYPE_CHECKING

import attrs

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.create import apply, resolved
from containerkit.cgroup.hierarchy import Tree
from containerkit.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from containerkit.cgroup.directory import Directory
    from containerkit.cgroup.limits import Limits

__all__ = ["update"]

_WRITE_ONLY = frozenset({"devices.allow", "devices.deny"})
"""Files that can't be read back, so that there is no value to restore."""


def update(parts: tuple[Directory, ...], before: Limits, limits: Limits) -> Limits:
    """Write new limits of a group. Return all limits that then apply.

    Args:
        parts: the directories of the group.
        before: the limits that apply now.
        limits: the limits to change.

    Raises:
        UnsupportedError: the group is not in the controller of a limit.
        SetupError: the kernel refused a value. The previous limits still apply.
    """
    wish = resolved(limits)
    tree = Tree(parts)
    work: list[tuple[Directory, Setting | Attachment]] = []
    needed = wish.controllers()
    for name in sorted(needed):
        part = tree.serving(name)
        if part is None or (part.version == 2 and name not in part.available() | {"devices", "freezer"}):
            hint = f"the group is not in this controller; create it with controllers=[{name!r}] or with such a limit"
            raise UnsupportedError("update", ENODEV, name, hint)
    for part in parts:
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
    return _merged(before, wish)


def _write_all(work: list[tuple[Directory, Setting | Attachment]]) -> None:
    """Write all settings. If some are refused because of their order, try them again after the others.

    The kernel checks pairs of limits against each other (memory against memory with swap, quota against burst).
    Increasing both needs one order, decreasing both needs the other.
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
    """Restore the previous content of a file. Files that are keyed by device accept one line at a time."""
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
    """Return the previous limits, with those of ``wish`` that are set."""
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

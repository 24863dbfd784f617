"""Create a group: choose its parents, make its directories, and write its settings."""

from __future__ import annotations

import os
from errno import EACCES, EINVAL, ENOENT, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING, Final

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.directory import Directory, refused
from containerkit.cgroup.hierarchy import Tree
from containerkit.errors import ContainerError, SetupError, UnsupportedError

if TYPE_CHECKING:
    from containerkit.cgroup.hierarchy import Room
    from containerkit.cgroup.limits import Limits

__all__ = ["apply", "create_directories", "delegate", "make", "resolved"]

_DELEGATED: Final = {1: ("cgroup.procs", "tasks"), 2: ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")}
"""The files that an owner needs to create its own groups. They do not include the limits."""

_ENOUGH: Final = {"cgroup.max.depth": b"32", "cgroup.max.descendants": b"4096"}
"""The maximum depth and number of groups of another owner. Each level slows down changes for the whole machine."""

_NO_PLACE_HINT: Final = (
    "this user can't create groups in any hierarchy: run the program as root, or without limits, or with "
    "`systemd-run --user --scope -p Delegate=yes`"
)


def resolved(limits: Limits) -> Limits:
    """Return the limits with device numbers in place of device paths. Most limits have no paths."""
    if not (limits.devices or limits.io or limits.io_device_weights):
        return limits
    from containerkit.cgroup import device_paths

    return device_paths.resolved(limits)


def create_directories(
    begun: list[Directory],
    name: str,
    wish: Limits,
    further: frozenset[str],
    parent: str | None,
    *,
    mount: bool,
    systemd: bool | None,
) -> None:
    """Create a group in each hierarchy that it needs.

    Args:
        begun: an empty list for its directories, version 2 last. Each is in it before it is created.
        name: the name of the directories.
        wish: the limits, with device numbers in place of device paths.
        further: more controllers to join for their reports.
        parent, mount, systemd: as for :meth:`containerkit.CGroup.create`.

    Raises:
        StateError: a group of that name exists.
        UnsupportedError: a limit is enforced by no hierarchy, or the user can't create groups in any hierarchy.
        SetupError: the kernel refused an operation. What had been created is removed again.
    """
    try:
        make(begun, _rooms(wish, further, parent, mount=mount, systemd=systemd), name)
    except FileNotFoundError:
        # A base can vanish when this process is moved and its previous group is removed. Look again once, then stop.
        try:
            make(begun, _rooms(wish, further, parent, mount=mount, systemd=systemd, refresh=True), name)
        except FileNotFoundError as error:
            raise refused("mkdir", error, f"{error.filename}/{name}", "the parent group is gone") from None


def _rooms(
    wish: Limits,
    further: frozenset[str],
    parent: str | None,
    *,
    mount: bool,
    systemd: bool | None,
    refresh: bool = False,
) -> tuple[Room, ...]:
    """Find the parents for a group. Return what to create in each.

    Raises:
        UnsupportedError: a limit is enforced by no hierarchy, or the user can't create groups in any hierarchy.
    """
    if parent is not None:
        tree = Tree.beneath(parent, refresh=refresh)
    elif systemd:
        tree = Tree.delegated()
    else:
        tree = Tree.current(refresh=refresh)
    if mount:
        tree.mount(wish.controllers() | further)
    try:
        return _found(tree.plan(wish, further))
    except SetupError:
        if parent is not None or systemd is not None or not os.path.isdir("/run/systemd/system"):
            raise
    return _found(Tree.delegated().plan(wish, further))


def _found(rooms: tuple[Room, ...]) -> tuple[Room, ...]:
    """Refuse a group without any directory, because it would count nothing. Without limits, no other check does so."""
    if not rooms:
        raise UnsupportedError("make", EACCES, "a control group", _NO_PLACE_HINT)
    return rooms


def make(begun: list[Directory], rooms: tuple[Room, ...], name: str) -> None:
    """Create the group in each hierarchy and write its settings. If one step fails, remove everything again."""
    try:
        for base, settings in rooms:
            part = base.make_into(begun, name)
            for setting in settings:
                apply(part, setting)
    except BaseException:
        while begun:
            try:
                begun[-1].remove_self()
            finally:
                begun[-1].close()
                del begun[-1]
        raise


def delegate(part: Directory, uid: int, gid: int) -> None:
    """Give a group's directory to another owner, who can then create groups in it, on version 2 a limited number.

    Raises:
        SetupError: the kernel refuses it.

    Source: "Delegation" in Documentation/admin-guide/cgroup-v2.rst.
    """
    for file in (".", *_DELEGATED[part.version]):
        try:
            os.chown(file, uid, gid, dir_fd=part.fd, follow_symlinks=False)
        except FileNotFoundError:  # cgroup.threads came with kernel 4.14
            continue
        except OSError as error:
            raise refused("chown", error, f"{part.path}/{file}") from None
    for file, most in _ENOUGH.items():
        if part.version == 2 and (part.read(file) or "").strip() == "max":
            part.write(file, most)


def apply(part: Directory, setting: Setting | Attachment) -> None:
    """Write one setting or attach one attachment.

    Raises:
        UnsupportedError: the file does not exist.
        SetupError: the kernel refuses the value.
    """
    if isinstance(setting, Attachment):
        try:
            setting.attach(part.fd)
        except ContainerError:
            raise
        except OSError as error:
            hint = setting.hint if error.errno in {EPERM, EACCES} else ""
            raise refused(setting.operation, error, part.path, hint) from None
        return
    file, content, hint, missing, instead, judged = setting
    value = content if isinstance(content, bytes) else content(part.read)
    try:
        part.write(file, value)
    except OSError as error:
        if error.errno in {ENOENT, EOPNOTSUPP} and (missing == "ignore" or _is_made_unnecessary(part, *instead)):
            return
        if error.errno == ENOENT:
            if missing == "no-swap" and not _machine_has_swap():
                return
            text = hint or "this kernel's controller does not have the file"
            raise UnsupportedError("write", ENOENT, f"{part.path}/{file}", text) from None
        if error.errno == EINVAL and not hint:
            hint = "the kernel does not accept this value here"
        raise refused("write", error, f"{value.decode(errors='replace')} to {part.path}/{file}", hint) from None
    if judged:
        _check_valid(part, file, value, hint)


def _is_made_unnecessary(part: Directory, file: str, line: str) -> bool:
    return bool(file) and line in (part.read(file) or "").splitlines()


def _check_valid(part: Directory, file: str, value: bytes, hint: str) -> None:
    """Read a value back and check that the kernel considers it valid.

    Raises:
        SetupError: the value is invalid.
    """
    verdict = (part.read(file) or "").strip()
    if "invalid" in verdict:
        text = f"the file then reads {verdict!r}; {hint}"
        raise SetupError("write", EINVAL, f"{value.decode(errors='replace')} to {part.path}/{file}", text)


def _machine_has_swap() -> bool:
    from containerkit.cgroup.controllers.memory import machine_has_swap

    return machine_has_swap()

"""Making a group: where it goes, its directories, and what is written there."""

from __future__ import annotations

import os
from errno import EINVAL, ENOENT
from typing import TYPE_CHECKING, Final

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.directory import Directory, refused
from containerkit.cgroup.tree import Tree
from containerkit.errors import ContainerError, SetupError, UnsupportedError

if TYPE_CHECKING:
    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.tree import Room

__all__ = ["apply", "delegate", "make", "resolved", "rooms"]

_DELEGATED: Final = {1: ("cgroup.procs", "tasks"), 2: ("cgroup.procs", "cgroup.threads", "cgroup.subtree_control")}
"""The files through which an owner arranges groups of its own; those of the limits are not among them."""

_ENOUGH: Final = {"cgroup.max.depth": b"32", "cgroup.max.descendants": b"4096"}
"""Each level makes each change below dearer for the whole machine, and version 2 can say how many there may be."""


def resolved(limits: Limits) -> Limits:
    """Return the limits with numbers in place of device paths; most have none."""
    if not (limits.devices or limits.io or limits.io_device_weights):
        return limits
    from containerkit.cgroup import nodes

    return nodes.resolved(limits)


def rooms(
    wish: Limits,
    further: frozenset[str],
    parent: str | None,
    *,
    mount: bool,
    systemd: bool | None,
    refresh: bool = False,
) -> tuple[Room, ...]:
    """Find the place for a group and return what has to be made there."""
    if parent is not None:
        tree = Tree.beneath(parent, refresh=refresh)
    elif systemd:
        tree = Tree.delegated()
    else:
        tree = Tree.current(refresh=refresh)
    if mount:
        tree.mount(wish.controllers() | further)
    try:
        return tree.plan(wish, further)
    except SetupError:
        if parent is not None or systemd is not None or not os.path.isdir("/run/systemd/system"):
            raise
    return Tree.delegated().plan(wish, further)


def make(rooms: tuple[Room, ...], name: str) -> tuple[Directory, ...]:
    """Make the group in each hierarchy and write its settings; take it all back when one fails."""
    parts: list[Directory] = []
    try:
        for base, settings in rooms:
            part = base.make(name)
            parts.append(part)
            for setting in settings:
                apply(part, setting)
    except BaseException:
        for part in parts:
            try:
                part.remove_self()
            finally:
                part.close()
        raise
    return tuple(parts)


def delegate(part: Directory, uid: int, gid: int) -> None:
    """Give a group's directory away, so that its new owner can make groups in it: not without end on version 2.

    Raises:
        SetupError: the kernel refused it.

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
    """Write one setting.

    Raises:
        UnsupportedError: there is no such file.
        SetupError: the kernel refused the value.
    """
    if isinstance(setting, Attachment):
        try:
            setting.attach(part.fd)
        except ContainerError:
            raise
        except OSError as error:
            raise refused(setting.operation, error, part.path, setting.hint) from None
        return
    file, content, hint, missing, instead = setting
    value = content if isinstance(content, bytes) else content(part.read)
    try:
        part.write(file, value)
    except OSError as error:
        if error.errno == ENOENT:
            if missing == "ignore" or (missing == "no-swap" and not _machine_has_swap()):
                return
            if instead and part.exists(instead):
                return
            text = hint or "this kernel's controller has no such file"
            raise UnsupportedError("write", ENOENT, f"{part.path}/{file}", text) from None
        if error.errno == EINVAL and not hint:
            hint = "the kernel does not take this value here"
        raise refused("write", error, f"{value.decode(errors='replace')} to {part.path}/{file}", hint) from None


def _machine_has_swap() -> bool:
    from containerkit.cgroup.controllers.memory import machine_has_swap

    return machine_has_swap()

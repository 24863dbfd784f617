"""Binds whose source is in the container's own root, where other filesystems may have been mounted before.

A configuration may name a source by the host's path of the root filesystem. After the container's mounts are made, the
host and the container see different files there. So the first process clones such a source when the order of mounts
reaches it.
"""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.oci import protocol

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.mountoptions import Options
    from containerkit.oci.rootfs import Builder

__all__ = ["InnerBinds", "strip_root"]


def strip_root(path: str, root: str) -> str:
    """Return a path as the container sees it, if it begins with the host's path of the root filesystem.

    Args:
        path: absolute.
        root: the root filesystem's path on the host, normalized.

    Returns:
        The normalized path, unchanged if it does not begin so.
    """
    path = "/" + os.path.normpath("/" + path).lstrip("/")
    return path[len(root) :] if root != "/" and path.startswith(root + "/") else path


def _overlap(one: str, other: str) -> bool:
    return f"{one}/".startswith(f"{other}/") or f"{other}/".startswith(f"{one}/")


class InnerBinds:
    """The binds of this kind in one container.

    Args:
        builder: the root that they are in.
        channel: leads to the runtime, which maps the ids of mounts.

    Attributes:
        idmaps: the numbers of the mounts whose ids must be mapped, in the order in which the process requests it.
    """

    def __init__(self, builder: Builder, channel: int) -> None:
        self._builder = builder
        self._channel = channel
        self._paths: dict[int, str] = {}
        self.idmaps: list[int] = []

    def take(self, number: int, source: str) -> bool:
        """Return whether a mount is such a bind, and record it if so.

        Args:
            number: the number of the mount in the configuration.
            source: its absolute path on the host.
        """
        root = self._builder.rootfs
        path = strip_root(source, root)
        earlier = self._builder.config.mounts[:number]
        is_inside = path != os.path.normpath(source)
        if not is_inside or not any(_overlap(path, strip_root(each.destination, root)) for each in earlier):
            return False
        self._paths[number] = path
        return True

    def __contains__(self, number: int) -> bool:
        return number in self._paths

    def bind(self, number: int, options: Options, target: str) -> None:
        """Add the steps of one such bind.

        Args:
            number: the number of the mount in the configuration.
            options: its options.
            target: the mount point.
        """
        builder, targets, tape = self._builder, self._builder.targets, self._builder.tape
        source = targets.resolve(self._paths[number])
        directory = targets.is_directory(source)
        at = targets.open(source, "source")
        tree = tape.slot(f"tree {len(tape)}")
        flags = k.OPEN_TREE_CLONE | k.OPEN_TREE_CLOEXEC | k.AT_EMPTY_PATH
        flags |= k.AT_RECURSIVE if options.recursive else 0
        tape.call("open_tree", at, b"", flags, target=f"{source} (bind for {target})", result=tree)
        tape.step(k.STEP_CLOSE, "close", at)
        what = f"attributes of {target}"
        if options.set or options.clear:
            builder.set_attributes(tree, options.set, options.clear, target=what)
        if options.tree_set or options.tree_clear:
            builder.set_attributes(tree, options.tree_set, options.tree_clear, recursive=True, target=what)
        for flag, recursive in options.propagation or [(k.MS_PRIVATE, True)]:
            builder.set_attributes(tree, propagation=flag, recursive=recursive, target=what)
        if options.idmap or builder.config.mounts[number].uid_mappings:
            builder.check_idmap(number)
            self.idmaps.append(number)
            protocol.hand_over(tape, self._channel, b"i", tree, f"id map of {target}")
        builder.attach(tree, target, directory=directory)
        view = targets.note_again(source, target)
        if view >= 0:
            builder.views.append(view)

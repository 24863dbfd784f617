"""The steps that mount the container's control groups."""

from __future__ import annotations

import os
from errno import EEXIST

from containerkit._native import constants as k
from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.cgroups import Groups, Hierarchy
    from containerkit.oci.config import Config
    from containerkit.oci.mountoptions import Options
    from containerkit.oci.rootfs import Builder
    from containerkit.oci.tape import Slot

__all__ = ["show"]


def show(builder: Builder, groups: Groups, number: int, target: str, options: Options) -> None:
    """Add the steps of a mount of type ``cgroup`` or ``cgroup2``. Both mount the hierarchies of the host.

    Args:
        builder: the builder of the root.
        groups: the container's groups.
        number: the number of the mount in the configuration.
        target: the mount point.
        options: its options.

    Raises:
        ConfigError: the hierarchies of the host do not have an option.
    """
    own = _has_own_view(builder.config)
    attributes = options.set | options.tree_set
    first = [pair for pair in zip(groups.found, groups.places, strict=True) if pair[0].version == 1]
    _check(options, [hierarchy for hierarchy, _ in first] or groups.found, f"mounts[{number}].options")
    if not first:
        _show_one(builder, target, groups.unified, "cgroup2", [], options, own=own)
        return
    tape = builder.tape
    tree = tape.slot(f"tree {len(tape)}")
    plain = attributes & ~k.MOUNT_ATTR_RDONLY
    builder.new_filesystem("tmpfs", [("mode", "755")], plain, tree, f"tmpfs on {target}")
    builder.attach(tree, target, directory=True)
    builder.targets.note(target, tree)
    for hierarchy, place in first:
        name = ",".join(hierarchy.names).removeprefix("name=")
        data: list[tuple[str, str | None]] = [
            ("name", word[5:]) if word.startswith("name=") else (word, None) for word in hierarchy.names
        ]
        if hierarchy.names[0].startswith("name="):
            data.insert(0, ("none", None))
        _show_one(builder, f"{target}/{name}", place, "cgroup", data, options, own=own)
        if len(hierarchy.names) > 1:
            for controller in hierarchy.names:
                link = controller.encode()
                tape.call("symlinkat", name.encode(), tree, link, target=controller, ok=(EEXIST,))
    builder.propagate(tree, options, target)
    if attributes & k.MOUNT_ATTR_RDONLY:
        builder.late.append((tree, k.MOUNT_ATTR_RDONLY, target))


def _has_own_view(config: Config) -> bool:
    """Return whether the container is in another cgroup namespace than the runtime.

    In the host's namespace a mount would set the options of the hierarchy for the whole machine, and show all of it.
    """
    namespace = config.namespace("cgroup")
    if namespace is None:
        return False
    return not namespace.path or not os.path.samefile(namespace.path, "/proc/self/ns/cgroup")


def _check(options: Options, shown: list[Hierarchy], path: str) -> None:
    """Refuse options without effect: the options of a hierarchy apply to all its mounts, and the host sets them."""
    there = {word for hierarchy in shown for word in hierarchy.options}
    for name, value in options.data:
        word = name if value is None else f"{name}={value}"
        if word not in there and not (word == "nofavordynmods" and "favordynmods" not in there):
            hint = f"remount it with {word} on the host, or remove the option"
            why = f"the host's hierarchy does not have the option {word!r}, and a mount inside can't set it"
            raise ConfigError(path, f"{why} (hint: {hint})")


def _show_one(
    builder: Builder,
    target: str,
    place: str,
    kind: str,
    data: list[tuple[str, str | None]],
    options: Options,
    *,
    own: bool,
) -> None:
    attributes = options.set | options.tree_set
    tree: int | Slot
    if own:
        tree = made = builder.tape.slot("tree")
        builder.new_filesystem(kind, data, attributes, made, f"{kind} on {target}")
        builder.attach(made, target, directory=True)
    else:
        tree = builder.attach_clone(place, attributes, target, what="control group")
    builder.propagate(tree, options, target)
    builder.targets.note(target)

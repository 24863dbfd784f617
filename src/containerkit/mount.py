"""Mounts inside a container, as values, and the operations that make them.

A bind is cloned outside (``outside_operations``, where the caller's files are in sight), given its attributes while it
is still detached, and attached inside (``inside_operations``) onto a descriptor that was resolved below the new root: a
symbolic link inside can't lead the mount anywhere else.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit import plan
from containerkit._native import constants as k
from containerkit.errors import SpecError
from containerkit.plan import Operation, Slot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Mount", "Propagation"]

Propagation = Literal["private", "slave", "shared", "unbindable"]

_PROPAGATION: Final = {
    "private": k.MS_PRIVATE,
    "slave": k.MS_SLAVE,
    "shared": k.MS_SHARED,
    "unbindable": k.MS_UNBINDABLE,
}
_SWITCHES: Final = ("readonly", "recursive", "nosuid", "nodev", "noexec", "noatime", "idmap", "create")
_KIND_HINT: Final = "a file can only be shown on a file, a folder on a folder"
_IDMAP_HINT: Final = "the filesystem can't be id-mapped: pass idmap=False, or namespaces=Namespaces(user='host')"
_MISSING_HINT: Final = "the target can't be made: the root filesystem is read-only or belongs to unmapped ids"


def sequence(values: Any, what: str) -> tuple[Any, ...]:
    """Return the values of a list, tuple or other iterable.

    Raises:
        SpecError: it is none, or a string.
    """
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise SpecError(f"{what}: must be a list, not {values!r}")
    return tuple(values)


def mapping_items(values: Any, what: str) -> tuple[tuple[Any, Any], ...]:
    """Return the pairs of a mapping.

    Raises:
        SpecError: it is none.
    """
    if not hasattr(values, "items"):
        raise SpecError(f"{what}: must be a mapping, not {values!r}")
    return tuple(values.items())


def path_inside(value: str, what: str) -> str:
    """Return an absolute, normalised path inside a container.

    Raises:
        SpecError: not a string, not absolute, empty, with a NUL or with a ``..`` component.
    """
    if not isinstance(value, str):
        raise SpecError(f"{what}: must be a string, not {type(value).__name__}")
    if not value.startswith("/"):
        raise SpecError(f"{what}: {value!r} must be absolute")
    if "\0" in value:
        raise SpecError(f"{what}: {value!r} has a NUL byte")
    parts = [part for part in value.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise SpecError(f"{what}: {value!r} must not have '..'")
    return "/" + "/".join(parts)


def _target(value: str) -> str:
    return path_inside(value, "mount target")


def size_text(value: int | str, what: str) -> str:
    """Return a size as tmpfs takes it: bytes, or a number with k, m, g, t or %.

    Raises:
        SpecError: anything else.
    """
    text = str(value).lower().removesuffix("b").removesuffix("i")
    number = text.rstrip("kmgt%")
    if isinstance(value, bool) or not number.isdecimal() or len(text) - len(number) > 1 or int(number) == 0:
        raise SpecError(f"{what}: {value!r} is not a size (bytes, or such as '64M')")
    return text


@attrs.frozen(kw_only=True)
class Mount:
    """A mount inside a container. Usually made by one of the constructors: ``Mount.bind(...)``, ``Mount.tmpfs(...)``.

    Args:
        target: where, an absolute path inside; made when it is missing.
        type: ``"bind"``, or a filesystem type that the kernel knows.
        source: the path outside for a bind, else the filesystem's source.
        options: the filesystem's own options as (name, value) pairs; None marks a flag.
        readonly: no writes through this mount (default False); with ``recursive`` none below it either.
        recursive: for a bind: with the mounts below the source (default True).
        nosuid, nodev: set-user-id bits and device nodes have no effect (default True).
        noexec, noatime: programs can't be started from it; access times stay (default False).
        propagation: ``"private"`` (default), ``"slave"``, ``"shared"``, ``"unbindable"``.
        idmap: show the files of a bind under the ids inside that have the same numbers (default True). Only a
            privileged caller can; others see their own files as root's, and all else as nobody's.
        create: make a missing target (default True); otherwise it must be there.

    Raises:
        SpecError: a value that can't mean anything.

    Source: mount(2), mount_setattr(2).
    """

    target: str = attrs.field(converter=_target)
    type: str = "bind"
    source: str = ""
    options: tuple[tuple[str, str | None], ...] = ()
    readonly: bool = False
    recursive: bool = True
    nosuid: bool = True
    nodev: bool = True
    noexec: bool = False
    noatime: bool = False
    propagation: Propagation = "private"
    idmap: bool = True
    create: bool = True

    def __attrs_post_init__(self) -> None:
        if self.propagation not in _PROPAGATION:
            raise SpecError(f"mount on {self.target}: propagation {self.propagation!r} is unknown")
        if not isinstance(self.type, str) or not self.type or "\0" in self.type + str(self.source):
            raise SpecError(f"mount on {self.target}: type {self.type!r} and source {self.source!r} must be names")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise SpecError(f"mount on {self.target}: {name} must be True or False, not {getattr(self, name)!r}")
        if self.type == "bind" and not self.source:
            raise SpecError(f"mount on {self.target}: a bind needs a source")
        if self.target == "/":
            raise SpecError("mount target: '/' is the root filesystem's own place")

    @classmethod
    def bind(
        cls,
        source: str | os.PathLike[str],
        target: str,
        *,
        readonly: bool = False,
        recursive: bool = True,
        **more: Any,
    ) -> Mount:
        """Show a file or folder of the host inside.

        Args:
            source: the path outside; relative ones start at the working directory.
            target: the path inside.
            readonly: no writes, at any depth (default False).
            recursive: with the mounts below it (default True).
            more: ``nosuid``, ``nodev``, ``noexec``, ``noatime``, ``idmap``, ``create``.
        """
        path = os.path.abspath(os.fspath(source))
        return cls(type="bind", source=path, target=target, readonly=readonly, recursive=recursive, **more)

    @classmethod
    def tmpfs(
        cls, target: str, *, size: int | str | None = None, mode: int = 0o1777, inodes: int | None = None, **more: Any
    ) -> Mount:
        """Mount an empty filesystem that lives in memory and dies with the container.

        Args:
            target: the path inside.
            size: the most that it holds: bytes, or such as ``"64M"`` (default: half of the memory).
            mode: the permissions of its root (default 0o1777, as /tmp).
            inodes: the most files (default: the kernel's).
            more: as for :meth:`bind`.

        Source: tmpfs(5).
        """
        for name, number, most in (("mode", mode, 0o7777), ("inodes", inodes or 0, 2**63 - 1)):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
                raise SpecError(f"mount on {target}: {name}: {number!r} is not a number from 0 to {most}")
        options: list[tuple[str, str | None]] = [("mode", f"{mode:o}")]
        if size is not None:
            options.append(("size", size_text(size, f"mount on {target}")))
        if inodes is not None:
            options.append(("nr_inodes", str(inodes)))
        return cls(type="tmpfs", source="tmpfs", target=target, options=tuple(options), **more)

    @classmethod
    def overlay(
        cls,
        target: str,
        *lowers: str | os.PathLike[str],
        upper: str | os.PathLike[str],
        work: str | os.PathLike[str],
        **more: Any,
    ) -> Mount:
        """Mount a union of folders that are inside already (by earlier mounts), topmost first.

        Source: the kernel's filesystems/overlayfs.rst.
        """
        if not lowers:
            raise SpecError(f"mount on {target}: an overlay needs at least one lower folder")
        options = (
            ("lowerdir", ":".join(os.fspath(lower) for lower in lowers)),
            ("upperdir", os.fspath(upper)),
            ("workdir", os.fspath(work)),
        )
        return cls(type="overlay", source="overlay", target=target, options=options, **more)

    @classmethod
    def proc(cls, target: str = "/proc", *, hidepid: str | None = None, subset: str | None = None) -> Mount:
        """Mount the processes of the container's pid namespace.

        Args:
            target: the path inside.
            hidepid: ``"noaccess"``, ``"invisible"`` or ``"ptraceable"``: whose processes a user sees.
            subset: ``"pid"``: nothing but processes.

        Source: proc(5).
        """
        pairs = (("hidepid", hidepid), ("subset", subset))
        options = tuple((name, value) for name, value in pairs if value is not None)
        return cls(type="proc", source="proc", target=target, options=options, noexec=True)

    @classmethod
    def cgroup(cls, target: str = "/sys/fs/cgroup", *, readonly: bool = True, controllers: Iterable[str] = ()) -> Mount:
        """Mount the control groups as the container's cgroup namespace shows them: its own group is the root.

        Args:
            target: the path inside.
            readonly: only to look at (default True). Otherwise the container's own group is handed over to it, so that
                it can make groups within; what limits it stays out of its reach. That takes ``limits``.
            controllers: the version 1 hierarchy of these controllers (all that are mounted together), such as
                ``["memory"]``. Default the hierarchy of version 2.

        Source: cgroups(7), cgroup_namespaces(7).
        """
        names = sequence(controllers, "controllers")
        for name in names:
            if not isinstance(name, str) or not name.isidentifier():
                raise SpecError(f"mount on {target}: {name!r} is no controller")
        kind = "cgroup" if names else "cgroup2"
        options = tuple((name, None) for name in names)
        return cls(type=kind, source=kind, target=target, options=options, readonly=readonly, noexec=True)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Mount:
        """Return the mount of the given fields.

        Raises:
            SpecError: a field that there is not.
        """
        known = {field.name for field in attrs.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SpecError(f"mount: unknown field {unknown[0]!r}")
        return cls(**values)  # type: ignore[arg-type]

    @property
    def attributes(self) -> int:
        """The ``MOUNT_ATTR_*`` that the fields ask for."""
        return (
            (k.MOUNT_ATTR_RDONLY if self.readonly else 0)
            | (k.MOUNT_ATTR_NOSUID if self.nosuid else 0)
            | (k.MOUNT_ATTR_NODEV if self.nodev else 0)
            | (k.MOUNT_ATTR_NOEXEC if self.noexec else 0)
            | (k.MOUNT_ATTR_NOATIME if self.noatime else 0)
        )


def open_source(mount: Mount, tree: Slot) -> list[Operation]:
    """Return the operations, outside, that clone the source of a bind into a detached tree."""
    hint = "the source of a bind must be there"
    return [plan.open_tree(k.AT_FDCWD, os.fsencode(mount.source), tree, recursive=mount.recursive, hint=hint)]


def set_attributes(mount: Mount, tree: Slot, userns: Slot | None) -> list[Operation]:
    """Return the operations, by the owner of the mount, that set a detached bind's attributes and id map."""
    clear = k.MOUNT_ATTR__ATIME if mount.noatime else 0
    steps = [
        plan.mount_setattr(
            tree,
            set_flags=mount.attributes,
            clear_flags=clear,
            propagation_flags=_PROPAGATION[mount.propagation],
            recursive=mount.recursive,
            target=mount.source,
        )
    ]
    if userns is not None and mount.idmap:
        steps.append(
            plan.mount_setattr(
                tree, userns=userns, recursive=mount.recursive, target=f"id map of {mount.source}", hint=_IDMAP_HINT
            )
        )
    return steps


def make_filesystem(mount: Mount, tree: Slot) -> list[Operation]:
    """Return the operations, inside, that make the filesystem of a mount that is no bind."""
    options: dict[str, str | None] = dict(mount.options)
    if mount.source and mount.source != mount.type:
        options["source"] = mount.source
    steps = plan.new_mount(mount.type, options, tree, attributes=mount.attributes)
    if mount.propagation != "private":
        steps.append(plan.mount_setattr(tree, propagation_flags=_PROPAGATION[mount.propagation], target=mount.target))
    return steps


def attach(tree: Slot, root: Slot, target: str, *, folder: bool, create: bool = True) -> list[Operation]:
    """Return the operations that attach a detached tree below ``root``, making its target when it is missing."""
    at = Slot("target")
    return [
        *resolve(root, target, at, folder=folder, create=create),
        plan.move_mount(tree, at, b"", target=target, hint=_KIND_HINT),
        plan.close(at),
        plan.close(tree),
    ]


def resolve(root: Slot, target: str, result: Slot, *, folder: bool, create: bool = True) -> list[Operation]:
    """Return the operations that open ``target`` below ``root`` without leaving it, making it when it is missing."""
    parts = target.strip("/").split("/")
    steps: list[Operation] = []
    for depth, part in enumerate(parts if create else (), start=1):
        parent = os.fsencode("/".join(parts[: depth - 1]))
        below = "/" + "/".join(parts[:depth])
        if parent:
            steps.append(plan.open_inside(root, parent, k.O_PATH | k.O_DIRECTORY, result))
        at = result if parent else root
        if depth < len(parts) or folder:
            steps.append(plan.make_directory(at, os.fsencode(part), target=below, hint=_MISSING_HINT))
        else:
            steps.append(plan.make_node(at, os.fsencode(part), 0o100644, target=below, hint=_MISSING_HINT))
        if parent:
            steps.append(plan.close(result))
    flags = k.O_PATH | (k.O_DIRECTORY if folder else 0)
    return [*steps, plan.open_inside(root, os.fsencode("/".join(parts)), flags, result, target=target)]

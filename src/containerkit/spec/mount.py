"""Mounts inside a container as values. ``compile/mounts.py`` converts them to operations."""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit._native.names import PROPAGATION
from containerkit.errors import SpecError
from containerkit.meanings import explained
from containerkit.security.checks import check_bool, text_of
from containerkit.spec.words import host_path, mapping_items, path_inside, sequence, size_text
from containerkit.values import field, fields_of, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final, Literal, Unpack

    from containerkit.options import FilesystemOptions, HidePid, ListOf, MountOptions, Propagation

__all__ = ["Mount"]

_RECEIVING: Final = frozenset({"slave", "shared"})
"""With these, later mounts of the host appear inside with their own attributes, not those of the mount above."""

_SWITCHES: Final = ("readonly", "recursive", "nosuid", "nodev", "noexec", "noatime", "idmap", "create")
_LARGEST_FILE: Final = 1 << 20


def _target(value: str) -> str:
    return path_inside(value, "mount target")


@explained
@frozen(kw_only=True)
class Mount:
    """A mount inside a container. Usually one of the constructors makes it: ``Mount.bind(...)``, ``Mount.tmpfs(...)``.

    Args:
        target: an absolute path inside. It is created if it does not exist.
        type: ``"bind"``, or a filesystem type that the kernel knows.
        source: for a bind the path on the host, otherwise the source of the filesystem.
        options: the filesystem's own options as (name, value) pairs. The value None marks a flag.
        readonly: whether to refuse writes through this mount, with ``recursive`` also below it. Default False.
        recursive: for a bind: whether to include the mounts below the source. Default True.
        options: see :class:`containerkit.options.MountOptions`.

    Raises:
        SpecError: a value is invalid.

    Source: mount(2), mount_setattr(2).
    """

    target: str = field(converter=_target)
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
    content: str = ""

    def __attrs_post_init__(self) -> None:
        what = f"mount on {self.target}"
        if not isinstance(self.propagation, str) or self.propagation not in PROPAGATION:
            known = ", ".join(repr(name) for name in PROPAGATION)
            raise SpecError(f"{what}: propagation {self.propagation!r:.100} is not one of {known}")
        if not text_of(self.type, f"{what}: type"):
            raise SpecError(f"{what}: the type is empty")
        text_of(self.source, f"{what}: source")
        self._check_options(what)
        for name in _SWITCHES:
            check_bool(getattr(self, name), f"{what}: {name}")
        self._check_content(what)
        if self.type == "bind" and not self.source:
            raise SpecError(f"mount on {self.target}: a bind needs a source")
        if self.target == "/":
            raise SpecError("mount target: '/' is the root filesystem; pass rootfs= to change it")
        if self.readonly and self.recursive and self.propagation in _RECEIVING:
            raise SpecError(
                f"mount on {self.target}: readonly can't apply to filesystems that are mounted below it later, and "
                f"propagation={self.propagation!r} makes such mounts appear, writable: pass propagation='private', or "
                "recursive=False to make only this mount read-only"
            )

    def _check_content(self, what: str) -> None:
        if not isinstance(self.content, str):
            raise SpecError(f"{what}: the content must be text or bytes, not {self.content!r:.100}")
        if self.content and self.type != "file":
            raise SpecError(f"{what}: only a file has content: use Mount.file(target, content)")
        try:
            size = len(self.content.encode(errors="surrogateescape"))
        except UnicodeEncodeError:
            raise SpecError(f"{what}: the content has lone surrogates: pass bytes") from None
        if size > _LARGEST_FILE:
            raise SpecError(f"{what}: the content has {size} bytes, more than {_LARGEST_FILE}")

    def _check_options(self, what: str) -> None:
        if not isinstance(self.options, tuple):
            raise SpecError(f"{what}: options must be a tuple of pairs, not {self.options!r:.100}")
        for option in self.options:
            if not isinstance(option, tuple) or len(option) != 2:
                raise SpecError(f"{what}: options: {option!r:.100} is not a pair of name and value")
            name, value = option
            if not text_of(name, f"{what}: the name of an option"):
                raise SpecError(f"{what}: an option has no name")
            if value is not None:
                text_of(value, f"{what}: option {name}")
            if self.type == "tmpfs" and name == "size" and value:
                size_text(value, f"{what}: option size")

    @classmethod
    @explained
    def bind(
        cls,
        source: str | os.PathLike[str],
        target: str,
        *,
        readonly: bool = False,
        recursive: bool = True,
        **options: Unpack[MountOptions],
    ) -> Mount:
        """Make a file or directory of the host visible inside.

        Args:
            source: the path on the host. A relative path starts at the working directory.
            target: the path inside.
            readonly: whether to refuse writes, at any depth. Default False.
            recursive: whether to include the mounts below the source. Default True.
            options: see :class:`containerkit.options.MountOptions`.
        """
        path = os.path.abspath(host_path(source, "mount source"))
        return cls(type="bind", source=path, target=target, readonly=readonly, recursive=recursive, **options)

    @classmethod
    @explained
    def tmpfs(
        cls,
        target: str,
        *,
        size: int | str | None = None,
        mode: int = 0o1777,
        inodes: int | None = None,
        **options: Unpack[FilesystemOptions],
    ) -> Mount:
        """Mount an empty filesystem in memory. Its files are gone when the container ends.

        Args:
            target: the path inside.
            size: the maximum size: bytes, or text such as ``"64M"``. Default: half of the memory.
            mode: the permissions of its root. Default 0o1777, as for /tmp.
            inodes: the maximum number of files, directories and links. Default: with ``size`` one for each 4 KiB of it
                and at least 1,024; otherwise the kernel's default, half the number of the machine's pages.
            options: see :class:`containerkit.options.FilesystemOptions`.

        Source: tmpfs(5).
        """
        for name, number, most in (("mode", mode, 0o7777), ("inodes", 0 if inodes is None else inodes, 2**53)):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
                raise SpecError(f"mount on {target}: {name}: {number!r} is not a number from 0 to {most}")
        own: list[tuple[str, str | None]] = [("mode", f"{mode:o}")]
        own += [] if size is None else [("size", size_text(size, f"mount on {target}"))]
        own += [] if inodes is None else [("nr_inodes", str(inodes))]
        return cls(type="tmpfs", source="tmpfs", target=target, options=tuple(own), **options)

    @classmethod
    @explained
    def overlay(
        cls,
        target: str,
        *lowers: str | os.PathLike[str],
        upper: str | os.PathLike[str],
        work: str | os.PathLike[str],
        **options: Unpack[FilesystemOptions],
    ) -> Mount:
        """Mount an overlay of directories that earlier mounts made available inside.

        Args:
            target: the path inside.
            lowers: the directories that are never written to, topmost first.
            upper: the directory that receives the changes.
            work: an empty directory on the same filesystem as ``upper``.
            options: see :class:`containerkit.options.FilesystemOptions`.

        Source: the kernel's filesystems/overlayfs.rst.
        """
        if not lowers:
            raise SpecError(f"mount on {target}: an overlay needs at least one lower directory")
        what = f"mount on {target}"
        own = (
            ("lowerdir", ":".join(host_path(lower, f"{what}: lower") for lower in lowers)),
            ("upperdir", host_path(upper, f"{what}: upper")),
            ("workdir", host_path(work, f"{what}: work")),
        )
        return cls(type="overlay", source="overlay", target=target, options=own, **options)

    @classmethod
    def file(cls, target: str, content: bytes | str) -> Mount:
        """Add a read-only file with the given content. It is in memory, not on the host.

        Args:
            target: the path inside. It is created if it does not exist. A symlink there is covered, not followed.
            content: at most 1 MiB. Text is encoded as UTF-8.

        Raises:
            SpecError: it is larger.
        """
        text = content.decode(errors="surrogateescape") if isinstance(content, bytes) else content
        return cls(type="file", source="tmpfs", target=target, content=text, readonly=True, noexec=True)

    @classmethod
    def proc(
        cls, target: str = "/proc", *, hidepid: HidePid | None = None, subset: Literal["pid"] | None = None
    ) -> Mount:
        """Mount a procfs for the container's pid namespace.

        Args:
            target: the path inside.
            hidepid: ``"noaccess"``, ``"invisible"`` or ``"ptraceable"``: which processes a user can see.
            subset: ``"pid"`` shows only processes.

        Source: proc(5).
        """
        options = tuple(
            (name, value) for name, value in (("hidepid", hidepid), ("subset", subset)) if value is not None
        )
        return cls(type="proc", source="proc", target=target, options=options, noexec=True)

    @classmethod
    def cgroup(cls, target: str = "/sys/fs/cgroup", *, readonly: bool = True, controllers: ListOf[str] = ()) -> Mount:
        """Mount the control groups as the container's cgroup namespace shows them: its own group is the root.

        Args:
            target: the path inside.
            readonly: whether the container may only read them. Default True. With False, which needs ``limits``, the
                container can create groups inside its own group, but it can't change its own limits.
            controllers: mount the version 1 hierarchy of these controllers (all that are mounted together), such as
                ``["memory"]``. Default: the hierarchy of version 2.

        Source: cgroups(7), cgroup_namespaces(7).
        """
        names = sequence(controllers, "controllers")
        for name in names:
            if not isinstance(name, str) or not name.isidentifier():
                raise SpecError(f"mount on {target}: {name!r} is not a controller")
        kind = "cgroup" if names else "cgroup2"
        options = tuple((name, None) for name in names)
        return cls(type=kind, source=kind, target=target, options=options, readonly=readonly, noexec=True)

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> Mount:
        """Return a mount with the given fields.

        Raises:
            SpecError: a field is unknown.
        """
        known = {field.name for field in fields_of(cls)}
        pairs = dict(mapping_items(values, "mount"))
        if unknown := [name for name in pairs if name not in known]:
            raise SpecError(f"mount: unknown field {unknown[0]!r:.100}")
        if "target" not in pairs:
            raise SpecError("mount: the field 'target' is missing")
        return cls(**pairs)

    @property
    def attributes(self) -> int:
        """The ``MOUNT_ATTR_*`` flags that the fields require."""
        return (
            (k.MOUNT_ATTR_RDONLY if self.readonly else 0)
            | (k.MOUNT_ATTR_NOSUID if self.nosuid else 0)
            | (k.MOUNT_ATTR_NODEV if self.nodev else 0)
            | (k.MOUNT_ATTR_NOEXEC if self.noexec else 0)
            | (k.MOUNT_ATTR_NOATIME if self.noatime else 0)
        )


def device_mounts(tty_group: int | None, *, queues: bool) -> tuple[Mount, ...]:
    """Return the mounts below /dev that every container has.

    Args:
        tty_group: the group of the terminals in /dev/pts, or None for that of their opener.
        queues: whether /dev/mqueue can be mounted. Without it the directory stays empty.

    Source: OCI runtime-spec, config-linux.md, default filesystems.
    """
    terminals: list[tuple[str, str | None]] = [("ptmxmode", "666"), ("mode", "620")]
    if tty_group is not None:
        terminals.append(("gid", str(tty_group)))
    found = [
        Mount(type="devpts", target="/dev/pts", options=tuple(terminals), noexec=True, nodev=False, create=False),
        Mount.tmpfs("/dev/shm", size="64M", noexec=True, create=False),
    ]
    if queues:
        found.append(Mount(type="mqueue", target="/dev/mqueue", noexec=True, create=False))
    return tuple(found)

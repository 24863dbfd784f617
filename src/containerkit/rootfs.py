"""Root filesystems, as values.

A :class:`RootFS` says what a container sees as ``/``. Kinds that this module does not know itself (images, templates)
are turned into one that it does by a *provider*, looked up by name in :data:`PROVIDERS` or among the entry points of
the group ``containerkit.rootfs``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.mount import path_inside, size_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PROVIDERS", "RootFS", "Volume"]

PROVIDERS: Final[dict[str, str]] = {
    "image": "containerkit.image.provider:image",
    "template": "containerkit.image.provider:template",
}
"""Who turns a kind into one of ``dir``, ``overlay``: ``module:function``, called with the RootFS."""

_OWN_KINDS: Final = ("host", "dir", "overlay", "tmpfs")
_SIGTERM: Final = 15  # a plain number: what is hashed at each start is to be hashed fast
_UNIONS: Final = ("auto", "kernel", "fuse")
_DEFAULTS: Final = ("env", "cwd", "user")
_LAYERS: Final = 500  # OVL_MAX_STACK in the kernel's fs/overlayfs/params.h


@attrs.frozen(kw_only=True)
class Volume:
    """A folder of an image that holds data: each container has it for itself, and it goes with the container.

    Args:
        target: the path inside.
        uid, gid, mode: of the folder.
        filled: the image has something there, which the volume begins with (default False).

    Raises:
        SpecError: no path for a volume.

    Source: OCI image specification, config.md, "Volumes".
    """

    target: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    filled: bool = False

    def __attrs_post_init__(self) -> None:
        path_inside(self.target, "volume")


@attrs.frozen(kw_only=True)
class RootFS:
    """What a container sees as ``/``. Made by one of the constructors.

    Args:
        kind: ``"host"``, ``"dir"``, ``"overlay"``, ``"tmpfs"``, or the name of a provider.
        lowers: folders outside; for an overlay topmost first.
        upper, work: where an overlay's changes go, outside; None for memory.
        readonly: nothing can be written (default False).
        size: the most that is kept in memory for writes, such as ``"256M"`` (default: half of the memory).
        idmap: show the files under the ids inside that have the same numbers (default True).
        union: who makes the union of an overlay: ``"kernel"``, ``"fuse"`` (the program fuse-overlayfs), or ``"auto"``,
            the program only where the kernel can't (default).
        name: what a provider gets: the reference of an image, the name of a template.
        arguments: more for the provider, as (name, value) pairs.
        defaults: what commands have that do not say otherwise, as (name, value) pairs: ``env`` (as pairs again),
            ``cwd`` and ``user``. A provider fills it, from the config of an image.
        volumes: folders that lie in memory apart from the root, unless something is mounted on or above them.
        stop_signal: what asks its commands to end (default SIGTERM).

    Raises:
        SpecError: fields that do not go together.
    """

    kind: str
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    readonly: bool = False
    size: str | None = None
    idmap: bool = True
    union: str = "auto"
    name: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    defaults: tuple[tuple[str, Any], ...] = ()
    volumes: tuple[Volume, ...] = ()
    stop_signal: int = _SIGTERM

    def __attrs_post_init__(self) -> None:
        for path in (*self.lowers, self.upper or "/", self.work or "/"):
            if not isinstance(path, str) or "\0" in path or not path.startswith("/"):
                raise SpecError(f"rootfs: {path!r} is not an absolute path")
        if (self.upper is None) != (self.work is None):
            raise SpecError("rootfs: upper and work go together")
        if self.kind in ("dir", "overlay") and not self.lowers:
            raise SpecError(f"rootfs: {self.kind} needs a folder")
        if len(self.lowers) > _LAYERS:
            raise SpecError(f"rootfs: the kernel stacks at most {_LAYERS} layers, not {len(self.lowers)}")
        if self.union not in _UNIONS:
            raise SpecError(f"rootfs: union must be one of {', '.join(_UNIONS)}, not {self.union!r}")
        for name, _ in self.defaults:
            if name not in _DEFAULTS:
                raise SpecError(f"rootfs: no default of commands is called {name!r}; there are {', '.join(_DEFAULTS)}")

    @classmethod
    def host(cls, *, readonly: bool = False, size: int | str | None = None, idmap: bool = True) -> RootFS:
        """The machine's own programs: /usr, /bin, /lib*, and the part of /etc that programs need.

        No /home, /root, /run or /var of the host is in it, and nothing that only root may read. Writes go to memory
        and are gone with the container; nothing reaches the host.

        Args:
            readonly: no writes at all (default False).
            size: the most that is kept of what is written, such as ``"256M"`` (default: half of the memory).
            idmap: see the class. Where the machine's own root is an overlay, as in a container, it can't be had.
        """
        return cls(kind="host", readonly=readonly, size=_size(size), idmap=idmap)

    @classmethod
    def dir(cls, path: str | os.PathLike[str], *, readonly: bool = False, idmap: bool = True) -> RootFS:
        """A folder of the host, as it is; writes go to it.

        Args:
            path: the folder; must be there when the container starts.
            readonly: no writes (default False).
            idmap: see the class.
        """
        return cls(kind="dir", lowers=(_absolute(path),), readonly=readonly, idmap=idmap)

    @classmethod
    def overlay(
        cls,
        *lowers: str | os.PathLike[str],
        upper: str | os.PathLike[str] | None = None,
        work: str | os.PathLike[str] | None = None,
        size: int | str | None = None,
        idmap: bool = True,
        union: str = "auto",
    ) -> RootFS:
        """A union of folders.

        Args:
            lowers: the layers, topmost first; at most 500, never written to.
            upper: the folder that takes the changes (default: memory, gone with the container).
            work: an empty folder on the same filesystem as ``upper`` (default: beside it, ``upper`` + ``".work"``,
                made when it is missing).
            size: the most that is kept in memory, such as ``"256M"`` (default: half of the memory).
            idmap: see the class.
            union: ``"kernel"``, ``"fuse"`` or ``"auto"``, see the class.

        Source: the kernel's filesystems/overlayfs.rst; fuse-overlayfs(1).
        """
        where = None if upper is None else _absolute(upper)
        beside = None if where is None else f"{where}.work"
        return cls(
            kind="overlay",
            lowers=tuple(_absolute(lower) for lower in lowers),
            upper=where,
            work=beside if work is None else _absolute(work),
            size=_size(size),
            idmap=idmap,
            union=union,
        )

    @classmethod
    def tmpfs(cls, size: int | str | None = None) -> RootFS:
        """An empty root in memory; fill it with mounts and ``files``.

        Args:
            size: the most that it holds, such as ``"64M"`` (default: half of the memory).
        """
        return cls(kind="tmpfs", size=_size(size))

    @classmethod
    def image(cls, reference: str, **arguments: Any) -> RootFS:
        """An image of a registry or of the local store, by its reference; see :mod:`containerkit.image`."""
        return cls(kind="image", name=reference, arguments=tuple(sorted(arguments.items())))

    @classmethod
    def template(cls, name: str, **arguments: Any) -> RootFS:
        """A root made by a template, such as ``busybox`` or ``debian``; see :mod:`containerkit.image`."""
        return cls(kind="template", name=name, arguments=tuple(sorted(arguments.items())))

    @property
    def in_memory(self) -> bool:
        """Whether what is written lives in memory."""
        return not self.readonly and (self.kind in ("host", "tmpfs") or (self.kind == "overlay" and not self.upper))


def resolve(rootfs: RootFS) -> RootFS:
    """Return a RootFS of one of the kinds that need no provider.

    Raises:
        SpecError: nobody provides the kind.
    """
    if rootfs.kind in _OWN_KINDS:
        return rootfs
    provider = _provider(rootfs.kind)
    resolved = provider(rootfs)
    return resolve(resolved)


def _provider(kind: str) -> Callable[[RootFS], RootFS]:
    from importlib import import_module, metadata

    if kind in PROVIDERS:
        module, _, name = PROVIDERS[kind].partition(":")
        found: Callable[[RootFS], RootFS] = getattr(import_module(module), name)
        return found
    for entry in metadata.entry_points(group="containerkit.rootfs", name=kind):
        loaded: Callable[[RootFS], RootFS] = entry.load()
        return loaded
    raise SpecError(f"rootfs: nobody provides the kind {kind!r}")


def _absolute(path: str | os.PathLike[str]) -> str:
    if not isinstance(path, (str, os.PathLike)):
        raise SpecError(f"rootfs: {path!r} is not a path")
    text = os.fspath(path)
    if not isinstance(text, str) or "\0" in text or not text:
        raise SpecError(f"rootfs: {text!r} is not a path")
    return os.path.abspath(text)


def _size(size: int | str | None) -> str | None:
    return None if size is None else size_text(size, "rootfs size")

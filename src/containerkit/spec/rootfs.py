"""Root filesystems as values.

A :class:`RootFS` describes what a container sees as ``/``. Kinds that this module does not know itself (images,
templates) are converted to a known kind by a *provider*. The provider is looked up by name in
:data:`containerkit.late.PROVIDERS` or among the entry points of the group ``containerkit.rootfs``.
"""

from __future__ import annotations

import os

from containerkit import late
from containerkit.errors import SpecError
from containerkit.meanings import explained
from containerkit.security.checks import check_bool, text_of
from containerkit.spec.words import host_path, path_inside, size_text
from containerkit.typed import Literal
from containerkit.values import fields_of, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, Unpack

    from containerkit.image.options import ImageRootOptions, TemplateRootOptions

__all__ = ["OWN_KINDS", "RootFS", "UnionBy", "Volume"]

UnionBy = Literal["auto", "kernel", "fuse"]
"""The implementations of the union of an overlay."""


OWN_KINDS: Final = ("host", "dir", "overlay", "tmpfs")
"""The kinds of root that need no provider."""
_SIGTERM: Final = 15  # a plain number, because it is hashed at each start
_LAST_SIGNAL: Final = 64
_UNIONS: Final = ("auto", "kernel", "fuse")
_DEFAULTS: Final = ("env", "cwd", "user")
_LAYERS: Final = 500  # OVL_MAX_STACK in the kernel's fs/overlayfs/params.h


@frozen(kw_only=True)
class Volume:
    """A directory of an image that holds data. Each container has its own copy, which is removed with the container.

    Args:
        target: the path inside.
        uid, gid, mode: the owner and the permissions of the directory.
        filled: whether the image has content there, which the volume starts with. Default False.

    Raises:
        SpecError: the path can't be a volume.

    Source: OCI image specification, config.md, "Volumes".
    """

    target: str
    uid: int = 0
    gid: int = 0
    mode: int = 0o755
    filled: bool = False

    def __attrs_post_init__(self) -> None:
        path_inside(self.target, "volume")
        for name, most in (("uid", 2**32 - 2), ("gid", 2**32 - 2), ("mode", 0o7777)):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= most:
                raise SpecError(f"volume: {name}: {number!r:.100} is not a number from 0 to {most}")
        check_bool(self.filled, "volume: filled")


@frozen(kw_only=True)
class RootFS:
    """The root filesystem of a container. Use one of the constructors.

    Args:
        kind: ``"host"``, ``"dir"``, ``"overlay"``, ``"tmpfs"``, or the name of a provider.
        lowers: directories of the host. For an overlay they are ordered topmost first.
        upper, work: the directories of the host for an overlay's changes, or None for memory.
        readonly: whether to refuse all writes. Default False.
        size: the maximum size of writes in memory, such as ``"256M"``. Default: half of the memory.
        idmap: whether files show the same id numbers inside as outside. Default True.
        union: the implementation of an overlay: ``"kernel"``, ``"fuse"`` (the program fuse-overlayfs), or ``"auto"``
            (the program only if the kernel can't). Default ``"auto"``.
        name: the argument for a provider: the reference of an image, or the name of a template.
        arguments: more arguments for the provider, as (name, value) pairs.
        defaults: defaults for commands, as (name, value) pairs: ``env`` (again as pairs; if ``HOME`` is missing, it is
            that of the command's user), ``cwd`` and ``user``. A provider sets them from the config of an image.
        volumes: directories that are kept in memory, separate from the root, unless something is mounted on or above
            them.
        stop_signal: the signal that asks the commands to end. Default SIGTERM.
        shows: more directories of the host, read-only, at their own paths.
        base: a directory that contains all ``lowers`` of an overlay on one mount, below directories that everybody may
            search. A start then clones that mount once instead of once for each of them. Default None.

    Raises:
        SpecError: fields contradict each other.
    """

    kind: str
    lowers: tuple[str, ...] = ()
    upper: str | None = None
    work: str | None = None
    readonly: bool = False
    size: str | None = None
    idmap: bool = True
    union: UnionBy = "auto"
    name: str = ""
    arguments: tuple[tuple[str, object], ...] = ()
    defaults: tuple[tuple[str, object], ...] = ()
    volumes: tuple[Volume, ...] = ()
    stop_signal: int = _SIGTERM
    shows: tuple[str, ...] = ()
    base: str | None = None

    def __attrs_post_init__(self) -> None:
        self._check_types()
        for path in (*self.lowers, *self.shows, *(path for path in (self.upper, self.work) if path is not None)):
            if not text_of(path, "rootfs").startswith("/"):
                raise SpecError(f"rootfs: {path!r:.100} is not an absolute path")
        if (self.upper is None) != (self.work is None):
            raise SpecError("rootfs: upper and work must be given together")
        if self.kind in ("dir", "overlay") and not self.lowers:
            raise SpecError(f"rootfs: {self.kind} needs a directory")
        if self.base is not None:
            within = text_of(self.base, "rootfs: base").rstrip("/") + "/"
            if self.kind != "overlay" or any(not lower.startswith(within) for lower in self.lowers):
                raise SpecError(f"rootfs: base {self.base!r:.100} does not contain the layers of an overlay")
        if len(self.lowers) > _LAYERS:
            raise SpecError(f"rootfs: the kernel accepts at most {_LAYERS} layers, not {len(self.lowers)}")
        if self.union not in _UNIONS:
            raise SpecError(f"rootfs: union must be one of {', '.join(_UNIONS)}, not {self.union!r:.100}")
        for name, _ in self.defaults:
            if name not in _DEFAULTS:
                known = ", ".join(_DEFAULTS)
                raise SpecError(f"rootfs: unknown default of commands {name!r:.100}; there are {known}")

    def __getstate__(self) -> dict[str, object]:
        return {field.name: getattr(self, field.name) for field in fields_of(RootFS)}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Accept a pickle of an earlier version, which has fewer fields: detached containers outlive an update."""
        for field in fields_of(RootFS):
            object.__setattr__(self, field.name, state.get(field.name, field.default))

    def _check_types(self) -> None:
        for name in ("kind", "name", "union"):
            text_of(getattr(self, name), f"rootfs: {name}")
        for name in ("readonly", "idmap"):
            check_bool(getattr(self, name), f"rootfs: {name}")
        if self.size is not None:
            size_text(self.size, "rootfs size")
        for name in ("lowers", "arguments", "defaults", "volumes", "shows"):
            if not isinstance(getattr(self, name), tuple):
                raise SpecError(f"rootfs: {name} must be a tuple, not {getattr(self, name)!r:.100}")
        for name in ("arguments", "defaults"):
            for pair in getattr(self, name):
                if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str):
                    raise SpecError(f"rootfs: {name}: {pair!r:.100} is not a pair of name and value")
        for volume in self.volumes:
            if not isinstance(volume, Volume):
                raise SpecError(f"rootfs: volumes: {volume!r:.100} is not a Volume")
        number = self.stop_signal
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= _LAST_SIGNAL:
            raise SpecError(f"rootfs: stop_signal: {number!r:.100} is not a signal from 1 to {_LAST_SIGNAL}")

    @classmethod
    def host(
        cls,
        *,
        readonly: bool = False,
        size: int | str | None = None,
        idmap: bool = True,
        python: str | os.PathLike[str] | None = None,
    ) -> RootFS:
        """Show the programs of this host: /usr, /bin, /lib*, and the files in /etc that programs need.

        It exposes nothing from /home, /root, /run and /var of the host, and nothing that only root may read. Writes
        go to memory. They are gone when the container ends and never reach the host.

        Args:
            readonly: whether to refuse all writes. Default False.
            size: the maximum size of what is written, such as ``"256M"``. Default: half of the memory.
            idmap: see the class. A directory of programs whose filesystem does not support id maps, such as an overlay,
                is shown as with False: its files belong to nobody inside, and existing files can't be changed.
            python: an installation or virtual environment of Python, such as ``sys.prefix``, to show as well. It is
                read-only, at its own path, and the installation that it was made from is shown too. Default none.
                Packages installed by ``pip install -e`` are elsewhere: bind their directories.

        Raises:
            SpecError: ``python`` is not such a directory.
        """
        shows = () if python is None else _python(_absolute(python))
        return cls(kind="host", readonly=readonly, size=_size(size), idmap=idmap, shows=shows)

    @classmethod
    def dir(cls, path: str | os.PathLike[str], *, readonly: bool = False, idmap: bool = True) -> RootFS:
        """Use a directory of the host. Writes go to it.

        Args:
            path: the directory. It must exist when the container starts.
            readonly: whether to refuse writes. Default False.
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
        union: UnionBy = "auto",
    ) -> RootFS:
        """Use an overlay of directories.

        Args:
            lowers: the layers, topmost first, at most 500. They are never written to.
            upper: the directory that receives the changes. Default: memory, gone when the container ends.
            work: an empty directory on the same filesystem as ``upper``. Default: ``upper`` + ``".work"``, which is
                created if it does not exist.
            size: the maximum size of changes in memory, such as ``"256M"``. Default: half of the memory.
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
        """Use an empty root in memory. Fill it with mounts and ``files``.

        Args:
            size: the maximum size, such as ``"64M"``. Default: half of the memory.
        """
        return cls(kind="tmpfs", size=_size(size))

    @classmethod
    @explained
    def image(cls, reference: str, **options: Unpack[ImageRootOptions]) -> RootFS:
        """Use an image from a registry or from the local store, by its reference. See :mod:`containerkit.image`.

        Args:
            reference: the image, such as ``alpine:3.20``.
            options: see :class:`containerkit.image.options.ImageRootOptions`.

        The reference is resolved when a container starts. Unknown arguments are refused at that time too.
        """
        return cls(kind="image", name=reference, arguments=tuple(sorted(options.items())))

    @classmethod
    @explained
    def template(cls, name: str, **options: Unpack[TemplateRootOptions]) -> RootFS:
        """Use a root made by a template, such as ``busybox`` or ``debian``; see :mod:`containerkit.image`.

        Args:
            name: the template: ``alpine``, ``busybox``, ``debian``, ``host``, ``image``, ``ubuntu``, or a template from
                another package.
            options: see :class:`containerkit.image.options.TemplateRootOptions`.

        Type checkers do not know the arguments of templates from other packages. Pass those as
        ``RootFS(kind="template", name=..., arguments=(("flavour", 1),))``.
        """
        return cls(kind="template", name=name, arguments=tuple(sorted(options.items())))

    @property
    def in_memory(self) -> bool:
        """Whether writes are kept in memory."""
        return not self.readonly and (self.kind in ("host", "tmpfs") or (self.kind == "overlay" and not self.upper))


_SHOWN: Final = ("/usr/", "/bin/", "/lib/")


def _python(prefix: str) -> tuple[str, ...]:
    """Return the directories of a Python installation that the host's root does not show by default.

    Source: the library reference, venv; site.py, pyvenv.cfg.
    """
    wanted = [prefix]
    try:
        with open(f"{prefix}/pyvenv.cfg", encoding="utf-8") as file:
            pairs = [line.partition("=") for line in file]
        homes = [value.strip() for name, _, value in pairs if name.strip().lower() == "home"]
        wanted += [os.path.dirname(os.path.realpath(home)) for home in homes]
    except OSError:
        if not os.path.isdir(f"{prefix}/bin"):
            raise SpecError(
                f"rootfs: python: {prefix!r} is not an installation of Python; pass for example sys.prefix"
            ) from None
    return tuple(path for path in dict.fromkeys(wanted) if path != "/" and not f"{path}/".startswith(_SHOWN))


def resolve(rootfs: RootFS) -> RootFS:
    """Return a RootFS of a kind that needs no provider.

    Raises:
        SpecError: no provider exists for the kind.
    """
    if rootfs.kind in OWN_KINDS:
        return rootfs
    provider = _provider(rootfs.kind)
    resolved = provider(rootfs)
    return resolve(resolved)


def _provider(kind: str) -> Callable[[RootFS], RootFS]:
    from importlib import metadata

    if kind in late.PROVIDERS:
        found: Callable[[RootFS], RootFS] = late.load(late.PROVIDERS[kind])
        return found
    for entry in metadata.entry_points(group="containerkit.rootfs", name=kind):
        loaded: Callable[[RootFS], RootFS] = entry.load()
        return loaded
    raise SpecError(f"rootfs: no provider exists for the kind {kind!r}")


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(host_path(path, "rootfs"))


def _size(size: int | str | None) -> str | None:
    return None if size is None else size_text(size, "rootfs size")

"""The whole description of a container, as one value."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.idmap import IdMapping, check_mappings
from containerkit.mount import Mount, mapping_items, path_inside, sequence
from containerkit.namespace import Namespaces, TimeOffsets
from containerkit.plan import Shape
from containerkit.rootfs import RootFS
from containerkit.security.confinement import Confinement
from containerkit.security.paths import MASKED, READONLY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from containerkit.cgroup import Limits

__all__ = ["Spec"]

_SYSCTLS: Final = {
    "kernel.shm": "ipc",
    "kernel.msg": "ipc",
    "kernel.sem": "ipc",
    "kernel.auto_msgmni": "ipc",
    "fs.mqueue.": "ipc",
    "net.": "network",
    "kernel.hostname": "uts",
    "kernel.domainname": "uts",
    "user.max_": "user",
}
"""Which namespace a kernel parameter belongs to, by its prefix; no other can be set for a container alone."""


def _name(value: str | None, what: str) -> str | None:
    if value is None:
        return None
    good = isinstance(value, str) and value.isprintable() and "/" not in value
    if not good or not 0 < len(value.encode()) <= 64:
        raise SpecError(f"{what}: {value!r} must be 1 to 64 bytes that can be printed, without '/'")
    return value


def _hostname(value: str | None) -> str | None:
    return _name(value, "hostname")


def _domainname(value: str | None) -> str | None:
    return _name(value, "domainname")


def _mounts(values: Iterable[Mount]) -> tuple[Mount, ...]:
    mounts = sequence(values, "mounts")
    for mount in mounts:
        if not isinstance(mount, Mount):
            raise SpecError(f"mounts: {mount!r} is no Mount; say Mount.bind(source, target), Mount.tmpfs(target), ...")
    return mounts


def _mappings(values: Iterable[IdMapping] | None) -> tuple[IdMapping, ...] | None:
    if values is None:
        return None
    mappings = sequence(values, "id mappings")
    for mapping in mappings:
        if not isinstance(mapping, IdMapping):
            raise SpecError(f"id mappings: {mapping!r} is no IdMapping(inside, outside, count)")
    check_mappings(mappings, "id mappings")
    return mappings


def _sysctls(values: Mapping[str, str | int]) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    given = values if isinstance(values, tuple) else mapping_items(values, "sysctls")  # a tuple was normalised before
    for name, value in sorted(given):
        key = str(name).replace("/", ".")
        if ".." in key or not any(key.startswith(prefix) for prefix in _SYSCTLS):
            known = ", ".join(sorted(_SYSCTLS))
            raise SpecError(f"sysctls: {name!r} belongs to no namespace; a container can set only {known}")
        if "\0" in str(value):
            raise SpecError(f"sysctls: the value of {name!r} has a NUL byte")
        pairs.append((key, str(value)))
    return tuple(pairs)


def _paths(values: Iterable[str]) -> tuple[str, ...]:
    if values is MASKED or values is READONLY:
        return values
    return tuple(
        path_inside(value, "masked or read-only path") for value in sequence(values, "masked or read-only paths")
    )


@attrs.frozen(kw_only=True)
class Spec:
    """What a container is; see :class:`containerkit.Container` for the meaning of each field.

    Raises:
        SpecError: a value that can't be, or values that do not go together.
    """

    rootfs: RootFS = RootFS.host()
    mounts: tuple[Mount, ...] = attrs.field(default=(), converter=_mounts)
    namespaces: Namespaces = Namespaces()
    hostname: str | None = attrs.field(default="container", converter=_hostname)
    domainname: str | None = attrs.field(default=None, converter=_domainname)
    uid_mappings: tuple[IdMapping, ...] | None = attrs.field(default=None, converter=_mappings)
    gid_mappings: tuple[IdMapping, ...] | None = attrs.field(default=None, converter=_mappings)
    time_offsets: TimeOffsets | None = None
    sysctls: tuple[tuple[str, str], ...] = attrs.field(factory=dict, converter=_sysctls)
    masked_paths: tuple[str, ...] = attrs.field(default=MASKED, converter=_paths)
    readonly_paths: tuple[str, ...] = attrs.field(default=READONLY, converter=_paths)
    limits: Limits | None = attrs.field(default=None)
    nested_userns: bool = False
    confinement: Confinement = Confinement()

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.rootfs, RootFS):
            raise SpecError(f"rootfs: {self.rootfs!r} is no RootFS; say RootFS.host(), RootFS.dir(path), ...")
        if not isinstance(self.namespaces, Namespaces):
            raise SpecError(f"namespaces: {self.namespaces!r} is no Namespaces")
        if self.limits is not None and type(self.limits).__name__ != "Limits":
            raise SpecError(f"limits: {self.limits!r} is no Limits; say Limits(memory='256M', pids=64, cpus=1.5)")
        if (self.uid_mappings is None) != (self.gid_mappings is None):
            raise SpecError("id mappings: give both uid_mappings and gid_mappings, or neither")
        self._check_namespaces()
        self._check_groups()

    def _check_groups(self) -> None:
        if self.limits is not None or self.namespaces.user != "new":
            return
        for mount in self.mounts:
            if mount.type in {"cgroup", "cgroup2"} and not mount.readonly:
                raise SpecError(
                    f"mount on {mount.target}: writable control groups need a group of the container's own: "
                    "give it limits=Limits(), or say readonly=True"
                )

    def _check_namespaces(self) -> None:
        names = self.namespaces
        if self.uid_mappings is not None and names.user != "new":
            raise SpecError("id mappings belong to a new user namespace: namespaces.user must be 'new'")
        if self.time_offsets is not None and not isinstance(self.time_offsets, TimeOffsets):
            raise SpecError(f"time_offsets: {self.time_offsets!r} is no TimeOffsets")
        if self.time_offsets is not None and names.time != "new":
            raise SpecError("time_offsets belong to a new time namespace: namespaces.time must be 'new'")
        if self.domainname is not None and names.uts != "new":
            raise SpecError("domainname belongs to a new uts namespace: namespaces.uts must be 'new'")
        for key, _ in self.sysctls:
            kind = next(kind for prefix, kind in _SYSCTLS.items() if key.startswith(prefix))
            if getattr(names, kind) != "new":
                raise SpecError(f"sysctls: {key} belongs to a new {kind} namespace: namespaces.{kind} must be 'new'")

    _shape: Shape | None = attrs.field(default=None, init=False, eq=False, repr=False)

    @property
    def shape(self) -> Shape:
        """All of it that the plan depends on: that a namespace is joined is a part of it, which one is not."""
        if self._shape is None:
            object.__setattr__(self, "_shape", self._made_shape())
        assert self._shape is not None
        return self._shape

    def _made_shape(self) -> Shape:
        names = self.namespaces
        kinds = (names.mount, names.pid, names.network, names.ipc, names.uts, names.user, names.cgroup, names.time)
        return Shape(
            self.rootfs,
            self.mounts,
            tuple(wish if wish in ("new", "host") else "joined" for wish in kinds),
            self.hostname,
            self.domainname,
            self.time_offsets,
            self.sysctls,
            self.masked_paths,
            self.readonly_paths,
            self.nested_userns,
        )


CONFINEMENT: Final = frozenset(field.name for field in attrs.fields(Confinement))
"""The arguments that make up the confinement."""

_KNOWN: Final = frozenset(field.name for field in attrs.fields(Spec) if field.init) | CONFINEMENT


def build(values: Mapping[str, Any]) -> Spec:
    """Return the description of keyword arguments.

    Raises:
        SpecError: an unknown name among them, with the nearest known one.
    """
    for name in values:
        if name not in _KNOWN:
            from difflib import get_close_matches

            near = get_close_matches(name, sorted(_KNOWN), 1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"Container: unknown argument {name!r}{advice}")
    chosen = {name: value for name, value in values.items() if name in CONFINEMENT}
    if not chosen:
        return Spec(**values)
    fields = {name: value for name, value in values.items() if name not in CONFINEMENT}
    return Spec(**fields, confinement=Confinement(**chosen))

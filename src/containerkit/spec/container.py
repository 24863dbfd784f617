"""The complete description of a container, as one value."""

from __future__ import annotations

from functools import cached_property

from containerkit._linux.hostroot import HOSTNAME
from containerkit.errors import SpecError
from containerkit.namespace import Kind, Namespaces, TimeOffsets
from containerkit.plan.operation import Shape
from containerkit.security.checks import check_bool, text_of
from containerkit.security.confinement import Confinement
from containerkit.security.paths import MASKED, READONLY
from containerkit.spec.idmap import IdMapping, check_mappings
from containerkit.spec.mount import Mount, device_mounts
from containerkit.spec.rootfs import RootFS
from containerkit.spec.words import mapping_items, path_inside, sequence
from containerkit.values import evolve, field, fields_of, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any, Final

    from containerkit.cgroup import Limits
    from containerkit.options import ListOf
    from containerkit.spec.network import DNS, Egress, Port

__all__ = ["CONFINEMENT", "DESCRIPTION", "Spec", "build", "check_names"]

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
"""The namespace of a kernel parameter, by prefix. Other parameters can't be set for a single container."""


_IN_MEMORY: Final = frozenset(
    {"tmpfs", "ramfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "overlay", "file"}
)
"""Filesystems that belong to the container. An overlay is mounted inside, over other filesystems."""


def _name(value: str | None, what: str) -> str | None:
    if value is None:
        return None
    good = isinstance(value, str) and value.isprintable() and "/" not in value
    if not good or not 0 < len(value.encode()) <= 64:
        raise SpecError(f"{what}: {value!r} must be 1 to 64 printable bytes, without '/'")
    return value


def _hostname(value: str | None) -> str | None:
    return _name(value, "hostname")


def _domainname(value: str | None) -> str | None:
    return _name(value, "domainname")


def _mounts(values: ListOf[Mount]) -> tuple[Mount, ...]:
    mounts = sequence(values, "mounts")
    for mount in mounts:
        if not isinstance(mount, Mount):
            raise SpecError(f"mounts: {mount!r} is not a Mount; use Mount.bind(source, target) or Mount.tmpfs(target)")
    return mounts


def _mappings(values: ListOf[IdMapping] | None) -> tuple[IdMapping, ...] | None:
    if values is None:
        return None
    mappings = sequence(values, "id mappings")
    for mapping in mappings:
        if not isinstance(mapping, IdMapping):
            raise SpecError(f"id mappings: {mapping!r} is not an IdMapping(inside, outside, count)")
    check_mappings(mappings, "id mappings")
    return mappings


def _sysctls(values: Mapping[str, str | int]) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    given = values if isinstance(values, tuple) else mapping_items(values, "sysctls")  # a tuple is already normalised
    for pair in given:
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise SpecError(f"sysctls: must be a mapping, not {values!r:.100}")
        name, value = pair
        if isinstance(value, bool) or not isinstance(value, (str, int)):
            raise SpecError(f"sysctls: the value of {name!r:.100} must be a string or number, not {value!r:.100}")
        key = text_of(name, "sysctls").replace("/", ".")
        if ".." in key or not any(key.startswith(prefix) for prefix in _SYSCTLS):
            known = ", ".join(sorted(_SYSCTLS))
            raise SpecError(f"sysctls: {name!r:.100} applies to the whole host; a container can only set {known}")
        pairs.append((key, text_of(str(value), f"sysctls: the value of {name!r:.100}")))
    return tuple(sorted(pairs))


def _check_limits(limits: object) -> None:
    from containerkit.cgroup.limits import Limits  # a caller that passes limits has already imported it

    if not isinstance(limits, Limits):
        raise SpecError(f"limits: {limits!r:.100} is not a containerkit.Limits; use Limits(memory='256M', pids=64)")


def _paths(values: ListOf[str]) -> tuple[str, ...]:
    if values is MASKED or values is READONLY:
        return values
    return tuple(
        path_inside(value, "masked or read-only path") for value in sequence(values, "masked or read-only paths")
    )


def _network(value: Any) -> Any:
    if value in ("none", "host", "internet"):
        return value
    from containerkit.spec.network import network_choice

    return network_choice(value)


def _publish(values: Any) -> tuple[Port, ...]:
    if values == ():
        return ()
    from containerkit.spec.network import check_ports

    return check_ports(sequence(values, "publish"))


def _hosts(values: Any) -> tuple[tuple[str, str], ...]:
    if values == ():
        return ()
    from containerkit.spec.network import check_hosts

    return check_hosts(values if isinstance(values, tuple) else mapping_items(values, "hosts"))


@frozen(kw_only=True)
class Spec:
    """The description of a container. See :class:`containerkit.Container` for the meaning of each field.

    Raises:
        SpecError: a value is invalid, or values contradict each other.
    """

    rootfs: RootFS = RootFS.host()
    mounts: tuple[Mount, ...] = field(default=(), converter=_mounts)
    namespaces: Namespaces = Namespaces()
    hostname: str | None = field(default=HOSTNAME, converter=_hostname)
    domainname: str | None = field(default=None, converter=_domainname)
    uid_mappings: tuple[IdMapping, ...] | None = field(default=None, converter=_mappings)
    gid_mappings: tuple[IdMapping, ...] | None = field(default=None, converter=_mappings)
    time_offsets: TimeOffsets | None = None
    sysctls: tuple[tuple[str, str], ...] = field(factory=dict, converter=_sysctls)
    masked_paths: tuple[str, ...] = field(default=MASKED, converter=_paths)
    readonly_paths: tuple[str, ...] = field(default=READONLY, converter=_paths)
    limits: Limits | None = field(default=None)
    nested_userns: bool = False
    confinement: Confinement = Confinement()
    network: Any = field(default="none", converter=_network)
    publish: tuple[Port, ...] = field(default=(), converter=_publish)
    egress: Egress | None = None
    dns: DNS | None = None
    hosts: tuple[tuple[str, str], ...] = field(default=(), converter=_hosts)
    wishes_for_network: bool = field(default=False, init=False, eq=False, repr=False)
    """Whether a network, or files in /etc, must be made for the container."""
    connected: Spec | None = field(default=None, init=False, eq=False, repr=False)
    """A copy whose network is a namespace to join. :mod:`containerkit.network` sets it."""

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.rootfs, RootFS):
            raise SpecError(f"rootfs: {self.rootfs!r} is not a RootFS; use RootFS.host(), RootFS.dir(path), ...")
        if not isinstance(self.namespaces, Namespaces):
            raise SpecError(f"namespaces: {self.namespaces!r} is not a Namespaces")
        if self.limits is not None:
            _check_limits(self.limits)
        check_bool(self.nested_userns, "nested_userns")
        if not isinstance(self.confinement, Confinement):
            raise SpecError(f"confinement: {self.confinement!r:.100} is not a Confinement")
        if (self.uid_mappings is None) != (self.gid_mappings is None):
            raise SpecError("id mappings: give both uid_mappings and gid_mappings, or neither")
        shown = tuple(Mount.bind(path, path, readonly=True, idmap=self.rootfs.idmap) for path in self.rootfs.shows)
        if shown and not set(shown) <= set(self.mounts):
            object.__setattr__(self, "mounts", (*shown, *self.mounts))
        self._check_namespaces()
        self._check_groups()
        if self.network != "none" or self._needs_network_setup():
            object.__setattr__(self, "wishes_for_network", self._needs_network_setup())
            self._check_network()

    def _check_groups(self) -> None:
        if self.limits is not None or self.namespaces.user != "new":
            return
        for mount in self.mounts:
            if mount.type in {"cgroup", "cgroup2"} and not mount.readonly:
                raise SpecError(
                    f"mount on {mount.target}: writable control groups need a group of the container's own: "
                    "pass limits=Limits(), or readonly=True"
                )

    def _needs_network_setup(self) -> bool:
        if self.network not in ("none", "host"):
            return True
        return bool(self.publish or self.hosts) or self.egress is not None or self.dns is not None

    def _check_network(self) -> None:
        from containerkit.spec.network import check_connection

        if self.network == "host" and self.namespaces.network == "new":
            object.__setattr__(self, "namespaces", evolve(self.namespaces, network="host"))
        check_connection(self)

    def _check_namespaces(self) -> None:
        names = self.namespaces
        if self.uid_mappings is not None and names.user != "new":
            raise SpecError("id mappings need a new user namespace: namespaces.user must be 'new'")
        if self.time_offsets is not None and not isinstance(self.time_offsets, TimeOffsets):
            raise SpecError(f"time_offsets: {self.time_offsets!r} is not a TimeOffsets")
        if self.time_offsets is not None and names.time != "new":
            raise SpecError("time_offsets need a new time namespace: namespaces.time must be 'new'")
        if self.domainname is not None and names.uts != "new":
            raise SpecError("domainname needs a new uts namespace: namespaces.uts must be 'new'")
        for key, _ in self.sysctls:
            kind = next(kind for prefix, kind in _SYSCTLS.items() if key.startswith(prefix))
            if getattr(names, kind) != "new":
                raise SpecError(f"sysctls: {key} needs a new {kind} namespace: namespaces.{kind} must be 'new'")

    def device_mounts(self, tty_group: int | None) -> tuple[Mount, ...]:
        """Return the standard mounts below /dev.

        Args:
            tty_group: the group of the terminals in /dev/pts, or None for the group of the process that opens them.
        """
        # Only the owner of an ipc namespace can mount its queues.
        return device_mounts(tty_group, queues=self.namespaces.ipc == "new" or self.namespaces.user != "new")

    def writes_to_host(self, confinement: Confinement, rootfs: RootFS | None = None) -> bool:
        """Return whether a command can write a file of the host: a file that processes outside can reach by a path.

        Files in memory do not count: the kernel ignores their set-id bits for processes of another mount namespace.
        With ``CAP_SYS_ADMIN`` read-only mounts can be made writable.

        Args:
            confinement: the confinement of the command.
            rootfs: the root that a provider returned. Default: the root as described.

        Source: mnt_may_suid() in the kernel's fs/namespace.c.
        """
        root = self.rootfs if rootfs is None else rootfs
        names = self.namespaces
        mighty = "CAP_SYS_ADMIN" in confinement.capabilities.bounding
        if names.mount != "new" or (names.user != "new" and (mighty or names.pid != "new")):
            return True  # the namespaces are shared, so its access is not known
        readonly = [mount.readonly for mount in self.mounts if mount.type not in _IN_MEMORY]
        if root.kind != "tmpfs" and not root.in_memory:
            readonly.append(root.readonly)
        return bool(readonly) and (mighty or not all(readonly))

    @cached_property
    def kinds(self) -> int:
        """The ``CLONE_NEW*`` of the namespaces in which the container differs from the caller."""
        return sum(kind.flag for kind in Kind if self.namespaces[kind] != "host")

    @cached_property
    def joins(self) -> bool:
        """Whether it joins an existing namespace."""
        return bool(self.namespaces.joined())

    @cached_property
    def shape(self) -> Shape:
        """The parts of it on which a plan depends: whether a namespace is joined, but not which one."""
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


CONFINEMENT: Final = frozenset(field.name for field in fields_of(Confinement))
"""The names of the arguments for the confinement."""

SHORT_FORMS: Final = frozenset({"volumes", "devices"})
"""The names of the arguments that add to ``mounts``."""

DESCRIPTION: Final = frozenset(each.name for each in fields_of(Spec) if each.init) | CONFINEMENT | SHORT_FORMS
"""The names of the arguments that describe a container."""


def check_names(call: str, given: Iterable[str], known: frozenset[str]) -> None:
    """Refuse a keyword argument that a call does not have.

    Args:
        call: the name of the call, for the message.
        given: the names of the arguments.
        known: the names that the call accepts.

    Raises:
        SpecError: a name is unknown. The message suggests the name for an argument of Docker or subprocess, or the
            nearest known name, or lists all known names.
    """
    if known.issuperset(given):
        return
    from difflib import get_close_matches

    from containerkit.spec.elsewhere import ELSEWHERE

    strange = min(name for name in given if name not in known)
    if strange in ELSEWHERE:
        raise SpecError(f"{call}: unknown argument {strange!r}; here that is {ELSEWHERE[strange]}")
    near = get_close_matches(strange, sorted(known), 1, _ALIKE)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(sorted(known))}"
    raise SpecError(f"{call}: unknown argument {strange!r}; {advice}")


_ALIKE: Final = 0.7
"""How similar a name must be to be suggested: ``timeout`` for ``tiemout``, but not for ``mounts``. Source: difflib."""


def _with_short_forms(values: Mapping[str, Any]) -> dict[str, Any]:
    """Add the mounts of ``volumes`` and ``devices`` to those of ``mounts``."""
    from containerkit.spec.devices import devices
    from containerkit.spec.volumes import volumes

    fields = dict(values)
    mounts = list(_mounts(fields.get("mounts", ())))
    for name, read in (("volumes", volumes), ("devices", devices)):
        given = fields.pop(name, None)
        mounts += () if given is None else read(given)
    return {**fields, "mounts": tuple(mounts)}


def build(values: Mapping[str, Any]) -> Spec:
    """Return the description for keyword arguments.

    Raises:
        SpecError: a name is unknown. The message suggests the nearest known one.
    """
    check_names("Container", values, DESCRIPTION)
    if not SHORT_FORMS.isdisjoint(values):
        values = _with_short_forms(values)
    chosen = {name: value for name, value in values.items() if name in CONFINEMENT}
    if not chosen:
        return Spec(**values)
    fields = {name: value for name, value in values.items() if name not in CONFINEMENT}
    return Spec(**fields, confinement=Confinement(**chosen))

"""The context of a start: compiled plans, the staging, the ids, and the joined namespaces."""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import EINVAL, EPERM
from functools import lru_cache

from containerkit import _native, late
from containerkit.compile.facts import JOIN_PREFIX, MAP_BYTES, SKELETON, TTY_GROUP, Host, Mode
from containerkit.compile.process import socket_slot
from containerkit.compile.start import start_plan
from containerkit.errors import CleanupError, SetupError, SpecError, UnsupportedError
from containerkit.plan.program import BESIDE, Program, proc
from containerkit.process.process import kill_and_reap
from containerkit.security.confinement import PROC
from containerkit.spec import rootfs
from containerkit.spec.idmap import IdMapping, mapping_text, within
from containerkit.start.id_ranges import RANGE, IdRange, lease
from containerkit.start.staging import Mappings, Staging, staging
from containerkit.typed import TypeVar
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, Final

    from containerkit._linux.hostroot import HostRoot
    from containerkit._native.outcome import Outcome
    from containerkit.compile.facts import Node
    from containerkit.namespace import Namespace
    from containerkit.spec.container import Spec
    from containerkit.spec.mount import Mount
    from containerkit.spec.rootfs import RootFS
    from containerkit.start.cgroup import Membership
    from containerkit.start.fuse_overlayfs import FuseUnion

__all__ = ["StartContext", "own_pidfd", "programs", "sealed_init", "sources"]

Started = TypeVar("Started")

_PROGRAMS_KEPT: Final = 256


class Programs:
    """The latest compiled plans."""

    def __init__(self) -> None:
        self.kept: dict[Any, Program] = {}
        self.lock = allocate_lock()

    def get(self, key: Any, make: Callable[[], Program]) -> Program:
        program = self.kept.get(key)  # needs no lock, and hashes the description once
        if program is None:
            program = make()
            with self.lock:
                self.kept[key] = program
                while len(self.kept) > _PROGRAMS_KEPT:
                    del self.kept[next(iter(self.kept))]
        return program


programs = Programs()
_owners: dict[int, int] = {}
_slots: dict[int, dict[str, int]] = {}
os.register_at_fork(after_in_child=lambda: setattr(programs, "lock", allocate_lock()))


def _checked(operation: str, call: Callable[[], int]) -> int:
    """Return the result of a call that an outer seccomp filter may refuse.

    Raises:
        SetupError: it was refused.
    """
    try:
        return call()
    except SetupError:
        raise
    except OSError as error:
        from containerkit._linux.outer import why_refused

        number = error.errno or 0
        raise SetupError(operation, number, error.filename or "", why_refused(operation, number)) from None


def own_pidfd() -> int:
    """Return a pidfd of this process, by which inits notice its end."""
    pid = os.getpid()
    if pid not in _owners:  # one for each process; a forked child opens its own
        fd = _native.high(_checked("pidfd_open", lambda: os.pidfd_open(pid)))
        if _owners.setdefault(pid, fd) != fd:
            os.close(fd)  # another thread did it first
    return _owners[pid]


def sealed_init() -> int:
    """Return the descriptor of the init: see :func:`containerkit._native.init_image`.

    Raises:
        SetupError: an outer filter refuses it.
    """
    return _checked("memfd_create", _native.init_image)


def _own_slots() -> dict[str, int]:
    """Return the inputs that are the same for each start of this process."""
    pid = os.getpid()
    slots = _slots.get(pid)
    if slots is None:
        slots = _slots[pid] = {"owner": own_pidfd(), "image": sealed_init(), PROC.name: proc()}
    return slots


class StartContext:
    """The context of a start: the staging, the ids, the facts for the plan, and the joined namespaces.

    ``release`` releases the ids, when no process has them any more.
    """

    union: FuseUnion | None = None
    """The process that serves the root, if it is fuse-overlayfs."""

    def __init__(self, spec: Spec, stage: Staging, host: Host, mappings: Mappings, ids: IdRange | None) -> None:
        self.spec = spec
        self.staging = stage
        self.host = host
        self.mappings = mappings
        self.ids = ids
        self.joined: dict[str, Namespace] = {}
        self.membership: Membership | None = None

    @classmethod
    def prepare(cls, spec: Spec, into: list[StartContext] | None = None) -> StartContext:
        """Check that the described paths exist, and lease the resources of the container.

        Args:
            spec: the description.
            into: a list to which the context is appended before it leases a control group. A caller whom a signal
                handler can interrupt releases it from there.

        Raises:
            SpecError: a path does not exist.
            SetupError: a resource is not available. Nothing is kept.
        """
        if spec.wishes_for_network:
            spec = late.load(late.CONNECT)(spec)
        root = spec.rootfs
        resolved = _without_links(root if root.kind in rootfs.OWN_KINDS else rootfs.resolve(root))
        if resolved is not spec.rootfs:
            spec = evolve(spec, rootfs=resolved)
        _check_paths(resolved)
        directories = check_directories(spec.mounts)
        stage = staging(host=resolved.kind == "host")
        mappings, ids = _map_ids(spec, stage)
        # A joined user namespace may not map the group of terminals.
        shared = spec.namespaces.user == "host"
        terminals = shared or any(m.inside <= TTY_GROUP < m.inside + m.count for m in mappings[1])
        sets_groups = stage.privileged or len(stage.mappings[1]) > 1
        host = Host(
            privileged=stage.privileged,
            programs=stage.programs,
            terminals=terminals,
            directories=directories,
            nodes=_device_nodes(spec, stage, sets_groups=sets_groups),
            sets_groups=sets_groups,
            skeleton=_own_skeleton(spec, stage),
            unmapped=_unmapped(spec),
        )
        context = cls(spec, stage, host, mappings, ids)
        if into is not None:
            into.append(context)
        try:
            context._join()
            if resolved.union == "fuse":
                context._make_union()
        except BaseException:
            context.release()
            raise
        return context

    def _join(self) -> None:
        if self.spec.joins:
            self.joined = {kind.value: handle for kind, handle in self.spec.namespaces.open().items()}
        if self.spec.limits is not None:
            from containerkit.start.cgroup import Membership, joining_first

            self.membership = Membership()
            self.membership.create(self.spec.limits)
            root = self.outside(0), self._outside(self.mappings[1], 0)
            if root[0] is not None and root[1] is not None:
                self.membership.delegate(self.spec.mounts, root[0], root[1])
            self.host = self.host._replace(joins=joining_first(self.membership.group))

    def outside(self, uid: int) -> int | None:
        """Return the host's id of a user of the container, or None if the caller can't change owners."""
        return self._outside(self.mappings[0], uid)

    def _outside(self, mappings: tuple[IdMapping, ...], number: int) -> int | None:
        if not self.host.privileged:
            return None
        return next((m.outside + number - m.inside for m in mappings if 0 <= number - m.inside < m.count), None)

    def sockets(self) -> dict[str, int]:
        """Return the slots of listening sockets that commands inherit."""
        found: dict[int, int] = getattr(self.joined.get("network"), "sockets", {})
        return {socket_slot(number).name: fd for number, fd in found.items()} if found else {}

    def _finish_network(self) -> None:
        """Raise the error of a network that could not be made beside the start."""
        finish = getattr(self.joined.get("network"), "finish", None)
        if finish is not None:
            finish()

    def inputs(self) -> dict[str, int]:
        """Return the inputs of the plan from this context."""
        joined = {JOIN_PREFIX + kind: handle.fileno() for kind, handle in self.joined.items()}
        inherited = {**self.staging.slots, **joined, **_own_slots(), **self.sockets()}
        inherited[BESIDE] = getattr(self.joined.get("network"), "awaited", 0)
        if self.membership is not None:
            inherited |= self.membership.inputs()
        return inherited if self.union is None else {**inherited, **self.union.inputs()}

    def blocks(self) -> dict[str, bytes]:
        """Return the id maps as blocks of the plan.

        Raises:
            SpecError: they are too long for the kernel.
        """
        if self.ids is not None:
            return _of_range(self.ids.base, self.ids.gid_base)[1]
        known, blocks = _latest[0]
        if known is not self.mappings:  # those of an unprivileged user are one object for all starts
            blocks = _blocks(self.mappings)
            _latest[0] = self.mappings, blocks
        return blocks

    def start(
        self,
        mode: Mode,
        argv: Sequence[bytes],
        envp: Sequence[bytes],
        slots: Mapping[str, int],
        into: list[Outcome] | None = None,
    ) -> Outcome:
        """Start. ``slots`` are the inputs that belong only to this start; ``into`` is as for :meth:`Program.run`.

        Raises:
            SetupError: an operation failed. Everything that it had made is removed.
        """
        # CLONE_FILES lasts from stage 1 to stage 2 only; the caller's own table is not shared.
        outcome = self.begin_with_fallbacks(
            mode,
            lambda program, own, blocks: program.run({**own, **slots}, argv=argv, envp=envp, blocks=blocks, into=into),
        )
        if self.union is not None:
            self.union.attached()
        if mode.command is None and self.membership is not None:
            try:
                self.membership.check_started()
            except BaseException:
                if into is None:  # else its owner must end it
                    kill_and_reap(outcome.pidfd)
                raise
        return outcome

    def compile(self, mode: Mode) -> None:
        """Compile the plan of a start, unless it is cached."""
        self._program(mode)

    def _program(self, mode: Mode) -> Program:
        shape = None if mode.command is None else mode.command.shape
        key = (self.spec.shape, self.host, mode.init, mode.reads_upper, mode.held, shape)
        return programs.get(key, lambda: Program(start_plan(self.spec, self.host, mode)))

    def begin_with_fallbacks(
        self, mode: Mode, begin: Callable[[Program, Mapping[str, int], Mapping[str, bytes]], Started]
    ) -> Started:
        """Start. If this kernel does not have a feature, start again without it.

        Args:
            mode: the role of PID 1.
            begin: starts a program with the slots and blocks of this context.

        Raises:
            SetupError: an operation failed. Everything that it had made is removed.
        """
        while True:
            if self.membership is not None:
                self.membership.lift_memory_limit(self.host.joins)
            try:
                started = begin(self._program(mode), self.inputs(), self.blocks())
            except SetupError as error:
                self._finish_network()
                self._fall_back(error)
            else:
                self._finish_network()
                return started

    def _fall_back(self, error: SetupError) -> None:
        if self.spec.rootfs.kind == "overlay":
            self._leave_to_fuse(error)
        elif error.errno == EINVAL and error.target == f"id map of {SKELETON}":
            # Linux before 6.3 can't id-map filesystems in memory, so from now on each start makes its own skeleton.
            _memory["maps ids"] = False
            self.host = self.host._replace(skeleton=_own_skeleton(self.spec, self.staging))
        elif not self._leave_unmapped(error):
            raise error

    def _leave_unmapped(self, error: SetupError) -> bool:
        """Show a directory of programs without an id map if its filesystem does not support one.

        It belongs to nobody inside.
        """
        path = error.target.removeprefix("id map of ")
        if self.spec.rootfs.kind != "host" or path == error.target or error.errno not in (EINVAL, EPERM):
            return False
        if path[1:] not in self.host.programs or path in self.host.unmapped:
            return False
        _refusing.add(path)
        self.host = self.host._replace(unmapped=_unmapped(self.spec))
        return True

    def _leave_to_fuse(self, error: SetupError) -> None:
        from containerkit.start import fuse_overlayfs

        if self.union is not None:
            raise self.union.explained(error) from None
        if not fuse_overlayfs.could_help(self.spec.rootfs, error):
            raise error
        if not fuse_overlayfs.is_installed():
            raise fuse_overlayfs.explained(error) from None
        self.spec = evolve(self.spec, rootfs=evolve(self.spec.rootfs, union="fuse"))
        self._make_union()

    def _make_union(self) -> None:
        """Make the union with fuse-overlayfs."""
        from containerkit.start.fuse_overlayfs import FuseUnion

        if self.spec.namespaces.user not in ("new", "host"):
            hint = "the ids of a joined user namespace are not known here: pass union='kernel'"
            raise UnsupportedError("start", EINVAL, "fuse-overlayfs", hint)
        translates = self.host.privileged and self.spec.rootfs.idmap
        self.union = FuseUnion(self.spec.rootfs, self.staging.holder, self.mappings if translates else ((), ()))

    def release(self) -> None:
        """Release the resources, when nothing uses them any more. May be called twice.

        Raises:
            CleanupError: a control group could not be removed.
        """
        if self.union is not None:
            self.union.close()
        if self.ids is not None:
            self.ids.release()
        for handle in self.joined.values():
            handle.close()
        if self.membership is not None:
            try:
                self.membership.end()
            except CleanupError:  # reported once
                self.membership = None
                raise
            self.membership = None


def sources(spec: Spec) -> object:
    """Return a key of the host's state on which starts depend. While it is equal, starts show the same files."""
    paths = [*spec.rootfs.lowers, *(mount.source for mount in spec.mounts if mount.type == "bind")]
    found: list[object] = [staging(host=spec.rootfs.kind == "host")]
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            found.append(None)
        else:
            found.append((status.st_dev, status.st_ino))
    return found


def _without_links(resolved: RootFS) -> RootFS:
    """Resolve the symlinks in the path of an upper layer now. In other mount namespaces they may lead elsewhere."""
    if resolved.upper is None or resolved.work is None:
        return resolved
    upper, work = os.path.realpath(resolved.upper), os.path.realpath(resolved.work)
    return evolve(resolved, upper=upper, work=work)


def _check_paths(resolved: RootFS) -> None:
    for path in (*resolved.lowers, *([resolved.upper] if resolved.upper else [])):
        try:
            is_directory = os.stat(path).st_mode & 0o170000 == 0o040000
        except (OSError, ValueError):
            is_directory = False
        if not is_directory:
            raise SpecError(f"rootfs: {path} is missing, or not a directory")
    if resolved.upper is None or resolved.work is None:
        return
    if not os.path.isdir(resolved.work):
        os.makedirs(resolved.work, mode=0o700)
    _check_one_mount(resolved.upper, resolved.work)


def _check_one_mount(upper: str, work: str) -> None:
    """Refuse an upper and a work directory if there is a mount point on or between them.

    Both are reached through a copy of the mount of their common parent. The copy would not contain a mount below it,
    so the changes would go to the directory hidden below it.
    """
    from containerkit._linux import mountinfo

    for point in mountinfo.points_between(os.path.commonpath((upper, work)), (upper, work)):
        raise SpecError(f"rootfs: {point} is a mount point: put upper and work on the same mount")


_memory: Final = {"maps ids": True}
"""Whether filesystems in memory can be id-mapped."""
_refusing: Final[set[str]] = set()
"""The directories of programs that can't be id-mapped, such as those of an overlay."""


def _unmapped(spec: Spec) -> frozenset[str]:
    return frozenset(_refusing) if spec.rootfs.kind == "host" else frozenset()


def _own_skeleton(spec: Spec, stage: Staging) -> HostRoot | None:
    """Return the skeleton if the container must make it, because that of the staging can't be id-mapped."""
    if spec.rootfs.kind != "host" or not stage.privileged or spec.namespaces.user == "host":
        return None
    if spec.rootfs.idmap and _memory["maps ids"]:
        return None
    from containerkit._linux import hostroot

    return hostroot.read()


def _map_ids(spec: Spec, stage: Staging) -> tuple[Mappings, IdRange | None]:
    if spec.namespaces.user != "new":
        return ((), ()), None
    if not stage.privileged:
        return _nested_mappings(spec, stage), None
    if spec.uid_mappings is not None and spec.gid_mappings is not None:
        return (spec.uid_mappings, spec.gid_mappings), None
    ids = lease()
    return _of_range(ids.base, ids.gid_base)[0], ids


@lru_cache(maxsize=64)
def _of_range(base: int, gid_base: int) -> tuple[Mappings, dict[str, bytes]]:
    """Return the id maps of a range and their blocks. They are cached, because few ranges are in use."""
    mappings = (IdMapping(0, base, RANGE),), (IdMapping(0, gid_base, RANGE),)
    return mappings, _blocks(mappings)


_latest: list[tuple[Mappings | None, dict[str, bytes]]] = [(None, {})]
"""The mappings of the latest start without a range, and their blocks."""


def _blocks(mappings: Mappings) -> dict[str, bytes]:
    uid, gid = (mapping_text(mapping).rjust(MAP_BYTES) for mapping in mappings)
    if len(uid) > MAP_BYTES or len(gid) > MAP_BYTES:
        raise SpecError(f"id mappings: their text is longer than {MAP_BYTES} bytes, the maximum of the kernel")
    return {"uid_map": uid, "gid_map": gid}


def _nested_mappings(spec: Spec, stage: Staging) -> Mappings:
    """Return the mappings for a container in the holder's namespace: its outside ids are the holder's inside ids."""
    if spec.uid_mappings is None or spec.gid_mappings is None:
        return stage.nested
    return (
        tuple(within(m, stage.mappings[0]) for m in spec.uid_mappings),
        tuple(within(m, stage.mappings[1]) for m in spec.gid_mappings),
    )


def _device_nodes(spec: Spec, stage: Staging, *, sets_groups: bool) -> tuple[Node | None, ...]:
    if not any(mount.options for mount in spec.mounts):
        return ()
    from containerkit.start.devices import device_nodes

    return device_nodes(spec, privileged=stage.privileged, keeps_groups=not sets_groups)


def check_directories(mounts_: tuple[Mount, ...]) -> tuple[bool, ...]:
    """Return for each bind whether its source is a directory.

    Raises:
        SpecError: a source does not exist.
    """
    directories: list[bool] = []
    for mount in mounts_:
        if mount.type != "bind":
            continue
        try:
            status = os.stat(mount.source)
        except OSError as error:
            raise SpecError(f"mount on {mount.target}: the source {mount.source}: {error.strerror}") from None
        directories.append(status.st_mode & 0o170000 == 0o040000)
    return tuple(directories)

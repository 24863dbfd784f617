"""What a start stands on: compiled plans, the staging, the ids, and the namespaces that are joined."""

from __future__ import annotations

import os
import threading
from errno import EINVAL
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

import attrs

from containerkit import _native, assembly, rootfs
from containerkit.assembly import JOIN_PREFIX, MAP_BYTES, SKELETON, TTY_GROUP, Host, Mode
from containerkit.engine import Capture, Program
from containerkit.errors import SetupError, SpecError, UnsupportedError
from containerkit.idmap import RANGE, IdMapping, IdRange, lease, mapping_text
from containerkit.membership import Membership, inputs, joining
from containerkit.security.confinement import PROC
from containerkit.staging import Mappings, Staging, staging

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from containerkit._native.outcome import Left, Outcome
    from containerkit.engine import Held
    from containerkit.fuse import FuseUnion
    from containerkit.hostroot import HostRoot
    from containerkit.namespace import Namespace
    from containerkit.rootfs import RootFS
    from containerkit.spec import Spec

__all__ = ["Ground", "programs", "sources"]

Started = TypeVar("Started")

_PROGRAMS_KEPT: Final = 256


class Programs:
    """Compiled plans, the last ones made."""

    def __init__(self) -> None:
        self.kept: dict[Any, Program] = {}
        self.lock = threading.Lock()

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


def _after_fork() -> None:
    programs.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _own_pidfd() -> int:
    """Return a pidfd of this process, by which inits notice its end."""
    pid = os.getpid()
    if pid not in _owners:  # one for a process; a forked child opens its own
        fd = _native.high(os.pidfd_open(pid))
        if _owners.setdefault(pid, fd) != fd:
            os.close(fd)  # another thread was sooner
    return _owners[pid]


class Ground:
    """What a start stands on: the staging, the ids, the facts for the plan, and what is joined.

    ``release`` gives the ids back, once nothing runs under them any more.
    """

    union: FuseUnion | None = None
    """What serves the root, where that is fuse-overlayfs."""

    def __init__(self, spec: Spec, stage: Staging, host: Host, mappings: Mappings, ids: IdRange | None) -> None:
        self.spec = spec
        self.staging = stage
        self.host = host
        self.mappings = mappings
        self.ids = ids
        self.joined: dict[str, Namespace] = {}
        self.membership: Membership | None = None

    @classmethod
    def prepare(cls, spec: Spec) -> Ground:
        """Check that what the description names is there, and take what the container alone shall have.

        Raises:
            SpecError: something is not there.
            SetupError: something can't be had; nothing is kept.
        """
        resolved = _without_links(rootfs.resolve(spec.rootfs))
        if resolved is not spec.rootfs:
            spec = attrs.evolve(spec, rootfs=resolved)
        _check_paths(resolved)
        folders = assembly.check_folders(spec.mounts)
        stage = staging(host=resolved.kind == "host")
        mappings, ids = _map_ids(spec, stage)
        # Of a user namespace that is joined nobody here knows whether the group of terminals is mapped.
        shared = spec.namespaces.user == "host"
        terminals = shared or any(m.inside <= TTY_GROUP < m.inside + m.count for m in mappings[1])
        sets_groups = stage.privileged or len(stage.mappings[1]) > 1
        host = Host(
            privileged=stage.privileged,
            programs=stage.programs,
            terminals=terminals,
            folders=folders,
            sets_groups=sets_groups,
            skeleton=_own_skeleton(spec, stage),
        )
        ground = cls(spec, stage, host, mappings, ids)
        try:
            ground._join()
            if resolved.union == "fuse":
                ground._make_union()
        except BaseException:
            ground.release()
            raise
        return ground

    def _join(self) -> None:
        self.joined = {kind.value: handle for kind, handle in self.spec.namespaces.open().items()}
        if self.spec.limits is not None:
            _check_room(self.spec)
            self.membership = Membership(self.spec.limits)
            root = self.outside(0), self._outside(self.mappings[1], 0)
            if root[0] is not None and root[1] is not None:
                self.membership.hand_over(self.spec.mounts, root[0], root[1])
            self.host = self.host._replace(joins=joining(self.membership.group))

    def outside(self, uid: int) -> int | None:
        """Return who a user of the container is to the caller; None where the caller can't give things away."""
        return self._outside(self.mappings[0], uid)

    def _outside(self, mappings: tuple[IdMapping, ...], number: int) -> int | None:
        if not self.host.privileged:
            return None
        return next((m.outside + number - m.inside for m in mappings if 0 <= number - m.inside < m.count), None)

    def inputs(self) -> dict[str, int]:
        """Return the slots that a start takes from here."""
        joined = {JOIN_PREFIX + kind: handle.fileno() for kind, handle in self.joined.items()}
        groups = inputs(self.membership.group) if self.membership is not None else {}
        own = {"owner": _own_pidfd(), "image": _native.init_image(), PROC.name: _native.proc()}
        inherited = {**self.staging.inputs(), **joined, **groups, **own}
        return inherited if self.union is None else {**inherited, **self.union.inputs()}

    def blocks(self) -> dict[str, bytes]:
        """Return the id maps, as the plan wants them.

        Raises:
            SpecError: they are too long for the kernel.
        """
        return _blocks(self.mappings) if self.ids is None else _of_range(self.ids.base, self.ids.gid_base)[1]

    def start(self, mode: Mode, argv: Sequence[bytes], envp: Sequence[bytes], slots: Mapping[str, int]) -> Outcome:
        """Start; ``slots`` are those that belong to this start alone.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        # CLONE_FILES lasts from stage 1 to stage 2 only; the caller's own table is not shared.
        outcome = self._tried(
            lambda: self._program(mode).run({**self.inputs(), **slots}, argv=argv, envp=envp, blocks=self.blocks())
        )
        if self.union is not None:
            self.union.attached()
        return outcome

    def compile(self, mode: Mode) -> None:
        """Compile the plan of a start, unless it is there already."""
        self._program(mode)

    def _program(self, mode: Mode) -> Program:
        shape = None if mode.command is None else mode.command.shape
        key = (self.spec.shape, self.host, mode.init, mode.reads_upper, mode.held, shape)
        return programs.get(key, lambda: Program(assembly.start_plan(self.spec, self.host, mode)))

    def _tried(self, start: Callable[[], Started]) -> Started:
        """Start, and once more in another way where it turns out that this kernel can't do it in the usual one."""
        try:
            return start()
        except SetupError as error:
            self._find_another_way(error)
        return start()

    def _find_another_way(self, error: SetupError) -> None:
        if self.spec.rootfs.kind == "overlay":
            self._leave_to_fuse(error)
        elif error.errno == EINVAL and error.target == f"id map of {SKELETON}":
            # Linux before 6.3 maps no ids of filesystems in memory: from now on each start makes that of its own.
            _memory["maps ids"] = False
            self.host = self.host._replace(skeleton=_own_skeleton(self.spec, self.staging))
        else:
            raise error

    def _leave_to_fuse(self, error: SetupError) -> None:
        from containerkit import fuse

        if self.union is not None:
            raise self.union.explained(error) from None
        if not fuse.could_help(self.spec.rootfs, error):
            raise error
        if not fuse.is_installed():
            raise fuse.explained(error) from None
        self.spec = attrs.evolve(self.spec, rootfs=attrs.evolve(self.spec.rootfs, union="fuse"))
        self._make_union()

    def _make_union(self) -> None:
        """Let fuse-overlayfs make the union."""
        from containerkit.fuse import FuseUnion

        if self.spec.namespaces.user not in ("new", "host"):
            hint = "whose ids they are in a user namespace that is joined is not known here: pass union='kernel'"
            raise UnsupportedError("start", EINVAL, "fuse-overlayfs", hint)
        translates = self.host.privileged and self.spec.rootfs.idmap
        self.union = FuseUnion(self.spec.rootfs, self.staging.holder, self.mappings if translates else ((), ()))

    def complete(self, mode: Mode, argv: Sequence[bytes], envp: Sequence[bytes], capture: Capture) -> Left:
        """Start a command and stay with it to its end; see :meth:`containerkit.engine.Program.complete`.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        return self._tried(
            lambda: self._program(mode).complete(
                self.inputs(), argv=argv, envp=envp, blocks=self.blocks(), capture=capture
            )
        )

    def hold(self, mode: Mode, uid: int, *, early: bool) -> Held:
        """Start a command of that user as far as it gets without its words; see :class:`containerkit.engine.Held`.

        Raises:
            SetupError: an operation failed; all that it had made is gone.
        """
        owner = self.outside(uid)
        return self._tried(
            lambda: self._program(mode).hold(self.inputs(), blocks=self.blocks(), owner=owner, early=early)
        )

    def release(self) -> None:
        """Give back what was taken, once nothing runs on it any more; harmless when repeated.

        Raises:
            CleanupError: a control group could not be removed.
        """
        if self.union is not None:
            self.union.close()
        if self.ids is not None:
            self.ids.release()
        for handle in self.joined.values():
            handle.close()
        membership, self.membership = self.membership, None
        if membership is not None:
            membership.end()


def sources(spec: Spec) -> object:
    """Return what there is of what a start takes from the machine: while it is the same, so is what starts show."""
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


_ROOM_BYTES: Final = 1024 * 1024
_ROOM_PER_MOUNT: Final = 8 * 1024
"""What a start takes of its group's memory, with room to spare: the kernel charges mounts to who makes them."""


def _check_room(spec: Spec) -> None:
    """Refuse a memory limit that the start itself would reach.

    Until its exec the child shares the caller's memory, and when the kernel ends one of two that share theirs it ends
    the other as well. Source: __oom_kill_process() in mm/oom_kill.c.
    """
    assert spec.limits is not None
    most = spec.limits.memory
    needed = _ROOM_BYTES + _ROOM_PER_MOUNT * (len(spec.mounts) + len(spec.rootfs.lowers) + len(spec.rootfs.volumes))
    if isinstance(most, int) and most < needed:
        raise SpecError(f"limits: memory={most} is less than this container's start takes: let it be {needed} at least")


def _without_links(resolved: RootFS) -> RootFS:
    """Resolve links on the way to an upper layer here, since it is opened where they would lead somewhere else."""
    if resolved.upper is None or resolved.work is None:
        return resolved
    upper, work = os.path.realpath(resolved.upper), os.path.realpath(resolved.work)
    return attrs.evolve(resolved, upper=upper, work=work)


def _check_paths(resolved: RootFS) -> None:
    for path in (*resolved.lowers, *([resolved.upper] if resolved.upper else [])):
        try:
            is_folder = os.stat(path).st_mode & 0o170000 == 0o040000
        except (OSError, ValueError):
            is_folder = False
        if not is_folder:
            raise SpecError(f"rootfs: {path} is not there, or no folder")
    if resolved.upper is None or resolved.work is None:
        return
    if not os.path.isdir(resolved.work):
        os.makedirs(resolved.work, mode=0o700)
    _check_one_mount(resolved.upper, resolved.work)


def _check_one_mount(upper: str, work: str) -> None:
    """Refuse an upper and a work folder between which, or on which, something is mounted.

    Both are reached through a copy of the mount that holds the folder above them; a mount on the way would not be in
    it, and the changes would go to what lies hidden below.
    """
    from containerkit._linux import mountinfo

    base = os.path.commonpath((upper, work)).rstrip("/") + "/"
    for point in (mount.mount_point for mount in mountinfo.read()):
        if point.startswith(base) and any(f"{path}/".startswith(f"{point}/") for path in (upper, work)):
            raise SpecError(f"rootfs: {point} is a mount of its own: make upper and work folders of one mount")


_memory: Final = {"maps ids": True}
"""What was found out about filesystems in memory."""


def _own_skeleton(spec: Spec, stage: Staging) -> HostRoot | None:
    """Return what a container has to make itself of what the staging has ready for those whose ids can be mapped."""
    if spec.rootfs.kind != "host" or not stage.privileged or spec.namespaces.user == "host":
        return None
    if spec.rootfs.idmap and _memory["maps ids"]:
        return None
    from containerkit import hostroot

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
    """Return the id maps of a range and their blocks: there are but few ranges, used over and over."""
    mappings = (IdMapping(0, base, RANGE),), (IdMapping(0, gid_base, RANGE),)
    return mappings, _blocks(mappings)


def _blocks(mappings: Mappings) -> dict[str, bytes]:
    uid, gid = (mapping_text(mapping).rjust(MAP_BYTES) for mapping in mappings)
    if len(uid) > MAP_BYTES or len(gid) > MAP_BYTES:
        raise SpecError(f"id mappings: their text is longer than the {MAP_BYTES} bytes that the kernel surely takes")
    return {"uid_map": uid, "gid_map": gid}


def _nested_mappings(spec: Spec, stage: Staging) -> Mappings:
    """An ordinary user's container lies in the holder's namespace: its outside ids are the holder's inside ids."""
    if spec.uid_mappings is None or spec.gid_mappings is None:
        # Range by range: one that spans two of the outer namespace's is refused.
        uids, gids = (tuple(IdMapping(m.inside, m.inside, m.count) for m in outer) for outer in stage.mappings)
        return uids, gids
    return (
        tuple(_within(m, stage.mappings[0]) for m in spec.uid_mappings),
        tuple(_within(m, stage.mappings[1]) for m in spec.gid_mappings),
    )


def _within(mapping: IdMapping, granted: tuple[IdMapping, ...]) -> IdMapping:
    for grant in granted:
        if grant.outside <= mapping.outside and mapping.outside + mapping.count <= grant.outside + grant.count:
            return IdMapping(mapping.inside, grant.inside + mapping.outside - grant.outside, mapping.count)
    raise SpecError(f"id mappings: {mapping} is not granted to this user in /etc/subuid and /etc/subgid")

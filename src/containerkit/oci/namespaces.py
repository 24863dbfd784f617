"""The way from the runtime to the container's first process: join and make namespaces, write id maps, exec the init.

Stage 1 shares the runtime's memory. It joins existing namespaces, clones stage 2 into the new ones,
writes the id maps and ends. Stage 2 becomes the container's root and execs the static init in its mode ``walk``. From
then on a process with no memory of the runtime executes the tape. It outlives the runtime.
"""

from __future__ import annotations

import os
from errno import EINVAL, EPERM

from containerkit._native import constants as k
from containerkit.oci import kernel
from containerkit.oci.errors import RuntimeFailure, StepError, strerror
from containerkit.oci.tape import ARGV, ENVP, Tape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.oci.config import IdMap
    from containerkit.oci.tape import Slot

__all__ = ["FLAGS", "Stage", "idmap_namespace", "is_own", "map_text", "open_namespace", "walk"]

FLAGS = {
    "user": k.CLONE_NEWUSER,
    "ipc": k.CLONE_NEWIPC,
    "uts": k.CLONE_NEWUTS,
    "network": k.CLONE_NEWNET,
    "pid": k.CLONE_NEWPID,
    "mount": k.CLONE_NEWNS,
    "cgroup": k.CLONE_NEWCGROUP,
    "time": k.CLONE_NEWTIME,
}
"""The namespaces by the specification's names, in the order in which they are joined."""

_MAPPERS = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")


def map_text(maps: Sequence[IdMap]) -> bytes:
    """Return id maps as the kernel takes them. Source: user_namespaces(7)."""
    return "".join(f"{each.container_id} {each.host_id} {each.size}\n" for each in maps).encode()


class Stage:
    """The namespaces of a container or command, as stage 1 needs them.

    Attributes:
        joins: kind and open descriptor of each namespace that is joined.
        new: the kinds that are new.
        uid_maps, gid_maps: for a new user namespace.
        privileged: whether the runtime may write any id map.
        target: a pidfd whose namespaces are joined instead, with their ``CLONE_NEW*``.
        time_offsets: those of a new time namespace, as the kernel takes them.
    """

    __slots__ = ("gid_maps", "joins", "new", "privileged", "target", "time_offsets", "uid_maps")

    def __init__(
        self,
        *,
        joins: Sequence[tuple[str, int]] = (),
        new: Sequence[str] = (),
        uid_maps: Sequence[IdMap] = (),
        gid_maps: Sequence[IdMap] = (),
        privileged: bool = True,
        target: tuple[int, int] | None = None,
        time_offsets: bytes = b"",
    ) -> None:
        self.joins = joins
        self.new = new
        self.uid_maps = uid_maps
        self.gid_maps = gid_maps
        self.privileged = privileged
        self.target = target
        self.time_offsets = time_offsets

    @property
    def changes_user(self) -> bool:
        """Whether stage 2 is in another user namespace than the runtime."""
        if self.target is not None:
            return bool(self.target[1] & k.CLONE_NEWUSER)
        return "user" in self.new or any(kind == "user" for kind, _ in self.joins)

    @property
    def sets_time_early(self) -> bool:
        """Whether stage 2 itself makes the time namespace.

        The /proc files of a process that execs the sealed init belong to the host's root. So an unprivileged runtime
        can't write the offsets, neither from outside nor from inside.
        """
        return bool(self.time_offsets) and self.changes_user and not self.privileged

    @property
    def denies_groups(self) -> bool:
        """Return whether setgroups(2) must be denied before the group map may be written."""
        return "user" in self.new and not self.privileged and len(self.gid_maps) == 1 and self.gid_maps[0].size == 1

    def tape(self, image: int, passed: Sequence[int]) -> Tape:
        """Return the tape; its exec takes the init's arguments."""
        tape = Tape()
        self._join(tape)
        flags = k.CLONE_PARENT
        for kind in self.new:
            if kind not in ("time", "cgroup"):  # the first process enters these itself
                flags |= FLAGS[kind]
        shown = ", ".join(kind for kind in self.new if kind not in ("time", "cgroup"))
        pid = tape.slot("pid")
        cloned = tape.step(k.STEP_CLONE, "clone", flags, 0, 0, 0, 0, 0, target=f"{shown} namespaces", result=pid)
        if "user" in self.new:
            self._write_maps(tape, pid)
        tape.step(k.STEP_RELEASE, "release")
        tape.step(k.STEP_LEAVE, "leave")
        tape.aim_here(cloned)
        tape.step(k.STEP_AWAIT, "await_release")
        if self.sets_time_early:
            self._set_time(tape)  # before the ids change, which makes the files below /proc root's
        if self.changes_user:
            tape.call("setresgid", 0, 0, 0, target="gid 0", ok=(EINVAL,))
            tape.call("setresuid", 0, 0, 0, target="uid 0", ok=(EINVAL,))
        for fd in passed:
            tape.call("fcntl", fd, 2, 0, target=f"pass fd {fd}")  # F_SETFD: stay open on exec
        tape.call("execveat", image, b"", ARGV, ENVP, k.AT_EMPTY_PATH, target="the walker")
        return tape

    def _join(self, tape: Tape) -> None:
        if self.target is not None:
            tape.call("setns", *self.target, target="the container's namespaces", hint="the container has stopped")
            return
        joins = sorted(self.joins, key=lambda each: list(FLAGS).index(each[0]))
        if os.geteuid() == 0:  # a process that may join them from outside does so before it loses that privilege
            joins.sort(key=lambda each: each[0] == "user")
        for kind, fd in joins:
            if kind != "time":
                tape.call("setns", fd, FLAGS[kind], target=f"{kind} namespace")

    def _set_time(self, tape: Tape) -> None:
        at, text = tape.slot("time offsets"), self.time_offsets
        tape.call("unshare", k.CLONE_NEWTIME, target="time namespace")
        flags = k.O_WRONLY | k.O_CLOEXEC
        path = b"/proc/self/timens_offsets"
        tape.call("openat", k.AT_FDCWD, path, flags, 0, target="linux.timeOffsets", result=at)
        tape.call("write", at, tape.block(text), len(text), target="linux.timeOffsets")
        tape.step(k.STEP_CLOSE, "close", at)

    def _write_maps(self, tape: Tape, pid: Slot) -> None:
        at = tape.slot("map")
        if self.denies_groups:
            self._write(tape, pid, at, "setgroups", b"deny")
        if not self.privileged and self._needs_helpers():
            for program, maps in zip(_MAPPERS, (self.uid_maps, self.gid_maps), strict=True):
                words = [program.encode(), b"PID"]
                for each in maps:
                    words += [b"%d" % each.container_id, b"%d" % each.host_id, b"%d" % each.size]
                block = tape.block(b"\0".join(words) + b"\0")
                hint = "give this user ranges in /etc/subuid and /etc/subgid, and install uidmap"
                tape.step(k.STEP_HELPER, program, block, len(words), pid, hint=hint)
            return
        self._write(tape, pid, at, "uid_map", map_text(self.uid_maps))
        self._write(tape, pid, at, "gid_map", map_text(self.gid_maps))

    def _needs_helpers(self) -> bool:
        own = (os.geteuid(), os.getegid())
        for maps, number in zip((self.uid_maps, self.gid_maps), own, strict=True):
            if len(maps) != 1 or maps[0].size != 1 or maps[0].host_id != number:
                return True
        return False

    @staticmethod
    def _write(tape: Tape, pid: Slot, at: Slot, name: str, content: bytes) -> None:
        hint = "the runtime must own the host's ids"
        tape.step(k.STEP_OPEN_PROC, "open", pid, name.encode(), k.O_WRONLY, target=name, result=at)
        tape.call("write", at, tape.block(content), len(content), target=f"{name} {content.decode()!r}", hint=hint)
        tape.step(k.STEP_CLOSE, "close", at)


def walk(
    stage: Stage, inner: Tape, argv: Sequence[bytes], envp: Sequence[bytes], channel: int, passed: Sequence[int]
) -> tuple[int, int]:
    """Start the process that executes ``inner``.

    Args:
        stage: its namespaces.
        inner: its steps.
        argv: the vector of the exec at the end of the tape.
        envp: the environment of that exec.
        channel: the descriptor where it reports failures.
        passed: the descriptors that the tape uses.

    Returns:
        Its pid and a pidfd.

    Raises:
        StepError: it could not be started.
    """
    image = kernel.sealed_init()
    tape = os.memfd_create("tape", os.MFD_CLOEXEC)
    try:
        image_of_tape = memoryview(inner.image(argv, envp))
        while image_of_tape:
            image_of_tape = image_of_tape[os.write(tape, image_of_tape) :]
        words = [b"init", b"walk", b"%d" % tape, b"%d" % channel, b"0"]
        outer = stage.tape(image, [tape, channel, *passed])
        pid, pidfd, _ = kernel.spawn(outer, words, hides=stage.privileged)
    except StepError as error:
        raise _explained(error) from None
    finally:
        os.close(image)
        os.close(tape)
    return pid, pidfd


def _explained(error: StepError) -> StepError:
    if error.operation == "clone" and error.errno == EPERM:
        hint = "this host forbids it to this user: `containerkit probe` names the rule"
        return StepError(error.operation, error.errno, error.target, hint)
    return error


def is_own(kind: str, fd: int) -> bool:
    """Return whether a joined namespace is the runtime's own.

    Args:
        kind: the specification's name of it.
        fd: the open namespace.
    """
    name = {"network": "net", "mount": "mnt"}.get(kind, kind)
    return os.path.samestat(os.fstat(fd), os.stat(f"/proc/self/ns/{name}"))


def open_namespace(kind: str, path: str) -> int:
    """Open a namespace to join, and check that it is of that kind.

    Raises:
        RuntimeFailure: it does not exist, or is of another kind.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeFailure(f"{kind} namespace {path}: {strerror(error.errno or 0)}") from None
    try:
        found = kernel.call("ioctl", fd, k.NS_GET_NSTYPE)
    except OSError:
        found = 0
    if found != FLAGS[kind]:
        os.close(fd)
        raise RuntimeFailure(f"{path}: not a {kind} namespace")
    return fd


def idmap_namespace(uid_maps: Sequence[IdMap], gid_maps: Sequence[IdMap]) -> int:
    """Return a user namespace with the id maps of a mount. No process stays in it.

    Raises:
        StepError: it can't be made.

    Source: MOUNT_ATTR_IDMAP in mount_setattr(2).
    """
    stage = Stage(new=("user",), uid_maps=uid_maps, gid_maps=gid_maps)
    tape = Tape()
    pid, namespace = tape.slot("pid"), tape.slot("namespace")
    flags = k.CLONE_NEWUSER | k.CLONE_FILES | k.CLONE_PARENT  # a child of the runtime, so that it can wait for it
    cloned = tape.step(k.STEP_CLONE, "clone", flags, 0, 0, 0, 0, 0, target="user namespace", result=pid)
    stage._write_maps(tape, pid)  # noqa: SLF001 - of this module
    tape.step(k.STEP_OPEN_PROC, "open", pid, b"ns/user", k.O_RDONLY, target="user namespace", result=namespace)
    tape.step(k.STEP_RELEASE, "release")
    tape.step(k.STEP_LEAVE, "leave")
    tape.aim_here(cloned)
    tape.step(k.STEP_AWAIT, "await_release")
    tape.step(k.STEP_LEAVE, "leave")
    _, _, slots = kernel.spawn(tape, share_files=True, no_process=True)
    return slots[namespace.number]

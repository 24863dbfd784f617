"""Containers whose processes CRIU restored from a directory."""

from __future__ import annotations

import os
import re
import signal
import time
from contextlib import suppress
from errno import EIO, EPERM, ESRCH
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import attrs

from containerkit import _native
from containerkit._linux import criu
from containerkit._native.outcome import Outcome
from containerkit.checkpoint import record as records
from containerkit.checkpoint.calling import call, criu_command, find_program, opened
from containerkit.checkpoint.guard import finish_checkpoint
from containerkit.checkpoint.images import id_maps, id_maps_name
from containerkit.checkpoint.refusals import IMAGES, ROOT
from containerkit.checkpoint.trees import CHECKPOINT, HOME, PLACE, criu_plan
from containerkit.compile.joining import NOTHING_TO_JOIN
from containerkit.container.lifecycle import Container
from containerkit.descriptors import lend
from containerkit.errors import SetupError, SpecError, UnsupportedError
from containerkit.plan.program import proc
from containerkit.process.process import kill_and_reap
from containerkit.security.confinement import PROC, Confinement
from containerkit.spec.container import Spec
from containerkit.spec.rootfs import RootFS, resolve
from containerkit.start.cgroup import inputs, joining
from containerkit.start.context import StartContext, own_pidfd

if TYPE_CHECKING:
    from containerkit.cgroup import CGroup, Limits
    from containerkit.checkpoint.record import Record
    from containerkit.compile.joining import Joining
    from containerkit.spec.command import Command

__all__ = ["Restored"]

_LOG: Final = "restore.log"
_PID_FILE: Final = "pid"
_ID_MAPS: Final = "id_maps"
_NUMBER: Final = re.compile(r"^(\d+)$")
_FIRST_PROCESS: Final = re.compile(r"PID: real (\d+) virt 1$", re.MULTILINE)


class Restored(Container):
    """A restored container, made by :meth:`containerkit.Container.restore`. It runs immediately."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        id: str | None,  # noqa: A002 - as in Container
        rootfs: RootFS | None,
        limits: Limits | Literal["as before"] | None,
        criu: str | os.PathLike[str] | None,
    ) -> None:
        self._images = os.path.abspath(os.fspath(path))
        if os.geteuid() != 0:
            raise UnsupportedError("restore", EPERM, self._images, "CRIU needs root to restore processes")

        def work(kept: list[int]) -> None:
            self._directory = self._open(kept)
            self._record = records.read(self._images, self._directory)
            self._criu = find_program(criu)
            super(Restored, self).__init__(id=id, **_fields(self._record, rootfs, limits))
            self.start()

        lend(work)

    def _open(self, kept: list[int]) -> int:
        try:
            return opened(kept, self._images, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            hint = "it must be the directory of a checkpoint"
            raise SetupError("restore", error.errno or 0, self._images, hint) from None

    def __enter__(self) -> Self:
        self._running()
        return self

    def _begin(self, context: StartContext, born: list[Outcome]) -> Outcome:
        born.append(_Restore(context, self._record, self._images, self._directory, self._criu).make())
        return born[-1]


def _fields(record: Record, rootfs: RootFS | None, limits: Limits | Literal["as before"] | None) -> dict[str, Any]:
    """Return the arguments of the container: those of the checkpointed one, except those given again."""
    spec = record.spec
    if rootfs is not None:
        if not isinstance(rootfs, RootFS):
            raise SpecError(f"rootfs: {rootfs!r} is not a RootFS; use RootFS.dir(path), ...")
        resolved = resolve(rootfs)
        if resolved.kind != spec.rootfs.kind:
            raise SpecError(f"rootfs: the checkpoint's root is of the kind {spec.rootfs.kind!r}, not {resolved.kind!r}")
        spec = attrs.evolve(spec, rootfs=resolved)
    if not isinstance(limits, str):
        spec = attrs.evolve(spec, limits=limits)
    elif limits != "as before":
        raise SpecError(f"limits: {limits!r:.100} is not a containerkit.Limits; use Limits(memory='256M', pids=64)")
    fields = {field.name: getattr(spec, field.name) for field in attrs.fields(Spec) if field.init}
    confinement = fields.pop("confinement")
    return {**fields, **{field.name: getattr(confinement, field.name) for field in attrs.fields(Confinement)}}


class _Restore:
    """One container that is being restored.

    Args:
        context: the context of its start.
        record: the record of the checkpoint.
        images: its directory, for messages.
        directory: a descriptor of it.
        program: CRIU.
    """

    def __init__(self, context: StartContext, record: Record, images: str, directory: int, program: str) -> None:
        self._context = context
        self._record = record
        self._images = images
        self._directory = directory
        self._program = program
        self._outcome: Outcome | None = None

    def make(self) -> Outcome:
        """Restore the processes.

        Returns:
            The init, a child of this process, as after any start.

        Raises:
            SetupError: it failed. Nothing is left behind.
        """
        try:
            lend(self._restore_processes)
        except BaseException:
            if self._outcome is not None:
                kill_and_reap(self._outcome.pidfd)
            raise
        assert self._outcome is not None
        return self._outcome

    def _restore_processes(self, kept: list[int]) -> None:
        began = time.monotonic_ns()
        os.makedirs(PLACE, exist_ok=True)
        with TemporaryDirectory(prefix="containerkit-") as work:
            try:
                self._run(work, kept)
                pid, middle = _first_process(work), time.monotonic_ns()
                pidfd = _open_child(pid)
                self._outcome = Outcome(
                    pid=pid, pidfd=pidfd, failed_index=-1, error=0, times_ns=(began, began, middle, middle), slots=[]
                )
                finish_checkpoint(pidfd)
            except BaseException:
                if self._outcome is None:
                    _reap(_first_process(work))
                raise

    def _command(self, work: str, kept: list[int]) -> Command:
        """Return CRIU's command. It inherits descriptors under the caller's numbers."""
        record = self._record
        given = {own_pidfd(): record.owner, _native.init_image(): record.image}
        if record.network:
            given[opened(kept, "/proc/self/ns/net", os.O_RDONLY)] = record.network.partition(":")[2]
        words = [self._program, "restore", "--root", f"{PLACE}/{ROOT}", "--restore-detached", "--restore-sibling"]
        words += ["--pidfile", f"{work}/{_PID_FILE}", *criu.logged(f"{PLACE}/{IMAGES}", work, _LOG)]
        words += ["--manage-cgroups=ignore", *record.arguments]
        words += criu.external(f"mnt[{path}]:{PLACE}/{source}" for path, source in record.mounts)
        words += [word for fd, key in given.items() for word in criu.inherit(fd, key)]
        return criu_command(words, given)

    def _run(self, work: str, kept: list[int]) -> None:
        """Run CRIU."""
        command = self._command(work, kept)
        context = self._context
        group = context.membership.for_first() if context.membership is not None else None
        joins = _joining(group)
        replaced = {}
        if context.spec.namespaces.user == "new":
            replaced[id_maps_name(f"/proc/self/fd/{self._directory}/{IMAGES}")] = f"{work}/{_ID_MAPS}"
            with open(f"{work}/{_ID_MAPS}", "wb") as file:
                file.write(id_maps(context.mappings))
        plan = criu_plan(context.spec, context.mappings, command, replaced=replaced, joins=joins)
        slots = {
            **context.staging.slots,
            **inputs(group),
            PROC.name: proc(),
            CHECKPOINT: self._directory,
            HOME: opened(kept, "/proc/thread-self/ns/mnt", os.O_RDONLY),
        }
        status, told = call(command, plan, slots)
        if status:
            raise SetupError("restore", EIO, self._images, criu.failure("restore", status, told, f"{work}/{_LOG}"))


def _joining(group: CGroup | None) -> Joining:
    """Return how CRIU joins the group: only with its own memory, because the group already limits memory."""
    return NOTHING_TO_JOIN if group is None else joining(group)._replace(late=True)


def _first_process(work: str) -> int:
    """Return the host's pid of PID 1, from CRIU's output or its log; 0 if it was never made."""
    for name, pattern in ((_PID_FILE, _NUMBER), (_LOG, _FIRST_PROCESS)):
        with suppress(FileNotFoundError), open(f"{work}/{name}", encoding="utf-8", errors="replace") as file:
            if found := pattern.search(file.read()):
                return int(found[1])
    return 0


def _open_child(pid: int) -> int:
    """Return a pidfd of a child that was just made.

    Raises:
        SetupError: it has ended.
    """
    try:
        pidfd = _native.high(os.pidfd_open(pid))
    except OSError:
        raise SetupError("restore", ESRCH, f"init {pid}", "it ended immediately") from None
    try:
        signal.pidfd_send_signal(pidfd, 0)
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        if int(status["PPid"]) == os.getpid() and status["NSpid"].split()[-1] == "1":
            return pidfd
    except OSError:
        pass
    os.close(pidfd)
    raise SetupError("restore", ESRCH, f"init {pid}", "it ended immediately")


def _reap(pid: int) -> None:
    """Kill and reap the first process of a restore that failed."""
    if pid:
        try:
            kill_and_reap(_open_child(pid))
        except SetupError:  # CRIU removed it
            return

"""Starts a recorded container together with its keeper.

A process starts the container with the library and then execs the keeper, a small static program. It stays the same
process: the owner that the container's init watches, the owner that the names of control groups contain, the parent of
the command, and the holder of the locks on ids and images.

A caller with a single thread forks this process, which takes 1 ms. A caller with several threads starts a new
interpreter instead. In both cases the keeper has its own session, and is not a child of the caller.

Source: fork(2), setsid(2), execveat(2), proc_pid_fdinfo(5), "lock".
"""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import signal
import sys
import time
from contextlib import suppress
from errno import ENOSPC, EOPNOTSUPP
from functools import partial

import containerkit.namespace.handle  # noqa: F401 - the command joins namespaces, and a fork inherits the module
from containerkit import _native
from containerkit.container.captured import ArgumentCache
from containerkit.container.commands import Commands
from containerkit.container.lifecycle import Container
from containerkit.descriptors import close_last, keep_pipe, lend
from containerkit.detached import health
from containerkit.detached.description import Description
from containerkit.detached.events import emit
from containerkit.detached.logs import last_log
from containerkit.detached.settings import Keeping, Policy
from containerkit.detached.store import KEEPER_LOCK
from containerkit.detached.wiring import wired
from containerkit.errors import ContainerError, SetupError, StateError, UnsupportedError
from containerkit.process.process import DEVNULL, PIPE
from containerkit.spec.rootfs import resolve
from containerkit.start.id_ranges import lease_singly
from containerkit.start.staging import staging
from containerkit.values import evolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, NoReturn

    from containerkit.detached.store import Entry
    from containerkit.process.process import Process
    from containerkit.spec.container import Spec
    from containerkit.spec.rootfs import RootFS

__all__ = ["Begun", "become_keeper", "begin", "root_of", "write_policy"]

_FIRST_DELAY_MS, _LAST_DELAY_MS, _STEADY_S = 100, 60_000, 10.0
"""The delay before the first restart, its maximum after doublings, and the run time that resets it. Source: Docker."""

_RECORD, _LOGS, _INIT, _COMMAND, _OUTPUT, _ERRORS = range(3, KEEPER_LOCK)
_ATTENDANT, _LIFE = KEEPER_LOCK + 1, KEEPER_LOCK + 2
"""The numbers of the keeper's descriptors; see keeper.c."""

_END_BYTES: Final = 512
_ABOVE: Final = 64
"""Copies of descriptors are made above this number, so that none replaces another."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Begun(Container):
    """A container of a description that was read from a record."""

    def __init__(self, spec: Spec, id: str) -> None:  # noqa: A002 - the term of the OCI
        Commands.__init__(self, spec, id, ArgumentCache(16))
        self._has_name = False  # it is recorded as a detached container
        self.timings = None
        self._guard = None

    def refuse_fuse(self) -> None:
        """Refuse a root that fuse-overlayfs serves, because it would end with the process that started it.

        Raises:
            UnsupportedError: fuse-overlayfs serves the root.
        """
        if self._running_context().union is not None:
            hint = "fuse-overlayfs serves its root and ends with this process: choose a root that the kernel can mount"
            raise UnsupportedError("detach", EOPNOTSUPP, self.rootfs.upper or "/", hint)

    @property
    def network(self) -> dict[str, Any]:
        """Its ``addresses`` and ``ports`` on a network that another process serves; empty for none."""
        return dict(getattr(self.joined().get("network"), "answer", {}))

    @property
    def connection(self) -> list[int]:
        """The descriptor of the connection to that network, if any."""
        connection = getattr(self.joined().get("network"), "connection", None)
        return [] if connection is None else [connection.fileno()]

    def groups(self) -> tuple[list[str], list[str]]:
        """Return the directories of its own control groups, and those in which its processes are."""
        membership = self._running_context().membership
        if membership is None:
            return [], []
        own = [part.path for part in membership.group.parts]
        shared = [part.path for part in membership.shared(self.pid).parts]
        return own, [] if shared == own else shared


def begin(entry: Entry, description: Description | None = None) -> None:
    """Start a recorded container. It is running when this returns.

    Args:
        entry: its record.
        description: the description in the record, if it is known (default: it is read).

    Raises:
        StateError: it is already running.
        ContainerError: the start failed; the error of the process that started it.
    """
    lend(partial(_begin, entry, description))


def _begin(entry: Entry, description: Description | None, fds: list[int]) -> None:
    read, write = keep_pipe(fds)
    if len(os.listdir("/proc/self/task")) == 1:
        known = _load(entry) if description is None else description
        # A fork inherits the staging. The next start of this process finds it, too.
        staging(host=known.spec.rootfs.kind == "host")
        _fork(entry, known, read, write)
    else:
        _spawn(entry, write)
    close_last(fds)  # the end for writing
    _hear(entry, read)


def _fork(entry: Entry, description: Description, read: int, write: int) -> None:
    inherited = frozenset(_open_descriptors())
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                gc.disable()  # it would copy the pages of all objects, for a process that soon executes a program
                os.close(read)
                _quiet()
                become_keeper(entry, write, description=description, inherited=inherited)
        finally:
            os._exit(1)
    with suppress(ChildProcessError):  # the program ignores SIGCHLD, so the kernel has reaped it
        os.waitpid(child, 0)


def _spawn(entry: Entry, write: int) -> None:
    import json
    import subprocess

    words = [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path), entry.id, str(write)]
    subprocess.run(words, pass_fds=[write], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, check=False)


_PROGRAM: Final = """
import json, os, sys
sys.path[:] = json.loads(sys.argv[1])
from containerkit.detached.begin import become_keeper
from containerkit.detached.store import Entry
os.setsid()
if os.fork() == 0:
    become_keeper(Entry(sys.argv[2]), int(sys.argv[3]))
os._exit(0)
"""


def _hear(entry: Entry, read: int) -> None:
    """Read the result of the future keeper: nothing if it has exec'd the keeper, otherwise the error."""
    said = b""
    while chunk := os.read(read, 65536):
        said += chunk
    if said[:1] == b"+" and len(said) == 1:
        return
    if len(said) > 1:
        error = pickle.loads(said[1:] if said[:1] == b"+" else said)  # noqa: S301 - from our own child
        raise error
    raise StateError(f"container {entry.id}: the process that was starting it was killed")


def _quiet() -> None:
    """Close the caller's streams, because a reader waits until all processes have closed them."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def become_keeper(
    entry: Entry,
    told: int,
    *,
    description: Description | None = None,
    inherited: frozenset[int] = frozenset(),
    restarts: int = 0,
    lock: int = -1,
) -> NoReturn:
    """Start the container and exec the keeper. A failure is reported and ends the process.

    Args:
        entry: its record.
        told: a pipe for the report; -1 for none.
        description: the description in the record, if it is known (default: it is read).
        inherited: descriptors of the caller, whose locks are not kept.
        restarts: the number of restarts by the policy.
        lock: the lock of the record, if it is already held.
    """
    try:
        _become(entry, told, description, inherited, restarts, lock)
    except BaseException as error:  # noqa: BLE001 - raised again in the caller
        with suppress(Exception):
            if told >= 0:
                os.write(told, _dumped(error))
            else:
                _record_failure(entry, str(error))
    os._exit(1)


def _record_failure(entry: Entry, error: str) -> None:
    """Record why a restart by the policy failed: in the log, if the filesystem of the records is full."""
    try:
        entry.write("error.json", {"error": error})
    except SetupError:
        path = f"{entry.state_path}/log.{last_log(entry.state_path)}"
        with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
            file.write(f"{now}.000000000Z stderr F containerkit: the restart failed: {error}\n")


def _dumped(error: BaseException) -> bytes:
    try:
        if isinstance(error, (ContainerError, OSError)):
            return pickle.dumps(error)
    except Exception:  # noqa: BLE001, S110 - reported as text below
        pass
    return pickle.dumps(StateError(f"the start failed: {type(error).__name__}: {error}"))


def _become(
    entry: Entry, told: int, known: Description | None, inherited: frozenset[int], restarts: int, lock: int
) -> None:
    environment = _environment()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the program may ignore it: then no exit status would be known
    os.umask(0o022)
    os.chdir("/")
    if lock < 0:
        lock = entry.lock()
    keeping = Keeping.of(entry.config)
    description = _load(entry) if known is None else known
    former = entry.read("run.json") or {}
    logs = _reserve(entry)
    spec = evolve(description.spec, rootfs=root_of(entry, description.spec.rootfs, former))
    attendant = None
    if spec.wishes_for_network:
        spec, attendant = wired(spec, entry, keeping.name)
    container = Begun(spec, entry.id)
    lease_singly()
    container.start()
    try:
        container.refuse_fuse()
        process = _command(container, description, keeping)
        ends = [-1 if end is None else end.fileno() for end in process.ends]
        sources = {
            _RECORD: os.open(entry.path, _DIRECTORY),
            _LOGS: logs,
            _INIT: container.fileno(),
            _COMMAND: process.fileno(),
            _OUTPUT: ends[1],
            _ERRORS: ends[2],
            KEEPER_LOCK: lock,
            _ATTENDANT: -1 if attendant is None else attendant.pidfd,
            _LIFE: -1 if attendant is None else attendant.life.fileno(),
        }
        handed = Handed(sources, [ends[0], *container.connection, *_locks(inherited | {lock, logs})])
        delay_ms = _delay(former, restarts)
        # The keeper reads them later. They are blocked only now, because the command would inherit the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1))
        facts = _facts(container, process)
        run = int(former.get("run", 0)) + 1
        write_policy(entry, Policy.parse(keeping.restart), restarts)
        check = health.wanted(keeping, description.spec)
        health.begin(entry, check, run)
        facts |= {"checked": check is not None, "attendant": None if attendant is None else attendant.pid}
        entry.write(
            "run.json", {"run": run, "restarts": restarts, "delay_ms": delay_ms, **facts, "stdin": handed.stdin}
        )
        _forget_ends(entry, run)
        emit(entry, "start", entry.config, restarts=restarts)
    except BaseException:
        container.stop()
        raise
    words = (
        *("keeper", str(run), str(delay_ms)),
        *(str(keeping.log_max_bytes), str(keeping.log_files), str(last_log(entry.state_path))),
        *(str(int(keeping.remove)), *map(str, (0, 0, 0) if check is None else check.milliseconds())),
        *(str(max(0, handed.stdin)) if not keeping.tty else "0", sys.executable, *facts["leaves"], *facts["groups"]),
    )
    handed.become(words, environment, told)  # if that fails, this process ends, and so does the container


def _command(container: Container, description: Description, keeping: Keeping) -> Process[Any]:
    streams: dict[str, Any] = {"pty": True}
    if not keeping.tty:
        streams = {"stdin": PIPE if keeping.stdin_open else DEVNULL, "stdout": PIPE, "stderr": PIPE}
    process: Process[Any] = container.popen(description.argv, own_group=False, **streams, **description.fields)
    return process


def write_policy(entry: Entry, policy: Policy, restarts: int) -> None:
    """Write the file from which the keeper reads the policy after the end of the container."""
    entry.write_bytes("policy", str(policy.number(restarts)).encode())


def _reserve(entry: Entry) -> int:
    """Create the files for the record of the end and for a stop by hand, because the disk may be full later.

    Returns:
        The descriptor of the directory on disk, which is locked until the keeper ends, so that no sweep removes it.
    """
    os.makedirs(entry.state_path, mode=0o700, exist_ok=True)
    logs = os.open(entry.state_path, _DIRECTORY)
    fcntl.flock(logs, fcntl.LOCK_SH)
    fd = os.open(entry.file("exit.new"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        if os.pwrite(fd, b" " * _END_BYTES, 0) != _END_BYTES:
            raise SetupError("write", ENOSPC, entry.file("exit.new"), "there is no space for the record of its end")
    except OSError as error:
        if isinstance(error, SetupError):
            raise
        raise SetupError("write", error.errno or 0, entry.file("exit.new")) from None
    finally:
        os.close(fd)
    entry.write_bytes("stopped.new", b"")
    return logs


def _facts(container: Begun, process: Process[Any]) -> dict[str, Any]:
    """Return the content of ``run.json`` for a start."""
    groups, leaves = container.groups()
    root = container.rootfs
    return {
        "keeper": os.getpid(),
        "pid": process.pid,
        "init": container.pid,
        "started": time.time(),
        "groups": groups,
        "leaves": leaves,
        "root": pickle.dumps(root).hex(),
        "stop_signal": root.stop_signal,
        "network": container.network,
    }


def _forget_ends(entry: Entry, run: int) -> None:
    """Remove the records of the ends of former starts."""
    for name in os.listdir(entry.path):
        if name.startswith(("exit.", "lost.")) and name not in ("exit.new", f"exit.{run}"):
            os.unlink(entry.file(name))


def _locks(without: frozenset[int]) -> list[int]:
    """Return the descriptors with which this process holds file locks, on ids and on images."""
    found = []
    for fd in _open_descriptors():
        with suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="utf-8") as file:
            if fd not in without and "\nlock:" in file.read():
                found.append(fd)
    return found


class Handed:
    """The descriptors of the future keeper, first as copies above all used numbers.

    Args:
        sources: the descriptor for each number; -1 for none.
        others: further ones, whose numbers do not matter. The first one is the command's standard input.

    Attributes:
        stdin: the number of the first of ``others``; -1 for none.
    """

    def __init__(self, sources: dict[int, int], others: list[int]) -> None:
        self._placed = {number: self._copy(fd) for number, fd in sources.items()}
        self._others = [self._copy(fd) for fd in others]
        self.stdin = self._others[0]
        self._image = self._copy(_native.keeper_image())

    @staticmethod
    def _copy(fd: int) -> int:
        return -1 if fd < 0 else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _ABOVE)

    def become(self, words: tuple[str, ...], environment: dict[str, str], told: int) -> None:
        """Exec the keeper with only these descriptors. Report ``+`` before.

        Raises:
            OSError: the kernel refused it. Other descriptors are already closed.
        """
        for fd in _open_descriptors():
            with suppress(OSError):
                os.set_inheritable(fd, fd in self._others or fd < 3)
        if told >= 0:
            told = self._copy(told)
            with suppress(BrokenPipeError):  # the caller was killed in the meantime; the start is recorded
                os.write(told, b"+")
        for number, fd in self._placed.items():
            if fd >= 0:
                os.dup2(fd, number)
            else:
                with suppress(OSError):
                    os.close(number)
        os.execve(self._image, words, environment)


def _load(entry: Entry) -> Description:
    with open(entry.file("description"), "rb") as file:
        return Description.load(file.read())


def _environment() -> dict[str, str]:
    """Return the variables that a later restart needs to find the same files."""
    names = ("HOME", "PATH", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "CONTAINERKIT_IMAGES", "LANG")
    path = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    return {"PYTHONPATH": path, **{name: os.environ[name] for name in names if name in os.environ}}


def _delay(former: dict[str, Any], restarts: int) -> int:
    """Return the delay before the next start, in milliseconds."""
    if not restarts or time.time() - float(former.get("started", 0)) > _STEADY_S:
        return _FIRST_DELAY_MS
    return min(2 * int(former.get("delay_ms", _FIRST_DELAY_MS)), _LAST_DELAY_MS)


def root_of(entry: Entry, described: RootFS, former: dict[str, Any]) -> RootFS:
    """Resolve the root of a description. By default it gets a writable layer on disk.

    Args:
        entry: the record.
        described: the root.
        former: ``run.json`` of the last start; empty before the first.

    Raises:
        StateError: the image's name now has other layers, and the changes belong to the former ones.
    """
    found = resolve(described)
    found = evolve(found, readonly=found.readonly or described.readonly, idmap=found.idmap and described.idmap)
    if found.kind != "overlay" or found.readonly or found.upper is not None or found.size is not None:
        return found
    if former and pickle.loads(bytes.fromhex(former["root"])).lowers != found.lowers:  # noqa: S301 - the user's own
        raise StateError(
            f"container {entry.id}: its image has other layers than at the last start, to which its changes belong: "
            "create another container from the new image"
        )
    upper = os.path.join(entry.state_path, "upper")
    os.makedirs(upper, mode=0o755, exist_ok=True)
    return evolve(found, upper=upper, work=f"{upper}.work")

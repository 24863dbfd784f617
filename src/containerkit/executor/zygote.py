"""An interpreter with preloaded modules, the zygote. Others are forked from it, each into another container.

The zygote runs in a container, as root of its user namespace. The *fresh* containers of its forks join this user
namespace and share nothing else with it. A fork enters one, gives up all privileges, and applies the confinement of a
command there: the same system calls, which it receives as data. Only then does it receive a task.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from errno import ECHILD
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit import late
from containerkit._native import constants as k
from containerkit.compile import process as steps
from containerkit.container.arguments import describe
from containerkit.container.captured import ArgumentCache
from containerkit.container.lifecycle import Container
from containerkit.descriptors import Closing, close_all
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.namespace import Kind, Namespace
from containerkit.plan import calls
from containerkit.plan.operation import Block, Operation, Slot
from containerkit.process.process import DEVNULL
from containerkit.process.result import Usage, decode, result_fields
from containerkit.security.capabilities import Capabilities
from containerkit.security.seccomp import Seccomp
from containerkit.spec.container import CONFINEMENT, build
from containerkit.start.cgroup import account
from containerkit.weak import WeakMembers

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Unpack

    from containerkit.options import ContainerOptions, ListOf, Stream
    from containerkit.process.process import Process
    from containerkit.process.result import Cause
    from containerkit.spec.command import Command
    from containerkit.spec.container import Spec
    from containerkit.spec.rootfs import RootFS

    Isolation = Literal["container", "fork"]

__all__ = ["Forked", "Zygote", "confinement_of", "group_files", "source_of"]

_CAPABILITIES: Final = Capabilities.of("CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
"""The capabilities for entering namespaces of the own user namespace, and for becoming a command there."""

_LONGEST_S: Final = 60.0
"""The time limit of a fork on a busy machine, in seconds."""


def source_of(module: str) -> str:
    """Return the source of a module of this package that runs inside."""
    from importlib.util import find_spec

    found = find_spec(module)
    loader: Any = None if found is None else found.loader
    try:
        return str(loader.get_data(found.origin if found is not None else "").decode())
    except (AttributeError, OSError):  # for example in an archive of compiled modules
        raise StateError(
            f"{module}: its source file is missing, which must run inside; reinstall containerkit"
        ) from None


class Zygote(Closing):
    """A Python interpreter in a container, from which others are forked.

    Args:
        program: source text that defines ``main(sock)``, which each fork calls. If it defines ``rehearse()``, the
            zygote calls that once, before its first fork: what it imports and looks up, forks don't pay for.
        rootfs: the root filesystem (default ``RootFS.host()``).
        python: the interpreter inside, version 3.8 or later with ctypes.
        preload: the modules that it imports before the first fork.
        path: additional directories inside for the search for modules.
        isolation: ``"container"`` for a fresh container for each fork, ``"fork"`` for one container for all, in which
            each has its own pid namespace.
        env: its environment (default: that of any command).
        stdout, stderr: the output of it and its forks (default ``DEVNULL``).
        user: the user of the forks, as for a command; ids only.
        options: see :class:`containerkit.options.ContainerOptions`.

    Raises:
        SpecError: a value is invalid, or a fork can't apply the confinement.
        SetupError: it does not start: no such interpreter, or a module can't be imported.
    """

    def __init__(
        self,
        program: str,
        rootfs: RootFS | None = None,
        *,
        python: str = "python3",
        preload: ListOf[str] = (),
        path: ListOf[str] = (),
        isolation: Isolation = "container",
        env: Mapping[str, str] | None = None,
        stdout: Stream = DEVNULL,
        stderr: Stream = DEVNULL,
        user: int | tuple[int, int] | None = None,
        **options: Unpack[ContainerOptions],
    ) -> None:
        if isolation not in ("container", "fork"):
            raise SpecError(f"isolation: {isolation!r} is neither 'container' nor 'fork'")
        fields: dict[str, Any] = {**options} if rootfs is None else {**options, "rootfs": rootfs}
        self.isolation: Isolation = isolation
        self.spec: Spec = build(fields)
        _check(self.spec)
        self._entered = _kinds_entered(self.spec)
        self._command = describe(self.spec, [python], {"env": env, "user": user})
        shared = {name: value for name, value in fields.items() if name not in ("uid_mappings", "gid_mappings")}
        self._fresh = self.spec
        self._commands: ArgumentCache[Command] = ArgumentCache(16)
        self._lock = threading.Lock()
        self._loaded: set[str] = set()
        self._forks: WeakMembers[Forked] = WeakMembers()
        self._owner = os.getpid()
        self._nursery = self._made_nursery(fields)
        self._process: Process[Any] | None = None
        self._user: Namespace | None = None
        self._control, theirs = socket.socketpair()
        try:
            with theirs:
                self._nursery.start()
                self._begin(theirs, python, env, stdout, stderr)
            self._set_up({"program": program, "preload": list(preload), "path": list(path)})
            self._user = self._nursery.namespace(Kind.USER)
            if isolation == "container":
                self._fresh = build({**shared, "namespaces": attrs.evolve(self.spec.namespaces, user=self._user)})
                if self._fresh.wishes_for_network:  # a fork can only enter what its user namespace owns
                    self._fresh = late.load(late.OWNED)(self._fresh, self._user)
        except BaseException:
            self.close()
            raise

    def _made_nursery(self, fields: Mapping[str, Any]) -> Container:
        description = {name: value for name, value in fields.items() if name not in CONFINEMENT}
        description.pop("confinement", None)
        if self.isolation == "container":  # only a child pid namespace can be joined, and limits apply to each fork
            description["namespaces"] = attrs.evolve(self.spec.namespaces, pid="host")
            description["masked_paths"] = ["/proc"]  # this /proc shows the processes of the host
            description.pop("limits", None)
        # The forks inherit its filter and add their own. They must be able to leave the caller's keyrings.
        seccomp = Seccomp.default(_CAPABILITIES.bounding).allow("keyctl")
        return Container(capabilities=_CAPABILITIES, seccomp=seccomp, **description)

    def _begin(
        self, theirs: socket.socket, python: str, env: Mapping[str, str] | None, stdout: Stream, stderr: Stream
    ) -> None:
        number = theirs.fileno()
        argv = [python, "-I", "-c", source_of("containerkit.executor._inside_zygote"), str(number)]
        self._process = self._nursery.popen(
            argv, stdin=DEVNULL, stdout=stdout, stderr=stderr, env=env, pass_fds=[number], own_group=False
        )

    def _set_up(self, told: dict[str, Any]) -> None:
        with open(f"/proc/{self._nursery.pid}/setgroups", encoding="ascii") as file:
            sets_groups = file.read().strip() == "allow"
        told["prctl"] = calls.prctl("read the bounding set", k.PR_CAPBSET_READ, 0).call
        told["operations"] = [_encoded(each) for each in confinement_of(self._command, sets_groups=sets_groups)]
        text = repr(told).encode()
        try:
            self._control.sendall(len(text).to_bytes(4, "little") + text)
            answer = self._control.recv(4096)
        except OSError:
            answer = b""
        if answer != b"ready":
            why = answer.decode(errors="replace") or "the interpreter ended; it must be Python 3.8 or later with ctypes"
            raise SetupError("start", ECHILD, f"zygote of {self._command.words[0]}", why)

    @property
    def alive(self) -> bool:
        """Whether it can still fork."""
        return self._process is not None and self._process.poll() is None

    @property
    def busy(self) -> bool:
        """Whether a fork of it is not closed."""
        return any(not each.closed for each in list(self._forks))

    # --- Forks

    def fork(self) -> Forked:
        """Fork, and return when the fork is confined and calls ``main``. Threads take turns.

        Raises:
            StateError: it was closed, or belongs to the parent of this forked process.
            SetupError: the fork failed, or the zygote has ended; nothing is left behind. Also, for an unprivileged user
                with the default root, after the mounts of the host have changed: then make another zygote.
        """
        if os.getpid() != self._owner or self._user is None:
            raise StateError("zygote: it was closed, or belongs to the parent of this forked process")
        made = Forked()
        self._forks.add(made)
        try:
            if self.isolation == "container":
                made.container = _Fresh(self._fresh, self._commands).start()
            self._ask(made)
            made.await_start()
        except BaseException:
            made.close()
            raise
        return made

    def _ask(self, made: Forked) -> None:
        given: list[int] = []
        ours, theirs = socket.socketpair()
        made.sock = ours
        made.status, told = os.pipe2(os.O_CLOEXEC)
        try:
            kinds = [] if made.container is None else _entered(made.container, self._entered, given)
            request = " ".join(["fork", *kinds]).encode()
            with self._lock:
                try:
                    socket.send_fds(self._control, [request], [theirs.fileno(), told, *given])
                    answer, passed, _, _ = socket.recv_fds(self._control, 4096, 1)
                except OSError:
                    answer, passed = b"", []
        finally:
            theirs.close()
            close_all([told, *given])
        if not passed:
            raise SetupError("fork", ECHILD, "zygote", answer.decode(errors="replace") or "it has ended")
        made.pidfd, made.pid = passed[0], int(answer)

    def load(self, module: str) -> None:
        """Import a module before later forks, once. It may be missing inside, and the zygote may have ended."""
        with self._lock:
            if module in self._loaded:
                return
            self._loaded.add(module)
            try:
                self._control.sendall(f"load {module}".encode())
                self._control.recv(16)
            except OSError:  # the next fork says so
                return

    def close(self) -> None:
        """Kill it, with all of its forks that are in its own container.

        May be called twice, and has no effect in a forked child.
        """
        if os.getpid() != self._owner:
            return
        user, self._user = self._user, None
        if user is not None:
            user.close()
        self._control.close()
        if self._process is not None:
            self._process.close()
        self._nursery.stop()


class _Fresh(Container):
    """The container of a fork: its description was checked once, for all of them.

    Args:
        spec: the description.
        known: the descriptions of commands in it.
    """

    def __init__(self, spec: Spec, known: ArgumentCache[Command]) -> None:
        super(Container, self).__init__(spec, None, known)
        self.timings = None
        self._guard = None


class Ended:
    """How a fork ended.

    Attributes:
        returncode: its exit status, or the negative signal number.
        usage: its resource usage.
        cause: why it ended.
    """

    def __init__(self, returncode: int, usage: Usage, cause: Cause) -> None:
        self.returncode: int | None = returncode
        self.usage: Usage | None = usage
        self.cause: Cause | None = cause


class Forked:
    """An interpreter that was forked from a zygote by :meth:`Zygote.fork`. End it with :meth:`close`.

    Attributes:
        sock: the caller's end of the socket that its ``main`` receives.
        container: its own container; None with ``isolation="fork"``.
        pid: its pid on the host; with ``isolation="fork"`` that in the pid namespace of the zygote.
        pidfd, status: descriptors that are readable after it has ended.
        closed: whether it was closed.
    """

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.container: Container | None = None
        self.pid = -1
        self.pidfd = -1
        self.status = -1
        self.fate: Ended | None = None
        self.closed = False

    def await_start(self) -> None:
        """Wait until it is confined.

        Raises:
            SetupError: the confinement failed.
        """
        assert self.sock is not None
        self.sock.settimeout(_LONGEST_S)
        try:
            answer = self.sock.recv(1)
            told = self.sock.recv(1000).decode(errors="replace") if answer == b"e" else ""
        except OSError:
            answer, told = b"", ""
        if answer != b"r":
            number, _, what = told.partition(" ")
            raise SetupError(what or "fork", int(number) if number.isdigit() else ECHILD, "a fork of the zygote")
        self.sock.settimeout(None)

    def kill(self) -> None:
        """Kill it and the processes that it has started: SIGKILL to PID 1 of its pid namespace, or to itself."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return

    def end(self) -> Ended:
        """Kill it if it is running, wait for its end, and return how it ended and its usage."""
        if self.fate is None:
            self.kill()
            self.fate = self._fate()
        return self.fate

    def _fate(self) -> Ended:
        poll = select.poll()
        poll.register(self.status, select.POLLIN)
        raw = os.read(self.status, 200) if poll.poll(_LONGEST_S * 1000) else b""
        try:
            status, user_us, system_us, rss_kib = map(int, raw.split())
        except ValueError:  # the zygote has ended, and its knowledge is lost
            fate = Ended(-signal.SIGKILL, Usage(), "signal")
        else:
            ending = decode(self.pid, status, (0,) * 18)
            returncode, _, cause = result_fields(ending)
            fate = Ended(returncode, Usage(user_us=user_us, system_us=system_us, max_rss_bytes=rss_kib * 1024), cause)
        group = None if self.container is None else self.container.cgroup
        if group is not None:
            account(fate, group)
        return fate

    def close(self) -> None:
        """Kill it and its container, and close its descriptors. May be called twice."""
        self.closed = True
        self.kill()
        if self.sock is not None:
            self.sock.close()
        container, self.container = self.container, None
        if container is not None:
            container.stop()
        for name in ("pidfd", "status"):
            fd = getattr(self, name)
            setattr(self, name, -1)
            if fd >= 0:
                os.close(fd)


# --- The confinement of a fork


def _check(spec: Spec) -> None:
    """Refuse a description that a fork can't have.

    Raises:
        SpecError: with the reason.
    """
    shared = [kind for kind in ("user", "pid", "mount") if getattr(spec.namespaces, kind) != "new"]
    if shared:
        raise SpecError(f"{shared[0]} namespace: it must be new for containers of forked interpreters")
    if spec.rootfs.upper is not None:
        raise SpecError("rootfs: several containers can't share an upper directory; remove it")
    confinement = spec.confinement
    if confinement.notifies:
        raise SpecError("seccomp: a fork has no supervisor for a filter with notifications")
    if confinement.landlock is not None or confinement.writes_proc or not confinement.no_new_privs:
        raise SpecError(
            "confinement: a fork can't have landlock, apparmor, selinux, oom_score_adj, nor be without no_new_privs"
        )


def _entered(container: Container, entered: list[Kind], given: list[int]) -> list[str]:
    """Return what a fork enters, in order, and add the descriptors to a list.

    Control groups come first and the mount namespace last, because earlier steps may need the old root.
    """
    group_files(container, given)
    pid = container.pid
    words = ["group"] * len(given)
    for kind in entered:
        # By pid, which stays that of its init until someone waits for it: the pidfd is checked afterwards.
        given.append(os.open(f"/proc/{pid}/ns/{kind.file}", os.O_RDONLY | os.O_CLOEXEC))
        words.append(kind.value)
    signal.pidfd_send_signal(container.fileno(), 0)
    return words


def _kinds_entered(spec: Spec) -> list[Kind]:
    """Return the kinds of a container's own namespaces, the mount namespace last."""
    own = [
        kind
        for kind in Kind
        if kind is not Kind.USER and (spec.namespaces[kind] == "new" or hasattr(spec.namespaces[kind], "take"))
    ]
    return sorted(own, key=lambda kind: kind is Kind.MOUNT)


def group_files(container: Container, opened: list[int]) -> None:
    """Open the files by which a single-threaded process joins the container's groups: it writes ``0`` to each."""
    group = container.cgroup
    if group is None:
        return
    old = [(fd, "tasks") for fd in group.join_directories()]  # moves one thread, without waiting
    new = [] if group.directory_fd is None else [(group.directory_fd, "cgroup.procs")]
    for directory, name in (*old, *new):
        opened.append(os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory))


def confinement_of(command: Command, *, sets_groups: bool) -> list[Operation]:
    """Return the system calls by which a process inside becomes a command, without the exec."""
    confinement = command.confinement
    keep = command.user.uid != 0 and bool(confinement.capabilities.permitted)
    return [
        *confinement.before_user(keep=keep),
        *steps.credentials(command.user, may_set_groups=sets_groups),
        # With its final user. No magic link leads outside, because a fork has no directory of the caller open.
        calls.call("chdir", os.fsencode(command.cwd), target=command.cwd),
        calls.call("umask", command.umask),
        *confinement.after_user(),
        *confinement.labels_and_landlock(),
        *steps.limits_and_priority(command),
        # As after an exec: the change of user has made /proc/self inaccessible.
        calls.prctl("let it see itself", k.PR_SET_DUMPABLE, 1),
        *confinement.last(),
    ]


def _encoded(step: Operation) -> tuple[Any, ...]:
    """Return an operation as data that :func:`ast.literal_eval` reads."""
    if step.step not in (k.STEP_CALL, k.STEP_CLOSE):
        raise SpecError(f"{step.describe()}: not a system call, so a fork can't perform it")
    call = -1 if step.step == k.STEP_CLOSE else step.call
    result = "" if step.result is None else step.result.name
    arguments = [_argument(each, step) for each in step.args]
    return step.describe(), call, arguments, result, list(step.tolerate), step.skip, step.leap


def _argument(value: object, step: Operation) -> tuple[str, Any]:
    if isinstance(value, Slot):
        return "slot", value.name
    if isinstance(value, int):
        return "number", int(value)
    if isinstance(value, bytes):
        return "bytes", value
    if isinstance(value, Block):
        return "block", (value.content, [(at, *_argument(each, step)) for at, each in value.patches])
    raise SpecError(f"{step.describe()}: a fork does not have this argument")

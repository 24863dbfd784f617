"""Containers: their life from the start to the end, and what is run in them."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from typing import IO, TYPE_CHECKING, Any, Final, Self

import attrs

from containerkit import _native, assembly, rootfs
from containerkit._native import constants as k
from containerkit.assembly import JOIN_PREFIX, MAP_BYTES, UPPER_FD, Host, Mode
from containerkit.command import Command, User
from containerkit.engine import Program
from containerkit.errors import ContainerError, SpecError, StateError
from containerkit.idmap import RANGE, IdMapping, IdRange, lease, mapping_text
from containerkit.namespace import Kind, Namespace
from containerkit.process import OUTPUT_LIMIT_BYTES, PIPE, CompletedProcess, Process, Streams
from containerkit.rootfs import Change, RootFS
from containerkit.spec import CONFINEMENT, Spec, build
from containerkit.staging import Staging, staging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType

    from containerkit._native.outcome import Outcome
    from containerkit.files import Files

__all__ = ["Container", "Timings", "run"]

_PROGRAMS_KEPT: Final = 256
_COMMAND_FIELDS: Final = (
    frozenset(field.name for field in attrs.fields(Command)) - {"argv", "terminal", "confinement"} | CONFINEMENT
)


@attrs.frozen(kw_only=True)
class Timings:
    """How long the phases of a start took, in microseconds.

    Attributes:
        plan_us: describing and planning, in Python.
        clone_us: the first process, up to its release of the second.
        setup_us: from there until the command (or init) had been exec'd.
        total_us: all of it.
    """

    plan_us: float
    clone_us: float
    setup_us: float
    total_us: float


class _Programs:
    """Compiled plans, the most recently used ones."""

    def __init__(self) -> None:
        self.kept: dict[Any, Program] = {}
        self.lock = threading.Lock()

    def get(self, key: Any, make: Callable[[], Program]) -> Program:
        with self.lock:
            program = self.kept.pop(key, None)
        if program is None:
            program = make()
        with self.lock:
            self.kept[key] = program
            while len(self.kept) > _PROGRAMS_KEPT:
                del self.kept[next(iter(self.kept))]
        return program


_programs = _Programs()
_owner: tuple[int, int] = (0, -1)


def _after_fork() -> None:
    _programs.lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def _own_pidfd() -> int:
    """Return a pidfd of this process, by which inits notice its end."""
    global _owner  # noqa: PLW0603 - one for a process; a forked child opens its own
    pid = os.getpid()
    if _owner[0] != pid:
        _owner = pid, os.pidfd_open(pid)
    return _owner[1]


@attrs.define(eq=False)
class _Ground:
    """What a start stands on: the staging, the ids, the facts for the plan, and what is joined.

    ``release`` gives the ids back, once nothing runs under them any more.
    """

    spec: Spec
    staging: Staging
    host: Host
    mappings: tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]
    ids: IdRange | None
    joined: dict[str, Namespace]

    @classmethod
    def prepare(cls, spec: Spec) -> _Ground:
        resolved = rootfs.resolve(spec.rootfs)
        if resolved is not spec.rootfs:
            spec = attrs.evolve(spec, rootfs=resolved)
        _check_paths(resolved)
        folders = assembly.check_folders(spec.mounts)
        stage = staging(host=resolved.kind == "host")
        mappings, ids = _map_ids(spec, stage)
        count = sum(mapping.count for mapping in mappings[0]) or 2**32 - 1
        sets_groups = stage.privileged or len(stage.mappings[1]) > 1
        host = Host(
            privileged=stage.privileged, programs=stage.programs, ids=count, folders=folders, sets_groups=sets_groups
        )
        return cls(spec, stage, host, mappings, ids, {kind.value: handle for kind, handle in spec.namespaces.open().items()})

    @property
    def uid(self) -> int:
        """The uid outside of root inside."""
        return next((m.outside for m in self.mappings[0] if m.inside == 0), 0)

    def inputs(self) -> dict[str, int]:
        joined = {JOIN_PREFIX + kind: handle.fileno() for kind, handle in self.joined.items()}
        return {**self.staging.inputs(), **joined, "owner": _own_pidfd(), "image": _native.init_image()}

    def blocks(self) -> dict[str, bytes]:
        uid, gid = (mapping_text(mapping).rjust(MAP_BYTES) for mapping in self.mappings)
        if len(uid) > MAP_BYTES or len(gid) > MAP_BYTES:
            raise SpecError(f"id mappings: their text is longer than the {MAP_BYTES} bytes that the kernel surely takes")
        return {"uid_map": uid, "gid_map": gid}

    def start(self, mode: Mode, argv: Sequence[bytes], envp: Sequence[bytes], inputs: Mapping[str, int]) -> Outcome:
        shape = mode if mode.command is None else attrs.evolve(mode, command=mode.command.shape)
        key = (self.spec, self.host, shape)
        program = _programs.get(key, lambda: Program(assembly.start_plan(self.spec, self.host, mode)))
        # CLONE_FILES lasts from stage 1 to stage 2 only; the caller's own table is not shared.
        return program.run({**self.inputs(), **inputs}, argv=argv, envp=envp, blocks=self.blocks())

    def release(self) -> None:
        if self.ids is not None:
            self.ids.release()
        for handle in self.joined.values():
            handle.close()


def _check_paths(resolved: RootFS) -> None:
    for path in (*resolved.lowers, *([resolved.upper] if resolved.upper else [])):
        if not os.path.isdir(path):
            raise SpecError(f"rootfs: {path} is not there, or no folder")
    if resolved.work is not None and not os.path.isdir(resolved.work):
        os.makedirs(resolved.work, mode=0o700)


def _map_ids(
    spec: Spec, stage: Staging
) -> tuple[tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]], IdRange | None]:
    if spec.namespaces.user != "new":
        return ((), ()), None
    if not stage.privileged:
        return _nested_mappings(spec, stage), None
    if spec.uid_mappings is not None and spec.gid_mappings is not None:
        return (spec.uid_mappings, spec.gid_mappings), None
    ids = lease()
    mapping = (IdMapping(0, ids.base, RANGE),)
    return (mapping, mapping), ids


def _nested_mappings(spec: Spec, stage: Staging) -> tuple[tuple[IdMapping, ...], tuple[IdMapping, ...]]:
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


def _wrapper(
    text: bool | None, encoding: str | None, errors: str | None  # noqa: FBT001 - subprocess's own arguments
) -> Callable[[IO[bytes]], IO[Any]] | None:
    if not (text or encoding or errors):
        return None
    from io import TextIOWrapper

    return lambda file: TextIOWrapper(file, encoding=encoding or "utf-8", errors=errors, write_through=True)


class Container:
    """A Linux container as a context manager: it runs from ``with`` (or :meth:`start`) to its end.

    ::

        with Container() as c:
            done = c.run(["python3", "-c", "print(6 * 7)"], text=True)

    PID 1 is a tiny init; each ``run`` and ``popen`` is a process of its own beside it, any number at a time, from any
    thread. When the process that made the container ends, however it ends, the container is dead at once.

    Args:
        rootfs: what is seen as ``/`` (default ``RootFS.host()``).
        mounts: more mounts, in their order.
        namespaces: which of the eight kinds are new, joined or inherited (default: all new).
        hostname, domainname: names of the uts namespace (defaults ``"container"``, none).
        uid_mappings, gid_mappings: ids of the user namespace (default: a range of 65,536 of its own; for an ordinary
            user all ids that it is granted, or its own as root).
        time_offsets: what is added to the clocks of the time namespace.
        sysctls: kernel parameters of the new namespaces, by name.
        masked_paths, readonly_paths: what is hidden and what can't be written to.
        id: a name of its own: letters, digits, ``_.-``, at most 64 (default: random).

    Raises:
        SpecError: a value that can't be; nothing was made.

    Source: namespaces(7), OCI runtime-spec config-linux.md.
    """

    def __init__(self, rootfs: RootFS | None = None, *, id: str | None = None, **fields: Any) -> None:  # noqa: A002
        if rootfs is not None:
            fields["rootfs"] = rootfs
        self.spec = build(fields)
        self.id = _checked_id(id) if id is not None else os.urandom(6).hex()
        self.timings: Timings | None = None
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._ground: _Ground | None = None
        self._init: Process | None = None
        self._processes: set[Process] = set()
        self._time: Namespace | None = None
        self._stopped = False

    # --- Life

    def start(self) -> Self:
        """Start it.

        Returns:
            The container itself.

        Raises:
            StateError: it was started before; a used container is not used again.
            SetupError: an operation failed; nothing is left behind.
            SpecError: something that the description names is not there.
        """
        with self._lock:
            if self._ground is not None or self._stopped:
                raise StateError(f"{self!r}: it was started before; make another")
            began = time.perf_counter()
            ground = _Ground.prepare(self.spec)
            try:
                planned = time.perf_counter()
                outcome = ground.start(Mode(command=None, reads_upper=True), (), (), {})
            except BaseException:
                ground.release()
                raise
            self._ground = ground
            self._init = _init_process(outcome)
            self.timings = _timings(began, planned, outcome)
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all that runs in it and wait until it is gone; harmless when repeated, or in a forked child."""
        if os.getpid() != self._owner:
            return
        with self._lock:
            init, self._stopped = self._init, True
            if init is None or self._ground is None:
                return
            init.kill()
            # The kernel lets PID 1 go only when all who joined its namespace are reaped.
            for process in list(self._processes):
                process.kill() if not self._has_init else None
                process.wait()
            init.wait()
            self._init = None
            self._ground.release()
            if self._time is not None:
                self._time.close()

    @property
    def _has_init(self) -> bool:
        return bool(self.spec.namespaces.pid == "new")

    def __del__(self) -> None:
        if getattr(self, "_init", None) is not None and self._owner == os.getpid():
            warnings.warn(f"{self!r} was never stopped: use 'with', or stop()", ResourceWarning, stacklevel=2)
            self.stop()

    def __repr__(self) -> str:
        pid = f", pid {self.pid}" if self._init is not None else ""
        return f"<Container {self.id} {self.state}{pid}>"

    @property
    def state(self) -> str:
        """``"created"`` before its start, ``"running"``, ``"stopped"``."""
        if self._stopped:
            return "stopped"
        if self._init is None:
            return "created"
        return "running" if self._init.poll() is None else "stopped"

    @property
    def pid(self) -> int:
        """The pid of its init, outside.

        Raises:
            StateError: it does not run.
        """
        return self._running().pid

    def _running(self) -> Process:
        init = self._init
        if init is None or self._stopped:
            raise StateError(f"{self!r}: it does not run")
        return init

    def namespace(self, kind: Kind | str) -> Namespace:
        """Return a handle on one of its namespaces, for others to join.

        Raises:
            StateError: it does not run.
        """
        return Namespace.from_pidfd(self._running().fileno(), kind)

    # --- Running things

    def popen(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        pty: bool | tuple[int, int] = False,
        **command: Any,
    ) -> Process:
        """Start a command in the container.

        Args:
            argv: its words; the first is looked up inside.
            stdin, stdout, stderr: as in :class:`subprocess.Popen`: None shares the caller's.
            text, encoding, errors: as in subprocess; text is UTF-8 unless an encoding is given.
            pty: give it a terminal, True or (rows, columns); ``stdin`` and ``stdout`` of the result are then its other
                side, and the three arguments of these names are not used.
            command: fields of :class:`containerkit.command.Command`: ``env``, ``cwd``, ``user`` (``"uid:gid"``, or
                names as the container's /etc/passwd and /etc/group know them), ``umask``, ``rlimits``, ``nice``,
                ``pass_fds``.

        Raises:
            StateError: the container does not run.
            SpecError: a value that can't be.
            SetupError: an operation failed; for a program that is not there its ``errno`` is ENOENT.
        """
        init = self._running()
        ground = self._ground
        assert ground is not None
        wanted = self._command(argv, command, terminal=bool(pty))
        streams = self._terminal(pty, wanted.user) if pty else Streams.open(stdin, stdout, stderr, ground.uid)
        try:
            key = (wanted.shape, ground.host, self.kinds)
            program = _programs.get(
                key, lambda: Program(assembly.exec_plan(wanted, ground.host, self.kinds))
            )
            outcome = program.run(
                {"target": init.fileno(), **self._time_inputs(), **streams.inputs()},
                argv=wanted.argv,
                envp=wanted.envp,
                flags=_native.HIDE_MEMORY,
            )
        except BaseException:
            streams.close()
            raise
        streams.close_child()
        process = Process(
            wanted, outcome.pid, outcome.pidfd, streams, text=_wrapper(text, encoding, errors), finish=self._forget
        )
        self._processes.add(process)
        return process

    exec = popen

    def run(
        self,
        argv: Sequence[str | bytes | os.PathLike[str]],
        *,
        input: Any = None,  # noqa: A002 - subprocess's own argument
        timeout: float | None = None,
        check: bool = False,
        capture_output: bool = True,
        output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
        **more: Any,
    ) -> CompletedProcess:
        """Run a command in the container and wait for its end.

        Args:
            argv: its words.
            input: what it finds on stdin (default: nothing, /dev/null).
            timeout: seconds; when they are over the command is killed.
            check: raise when its status is not 0.
            capture_output: keep what it writes, unless ``stdout`` or ``stderr`` say otherwise (default True).
            output_limit_bytes: kill it when it writes more than this (default 256 MiB; None for no limit).
            more: as for :meth:`popen`.

        Raises:
            ContainerTimeout: with what it had written by then.
            ExitError: with ``check``; :class:`OutOfMemory` when the memory limit was why.
        """
        _check_numbers(timeout, output_limit_bytes)
        began = time.perf_counter()
        process = self.popen(argv, **_run_streams(input, more, capture=capture_output))
        return _complete(process, began, input, timeout, output_limit_bytes, check=check)

    def _command(self, argv: Any, fields: dict[str, Any], *, terminal: bool) -> Command:
        user = fields.get("user")
        parsed = User() if user is None else User.parse(user)
        if parsed is None:
            parsed = self.files.user(str(user))
        return _describe(self.spec, argv, {**fields, "user": parsed}, terminal=terminal)

    def _terminal(self, size: bool | tuple[int, int], user: User) -> Streams:  # noqa: FBT001 - popen's own argument
        master, slave = self.files.open_terminal(size if isinstance(size, tuple) else None, user)
        return Streams.of_terminal(master, slave)

    def _time_inputs(self) -> dict[str, int]:
        """A time namespace can't be joined by way of the pidfd: it has a descriptor, opened when first needed."""
        if self.spec.namespaces.time == "host":
            return {}
        if self._time is None:
            self._time = self.namespace(Kind.TIME)
        return {"time": self._time.fileno(), "image": _native.init_image()}

    def _forget(self, process: Process) -> None:
        self._processes.discard(process)

    @property
    def kinds(self) -> int:
        """The kinds of namespace in which the container differs from the caller."""
        flags = 0
        for kind in Kind:
            if getattr(self.spec.namespaces, kind.value) != "host":
                flags |= kind.flag
        return flags

    # --- Files

    def fileno(self) -> int:
        """Return a pidfd of its init: readable once the container has ended.

        Raises:
            StateError: it does not run.
        """
        return self._running().fileno()

    def program(self, key: Any, make: Callable[[], Program]) -> Program:
        """Return a compiled plan for this container, from the cache where it is there."""
        ground = self._standing()
        return _programs.get((ground.host, self.kinds, key), make)

    def staging_inputs(self) -> dict[str, int]:
        """Return the slots of the staging that it was started from."""
        return self._standing().staging.inputs()

    @property
    def shown_programs(self) -> tuple[str, ...]:
        """The folders of the host that ``RootFS.host()`` shows in it."""
        return self._standing().host.programs

    @property
    def sets_groups(self) -> bool:
        """Whether supplementary groups can be set inside."""
        return self._standing().host.sets_groups

    def _standing(self) -> _Ground:
        if self._ground is None:
            raise StateError(f"{self!r}: it does not run")
        return self._ground

    @property
    def files(self) -> Files:
        """The files inside: read, write, put, get; see :class:`containerkit.files.Files`."""
        from containerkit.files import Files

        return Files(self)

    def changes(self) -> Iterator[Change]:
        """Yield what the container has added, changed and deleted below its root, read from the writable layer.

        Raises:
            StateError: it does not run, or its root has no writable layer of its own.
        """
        from containerkit.files import changed

        yield from changed(self)


def run(
    argv: Sequence[str | bytes | os.PathLike[str]],
    *,
    input: Any = None,  # noqa: A002 - subprocess's own argument
    timeout: float | None = None,
    check: bool = False,
    capture_output: bool = True,
    output_limit_bytes: int | None = OUTPUT_LIMIT_BYTES,
    init: bool = True,
    **more: Any,
) -> CompletedProcess:
    """Run one command in a container of its own and wait for its end: the fastest way.

    Args:
        argv: the words; the first is looked up inside.
        input, timeout, check, capture_output, output_limit_bytes: as for :meth:`Container.run`.
        init: run it as the child of a tiny PID 1 that reaps what it leaves (default True); otherwise it is PID 1 itself,
            which starts sooner, but the kernel then keeps every signal from it for which it has no handler.
        more: arguments of :class:`Container` and of :meth:`Container.run`.

    Raises:
        SpecError: a value that can't be; nothing was made.
        SetupError: an operation failed; nothing is left behind.
        ContainerTimeout: with what it had written by then.
        ExitError: with ``check``.
    """
    _check_numbers(timeout, output_limit_bytes)
    began = time.perf_counter()
    streams_and_command, description = _sort_arguments(more)
    user = streams_and_command.get("user")
    if (isinstance(user, str) and User.parse(user) is None) or streams_and_command.get("pty"):
        with Container(**description) as container:  # names and terminals are found inside
            return container.run(
                argv,
                input=input,
                timeout=timeout,
                check=check,
                capture_output=capture_output,
                output_limit_bytes=output_limit_bytes,
                **streams_and_command,
            )
    process = _start_one(argv, build(description), _run_streams(input, streams_and_command, capture=capture_output), init)
    return _complete(process, began, input, timeout, output_limit_bytes, check=check)


_STREAM_ARGUMENTS: Final = frozenset({"stdin", "stdout", "stderr", "text", "encoding", "errors", "pty"})


def _sort_arguments(arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    command = {n: v for n, v in arguments.items() if n in _COMMAND_FIELDS - CONFINEMENT or n in _STREAM_ARGUMENTS}
    return command, {n: v for n, v in arguments.items() if n not in command}


def _start_one(argv: Any, spec: Spec, options: dict[str, Any], init: bool) -> Process:  # noqa: FBT001 - run's own
    command = _describe(spec, argv, {name: value for name, value in options.items() if name in _COMMAND_FIELDS})
    ground = _Ground.prepare(spec)
    streams: Streams | None = None
    report = (-1, -1)
    has_init = init and spec.namespaces.pid == "new"
    try:
        streams = Streams.open(options.get("stdin"), options.get("stdout"), options.get("stderr"), ground.uid)
        if has_init:
            report = os.pipe2(os.O_CLOEXEC)
        outcome = ground.start(
            Mode(init=has_init, command=command),
            command.argv,
            command.envp,
            {**streams.inputs(), "report": report[1]},
        )
    except BaseException:
        ground.release()
        if streams is not None:
            streams.close()
        for fd in report:
            if fd >= 0:
                os.close(fd)
        raise
    streams.close_child()
    if has_init:
        os.close(report[1])
    wrap = _wrapper(options.get("text"), options.get("encoding"), options.get("errors"))
    return Process(
        command,
        outcome.pid,
        outcome.pidfd,
        streams,
        report=report[0],
        text=wrap,
        finish=lambda _: ground.release(),
    )


def _describe(spec: Spec, argv: Any, fields: Mapping[str, Any], *, terminal: bool = False) -> Command:
    """Return the command of keyword arguments, held as the container says unless they say otherwise.

    Raises:
        SpecError: an unknown name among them.
    """
    if unknown := sorted(set(fields) - _COMMAND_FIELDS):
        raise SpecError(f"unknown argument {unknown[0]!r}; there are {', '.join(sorted(_COMMAND_FIELDS))}")
    own = {name: value for name, value in fields.items() if name not in CONFINEMENT and name != "user"}
    changed = {name: value for name, value in fields.items() if name in CONFINEMENT}
    confinement = attrs.evolve(spec.confinement, **changed) if changed else spec.confinement
    user = fields.get("user")
    parsed = User() if user is None else User.parse(user)
    if parsed is None:
        raise SpecError(f"user {user!r}: a name can only be looked up in a container that runs")
    return Command(argv=argv, user=parsed, terminal=terminal, confinement=confinement, **own)


def _run_streams(given: Any, more: dict[str, Any], *, capture: bool) -> dict[str, Any]:
    from subprocess import DEVNULL

    options = dict(more)
    if given is not None:
        if options.get("stdin") is not None:
            raise SpecError("input and stdin can't both be given")
        options["stdin"] = PIPE
    options.setdefault("stdin", DEVNULL)
    if capture:
        options.setdefault("stdout", PIPE)
        options.setdefault("stderr", PIPE)
    return options


def _complete(
    process: Process, began: float, given: Any, timeout: float | None, limit: int | None, *, check: bool
) -> CompletedProcess:
    try:
        stdout, stderr = process.communicate(given, timeout, limit_bytes=limit)
    except BaseException:
        process.close()
        raise
    assert process.returncode is not None
    assert process.usage is not None
    done = CompletedProcess(
        args=process.args,
        returncode=process.returncode,
        stdout=stdout,
        stderr=stderr,
        usage=process.usage,
        cause=process.cause or "exit",
        duration_s=time.perf_counter() - began,
    )
    if check:
        done.check_returncode()
    return done


def _check_numbers(timeout: float | None, limit: int | None) -> None:
    if timeout is not None and (isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or timeout < 0):
        raise SpecError(f"timeout: {timeout!r} is not a number of seconds")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
        raise SpecError(f"output_limit_bytes: {limit!r} is not a number of bytes")


_ID_CHARACTERS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")


def _checked_id(value: str) -> str:
    good = isinstance(value, str) and 0 < len(value) <= 64 and set(value) <= _ID_CHARACTERS
    if not good or value[0] in ".-":
        raise SpecError(f"id: {value!r} must be 1 to 64 letters, digits, '_', '.', '-', and begin with none of '.-'")
    return value


def _init_process(outcome: Outcome) -> Process:
    return Process(Command(argv=["init"]), outcome.pid, outcome.pidfd, Streams([], [None, None, None], []))


def _timings(began: float, planned: float, outcome: Outcome) -> Timings:
    times = outcome.times_ns
    return Timings(
        plan_us=(planned - began) * 1e6,
        clone_us=(times[1] - times[0]) / 1e3,
        setup_us=(times[3] - times[1]) / 1e3,
        total_us=(time.perf_counter() - began) * 1e6,
    )

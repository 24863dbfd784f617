"""Measures commands, one by one or several at a time on separate processors."""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from containerkit.cgroup import Limits
from containerkit.container.lifecycle import Container
from containerkit.descriptors import Closing
from containerkit.errors import SpecError, StateError
from containerkit.measure.meters import Meters
from containerkit.measure.result import Measurement, Termination
from containerkit.measure.topology import Allotment, Topology
from containerkit.process.process import DEVNULL, STDOUT, Process
from containerkit.spec.words import host_path

if TYPE_CHECKING:
    from typing import Unpack

    from containerkit.cgroup import CGroup
    from containerkit.options import ListOf, Stream, TemplateOptions, Word

__all__ = ["RunExecutor"]

_SHORTEST_LOOK_S: Final = 0.001
_LONGEST_LOOK_S: Final = 1.0
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC


class RunExecutor(Closing):
    """Measures commands, each in a fresh container. Any number of threads can use it.

    ::

        with RunExecutor(cores=1, runs=2) as executor:
            done = executor.execute_run(["./solver"], cpu_limit_s=900, memory_limit="4G")

    Args:
        cores: the number of processors that are allotted to each run (default: no allotment).
        runs: the number of runs that can execute at the same time; others wait (default: as many as the processors
            allow).
        siblings: use all processors of a physical core for a run, see :meth:`Topology.allot` (default False).
        topology: the processors (default: those of this machine).

    Raises:
        SpecError: invalid values, or not enough processors.
    """

    def __init__(
        self,
        *,
        cores: int | None = None,
        runs: int | None = None,
        siblings: bool = False,
        topology: Topology | None = None,
    ) -> None:
        self._seats: queue.SimpleQueue[Allotment | None] | None = None
        self.allotments: tuple[Allotment, ...] = ()
        if cores is not None:
            self.allotments = (topology or Topology.read()).allot(cores, runs, siblings=siblings)
            self._seats = queue.SimpleQueue()
            for allotment in self.allotments:
                self._seats.put(allotment)
        elif runs is not None:
            raise SpecError("runs: it needs cores=, the number of processors of each run")
        self._lock = threading.Lock()
        self._stopped = False
        self._waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def execute_run(
        self,
        argv: ListOf[Word],
        *,
        output: str | os.PathLike[str] | Stream = DEVNULL,
        error_output: str | os.PathLike[str] | Stream = STDOUT,
        stdin: Stream = DEVNULL,
        cpu_limit_s: float | None = None,
        soft_cpu_limit_s: float | None = None,
        wall_limit_s: float | None = None,
        memory_limit: int | str | None = None,
        cores: ListOf[int] | None = None,
        memory_nodes: ListOf[int] | None = None,
        env: dict[str, str] | None = None,
        extra_env: dict[str, str] | None = None,
        cwd: str | None = None,
        **options: Unpack[TemplateOptions],
    ) -> Measurement:
        """Run a command until it ends or reaches a limit, and return its measurements.

        Args:
            argv: the program and its arguments.
            output: the file that its stdout goes to, or as ``stdout`` of ``popen`` (default: nowhere).
            error_output: the same for stderr (default: where stdout goes).
            stdin: as for ``popen`` (default /dev/null).
            cpu_limit_s: the processor time after which all processes are killed, in seconds (default: no limit).
            soft_cpu_limit_s: the processor time after which the command gets SIGTERM, in seconds (default: none).
            wall_limit_s: the time after which all processes are killed, in seconds (default: no limit).
            memory_limit: in bytes, or for example ``"4G"``. Swap is disabled (default: no limit).
            cores, memory_nodes: processors and memory nodes instead of the allotted ones.
            env, extra_env, cwd: as for ``popen``.
            options: further arguments for the container, see :class:`containerkit.options.TemplateOptions`.

        Raises:
            SpecError: an invalid value.
            StateError: it was closed or stopped.
            UnsupportedError: no control group is available.
            SetupError: the start failed.
        """
        bounds = {"cpu_limit_s": cpu_limit_s, "soft_cpu_limit_s": soft_cpu_limit_s, "wall_limit_s": wall_limit_s}
        for name, value in bounds.items():
            _check_seconds(name, value)
        command = {"env": env, "extra_env": extra_env, "cwd": cwd}
        with ExitStack() as stack:
            allotment = self._seat(stack, cores, memory_nodes)
            fields = _limited(options, allotment, memory_limit)
            streams = {"stdin": stdin, "stdout": _opened(stack, output), "stderr": _opened(stack, error_output)}
            container = stack.enter_context(Container(**fields))
            given = {name: value for name, value in command.items() if value is not None}
            run = _Run(container, argv, {**streams, **given}, allotment)
            return run.see_out(bounds, self._waker, self._is_stopped)

    def _is_stopped(self) -> bool:
        return self._stopped

    def _seat(self, stack: ExitStack, cores: ListOf[int] | None, memory_nodes: ListOf[int] | None) -> Allotment | None:
        self._check_open()
        own: Allotment | None = None
        if self._seats is not None:
            seats = self._seats
            own = seats.get()
            stack.callback(seats.put, own)
            self._check_open()
        if cores is None and memory_nodes is None:
            return own
        former = own or Allotment(cores=(), memory_nodes=())
        return Allotment(
            cores=former.cores if cores is None else tuple(cores),
            memory_nodes=former.memory_nodes if memory_nodes is None else tuple(memory_nodes),
        )

    def _check_open(self) -> None:
        if self._stopped or self._waker < 0:
            raise StateError("measure: the executor was stopped; create another")

    def stop(self) -> None:
        """End all runs, with the termination ``"killed"``, and refuse more. Can be called from a signal handler."""
        self._stopped = True
        if self._waker >= 0:
            os.eventfd_write(self._waker, 1)

    def close(self) -> None:
        """Close it after all runs have ended. May be called twice."""
        with self._lock:
            waker, self._waker = self._waker, -1
        if waker >= 0:
            os.close(waker)


class _Run:
    """One run, from its start to its end."""

    def __init__(
        self, container: Container, argv: ListOf[Word], given: dict[str, Any], allotment: Allotment | None
    ) -> None:
        group = container.cgroup
        assert group is not None
        self._group: CGroup = group
        self._container = container
        self._allotment = allotment
        self._meters = Meters(group, () if allotment is None else allotment.cores)
        self._before_us = group.usage().cpu_us or 0
        self._started_at = datetime.now(UTC).isoformat()
        self._began = time.monotonic()
        self._process: Process[Any] = container.popen(argv, **given)

    def see_out(self, bounds: dict[str, float | None], waker: int, is_stopped: Any) -> Measurement:
        """Wait for the end, or kill it at a limit."""
        try:
            termination = self._await(bounds, waker, is_stopped)
            if termination in ("cputime", "walltime", "killed"):
                self._kill()
            self._process.wait()
            wall_s = time.monotonic() - self._began
            return self._measured(termination, wall_s)
        except BaseException:
            self._kill()
            raise
        finally:
            self._process.close()

    def _kill(self) -> None:
        self._container.kill()

    def _await(self, bounds: dict[str, float | None], waker: int, is_stopped: Any) -> Termination | None:
        hard, soft, wall = bounds["cpu_limit_s"], bounds["soft_cpu_limit_s"], bounds["wall_limit_s"]
        warned: Termination | None = None
        processors = len(self._allotment.cores) if self._allotment and self._allotment.cores else os.cpu_count() or 1
        poll = select.poll()
        poll.register(self._process.fileno(), select.POLLIN)
        poll.register(waker, select.POLLIN)
        while True:
            waits = [_LONGEST_LOOK_S]
            if wall is not None:
                waits.append(self._began + wall - time.monotonic())
            used = self._cpu_s()
            # The shortest time in which the rest can be used up.
            waits += [(limit - used) / processors for limit in (hard, None if warned else soft) if limit is not None]
            pause = max(min(waits), _SHORTEST_LOOK_S)
            if self._process.poll() is not None or any(fd != waker for fd, _ in poll.poll(pause * 1000 + 0.5)):
                return warned
            self._meters.look()
            if is_stopped():
                return "killed"
            used = self._cpu_s()
            if hard is not None and used >= hard:
                return "cputime"
            if wall is not None and time.monotonic() - self._began >= wall:
                return "walltime"
            if soft is not None and used >= soft and warned is None:
                warned = "cputime-soft"
                self._process.send_signal(signal.SIGTERM)

    def _cpu_s(self) -> float:
        return ((self._group.usage().cpu_us or 0) - self._before_us) / 1e6

    def _measured(self, termination: Termination | None, wall_s: float) -> Measurement:
        process, usage = self._process, self._process.usage
        assert process.returncode is not None
        assert usage is not None
        group = usage.group
        killed_for_memory = process.cause == "oom" or bool(group is not None and group.oom_kills)
        if termination in (None, "cputime-soft") and killed_for_memory:
            termination = "memory"
        counted = None if group is None else group.cpu_us
        cpu_us = counted if counted is not None else usage.user_us + usage.system_us
        return Measurement(
            argv=tuple(process.args),
            returncode=process.returncode,
            termination=termination,
            started_at=self._started_at,
            wall_s=wall_s,
            cpu_s=cpu_us / 1e6,
            cpu_user_s=usage.user_us / 1e6,
            cpu_system_s=usage.system_us / 1e6,
            memory_peak_bytes=usage.memory_peak_bytes,
            oom_kills=None if group is None else group.oom_kills,
            pids_peak=None if group is None else group.pids_peak,
            io_read_bytes=None if group is None else group.io_read_bytes,
            io_write_bytes=None if group is None else group.io_write_bytes,
            throttled_s=None if usage.throttled_us is None else usage.throttled_us / 1e6,
            cores=None if self._allotment is None else self._allotment.cores,
            memory_nodes=None if self._allotment is None else self._allotment.memory_nodes,
            **self._meters.read(),
        )


def _limited(options: TemplateOptions, allotment: Allotment | None, memory: int | str | None) -> dict[str, Any]:
    """Return the arguments of the container, with the allotment and the memory limit in its limits."""
    import attrs

    fields: dict[str, Any] = dict(options)
    limits = fields.get("limits") or Limits()
    more: dict[str, Any] = {}
    if memory is not None:
        more["memory"] = memory
    elif limits.memory is None:  # memory is counted even without a limit
        more |= {"memory": "max", "swap": "max"} if limits.swap is None else {"memory": "max"}
    if limits.pids is None:
        more["pids"] = "max"
    if allotment is not None:
        more |= {"cpuset_cpus": allotment.cores} if allotment.cores else {}
        more |= {"cpuset_mems": allotment.memory_nodes} if allotment.memory_nodes else {}
    fields["limits"] = attrs.evolve(limits, **more)
    return fields


def _opened(stack: ExitStack, output: Any) -> Any:
    if not isinstance(output, (str, os.PathLike)):
        return output
    fd = os.open(host_path(output, "output"), _CREATE, 0o666)
    stack.callback(os.close, fd)
    return fd


def _check_seconds(name: str, value: float | None) -> None:
    if value is None:
        return
    # "not >" also refuses NaN
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise SpecError(f"{name}: {value!r:.100} is not a number of seconds over 0")

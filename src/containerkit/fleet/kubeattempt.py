"""One Job: reads the state of its pod, and reports it to the fleet."""

from __future__ import annotations

import contextlib
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import ContainerError, ContainerTimeout, ImageError
from containerkit.fleet.engine import Attempt, Outcome
from containerkit.fleet.errors import FleetError, NodeLost
from containerkit.fleet.kubeapi import APIError
from containerkit.fleet.kubejob import TASK
from containerkit.process.process import OUTPUT_LIMIT_BYTES
from containerkit.process.result import CompletedProcess
from containerkit.process.stdio import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.fleet.engine import Task, Watcher
    from containerkit.fleet.kubernetes import KubernetesEngine
    from containerkit.process.result import Cause

__all__ = ["KubeAttempt"]

_FORCE_AFTER_S: Final = 3.0
_IMAGE: Final = frozenset({"ErrImageNeverPull", "ImagePullBackOff", "InvalidImageName"})
_REFUSED: Final = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_NOT_STARTED: Final = frozenset({"ContainerCannotRun", "StartError"})
_MISSING_S: Final = 30.0
"""The time in seconds after which a Job counts as lost if its pod has disappeared."""


_UNREACHABLE_S: Final = 30.0
"""The time in seconds that a node has to confirm the removal of a pod, after the pod's own grace period."""

_LATE_S: Final = 30.0
"""The time in seconds that the cluster has to end a Job after its deadline, and to remove one that has ended."""


def _disrupted(pod: dict[str, Any]) -> bool:
    """Return whether a pod was ended from outside: by its removal, an eviction, or a drain of its node.

    A whole pod has a reason only if its node or a controller ended it, such as "Evicted" or "NodeShutdown".
    """
    status = pod.get("status", {})
    conditions = status.get("conditions", ())
    targeted = any(each["type"] == "DisruptionTarget" and each["status"] == "True" for each in conditions)
    ended = status.get("phase") == "Failed" and status.get("reason")
    return targeted or bool(ended) or "deletionTimestamp" in pod["metadata"]


class KubeAttempt(Attempt):
    """An attempt that is a Job.

    Attributes:
        task: its task.
        made: the time at which its Job was created, on the monotonic clock.
        deadline_s: the number of seconds from then after which the cluster ends it.
    """

    def __init__(self, engine: KubernetesEngine, task: Task, watcher: Watcher) -> None:
        self.task = task
        self.made = time.monotonic()
        self.deadline_s = engine.settings.lease_s
        self._engine = engine
        self._watcher = watcher
        self._lock = threading.Lock()
        self._pod = ""
        self._node = ""
        self._began = 0.0
        self._over = False
        self._stopped = False
        self._doomed: threading.Timer | None = None
        self._force = threading.Event()
        self._timer: threading.Timer | None = None
        self._lines = 0
        self._listening: threading.Thread | None = None

    # --- Events

    def look(self, pod: dict[str, Any], *, deleted: bool = False) -> None:
        """Handle the state of its pod."""
        status = pod.get("status", {})
        states = status.get("containerStatuses") or [{}]
        state = states[0].get("state", {})
        self._pod = pod["metadata"]["name"]
        ended = state.get("terminated")
        if "running" in state or ended:
            self._notice_start(pod["spec"].get("nodeName", ""))
        self._stopped = self._stopped or bool(ended) or deleted
        waiting = state.get("waiting", {})
        if ended and (ended.get("exitCode") == 0 or not _disrupted(pod)):
            self._claim(lambda: self._result(ended))
        elif ended:
            self._lose("its pod was removed while it ran", status)
        elif waiting.get("reason") in _IMAGE | _REFUSED:
            kind = ImageError if waiting["reason"] in _IMAGE else FleetError
            told = f"task {self.task.id}: {waiting['reason']}: {waiting.get('message', '')}"
            self._claim(lambda: self._refused(kind(told)))
        elif deleted or status.get("phase") == "Failed":
            self._lose(f"its pod {'was removed' if deleted else 'failed'}", status)
        elif "deletionTimestamp" in pod["metadata"]:
            self._doom(pod["metadata"].get("deletionGracePeriodSeconds", 0))

    def _doom(self, grace_s: float) -> None:
        """Count it as lost if its pod is being removed but does not end, because its node is unreachable."""
        with self._lock:
            if self._doomed is not None or self._over:
                return
            self._doomed = threading.Timer(grace_s + _UNREACHABLE_S, self._give_up)
            self._doomed.daemon = True
            self._doomed.start()

    def _give_up(self) -> None:
        self._force.set()  # otherwise its Job would stay until the node is back
        self._lose("its pod was removed, and its node does not confirm the end of it")

    def _lose(self, what: str, status: dict[str, Any] | None = None) -> None:
        told = ": ".join(filter(None, (what, (status or {}).get("reason"), (status or {}).get("message"))))
        self._claim(lambda: self._lost(told))

    def pod_missing(self) -> None:
        """Handle the absence of its pod, which may have existed before."""
        if self._pod:
            self._lose("its pod is gone")

    def look_at_job(self, job: dict[str, Any] | None) -> None:
        """Handle the state of its Job. A failure without a pod is only visible here."""
        if time.monotonic() < self.made + _MISSING_S:
            return
        if job is None:
            self._lose("its Job is gone")
            return
        for each in job.get("status", {}).get("conditions", ()):
            if each["type"] == "Failed" and each["status"] == "True" and not self._pod:
                self._lose("its Job failed", each)

    @property
    def over(self) -> bool:
        """Return whether its outcome is known and its Job is removed."""
        return self._over

    @property
    def _ended_by_cluster(self) -> bool:
        """Return whether its deadline passed long enough ago that the cluster has ended it."""
        return time.monotonic() > self.made + self.deadline_s + self._engine.settings.grace_s + _LATE_S

    def unanswered(self, error: APIError) -> None:
        """Handle an API server that does not answer about its Job, which has a deadline for this case."""
        if self._ended_by_cluster:
            self._lose(f"the API server did not answer until its deadline: {error}")

    def _notice_start(self, node: str) -> None:
        with self._lock:
            if self._began or self._over:
                return
            self._began = time.monotonic()
            self._node = node
            if self.task.timeout is not None:
                self._timer = threading.Timer(self.task.timeout, self._claim, [self._late])
                self._timer.daemon = True
                self._timer.start()
        self._watcher.began(node)
        if self.task.listened:
            self._listening = threading.Thread(target=self._listen, name="containerkit kubernetes log", daemon=True)
            self._listening.start()

    # --- The end, which happens once, in a thread of the engine

    def _claim(self, end: Callable[[], Outcome]) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            for timer in (self._timer, self._doomed):
                if timer is not None:
                    timer.cancel()
        self._engine.workers.submit(self._end, end)

    def _end(self, end: Callable[[], Outcome]) -> None:
        try:
            outcome = end()
        except Exception as error:  # noqa: BLE001 - raised again with the result
            outcome = Outcome(error=error, lost=isinstance(error, APIError))
        stopped = self._stopped
        if stopped:  # nothing of it is running: its Job can go later
            self._watcher.ended(outcome)
        self._remove()
        self._engine.forget(self)
        if not stopped:
            self._watcher.ended(outcome)

    def abandon(self) -> None:
        """Remove its Job, which may exist although the request for it failed."""
        self._over = self._stopped = True
        self._remove()

    def _result(self, ended: dict[str, Any]) -> Outcome:
        if ended.get("reason") in _NOT_STARTED:
            raise FleetError(f"task {self.task.id}: {ended.get('message') or ended['reason']}")
        code = int(ended["exitCode"])
        memory = ended.get("reason") == "OOMKilled"
        status = -9 if memory else -int(ended["signal"]) if ended.get("signal") else code
        cause: Cause = "oom" if memory else "exit" if status >= 0 else "signal"
        limit = self.task.options.get("output_limit_bytes") or OUTPUT_LIMIT_BYTES
        content = self._log(limitBytes=limit + 1)
        self._hear_rest(content)
        if len(content) > limit:
            cause = "output"
        done = self._completed(status, content[:limit], cause)
        if self.task.options.get("check"):
            try:
                done.check_returncode()
            except ContainerError as error:
                return Outcome(result=done, error=error, run_s=self._ran())
        return Outcome(result=done, run_s=self._ran())

    def _completed(self, status: int, content: bytes, cause: Cause) -> CompletedProcess[Any]:
        options = self.task.options
        text = Text.of(options.get("text"), options.get("encoding"), options.get("errors"))
        written = content if text is None else text.decode(content, cut=cause == "output")
        argv = [each if isinstance(each, str) else each.decode("utf-8", "surrogateescape") for each in self.task.argv]
        return CompletedProcess(
            args=argv, returncode=status, stdout=written, cause=cause, duration_s=self._ran() or 0.0
        )  # fmt: skip

    def _late(self) -> Outcome:
        timeout = self.task.timeout or 0.0
        content = b""
        with contextlib.suppress(APIError):
            content = self._log(limitBytes=OUTPUT_LIMIT_BYTES)
        done = self._completed(-9, content, "timeout")
        return Outcome(result=done, error=ContainerTimeout(done.args, timeout, done.stdout, None, done))

    def _lost(self, told: str) -> Outcome:
        where = f" on {self._node}" if self._node else ""
        return Outcome(error=NodeLost(f"task {self.task.id}{where}: {told}", self._node), lost=True)

    @staticmethod
    def _refused(error: ContainerError) -> Outcome:
        return Outcome(error=error)

    def cancel(self, *, force: bool = False) -> None:
        """End it; see :meth:`Attempt.cancel`."""
        if force:
            self._force.set()
        self._claim(lambda: Outcome(error=FleetError(f"task {self.task.id}: cancelled")))

    def _remove(self) -> None:
        """Remove the Job, and return when nothing of it is running any more.

        Problems are waited for: after its deadline the cluster ends it, and later removes it. The Job of a pod that
        has already ended is left to the cluster after half a minute.
        """
        engine, began, pause = self._engine, time.monotonic(), 0.05
        asked = forced = False
        while True:
            try:
                if not asked:
                    engine.delete(self.task.id)
                    asked = True
                engine.api.request("GET", f"{engine.jobs}/{self.task.id}")
                if self._force.is_set() and not forced and time.monotonic() > began + _FORCE_AFTER_S:
                    where, query = engine.pods, {"labelSelector": f"{TASK}={self.task.id}"}
                    engine.api.request("DELETE", where, {"gracePeriodSeconds": 0}, **query)
                    forced = True
            except APIError as error:
                if error.status == HTTPStatus.NOT_FOUND:
                    return
                pause = max(pause, 0.5)
            if self._ended_by_cluster or (self._stopped and time.monotonic() > began + _LATE_S):
                return
            time.sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def _ran(self) -> float | None:
        return time.monotonic() - self._began if self._began else None

    # --- The log

    def _log(self, **query: Any) -> bytes:
        return self._engine.api.content("GET", f"{self._engine.pods}/{self._pod}/log", container="task", **query)

    def _listen(self) -> None:
        """Pass lines on while they are written. A lost connection is restored."""
        path = f"{self._engine.pods}/{self._pod}/log"
        while not self._over:
            try:
                lines = self._engine.api.lines(path, read_s=24 * 3600.0, container="task", follow="true")
                for number, line in enumerate(lines):
                    if self._over and not line.endswith(b"\n"):
                        return
                    if number == self._lines and line.endswith(b"\n"):
                        self._lines += 1
                        self._watcher.wrote("stdout", line[:-1])
            except APIError:
                pass
            time.sleep(0.2)

    def _hear_rest(self, content: bytes) -> None:
        """Pass on the lines that were not passed on yet."""
        if self._listening is None:
            return
        self._listening.join(10)
        rest = content.split(b"\n")
        if not rest[-1]:
            rest.pop()
        for line in rest[self._lines :]:
            self._watcher.wrote("stdout", line)

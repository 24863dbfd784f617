"""Kubernetes as the engine of a fleet. Each attempt at a task is a Job."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final

from containerkit.errors import SpecError
from containerkit.fleet.engine import Engine, Node
from containerkit.fleet.errors import FleetError
from containerkit.fleet.kubeapi import APIError, KubeAPI, UnreachableError
from containerkit.fleet.kubeattempt import KubeAttempt
from containerkit.fleet.kubejob import FLEET, TASK, Settings, job_of, quantity
from containerkit.meanings import explained
from containerkit.spec.words import sequence

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.fleet.engine import Task, Watcher
    from containerkit.options import ListOf

__all__ = ["KubernetesEngine"]

_WATCH_S: Final = 240
_PAUSE_S: Final = 1.0
_MINIMUM_LEASE_S: Final = 15
_WORKERS: Final = 16


@explained
class KubernetesEngine(Engine):
    """Tasks are Jobs, whose pods are their containers. The cluster's runtime starts them on any free node.

    A pod has one log for both streams: ``result.stdout`` contains both, ``result.stderr`` is None. A node keeps the
    last part of a log, 10 MiB by default; its kubelet sets the size.

    Args:
        namespace: the namespace of the Jobs (default ``"default"``).
        options: see :class:`containerkit.fleet.options.KubernetesOptions`.

    Raises:
        UnsupportedError: Kubernetes' client is not installed.
        SpecError: an invalid value, or no credentials.

    Side effects, until :meth:`close`: two threads, and one for each task with listeners. The constructor makes no
    request.
    """

    name: ClassVar[str] = "kubernetes"

    def __init__(
        self,
        namespace: str = "default",
        *,
        kubeconfig: str | None = None,
        context: str | None = None,
        runtime_class: str | None = "containerkit",
        user_namespaces: bool = True,
        lease_s: int = 600,
        grace_s: int = 5,
        node_selector: Mapping[str, str] | None = None,
        service_account: str | None = None,
        pull_secrets: ListOf[str] = (),
    ) -> None:
        for what, value, least in (("lease_s", lease_s, _MINIMUM_LEASE_S), ("grace_s", grace_s, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise SpecError(f"Fleet.kubernetes: {what}: {value!r:.100} is not an integer of at least {least}")
        if not namespace or not isinstance(namespace, str):
            raise SpecError(f"Fleet.kubernetes: namespace: {namespace!r:.100} is not the name of a namespace")
        self.settings = Settings(
            namespace=namespace,
            runtime_class=runtime_class,
            user_namespaces=user_namespaces,
            lease_s=lease_s,
            grace_s=grace_s,
            node_selector=dict(node_selector or {}),
            service_account=service_account,
            pull_secrets=tuple(sequence(pull_secrets, "pull_secrets")),
        )
        self.id = f"ck-{secrets.token_hex(6)}"
        self.api = KubeAPI(kubeconfig, context)
        self.jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
        self.pods = f"/api/v1/namespaces/{namespace}/pods"
        self.workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="containerkit kubernetes")
        self._attempts: dict[str, KubeAttempt] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._threads: list[threading.Thread] = []

    def submit(self, task: Task, watcher: Watcher) -> KubeAttempt:
        """Create a Job; see :meth:`Engine.submit`."""
        job = job_of(task, self.id, self.settings)
        attempt = KubeAttempt(self, task, watcher)
        with self._lock:
            if self._closing.is_set():
                raise FleetError(f"task {task.id}: the fleet is closed")
            self._attempts[task.id] = attempt
            if not self._threads:
                self._begin(self._watch, self._keep)
        try:
            self._create(task, job)
        except BaseException as error:
            self.forget(attempt)
            cause = error.__cause__
            if isinstance(cause, APIError) and cause.passing and not isinstance(cause, UnreachableError):
                self.workers.submit(attempt.abandon)  # perhaps it was created, and only the answers were lost
            raise
        return attempt

    def _begin(self, *functions: Any) -> None:
        for function in functions:
            thread = threading.Thread(target=function, name="containerkit kubernetes", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _create(self, task: Task, job: dict[str, Any]) -> None:
        try:
            made = self.api.request("POST", self.jobs, job)
        except APIError as error:
            if error.reason != "AlreadyExists":  # of an earlier request, whose answer was lost
                raise FleetError(f"task {task.id}: {self.name} does not accept it: {error}") from error
            made = self.api.request("GET", f"{self.jobs}/{task.id}")
            if made["metadata"].get("labels", {}).get(FLEET) != self.id:
                raise FleetError(f"task {task.id}: a Job with this name exists, which is not of this fleet") from error
        pod = made["spec"]["template"]["spec"]
        for name, wanted, hint in (("hostUsers", self.settings.user_namespaces, "user_namespaces=False"),):
            if wanted and pod.get(name) is not False:
                self.delete(task.id)
                raise SpecError(
                    f"Fleet.kubernetes: the cluster ignored {name!r}: it has no user namespaces (hint: {hint} creates "
                    "pods without; root in them is root of the node)"
                )

    def delete(self, name: str) -> None:
        """Remove a Job, and return when nothing of its pods is running any more. Does nothing if it does not exist.

        Raises:
            APIError: it can't be removed.
        """
        try:
            self.api.request("DELETE", f"{self.jobs}/{name}", {"propagationPolicy": "Foreground"})
        except APIError as error:
            if error.status != 404:
                raise

    def forget(self, attempt: KubeAttempt) -> None:
        """Stop watching an attempt."""
        with self._lock:
            self._attempts.pop(attempt.task.id, None)

    # --- In separate threads

    def _watch(self) -> None:
        """Report the state of pods to their attempts, until it is closed."""
        version = ""
        while not self._closing.is_set():
            try:
                if not version:
                    version = self._list()
                version = self._follow(version)
            except (APIError, ValueError, KeyError):  # lost, or too old: list everything again
                version = ""
                self._closing.wait(_PAUSE_S)

    def _list(self) -> str:
        """Report the state of all pods to their attempts, and return the version of the list."""
        found = self.api.request("GET", self.pods, labelSelector=f"{FLEET}={self.id}")
        seen = set()
        for pod in found["items"]:
            seen.add(pod["metadata"]["labels"].get(TASK))
            self._tell(pod)
        with self._lock:
            missing = [each for name, each in self._attempts.items() if name not in seen]
        for attempt in missing:
            attempt.pod_missing()
        return str(found["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> str:
        import json

        query: dict[str, Any] = {
            "labelSelector": f"{FLEET}={self.id}", "resourceVersion": version, "timeoutSeconds": _WATCH_S,
            "allowWatchBookmarks": "true", "watch": "true",
        }  # fmt: skip
        for line in self.api.lines(self.pods, read_s=_WATCH_S + 30, **query):
            event = json.loads(line)
            found = event["object"]
            if event["type"] == "ERROR":
                raise APIError(f"watch: {found.get('message')}", found.get("code", 0))
            version = str(found["metadata"]["resourceVersion"])
            if event["type"] == "DELETED":
                self._tell(found, deleted=True)
            elif event["type"] != "BOOKMARK":
                self._tell(found)
            if self._closing.is_set():
                break
        return version

    def _tell(self, pod: dict[str, Any], *, deleted: bool = False) -> None:
        with self._lock:
            attempt = self._attempts.get(pod["metadata"]["labels"].get(TASK, ""))
        if attempt is not None:
            attempt.look(pod, deleted=deleted)

    def _keep(self) -> None:
        """Extend the deadlines of Jobs, and find those that have failed without a pod."""
        pause = self.settings.lease_s / 3
        while not self._closing.wait(min(pause, 20)):
            with self._lock:
                attempts = dict(self._attempts)
            if not attempts:
                continue
            try:
                found = self.api.request("GET", self.jobs, labelSelector=f"{FLEET}={self.id}")
            except APIError as error:
                for attempt in attempts.values():
                    attempt.unanswered(error)
                continue  # retry next time
            jobs = {each["metadata"]["name"]: each for each in found["items"]}
            for name, attempt in attempts.items():
                attempt.look_at_job(jobs.get(name))
                if name in jobs and not attempt.over:
                    self._put_off(attempt, pause)

    def _put_off(self, attempt: KubeAttempt, pause: float) -> None:
        age = time.monotonic() - attempt.made
        if age + 2 * pause <= attempt.deadline_s:
            return
        deadline = round(age) + self.settings.lease_s
        try:
            patch = {"spec": {"activeDeadlineSeconds": deadline}}
            self.api.request("PATCH", f"{self.jobs}/{attempt.task.id}", patch)
        except APIError:
            return  # retry next time, twice before the deadline
        attempt.deadline_s = deadline

    # --- The whole

    def nodes(self) -> tuple[Node, ...]:
        """Return the schedulable nodes, or none if the credentials do not permit listing them."""
        try:
            found = self.api.request("GET", "/api/v1/nodes")
        except APIError as error:
            if error.status == 403:
                return ()
            raise
        nodes = []
        for each in found["items"]:
            conditions = {one["type"]: one["status"] for one in each["status"].get("conditions", ())}
            labels = each["metadata"].get("labels", {})
            if each["spec"].get("unschedulable") or conditions.get("Ready") != "True":
                continue
            if any(labels.get(key) != value for key, value in self.settings.node_selector.items()):
                continue
            has = each["status"]["allocatable"]
            cpus, memory = quantity(has["cpu"]), int(quantity(has["memory"]))
            nodes.append(Node(name=each["metadata"]["name"], cpus=cpus, memory_bytes=memory))
        return tuple(sorted(nodes, key=lambda node: node.name))

    def close(self) -> None:
        """Release the cluster; see :meth:`Engine.close`."""
        self._closing.set()
        self.workers.shutdown(wait=True)
        self.api.close()

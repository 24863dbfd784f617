"""Kubernetes as the engine of a fleet: each attempt at a task is a Job."""

from __future__ import annotations

import secrets
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, ClassVar, Final

from containerkit.errors import SpecError
from containerkit.fleet.engine import Engine, Node
from containerkit.fleet.errors import FleetError
from containerkit.fleet.kubeapi import APIError, KubeAPI
from containerkit.fleet.kubeattempt import KubeAttempt
from containerkit.fleet.kubejob import FLEET, TASK, Settings, job_of, quantity
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


class KubernetesEngine(Engine):
    """Tasks are Jobs, whose pods are their containers: the cluster's runtime starts them, on any node that has room.

    A pod has one log for both streams: ``result.stdout`` holds both, ``result.stderr`` is None. What a node keeps of a
    log is a setting of its kubelet, 10 MiB by default; of more than that only the end is found.

    Args:
        namespace: where the Jobs are made (default ``"default"``).
        kubeconfig: the file with the credentials (default: ``$KUBECONFIG`` or ``~/.kube/config``, in a pod its service
            account).
        context: the context in it (default: the current one).
        runtime_class: the RuntimeClass of the pods (default ``"containerkit"``); None for the cluster's default.
        user_namespaces: whether each pod has a user namespace of its own (default True). A cluster that does not know
            of them is refused.
        lease_s: after how many seconds a Job ends whose driver has gone without a word (default 600, at least 15).
            While the driver is there, it puts that off.
        grace_s: how many seconds a command has between SIGTERM and SIGKILL when it is ended (default 5).
        node_selector: labels that a node must have (default: none).
        service_account: the service account of the pods, whose token they see (default: none, and no token).
        pull_secrets: names of the secrets that images are pulled with (default: none).

    Raises:
        UnsupportedError: Kubernetes' client is not installed.
        SpecError: a value that can't be, or no credentials.

    Side effects, until :meth:`close`: two threads, and one for each task that is listened to. No request is made here.
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
                raise SpecError(f"Fleet.kubernetes: {what}: {value!r:.100} is not a whole number from {least} on")
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
        """Make a Job; see :meth:`Engine.submit`."""
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
        except BaseException:
            self.forget(attempt)
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
            if error.status != 409:  # an earlier try arrived, whose answer was lost: nobody else has this name
                raise FleetError(f"task {task.id}: {self.name} does not take it: {error}") from error
            made = self.api.request("GET", f"{self.jobs}/{task.id}")
        pod = made["spec"]["template"]["spec"]
        for name, wanted, hint in (("hostUsers", self.settings.user_namespaces, "user_namespaces=False"),):
            if wanted and pod.get(name) is not False:
                self.delete(task.id)
                raise SpecError(
                    f"Fleet.kubernetes: the cluster dropped {name!r}: it has no user namespaces (hint: {hint} gives "
                    "pods without; root in them is root of the node)"
                )

    def delete(self, name: str) -> None:
        """Have a Job removed, once nothing of its pods runs any more; harmless if there is none.

        Raises:
            APIError: it can't be.
        """
        try:
            self.api.request("DELETE", f"{self.jobs}/{name}", {"propagationPolicy": "Foreground"})
        except APIError as error:
            if error.status != 404:
                raise

    def forget(self, attempt: KubeAttempt) -> None:
        """Look after an attempt no longer."""
        with self._lock:
            self._attempts.pop(attempt.task.id, None)

    # --- In threads of its own

    def _watch(self) -> None:
        """Tell attempts of their pods, as long as there may be any."""
        version = ""
        while not self._closing.is_set():
            try:
                if not version:
                    version = self._list()
                version = self._follow(version)
            except (APIError, ValueError, KeyError):  # lost, or too old: all is listed again
                version = ""
                self._closing.wait(_PAUSE_S)

    def _list(self) -> str:
        """Tell attempts of all pods there are, and return the version of the list."""
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
        """Put off the deadlines of Jobs, and look for those that have failed without a pod."""
        pause = self.settings.lease_s / 3
        while not self._closing.wait(min(pause, 20)):
            with self._lock:
                attempts = dict(self._attempts)
            if not attempts:
                continue
            try:
                found = self.api.request("GET", self.jobs, labelSelector=f"{FLEET}={self.id}")
            except APIError:
                continue  # the next time
            jobs = {each["metadata"]["name"]: each for each in found["items"]}
            for name, attempt in attempts.items():
                attempt.look_at_job(jobs.get(name))
                if name in jobs:
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
            return  # the next time, of which there are two before the deadline
        attempt.deadline_s = deadline

    # --- The whole

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes that take pods; none if the credentials do not allow to list them."""
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
        """Let go of the cluster; see :meth:`Engine.close`."""
        self._closing.set()
        self.workers.shutdown(wait=True)
        self.api.close()

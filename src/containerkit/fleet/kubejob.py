"""Translates a task to a Job of Kubernetes, and the state of its pod to an outcome."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.cgroup import Limits
    from containerkit.fleet.engine import Task

__all__ = ["FLEET", "TASK", "Settings", "job_of", "quantity", "refuse"]

FLEET: Final = "containerkit/fleet"
TASK: Final = "containerkit/task"
"""Labels of the Jobs and pods of a fleet, and of a task."""

_MEMBERS: Final = frozenset({
    "capture_output", "check", "cwd", "encoding", "env", "errors", "output_limit_bytes", "text", "user",
})  # fmt: skip
_KEEP_S: Final = 300
"""The time for which the cluster keeps a finished Job that was not removed, in seconds."""


@attrs.frozen(kw_only=True)
class Settings:
    """The settings of the pods of a fleet; see :class:`containerkit.fleet.kubernetes.KubernetesEngine`."""

    namespace: str
    runtime_class: str | None
    user_namespaces: bool
    lease_s: int
    grace_s: int
    node_selector: Mapping[str, str]
    service_account: str | None
    pull_secrets: tuple[str, ...]


def refuse(task: Task) -> None:
    """Refuse a task that a pod of Kubernetes can't perform exactly.

    Raises:
        SpecError: with the argument and an alternative.
    """

    def no(what: str, hint: str) -> SpecError:
        return SpecError(f"Fleet.kubernetes: {what} (hint: {hint})")

    if task.image is None:
        raise no("rootfs: a pod needs the root filesystem of an image", "use image= instead of rootfs=")
    if task.given:
        raise no("input: a Job has no stdin", "pass it in argv or env, or let the command download it")
    if "stderr" in task.listened:
        raise no("on_stderr: a pod has one log for both streams", "use on_stdout, which receives both")
    if task.options.get("capture_output", True) is not True:
        raise no("capture_output=False: output of a pod always goes to its log", "omit it")
    unknown = sorted(set(task.options) - _MEMBERS)
    if unknown:
        raise no(f"{', '.join(unknown)}: not supported for pods", "omit it, or use the engines Ray or Dask")
    user = task.options.get("user")
    ids = user if isinstance(user, tuple) else (user,)
    if user is not None and not all(isinstance(each, int) for each in ids):
        raise no(f"user: {user!r:.100}: pods need ids, not names", "pass a number, or a pair of numbers")
    cwd = task.options.get("cwd")
    if cwd is not None and not os.path.isabs(os.fspath(cwd)):
        raise no(f"cwd: {cwd!r:.100}: pods need absolute paths", "start it with '/'")
    if task.limits is not None:
        limits, none = task.limits, type(task.limits)()
        names = {each.name for each in attrs.fields(type(limits))} - {"cpus", "memory"}
        given = sorted(name for name in names if getattr(limits, name) != getattr(none, name))
        if given:
            raise no(f"limits: {', '.join(given)}: not supported for pods", "use only cpus and memory")


def _plain(text: str | bytes | os.PathLike[str], what: str) -> str:
    """Return a text for the API, with each ``$`` doubled, because Kubernetes expands ``$(NAME)``."""
    try:
        found = os.fspath(text) if not isinstance(text, bytes) else text.decode()
        found.encode()
    except UnicodeError:
        raise SpecError(f"Fleet.kubernetes: {what}: {text!r:.100} is not UTF-8, which the API requires") from None
    return str(found).replace("$", "$$")


def _resources(limits: Limits | None) -> dict[str, Any]:
    found: dict[str, str] = {}
    if limits is not None and limits.cpus is not None:
        if isinstance(limits.cpus, str):
            raise SpecError("Fleet.kubernetes: limits: cpus='max' is not an amount (hint: omit it)")
        found["cpu"] = f"{round(limits.cpus * 1000)}m"
    if limits is not None and limits.memory is not None:
        if not isinstance(limits.memory, int):
            raise SpecError("Fleet.kubernetes: limits: memory='max' is not an amount (hint: omit it)")
        found["memory"] = str(limits.memory)
    return {"limits": found, "requests": dict(found)} if found else {}


def _container(task: Task) -> dict[str, Any]:
    options = task.options
    security: dict[str, Any] = {"allowPrivilegeEscalation": False, "privileged": False}
    user = options.get("user")
    if isinstance(user, tuple):
        security |= {"runAsUser": user[0], "runAsGroup": user[1]}
    elif user is not None:
        security["runAsUser"] = user
    found: dict[str, Any] = {
        "name": "task",
        "image": task.image,
        "command": [_plain(each, "argv") for each in task.argv],
        "securityContext": security,
        "terminationMessagePolicy": "File",
    }
    if options.get("env"):
        env = options["env"]
        found["env"] = [{"name": name, "value": _plain(value, f"env {name}")} for name, value in env.items()]
    if options.get("cwd") is not None:
        found["workingDir"] = os.fspath(options["cwd"])
    if resources := _resources(task.limits):
        found["resources"] = resources
    return found


def job_of(task: Task, fleet: str, settings: Settings) -> dict[str, Any]:
    """Return the Job of an attempt at a task: one pod that is started once.

    Raises:
        SpecError: a pod can't perform the task.

    Source: Kubernetes API, batch/v1 Job.
    """
    refuse(task)
    labels = {FLEET: fleet, TASK: task.id}
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "containers": [_container(task)],
        "automountServiceAccountToken": settings.service_account is not None,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": settings.grace_s,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
    }
    if settings.runtime_class is not None:
        pod["runtimeClassName"] = settings.runtime_class
    if settings.user_namespaces:
        pod["hostUsers"] = False
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.service_account is not None:
        pod["serviceAccountName"] = settings.service_account
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": task.id, "namespace": settings.namespace, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": settings.lease_s,
            "ttlSecondsAfterFinished": _KEEP_S,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


_UNITS: Final = {
    "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60,
}  # fmt: skip


def quantity(text: str) -> float:
    """Return a quantity of the API as a number. Source: Kubernetes API, resource.Quantity."""
    for unit in sorted(_UNITS, key=len, reverse=True):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * _UNITS[unit]
    return float(text)

"""Plans of projects: the steps that bring a project into its described state, as a graph.

A plan is computed from a project and the running containers. It changes nothing;
:class:`containerkit.project.stack.Stack` performs it.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit.project import normal

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from containerkit.project.project import Project

    Action = Literal["image", "network", "volume", "wait", "create", "start", "restart", "stop", "close"]

__all__ = [
    "BESIDE",
    "Observed",
    "Plan",
    "Step",
    "down_plan",
    "fingerprint",
    "replica_names",
    "rolls_back",
    "up_plan",
    "without_starts",
]


BESIDE: Final = "beside the previous one"
"""The detail of a start whose container replaces one that runs until later in the plan."""


_SETTLED: Final = "200ms"
"""A replacement without a check must run so long before the previous container is stopped."""


@attrs.frozen
class Step:
    """One step.

    Attributes:
        action: what to do.
        target: the service, network, volume or container to do it to.
        after: the names of the steps that must be done before.
        detail: a note for people, or the condition of a wait.
    """

    action: Action
    target: str
    after: tuple[str, ...] = ()
    detail: str = ""
    service: str = ""

    @property
    def name(self) -> str:
        """The name by which other steps refer to it."""
        return f"{self.action} {self.target}{f' {self.detail}' if self.action == 'wait' else ''}"


@attrs.frozen
class Observed:
    """An existing container.

    Attributes:
        service: the name of its service.
        fingerprint: of the service when the container was created.
    """

    service: str
    fingerprint: str


@attrs.frozen
class Plan:
    """The steps, each after those that it needs. ``print(plan)`` shows them.

    Attributes:
        steps: in a valid sequential order.
    """

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        if not self.steps:
            return "nothing to do"
        numbers = {step.name: number for number, step in enumerate(self.steps, 1)}
        lines = []
        for number, step in enumerate(self.steps, 1):
            needed = ", ".join(str(numbers[each]) for each in step.after)
            detail = f"  {step.detail}" if step.detail else ""
            lines.append(f"{number:3}  {step.action:8} {step.target}{detail}{f'  (after {needed})' if needed else ''}")
        return "\n".join(lines)


def fingerprint(project: Project, service: str) -> str:
    """Return a value that changes if and only if a service's containers must be replaced."""
    keys = {key: value for key, value in project.model["services"][service].items() if key not in _NOT_OF_CONTAINERS}
    deploy = {key: value for key, value in keys.get("deploy", {}).items() if key in ("resources", "restart_policy")}
    used = {
        kind: {name: project.model.get(kind, {}).get(name) for name in names}
        for kind, names in normal.references(keys).items()
        if kind != "services"
    }
    others = [text.partition(":")[0] for text in keys.get("volumes_from", ())]
    shown = [project.model["services"][name].get("volumes") for name in others]
    text = json.dumps([{**keys, "deploy": deploy}, used, shown], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


_NOT_OF_CONTAINERS = frozenset({"scale", "profiles", "depends_on", "develop", "attach", "pull_policy"})


def replica_names(project: Project, service: str, count: int | None = None) -> list[str]:
    """Return the names of a service's containers."""
    described = project.services[service]
    if "container_name" in described.keys:
        return [described.keys["container_name"]][: described.scale if count is None else count]
    many = described.scale if count is None else count
    return [f"{project.name}-{service}-{number}" for number in range(1, many + 1)]


def up_plan(
    project: Project,
    observed: Mapping[str, Observed],
    *,
    open_networks: Collection[str] = (),
    services: Collection[str] | None = None,
    scale: Mapping[str, int] | None = None,
    deps: bool = True,
    recreate: Collection[str] = (),
    keep: bool = False,
    kept: Collection[str] = (),
    back: bool = False,
) -> Plan:
    """Return the plan that makes services run as described.

    Args:
        project: the project.
        observed: the running containers, by name.
        open_networks: the networks that are open.
        services: which services, with their dependencies (default: all; containers of removed services are stopped).
        scale: other numbers of containers, by service.
        deps: also start the dependencies of the services, and wait for them (default True).
        recreate: services whose containers are replaced even if they are unchanged.
        keep: keep containers whose description has changed (default False).
        kept: stopped containers that are started again as they are.
        back: the plan is a rollback, which follows ``rollback_config`` (default False).
    """
    planning = _Planning(project, observed, frozenset(open_networks), dict(scale or {}))
    planning.deps, planning.recreate, planning.keep, planning.back = deps, frozenset(recreate), keep, back
    planning.kept = frozenset(kept)
    return planning.up(services)


class _Planning:
    def __init__(
        self,
        project: Project,
        observed: Mapping[str, Observed],
        opened: frozenset[str],
        scale: dict[str, int],
    ) -> None:
        self._project, self._observed, self._opened = project, observed, opened
        self._scale = scale
        self.deps, self.keep, self.back = True, False, False
        self.recreate: frozenset[str] = frozenset()
        self.kept: frozenset[str] = frozenset()
        self._services: dict[str, dict[str, Any]] = project.model["services"]
        self._steps: dict[str, Step] = {}
        self._starts: dict[str, list[str]] = {}
        self._replaced: set[str] = set()  # services of which a running container is replaced
        self._renewed: set[str] = set()  # services whose first container is replaced

    def up(self, services: Collection[str] | None) -> Plan:
        chosen = [name for name in normal.order(self._services) if services is None or name in self._wanted(services)]
        if services is None:
            for name, each in self._observed.items():
                if each.service not in self._services:
                    self._add(Step("stop", name, detail="it is no longer in the project", service=each.service))
        for service in chosen:
            self._service(service)
        for service in normal.order(self._services):
            if service not in chosen:
                self._dependent(service)
        return Plan(tuple(self._steps.values()))

    def _wanted(self, services: Collection[str]) -> set[str]:
        found: set[str] = set()
        left = list(services)
        while left:
            name = left.pop()
            if name not in found and name in self._services:
                found.add(name)
                left += self._services[name].get("depends_on", ()) if self.deps else ()
        return found

    def _add(self, step: Step) -> str:
        self._steps.setdefault(step.name, step)
        return step.name

    def _service(self, service: str) -> None:
        keys, mark = self._services[service], fingerprint(self._project, service)
        names = replica_names(self._project, service, self._scale.get(service))
        there = {name: each for name, each in self._observed.items() if each.service == service}
        for name in there.keys() - set(names):
            self._add(Step("stop", name, detail="fewer containers are requested", service=service))
        again = service in self.recreate or self._shares_renewed(keys)
        differs = [name for name in names if name in there and (there[name].fingerprint != mark or again)]
        stale = [] if self.keep else differs
        fresh = [name for name in names if name not in there]
        self._starts[service] = []
        self._restart(service, keys, [name for name in names if name in there and name not in stale])
        if not stale and not fresh:
            return
        self._replaced |= {service} if stale else set()
        self._renewed |= {service} if names[0] in {*stale, *fresh} - self.kept else set()
        needed = [*self._resources(service, keys), *self._conditions(keys)]
        for name in fresh:
            self._starts[service].append(self._add(Step("start", name, tuple(needed), service=service)))
        self._replace(service, keys, stale, needed)

    def _dependent(self, service: str) -> None:
        """Plan a service that is not chosen, but depends on one that is replaced."""
        keys, running = self._services[service], [n for n, each in self._observed.items() if each.service == service]
        if running and self._shares_renewed(keys):
            self._starts[service] = []
            self._replace(service, keys, running, [*self._resources(service, keys), *self._conditions(keys)])
        else:
            self._restart(service, keys, running)

    def _shares_renewed(self, keys: Mapping[str, Any]) -> bool:
        """Return whether a service shares a namespace of a container that is gone."""
        others = (str(keys.get(key, "")) for key in normal.SHARED)
        return any(other.removeprefix("service:") in self._renewed for other in others if other.startswith("service:"))

    def _restart(self, service: str, keys: Mapping[str, Any], names: list[str]) -> None:
        """Restart containers that depend, with ``restart: true``, on a service of which containers are replaced."""
        needed = [name for name, how in keys.get("depends_on", {}).items() if how.get("restart")]
        if self._replaced.intersection(needed):
            after = (*self._conditions(keys), *(start for name in needed for start in self._starts.get(name, ())))
            for name in names:
                self._add(Step("restart", name, after, service=service))

    def _replace(self, service: str, keys: Mapping[str, Any], stale: list[str], needed: list[str]) -> None:
        """Replace containers, by default one at a time, so that the others stay available.

        With the order ``start-first`` the previous container runs until its replacement is ready.
        """
        how = keys.get("deploy", {}).get("rollback_config" if self.back else "update_config", {})
        together, first = how.get("parallelism", 1) or len(stale), how.get("order") == "start-first"
        before: tuple[str, ...] = ()
        for at in range(0, len(stale), together):
            group, is_last = stale[at : at + together], at + together >= len(stale)
            done: list[str] = []
            for name in group:
                after = (*needed, *before)
                if first:
                    done.append(self._add(Step("start", name, after, BESIDE, service)))
                else:
                    stopped = self._add(Step("stop", name, after, "its description has changed", service))
                    done.append(self._add(Step("start", name, (*needed, stopped), service=service)))
                self._starts[service].append(done[-1])
                if _is_checked(keys) and (first or not is_last):
                    done.append(self._add(Step("wait", name, (done[-1],), "service_healthy", service)))
                monitor = how.get("monitor", _SETTLED if first and not _is_checked(keys) else "")
                if monitor:
                    done.append(self._add(Step("wait", name, (done[-1],), f"running_for {monitor}", service)))
                if first:
                    done.append(self._add(Step("stop", name, (done[-1],), "its replacement runs", service)))
            if "delay" in how and not is_last:
                done = [self._add(Step("wait", group[-1], tuple(done), f"delay {how['delay']}", service))]
            before = tuple(done)

    def _resources(self, service: str, keys: Mapping[str, Any]) -> list[str]:
        used = normal.references(keys)
        mounted = [each.get("source") for each in keys.get("volumes", ()) if each["type"] == "image"]
        contexts = keys.get("build", {}).get("additional_contexts", {}).values()
        built = [
            self._image(other, ())
            for other, its in self._services.items()
            if other != service
            and "build" in its
            and (its.get("image", f"{self._project.name}-{other}") in mounted or f"service:{other}" in contexts)
        ]
        found = [self._image(service, tuple(built))]
        found += [self._add(Step("network", name)) for name in used["networks"] if name not in self._opened]
        return found + [self._add(Step("volume", name)) for name in used["volumes"]]

    def _image(self, service: str, after: tuple[str, ...]) -> str:
        detail = self._services[service].get("image", "built")
        return self._add(Step("image", service, after, detail=detail, service=service))

    def _conditions(self, keys: Mapping[str, Any]) -> list[str]:
        found: list[str] = []
        for other, how in keys.get("depends_on", {}).items() if self.deps else ():
            if other in self._services:
                started = tuple(self._starts.get(other, ()))
                if how["condition"] == "service_started":
                    found += started
                else:
                    found.append(self._add(Step("wait", other, started, how["condition"], other)))
        return found


def _is_checked(keys: Mapping[str, Any]) -> bool:
    return bool(keys.get("healthcheck", {}).get("test"))


def down_plan(project: Project, observed: Mapping[str, Observed], networks: Collection[str]) -> Plan:
    """Return the plan that stops everything: each service ends before its dependencies."""
    steps: list[Step] = []
    stops: dict[str, list[str]] = {}
    services = project.model["services"]
    order = normal.order(services)
    gone = sorted({each.service for each in observed.values()} - set(order))
    for service in (*reversed(order), *gone):
        users = [name for name, keys in services.items() if service in keys.get("depends_on", {})]
        after = tuple(stop for user in users for stop in stops.get(user, ()))
        for name, each in observed.items():
            if each.service == service:
                steps.append(Step("stop", name, after, service=service))
                stops.setdefault(service, []).append(steps[-1].name)
    every = tuple(step.name for step in steps)
    return Plan((*steps, *(Step("close", name, every) for name in networks)))


def rolls_back(project: Project, plan: Plan) -> bool:
    """Return whether the plan must be rolled back if it fails: a service that it replaces asks for that."""
    for step in plan.steps:
        deploy = project.model["services"].get(step.service, {}).get("deploy", {}) if step.action == "stop" else {}
        if deploy.get("update_config", {}).get("failure_action") == "rollback":
            return True
    return False


def without_starts(plan: Plan) -> Plan:
    """Return a plan that creates containers where another one would start them. Nothing is waited for."""
    kept = [step for step in plan.steps if step.action not in ("wait", "restart")]
    made = [attrs.evolve(step, action="create") if step.action == "start" else step for step in kept]
    names = {step.name for step in made}
    return Plan(tuple(attrs.evolve(step, after=tuple(each for each in step.after if each in names)) for step in made))

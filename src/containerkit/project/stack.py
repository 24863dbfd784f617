"""A running project: its containers, networks and volumes, held by this process."""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from containerkit.errors import ContainerError, SpecError, StateError
from containerkit.project import plan as plans
from containerkit.project import realize, support, volumes
from containerkit.project.images import image_of
from containerkit.project.journal import Happening, Journal, LogLine
from containerkit.project.oneoffs import OneOffs
from containerkit.project.replica import Replica

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType

    from containerkit.image import Image
    from containerkit.network import LiveNetwork
    from containerkit.project.plan import Plan, Step
    from containerkit.project.project import Project

__all__ = ["Stack"]


class Stack(OneOffs):
    """A running project. Made by :meth:`containerkit.project.Project.up`.

    Its containers die with this process, however it ends. Named volumes stay.

    Args:
        project: the project.
        log: called with each step that is done.
        build: build images even if they exist (default False).
        pull: when images are pulled: ``"missing"`` (default), ``"always"`` or ``"never"``.

    Attributes:
        project: the project as it runs.
    """

    def __init__(
        self,
        project: Project,
        *,
        log: Callable[[str], object] = lambda _: None,
        build: bool = False,
        pull: str | None = None,
    ) -> None:
        self.project = project
        self._log, self._build, self._pull = log, build, pull
        self._replicas: dict[str, Replica] = {}
        self._previous: dict[str, Replica] = {}  # those whose replacements already run, until they are stopped
        self._networks: dict[str, LiveNetwork] = {}
        self._images: dict[str, Image] = {}
        self._one_offs: dict[str, Replica] = {}
        self._created: dict[str, str] = {}
        self._journal = Journal[LogLine]()
        self._happened = Journal[Happening]()
        self._changed = threading.Condition()
        self._acting = threading.RLock()
        self._ended = False

    def __repr__(self) -> str:
        return f"<Stack {self.project.name}: {len(self._replicas)} containers>"

    # --- What is there

    def containers(self, service: str | None = None) -> list[Replica]:
        """Return the containers of a service, or all, by name."""
        every = sorted(self._replicas.values(), key=lambda each: each.name)
        return [each for each in every if service is None or each.service == service]

    def __getitem__(self, service: str) -> Replica:
        """Return the first container of a service.

        Raises:
            KeyError: it has none.
        """
        found = self.containers(service)
        if not found:
            raise KeyError(service)
        return found[0]

    def observed(self, *, completed: bool = False) -> dict[str, plans.Observed]:
        """Return the running containers, for a plan.

        Args:
            completed: also those that have ended with status 0 (default False).
        """
        return {
            each.name: plans.Observed(each.service, each.fingerprint)
            for each in self._replicas.values()
            if each.status != "exited" or (completed and not each.exit_code and not each.was_stopped)
        }

    @property
    def created(self) -> dict[str, str]:
        """The containers that were created and never started, by name, each with its service."""
        return dict(self._created)

    def port(self, service: str, target: int, protocol: str = "tcp", index: int = 1) -> tuple[str, int]:
        """Return the address and port of the host on which a port of a service is published.

        Raises:
            StateError: it is not published.
        """
        from containerkit.network.later import published_of

        found = self.containers(service)
        for each in published_of(found[index - 1].container) if len(found) >= index else ():
            if each.port.container_port == target and each.port.protocol == protocol:
                return each.port.host, each.host_port
        raise StateError(f"{service}: port {target}/{protocol} is not published")

    def check_names(self, services: Collection[str]) -> None:
        """Refuse names that no service has.

        Raises:
            SpecError: no such service.
        """
        for name in services:
            if name not in self.project.model["services"]:
                known = ", ".join(self.project.model["services"])
                raise SpecError(f"no service {name!r:.60}; the services are {known or 'none'}")

    # --- Changing it

    def apply(
        self,
        project: Project | None = None,
        *,
        services: Collection[str] | None = None,
        scale: Mapping[str, int] | None = None,
        deps: bool = True,
        recreate: bool | Collection[str] = False,
        keep: bool = False,
        create: bool = False,
    ) -> Plan:
        """Make it as a project describes: start missing containers, replace changed ones, stop surplus ones.

        Args:
            project: the project (default: its present one).
            services: which services, with their dependencies (default: all).
            scale: other numbers of containers, by service.
            deps: also start the dependencies of the services (default True).
            recreate: also replace unchanged containers: those of the selected services (True), or those of the
                named services (default False).
            keep: keep containers whose description has changed (default False).
            create: prepare images, networks and volumes, and stop what is surplus or changed, but start nothing: the
                next call does (default False).

        Returns:
            The plan that was performed.

        Raises:
            SpecError: the project uses something that is not supported; nothing was changed.
            ContainerError: a step failed. Containers that were started before it keep running.
        """
        wanted = project or self.project
        support.unsupported(wanted)
        with self._acting:
            if self._ended:
                raise StateError(f"{self!r}: it is down")
            before, self.project = self.project, wanted
            self.check_names(services or ())
            again = (services or wanted.model["services"]) if recreate is True else recreate or ()
            anew = {*again, *(() if keep else self._changed_services())}
            kept = {each.name for each in self.containers() if each.is_kept and each.service not in anew}
            plan = plans.up_plan(
                wanted, self.observed(completed=scale is not None), open_networks=self._networks, services=services,
                scale=scale, deps=deps, recreate=again, keep=keep, kept=kept,
            )  # fmt: skip
            plan = plans.without_starts(plan) if create else plan
            self._end_kept(wanted.model["services"])
            try:
                self._perform(plan, fresh=anew)
            except ContainerError as error:
                if before is not wanted and plans.rolls_back(wanted, plan):
                    self.project = before
                    self._perform(plans.up_plan(before, self.observed(), open_networks=self._networks, back=True))
                    error.add_note("deploy.update_config.failure_action: the previous containers run again")
                raise
            return plan

    def scale(self, service: str, count: int, *, deps: bool = True) -> None:
        """Set the number of containers of a service.

        Args:
            service: its name.
            count: the number.
            deps: also start its dependencies (default True).

        Raises:
            SpecError: no such service, or an invalid number.
            ContainerError: as for :meth:`apply`.
        """
        self.check_names((service,))
        if count < 0 or (count > 1 and "container_name" in self.project.model["services"][service]):
            raise SpecError(f"scale: {service} can't have {count} containers")
        self.apply(services=(service,), scale={service: count, **self._numbers(service)}, deps=deps)

    def _numbers(self, but: str) -> dict[str, int]:
        """Return the numbers of containers of the other services, so that scaling one service changes no other."""
        found = {name: len(self.containers(name)) for name in self.project.model["services"] if name != but}
        return {name: count for name, count in found.items() if count}

    def restart(self, *services: str, grace_s: float | None = None, deps: bool = True) -> None:
        """Restart services (default: all) in the order of their dependencies.

        Args:
            services: their names.
            grace_s: the time for each command to end by itself, in seconds (default: the services' own).
            deps: also restart dependents with ``restart: true`` (default True).

        Raises:
            SpecError: no such service.
            StateError: a container is not running.
        """
        self.check_names(services)
        every = self.project.services
        chosen = set(services or every)
        for name, each in every.items():
            for other, how in each.keys.get("depends_on", {}).items():
                if deps and how.get("restart") and other in chosen:
                    chosen.add(name)
        for name in every:
            if name in chosen:
                for container in self.containers(name):
                    container.restart(grace_s)

    def stop(self, *services: str, grace_s: float | None = None) -> None:
        """Stop services (default: all), each before its dependencies.

        ``apply`` starts the same containers again: their files, addresses and published ports stay.
        """
        self._end(services, grace_s, keep=True)

    def _end(self, services: Collection[str], grace_s: float | None, *, keep: bool) -> None:
        self.check_names(services)
        with self._acting:
            chosen = {name: each for name, each in self.observed().items() if not services or each.service in services}
            self._perform(plans.down_plan(self.project, chosen, ()), grace_s=grace_s, keep=keep)

    def remove(self, *services: str, grace_s: float | None = None) -> None:
        """Stop services and those that depend on them, and forget them. ``apply`` creates them again.

        Raises:
            SpecError: no such service.
        """
        self.check_names(services)
        chosen = set(services)
        for name, each in self.project.services.items():  # each after its dependencies
            if chosen & each.depends_on.keys():
                chosen.add(name)
        with self._acting:
            self._end(chosen, grace_s, keep=False)
            for replica in self.containers():
                if replica.service in chosen:
                    self._forget(replica)

    def forget(self, *services: str) -> list[str]:
        """Forget the containers of services (default: all) that have ended; return their names."""
        self.check_names(services)
        with self._acting:
            gone = [
                each.name
                for each in self.containers()
                if each.status == "exited" and (not services or each.service in services)
            ]
            for name in gone:
                self._forget(self._replicas[name])
            gone += self._forget_one_offs(services)
        return gone

    def _forget(self, replica: Replica) -> None:
        """Forget a container that has ended. One that was kept ends."""
        replica.stop(0)
        if self._replicas.pop(replica.name, None) is not None:
            replica.note("destroy")

    def down(self, *, grace_s: float | None = None, remove_volumes: bool = False) -> None:
        """Stop everything, each service before its dependencies. May be called twice.

        Args:
            grace_s: the time for each container to end by itself, in seconds (default: the services' own).
            remove_volumes: also remove the named volumes of the project (default False).

        Raises:
            CleanupError: something could not be removed.
        """
        with self._acting:
            if not self._ended:
                self._ended = True
                one_offs = {name: plans.Observed("", "") for name in self._one_offs}
                plan = plans.down_plan(self.project, {**self.observed(), **one_offs}, tuple(self._networks))
                try:
                    self._end_kept()
                    self._perform(plan, grace_s=grace_s)
                finally:
                    self._let_go()
        if remove_volumes:
            for each in self.project.model.get("volumes", {}).values():
                if not each.get("external"):
                    volumes.remove(each["name"])

    def _changed_services(self) -> set[str]:
        """Return the services with a kept container of another description."""
        kept = [each for each in self.containers() if each.is_kept]
        return {each.service for each in kept if each.fingerprint != plans.fingerprint(self.project, each.service)}

    def _end_kept(self, services: Collection[str] = ()) -> None:
        """End the kept containers of services that are not among these."""
        for replica in self.containers():
            if replica.is_kept and replica.service not in services:
                self._forget(replica)

    def _let_go(self) -> None:
        with ExitStack() as stack:  # each is tried, even if others fail
            for network in self._networks.values():
                stack.callback(network.close)
            for replica in (*self._replicas.values(), *self._previous.values(), *self._one_offs.values()):
                stack.callback(replica.stop, 0)
            stack.callback(self._journal.close)
            stack.callback(self._happened.close)
        self._networks.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.down()

    # --- Performing

    def _perform(
        self, plan: Plan, *, grace_s: float | None = None, keep: bool = False, fresh: Collection[str] = ()
    ) -> None:
        """Perform the steps of a plan, in parallel where their order allows it.

        Args:
            plan: the plan.
            grace_s: the time for each container to end by itself, in seconds (default: the services' own).
            keep: keep the containers of stopped services (default False).
            fresh: services that get new containers, even if they have kept ones.

        Raises:
            ContainerError: the first failure. Steps that depend on it were not begun.
        """
        done: dict[str, threading.Event] = {step.name: threading.Event() for step in plan.steps}
        errors: list[BaseException] = []
        only_ends = all(step.action in ("stop", "close") for step in plan.steps)

        def act(step: Step) -> None:
            try:
                for name in step.after:
                    if name in done:
                        done[name].wait()
                if errors and not only_ends:
                    return
                self._log(f"{step.action} {step.target}")
                self._do(step, grace_s, errors, keep=keep, fresh=fresh)
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that performs the plan
                errors.append(error)
                self._tell()
            finally:
                done[step.name].set()

        threads = [threading.Thread(target=act, args=(step,), daemon=True) for step in plan.steps]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            self._keep_previous()
            raise errors[0]

    def _keep_previous(self) -> None:
        """Stop replacements that did not become ready. The containers that they should replace still run."""
        for name, previous in self._previous.items():
            if (replacement := self._replicas[name]) is not previous:
                replacement.stop(0)
                self._replicas[name] = previous
        self._previous.clear()

    def _do(
        self, step: Step, grace_s: float | None, errors: list[BaseException], *, keep: bool, fresh: Collection[str]
    ) -> None:
        match step.action:
            case "image":
                keys = self.project.model["services"][step.service]
                self._images[step.service] = image_of(
                    self.project, step.service, keys, build=self._build, pull=self._pull, log=self._log
                )
            case "network":
                self._open_network(step.target)
            case "volume":
                self._check_volume(step.target)
            case "create":
                self._created[step.target] = step.service
            case "start":
                self._start(step, fresh)
            case "wait":
                self._wait_step(step, errors)
            case "restart":
                if self._replicas[step.target].status in ("running", "restarting"):
                    self._replicas[step.target].restart(grace_s)
            case "stop":
                self._stop_step(step, grace_s, keep=keep)
            case "close":
                self._networks.pop(step.target).close()

    def _stop_step(self, step: Step, grace_s: float | None, *, keep: bool) -> None:
        if step.target in self._previous:
            self._previous.pop(step.target).stop(grace_s)
        elif step.target in self._one_offs:
            self._one_offs[step.target].stop(grace_s)
        else:
            replica = self._replicas[step.target]
            replica.stop(grace_s, keep=keep)
            if step.detail:  # replaced or surplus; others stay on record until they start or are forgotten
                del self._replicas[step.target]
                replica.note("destroy")

    def _open_network(self, name: str) -> None:
        from containerkit.project.networks import described

        network = described(name, self.project.model["networks"][name])
        if network is not None:
            self._networks[name] = network.open()

    def _check_volume(self, name: str) -> None:
        described = self.project.model["volumes"][name]
        if described.get("external"):
            volumes.existing(described["name"])

    def _volume_path(self, name: str, target: str, image: Image) -> str:
        described = self.project.model["volumes"][name]
        if "device" in described.get("driver_opts", {}):
            found: str = described["driver_opts"]["device"]
            return found
        path = volumes.make(described["name"], described.get("labels", {}), image, target)
        if "x-group" in described:  # of a pod: its group may write, and owns new files
            os.chown(path, -1, described["x-group"])
            os.chmod(path, os.stat(path).st_mode | 0o2070)
        return path

    def _start(self, step: Step, fresh: Collection[str]) -> None:
        service, keys = step.service, self.project.model["services"][step.service]
        former = self._replicas.get(step.target)
        if former is not None and former.is_kept:
            if service not in fresh:
                self._start_one(former)
                return
            self._forget(former)
        from containerkit.project.networks import connection

        made = realize.recipe(
            self.project, service, self._images[service], step.target, self._volume_path, self._shared
        )
        for note in made.notes:
            self._log(f"{service}: {note}")
        network = connection(self.project, service, step.target, self._networks, self._shared)
        replica = Replica(
            step.target, service, keys, made, fingerprint=plans.fingerprint(self.project, service), network=network,
            journal=self._journal, happened=self._happened, changed=self._tell,
        )  # fmt: skip
        if step.detail == plans.BESIDE:
            self._previous[step.target] = self._replicas[step.target]
        self._start_one(replica)
        self._replicas[step.target] = replica
        self._created.pop(step.target, None)

    @staticmethod
    def _start_one(replica: Replica) -> None:
        try:
            replica.start()
        except ContainerError as error:
            error.add_note(f"services.{replica.service}")
            raise

    def _shared(self, service: str) -> Any:
        return self[service].container

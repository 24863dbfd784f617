"""Additional containers of a service, each for one command: those of ``compose run``."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs

from containerkit.project import normal, realize
from containerkit.project.images import image_of
from containerkit.project.replica import Replica, write_files
from containerkit.project.waiting import Waiting

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Collection, Iterator, Sequence

    from containerkit.container.lifecycle import Container
    from containerkit.image import Image
    from containerkit.network import LiveNetwork
    from containerkit.project.project import Project
    from containerkit.project.realize import Recipe

__all__ = ["OneOffs"]


class OneOffs(Waiting):
    """The part of a stack that runs single commands in containers of their own."""

    _acting: threading.RLock
    _build: bool
    _log: Callable[[str], object]
    _networks: dict[str, LiveNetwork]
    _one_offs: dict[str, Replica]
    _pull: str | None

    def _open_network(self, name: str) -> None:
        raise NotImplementedError

    def _volume_path(self, name: str, target: str, image: Image) -> str:
        raise NotImplementedError

    def _shared(self, service: str) -> Any:
        raise NotImplementedError

    @property
    def one_offs(self) -> list[Replica]:
        """The containers of :meth:`run_detached` that are running, or have ended and are not removed."""
        return list(self._one_offs.values())

    def _prepared(self, project: Project, service: str, name: str, *, aliases: bool) -> tuple[Recipe, dict[str, Any]]:
        """Return the recipe of an additional container, and its network. Open what networks it needs."""
        from containerkit.project.networks import connection

        keys = project.model["services"][service]
        image = image_of(project, service, keys, build=self._build, pull=self._pull, log=self._log)
        with self._acting:
            for network in normal.references(keys)["networks"]:
                if network not in self._networks:
                    self._open_network(network)
        made = realize.recipe(project, service, image, name, self._volume_path, self._shared)
        return made, connection(project, service, name, self._networks, self._shared, named=aliases)

    @contextmanager
    def one_off(
        self, project: Project, service: str, *, name: str | None = None, aliases: bool = False
    ) -> Iterator[tuple[Container, Recipe]]:
        """Yield an additional container of a service. The caller starts its command.

        Args:
            project: the project, whose description of the service may differ: it publishes the ports in it.
            service: the service's name.
            name: of the container (default: a new one).
            aliases: whether it also has the names of the service in its networks (default: only its own name, so that
                others do not reach it in place of the service).

        Raises:
            SpecError, ContainerError: it can't be created.
        """
        from containerkit.container.lifecycle import Container

        made, network = self._prepared(project, service, name or _new_name(project, service), aliases=aliases)
        with Container(**made.container, **network) as container:
            write_files(container, made)
            yield container, made

    def run_detached(
        self,
        project: Project,
        service: str,
        argv: Sequence[str] = (),
        *,
        user: str | None = None,
        cwd: str | None = None,
        name: str | None = None,
        aliases: bool = False,
        remove: bool = False,
    ) -> Replica:
        """Start a command in an additional container of a service, and return at once. It ends with the project.

        Args:
            project, service, name, aliases: see :meth:`one_off`.
            argv: the command (default: that of the service).
            user, cwd: the user and the working directory of the command (default: those of the service).
            remove: forget the container when the command has ended (default False).

        Raises:
            SpecError, ContainerError: it can't be started.
        """
        name = name or _new_name(project, service)
        made, network = self._prepared(project, service, name, aliases=aliases)
        given = {key: value for key, value in (("user", user), ("cwd", cwd)) if value is not None}
        made = attrs.evolve(
            made, argv=tuple(argv) or made.argv, command={**made.command, **given}, check=None, alive=None, started=None
        )

        def changed() -> None:
            if remove and replica.status == "exited":
                self._one_offs.pop(name, None)
            self._tell()

        keys = {
            key: each for key, each in project.model["services"][service].items() if key not in ("restart", "deploy")
        }
        replica = Replica(
            name, service, keys, made, fingerprint="", network=network, journal=self._journal, happened=self._happened,
            changed=changed,
        )  # fmt: skip
        self._one_offs[name] = replica
        try:
            replica.start()
        except BaseException:
            self._one_offs.pop(name, None)
            raise
        return replica

    def _forget_one_offs(self, services: Collection[str]) -> list[str]:
        """Forget those of services (default: all) that have ended; return their names."""
        gone = [
            each.name
            for each in self.one_offs
            if each.status == "exited" and (not services or each.service in services)
        ]
        for name in gone:
            self._one_offs.pop(name).note("destroy")
        return gone


def _new_name(project: Project, service: str) -> str:
    return f"{project.name}-{service}-run-{os.urandom(4).hex()}"

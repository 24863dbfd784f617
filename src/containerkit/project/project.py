"""Projects: several services, networks and volumes under one name."""

from __future__ import annotations

import os
from collections.abc import Mapping as MappingABC
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.meanings import explained
from containerkit.project import normal
from containerkit.project.dotenv import read_dotenv
from containerkit.project.load import Loading, find_files, project_name
from containerkit.project.schema import MODEL, SERVICE
from containerkit.project.shapes import Place, duration_s, fields

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Literal, Unpack

    from containerkit.options import ListOf
    from containerkit.project.options import Keys, ServiceOptions
    from containerkit.project.plan import Observed, Plan
    from containerkit.project.remote import Remote
    from containerkit.project.stack import Stack

__all__ = ["Project", "Service"]

_STDIN: Final = "/dev/stdin"
_service = fields(SERVICE)
_model = fields(MODEL)


@explained
class Service:
    """One service of a project, like an entry of ``services`` in a compose file.

    ::

        Service(image="postgres:16", environment={"POSTGRES_PASSWORD": "x"}, healthcheck={"test": "pg_isready"})

    Args:
        options: see :class:`containerkit.project.options.ServiceOptions`.

    Each key may have its short or its long form.

    Attributes:
        keys: the keys in their long forms.

    Raises:
        SpecError: an unknown key, or a value is invalid.

    Source: the compose specification, "Services".
    """

    __slots__ = ("keys",)

    def __init__(self, **keys: Unpack[ServiceOptions]) -> None:
        self.keys: Mapping[str, Any] = _service(_plain(keys), Place("Service", "python", os.getcwd()))

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> Service:
        """Return a service whose keys are already in their long forms."""
        made = cls.__new__(cls)
        made.keys = dict(keys)
        return made

    def __repr__(self) -> str:
        return f"Service({', '.join(f'{key}={value!r:.60}' for key, value in self.keys.items())})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Service) and self.keys == other.keys

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.keys)))

    @property
    def image(self) -> str | None:
        """The name of its image, None if it is only built."""
        return self.keys.get("image")

    @property
    def scale(self) -> int:
        """The number of its containers."""
        deploy = self.keys.get("deploy", {})
        count: int = self.keys.get("scale", deploy.get("replicas", 1))
        return count

    @property
    def depends_on(self) -> dict[str, str]:
        """The services that it depends on, each with the condition."""
        return {name: how["condition"] for name, how in self.keys.get("depends_on", {}).items()}

    @property
    def stop_grace_s(self) -> float:
        """The time that it has to end by itself, in seconds (default 10)."""
        return duration_s(self.keys.get("stop_grace_period", "10s"))


@attrs.frozen(kw_only=True, eq=False, init=False)
class Project:
    """Several services, networks and volumes under one name.

    ::

        project = Project.load("compose.yaml")
        with project.up(wait=60) as stack:
            stack["web"].run(["true"])

    Args:
        services: by name, each a :class:`Service`.
        name: of the project: lower-case letters, digits, ``_`` and ``-`` (default: ``"project"``).
        networks, volumes, configs, secrets: as in a compose file, by name.
        directory: the directory of relative paths (default: the working directory).

    Attributes:
        model: the whole project in its long form, as ``containerkit compose config`` shows it.
        variables: those of the caller and of ``.env``, for interpolation and for values from the environment.
        files: the paths of the compose files that it was loaded from.

    Raises:
        SpecError: an unknown key, an invalid value, or a reference to nothing.

    Source: the compose specification.
    """

    model: Mapping[str, Any]
    directory: str
    variables: Mapping[str, str] = attrs.field(repr=False)
    files: tuple[str, ...] = ()

    def __init__(
        self,
        *,
        services: Mapping[str, Service],
        name: str = "project",
        networks: Mapping[str, Keys] | None = None,
        volumes: Mapping[str, Keys] | None = None,
        configs: Mapping[str, Keys] | None = None,
        secrets: Mapping[str, Keys] | None = None,
        directory: str | os.PathLike[str] = ".",
    ) -> None:
        base = os.path.abspath(directory)
        _check_name(name)
        for key, each in services.items():
            if not isinstance(each, Service):
                raise SpecError(f"services: {key!r:.60}: {each!r:.60} is not a Service")
        given = {"networks": networks, "volumes": volumes, "configs": configs, "secrets": secrets}
        model = _model(_plain({key: each for key, each in given.items() if each}), Place("", "python", base))
        model["services"] = {key: dict(each.keys) for key, each in services.items()}
        self._set(model, name, base, os.environ, ("*",), ())

    def _set(
        self,
        model: dict[str, Any],
        name: str,
        base: str,
        variables: Mapping[str, str],
        profiles: Iterable[str],
        services: Iterable[str],
        files: Iterable[str] = (),
    ) -> None:
        made = normal.select(normal.fill(model, name, base, variables), profiles, services)
        normal.check(made)
        made = normal.without_unused(made)
        made["services"] = {key: normal.with_files(each, key, variables) for key, each in made["services"].items()}
        self.__attrs_init__(model=made, directory=base, variables=variables, files=tuple(files))

    @classmethod
    def load(
        cls,
        *files: str | os.PathLike[str],
        name: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        profiles: ListOf[str] | None = None,
        env: Mapping[str, str] | None = None,
        env_files: ListOf[str] | None = None,
        services: ListOf[str] = (),
        interpolate: bool = True,
        unset: Callable[[str], object] = lambda _: None,
    ) -> Project:
        """Read compose files. Nothing is started.

        Args:
            files: later files are merged over earlier ones; ``-`` is standard input (default: ``COMPOSE_FILE``, also
                from the files of variables, else ``compose.yaml`` or its like in the working directory or above, with
                its override).
            name: of the project (default: ``COMPOSE_PROJECT_NAME``, the files' ``name``, the directory's name).
            directory: the directory of relative paths (default: that of the first file).
            profiles: the active profiles (default: ``COMPOSE_PROFILES``).
            env: variables for interpolation (default: ``os.environ``). They take precedence over ``.env``.
            env_files: files of variables (default: ``COMPOSE_ENV_FILES``, else ``.env`` in the directory of the project
                and, without ``files``, in the working directory; the latter takes precedence).
            services: services that are selected by name. Their profiles become active.
            interpolate: whether variables are replaced (default True).
            unset: called with the name of each variable that is missing and has no default.

        Raises:
            SpecError: a file can't be read or is invalid; with its path, and the line or key.
            UnsupportedError: PyYAML is not installed.
        """
        caller = dict(os.environ if env is None else env)
        paths = [_STDIN if each == "-" else os.path.abspath(each) for each in files]
        variables = {**_variables(env_files, _base(directory, paths), caller), **caller}
        paths = paths or _from_environment(variables) or find_files(os.fspath(directory or "."))
        base = _base(directory, paths)
        if env_files is None:  # the files may be elsewhere, with an .env beside them
            variables = {**_variables(None, base, variables), **variables}
        chosen = name or variables.get("COMPOSE_PROJECT_NAME")
        if name is not None:
            _check_name(name)
        known = {**variables, "COMPOSE_PROJECT_NAME": chosen or ""}
        loading = Loading(variables=known, interpolate=interpolate, unset=unset)
        if not chosen:
            chosen = project_name(loading.named(paths)) or project_name(os.path.basename(base)) or "project"
            loading.variables = {**variables, "COMPOSE_PROJECT_NAME": chosen}
        model = loading.model(paths, base)
        active = frozenset(profiles if profiles is not None else _listed(variables, "COMPOSE_PROFILES"))
        made = cls.__new__(cls)
        made._set(model, chosen, base, loading.variables, active, services, paths)  # noqa: SLF001 - of this class
        return made

    @classmethod
    def of(
        cls, model: Mapping[str, Any], directory: str, variables: Mapping[str, str], files: Iterable[str] = ()
    ) -> Project:
        """Return the project of a model that is complete and checked, such as one from another process."""
        made = cls.__new__(cls)
        made.__attrs_init__(model=model, directory=directory, variables=variables, files=tuple(files))
        return made

    @property
    def name(self) -> str:
        """The name of the project."""
        found: str = self.model["name"]
        return found

    @property
    def services(self) -> dict[str, Service]:
        """Its services, each after its dependencies."""
        every = self.model["services"]
        return {name: Service.of(every[name]) for name in normal.order(every)}

    def plan(self, observed: Mapping[str, Observed] | None = None) -> Plan:
        """Return the plan that starts it. Nothing is changed; ``print()`` shows the plan.

        Args:
            observed: the running containers, from :meth:`containerkit.project.stack.Stack.observed` (default: none).

        Raises:
            SpecError: the project uses something that is not supported.
        """
        from containerkit.project import plan, support

        support.unsupported(self)
        return plan.up_plan(self, observed or {})

    def up(
        self,
        *,
        wait: float | None = None,
        services: Collection[str] | None = None,
        scale: Mapping[str, int] | None = None,
        build: bool = False,
        pull: Literal["missing", "always", "never"] | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> Stack:
        """Start it in this process: when the process ends, or leaves the ``with``, everything is stopped.

        Args:
            wait: the time to wait until everything is ready, in seconds: all containers run, and those with a health
                check are healthy (default: wait only for the conditions of dependencies).
            services: which services, with their dependencies (default: all).
            scale: numbers of containers, by service (default: as described).
            build: build images even if they exist (default False).
            pull: ``"missing"``, ``"always"`` or ``"never"`` (default: the services' ``pull_policy``, or missing).
            log: called with each step.

        Raises:
            SpecError: the project uses something that is not supported; nothing was made.
            ContainerError: a step failed; nothing is left behind.
            ContainerTimeout: it was not ready in time; nothing is left behind.
        """
        from containerkit.project.stack import Stack

        stack = Stack(self, log=log, build=build, pull=pull)
        try:
            stack.apply(services=services, scale=scale)
            if wait is not None:
                stack.wait_ready(wait)
        except BaseException:
            stack.down(grace_s=0)
            raise
        return stack

    def detach(
        self,
        *,
        wait: float | None = None,
        services: ListOf[str] | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> Remote:
        """Start it in a separate process, which holds it until ``down``. The caller may end.

        Args:
            wait, services, log: as for :meth:`up`.

        Raises:
            SpecError: the project uses something that is not supported; nothing was made.
            StateError: it is already up, or could not be started; nothing is left behind.
        """
        from containerkit.project import support
        from containerkit.project.remote import detach

        support.unsupported(self)
        return detach(self, log, wait=wait, services=None if services is None else list(services))

    def __repr__(self) -> str:
        return f"<Project {self.name}: {', '.join(self.model['services']) or 'no services'}>"


def _plain(value: Any) -> Any:
    """Return a value with all mappings as dicts and all sequences as lists."""
    if isinstance(value, MappingABC):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, (list, tuple, set, frozenset)) else value


def _check_name(name: str) -> None:
    if not name or project_name(name) != name:
        raise SpecError(
            f"project name {name!r:.60}: only lower-case letters, digits, '_' and '-'; the first is a letter or digit"
        )


def _from_environment(variables: Mapping[str, str]) -> list[str]:
    given = variables.get("COMPOSE_FILE", "")
    return [os.path.abspath(each) for each in given.split(variables.get("COMPOSE_PATH_SEPARATOR", ":")) if each]


def _base(directory: str | os.PathLike[str] | None, paths: list[str]) -> str:
    """Return the directory of a project. Without a file that is the working directory."""
    return os.path.abspath(directory or ("." if paths[:1] in ([], [_STDIN]) else os.path.dirname(paths[0])))


def _listed(variables: Mapping[str, str], name: str) -> list[str]:
    return [each.strip() for each in variables.get(name, "").split(",") if each.strip()]


def _variables(env_files: ListOf[str] | None, base: str, caller: Mapping[str, str]) -> dict[str, str]:
    beside = os.path.join(base, ".env")
    of_caller = map(os.path.abspath, _listed(caller, "COMPOSE_ENV_FILES"))
    named = list(of_caller if env_files is None else env_files)
    if not named and env_files is None and caller.get("COMPOSE_DISABLE_ENV_FILE") not in ("1", "true"):
        named = [beside] if os.path.isfile(beside) else []
    found: dict[str, str] = {}
    for path in named:
        found |= read_dotenv(os.path.join(base, path), {**found, **caller})
    return found

"""Loads compose files: read, interpolate, extend, include, merge. It only reads files.

Source: the compose specification, "Interpolation", "Include", "Extends", "Merge", "Profiles".
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SpecError
from containerkit.project.dotenv import read_dotenv
from containerkit.project.interpolation import interpolated, substitute
from containerkit.project.merge import merged, merged_service, without_marks
from containerkit.project.schema import MODEL, absolute
from containerkit.project.shapes import Place, fields
from containerkit.project.yaml12 import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["FILES", "Loading", "find_files", "project_name"]

FILES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""The names of compose files, in the order of the search."""

_KEPT: Final = ("services", "networks", "volumes", "secrets", "configs", "models")
_REMOTE: Final = re.compile(r"(?:https?|git|ssh|oci)://|git@|.*\.git(?:[#?].*)?\Z")
_file: Final = fields(MODEL)


def project_name(text: str) -> str:
    """Return a text as a project's name: in lower case, without invalid characters."""
    return re.sub(r"[^a-z0-9_-]", "", text.lower()).lstrip("_-")


def find_files(directory: str) -> list[str]:
    """Return the compose file in a directory or above it, and its override file.

    Raises:
        SpecError: there is none.
    """
    at = os.path.abspath(directory)
    while True:
        for name in FILES:
            if os.path.isfile(path := os.path.join(at, name)):
                stem, dot, _ = name.rpartition(".")
                overrides = (os.path.join(at, f"{stem}.override{dot}{end}") for end in ("yml", "yaml"))
                return [path, *[each for each in overrides if os.path.isfile(each)][:1]]
        if at == "/":
            raise SpecError(f"no compose file in {directory} or above: none of {', '.join(FILES)} exists")
        at = os.path.dirname(at)


@attrs.define
class Loading:
    """The loading of one project.

    Args:
        variables: for interpolation.
        interpolate: whether variables are replaced (default True).
        unset: called with the name of each variable that is missing.
    """

    variables: Mapping[str, str]
    interpolate: bool = True
    unset: Callable[[str], object] = lambda _: None
    _texts: dict[str, str] = attrs.field(factory=dict, init=False)

    def model(self, files: list[str], base: str, included: tuple[str, ...] = ()) -> dict[str, Any]:
        """Return the merged model of files.

        Args:
            files: paths. Later files override earlier ones.
            base: the directory of relative paths.
            included: the chain of files whose ``include`` led to these.

        Raises:
            SpecError: a file can't be read, or is invalid.
        """
        found: dict[str, Any] = {}
        for path in files:
            for document in self._documents(path):
                found = merged(found, self._one(document, Place("", path, base), included))
        return without_marks(found)  # type: ignore[no-any-return] # of a mapping it is one

    def named(self, files: list[str]) -> str:
        """Return the project's name from the last file that sets one, or an empty string."""
        found = ""
        for path in files:
            for document in self._documents(path):
                given = document.get("name")
                if isinstance(given, str) and given:
                    found = given
        return substitute(found, self.variables, place="name") if self.interpolate else found

    def _documents(self, path: str) -> list[dict[str, Any]]:
        if _REMOTE.match(path):
            raise SpecError(f"{path}: remote files are not fetched; download it and name the local file")
        try:
            if path not in self._texts:
                with open(path, encoding="utf-8-sig") as file:
                    self._texts[path] = file.read()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
            raise SpecError(f"{path}: {reason}") from error
        found = parse_yaml(self._texts[path], path)
        if not any(each for each in found):
            raise SpecError(f"{path}: the compose file is empty")
        for each in found:
            if each is not None and not isinstance(each, dict):
                raise SpecError(f"{path}: must be a mapping with keys such as 'services'")
        return [each for each in found if each is not None]

    def _one(self, document: dict[str, Any], place: Place, included: tuple[str, ...]) -> dict[str, Any]:
        model = self._shaped(document, place)
        services = model.get("services")
        if services:
            for name in list(services):
                services[name] = self._extended(name, services, place, ())
        for each in model.pop("include", ()):
            model = self._with_included(each, model, place, (*included, os.path.realpath(place.file)))
        return model

    def _shaped(self, document: dict[str, Any], place: Place) -> dict[str, Any]:
        if self.interpolate:
            document = interpolated(document, self.variables, place=place.file, unset=self.unset)
        model: dict[str, Any] = _file(document, place)
        model.pop("version", None)
        return model

    # --- Extends

    def _extended(self, name: str, services: dict[str, Any], place: Place, chain: tuple[tuple[str, str], ...]) -> Any:
        service = services[name]
        if not isinstance(service, dict) or "extends" not in service:
            return service
        step = (place.file, name)
        if step in chain:
            shown = " -> ".join(each for _, each in (*chain, step))
            raise SpecError(f"{place.file}: services extend each other in a circle: {shown}")
        of = service["extends"]
        others, where = services, place
        if of.get("file"):
            others, where = self._other_file(of["file"], of["service"], place)
        base_name = of["service"]
        if base_name not in others:
            raise SpecError(f"{place.file}: services.{name}.extends: there is no service {base_name!r} in {where.file}")
        base = self._extended(base_name, others, where, (*chain, step))
        own = {key: each for key, each in service.items() if key != "extends"}
        return merged_service(without_marks(base or {}), own)

    def _other_file(self, name: str, service: str, place: Place) -> tuple[dict[str, Any], Place]:
        """Return the services of a file, only those that one of them needs: others may be incomplete or invalid."""
        path = name if _REMOTE.match(name) else absolute(name, place.base)
        where = Place("", path, os.path.dirname(path))
        found: dict[str, Any] = {}
        for document in self._documents(path):
            services = document.get("services")
            if isinstance(services, dict):
                services = {key: {} if services[key] is None else services[key] for key in _lineage(services, service)}
            model = self._shaped({"services": services}, where)
            found = merged(found, model) if found else model  # the marks of a single file are kept for its extensions
        return found.get("services") or {}, where

    # --- Include

    def _with_included(
        self, include: dict[str, Any], model: dict[str, Any], place: Place, included: tuple[str, ...]
    ) -> dict[str, Any]:
        files = [path if _REMOTE.match(path) else absolute(path, place.base) for path in include["path"]]
        if not files:
            raise SpecError(f"{place.file}: include: 'path' is empty")
        if os.path.realpath(files[0]) in included:
            raise SpecError(f"include goes in a circle: {' -> '.join((*included, files[0]))}")
        given = include.get("project_directory")
        base = absolute(given, place.base) if given else os.path.dirname(files[0])
        named = [absolute(path, place.base) for path in include.get("env_file", ()) if path != "/dev/null"]
        beside = os.path.join(base, ".env")
        if "env_file" not in include and os.path.isfile(beside):
            named = [beside]
        variables: dict[str, str] = {}
        for path in named:
            variables |= read_dotenv(path, {**variables, **self.variables})
        other = attrs.evolve(self, variables={**variables, **self.variables}).model(files, base, included)
        for service in (other.get("services") or {}).values():
            if "build" in service:
                service["build"] = {"context": base, **service["build"]}
        made = dict(model)
        for kind in _KEPT:
            for name, each in (other.get(kind) or {}).items():
                there = (made.get(kind) or {}).get(name)
                if there is not None and there != each:
                    raise SpecError(
                        f"{place.file}: {kind}.{name} is also in the included {files[0]}, with a different value"
                    )
                made[kind] = {**(made.get(kind) or {}), name: each}
        return made


def _lineage(services: dict[str, Any], name: str) -> list[str]:
    """Return a service's name, and the names of those that it extends in the same file, directly or not."""
    found: list[str] = []
    while name in services and name not in found:
        found.append(name)
        service = services[name]
        of = service.get("extends") if isinstance(service, dict) else None
        name = of if isinstance(of, str) else str(of.get("service", "")) if isinstance(of, dict) else ""
    return found

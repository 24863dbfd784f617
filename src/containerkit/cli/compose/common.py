"""Functions that the verbs of projects share."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from containerkit.project.project import Project
    from containerkit.project.remote import Remote

__all__ = ["load", "moment", "note", "numbers", "remote", "show", "table", "with_needed"]


def load(options: argparse.Namespace, *, services: Sequence[str] = (), interpolate: bool = True) -> Project:
    """Return the project that the options select.

    Raises:
        SpecError: a file can't be read or is invalid.
    """
    from containerkit.project import Project

    missing: set[str] = set()
    found = Project.load(
        *options.file, name=options.project_name, directory=options.project_directory,
        profiles=options.profile or None, env_files=_env_files(options), services=tuple(services),
        interpolate=interpolate, unset=missing.add,
    )  # fmt: skip
    from containerkit.cli.commands import complain

    for name in sorted(missing):
        complain(f"compose: the variable {name} is not set; using an empty string")
    return found


def _env_files(options: argparse.Namespace) -> list[str] | None:
    return [os.path.abspath(each) for each in options.env_file] or None


def remote(options: argparse.Namespace) -> Remote:
    """Return the running project. Its files are only read if its name is not given.

    Raises:
        StateError: it is not up.
    """
    from containerkit.project.remote import Remote

    return Remote(options.project_name or os.environ.get("COMPOSE_PROJECT_NAME") or load(options).name)


def numbers(texts: Sequence[str]) -> dict[str, int]:
    """Return the numbers of ``SERVICE=NUMBER``.

    Raises:
        SpecError: a text has another form.
    """
    found = {}
    for text in texts:
        name, _, number = text.partition("=")
        if not number.isdecimal():
            raise SpecError(f"scale: {text!r:.60} is not SERVICE=NUMBER")
        found[name] = int(number)
    return found


def show(text: str) -> None:
    """Print a text that may come from inside a container."""
    from containerkit.cli.commands import printable

    print(printable(text), flush=True)  # noqa: T201 - the command line prints its output


def table(rows: Sequence[Sequence[Any]]) -> None:
    """Print rows in columns."""
    from containerkit.cli import detached

    show(detached.table([[str(cell) for cell in row] for row in rows]))


def moment(text: str, option: str) -> float:
    """Return a time in seconds since 1970, from a time of RFC 3339 or a duration before now.

    Raises:
        SpecError: it is neither.
    """
    from datetime import UTC, datetime

    from containerkit.project.shapes import duration_us

    try:
        return time.time() - (float(text) if text.replace(".", "", 1).isdecimal() else duration_us(text) / 1e6)
    except SpecError:
        pass  # it is a time
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise SpecError(
            f"{option}: {text!r:.60} is neither a time nor a duration; use 10m, or 2026-01-31T12:00:00Z"
        ) from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def note(text: str) -> None:
    """Report a step, or the output of a build, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the command line reports its steps


def with_needed(project: Project, services: Sequence[str]) -> list[str]:
    """Return the names of services and of all that they depend on, directly or not."""
    found, known = list(services), project.services
    for name in found:
        found += [other for other in known[name].depends_on if other in known and other not in found]
    return found

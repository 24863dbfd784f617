"""Check the name and password for a registry, and store them where other container tools do."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from containerkit.errors import SpecError

if TYPE_CHECKING:
    import argparse

__all__ = ["EPILOG", "define", "main"]

EPILOG: Final = """\
They are stored in $DOCKER_CONFIG/config.json (~/.docker/config.json), or by the credential helper that is set there.

  containerkit login registry.example.org
  containerkit login --username ci --password-stdin registry.example.org < token
"""


def define(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("registry", metavar="REGISTRY", nargs="?", default="docker.io", help="host[:port]; docker.io")
    parser.add_argument("-u", "--username", metavar="NAME", help="the user name (default: ask for it)")
    parser.add_argument("--password-stdin", action="store_true", help="read the password from stdin")


def main(options: argparse.Namespace) -> int:
    """Check the credentials and store them. Return 0.

    Raises:
        SpecError: they were not given, and there is no terminal to ask on.
        ImageError: the registry does not accept them.
    """
    from containerkit.image.registry import Credentials, Registry, save_credentials

    registry = checked_registry(options.registry)
    name = options.username
    if options.password_stdin:
        if not name:
            raise SpecError("login: --password-stdin needs --username NAME")
        password = sys.stdin.readline().rstrip("\r\n")
    else:
        name, password = _ask(registry, name)
    if not name or not password:
        raise SpecError("login: a name and a password are required")
    credentials = Credentials(username=name, password=password)
    with Registry(registry, credentials=credentials) as client:
        client.ping()
    path = save_credentials(registry, credentials)
    print(f"logged in to {registry} as {name} ({path})", flush=True)  # noqa: T201 - a command line speaks
    return 0


def checked_registry(text: str) -> str:
    """Return the registry in the form used by references.

    Raises:
        SpecError: the text is not ``host[:port]``.
    """
    from containerkit.image import Reference

    plain = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if "/" in plain:
        raise SpecError(f"registry {text!r}: must be host[:port], without a path")
    return Reference.parse(f"{plain}/any", registry=plain).registry


def _ask(registry: str, name: str | None) -> tuple[str, str]:
    if not sys.stdin.isatty():
        raise SpecError("login: there is no terminal for a prompt; use --username NAME --password-stdin")
    from getpass import getpass

    if not name:
        print(f"user name for {registry}: ", end="", file=sys.stderr, flush=True)  # noqa: T201 - a prompt
        name = sys.stdin.readline().strip()
    return name, getpass(f"password of {name} for {registry}: ")

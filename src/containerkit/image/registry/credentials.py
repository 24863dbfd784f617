"""Credentials in the files and helper programs of other container tools."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import attrs

from containerkit.errors import ImageError, SpecError
from containerkit.image.reference import DEFAULT_REGISTRY
from containerkit.image.store.locks import locked, replace_file

__all__ = ["Credentials", "find_credentials", "forget_credentials", "save_credentials"]

_DOCKER_HUB: Final = "https://index.docker.io/v1/"
_HELPER: Final = re.compile(r"[A-Za-z0-9_.-]+")
_HELPER_TIMEOUT_S: Final = 30.0


@attrs.frozen(kw_only=True)
class Credentials:
    """The credentials of a user.

    Args:
        username: the name; empty with an identity token.
        password: the password or access token.
        identity_token: a token for getting other tokens (OAuth 2 refresh token). It takes precedence over a password.
    """

    username: str = ""
    password: str = attrs.field(default="", repr=False)
    identity_token: str = attrs.field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The value of a header for basic authentication.

        Source: RFC 7617.
        """
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode()


def credential_files() -> list[Path]:
    """Return the files that can contain credentials, in order of precedence.

    Source: containers-auth.json(5); docker login.
    """
    home = Path.home()
    files: list[Path] = []
    if chosen := os.environ.get("REGISTRY_AUTH_FILE"):
        files.append(Path(chosen))
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        files.append(Path(runtime) / "containers/auth.json")
    files.append(Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json")
    files.append(docker_config())
    return files


def docker_config() -> Path:
    """Return Docker's file, which every tool reads."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"


def find_credentials(registry: str, repository: str = "") -> Credentials | None:
    """Look up the credentials for a registry, or for a part of one.

    Args:
        registry: ``host[:port]``.
        repository: if given, an entry for the longest prefix of the repository takes precedence over the registry's.

    Returns:
        The credentials, or None for an anonymous request.

    Raises:
        ImageError: a file is malformed, or a helper program is missing or fails.

    Source: containers-auth.json(5); docker-credential-helpers.
    """
    keys = _keys(registry, repository)
    for path in credential_files():
        content = _read(path)
        helpers = content.get("credHelpers")
        if isinstance(helpers, dict) and registry in helpers:
            return _ask_helper(str(helpers[registry]), registry)
        entries = content.get("auths")
        for key in keys:
            entry = entries.get(key) if isinstance(entries, dict) else None
            if isinstance(entry, dict) and (found := _decode(entry, path, key)) is not None:
                return found
        if store := content.get("credsStore"):
            server = _DOCKER_HUB if registry == DEFAULT_REGISTRY else registry
            if (found := _ask_helper(str(store), server)) is not None:
                return found
    return None


def save_credentials(registry: str, credentials: Credentials) -> Path:
    """Store credentials, with the helper that is named in Docker's file, or in the file itself.

    Args:
        registry: ``host[:port]``.
        credentials: the credentials.

    Returns:
        The file.

    Raises:
        ImageError: the file is malformed or the helper fails.
    """
    path = docker_config()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locked(path.with_name(".containerkit.lock"), exclusive=True):
        content = _read(path)
        key = _DOCKER_HUB if registry == DEFAULT_REGISTRY else registry
        helper = content.get("credHelpers", {}).get(registry) or content.get("credsStore")
        if helper:
            secret = credentials.identity_token or credentials.password
            name = "<token>" if credentials.identity_token else credentials.username
            _run_helper(helper, "store", json.dumps({"ServerURL": key, "Username": name, "Secret": secret}))
            return path
        entry = {"auth": credentials.basic.removeprefix("Basic ")}
        if credentials.identity_token:
            entry = {"auth": entry["auth"], "identitytoken": credentials.identity_token}
        content.setdefault("auths", {})[key] = entry
        _write(path, content)
    return path


def forget_credentials(registry: str) -> bool:
    """Delete the credentials for a registry from every file. Return whether there were any.

    Raises:
        ImageError: a file is malformed or a helper fails.
    """
    found = False
    for path in credential_files():
        if not path.exists():
            continue
        with locked(path.with_name(".containerkit.lock"), exclusive=True):
            content = _read(path)
            for key in _keys(registry, ""):
                if content.get("auths", {}).pop(key, None) is not None:
                    found = True
                    _write(path, content)
        helper = content.get("credHelpers", {}).get(registry) or content.get("credsStore")
        if helper and _ask_helper(str(helper), registry) is not None:
            _run_helper(helper, "erase", registry)
            found = True
    return found


def _keys(registry: str, repository: str) -> list[str]:
    parts = repository.split("/") if repository else []
    keys = [f"{registry}/{'/'.join(parts[:count])}" for count in range(len(parts), 0, -1)]
    keys += [
        registry,
        f"https://{registry}",
        f"http://{registry}",
        f"https://{registry}/v1/",
        f"https://{registry}/v2/",
    ]
    if registry == DEFAULT_REGISTRY:
        keys += [_DOCKER_HUB, "index.docker.io", "registry-1.docker.io"]
    return keys


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ImageError(f"credentials {path}: {error}") from error
    if not isinstance(content, dict):
        raise ImageError(f"credentials {path}: expected a JSON object")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    replace_file(path, json.dumps(content, indent=2).encode(), mode=0o600)


def _decode(entry: dict[str, Any], path: Path, key: str) -> Credentials | None:
    name, password = str(entry.get("username", "")), str(entry.get("password", ""))
    if entry.get("auth"):
        try:
            plain = base64.b64decode(str(entry["auth"]), validate=True).decode("utf-8").rstrip("\0")
        except ValueError as error:
            raise ImageError(f"credentials {path}: the entry for {key} is not in base64") from error
        name, _, password = plain.partition(":")
    token = str(entry.get("identitytoken", ""))
    return Credentials(username=name, password=password, identity_token=token) if name or token else None


def _ask_helper(name: str, server: str) -> Credentials | None:
    answer = _run_helper(name, "get", server)
    if answer is None:
        return None
    try:
        content = json.loads(answer)
        user, secret = str(content["Username"]), str(content["Secret"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ImageError(f"docker-credential-{name}: the answer is malformed") from error
    if user == "<token>":
        return Credentials(identity_token=secret)
    return Credentials(username=user, password=secret)


def _run_helper(name: str, verb: str, text: str) -> str | None:
    """Run a helper program. Return None if it does not know the server."""
    if _HELPER.fullmatch(name) is None:
        raise SpecError(f"the credential helper {name!r} has no well-formed name")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, verb], input=text, capture_output=True, text=True, timeout=_HELPER_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise ImageError(f"{program} is named in a credentials file, but is not on the PATH") from error
    except subprocess.TimeoutExpired as error:
        raise ImageError(f"{program} {verb}: no answer within {_HELPER_TIMEOUT_S:.0f} s") from error
    if done.returncode == 0:
        return done.stdout
    if verb == "get" and "not found" in (done.stdout + done.stderr).lower():
        return None
    raise ImageError(f"{program} {verb}: {(done.stdout + done.stderr).strip()[:200] or f'status {done.returncode}'}")

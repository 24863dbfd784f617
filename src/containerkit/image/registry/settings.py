"""Settings for registries: mirrors, plain HTTP, certificates, timeouts."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import ImageError, SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

__all__ = ["RegistrySettings"]

_SYSTEM: Final = Path("/etc/containerkit/registries.toml")
_CERTIFICATES: Final = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))
_KEYS: Final = {"mirrors", "insecure", "ca", "token_hosts"}


def _positive(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise SpecError(f"{attribute.name} must be a number above 0, not {value!r}")


@attrs.frozen(kw_only=True)
class RegistrySettings:
    """How registries are reached.

    Args:
        mirrors: for a registry, the hosts to ask before it, in order.
        insecure: registries that are reached with plain HTTP. A registry on the loopback interface needs no entry: if
            it does not support TLS, plain HTTP is used.
        ca_paths: for a registry, a file of certificates to trust in addition to the system's.
        token_hosts: for a registry, hosts to which its credentials may be sent for a token, besides its own domain.
        timeout_s: the maximum seconds without a byte. Default 30.
        metadata_s: the maximum seconds for a manifest, a token or the headers of a blob, including all attempts and
            redirects. Default 60.
        least_rate_bytes: the minimum bytes per second of a blob, over each ``window_s``. Default 10,240.
        window_s: the seconds over which the rate is measured. Default 60.
        blob_s: the maximum seconds for a complete blob, with all attempts. Default 21,600: six hours.
        attempts: attempts for each request; for a blob, consecutive attempts without any byte. Default 5.
        parallel: how many blobs are transferred at the same time. Default 4.
        chunk_bytes: the size of one piece of an upload. Default 16 MiB.

    Raises:
        SpecError: a number is not above 0.

    Source: OCI distribution specification.
    """

    mirrors: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, hash=False)
    insecure: frozenset[str] = frozenset()
    ca_paths: Mapping[str, str] = attrs.field(factory=dict, hash=False)
    token_hosts: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, hash=False)
    timeout_s: float = attrs.field(default=30.0, validator=_positive)
    metadata_s: float = attrs.field(default=60.0, validator=_positive)
    least_rate_bytes: int = attrs.field(default=10 << 10, validator=_positive)
    window_s: float = attrs.field(default=60.0, validator=_positive)
    blob_s: float = attrs.field(default=6 * 3600.0, validator=_positive)
    attempts: int = attrs.field(default=5, validator=_positive)
    parallel: int = attrs.field(default=4, validator=_positive)
    chunk_bytes: int = attrs.field(default=16 << 20, validator=_positive)

    @classmethod
    def load(cls, *paths: str | os.PathLike[str]) -> Self:
        """Read settings from files. Later files take precedence.

        A file has a table for each registry::

            ["docker.io"]
            mirrors = ["mirror.example.org"]
            ["registry.example.org:5000"]
            ca = "/etc/ssl/our-ca.pem"
            insecure = false
            token_hosts = ["login.example.org"]

        Args:
            paths: the files. Default: ``/etc/containerkit/registries.toml``, then ``containerkit/registries.toml``
                below ``$XDG_CONFIG_HOME``, if they exist.

        Raises:
            SpecError: a file is malformed.
        """
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        chosen = [Path(path) for path in paths] or [
            path for path in (_SYSTEM, config / "containerkit/registries.toml") if path.exists()
        ]
        mirrors: dict[str, tuple[str, ...]] = {}
        token_hosts: dict[str, tuple[str, ...]] = {}
        ca_paths: dict[str, str] = {}
        insecure: set[str] = set()
        for path in chosen:
            for host, table in _read(path).items():
                mirrors[host] = _texts(table, "mirrors", path)
                token_hosts[host] = _texts(table, "token_hosts", path)
                if table.get("ca"):
                    ca_paths[host] = str(table["ca"])
                (insecure.add if table.get("insecure") is True else insecure.discard)(host)
        return cls(mirrors=mirrors, insecure=frozenset(insecure), ca_paths=ca_paths, token_hosts=token_hosts)

    def certificates(self, host: str) -> tuple[list[str], tuple[str, str] | None]:
        """Return the certificate files to trust for a host, and a client's certificate and key if there is one.

        Besides ``ca_paths``, the directories ``/etc/containers/certs.d/HOST`` and ``/etc/docker/certs.d/HOST`` are
        read.

        Raises:
            ImageError: the key for a client's certificate is missing.

        Source: containers-certs.d(5).
        """
        trusted = [self.ca_paths[host]] if host in self.ca_paths else []
        client: tuple[str, str] | None = None
        for directory in _CERTIFICATES:
            trusted += [str(path) for path in sorted((directory / host).glob("*.crt"))]
            for certificate in sorted((directory / host).glob("*.cert")):
                key = certificate.with_suffix(".key")
                if not key.exists():
                    raise ImageError(f"registry {host}: the key of {certificate} is missing (hint: put it in {key})")
                client = (str(certificate), str(key))
        return trusted, client


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}") from error
    for host, table in content.items():
        if not isinstance(table, dict):
            raise SpecError(f"{path}: {host!r} is not a table of a registry")
        unknown = set(table) - _KEYS
        if unknown:
            raise SpecError(f"{path}: unknown keys for {host}: {', '.join(sorted(unknown))}")
    return content


def _texts(table: dict[str, Any], key: str, path: Path) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SpecError(f"{path}: {key} must be a list of strings")
    return tuple(value)

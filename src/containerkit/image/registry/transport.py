"""HTTP to registries: one pool of connections for each host, bounded redirects, no secret to another host."""

from __future__ import annotations

import os
import random
import ssl
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urljoin, urlsplit

from containerkit.errors import ImageError, UnsupportedError
from containerkit.image.reference import is_loopback

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from urllib3 import BaseHTTPResponse, PoolManager

    from containerkit.image.registry.settings import RegistrySettings

__all__ = ["TRANSIENT", "TransientError", "Transport", "backoff_s", "no_proxy"]

_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S: Final = 30.0
_PROBE_S: Final = 5.0
_LARGEST_ERROR: Final = 64 << 10


def backoff_s(attempt: int, retry_after: str | None = None) -> float:
    """Return how long to wait before the next try: doubling from 0.1 s, with chance, up to 30 s.

    Args:
        attempt: how many tries have failed, from 1.
        retry_after: the header of that name, in seconds.

    Source: RFC 9110, section 10.2.3.
    """
    if retry_after and retry_after.isdecimal():
        return min(float(retry_after), _LONGEST_WAIT_S)
    longest = min(0.1 * 2.0**attempt, _LONGEST_WAIT_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


class Transport:
    """Connections to registries, kept open between requests and shared by threads.

    Args:
        settings: certificates, plain HTTP, patience.

    Raises:
        UnsupportedError: urllib3 is not installed.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        try:
            import urllib3  # noqa: F401 - heavy, and of an optional extra
        except ImportError as error:
            raise UnsupportedError("import", 2, "urllib3", "pip install 'containerkit[image]'") from error
        self.settings = settings
        self._pools: dict[tuple[str, str], PoolManager] = {}
        self._schemes: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<Transport: {len(self._pools)} hosts>"

    def close(self) -> None:
        """Close all connections. May be called twice."""
        for pool in self._pools.values():
            pool.clear()
        self._pools.clear()

    def origin(self, host: str) -> str:
        """Return ``scheme://host`` of a registry.

        Plain HTTP is for registries that the settings name, and for one on the loopback interface that does not
        speak TLS; a certificate that is not trusted never leads to plain HTTP.

        Raises:
            ImageError: nothing answers there.
        """
        if host not in self._schemes:
            self._schemes[host] = self._find_scheme(host)
        return f"{self._schemes[host]}://{host}"

    def _find_scheme(self, host: str) -> str:
        if host in self.settings.insecure:
            return "http"
        if not is_loopback(host):
            return "https"
        from urllib3.exceptions import HTTPError

        try:
            self._pool("https", host).request(
                "GET",
                f"https://{host}/v2/",
                redirect=False,
                retries=False,
                timeout=min(_PROBE_S, self.settings.timeout_s),
            )
        except HTTPError as error:
            _raise_if_tls(host, error)
            return "http"
        return "https"

    def _pool(self, scheme: str, host: str) -> PoolManager:
        key = (scheme, host)
        if key not in self._pools:
            self._pools[key] = self._make_pool(scheme, host)
        return self._pools[key]

    def _make_pool(self, scheme: str, host: str) -> PoolManager:
        import urllib3

        options: dict[str, Any] = {
            "timeout": urllib3.Timeout(connect=min(10.0, self.settings.timeout_s), read=self.settings.timeout_s),
            "maxsize": self.settings.parallel + 2,
            "headers": {"User-Agent": "containerkit"},
        }
        if scheme == "https":
            options["ssl_context"] = self._tls(host)
        proxy = _proxy(scheme, host)
        return urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def _tls(self, host: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        trusted, client = self.settings.certificates(host)
        try:
            for path in trusted:
                context.load_verify_locations(path)
            if client is not None:
                context.load_cert_chain(*client)
        except (OSError, ssl.SSLError) as error:
            raise ImageError(f"registry {host}: the certificates {trusted + list(client or ())}: {error}") from error
        return context

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        redirect: bool = True,
        attempts: int | None = None,
    ) -> BaseHTTPResponse:
        """Send a request, follow redirects, and try again what may pass.

        A redirect to another origin loses the header ``Authorization``; one from HTTPS to plain HTTP is refused.

        Args:
            method: the verb.
            url: the whole address.
            headers: the headers.
            body: the body.
            redirect: follow redirects.
            attempts: tries in all. Default: the settings' number.

        Returns:
            The answer, whatever its status, with its body unread: read it or release it.

        Raises:
            ImageError: no answer after all tries, an untrusted certificate, or more than five redirects.

        Source: RFC 9110, sections 10.2.3 and 15.4.
        """
        attempts = self.settings.attempts if attempts is None else attempts
        for attempt in range(1, attempts + 1):
            try:
                answer = self._follow(method, url, dict(headers or {}), body, redirect=redirect)
            except _Unreachable as error:
                if attempt == attempts:
                    raise TransientError(f"{method} {_shown(url)}: {error}") from error
                time.sleep(backoff_s(attempt))
                continue
            if answer.status not in TRANSIENT or attempt == attempts:
                return answer
            wait = backoff_s(attempt, answer.headers.get("Retry-After"))
            answer.drain_conn()
            time.sleep(wait)
        raise AssertionError("attempts is at least 1")

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, *, redirect: bool
    ) -> BaseHTTPResponse:
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._once(method, url, headers, body)
            location = answer.headers.get("Location")
            if not redirect or answer.status not in _REDIRECTS or not location:
                return answer
            answer.drain_conn()
            new = urljoin(url, location)
            before, after = urlsplit(url), urlsplit(new)
            if after.scheme not in ("https", "http") or (before.scheme == "https" and after.scheme == "http"):
                raise ImageError(f"{method} {_shown(url)}: a redirect to {_shown(new)}, which is not over TLS")
            if (before.scheme, before.netloc) != (after.scheme, after.netloc):
                headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
            if answer.status == 303 and method != "HEAD":
                method, body = "GET", None
            url = new
        raise ImageError(f"{method} {_shown(url)}: more than {_MOST_REDIRECTS} redirects")

    def _once(self, method: str, url: str, headers: dict[str, str], body: bytes | None) -> BaseHTTPResponse:
        from urllib3.exceptions import HTTPError

        parts = urlsplit(url)
        try:
            return self._pool(parts.scheme, parts.netloc).request(
                method, url, headers=headers, body=body, redirect=False, retries=False, preload_content=False
            )
        except HTTPError as error:
            _raise_if_tls(parts.netloc, error)
            raise _Unreachable(_reason(error)) from error
        except OSError as error:
            raise _Unreachable(_reason(error)) from error


class TransientError(ImageError):
    """No answer, or one that says to try later: the same request may well succeed another time."""


class _Unreachable(Exception):  # noqa: N818 - never leaves this module
    """No answer, this time."""


def error_text(answer: BaseHTTPResponse) -> str:
    """Return what a registry says about a failure, and give the connection back.

    Source: OCI distribution specification, "Error Codes".
    """
    import json

    raw = answer.read(_LARGEST_ERROR) or b""
    answer.release_conn()
    said = ""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        errors = json.loads(raw)["errors"]
        said = "; ".join(f"{one.get('code', '')} {one.get('message', '')}".strip() for one in errors)
    return f"status {answer.status}" + (f" ({said[:300]})" if said else "")


def _raise_if_tls(host: str, error: BaseException) -> None:
    """Raise what to do when one side does not trust the other: another try, or one without TLS, is no remedy."""
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            raise _tls_error(host, error) from error
        if isinstance(one, ssl.SSLError) and "alert" in str(one).lower():  # only who speaks TLS sends one
            raise ImageError(
                f"registry {host}: it refuses this client: {_reason(error)} (hint: a certificate and key that it wants "
                f"to see belong into /etc/containers/certs.d/{host}/client.cert and client.key)"
            ) from error


def _causes(error: BaseException) -> Iterable[BaseException]:
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            waiting += [*one.args, one.__cause__, one.__context__, getattr(one, "reason", None)]
    return seen


def _tls_error(host: str, error: BaseException) -> ImageError:
    return ImageError(
        f"registry {host}: its certificate is not trusted: {_reason(error)} "
        f"(hint: RegistrySettings(ca_paths={{{host!r}: FILE}}), or put the authority's certificate into "
        f"/etc/containers/certs.d/{host}/ca.crt)"
    )


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None) or (error.args[-1] if error.args else error)
    return f"{inner}"[:200]


def _shown(url: str) -> str:
    """Return an address without its query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def _proxy(scheme: str, host: str) -> str:
    bare = urlsplit(f"//{host}").hostname or ""
    if is_loopback(host) or no_proxy(bare, os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""):
        return ""
    for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper(), "all_proxy", "ALL_PROXY"):
        if value := os.environ.get(name):
            return value if "://" in value else f"http://{value}"
    return ""


def no_proxy(host: str, rule: str) -> bool:
    """Return whether a host is to be reached without the proxy, by the variable ``NO_PROXY``.

    Args:
        host: name or address without a port.
        rule: names, domains (with or without a leading dot) and networks such as 10.0.0.0/8, apart by commas.

    Source: curl(1), "NO_PROXY".
    """
    import ipaddress

    host = host.lower()
    for word in filter(None, (part.strip().lower() for part in rule.split(","))):
        if word == "*":
            return True
        if "/" in word:
            with suppress(ValueError):
                if ipaddress.ip_address(host) in ipaddress.ip_network(word, strict=False):
                    return True
        bare = word.lstrip(".").rpartition(":")[0] or word.lstrip(".")
        if host == bare or host.endswith(f".{bare}"):
            return True
    return False

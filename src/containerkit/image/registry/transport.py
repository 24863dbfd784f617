"""HTTP to registries: a connection pool for each host, limited redirects, no credentials to other hosts."""

from __future__ import annotations

import os
import random
import ssl
import time
from contextlib import suppress
from errno import EMFILE, ENFILE
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, urljoin, urlsplit

from containerkit.errors import DESCRIPTORS_HINT, ImageError, SetupError, UnsupportedError
from containerkit.image.reference import is_loopback
from containerkit.image.registry.deadlines import Meter, Patience, connection_classes, current, patient

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from urllib3 import BaseHTTPResponse, PoolManager

    from containerkit.image.registry.settings import RegistrySettings

__all__ = ["TRANSIENT", "TransientError", "Transport", "address", "backoff_s", "body", "no_proxy", "release_connection"]

_MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
TRANSIENT: Final = frozenset({408, 429, 500, 502, 503, 504})
_LONGEST_WAIT_S: Final = 30.0
_PROBE_S: Final = 5.0
_LARGEST_ERROR: Final = 64 << 10
_SMALL: Final = 64 << 10  # a larger request body may take as long as it needs


def backoff_s(attempt: int, retry_after: str | None = None) -> float:
    """Return how long to wait before the next attempt: it doubles from 0.1 s up to 30 s, with random variation.

    Args:
        attempt: the number of failed attempts, from 1.
        retry_after: the value of that header, in seconds.

    Source: RFC 9110, section 10.2.3.
    """
    if retry_after and retry_after.isdecimal():
        return min(float(retry_after), _LONGEST_WAIT_S)
    longest = min(0.1 * 2.0**attempt, _LONGEST_WAIT_S)
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


class Transport:
    """Connections to registries. They are kept open between requests and shared by threads.

    Args:
        settings: certificates, plain HTTP, timeouts.

    Raises:
        UnsupportedError: urllib3 is not installed.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        try:
            import urllib3  # noqa: F401 - heavy, and from an optional extra
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

        Plain HTTP is used only for registries in the settings, and for a registry on the loopback interface without
        TLS. An untrusted certificate never leads to plain HTTP.

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
            with patient(min(_PROBE_S, self.settings.metadata_s)) as until:
                patience = Patience(self.settings, until)
                release_connection(self._ask("GET", f"https://{host}/v2/", {}, None, patience, patience.left_s()))
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
        made = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
        made.pool_classes_by_scheme = connection_classes()
        return made

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
        meter: Meter | None = None,
    ) -> BaseHTTPResponse:
        """Send a request, follow redirects, and try again after temporary failures.

        Everything must arrive within the settings' ``metadata_s``, or within the remaining time of a surrounding
        :func:`patient`. If there is a body to send, the time begins after it has been sent.

        Credentials are dropped on cross-origin redirects. A redirect from HTTPS to plain HTTP is refused.

        Args:
            method: the HTTP method.
            url: the complete address.
            headers: the headers.
            body: the body.
            redirect: whether to follow redirects.
            attempts: the maximum number of attempts. Default: that of the settings.
            meter: limits the time of a large body in place of the deadline. Default: the body is small.

        Returns:
            The answer, whatever its status, with its body unread. The caller must read it (:func:`body`) or release it.

        Raises:
            ImageError: there is no answer after all attempts or in time, the certificate is untrusted, the address is
                invalid, or there are more than five redirects.

        Source: RFC 9110, sections 10.2.3 and 15.4.
        """
        attempts = self.settings.attempts if attempts is None else attempts
        large = body is not None and len(body) > _SMALL
        with patient(self.settings.metadata_s) as until:
            for attempt in range(1, attempts + 1):
                patience = Patience(self.settings, None if large else until, meter)
                try:
                    answer = self._follow(method, url, dict(headers or {}), body, patience, redirect=redirect)
                except _Unreachable as error:
                    wait, why = backoff_s(attempt), str(error)
                    if attempt == attempts and time.monotonic() < until:
                        raise TransientError(f"{method} {_shown(url)}: {error}") from error
                else:
                    if answer.status not in TRANSIENT or attempt == attempts:
                        patience.is_body = True
                        return answer
                    wait, why = backoff_s(attempt, answer.headers.get("Retry-After")), f"status {answer.status}"
                    release_connection(answer)
                if not large and time.monotonic() + wait >= until:
                    raise TransientError(
                        f"{method} {_shown(url)}: {why}, and no answer within {self.settings.metadata_s:g} s "
                        "(hint: RegistrySettings(metadata_s=...) raises this)"
                    )
                time.sleep(wait)
        raise AssertionError("attempts is at least 1")

    def _follow(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        patience: Patience,
        *,
        redirect: bool,
    ) -> BaseHTTPResponse:
        for _ in range(_MOST_REDIRECTS + 1):
            answer = self._once(method, url, headers, body, patience)
            location = answer.headers.get("Location")
            if not redirect or answer.status not in _REDIRECTS or not location:
                return answer
            release_connection(answer)
            before = address(url)
            new, after = joined(url, location)
            if after.scheme not in ("https", "http") or (before.scheme == "https" and after.scheme == "http"):
                raise ImageError(f"{method} {_shown(url)}: it redirects to {_shown(new)}, which does not use TLS")
            if (before.scheme, before.netloc) != (after.scheme, after.netloc):
                headers = {key: value for key, value in headers.items() if key.lower() != "authorization"}
            if answer.status == 303 and method != "HEAD":
                method, body = "GET", None
            url = new
        raise ImageError(f"{method} {_shown(url)}: more than {_MOST_REDIRECTS} redirects")

    def _once(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, patience: Patience
    ) -> BaseHTTPResponse:
        from http.client import HTTPException

        from urllib3.exceptions import HTTPError

        parts = address(url)
        try:
            silence = self.settings.timeout_s
            if body is None or len(body) <= _SMALL:
                silence = min(silence, patience.left_s())
            if silence <= 0:
                raise _Unreachable("the timeout expired")
            return self._ask(method, url, headers, body, patience, silence)
        except HTTPError as error:
            _raise_if_tls(parts.netloc, error)
            raise _Unreachable(_reason(error)) from error
        except OSError as error:
            if error.errno in (EMFILE, ENFILE):
                raise SetupError("socket", error.errno, parts.netloc, DESCRIPTORS_HINT) from error
            raise _Unreachable(_reason(error)) from error
        except HTTPException as error:
            raise _Unreachable(_reason(error)) from error
        except ValueError as error:  # an invalid host name or header
            raise ImageError(f"{method} {_shown(url)}: {error}") from error

    def _ask(
        self, method: str, url: str, headers: dict[str, str], body: bytes | None, patience: Patience, silence: float
    ) -> BaseHTTPResponse:
        import urllib3

        parts = address(url)
        token = current.set(patience)
        try:
            return self._pool(parts.scheme, parts.netloc).request(
                method, url, headers={"Accept-Encoding": "identity", **headers}, body=body, redirect=False,
                retries=False, preload_content=False,
                timeout=urllib3.Timeout(connect=min(10.0, silence), read=silence),
            )  # fmt: skip
        finally:
            current.reset(token)


class TransientError(ImageError):
    """There is no answer, or the answer asks to try later."""


class _Unreachable(Exception):  # noqa: N818 - never leaves this module
    """There is no answer this time."""


def address(url: str) -> SplitResult:
    """Parse an untrusted address.

    Raises:
        ImageError: it is invalid.
    """
    try:
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0):
            return parts
    except ValueError as error:
        raise ImageError(f"{url[:200]!r} is not an address: {error}") from error
    raise ImageError(f"{url[:200]!r} is not an HTTP address")


def joined(base: str, location: str) -> tuple[str, SplitResult]:
    """Resolve a location against a base address. Return the address and its parts.

    Raises:
        ImageError: it is invalid.
    """
    try:
        url = urljoin(base, location)
    except ValueError as error:
        raise ImageError(f"{location[:200]!r} is not an address: {error}") from error
    return url, address(url)


def body(answer: BaseHTTPResponse, most: int, what: str) -> bytes:
    """Return the body of an answer, or its first ``most`` bytes, and return the connection to the pool.

    Raises:
        ImageError: it does not arrive, or not in time.
    """
    from http.client import HTTPException

    from urllib3.exceptions import HTTPError

    try:
        raw = answer.read(most, decode_content=False) or b""
    except (HTTPError, HTTPException, OSError, ValueError) as error:
        answer.close()
        raise TransientError(f"{what}: the answer was cut off: {_reason(error)}") from error
    if len(raw) >= most:
        answer.close()  # the rest can have any length
    answer.release_conn()
    return raw


def release_connection(answer: BaseHTTPResponse) -> None:
    """Return the connection of an answer to the pool. If the body is large, the connection is closed."""
    with suppress(ImageError):
        body(answer, _LARGEST_ERROR, "answer")


def error_text(answer: BaseHTTPResponse) -> str:
    """Return the error message of a registry, and return the connection to the pool.

    Source: OCI distribution specification, "Error Codes".
    """
    import json

    said, raw = "", b""
    with suppress(ImageError):
        raw = body(answer, _LARGEST_ERROR, "error")
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        errors = json.loads(raw)["errors"]
        said = "; ".join(f"{one.get('code', '')} {one.get('message', '')}".strip() for one in errors)
    return f"status {answer.status}" + (f" ({said[:300]})" if said else "")


def _raise_if_tls(host: str, error: BaseException) -> None:
    """Raise an error with the remedy if one side does not trust the other. Another attempt would not help."""
    for one in _causes(error):
        if isinstance(one, ssl.SSLCertVerificationError):
            raise _tls_error(host, error) from error
        if isinstance(one, ssl.SSLError) and "alert" in str(one).lower():  # sent only by a peer that uses TLS
            raise ImageError(
                f"registry {host}: it refused this client: {_reason(error)} (hint: put the client certificate and "
                f"key into /etc/containers/certs.d/{host}/client.cert and client.key)"
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
    """Return an address without its query, which may contain a signature."""
    try:
        parts = address(url)
    except ImageError:
        return repr(url.partition("?")[0][:200])
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
    """Return whether a host must be reached without the proxy, according to the variable ``NO_PROXY``.

    Args:
        host: a name or address without a port.
        rule: names, domains (with or without a leading dot) and networks such as 10.0.0.0/8, separated by commas.

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

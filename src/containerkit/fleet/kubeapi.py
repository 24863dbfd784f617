"""Requests to the API server of Kubernetes, with the credentials of Kubernetes' own client."""

from __future__ import annotations

import json
import socket
import threading
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from containerkit.errors import SpecError, UnsupportedError
from containerkit.fleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["APIError", "KubeAPI", "UnreachableError"]

_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 0.1
_CONNECT_S: Final = 10.0
_READ_S: Final = 60.0
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_LONGEST_PAUSE_S: Final = 30.0
_RENEWED_EVERY_S: Final = 5.0

# A connection whose other end is gone is noticed after about 30 seconds, also by a watch. Source: tcp(7).
_WATCHFUL: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
_MERGE_PATCH: Final = "application/merge-patch+json"


class APIError(FleetError):
    """The API server refused a request, or can't be reached.

    Attributes:
        status: the HTTP status; 0 without an answer.
        reason: the server's word for the cause, such as ``"AlreadyExists"``; empty if it gave none.
        pause_s: the seconds to wait before the next request (``Retry-After``).
    """

    def __init__(self, message: str, status: int = 0, reason: str = "", pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.pause_s = pause_s

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.status, self.reason, self.pause_s)

    @property
    def passing(self) -> bool:
        """Return whether the same request may succeed soon: no answer, a busy server, or a changed object."""
        return self.status in (0, *_BUSY) or self.reason == "Conflict"


class UnreachableError(APIError):
    """There was no connection to the API server, so it has received no request."""


class KubeAPI:
    """An API server, with the credentials of a context. Its methods may be called from any thread.

    A request is repeated up to six times if the server is too busy, or the answer was lost: within 7 seconds, or as
    slowly as the server asks for. If it was not authorized, the credentials are read again, since tokens expire.

    Args:
        kubeconfig: the file with the credentials (default: ``$KUBECONFIG`` or ``~/.kube/config``, in a pod its service
            account).
        context: the context in it (default: the current one).

    Raises:
        UnsupportedError: Kubernetes' client is not installed.
        SpecError: there are no credentials, or no such context.
    """

    def __init__(self, kubeconfig: str | None = None, context: str | None = None) -> None:
        try:
            import kubernetes
        except ImportError as error:
            raise UnsupportedError("import", 2, "kubernetes", "pip install containerkit[kubernetes]") from error
        self._client: Any = kubernetes
        self._where = kubeconfig, context
        self._renewing = threading.Lock()
        self._renewed = time.monotonic()
        self._settings = self._read_settings()
        self._pool = self._made_pool(self._settings)

    def _read_settings(self) -> Any:
        config = self._client.config
        found = self._client.client.Configuration()
        try:
            if self._where == (None, None):
                config.load_config(client_configuration=found)
            else:
                config.load_kube_config(*self._where, found)
        except (config.ConfigException, OSError, ValueError) as error:
            raise SpecError(f"Fleet.kubernetes: no credentials: {error} (hint: kubeconfig=, or KUBECONFIG)") from error
        return found

    def _renew(self, used: Any) -> None:
        """Read the credentials again, unless another thread did since ``used`` was read, or just now."""
        with self._renewing:
            if self._settings is not used or time.monotonic() < self._renewed + _RENEWED_EVERY_S:
                return
            self._renewed = time.monotonic()
            try:
                found = self._read_settings()
            except SpecError:  # perhaps they are just being replaced: the refusal is the error
                return
            self._pool, self._settings = self._made_pool(found), found

    @staticmethod
    def _made_pool(given: Any) -> Any:
        import urllib3

        more: dict[str, Any] = {"ca_certs": given.ssl_ca_cert, "cert_file": given.cert_file, "key_file": given.key_file}
        if not given.verify_ssl:
            more["cert_reqs"] = "CERT_NONE"
        timeout = urllib3.Timeout(connect=_CONNECT_S, read=_READ_S)
        more |= {"socket_options": _WATCHFUL, "maxsize": 16, "timeout": timeout, "retries": False}
        proxy = getattr(given, "proxy", None)
        return urllib3.ProxyManager(proxy, **more) if proxy else urllib3.PoolManager(**more)

    @staticmethod
    def _headers(settings: Any, content_type: str) -> dict[str, str]:
        found = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "containerkit"}
        for each in settings.auth_settings().values():
            if each and each.get("in") == "header" and each.get("value"):
                found[each["key"]] = each["value"]
        return found

    def _send(self, method: str, path: str, query: Mapping[str, Any], body: Any, **more: Any) -> Any:
        """Return an answer of any status.

        Raises:
            APIError: there was no answer.
        """
        import urllib3

        settings = self._settings
        url = f"{settings.host}{path}" + (f"?{urlencode(query)}" if query else "")
        content_type = _MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            answer = self._pool.request(
                method,
                url,
                headers=self._headers(settings, content_type),
                body=None if body is None else json.dumps(body).encode(),
                **more,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            unsent = isinstance(error, (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError))
            kind = UnreachableError if unsent else APIError
            raise kind(f"{method} {path}: no answer from {settings.host}: {error}") from error
        if answer.status == HTTPStatus.UNAUTHORIZED:
            self._renew(settings)
        return answer

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Return the object in the answer to a request.

        Args:
            method: the HTTP method.
            path: below the server's address.
            body: an object to send.
            query: parameters.

        Raises:
            APIError: it was refused, or there was no answer after several attempts.
        """
        content = self.content(method, path, body, **query)
        return json.loads(content) if content else None

    def content(self, method: str, path: str, body: Any = None, **query: Any) -> bytes:
        """Return the content of the answer to a request; see :meth:`request`."""
        pause = _FIRST_PAUSE_S
        renewed = False
        for left in reversed(range(_TRIES)):
            used = self._settings
            try:
                answer = self._send(method, path, query, body)
                if answer.status < 300:
                    return bytes(answer.data)
                error = _refusal(method, path, answer, answer.data)
            except APIError as problem:
                error = problem
            if error.status == HTTPStatus.UNAUTHORIZED and self._settings is not used and not renewed:
                renewed = True
                continue
            if not left or not error.passing:
                break
            time.sleep(max(pause, error.pause_s))
            pause *= 2
        raise error

    def lines(self, path: str, *, read_s: float = _READ_S, **query: Any) -> Iterator[bytes]:
        """Yield the lines of an answer while the server writes them. The last one may be incomplete.

        Args:
            path: below the server's address.
            read_s: the maximum time without any data, in seconds.
            query: parameters.

        Raises:
            APIError: it was refused, or the connection was lost.
        """
        import urllib3

        timeout = urllib3.Timeout(connect=_CONNECT_S, read=read_s)
        answer = self._send("GET", path, query, None, preload_content=False, timeout=timeout)
        try:
            if answer.status >= 300:
                raise _refusal("GET", path, answer, answer.read())
            rest = b""
            for chunk in answer.stream(65536):
                *whole, rest = (rest + chunk).split(b"\n")
                for each in whole:
                    yield each + b"\n"
            if rest:
                yield rest
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise APIError(f"GET {path}: the connection was lost: {error}") from error
        finally:
            answer.close()

    def close(self) -> None:
        """Close all connections. May be called twice."""
        self._pool.clear()


def _refusal(method: str, path: str, answer: Any, content: bytes) -> APIError:
    try:
        told = json.loads(content)
        message, reason = told["message"], told.get("reason") or ""
    except (ValueError, KeyError, TypeError):
        message, reason = content[:300].decode("utf-8", "replace").strip(), ""
    wanted = answer.headers.get("Retry-After", "")
    pause = min(float(wanted), _LONGEST_PAUSE_S) if wanted.isdecimal() else 0.0
    return APIError(f"{method} {path}: {answer.status}: {message}", answer.status, reason, pause)

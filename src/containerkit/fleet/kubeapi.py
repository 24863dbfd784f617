"""Requests to the API server of Kubernetes, with the credentials of Kubernetes' own client."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from containerkit.errors import SpecError, UnsupportedError
from containerkit.fleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["APIError", "KubeAPI"]

_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 0.1
_CONNECT_S: Final = 10.0
_READ_S: Final = 60.0
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_MERGE_PATCH: Final = "application/merge-patch+json"


class APIError(FleetError):
    """The API server refused a request, or can't be reached.

    Attributes:
        status: the HTTP status; 0 without an answer.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.status)


class KubeAPI:
    """An API server, with the credentials of a context. Its methods may be called from any thread.

    A request is repeated up to six times within 7 seconds if the server is too busy, or the answer was lost.

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
        client: Any = kubernetes.client
        config: Any = kubernetes.config
        self._settings: Any = client.Configuration()
        try:
            if kubeconfig is None and context is None:
                config.load_config(client_configuration=self._settings)
            else:
                config.load_kube_config(kubeconfig, context, self._settings)
        except config.ConfigException as error:
            raise SpecError(f"Fleet.kubernetes: no credentials: {error} (hint: kubeconfig=, or KUBECONFIG)") from error
        self._pool = self._made_pool()

    def _made_pool(self) -> Any:
        import urllib3

        given = self._settings
        more: dict[str, Any] = {"ca_certs": given.ssl_ca_cert, "cert_file": given.cert_file, "key_file": given.key_file}
        if not given.verify_ssl:
            more["cert_reqs"] = "CERT_NONE"
        more |= {"maxsize": 16, "timeout": urllib3.Timeout(connect=_CONNECT_S, read=_READ_S), "retries": False}
        proxy = getattr(given, "proxy", None)
        return urllib3.ProxyManager(proxy, **more) if proxy else urllib3.PoolManager(**more)

    def _headers(self, content_type: str) -> dict[str, str]:
        found = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "containerkit"}
        for each in self._settings.auth_settings().values():
            if each and each.get("in") == "header" and each.get("value"):
                found[each["key"]] = each["value"]
        return found

    def _send(self, method: str, path: str, query: Mapping[str, Any], body: Any, **more: Any) -> Any:
        """Return an answer of any status.

        Raises:
            APIError: there was no answer.
        """
        import urllib3

        url = f"{self._settings.host}{path}" + (f"?{urlencode(query)}" if query else "")
        content_type = _MERGE_PATCH if method == "PATCH" else "application/json"
        try:
            return self._pool.request(
                method,
                url,
                headers=self._headers(content_type),
                body=None if body is None else json.dumps(body).encode(),
                **more,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise APIError(f"{method} {path}: no answer from {self._settings.host}: {error}") from error

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
        for left in reversed(range(_TRIES)):
            try:
                answer = self._send(method, path, query, body)
                if answer.status < 300:
                    return bytes(answer.data)
                error = _refusal(method, path, answer.status, answer.data)
            except APIError as problem:
                error = problem
            if not left or (error.status and error.status not in _BUSY):
                break
            time.sleep(pause)
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
                raise _refusal("GET", path, answer.status, answer.read())
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


def _refusal(method: str, path: str, status: int, content: bytes) -> APIError:
    try:
        message = json.loads(content)["message"]
    except (ValueError, KeyError, TypeError):
        message = content[:300].decode("utf-8", "replace").strip()
    return APIError(f"{method} {path}: {status}: {message}", status)

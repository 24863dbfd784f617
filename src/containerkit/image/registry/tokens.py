"""Authentication: the challenge, the token, and where credentials may be sent."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urlencode, urlsplit

from containerkit.errors import ImageError
from containerkit.image.reference import DEFAULT_REGISTRY
from containerkit.image.registry.transport import address, body, release_connection

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse

    from containerkit.image.registry.credentials import Credentials
    from containerkit.image.registry.transport import Transport

__all__ = ["Authorizer", "may_send_to", "parse_challenges"]

_CHALLENGE: Final = re.compile(
    r'([A-Za-z][A-Za-z0-9-]*)\s+((?:[A-Za-z_]+\s*=\s*(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)\s*,?\s*)+)'
)
_PARAMETER: Final = re.compile(r'([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_LARGEST_TOKEN: Final = 1 << 20
_SHORTEST_S, _LONGEST_S = 60, 24 * 3600


def parse_challenges(headers: list[str]) -> dict[str, dict[str, str]]:
    """Parse the headers ``WWW-Authenticate``: the parameters of each scheme, by its lower-case name.

    Source: RFC 9110, section 11.6.1.
    """
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        for scheme, parameters in _CHALLENGE.findall(header):
            pairs = {
                key.lower(): quoted.replace("\\", "") if quoted else plain
                for key, quoted, plain in _PARAMETER.findall(parameters)
            }
            found.setdefault(scheme.lower(), pairs)
        bare = header.split(None, 1)[0].lower() if header.strip() else ""
        if bare in ("basic", "bearer"):
            found.setdefault(bare, {})
    return found


def may_send_to(registry: str, realm: str, allowed: tuple[str, ...] = ()) -> bool:
    """Return whether a registry's credentials may be sent to its token service.

    They may be sent to its own host, a host of the same parent domain (``auth.docker.io`` for
    ``registry-1.docker.io``), the parent itself (``gitlab.com`` for ``registry.gitlab.com``), or a host in the
    settings.

    Args:
        registry: the ``host[:port]`` of the request.
        realm: the complete address of the token service.
        allowed: hosts from the settings.
    """
    parts = urlsplit(realm)
    target, own = (parts.hostname or "").lower(), (urlsplit(f"//{registry}").hostname or "").lower()
    if target == own or target in allowed or parts.netloc in allowed:
        return True
    parent = own.partition(".")[2]
    if "." not in parent or own.replace(".", "").isdigit() or ":" in own:
        return False
    return target == parent or target.partition(".")[2] == parent


class Authorizer:
    """Provides the header ``Authorization`` for requests to one registry.

    Args:
        registry: ``host[:port]`` as in references.
        host: the host to which requests are sent.
        credentials: the credentials, or None for anonymous access.
        transport: the connections.
    """

    def __init__(self, registry: str, host: str, credentials: Credentials | None, transport: Transport) -> None:
        self._registry = registry
        self._host = host
        self._credentials = credentials
        self._transport = transport
        self._tokens: dict[str, tuple[str, float]] = {}
        self._basic = False
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def __repr__(self) -> str:
        who = self._credentials.username if self._credentials else "anonymous"
        return f"<Authorizer for {self._registry}: {who}, {len(self._tokens)} tokens>"

    def header(self, scope: str) -> str | None:
        """Return the header for a scope, if it is known without a request."""
        with self._lock:
            if self._basic and self._credentials is not None:
                return self._credentials.basic
            token, until = self._tokens.get(scope, ("", 0.0))
            return f"Bearer {token}" if token and time.monotonic() < until else None

    def answer(self, refusal: BaseHTTPResponse, scope: str, sent: str | None) -> None:
        """Get the authorization that a 401 answer requires.

        Args:
            refusal: the answer.
            scope: the requested scope.
            sent: the refused header, or None.

        Raises:
            ImageError: there are no credentials, they may not be sent to the requested host, or they are refused.

        Source: OCI distribution specification; the distribution project's token authentication specification.
        """
        challenges = parse_challenges(refusal.headers.getlist("WWW-Authenticate"))
        release_connection(refusal)
        with self._asking:
            if self.header(scope) not in (None, sent):
                return  # another thread has got it in the meantime
            if "bearer" in challenges:
                self._fetch_token(challenges["bearer"], scope)
            elif "basic" in challenges and self._credentials is not None:
                if sent is not None:
                    raise self._denied("the user name or password is wrong")
                self._basic = True
            else:
                raise self._denied(
                    "it requires credentials" if self._credentials is None else "it offers no supported way to log in"
                )

    def _denied(self, why: str) -> ImageError:
        who = f"as {self._credentials.username}" if self._credentials else "without credentials"
        name = "docker.io" if self._registry == DEFAULT_REGISTRY else self._registry
        return ImageError(f"registry {name}: not authorized {who}: {why} (hint: containerkit login {name})")

    def _fetch_token(self, challenge: dict[str, str], scope: str) -> None:
        realm = challenge.get("realm", "")
        parts = address(realm)
        origin = self._transport.origin(self._host)
        if parts.scheme not in ("https", "http") or (origin.startswith("https:") and parts.scheme != "https"):
            raise ImageError(f"registry {self._registry}: its token service {realm!r} does not use TLS")
        allowed = tuple(self._transport.settings.token_hosts.get(self._registry, ()))
        if self._credentials is not None and not may_send_to(self._host, realm, allowed):
            raise ImageError(
                f"registry {self._registry}: it asks for the credentials at {parts.hostname}, which is outside its "
                "own domain (hint: allow it by "
                f"RegistrySettings(token_hosts={{{self._registry!r}: ({parts.hostname!r},)}}))"
            )
        wanted = {"service": challenge.get("service", ""), "scope": challenge.get("scope") or scope}
        answer = self._ask(realm, wanted)
        raw = body(answer, _LARGEST_TOKEN, f"registry {self._registry}: token")
        if answer.status != 200:
            raise self._denied(f"its token service answers with status {answer.status}")
        try:
            content = json.loads(raw)
            token = content.get("token") or content.get("access_token")
            lifetime = min(max(int(content.get("expires_in") or _SHORTEST_S), _SHORTEST_S), _LONGEST_S)
        except (ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
            raise ImageError(f"registry {self._registry}: its token service returns no JSON object") from error
        if not isinstance(token, str) or not token or not token.isprintable():
            raise ImageError(f"registry {self._registry}: its token service returns no token")
        with self._lock:
            self._tokens[scope] = (token, time.monotonic() + lifetime * 0.9)

    def _ask(self, realm: str, wanted: dict[str, str]) -> BaseHTTPResponse:
        wanted = {key: value for key, value in wanted.items() if value}
        if self._credentials is not None and self._credentials.identity_token:
            form = wanted | {
                "grant_type": "refresh_token",
                "client_id": "containerkit",
                "refresh_token": self._credentials.identity_token,
            }
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            return self._transport.send("POST", realm, headers=headers, body=urlencode(form).encode(), redirect=False)
        query = "&".join(
            f"{key}={quote(part, safe=':/,')}"
            for key, value in wanted.items()
            for part in (value.split(" ") if key == "scope" else [value])
        )
        headers = {} if self._credentials is None else {"Authorization": self._credentials.basic}
        joint = "&" if urlsplit(realm).query else "?"
        return self._transport.send("GET", f"{realm}{joint}{query}", headers=headers)

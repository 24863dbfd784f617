"""The client of one registry: each call of the OCI distribution specification."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode, urljoin, urlsplit

from containerkit.errors import ImageError
from containerkit.image import media
from containerkit.image.digest import Digest
from containerkit.image.document import LARGEST_BYTES
from containerkit.image.manifest import Descriptor, Index, parse_manifest
from containerkit.image.reference import DEFAULT_REGISTRY
from containerkit.image.registry.credentials import find_credentials
from containerkit.image.registry.settings import RegistrySettings
from containerkit.image.registry.tokens import Authorizer
from containerkit.image.registry.transport import TRANSIENT, TransientError, Transport, error_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType
    from typing import Self

    from urllib3 import BaseHTTPResponse

    from containerkit.image.manifest import Manifest
    from containerkit.image.registry.credentials import Credentials

__all__ = ["Registry"]

_API_HOSTS: Final = {DEFAULT_REGISTRY: "registry-1.docker.io"}
_NEXT: Final = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_MOST_PAGES: Final = 10_000


class Registry:
    """One registry, and the connections to it; threads may share it.

    Args:
        name: ``host[:port]`` as in references.
        settings: how to reach it. Default: those of the machine and user.
        credentials: who asks. Default: what the files and helpers of other container tools know.
        host: another host to ask in its place (a mirror).

    Raises:
        UnsupportedError: urllib3 is not installed.

    Source: OCI distribution specification.
    """

    def __init__(
        self,
        name: str,
        *,
        settings: RegistrySettings | None = None,
        credentials: Credentials | None = None,
        host: str = "",
    ) -> None:
        self.name = name
        self.settings = settings or RegistrySettings.load()
        self.host = host or _API_HOSTS.get(name, name)
        self._given = credentials
        self._transport = Transport(self.settings)
        self._authorizers: dict[str, Authorizer] = {}

    def __repr__(self) -> str:
        return f"Registry({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. May be called twice."""
        self._transport.close()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _authorizer(self, repository: str) -> Authorizer:
        found = self._authorizers.get(repository)
        if found is None:
            name = self.name if self.host == _API_HOSTS.get(self.name, self.name) else self.host
            credentials = self._given or find_credentials(name, repository)
            found = self._authorizers[repository] = Authorizer(name, self.host, credentials, self._transport)
        return found

    def request(
        self,
        method: str,
        path: str,
        repository: str = "",
        *,
        actions: str = "pull",
        more_scopes: tuple[str, ...] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        attempts: int | None = None,
    ) -> BaseHTTPResponse:
        """Send a request, logging in when the registry asks for it.

        Args:
            method: the verb.
            path: below ``/v2/``, or a whole address that the registry gave.
            repository: what it is about.
            actions: what is wanted of it: ``pull``, ``pull,push`` or ``*``.
            more_scopes: further scopes, for a mount from another repository.
            headers: the headers.
            body: the body.
            attempts: tries in all.

        Returns:
            The answer, with its body unread: read it or release it.

        Raises:
            ImageError: no answer, or no permission.
        """
        url = path if "://" in path else f"{self._transport.origin(self.host)}/v2/{path}"
        foreign = urlsplit(url).netloc != self.host
        scopes = [f"repository:{repository}:{actions}"] if repository else []
        scope = " ".join([*scopes, *more_scopes])
        authorizer = self._authorizer(repository)
        for last in (False, False, True):
            sent = dict(headers or {})
            known = None if foreign else authorizer.header(scope)
            if known is not None:
                sent["Authorization"] = known
            answer = self._transport.send(method, url, headers=sent, body=body, attempts=attempts)
            if answer.status != 401 or foreign:
                return answer
            if last:
                break
            authorizer.answer(answer, scope, known)
        raise ImageError(
            f"registry {self.name}: {method} {repository or '/v2/'}: {error_text(answer)} after logging in"
        )

    def _checked(self, answer: BaseHTTPResponse, what: str, *good: int) -> BaseHTTPResponse:
        if answer.status in good:
            return answer
        text = error_text(answer)
        meaning = {403: ": no permission", 404: ": it is not there", 429: ": too many requests"}.get(answer.status, "")
        kind = TransientError if answer.status in TRANSIENT else ImageError
        raise kind(f"registry {self.name}: {what}{meaning}: {text}")

    # --- pull ---------------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """See that it is a registry and that the credentials, if any, are right.

        Raises:
            ImageError: it is none, or they are wrong.
        """
        answer = self.request("GET", "")
        self._checked(answer, "ping", 200).drain_conn()

    def manifest(self, repository: str, target: str) -> Manifest | Index:
        """Fetch a manifest or index by tag or digest, verified.

        Raises:
            ImageError: it is not there, is malformed, or is not what its digest says.

        Source: OCI distribution specification, "Pulling manifests".
        """
        what = f"manifest {repository}:{target}"
        answer = self.request(
            "GET", f"{repository}/manifests/{target}", repository, headers={"Accept": ", ".join(media.ACCEPTED)}
        )
        self._checked(answer, what, 200)
        raw = answer.read(LARGEST_BYTES + 1) or b""
        answer.release_conn()
        expected = target if ":" in target else answer.headers.get("Docker-Content-Digest")
        if expected and expected.startswith("sha"):
            wanted = Digest(expected)
            state = wanted.hasher()
            state.update(raw)
            wanted.check(state, what)
        return parse_manifest(raw, answer.headers.get("Content-Type", ""), what)

    def manifest_digest(self, repository: str, target: str) -> Digest | None:
        """Return the digest that a tag has now, or None when it is not there or the registry does not say."""
        answer = self.request(
            "HEAD", f"{repository}/manifests/{target}", repository, headers={"Accept": ", ".join(media.ACCEPTED)}
        )
        answer.drain_conn()
        found = answer.headers.get("Docker-Content-Digest")
        return Digest(found) if answer.status == 200 and found else None

    def blob(self, repository: str, digest: Digest, offset: int = 0) -> BaseHTTPResponse:
        """Begin to fetch a blob.

        Args:
            repository: where it is.
            digest: which.
            offset: where to begin, in bytes.

        Returns:
            The answer: 206 from the offset on, 200 from the beginning, 416 when nothing lies there.

        Raises:
            ImageError: it is not there.

        Source: OCI distribution specification, "Pulling blobs"; RFC 9110, section 14.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        answer = self.request("GET", f"{repository}/blobs/{digest}", repository, headers=headers)
        return self._checked(answer, f"blob {repository}@{digest}", 200, 206, 416)

    def has_blob(self, repository: str, digest: Digest, actions: str = "pull") -> bool:
        """Return whether a repository has a blob."""
        answer = self.request("HEAD", f"{repository}/blobs/{digest}", repository, actions=actions)
        answer.drain_conn()
        if answer.status in (200, 404):
            return answer.status == 200
        raise ImageError(f"registry {self.name}: blob {repository}@{digest}: status {answer.status}")

    def _pages(self, path: str, repository: str, key: str) -> Iterator[str]:
        for _ in range(_MOST_PAGES):
            answer = self.request("GET", path, repository)
            self._checked(answer, path.partition("?")[0], 200)
            raw = answer.read(LARGEST_BYTES) or b""
            answer.release_conn()
            try:
                yield from json.loads(raw).get(key) or ()
            except (ValueError, AttributeError, TypeError) as error:
                raise ImageError(f"registry {self.name}: {path.partition('?')[0]}: not a list") from error
            link = _NEXT.search(answer.headers.get("Link", ""))
            if link is None:
                return
            path = urljoin(f"{self._transport.origin(self.host)}/v2/", link[1])
            if urlsplit(path).netloc != self.host:
                raise ImageError(f"registry {self.name}: the next page lies on another host")

    def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, page by page.

        Source: OCI distribution specification, "Listing Tags".
        """
        return list(self._pages(f"{repository}/tags/list", repository, "tags"))

    def referrers(self, repository: str, digest: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """Return the manifests that refer to another: signatures, bills of materials and the like.

        Args:
            repository: where it is.
            digest: what they refer to.
            artifact_type: only those of this type; empty for all.

        Source: OCI distribution specification, "Listing Referrers" and "Unavailable Referrers API".
        """
        query = "?" + urlencode({"artifactType": artifact_type}) if artifact_type else ""
        accept = {"Accept": media.OCI_INDEX}
        answer = self.request("GET", f"{repository}/referrers/{digest}{query}", repository, headers=accept)
        if answer.status == 404:
            answer.drain_conn()
            tag = f"{digest.algorithm}-{digest.encoded}"
            answer = self.request("GET", f"{repository}/manifests/{tag}", repository, headers=accept)
            if answer.status == 404:
                answer.drain_conn()
                return ()
        self._checked(answer, f"referrers {repository}@{digest}", 200)
        raw = answer.read(LARGEST_BYTES + 1) or b""
        answer.release_conn()
        found = parse_manifest(raw, media.OCI_INDEX, "referrers")
        if not isinstance(found, Index):
            raise ImageError(f"registry {self.name}: the referrers of {digest} are not an index")
        return tuple(one for one in found.manifests if not artifact_type or one.artifact_type == artifact_type)

    # --- push ---------------------------------------------------------------------------------------------------------

    def start_upload(self, repository: str, digest: Digest, mount_from: str = "") -> BaseHTTPResponse | None:
        """Begin an upload, or have a blob of another repository mounted.

        Args:
            repository: where to.
            digest: what.
            mount_from: another repository of this registry that has it.

        Returns:
            The answer with the address to upload to, or None when the blob was mounted.

        Raises:
            ImageError: no permission.

        Source: OCI distribution specification, "Pushing blobs" and "Mounting a blob from another repository".
        """
        query = "?" + urlencode({"mount": str(digest), "from": mount_from}) if mount_from else ""
        more = (f"repository:{mount_from}:pull",) if mount_from else ()
        answer = self.request(
            "POST", f"{repository}/blobs/uploads/{query}", repository, actions="pull,push", more_scopes=more,
            headers={"Content-Length": "0"},
        )  # fmt: skip
        self._checked(answer, f"upload of {digest} to {repository}", 201, 202).drain_conn()
        return None if answer.status == 201 else answer

    def upload(
        self, method: str, location: str, repository: str, body: bytes | None, headers: Mapping[str, str], *good: int
    ) -> BaseHTTPResponse:
        """Send a piece of an upload to the address that the registry gave for it; tried once.

        Raises:
            ImageError: it is refused.
        """
        answer = self.request(method, location, repository, actions="pull,push", headers=headers, body=body, attempts=1)
        self._checked(answer, f"upload to {repository}", *good).drain_conn()
        return answer

    def location(self, answer: BaseHTTPResponse) -> str:
        """Return the whole address that an answer of an upload names for what follows.

        Raises:
            ImageError: it names none.
        """
        found = answer.headers.get("Location")
        if not found:
            raise ImageError(f"registry {self.name}: it does not say where to upload to")
        return urljoin(f"{self._transport.origin(self.host)}/v2/", found)

    def put_manifest(self, repository: str, target: str, document: Manifest | Index) -> Digest:
        """Store a manifest or index under a tag or its digest.

        Returns:
            Its digest.

        Raises:
            ImageError: it is refused, or taken for something else.

        Source: OCI distribution specification, "Pushing Manifests".
        """
        answer = self.request(
            "PUT", f"{repository}/manifests/{target}", repository, actions="pull,push", body=document.raw,
            headers={"Content-Type": document.media_type},
        )  # fmt: skip
        self._checked(answer, f"push of manifest {repository}:{target}", 201).drain_conn()
        said = answer.headers.get("Docker-Content-Digest")
        if said and said.startswith("sha256:") and said != document.digest:
            raise ImageError(f"registry {self.name}: it took manifest {document.digest} for {said}")
        return document.digest

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Delete a manifest.

        Raises:
            ImageError: it is not there, or the registry does not allow it.

        Source: OCI distribution specification, "Deleting Manifests".
        """
        answer = self.request("DELETE", f"{repository}/manifests/{digest}", repository, actions="*")
        self._checked(answer, f"deletion of {repository}@{digest}", 202).drain_conn()

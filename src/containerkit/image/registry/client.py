"""The client of one registry, with each call of the OCI distribution specification."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from containerkit.descriptors import Closing
from containerkit.errors import ImageError, SpecError
from containerkit.image import media
from containerkit.image.digest import Digest
from containerkit.image.document import LARGEST_BYTES
from containerkit.image.manifest import Descriptor, Index, parse_manifest
from containerkit.image.reference import DEFAULT_REGISTRY
from containerkit.image.registry.credentials import find_credentials
from containerkit.image.registry.deadlines import Meter, patient
from containerkit.image.registry.settings import RegistrySettings
from containerkit.image.registry.tokens import Authorizer
from containerkit.image.registry.transport import (
    TRANSIENT,
    TransientError,
    Transport,
    address,
    body,
    error_text,
    joined,
    release_connection,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from urllib3 import BaseHTTPResponse

    from containerkit.image.manifest import Manifest
    from containerkit.image.registry.credentials import Credentials

__all__ = ["Registry"]

_API_HOSTS: Final = {DEFAULT_REGISTRY: "registry-1.docker.io"}
_NEXT: Final = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')
_MOST_PAGES: Final = 10_000


class Registry(Closing):
    """One registry and the connections to it. Threads can share it.

    Args:
        name: ``host[:port]`` as in references.
        settings: how to reach it. Default: those of the machine and user.
        credentials: the credentials. Default: those in files and helpers of other container tools.
        host: another host to ask instead (a mirror).

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
        meter: Meter | None = None,
    ) -> BaseHTTPResponse:
        """Send a request. Log in if the registry requires it.

        Args:
            method: the HTTP method.
            path: below ``/v2/``, or a complete address from the registry.
            repository: the repository concerned.
            actions: the requested permissions: ``pull``, ``pull,push`` or ``*``.
            more_scopes: more scopes, for a mount from another repository.
            headers: the headers.
            body: the body.
            attempts: the maximum number of attempts.
            meter: limits the time of a large body. Default: the body too must arrive within ``metadata_s``.

        Returns:
            The answer with its body unread. The caller must read or release it.

        Raises:
            ImageError: there is no answer, or permission is denied.
        """
        with patient(self.settings.metadata_s) if body is None else nullcontext():
            return self._request(method, path, repository, actions, more_scopes, headers, body, attempts, meter)

    def _request(
        self,
        method: str,
        path: str,
        repository: str,
        actions: str,
        more_scopes: tuple[str, ...],
        headers: Mapping[str, str] | None,
        body: bytes | None,
        attempts: int | None,
        meter: Meter | None,
    ) -> BaseHTTPResponse:
        url = path if "://" in path else f"{self._transport.origin(self.host)}/v2/{path}"
        foreign = address(url).netloc != self.host
        scopes = [f"repository:{repository}:{actions}"] if repository else []
        scope = " ".join([*scopes, *more_scopes])
        authorizer = self._authorizer(repository)
        for last in (False, False, True):
            sent = dict(headers or {})
            known = None if foreign else authorizer.header(scope)
            if known is not None:
                sent["Authorization"] = known
            answer = self._transport.send(method, url, headers=sent, body=body, attempts=attempts, meter=meter)
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
        meaning = {403: ": no permission", 404: ": does not exist", 429: ": too many requests"}.get(answer.status, "")
        kind = TransientError if answer.status in TRANSIENT else ImageError
        raise kind(f"registry {self.name}: {what}{meaning}: {text}")

    # --- pull ---------------------------------------------------------------------------------------------------------

    def ping(self) -> None:
        """Check that it is a registry and that the credentials, if any, are correct.

        Raises:
            ImageError: it is not a registry, or the credentials are wrong.
        """
        answer = self.request("GET", "")
        release_connection(self._checked(answer, "ping", 200))

    def manifest(self, repository: str, target: str) -> Manifest | Index:
        """Fetch and verify a manifest or index by tag or digest.

        Raises:
            ImageError: it does not exist, is malformed, or does not match its digest.

        Source: OCI distribution specification, "Pulling manifests".
        """
        what = f"manifest {repository}:{target}"
        answer = self.request(
            "GET", f"{repository}/manifests/{target}", repository, headers={"Accept": ", ".join(media.ACCEPTED)}
        )
        self._checked(answer, what, 200)
        raw = body(answer, LARGEST_BYTES + 1, what)
        expected = target if ":" in target else answer.headers.get("Docker-Content-Digest")
        if expected and expected.startswith("sha"):
            wanted = self._digest(expected)
            state = wanted.hasher()
            state.update(raw)
            wanted.check(state, what)
        return parse_manifest(raw, answer.headers.get("Content-Type", ""), what)

    def manifest_digest(self, repository: str, target: str) -> Digest | None:
        """Return the present digest of a tag, or None if it does not exist or the registry does not report it."""
        answer = self.request(
            "HEAD", f"{repository}/manifests/{target}", repository, headers={"Accept": ", ".join(media.ACCEPTED)}
        )
        release_connection(answer)
        found = answer.headers.get("Docker-Content-Digest")
        return self._digest(found) if answer.status == 200 and found else None

    def _digest(self, text: str) -> Digest:
        try:
            return Digest(text)
        except SpecError as error:
            raise ImageError(f"registry {self.name}: {str(error)[:200]}") from error

    def blob(self, repository: str, digest: Digest, offset: int = 0, *, meter: Meter | None = None) -> BaseHTTPResponse:
        """Begin to fetch a blob.

        Args:
            repository: the repository.
            digest: the digest of the blob.
            offset: where to begin, in bytes.
            meter: limits how slow it may be. Default: the least rate of the settings.

        Returns:
            The answer: 206 from the offset on, 200 from the beginning, 416 if the offset is beyond the end.

        Raises:
            ImageError: it does not exist.

        Source: OCI distribution specification, "Pulling blobs"; RFC 9110, section 14.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        meter = meter or Meter(self.settings)
        answer = self.request("GET", f"{repository}/blobs/{digest}", repository, headers=headers, meter=meter)
        return self._checked(answer, f"blob {repository}@{digest}", 200, 206, 416)

    def has_blob(self, repository: str, digest: Digest, actions: str = "pull") -> bool:
        """Return whether a repository has a blob."""
        answer = self.request("HEAD", f"{repository}/blobs/{digest}", repository, actions=actions)
        release_connection(answer)
        if answer.status in (200, 404):
            return answer.status == 200
        raise ImageError(f"registry {self.name}: blob {repository}@{digest}: status {answer.status}")

    def _pages(self, path: str, repository: str, key: str) -> Iterator[str]:
        for _ in range(_MOST_PAGES):
            answer = self.request("GET", path, repository)
            self._checked(answer, path.partition("?")[0], 200)
            raw = body(answer, LARGEST_BYTES, path.partition("?")[0])
            try:
                yield from json.loads(raw).get(key) or ()
            except (ValueError, AttributeError, TypeError, RecursionError) as error:
                raise ImageError(f"registry {self.name}: {path.partition('?')[0]}: not a list") from error
            link = _NEXT.search(answer.headers.get("Link", ""))
            if link is None:
                return
            path, parts = joined(f"{self._transport.origin(self.host)}/v2/", link[1])
            if parts.netloc != self.host:
                raise ImageError(f"registry {self.name}: the next page is on another host")

    def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository, page by page.

        Source: OCI distribution specification, "Listing Tags".
        """
        return list(self._pages(f"{repository}/tags/list", repository, "tags"))

    def referrers(self, repository: str, digest: Digest, artifact_type: str = "") -> tuple[Descriptor, ...]:
        """Return the manifests that refer to another one, such as signatures and bills of materials.

        Args:
            repository: the repository.
            digest: the manifest to which they refer.
            artifact_type: return only those of this type; empty for all.

        Source: OCI distribution specification, "Listing Referrers" and "Unavailable Referrers API".
        """
        query = "?" + urlencode({"artifactType": artifact_type}) if artifact_type else ""
        accept = {"Accept": media.OCI_INDEX}
        answer = self.request("GET", f"{repository}/referrers/{digest}{query}", repository, headers=accept)
        if answer.status == 404:
            release_connection(answer)
            tag = f"{digest.algorithm}-{digest.encoded}"
            answer = self.request("GET", f"{repository}/manifests/{tag}", repository, headers=accept)
            if answer.status == 404:
                release_connection(answer)
                return ()
        self._checked(answer, f"referrers {repository}@{digest}", 200)
        raw = body(answer, LARGEST_BYTES + 1, f"referrers {repository}@{digest}")
        found = parse_manifest(raw, media.OCI_INDEX, "referrers")
        if not isinstance(found, Index):
            raise ImageError(f"registry {self.name}: the referrers of {digest} are not an index")
        return tuple(one for one in found.manifests if not artifact_type or one.artifact_type == artifact_type)

    # --- push ---------------------------------------------------------------------------------------------------------

    def start_upload(self, repository: str, digest: Digest, mount_from: str = "") -> BaseHTTPResponse | None:
        """Begin an upload, or mount the blob from another repository.

        Args:
            repository: the destination.
            digest: the digest of the blob.
            mount_from: another repository of this registry that contains it.

        Returns:
            The answer with the address for the upload, or None if the blob was mounted.

        Raises:
            ImageError: permission is denied.

        Source: OCI distribution specification, "Pushing blobs" and "Mounting a blob from another repository".
        """
        query = "?" + urlencode({"mount": str(digest), "from": mount_from}) if mount_from else ""
        more = (f"repository:{mount_from}:pull",) if mount_from else ()
        answer = self.request(
            "POST", f"{repository}/blobs/uploads/{query}", repository, actions="pull,push", more_scopes=more,
            headers={"Content-Length": "0"},
        )  # fmt: skip
        release_connection(self._checked(answer, f"upload of {digest} to {repository}", 201, 202))
        return None if answer.status == 201 else answer

    def upload(
        self, method: str, location: str, repository: str, body: bytes | None, headers: Mapping[str, str], *good: int
    ) -> BaseHTTPResponse:
        """Send a piece of an upload to the address from the registry, with one attempt.

        Raises:
            ImageError: it is refused.
        """
        answer = self.request(method, location, repository, actions="pull,push", headers=headers, body=body, attempts=1)
        release_connection(self._checked(answer, f"upload to {repository}", *good))
        return answer

    def location(self, answer: BaseHTTPResponse) -> str:
        """Return the complete address for the next request of an upload.

        Raises:
            ImageError: the answer has none.
        """
        found = answer.headers.get("Location")
        if not found:
            raise ImageError(f"registry {self.name}: the answer has no address for the upload")
        return joined(f"{self._transport.origin(self.host)}/v2/", found)[0]

    def put_manifest(self, repository: str, target: str, document: Manifest | Index) -> Digest:
        """Store a manifest or index under a tag or its digest.

        Returns:
            Its digest.

        Raises:
            ImageError: it is refused, or stored with another digest.

        Source: OCI distribution specification, "Pushing Manifests".
        """
        answer = self.request(
            "PUT", f"{repository}/manifests/{target}", repository, actions="pull,push", body=document.raw,
            headers={"Content-Type": document.media_type},
        )  # fmt: skip
        release_connection(self._checked(answer, f"push of manifest {repository}:{target}", 201))
        said = answer.headers.get("Docker-Content-Digest")
        if said and said.startswith("sha256:") and said != document.digest:
            raise ImageError(f"registry {self.name}: it stored manifest {document.digest} as {said}")
        return document.digest

    def delete_manifest(self, repository: str, digest: Digest) -> None:
        """Delete a manifest.

        Raises:
            ImageError: it does not exist, or the registry does not allow it.

        Source: OCI distribution specification, "Deleting Manifests".
        """
        answer = self.request("DELETE", f"{repository}/manifests/{digest}", repository, actions="*")
        release_connection(self._checked(answer, f"deletion of {repository}@{digest}", 202))

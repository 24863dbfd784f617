"""Image references: ``registry:port/repository:tag@digest``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError
from containerkit.image.digest import Digest

if TYPE_CHECKING:
    from typing import Self

__all__ = ["DEFAULT_REGISTRY", "DEFAULT_TAG", "Reference"]

DEFAULT_REGISTRY: Final = "docker.io"
DEFAULT_TAG: Final = "latest"
_LIBRARY: Final = "library"
_LONGEST_NAME: Final = 255

_DOMAIN_PART: Final = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN: Final = re.compile(rf"(?:{_DOMAIN_PART}(?:\.{_DOMAIN_PART})*|\[[0-9a-fA-F:.]+\])(?::[0-9]{{1,5}})?")
_PATH_PART: Final = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH: Final = re.compile(rf"{_PATH_PART}(?:/{_PATH_PART})*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_BARE_ID: Final = re.compile(r"[0-9a-f]{64}")
_LOOPBACK: Final = re.compile(r"localhost|.+\.localhost|127(?:\.[0-9]{1,3}){3}|\[::1\]")


@attrs.frozen(kw_only=True)
class Reference:
    """The location of an image: a registry, a repository there, and a tag or a digest or both.

    If it has both, the digest decides and the tag is only for the reader.

    Args:
        registry: host name or address, with ``:port`` unless it is the default port. Default ``docker.io``.
        repository: lower-case path such as ``library/alpine``.
        tag: a tag, or an empty string.
        digest: a digest, or None.

    Raises:
        SpecError: a part is not well-formed, a name is longer than 255 characters, or a port is above 65535.

    Source: OCI distribution specification, "Pulling manifests"; the reference grammar of the distribution project.
    """

    registry: str = DEFAULT_REGISTRY
    repository: str
    tag: str = ""
    digest: Digest | None = attrs.field(default=None, converter=attrs.converters.optional(Digest))

    def __attrs_post_init__(self) -> None:
        for what, grammar, value in (("registry", _DOMAIN, self.registry), ("repository", _PATH, self.repository)):
            if grammar.fullmatch(value) is None:
                raise SpecError(f"reference {self}: the {what} {value!r} is not well-formed")
        if self.tag and _TAG.fullmatch(self.tag) is None:
            raise SpecError(
                f"tag {self.tag!r} of {self.repository} is not well-formed: up to 128 letters, digits, _, . and -, "
                "not beginning with . or -"
            )
        if len(self.registry) + 1 + len(self.repository) > _LONGEST_NAME:
            raise SpecError(f"reference {self.registry}/{self.repository[:40]}...: over {_LONGEST_NAME} characters")
        port = self.registry.rpartition(":")[2] if not self.registry.endswith("]") else ""
        if port.isdigit() and ":" in self.registry and not 0 < int(port) <= 0xFFFF:
            raise SpecError(f"registry {self.registry}: port {port} is not between 1 and 65535")

    @classmethod
    def parse(cls, text: str, *, registry: str = DEFAULT_REGISTRY) -> Self:
        """Parse a reference.

        The part before the first slash is a registry if it contains a dot, a colon or a capital letter, or is
        ``localhost``. Otherwise the default registry is used; in that one a single name is below ``library/``.

        Args:
            text: such as ``alpine``, ``ghcr.io/org/app:1.2``, ``localhost:5000/a/b@sha256:...``.
            registry: the registry to use if the text names none. Default ``docker.io``.

        Returns:
            The reference. It has the tag ``latest`` if the text has neither tag nor digest.

        Raises:
            SpecError: the text is not a reference.

        Source: the reference grammar of the distribution project.
        """
        name, at, digest = text.partition("@")
        if not name:
            raise SpecError(f"reference {text!r} is empty" if not text else f"reference {text!r} has no repository")
        if at and not digest:
            raise SpecError(f"reference {text!r}: nothing follows the @")
        name, tag = _split_tag(name)
        if _BARE_ID.fullmatch(name):
            raise SpecError(f"reference {text!r} is a bare image id, not a name; write NAME@sha256:{name[:12]}...")
        domain, path = _split_domain(name, registry)
        if path != path.lower():
            raise SpecError(f"reference {text!r}: the repository must be lower case ({path.lower()!r})")
        if _PATH.fullmatch(path) is None or _DOMAIN.fullmatch(domain) is None:
            raise SpecError(f"reference {text!r} is not of the form [registry[:port]/]repository[:tag][@digest]")
        if tag == "" and not at:
            tag = DEFAULT_TAG
        elif tag == ":":
            raise SpecError(f"reference {text!r}: nothing follows the colon")
        return cls(registry=domain, repository=path, tag=tag, digest=Digest(digest) if at else None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"

    @property
    def familiar(self) -> str:
        """The shortest text that :meth:`parse` converts to this reference."""
        text = str(self)
        if self.registry == DEFAULT_REGISTRY and not _looks_like_domain(self.repository.partition("/")[0]):
            text = text.removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix(f"{_LIBRARY}/")
        return text if self.digest else text.removesuffix(f":{DEFAULT_TAG}")

    @property
    def familiar_with_tag(self) -> str:
        """Like :attr:`familiar`, but always with the tag, as ``docker load`` requires it."""
        plain = self.familiar
        return f"{plain}:{self.tag}" if self.tag == DEFAULT_TAG and self.digest is None else plain

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """The part to request from a registry: the digest if there is one, otherwise the tag."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine, where plain HTTP is acceptable."""
        return is_loopback(self.registry)

    def with_digest(self, digest: str) -> Self:
        """Return the same reference with a digest."""
        return attrs.evolve(self, digest=Digest(digest))

    def without_digest(self) -> Self:
        """Return the same reference with only its tag (``latest`` if it had none)."""
        return attrs.evolve(self, digest=None, tag=self.tag or DEFAULT_TAG)


def is_loopback(registry: str) -> bool:
    """Return whether ``host[:port]`` is a name or address of the loopback interface.

    Source: RFC 6761, section 6.3; RFC 1122, section 3.2.1.3.
    """
    host = registry if registry.endswith("]") else re.sub(r":[0-9]+$", "", registry)
    return _LOOPBACK.fullmatch(host.lower()) is not None


def _split_tag(name: str) -> tuple[str, str]:
    """Split ``a:5000/b:tag`` after the last slash. A single colon is returned as ``:``."""
    start = name.rfind("/") + 1
    base, colon, tag = name[start:].partition(":")
    return name[:start] + base, tag or colon


def _looks_like_domain(part: str) -> bool:
    return part == "localhost" or part != part.lower() or any(mark in part for mark in ".:")


def _split_domain(name: str, registry: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    if slash and _looks_like_domain(first):
        domain, path = first, rest
    else:
        domain, path = registry, name
    if domain in {"index.docker.io", "registry-1.docker.io"}:
        domain = DEFAULT_REGISTRY
    if domain == DEFAULT_REGISTRY and "/" not in path:
        path = f"{_LIBRARY}/{path}"
    return domain, path

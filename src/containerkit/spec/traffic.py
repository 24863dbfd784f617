"""Published ports and egress rules, as values."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any, Final, Literal

import attrs

from containerkit._native import LOWEST
from containerkit.errors import SpecError
from containerkit.spec.words import sequence

if TYPE_CHECKING:
    from collections.abc import Iterable

    from containerkit.options import ListOf

__all__ = ["Egress", "EgressRule", "Port", "address", "check_ports", "host_name", "number"]

_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_LARGEST_PORT: Final = 65_535


def number(value: object, what: str, least: int, most: int) -> int:
    """Return a number in a range.

    Raises:
        SpecError: it is not a number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SpecError(f"{what}: {value!r:.100} is not a number from {least} to {most}")
    return value


def address(value: object, what: str) -> str:
    """Return an address as it is usually written.

    Raises:
        SpecError: it is not an address, or has a scope.
    """
    try:
        if isinstance(value, str):
            return str(ip_address(value))
    except ValueError:
        pass
    raise SpecError(f"{what}: {value!r:.100} is not an IPv4 or IPv6 address")


def host_name(value: object, what: str) -> str:
    """Return the name of a host in lower case.

    Raises:
        SpecError: it is not a name as in RFC 1123. Underscores are allowed, as by resolvers.
    """
    text = value.lower().removesuffix(".") if isinstance(value, str) else ""
    if not text or len(text) > 253 or not all(_LABEL.fullmatch(label) for label in text.split(".")):
        raise SpecError(f"{what}: {value!r:.100} is not a host name")
    return text


def _host(value: str) -> str:
    return address(value, "port: host")


def _rules(values: ListOf[EgressRule]) -> tuple[EgressRule, ...]:
    return sequence(values, "egress")


@attrs.frozen
class Port:
    """A port of the host that is forwarded to a port of a container.

    Args:
        host_port: the first port of the host, 1 to 65535, or 0 for any free port.
        container_port: the first port of the container (default: the same).
        protocol: ``"tcp"`` (default) or ``"udp"``.
        host: the host's address (default ``"127.0.0.1"``, only for this machine; ``"0.0.0.0"`` or ``"::"`` for all
            addresses).
        count: the number of consecutive ports, at least 1.
        last: the last port of a range of the host's, which begins with ``host_port``: the first one that is free is
            taken (default: only ``host_port``).
        fd: for :meth:`socket`: the number under which the container's commands inherit the listening socket.

    Raises:
        SpecError: a value is invalid.
    """

    host_port: int
    container_port: int = attrs.field(default=attrs.Factory(lambda self: self.host_port, takes_self=True))
    protocol: Literal["tcp", "udp"] = "tcp"
    host: str = attrs.field(default="127.0.0.1", kw_only=True, converter=_host)
    count: int = attrs.field(default=1, kw_only=True)
    fd: int | None = attrs.field(default=None, kw_only=True)
    last: int | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        least = 0 if self.count == 1 else 1
        number(self.count, "port: count", 1, _LARGEST_PORT)
        number(self.host_port, "port", least, _LARGEST_PORT - self.count + 1)
        if self.fd is None:
            number(self.container_port, "container port", 1, _LARGEST_PORT - self.count + 1)
        elif self.count != 1 or self.protocol != "tcp":
            raise SpecError("port: a listening socket needs a single tcp port")
        else:
            number(self.fd, "port: fd", 3, LOWEST - 1)  # from there a start has its own descriptors
        if self.last is not None:
            number(self.last, "port: last", max(self.host_port, 1), _LARGEST_PORT)
            if self.count != 1 or self.fd is not None or not self.host_port:
                raise SpecError("port: only one port of the container can be published on a range of the host's")
        if self.protocol not in ("tcp", "udp"):
            raise SpecError(f"port: the protocol is 'tcp' or 'udp', not {self.protocol!r:.100}")

    @classmethod
    def socket(cls, host_port: int, *, fd: int = 3, host: str = "127.0.0.1") -> Port:
        """Return a port whose listening socket the container's commands inherit. It is as fast as without a container.

        If the descriptors are numbered from 3 without gaps, ``LISTEN_FDS`` and ``LISTEN_PID`` are set for each command.

        Args:
            host_port, host: as for the class.
            fd: the number of its descriptor inside, 3 to 15.

        Source: sd_listen_fds(3).
        """
        return cls(host_port, host_port, host=host, fd=fd)

    @classmethod
    def parse(cls, text: str) -> Port:
        """Parse the syntax of docker's ``-p``: ``[HOST:][PORT[-PORT]:]PORT[-PORT][/tcp|/udp]``.

        The default address is 127.0.0.1. Write an IPv6 address in brackets. For one port of the container and a
        range of the host's, the first free one is taken.

        Raises:
            SpecError: the text is invalid.
        """
        found = _PUBLISHED.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise SpecError(f"publish: {text!r:.100} is not [HOST:][PORT:]PORT[/tcp|/udp]")
        inside, count = _range(found["inside"], text)
        outside, many = (inside, count) if found["outside"] is None else _range(found["outside"] or "0", text)
        host = (found["host"] or "127.0.0.1").strip("[]")
        protocol: Any = found["protocol"] or "tcp"
        if count == 1 and many > 1:
            return cls(outside, inside, protocol, host=host, last=outside + many - 1)
        if found["outside"] is not None and many != count:
            raise SpecError(f"publish: {text!r}: the ranges of host and container differ in length")
        return cls(outside, inside, protocol, host=host, count=count)


_PUBLISHED: Final = re.compile(
    r"(?:(?P<host>\[[^\]]*\]|[^:\[\]]*):(?=[^:]*:))?(?:(?P<outside>[0-9-]*):)?(?P<inside>[0-9-]+)(?:/(?P<protocol>tcp|udp))?"
)


def _range(text: str, whole: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or len(text) > 11:
        raise SpecError(f"publish: {whole!r:.100}: {text!r} is not a port or range of ports")
    count = int(last) - int(first) + 1 if dash else 1
    if count < 1:
        raise SpecError(f"publish: {whole!r:.100}: the range {text!r} is empty")
    return int(first), count


@attrs.frozen
class EgressRule:
    """A destination that a container may reach.

    Attributes:
        what: a name, ``*.`` and a name for all its subdomains, or a network in CIDR notation.
        ports: ranges of ports, first and last. Empty for any port.
        protocol: ``"tcp"``, ``"udp"``, or None for any.
    """

    what: str
    ports: tuple[tuple[int, int], ...] = ()
    protocol: Literal["tcp", "udp"] | None = None

    @property
    def is_name(self) -> bool:
        """Whether it is a name or a wildcard."""
        return "/" not in self.what

    @classmethod
    def parse(cls, text: str) -> EgressRule:
        """Parse ``NAME``, ``*.NAME`` or ``CIDR``, optionally with ``:PORT[-PORT][/tcp|/udp]``.

        Write IPv6 with a port in brackets: ``[2001:db8::/32]:443``.

        Raises:
            SpecError: the text is invalid.
        """
        if not isinstance(text, str):
            raise SpecError(f"egress: {text!r:.100} is neither a name nor a network")
        if "://" in text:
            raise SpecError(f"egress: {text!r:.100} is a URL; name its host and port, such as 'pypi.org:443'")
        found = _EGRESS.fullmatch(text.strip())
        what, ports, protocol = (
            (found["what"].strip("[]"), found["ports"], found["protocol"]) if found else (text, "", "")
        )
        kind: Any = protocol or None
        spans: tuple[tuple[int, int], ...] = ()
        if ports:
            first, count = _range(ports, text)
            number(first, "egress: port", 1, _LARGEST_PORT - count + 1)
            spans = ((first, first + count - 1),)
        return cls(_reached(what), spans, kind)


_EGRESS: Final = re.compile(r"(?P<what>\[[^\]]*\]|[^:\[\]]+):(?P<ports>[0-9]+(?:-[0-9]+)?)(?:/(?P<protocol>tcp|udp))?")


def _reached(what: str) -> str:
    try:
        return str(ip_network(what))
    except ValueError as error:
        if re.fullmatch(r"[^/]*[^/:]:[0-9-]+/[a-z]*", what):
            raise SpecError(f"egress: {what!r:.100}: after a port, the protocol is /tcp or /udp") from None
        if "/" in what or re.fullmatch(r"[0-9.]+|.*:.*", what):
            raise SpecError(f"egress: {what!r:.100}: {error}") from None
        if what == "*":
            raise SpecError(
                "egress: '*' is not a host name; without rules all are allowed, or name '*.example.com'"
            ) from None
    star = "*." if what.startswith("*.") else ""
    return star + host_name(what.removeprefix("*."), "egress")


@attrs.frozen
class Egress:
    """The destinations that a container may reach outside its networks. All others are refused and reported.

    A name never allows private ranges, link-local addresses (such as 169.254.169.254) or the host's own addresses, even
    if it resolves to one. Allow those as networks.

    Attributes:
        rules: the allowed destinations. If empty, nothing is allowed.

    Made by :meth:`only` or :meth:`nothing`.
    """

    rules: tuple[EgressRule, ...] = attrs.field(default=(), converter=_rules)

    def __attrs_post_init__(self) -> None:
        for rule in self.rules:
            if not isinstance(rule, EgressRule):
                raise SpecError(f"egress: {rule!r:.100} is not an EgressRule; use Egress.only('pypi.org')")

    @classmethod
    def only(cls, *what: str) -> Egress:
        """Return rules that allow only these: names, ``*.`` wildcards and networks, each optionally with ports.

        Args:
            what: such as ``"pypi.org"``, ``"*.example.com:443"``, ``"198.51.100.0/24"``, ``"192.0.2.7:53/udp"``.

        Raises:
            SpecError: a rule is invalid.
        """
        return cls(tuple(EgressRule.parse(text) for text in what))

    @classmethod
    def nothing(cls) -> Egress:
        """Return rules that allow nothing."""
        return cls()

    @property
    def names(self) -> tuple[EgressRule, ...]:
        """The rules with names."""
        return tuple(rule for rule in self.rules if rule.is_name)

    @property
    def networks(self) -> tuple[EgressRule, ...]:
        """The rules with networks."""
        return tuple(rule for rule in self.rules if not rule.is_name)


def check_ports(values: Iterable[object]) -> tuple[Port, ...]:
    """Check ports and return them. No two of them may use the same port of the host.

    Raises:
        SpecError: two of them do, or a value is not a Port.
    """
    ports: list[Port] = []
    for value in values:
        port = value if isinstance(value, Port) else Port.parse(value) if isinstance(value, str) else None
        if isinstance(value, int) and not isinstance(value, bool):
            port = Port(value)
        if port is None:
            raise SpecError(f"publish: {value!r:.100} is not a Port; use Port(8080, 80)")
        if port.fd is not None and any(port.fd == other.fd for other in ports):
            raise SpecError(f"publish: two sockets can't both be descriptor {port.fd}")
        if any(_meet(port, other) for other in ports):
            raise SpecError(f"publish: port {port.host_port}/{port.protocol} of {port.host} is given twice")
        ports.append(port)
    return tuple(ports)


def _meet(one: Port, other: Port) -> bool:
    chosen_later = 0 in (one.host_port, other.host_port) or not one.last is other.last is None
    if chosen_later or one.protocol != other.protocol:
        return False
    anywhere = {"0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    same = one.host == other.host or (
        (":" in one.host) == (":" in other.host) and bool(anywhere & {one.host, other.host})
    )
    return same and one.host_port < other.host_port + other.count and other.host_port < one.host_port + one.count

"""The short forms of ports, volumes and devices.

Source: the compose specification, "ports", "volumes", "devices".
"""

from __future__ import annotations

import ipaddress
import os
import posixpath
import re
from typing import TYPE_CHECKING, Any, Final

from containerkit.project.shapes import boolean, fields, integer, joined_pairs, mode, scalar, size, string

if TYPE_CHECKING:
    from containerkit.project.shapes import Place

__all__ = ["device", "port_list", "volume"]

_RANGE: Final = re.compile(r"(\d+)(?:-(\d+))?\Z")
_PROPAGATIONS: Final = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_MOST_PORTS: Final = 65535

_PORT: Final = fields(
    {
        "name": string, "mode": string, "host_ip": string, "target": integer, "published": scalar, "protocol": string,
        "app_protocol": string,
    },
    required=("target",),
)  # fmt: skip


def port_list(value: Any, place: Place) -> list[dict[str, Any]]:
    """Take the ports of a service. A range is expanded to its ports."""
    if not isinstance(value, list):
        raise place.error("must be a list, such as ['8080:80']")
    found: list[dict[str, Any]] = []
    for number, item in enumerate(value):
        at = place.at(number)
        if isinstance(item, dict):
            one = {"mode": "ingress", "protocol": "tcp", **_PORT(item, at)}
            if one.get("host_ip"):
                _check_address(one["host_ip"], at)
            if one.get("published") == "":
                del one["published"]
            found.append(one)
        else:
            found += _short_ports(scalar(item, at), at)
    return list({_published(each): each for each in found}.values())


def _published(port: dict[str, Any]) -> tuple[Any, ...]:
    """Return what makes two entries of the same list one port: the later entry is used."""
    return port.get("host_ip"), port.get("published"), port["target"], port["protocol"]


def _check_address(text: str, place: Place) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise place.error(f"{text!r:.60} is not an address") from None


def _short_ports(text: str, place: Place) -> list[dict[str, Any]]:
    body, _, protocol = text.partition("/")
    protocol = (protocol or "tcp").lower()
    if protocol not in ("tcp", "udp", "sctp"):
        raise place.error(f"{text!r:.60}: the protocol must be tcp, udp or sctp")
    host, published, target = _port_parts(body)
    if host:
        host = host.removeprefix("[").removesuffix("]")
        _check_address(host, place)
    inside = _range(target, text, place)
    outside = _range(published, text, place) if published else None
    if outside is not None and len(outside) != len(inside) and len(inside) != 1:
        raise place.error(f"{text!r:.60}: the two ranges of ports differ in length")
    found = []
    for number, port in enumerate(inside):
        one: dict[str, Any] = {"mode": "ingress", "target": port, "protocol": protocol}
        if host:
            one["host_ip"] = host
        if outside is not None:
            one["published"] = str(outside[number]) if len(outside) == len(inside) else published
        found.append(one)
    return sorted(found, key=lambda each: str(each["target"]))


def _port_parts(body: str) -> tuple[str, str, str]:
    if body.startswith("["):
        host, _, rest = body.partition("]")
        published, _, target = rest.removeprefix(":").rpartition(":")
        return host + "]", published, target
    parts = body.rsplit(":", 2)
    host, published, target = ["", *parts] if len(parts) == 2 else ["", "", *parts][-3:]
    return host, published, target


def _range(text: str, whole: str, place: Place) -> range:
    found = _RANGE.match(text)
    if found is None:
        raise place.error(
            f"{whole!r:.60} is not a port; use for example 8080:80, 127.0.0.1:8080:80/udp or 8000-8010:80-90"
        )
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last <= _MOST_PORTS:
        raise place.error(f"{whole!r:.60}: ports are numbers up to {_MOST_PORTS}; the lower one of a range is first")
    return range(first, last + 1)


def _tmpfs_size(value: Any, place: Place) -> str:
    """Take the size of a tmpfs. The kernel takes 0 for no limit, so a part of a byte must not become one."""
    found = size(value, place)
    if found.startswith("-") or (isinstance(value, float) and not value.is_integer()):
        raise place.error(f"{value!r:.60} is not a whole number of bytes; use for example 64m, or 0 for no limit")
    return found


_VOLUME: Final = fields(
    {
        "type": string, "source": string, "target": string, "read_only": boolean, "consistency": string,
        "bind": fields(
            {"propagation": string, "create_host_path": boolean, "recursive": string, "selinux": string}
        ),
        "volume": fields({"labels": joined_pairs, "nocopy": boolean, "subpath": string}),
        "tmpfs": fields({"size": _tmpfs_size, "mode": mode}),
        "image": fields({"subpath": string}),
    },
    required=("type",),
)  # fmt: skip
_TYPES: Final = ("bind", "volume", "tmpfs", "image", "cluster", "npipe")


def volume(value: Any, place: Place) -> dict[str, Any]:
    """Take a volume of a service."""
    if isinstance(value, str):
        found = _short_volume(value, place)
    else:
        found = _VOLUME(value, place)
        if found["type"] not in _TYPES:
            raise place.at("type").error(f"{found['type']!r:.60} is not one of {', '.join(_TYPES)}")
        if not found.get("target"):
            raise place.error("the key 'target' is missing")
        found["target"] = posixpath.normpath(found["target"])
        if found["type"] == "bind":
            found.setdefault("bind", {})
            if not found.get("source"):
                raise place.error("a bind needs a source")
            _refuse_windows(found["source"], place)
        if found["type"] == "volume":
            found.setdefault("volume", {})
        if found["type"] == "image" and not found.get("source"):
            raise place.error("a mount of an image needs a source, its name")
    if found["type"] == "bind":
        found["source"] = os.path.normpath(os.path.join(place.base, os.path.expanduser(found["source"])))
    return found


def _short_volume(text: str, place: Place) -> dict[str, Any]:
    parts = text.split(":")
    _refuse_windows(text, place)
    if not all(parts) or len(parts) > 3:
        raise place.error(f"{text!r:.60} is not a volume; use SOURCE:TARGET[:OPTIONS]")
    source, target, options = [*(["", *parts] if len(parts) == 1 else parts), "", ""][:3]
    found: dict[str, Any] = {"type": "bind" if source[:1] in (".", "/", "~") else "volume"}
    if source:
        found["source"] = source
    found["target"] = posixpath.normpath(target)
    if found["type"] == "bind":
        found["bind"] = {"create_host_path": True}
    else:
        found["volume"] = {}
    for option in filter(None, options.split(",")):
        _volume_option(found, option, place)
    return found


def _refuse_windows(text: str, place: Place) -> None:
    if re.match(r"[A-Za-z]:\\", text):
        raise place.error(f"{text!r:.60}: paths of Windows are not supported")


def _volume_option(found: dict[str, Any], option: str, place: Place) -> None:
    if option in ("ro", "rw"):
        found["read_only"] = option == "ro"
        if option == "rw":
            del found["read_only"]
    elif option == "nocopy":
        found.setdefault("volume", {})["nocopy"] = True
    elif option in _PROPAGATIONS:
        found.setdefault("bind", {})["propagation"] = option
    elif option in ("z", "Z"):
        found.setdefault("bind", {})["selinux"] = option
    elif option not in ("cached", "delegated", "consistent"):  # of Docker Desktop, without effect on Linux
        raise place.error(
            f"unknown option {option!r:.60} of a volume; choose from ro, rw, nocopy, z, Z and a propagation"
        )


_DEVICE: Final = fields({"source": string, "target": string, "permissions": string}, required=("source",))


def device(value: Any, place: Place) -> dict[str, Any]:
    """Take a device of a service: ``SOURCE[:TARGET[:rwm]]``, or a CDI name."""
    if isinstance(value, str):
        parts = value.split(":") if "=" not in value else [value]
        if len(parts) > 3 or not all(parts):
            raise place.error(f"{value!r:.60} is not a device; use SOURCE[:TARGET[:rwm]]")
        target = parts[1] if len(parts) > 1 else parts[0]
        return {"source": parts[0], "target": target, "permissions": parts[2] if len(parts) > 2 else "rwm"}
    found: dict[str, Any] = _DEVICE(value, place)
    return {"target": found["source"], "permissions": "rwm", **found}

"""Merges the models of several files, and of services that extend each other. All are in their long forms.

Source: the compose specification, "Merge".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from containerkit.project.shapes import unique
from containerkit.project.yaml12 import Override, Reset

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["merged", "merged_service", "without_marks"]

_REPLACED: Final = frozenset({"command", "entrypoint", "healthcheck.test", "extends"})
"""Keys of a service whose later value replaces the earlier one."""


def _by(*names: str) -> Callable[[Any], object]:
    return lambda item: tuple(item.get(name) for name in names)


def _port(item: Any) -> object:
    host = item.get("host_ip") or "0.0.0.0"  # noqa: S104 - the meaning of no address
    return host, item.get("published"), item["target"], item["protocol"]


def _mounted(item: Any) -> object:
    return item.get("target") or f"/{item.get('source')}"


def _secret(item: Any) -> object:
    return item.get("target") or f"/run/secrets/{item.get('source')}"


_KEYED: Final[dict[str, Callable[[Any], object]]] = {
    "ports": _port, "volumes": _by("target"), "devices": _by("target"), "configs": _mounted, "secrets": _secret,
    "env_file": _by("path"),
}  # fmt: skip
"""Lists of a service in which an entry replaces an earlier one with the same key."""

_ONCE: Final = frozenset(
    {
        "cap_add", "cap_drop", "dns", "dns_opt", "dns_search", "expose", "extra_hosts", "links", "profiles", "tmpfs",
        "label_file", "build.tags", "build.extra_hosts", "networks.aliases", "networks.link_local_ips",
    }
)  # fmt: skip
"""Lists of a service in which duplicates are dropped."""


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return a file's model merged with that of a later file. Neither argument is changed."""
    return _mapping(base, over, ())


def merged_service(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return a service merged with one that extends it."""
    return _mapping(base, over, ("services", ""))


def without_marks(value: Any) -> Any:
    """Return a value without the marks ``!reset`` and ``!override``, after all merging."""
    if isinstance(value, Override):
        return without_marks(value.value)
    if isinstance(value, dict):
        return {key: without_marks(item) for key, item in value.items() if not isinstance(item, Reset)}
    if isinstance(value, list):
        return [without_marks(item) for item in value if not isinstance(item, Reset)]
    return value


def _mapping(base: dict[str, Any], over: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    found = dict(base)
    for key, item in over.items():
        if isinstance(item, Reset):
            found.pop(key, None)
        elif isinstance(item, Override) or key not in found or found[key] is None:
            found[key] = without_marks(item)
        else:
            found[key] = _value(found[key], item, (*path, key))
    return found


def _value(base: Any, over: Any, path: tuple[str, ...]) -> Any:
    key = ".".join(path[2:3] + path[-1:] if len(path) > 3 else path[2:]) if path[:1] == ("services",) else ""
    if key in _REPLACED:
        return without_marks(over)
    if over is None:
        return base
    if isinstance(base, dict) and isinstance(over, dict):
        if key == "logging" and base.get("driver", over.get("driver")) != over.get("driver", base.get("driver")):
            return without_marks(over)
        return _mapping(base, over, path)
    if isinstance(base, list) and isinstance(over, list):
        return _list(base, without_marks(over), key)
    return without_marks(over)


def _list(base: list[Any], over: list[Any], key: str) -> list[Any]:
    if key in _KEYED:
        identity = _KEYED[key]
        return list({identity(item): item for item in (*base, *over)}.values())
    return unique((*base, *over)) if key in _ONCE else [*base, *over]

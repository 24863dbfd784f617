"""Device rules of version 1 as a list of allowed devices, and the changes from one list to another.

A group in use must not lose a device that stays allowed, even for a moment. Opening /dev/null would fail then.

Source: Documentation/admin-guide/cgroup-v1/devices.rst; dev_exception_add() and dev_exception_rm() in
security/device_cgroup.c.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from containerkit.oci.resources import DeviceRule

    Allowed = dict[tuple[str, str], set[str]]

__all__ = ["allowed", "changes", "listed"]

_ALL = "rwm"


def listed(text: str) -> Allowed | None:
    """Return the accesses that a group allows, by kind and number of the device.

    Args:
        text: the content of ``devices.list``.

    Returns:
        None if all is allowed, except for rules that the kernel does not list.
    """
    found: Allowed = {}
    for line in text.splitlines():
        kind, number, access = line.split()
        if kind == "a":
            return None
        found[kind, number] = set(access)
    return found


def allowed(rules: Iterable[DeviceRule]) -> Allowed | None:
    """Return the result of applying the rules one after the other.

    Returns:
        None if they do not begin by denying all, or allow all in the end.
    """
    found: Allowed | None = None
    for rule in rules:
        is_whole = rule.type in ("a", "") and (not rule.allow or rule.access in ("", _ALL))
        if is_whole:
            found = None if rule.allow else {}
            continue
        if found is None:
            continue
        major, minor = ("*" if value in (None, -1) else str(value) for value in (rule.major, rule.minor))
        access = set(rule.access or _ALL)
        for kind in ("c", "b") if rule.type in ("a", "") else (rule.type,):
            key = kind, f"{major}:{minor}"
            found[key] = found.get(key, set()) | access if rule.allow else found.get(key, set()) - access
    return None if found is None else {key: access for key, access in found.items() if access}


def changes(there: Allowed, wanted: Allowed) -> Iterator[tuple[str, str]]:
    """Yield the texts to write and their files: first new permissions, then removed ones.

    Args:
        there: the accesses that the group allows now.
        wanted: the accesses that it must allow.
    """
    for verb, more, less in (("allow", wanted, there), ("deny", there, wanted)):
        for (kind, number), access in more.items():
            rest = access - less.get((kind, number), set())
            if rest:
                yield verb, f"{kind} {number} {''.join(each for each in _ALL if each in rest)}"

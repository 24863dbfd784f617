"""Device rules of version 1 as a list of what is allowed, and how to come from one list to another.

A group that is in use must not lose for a moment what it keeps: a program that opens its null device then would fail.

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
    """Return what a group allows, by kind and number of a device.

    Args:
        text: the content of ``devices.list``.

    Returns:
        None where all is allowed but for what the kernel does not list.
    """
    found: Allowed = {}
    for line in text.splitlines():
        kind, number, access = line.split()
        if kind == "a":
            return None
        found[kind, number] = set(access)
    return found


def allowed(rules: Iterable[DeviceRule]) -> Allowed | None:
    """Return what rules come to, as the kernel takes one after the other.

    Returns:
        None where they do not begin by denying all, or allow all in the end.
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
    """Yield what to write, and to which file: first what is allowed anew, then what is denied from now on.

    Args:
        there: what the group allows.
        wanted: what it is to allow.
    """
    for verb, more, less in (("allow", wanted, there), ("deny", there, wanted)):
        for (kind, number), access in more.items():
            rest = access - less.get((kind, number), set())
            if rest:
                yield verb, f"{kind} {number} {''.join(each for each in _ALL if each in rest)}"

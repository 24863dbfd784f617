"""Refuses values of Kubernetes' objects that are not supported, by name."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_path", "check_pod"]

_ONLY: Final[dict[str, tuple[Any, str]]] = {
    "automountServiceAccountToken": (False, "there are no accounts of a cluster"),
    "enableServiceLinks": (False, "there are no services of a cluster"),
}
_TYPES: Final[dict[str, Callable[[int], bool]]] = {
    "Directory": stat.S_ISDIR, "File": stat.S_ISREG, "Socket": stat.S_ISSOCK, "CharDevice": stat.S_ISCHR,
    "BlockDevice": stat.S_ISBLK,
}  # fmt: skip


def check_pod(spec: dict[str, Any], place: str) -> None:
    """Refuse values of a pod that are not supported.

    Raises:
        SpecError: with the key and the reason.
    """
    for key, (value, why) in _ONLY.items():
        if spec.get(key, value) != value:
            raise SpecError(f"{place}: {key}: {why}; set it to {str(value).lower()}, or remove it")
    if spec.get("dnsPolicy", "Default") not in ("Default", "ClusterFirst"):
        raise SpecError(f"{place}: dnsPolicy: {spec['dnsPolicy']!r:.60} is not supported; choose from Default")
    for each in (*spec.get("initContainers", ()), *spec["containers"]):
        for key, usual in (("terminationMessagePath", "/dev/termination-log"), ("terminationMessagePolicy", "File")):
            if each.get(key, usual) != usual:
                raise SpecError(f"{place}.{each['name']}: {key}: termination messages are not supported; read the log")
    for each in spec.get("initContainers", ()):
        for key in ("livenessProbe", "readinessProbe", "startupProbe", "lifecycle"):
            if key in each:
                raise SpecError(f"{place}.{each['name']}: {key}: an init container can't have it")


def check_path(host: dict[str, Any], place: str) -> None:
    """Refuse a path of the host that is not of its declared type. Create a file or directory whose type allows it.

    Raises:
        SpecError: it is of another kind, or missing.
    """
    path, kind = host["path"], host.get("type", "")
    if kind in ("", "DirectoryOrCreate"):
        return
    if kind not in _TYPES:
        known = ", ".join(["DirectoryOrCreate", *_TYPES])
        raise SpecError(f"{place}: hostPath.type: {kind!r:.60} is not supported; choose from {known}")
    if not os.path.exists(path) or not _TYPES[kind](os.stat(path).st_mode):
        raise SpecError(f"{place}: hostPath: {path} is not a {kind}")

"""Volumes of images: directories that each container gets as its own copy."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from containerkit.archive.view import View
from containerkit.spec.rootfs import Volume
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["find_volumes"]

_KERNELS: Final = ("/proc", "/sys", "/dev")


def find_volumes(directories: Sequence[str], paths: Sequence[str]) -> tuple[Volume, ...]:
    """Return the volumes in a config, outer ones before inner ones.

    The root, and paths where every container has a filesystem of the kernel, are not volumes.

    Args:
        directories: the directories of the layers, topmost first.
        paths: the paths in the config.

    Source: OCI image specification, config.md, "Volumes".
    """
    wanted = tuple(sorted({path for path in paths if path and "\0" not in path}))
    return _looked_up(tuple(directories), wanted, userns_helper.key()) if wanted else ()


def _is_taken(target: str) -> bool:
    return target == "/" or any(f"{target}/".startswith(f"{place}/") for place in _KERNELS)


@lru_cache(maxsize=64)
def _looked_up(directories: tuple[str, ...], paths: tuple[str, ...], _: str) -> tuple[Volume, ...]:
    """Look them up once, because unpacked layers never change."""
    found: dict[str, dict[str, Any]] = userns_helper.call(_facts, directories, paths)
    return tuple(Volume(target=target, **facts) for target, facts in sorted(found.items()) if not _is_taken(target))


def _facts(directories: tuple[str, ...], paths: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    return dict(_each(View(directories), paths))


def _each(view: View, paths: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the resolved path of each volume, and the properties of the directory there. Files are not volumes."""
    for path in paths:
        parts = view.resolve(os.fsencode(path))
        found, target = view.find(parts), "/" + os.fsdecode(b"/".join(parts))
        if found is None:
            yield target, {}
        elif found.is_directory:
            status = found.status
            # For a user with a single id all files belong to root inside.
            uid, gid = (status.st_uid, status.st_gid) if os.geteuid() == 0 else (0, 0)
            mode = stat.S_IMODE(status.st_mode)
            yield target, {"uid": uid, "gid": gid, "mode": mode, "filled": bool(view.names(parts))}

"""Calls, as they go to tasks: by reference where the module is to be had inside, else by value."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

from containerkit.executor.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["dumped", "shown_directories"]

_registering = threading.Lock()


def shown_directories(path: Iterable[str]) -> list[str]:
    """Return the directories of the caller's Python that a task needs: its installation, and those of ``path``.

    What lies below another of them, or below /usr, is left out.
    """
    wanted = {os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, *path)}
    kept = [each for each in sorted(wanted) if not any(_below(each, other) for other in {*wanted, "/usr"} - {each})]
    return [each for each in kept if each != "/usr" and os.path.isdir(each)]


def _below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


def dumped(call: object, function: Callable[..., Any], visible: list[str] | None) -> bytes:
    """Return a call as bytes.

    Args:
        call: the function and its arguments.
        function: the function.
        visible: the directories whose modules are to be had inside (None: what there is is not known here).

    Raises:
        TaskError: it can't be sent, and what to do.
    """
    try:
        import cloudpickle
    except ImportError:
        cloudpickle = None
    name = getattr(function, "__module__", None)
    module = sys.modules.get(name or "")
    by_value = name != "__main__" and module is not None and visible is not None and not _is_visible(module, visible)
    if cloudpickle is None:
        if by_value or name == "__main__":
            where = "a function of the main program" if name == "__main__" else f"module {name} is not to be had inside"
            raise TaskError(
                f"{where}: install cloudpickle (containerkit[executor]), or show its directory by path=[...]"
            )
        return pickle.dumps(call, 5)
    if not by_value:
        return bytes(cloudpickle.dumps(call, 5))
    with _registering:  # it is a setting of the whole process
        cloudpickle.register_pickle_by_value(module)
        try:
            return bytes(cloudpickle.dumps(call, 5))
        finally:
            cloudpickle.unregister_pickle_by_value(module)


def _is_visible(module: Any, visible: list[str]) -> bool:
    file = getattr(module, "__file__", None)
    if file is None:  # built in, or a package of several directories
        return True
    place = os.path.realpath(file)
    return any(_below(place, directory) for directory in visible)

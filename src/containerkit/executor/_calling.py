"""Pickles calls for tasks: functions by reference if their module can be imported inside, otherwise by value."""

from __future__ import annotations

import io
import os
import pickle
import sys
import threading
from functools import lru_cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from containerkit.executor.errors import TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType

__all__ = ["Shown", "dumped", "shown_directories"]

_registering = threading.Lock()


def shown_directories(path: Iterable[str]) -> list[str]:
    """Return the directories that a task needs: those of the caller's Python, and those of ``path``.

    Directories below another one of them, or below /usr, are omitted.
    """
    wanted = {os.path.realpath(each) for each in (sys.prefix, sys.base_prefix, *path)}
    kept = [each for each in sorted(wanted) if not any(_below(each, other) for other in {*wanted, "/usr"} - {each})]
    return [each for each in kept if each != "/usr" and os.path.isdir(each)]


def _below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")


class Shown:
    """The caller's modules that tasks can import.

    Args:
        directories: the directories that contain them.
    """

    def __init__(self, directories: list[str]) -> None:
        self._directories = directories
        self._known: dict[str, bool] = {"__main__": True}  # cloudpickle sends the objects of this module by value

    def has(self, name: str | None) -> bool:
        """Return whether a module of this name can be imported inside."""
        if name is None or (known := self._known.get(name)):
            return True
        module = sys.modules.get(name)
        if known is None:
            known = module is None or self._is_visible(module)
            if module is not None:
                self._known[name] = known
        return known

    def _is_visible(self, module: Any) -> bool:
        file = getattr(module, "__file__", None)
        if file is None:  # built in, or a package of several directories
            return True
        place = os.path.realpath(file)
        return any(_below(place, directory) for directory in self._directories)


def dumped(call: object, function: Callable[..., Any], shown: Shown | None) -> bytes:
    """Return a call as bytes. All functions and classes in it whose modules are not shown are pickled by value.

    Args:
        call: the function and its arguments.
        function: the function.
        shown: the modules that can be imported inside; None if they are unknown.

    Raises:
        TaskError: it can't be sent; with the remedy.
    """
    try:
        import cloudpickle
    except ImportError:
        return _dumped_plainly(call, function, shown)
    hidden: dict[str, ModuleType] = {}
    while True:
        content, found = _dumped_with(cloudpickle, call, hidden, shown)
        if found.keys() <= hidden.keys():
            return content
        hidden |= found  # code that is sent by value may use more modules


def _dumped_plainly(call: object, function: Callable[..., Any], shown: Shown | None) -> bytes:
    name = getattr(function, "__module__", None)
    if name == "__main__" or (shown is not None and not shown.has(name)):
        where = "a function of the main program" if name == "__main__" else f"module {name} can't be imported inside"
        raise TaskError(f"{where}: install cloudpickle (containerkit[executor]), or show its directory by path=[...]")
    return pickle.dumps(call, 5)


def _dumped_with(
    cloudpickle: Any, call: object, hidden: dict[str, ModuleType], shown: Shown | None
) -> tuple[bytes, dict[str, ModuleType]]:
    """Return the bytes, and the modules in them that are not shown."""
    content = io.BytesIO()
    pickler = _pickler()(content, 5)
    pickler.shown, pickler.found = shown, {}
    if not hidden:
        pickler.dump(call)
        return content.getvalue(), pickler.found
    with _registering:  # the registration affects the whole process
        known = cloudpickle.list_registry_pickle_by_value()
        ours = [module for name, module in hidden.items() if name not in known]
        try:
            for module in ours:
                cloudpickle.register_pickle_by_value(module)
            pickler.dump(call)
        finally:
            for module in ours:
                cloudpickle.unregister_pickle_by_value(module)
    return content.getvalue(), pickler.found


@lru_cache(maxsize=1)
def _pickler() -> Any:
    """Return a class that pickles as cloudpickle does, and records which modules are not shown."""
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc] # it has no types
        shown: Shown | None
        found: dict[str, ModuleType]

        def reducer_override(self, thing: Any) -> Any:
            if self.shown is not None and isinstance(thing, (FunctionType, type)):
                name = getattr(thing, "__module__", None)
                if isinstance(name, str) and not self.shown.has(name):
                    self.found[name] = sys.modules[name]
            return super().reducer_override(thing)

    return Pickler

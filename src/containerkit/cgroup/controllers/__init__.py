"""The controllers, one module each. All have the same interface for both versions.

A controller's module has two functions. They are pure, except for the function ``read`` that they are given:

``settings(limits, version)``
    returns the settings that apply the limits: :class:`Setting` and :class:`Attachment` values in order.
``report(read, version)``
    returns the typed report from files read by ``read(name)``, which returns None if a file does not exist.

They are imported on first use: a group with only a memory limit never loads the others.
"""

from __future__ import annotations

from errno import EOPNOTSUPP
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, cast

from containerkit.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits

__all__ = ["CONTROLLERS", "Attachment", "Controller", "Setting", "controller", "unsupported"]

CONTROLLERS: Final = (
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "io",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
)
"""The names of the controllers. ``io`` also stands for version 1's blkio."""


class Setting(NamedTuple):
    """A file of a group and what to write to it.

    Attributes:
        file: the name of the file.
        value: the content, or a function that computes it from other files of the group.
        hint: the remedy to show if the kernel refuses the value.
        missing: what to do if the file does not exist or nothing here supports the value (EOPNOTSUPP): raise an error,
            ignore it, or raise an error only on a machine with swap.
        instead: a file that was written before, and a line in it that makes this setting unnecessary.
        judged: whether the kernel accepts any value, and reports in the file whether the value is invalid and why.
    """

    file: str
    value: bytes | Callable[[Callable[[str], str | None]], bytes]
    hint: str = ""
    missing: Literal["error", "ignore", "no-swap"] = "error"
    instead: tuple[str, str] = ("", "")
    judged: bool = False


class Attachment(NamedTuple):
    """Something to attach to a group that is not a file.

    Attributes:
        operation: the name of the system call, for messages.
        attach: a function that attaches it to the group whose directory's descriptor it is given.
        hint: the remedy to show if the kernel refuses it for lack of privileges.
    """

    operation: str
    attach: Callable[[int], None]
    hint: str = ""


class Controller(Protocol):
    """The interface of a controller's module.

    Attributes:
        settings: returns the settings, in order.
        report: returns the report.
    """

    settings: Callable[[Limits, int], list[Setting | Attachment]]
    report: Callable[[Callable[[str], str | None], int], Any]


_loaded: dict[str, Controller] = {}


def controller(name: str) -> Controller:
    """Return the module of a controller."""
    module = _loaded.get(name)
    if module is None:
        from importlib import import_module

        module = _loaded[name] = cast("Controller", import_module(f"{__name__}.{name}"))
    return module


def unsupported(argument: str, version: int) -> UnsupportedError:
    """Return the error for a limit that only the other cgroup version has."""
    hint = f"only cgroup version {3 - version} has it, and this controller is on version {version} here"
    return UnsupportedError("set limits", EOPNOTSUPP, argument, hint)

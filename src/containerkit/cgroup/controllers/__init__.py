"""The controllers: one module each, one seam over both versions.

A controller's module offers two functions, pure but for the reading function that they are handed:

``settings(limits, version)``
    what has to be written so that the limits hold: :class:`Setting` and :class:`Attachment` values in order.
``report(read, version)``
    the typed report, from files read by ``read(name)``, which returns None where there is no such file.

They are imported on first use: a group with a memory limit alone never loads the others.
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
"""Their names; ``io`` stands for version 1's blkio too."""


class Setting(NamedTuple):
    """A file of a group and what to write to it.

    Attributes:
        file: its name.
        value: the content, or a function that makes it from the group's other files.
        hint: the remedy to show when the kernel refuses it.
        missing: what a missing file means: an error, nothing, or an error only on a machine with swap.
        instead: another file that was written too and makes up for a missing one.
    """

    file: str
    value: bytes | Callable[[Callable[[str], str | None]], bytes]
    hint: str = ""
    missing: Literal["error", "ignore", "no-swap"] = "error"
    instead: str = ""


class Attachment(NamedTuple):
    """Something to attach to a group that is no file.

    Attributes:
        operation: the system call, for messages.
        attach: does it, given a descriptor of the group's directory.
        hint: the remedy to show when the kernel refuses it.
    """

    operation: str
    attach: Callable[[int], None]
    hint: str = ""


class Controller(Protocol):
    """What a controller's module offers.

    Attributes:
        settings: returns what has to be written, in order.
        report: returns the report.
    """

    settings: Callable[[Limits, int], list[Setting | Attachment]]
    report: Callable[[Callable[[str], str | None], int], Any]


_loaded: dict[str, Controller] = {}


def controller(name: str) -> Controller:
    """Return a controller's module."""
    module = _loaded.get(name)
    if module is None:
        from importlib import import_module

        module = _loaded[name] = cast("Controller", import_module(f"{__name__}.{name}"))
    return module


def unsupported(argument: str, version: int) -> UnsupportedError:
    """Return the error for a limit that only the other version's controller has."""
    hint = f"only the controller of cgroup version {3 - version} has it, and here it is on version {version}"
    return UnsupportedError("set limits", EOPNOTSUPP, argument, hint)

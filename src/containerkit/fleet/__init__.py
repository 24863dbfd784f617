"""Containers on many machines. An existing engine distributes them: Ray, Dask, Kubernetes or an executor."""

from containerkit.late import load as _load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.fleet.container import FleetContainer, FleetProcess
    from containerkit.fleet.engine import Attempt, Engine, Node, Outcome, Task, Watcher
    from containerkit.fleet.errors import FleetError, NodeLost
    from containerkit.fleet.fleet import Fleet
    from containerkit.fleet.future import FleetFuture
    from containerkit.fleet.report import NodeReport, Report

__all__ = [
    "Attempt",
    "Engine",
    "Fleet",
    "FleetContainer",
    "FleetError",
    "FleetFuture",
    "FleetProcess",
    "Node",
    "NodeLost",
    "NodeReport",
    "Outcome",
    "Report",
    "Task",
    "Watcher",
]

_PLACES = {
    "Attempt": "engine",
    "Engine": "engine",
    "Fleet": "fleet",
    "FleetContainer": "container",
    "FleetError": "errors",
    "FleetFuture": "future",
    "FleetProcess": "container",
    "Node": "engine",
    "NodeLost": "errors",
    "NodeReport": "report",
    "Outcome": "engine",
    "Report": "report",
    "Task": "engine",
    "Watcher": "engine",
}


def __getattr__(name: str) -> object:
    """Load a public name on its first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _load(f"{__name__}.{_PLACES[name]}:{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Containers on many machines. An existing engine distributes them: Ray, Dask, Kubernetes or an executor."""

from containerkit.late import lazy as _lazy

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

__getattr__, __dir__ = _lazy(globals(), _PLACES)

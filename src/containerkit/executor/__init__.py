"""An executor whose tasks run in containers, and the zygote from which their interpreters are forked."""

from containerkit.late import lazy as _lazy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.executor.errors import RemoteError, TaskError, TaskTimeout, WorkerLost
    from containerkit.executor.executor import ContainerExecutor, TaskFuture
    from containerkit.executor.zygote import Forked, Zygote

__all__ = [
    "ContainerExecutor",
    "Forked",
    "RemoteError",
    "TaskError",
    "TaskFuture",
    "TaskTimeout",
    "WorkerLost",
    "Zygote",
]

_PLACES = {
    "ContainerExecutor": "executor",
    "Forked": "zygote",
    "RemoteError": "errors",
    "TaskError": "errors",
    "TaskFuture": "executor",
    "TaskTimeout": "errors",
    "WorkerLost": "errors",
    "Zygote": "zygote",
}

__getattr__, __dir__ = _lazy(globals(), _PLACES)

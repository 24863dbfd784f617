"""An executor whose tasks run in containers, and the zygote from which their interpreters are forked."""

from containerkit.late import load as _load

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


def __getattr__(name: str) -> object:
    """Load a public name on its first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = _load(f"{__name__}.{_PLACES[name]}:{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

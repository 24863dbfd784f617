"""``--systemd-cgroup``: systemd makes the container's control groups, as a scope in the requested slice.

Source: org.freedesktop.systemd1(5), StartTransientUnit; systemd.slice(5); the form ``SLICE:PREFIX:NAME`` of
``cgroupsPath`` is the one that engines use with every runtime.
"""

from __future__ import annotations

import contextlib
import os

from containerkit.oci.errors import ConfigError, RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.cgroup.dbus import Connection

__all__ = ["start_scope", "stop_scope", "unit_of"]

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"


def unit_of(path: str, name: str) -> tuple[str, str, str]:
    """Return the slice, the unit and the path of its group for a ``cgroupsPath``.

    Args:
        path: ``SLICE:PREFIX:NAME``, or empty for a scope named after the container.
        name: the container's id.

    Raises:
        ConfigError: it has another form.
    """
    parts = path.split(":") if path else ["", "containerkit", name]
    if len(parts) != 3:
        raise ConfigError("linux.cgroupsPath", f"{path!r} is not SLICE:PREFIX:NAME, which systemd needs")
    slice_name, prefix, own = parts
    slice_name = slice_name or ("system.slice" if os.geteuid() == 0 else "user.slice")
    if not slice_name.endswith(".slice") or "/" in slice_name:
        raise ConfigError("linux.cgroupsPath", f"{slice_name!r} is not a slice")
    unit = own if own.endswith(".slice") else f"{prefix}-{own}.scope" if prefix else f"{own}.scope"
    return slice_name, unit, f"{_expanded(slice_name)}/{unit}"


def _expanded(slice_name: str) -> str:
    """Return the path of a slice: ``a-b.slice`` is in ``a.slice``."""
    stem = slice_name.removesuffix(".slice")
    if stem == "-":
        return ""
    words = stem.split("-")
    if "" in words:
        raise ConfigError("linux.cgroupsPath", f"{slice_name!r} is not a slice")
    return "".join(f"/{'-'.join(words[: count + 1])}.slice" for count in range(len(words)))


def start_scope(unit: str, slice_name: str, pid: int, description: str) -> None:
    """Make systemd create a scope for a process, and wait until it exists.

    Raises:
        RuntimeFailure: there is no systemd, or it refused.
    """
    from containerkit.cgroup.dbus import SIGNAL
    from containerkit.errors import ContainerError

    properties = [
        ("Description", ("s", description)),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    if unit.endswith(".scope"):
        properties.append(("Slice", ("s", slice_name)))
    try:
        with _connect() as connection:
            _subscribe(connection)
            arguments: tuple[object, ...] = (unit, "replace", properties, [])
            (job,) = connection.call(_NAME, _PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", arguments)
            while True:
                message = connection.receive()
                if message.kind == SIGNAL and message.fields.get("member") == "JobRemoved" and message.values[1] == job:
                    break
    except RuntimeFailure:
        raise
    except (ContainerError, OSError) as error:
        raise RuntimeFailure(f"systemd: {unit}: {error}") from None
    if message.values[3] != "done":
        raise RuntimeFailure(f"systemd could not start {unit}: {message.values[3]}")


def stop_scope(unit: str) -> None:
    """Make systemd remove a scope. A missing scope is not an error."""
    from containerkit.errors import ContainerError

    try:
        with _connect() as connection:
            connection.call(_NAME, _PATH, _MANAGER, "StopUnit", "ss", (unit, "replace"))
    except (ContainerError, OSError):
        return


def _connect() -> Connection:
    from containerkit.cgroup.dbus import Connection

    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    places = [("/run/dbus/system_bus_socket", True), ("/run/systemd/private", False)]
    if os.geteuid():
        places = [(f"{runtime}/bus", True), (f"{runtime}/systemd/private", False)]
    for address, bus in places:
        try:
            return Connection(address, bus=bus)
        except OSError:
            continue
    raise RuntimeFailure("--systemd-cgroup: no systemd answers here; use --cgroup-manager cgroupfs")


def _subscribe(connection: Connection) -> None:
    """Subscribe to signals about jobs. The manager's private socket has no bus, so it needs no subscription."""
    from containerkit.errors import ContainerError

    rule = f"type='signal',interface='{_MANAGER}',member='JobRemoved'"
    bus = "org.freedesktop.DBus"
    with contextlib.suppress(ContainerError):
        connection.call(bus, "/org/freedesktop/DBus", bus, "AddMatch", "s", (rule,))
    connection.call(_NAME, _PATH, _MANAGER, "Subscribe")

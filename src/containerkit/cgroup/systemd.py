"""A transient scope: the subtree that systemd delegates to a process on machines where systemd manages the groups.

A scope exists as long as it contains a process. One holder process stays in it. The holder reads from a pipe whose
other end only this process has, so it ends when this process does. Then systemd removes the scope.

Source: org.freedesktop.systemd1(5), StartTransientUnit; "Delegation" in systemd.resource-control(5);
https://systemd.io/CGROUP_DELEGATION.
"""

from __future__ import annotations

import contextlib
import os
from errno import EOPNOTSUPP
from subprocess import DEVNULL, PIPE, Popen
from typing import TYPE_CHECKING, Final, Literal

from containerkit.cgroup.dbus import SIGNAL, Connection
from containerkit.cgroup.owner import Owner
from containerkit.errors import SetupError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Scope"]

_NAME: Final = "org.freedesktop.systemd1"
_PATH: Final = "/org/freedesktop/systemd1"
_MANAGER: Final = "org.freedesktop.systemd1.Manager"

Manager = Literal["system", "user"]


def _sockets(manager: Manager) -> Iterator[tuple[str, bool]]:
    """Yield the addresses of a manager, and whether each is a bus: the bus first, then the manager's own socket."""
    if manager == "system":
        yield "/run/dbus/system_bus_socket", True
        yield "/run/systemd/private", False
        return
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    yield f"{runtime}/bus", True
    yield f"{runtime}/systemd/private", False


def _connect(manager: Manager) -> Connection:
    reasons: list[str] = []
    for address, bus in _sockets(manager):
        try:
            return Connection(address, bus=bus)
        except OSError as error:
            reasons.append(f"{address}: {error.strerror}")
    hint = f"{'; '.join(reasons)}; start the command with systemd-run --scope -p Delegate=yes, or pass parent="
    raise UnsupportedError("connect", EOPNOTSUPP, f"systemd's {manager} manager", hint)


class Scope:
    """A delegated scope that contains a holder process.

    Attributes:
        name: the name of the unit.
        pid: the pid of the holder. The holder's groups are the groups of the scope.
    """

    __slots__ = ("_holder", "name", "pid")

    def __init__(self, manager: Manager | None = None) -> None:
        """Ask systemd for the scope and wait until it exists.

        Args:
            manager: the manager to ask. Default: the system's for root, otherwise the user's.

        Raises:
            UnsupportedError: there is no such manager here.
            SetupError: the manager refuses.
        """
        owner = Owner.current()
        self.name = f"containerkit-{owner.pid}-{owner.start}.scope"
        connection = _connect(manager or ("system" if os.geteuid() == 0 else "user"))
        self._holder = Popen(["cat"], stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, start_new_session=True)
        self.pid = self._holder.pid
        try:
            with connection:
                self._start(connection)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Scope {self.name} {'closed' if self._holder.poll() is not None else f'held by {self.pid}'}>"

    def _start(self, connection: Connection) -> None:
        with contextlib.suppress(SetupError):  # a manager's own socket has no bus to subscribe to
            rule = f"type='signal',interface='{_MANAGER}',member='JobRemoved'"
            bus = "org.freedesktop.DBus"
            connection.call(bus, "/org/freedesktop/DBus", bus, "AddMatch", "s", (rule,))
        connection.call(_NAME, _PATH, _MANAGER, "Subscribe")
        properties = [
            ("Description", ("s", f"containers of process {Owner.current().pid}")),
            ("PIDs", ("au", [self.pid])),
            ("Delegate", ("b", True)),
            ("CollectMode", ("s", "inactive-or-failed")),
        ]
        (job,) = connection.call(
            _NAME, _PATH, _MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", (self.name, "fail", properties, [])
        )
        while True:
            message = connection.receive()
            if message.kind == SIGNAL and message.fields.get("member") == "JobRemoved" and message.values[1] == job:
                break
        if message.values[3] != "done":
            raise SetupError("StartTransientUnit", EOPNOTSUPP, self.name, f"systemd says {message.values[3]}")

    def close(self) -> None:
        """End the holder. When the groups in the scope are gone too, systemd removes it. May be called twice."""
        if self._holder.stdin is not None:
            self._holder.stdin.close()
        self._holder.kill()
        self._holder.wait()

"""The network of a container of another process, found by its id or name. A container joins it unchanged."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import ENOENT, ESRCH
from typing import TYPE_CHECKING, Final

import attrs

from containerkit import late
from containerkit._linux import procfs
from containerkit._native import calls
from containerkit._native import constants as k
from containerkit.container import running
from containerkit.errors import SetupError, SpecError, StateError
from containerkit.namespace import Namespace
from containerkit.network import files
from containerkit.start.staging import share_holder

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Elsewhere", "find"]

_LARGEST: Final = 1 << 20
"""The maximum bytes to copy of a file in /etc: the limit of ``Mount.file``."""


@attrs.frozen(eq=False)
class Elsewhere:
    """Provides the network of a running container, by its name, so that each start looks it up again.

    Attributes:
        name: the id of the container, or the name of a detached one.
    """

    name: str

    def take(self) -> Namespace:
        """Return a handle on its network namespace.

        Raises:
            StateError: no container of that name runs.
            SetupError: it belongs to another user.
        """
        pidfd = _pidfd(self.name)
        try:
            return _network(pidfd, self.name)
        finally:
            os.close(pidfd)

    def files(self) -> tuple[bytes | None, bytes | None]:
        """Return its /etc/hosts and /etc/resolv.conf; None for one that does not exist.

        Side effects: later containers of this process can join it. For an unprivileged user they are made
            in the user namespace of that container's owner.
        """
        pidfd = _pidfd(self.name)
        try:
            with _network(pidfd, self.name) as network:
                if os.geteuid() != 0 and (above := _outermost(network)) is not None:
                    share_holder(above)
            return _content(pidfd, files.HOSTS), _content(pidfd, files.RESOLV)
        finally:
            os.close(pidfd)


def find(name: str) -> Elsewhere:
    """Return the network of a running container.

    Raises:
        StateError: no container of that name runs.
    """
    os.close(_pidfd(name))
    return Elsewhere(name)


def _pidfd(name: str) -> int:
    """Return a pidfd of a container's PID 1, which the caller then owns."""
    found = running.find(name)
    if found is not None:
        return found
    try:
        with late.load(late.KINDS["attached"])(name, None, {}) as view:
            return os.dup(view.fileno())
    except (SpecError, StateError) as error:
        if "does not run" in str(error):
            raise
        raise _unknown(name) from None


def _unknown(name: str) -> StateError:
    hint = "only detached containers, and those started with an id, can be found"
    if running.directory() is None:
        hint += ", and only if XDG_RUNTIME_DIR names a directory: log in through a session manager, or set it"
    return StateError(f"network container:{name}: no container of that name runs; {hint}")


def _network(pidfd: int, name: str) -> Namespace:
    try:
        return Namespace.from_pidfd(pidfd, "network")
    except SetupError as error:
        if error.errno in (ESRCH, ENOENT):  # it has ended in the meantime
            raise _unknown(name) from None
        raise


def _outermost(network: Namespace) -> int | None:
    """Return the child user namespace of this process's own that owns a network namespace; None if it is its own."""
    with Namespace.current("user") as own:
        found: Namespace | None = None
        for each in _owners(network):
            if each == own:
                each.close()
                break
            if found is not None:
                found.close()
            found = each
        if found is None:
            return None
        with found:
            return os.dup(found.fileno())


def _owners(namespace: Namespace) -> Iterator[Namespace]:
    """Yield the user namespace that owns a namespace, and its ancestors that this process may see."""
    above = namespace.owner
    while above is not None:
        yield above
        above = above.parent


def _content(pidfd: int, path: str) -> bytes | None:
    """Return a file as a process sees it. Symlinks are resolved in the container."""
    try:
        pid = procfs.pid_of_pidfd(pidfd)
        root = os.open(f"/proc/{pid}/root", k.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fd = calls.openat2(
            root, path.lstrip("/"), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, resolve=k.RESOLVE_IN_ROOT
        )
    except (OSError, SetupError):
        return None
    finally:
        os.close(root)
    with open(fd, "rb") as file, suppress(OSError):
        return file.read(_LARGEST)
    return None

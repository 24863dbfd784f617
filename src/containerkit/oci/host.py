"""Facts about the runtime itself, such as its privileges, and operations on a process from outside."""

from __future__ import annotations

import os
from stat import S_IFCHR

from containerkit._linux.last_capability import last_capability
from containerkit.oci import capabilities, kernel, store
from containerkit.oci.checks import RLIMITS
from containerkit.oci.errors import ConfigError, RuntimeFailure, strerror
from containerkit.oci.payload import candidates

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Process

__all__ = ["Host", "find_program", "inherited_descriptors", "set_limits", "set_score", "write_pid_file"]

_SYS_ADMIN, _SYS_RESOURCE = 1 << 21, 1 << 24


class Host:
    """Facts about the runtime itself.

    Attributes:
        permitted: its capabilities.
        last_cap: the number of the kernel's last capability.
        privileged: whether it has CAP_SYS_ADMIN, and so may write any id map.
        nested: whether it is itself in a user namespace other than the initial one.
    """

    __slots__ = ("last_cap", "nested", "permitted", "privileged")

    def __init__(self) -> None:
        self.permitted = capabilities.own_permitted()
        self.last_cap = last_capability()
        self.privileged = bool(self.permitted & _SYS_ADMIN)
        self.nested = store.in_user_namespace()

    def clones_mounts(self) -> bool:
        """Return whether it may clone mounts. It may not if its mount namespace belongs to a parent user namespace.

        The tree is cloned as a whole. If mounts came from a parent user namespace, the kernel refuses to clone one
        without the mounts that cover parts of it.

        Source: has_locked_children() in fs/namespace.c.
        """
        if not self.privileged:
            return False
        try:
            os.close(kernel.open_tree("/", recursive=True))
        except OSError:
            return False
        return True

    def makes_nodes(self, directory: int) -> bool:
        """Try to make a device node. CAP_MKNOD may be missing, or an outer container may restrict devices.

        Args:
            directory: a directory of the runtime.
        """
        if self.nested:
            return False
        try:
            os.mknod("node", S_IFCHR | 0o600, os.makedev(1, 3), dir_fd=directory)
        except PermissionError:
            return False
        os.unlink("node", dir_fd=directory)
        return True

    @property
    def raises_limits(self) -> bool:
        """Return whether it may set the resource limits of any process."""
        return bool(self.permitted & _SYS_RESOURCE)

    @property
    def all_capabilities(self) -> int:
        """Every capability that the kernel knows."""
        return (1 << (self.last_cap + 1)) - 1


def inherited_descriptors(count: int) -> list[int]:
    """Return which of ``count`` descriptors from 3 on the caller has passed to the runtime.

    The runtime's own descriptors are close-on-exec. They may have numbers in this range that the caller left free.
    """
    found = []
    for number in range(3, 3 + count):
        try:
            inherited = os.get_inheritable(number)
        except OSError:
            continue
        if inherited:
            found.append(number)
    return found


def write_pid_file(path: str, pid: int) -> None:
    """Write a pid in decimal, atomically.

    Raises:
        RuntimeFailure: it can't be written.
    """
    directory, _, name = path.rpartition("/")
    draft = f"{directory}/.{name}" if directory else f".{name}"
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, b"%d" % pid)
        finally:
            os.close(fd)
        os.rename(draft, path)
    except OSError as error:
        raise RuntimeFailure(f"write the pid file {path}: {strerror(error.errno or 0)}") from None


def set_limits(pid: int, process: Process, path: str) -> None:
    """Set the resource limits of a process from outside, where the privilege to raise them exists.

    Raises:
        ConfigError: a limit can't be raised that far.
    """
    if not process.rlimits:
        return
    import resource

    for index, limit in enumerate(process.rlimits):
        pair = [value if value < 2**63 else -1 for value in (limit.soft, limit.hard)]
        try:
            resource.prlimit(pid, RLIMITS[limit.type], (pair[0], pair[1]))
        except (OSError, ValueError) as error:
            why = strerror(error.errno or 0) if isinstance(error, OSError) else str(error)
            if isinstance(error, ValueError) and "raise" in str(error):
                why = "operation not permitted"
            hint = "raising a hard limit needs CAP_SYS_RESOURCE"
            raise ConfigError(f"{path}.rlimits[{index}]", f"{limit.type}: {why} (hint: {hint})") from None


def set_score(pid: int, wanted: int, *, nested: bool) -> None:
    """Set the out-of-memory score adjustment of a process.

    Args:
        pid: the process.
        wanted: -1000 to 1000.
        nested: whether the runtime is in a user namespace. There the score can't be lowered, so it stays unchanged.

    Raises:
        ConfigError: it can't be set.

    Source: proc_pid_oom_score_adj(5).
    """
    fd = os.open(f"/proc/{pid}/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        if int(os.read(fd, 32)) != wanted:
            os.write(fd, b"%d" % wanted)
    except PermissionError:
        if not nested:
            hint = "lowering it needs CAP_SYS_RESOURCE"
            raise ConfigError("process.oomScoreAdj", f"{wanted}: permission denied (hint: {hint})") from None
    finally:
        os.close(fd)


def find_program(root: int, process: Process) -> None:
    """Check that a program exists and may be executed.

    Raises:
        RuntimeFailure: it can't be executed. The text is the one from which engines derive exit status 126 or 127.
    """
    name = process.args[0]
    denied = False
    for path in candidates(process):
        full = path if path.startswith(b"/") else os.fsencode(process.cwd) + b"/" + path
        try:
            fd = kernel.open_inside(root, full, os.O_PATH)
        except PermissionError:
            denied = True
            continue
        except OSError:
            continue
        mode = os.fstat(fd).st_mode
        os.close(fd)
        if mode & 0o170000 == 0o100000 and mode & 0o111:
            return
        denied = True
    if denied:
        raise RuntimeFailure(f'exec: "{name}": permission denied')
    if "/" in name:
        raise RuntimeFailure(f'exec: "{name}": stat {name}: no such file or directory')
    raise RuntimeFailure(f'exec: "{name}": executable file not found in $PATH')

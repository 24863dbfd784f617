"""``restore``: restore the processes that ``checkpoint`` saved, as a new container, by CRIU.

CRIU runs in its own mount namespace. There the root filesystem is a mount, as CRIU requires. Nothing of this remains
when CRIU ends.

Source: criu(8).
"""

from __future__ import annotations

import os

from containerkit._linux.criu import NAMESPACE_KEYS, inherit
from containerkit._native import constants as k
from containerkit.oci import config as configuration
from containerkit.oci import criu, kernel, store
from containerkit.oci.errors import RuntimeFailure, strerror
from containerkit.oci.tape import Tape
from containerkit.oci.targets import Targets
from containerkit.oci.users import outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.oci.cgroups import Groups
    from containerkit.oci.main import Call

__all__ = ["restore"]

_LOG = "restore.log"
_SIGKILL = 9
_JOINED = {"ipc": "ipc", "uts": "uts", "time": "time"}


def restore(call: Call) -> int:
    """Restore a container. The call waits for its end unless it is detached."""
    from containerkit.oci import foreground
    from containerkit.oci.delete import destroy

    restored = Restore(call)
    restored.make()
    if call.flags.has("detach"):
        return 0
    pidfd = os.pidfd_open(restored.pid)
    status = foreground.follow(pidfd, restored.master)
    os.close(pidfd)
    with store.open_entry(call.root, call.name, lock=True) as ended:
        destroy(ended)
    return status


class Restore:
    """One container that is restored.

    Args:
        call: the call of the command line.

    Attributes:
        pid: its first process, once it exists.
        master: its terminal, if the caller keeps it; else -1.
    """

    def __init__(self, call: Call) -> None:
        self.call = call
        self.program = criu.program(call)
        self.bundle = os.path.abspath(call.flags.text("bundle", "."))
        self.content, self.config = configuration.load(self.bundle)
        root = self.config.root
        assert root is not None
        self.rootfs = os.path.normpath(os.path.join(self.bundle, root.path))
        self.images = os.path.abspath(call.flags.text("image-path", "checkpoint"))
        self.pid = 0
        self.master = -1
        self._passed: list[int] = []
        self._terminal = ""
        self._groups: Groups | None = None

    def make(self) -> None:
        """Restore the processes and record them.

        Raises:
            RuntimeFailure: this failed. Nothing is left behind.
        """
        if not os.path.isdir(self.images):
            raise RuntimeFailure(f"--image-path {self.images}: no such directory")
        with store.reserve(self.call.root, self.call.name) as entry:
            try:
                entry.write(store.CONFIG, self.content)
                self._make_groups()
                self._make_mountpoints()
                self._restore_processes()
                self._record(entry)
            except BaseException:
                self._abandon()
                entry.remove()
                raise
            finally:
                for fd in self._passed:
                    os.close(fd)
        if path := self.call.flags.text("pid-file"):
            from containerkit.oci.host import write_pid_file

            write_pid_file(path, self.pid)

    def _abandon(self) -> None:
        """Remove everything that was made."""
        from containerkit.oci import cgroups

        if self.pid:
            os.kill(self.pid, _SIGKILL)  # a child of this process, so its pid can't be reused
            os.waitpid(self.pid, k.WALL)
        if self._groups is not None and self._groups.made:
            cgroups.kill_all(self._groups.places, _SIGKILL)
            cgroups.remove(self._groups.places)

    # --- before the restore

    def _make_groups(self) -> None:
        if self.call.manager == "disabled":
            return
        from containerkit.oci import limits
        from containerkit.oci.cgroups import Groups, hierarchies

        path = "/" + (self.config.linux.cgroups_path or self.call.name).strip("/")
        found = hierarchies()
        resources = self.config.linux.resources
        if found and found[0].version == 1 and found[-1].version == 2 and not (resources and resources.unified):
            found.pop()
        self._groups = Groups(path, found)
        self._groups.check_unused()
        self._groups.check_thawed()
        self._groups.make()
        if resources is not None:
            limits.apply(self._groups, resources)

    def _make_mountpoints(self) -> None:
        """Make the mount points that ``create`` made in another root filesystem."""
        root = os.open(self.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            targets = Targets(Tape())
            targets.view = root
            for mount in self.config.mounts:
                target = targets.resolve(os.path.normpath("/" + mount.destination.lstrip("/")))
                directory = not (mount.source.startswith("/") and os.path.isfile(mount.source))
                if not targets.is_below_a_mount(target):
                    _make_path(root, target, directory=directory)
                targets.note(target)
        finally:
            os.close(root)

    # --- CRIU

    def _restore_processes(self) -> None:
        pid_file = f"{self.images}/.restored.{os.getpid()}"
        words = [self.program, "restore", "--root", self.rootfs, "--restore-detached", "--restore-sibling"]
        words += ["--pidfile", pid_file, *criu.common(self.call.flags, self.images, _LOG), *self._external()]
        log = os.path.join(self.call.flags.text("work-path", self.images), _LOG)
        try:
            criu.perform(words, log, passed=self._passed, prepare=_in_own_mounts(self.rootfs))
            with open(pid_file, encoding="ascii") as file:
                self.pid = int(file.read())
        finally:
            if os.path.exists(pid_file):
                os.unlink(pid_file)

    def _external(self) -> list[str]:
        words = self._streams(criu.read_streams(self.images))
        for key, source in criu.external_mounts(self.config, self._groups, self._terminal).items():
            words += ["--external", f"mnt[{key}]:{os.path.join(self.bundle, source)}"]
        for kind, (_, key) in NAMESPACE_KEYS.items():
            namespace = self.config.namespace(kind)
            if namespace is None or namespace.path:
                path = namespace.path if namespace is not None else f"/proc/self/ns/{NAMESPACE_KEYS[kind][0]}"
                words += self._inherit(os.open(path, os.O_RDONLY | os.O_CLOEXEC), key)
        for namespace in self.config.linux.namespaces:
            if namespace.path and namespace.type in _JOINED:
                words += ["--join-ns", f"{_JOINED[namespace.type]}:{namespace.path}"]
        if self._groups is not None:
            for hierarchy in self._groups.found:
                for prefix in [f"{name}:" for name in hierarchy.names] or [""]:  # version 2 has no name
                    words += ["--cgroup-root", f"{prefix}{self._groups.path}"]
        return words

    def _streams(self, keys: list[str]) -> list[str]:
        """Give the processes the caller's streams, or a terminal, in place of their previous streams."""
        words = []
        for number, key in enumerate(keys):
            if key.startswith(("pipe:", "file[")):
                words += self._inherit(os.dup(number), key)
        for key in dict.fromkeys(key for key in keys if key.startswith("tty[")):
            words += self._inherit(self._open_terminal(), key)
        return words

    def _open_terminal(self) -> int:
        """Make a terminal. Its other end is for the caller or the console socket."""
        from containerkit.oci import console

        self.master, terminal = os.openpty()
        self._terminal = os.ttyname(terminal)
        if self.config.process is not None:
            console.set_size(self.master, self.config.process.console_size)
            uid = outside(self.config, self.config.process.user.uid)
            if uid > 0:
                os.fchown(terminal, uid, -1)
        if path := self.call.flags.text("console-socket"):
            master, self.master = self.master, -1
            try:
                console.send_descriptor(path, master, b"/dev/ptmx")
            finally:
                os.close(master)
        return terminal

    def _inherit(self, fd: int, key: str) -> list[str]:
        self._passed.append(fd)
        return inherit(fd, key)

    # --- after the restore

    def _record(self, entry: store.Entry) -> None:
        from containerkit.oci.log import timestamp

        groups, hooks = self._groups, self.config.hooks
        entry.save(
            ociVersion=self.config.oci_version,
            phase="created",
            bundle=self.bundle,
            rootfs=self.rootfs,
            created=timestamp(),
            owner=str(os.geteuid()),
            annotations=self.config.annotations,
            groups=[] if groups is None else groups.places,
            freezer="" if groups is None else groups.freezer,
            joinsPid=not self.config.is_new("pid"),
            hooks=["poststop"] if hooks.poststop else [],
            pid=self.pid,
            start_time=store.start_time(self.pid),
        )


def _in_own_mounts(rootfs: str) -> Callable[[], None]:
    """Return a function that gives a process its own mount namespace, in which the root filesystem is a mount."""

    def prepare() -> None:
        kernel.call("unshare", k.CLONE_NEWNS)
        kernel.call("mount", b"none\0", b"/\0", 0, k.MS_SLAVE | k.MS_REC, 0)
        path = os.fsencode(rootfs) + b"\0"
        kernel.call("mount", path, path, 0, k.MS_BIND | k.MS_REC, 0)
        kernel.call("mount", b"none\0", path, 0, k.MS_PRIVATE | k.MS_REC, 0)

    return prepare


def _make_path(root: int, target: str, *, directory: bool) -> None:
    """Make a path below the root filesystem if it is missing."""
    parts = target.strip("/").split("/")
    for depth, part in enumerate(parts, start=1):
        above = kernel.open_inside(root, "/".join(parts[: depth - 1]), os.O_RDONLY | os.O_DIRECTORY)
        try:
            if depth < len(parts) or directory:
                os.mkdir(part, 0o755, dir_fd=above)
            else:
                os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=above))
        except FileExistsError:
            continue
        except OSError as error:
            raise RuntimeFailure(f"make the mount point {target}: {strerror(error.errno or 0)}") from None
        finally:
            os.close(above)

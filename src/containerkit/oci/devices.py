"""The steps that make the devices of the container.

In a user namespace the kernel makes no device nodes. There the default devices are bound from the host. Those of
the configuration are made by the runtime outside if it may (``nodes.py``), and otherwise bound from the host.

Source: OCI runtime-spec, config-linux.md, "Devices" and "Default Devices"; mknod(2).
"""

from __future__ import annotations

import os
from errno import EEXIST
from stat import S_IFBLK, S_IFCHR, S_IFIFO

from containerkit._native import constants as k
from containerkit.oci.errors import RuntimeFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Device
    from containerkit.oci.rootfs import Builder
    from containerkit.oci.tape import Descriptor

__all__ = ["Devices", "mode_of", "number_of"]

_DEFAULT = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
)
_KINDS = {"c": S_IFCHR, "u": S_IFCHR, "b": S_IFBLK, "p": S_IFIFO}


class Devices:
    """The devices of one container.

    Args:
        builder: the root that they are in.
    """

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self._binds: dict[str, Descriptor] = {}

    # --- outside

    def open(self) -> None:
        """Open or make the devices that can't be made inside.

        Raises:
            RuntimeFailure: the host has no such device.
            ConfigError: the owner of a device has no id outside.
        """
        builder = self.builder
        if builder.makes_nodes or self._is_hosts():
            return
        made: dict[str, int] = {}
        if builder.makes_nodes_outside and builder.config.linux.devices:
            from containerkit.oci import nodes

            made = nodes.make(builder.config)
            self._binds.update(made)
            builder.passed += made.values()
        for path, _, major, minor in self._wanted():
            if path not in made:
                self._open(path, major, minor)

    def _open(self, path: str, major: int, minor: int) -> None:
        try:
            status = os.stat(path)
        except OSError:
            status = None
        if status is None or status.st_rdev != os.makedev(major, minor):
            raise RuntimeFailure(
                f"device {path}: it can't be made here, and the host has no device with its number to bind"
            )
        self._binds[path] = self.builder.clone(path, recursive=False, what="device")

    # --- inside

    def make(self) -> None:
        """Add the steps that make the nodes and symlinks of /dev.

        Source: OCI runtime-spec, runtime-linux.md, "Dev symbolic links".
        """
        if self._is_hosts():
            return
        for path, device, major, minor in self._wanted():
            if path in self._binds:
                self.builder.attach(self._binds[path], path, directory=False)
            else:
                self._node(path, device, major, minor)
        tape, targets = self.builder.tape, self.builder.targets
        at = targets.reach("/dev", directory=True)
        for content, name in _LINKS:
            if name == "core" and not os.path.exists(content):
                continue
            if name != "ptmx" or targets.is_covered("/dev/pts"):
                tape.call("symlinkat", content.encode(), at, name.encode(), target=f"/dev/{name}", ok=(EEXIST,))
        tape.step(k.STEP_CLOSE, "close", at)

    def _is_hosts(self) -> bool:
        """Return whether /dev is the host's, which must not be changed."""
        return any(
            os.path.normpath("/" + mount.destination) == "/dev" and self.builder.is_bind(number)
            for number, mount in enumerate(self.builder.config.mounts)
        )

    def _wanted(self) -> list[tuple[str, Device | None, int, int]]:
        wanted: dict[str, tuple[str, Device | None, int, int]] = {
            path: (path, None, major, minor) for path, major, minor in _DEFAULT
        }
        for device in self.builder.config.linux.devices:
            path = os.path.normpath(device.path)
            wanted[path] = path, device, device.major, device.minor
        return list(wanted.values())

    def _node(self, path: str, device: Device | None, major: int, minor: int) -> None:
        tape, targets = self.builder.tape, self.builder.targets
        directory, _, name = path.rpartition("/")
        directory = targets.resolve(directory).rstrip("/")
        above = targets.reach(directory, directory=True) if directory else self.builder.root
        mode = S_IFCHR | 0o666 if device is None else mode_of(device)
        number = os.makedev(major, minor) if device is None else number_of(device)
        made = tape.call("mknodat", above, os.fsencode(name), mode, number, target=path, ok=(EEXIST,))
        if device is not None and (device.uid or device.gid):
            flags = k.AT_SYMLINK_NOFOLLOW
            tape.call("fchownat", above, os.fsencode(name), device.uid, device.gid, flags, target=path)
        tape.skip_here(made)
        if directory:
            tape.step(k.STEP_CLOSE, "close", tape.slot("target"))


def mode_of(device: Device) -> int:
    """Return the kind and the permissions of a node."""
    permissions = 0o666 if device.file_mode is None else device.file_mode & 0o7777
    return _KINDS[device.type] | permissions


def number_of(device: Device) -> int:
    """Return the number of a device; 0 for a pipe."""
    return os.makedev(device.major, device.minor) if device.type != "p" else 0

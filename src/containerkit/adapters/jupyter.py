"""A provisioner for Jupyter: runs any kernel in a container, with Unix sockets in a shared directory.

In the kernel's ``kernel.json``::

    "metadata": {"kernel_provisioner": {"provisioner_name": "containerkit-provisioner",
                                        "config": {"memory": "2G", "binds": ["/data:/data:ro"]}}}

Needs jupyter_client 8 or later.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

from jupyter_client.provisioning import KernelProvisionerBase
from traitlets import Bool, Float, Int, List, Unicode

from containerkit.cgroup import Limits
from containerkit.container.lifecycle import Container
from containerkit.process.process import DEVNULL
from containerkit.spec.mount import Mount
from containerkit.spec.rootfs import RootFS

if TYPE_CHECKING:
    from containerkit.process.process import Process

__all__ = ["ContainerProvisioner"]

_PASSED_ON: Final = ("JPY_SESSION_NAME", "LANG", "LC_ALL", "TZ")
"""The variables that a kernel gets from the caller's environment. All others come from its specification."""


class ContainerProvisioner(KernelProvisionerBase):
    """Runs a kernel in a fresh container, without a network.

    It communicates with its client through sockets in a directory, which is mounted at the same path inside.
    """

    image = Unicode("", config=True, help="the image to use as / (default: the host's programs)")
    python = Unicode("", config=True, help="a virtual environment to mount (default: that of this interpreter)")
    memory = Unicode("", config=True, help="limit of memory, such as 2G (default: no limit)")
    cpus = Float(0.0, config=True, help="limit of processor time in processors, such as 1.5 (default: no limit)")
    pids = Int(0, config=True, help="limit of the number of processes (default: no limit)")
    binds = List(Unicode(), config=True, help="mounts of the form SOURCE:TARGET:ro (default: none)")
    show_cwd = Bool(default_value=False, config=True, help="mount the notebook's directory writable, and start there")

    container: Container | None = None
    process: Process[Any] | None = None
    directory: str | None = None

    @property
    def has_process(self) -> bool:
        """Whether a kernel was started."""
        return self.process is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Set up the directory of sockets for the client and the kernel."""
        manager = self.parent
        if self.directory is None:
            self.directory = tempfile.mkdtemp(prefix="containerkit-kernel-")
            manager.transport = "ipc"
            manager.connection_file = os.path.join(self.directory, "connection.json")
            manager.ip = os.path.join(self.directory, "socket")
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()
        command = manager.format_kernel_cmd(extra_arguments=kwargs.pop("extra_arguments", []))
        given: dict[str, Any] = await super().pre_launch(cmd=command, **kwargs)
        return given

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        """Start the kernel in a container.

        Raises:
            SpecError, SetupError: as for :class:`containerkit.Container`.
        """
        assert self.directory is not None
        mounts = [Mount.bind(self.directory, self.directory)]
        cwd = _absolute(kwargs.get("cwd")) if self.show_cwd else None
        if cwd is not None:
            mounts.append(Mount.bind(cwd, cwd))
        self.container = Container(self._root(), mounts=mounts, volumes=list(self.binds), limits=self._limits())
        try:
            self.container.start()
            self.process = self.container.popen(
                cmd,
                stdin=DEVNULL,
                extra_env=self._environment(kwargs.get("env") or {}),
                cwd=cwd,
            )
        except BaseException:
            self.container.stop()
            self.container = None
            raise
        return self.connection_info

    def _root(self) -> RootFS:
        if self.image:
            return RootFS.image(self.image)
        return RootFS.host(python=self.python or sys.prefix)

    def _limits(self) -> Limits | None:
        wanted = {name: value for name in ("memory", "cpus", "pids") if (value := getattr(self, name))}
        return Limits(**wanted) if wanted else None

    def _environment(self, env: dict[str, str]) -> dict[str, str]:
        """Return the kernel's variables. It gets nothing else from the caller's environment."""
        own = {name: value for name, value in env.items() if name in _PASSED_ON or name in self.kernel_spec.env}
        return {"IPYTHONDIR": "/tmp/ipython", "PYDEVD_DISABLE_FILE_VALIDATION": "1", **own}

    async def poll(self) -> int | None:
        """Return its status if it has ended, None if it runs, 0 if there is no kernel."""
        return 0 if self.process is None else self.process.poll()

    async def wait(self) -> int | None:
        """Wait for its end."""
        if self.process is None:
            return 0
        loop, process = asyncio.get_running_loop(), self.process
        while (status := process.poll()) is None:
            ended, fd = asyncio.Event(), process.fileno()
            loop.add_reader(fd, ended.set)
            try:
                await ended.wait()
            finally:
                loop.remove_reader(fd)
        self._end()
        return status

    async def send_signal(self, signum: int) -> None:
        """Send the kernel a signal."""
        if self.process is not None:
            self.process.send_signal(signum)

    async def kill(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - jupyter_client's own
        """Kill it and all processes that it has started."""
        del restart
        if self.container is not None:
            self.container.kill()

    async def terminate(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        """Ask it to end."""
        del restart
        await self.send_signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        """Release all resources. Keep the directory of sockets if another kernel follows."""
        self._end()
        if not restart and self.directory is not None:
            directory, self.directory = self.directory, None
            shutil.rmtree(directory, ignore_errors=True)

    def _end(self) -> None:
        self.process = None
        if self.container is not None:
            container, self.container = self.container, None
            container.stop()


def _absolute(directory: str | None) -> str:
    return os.path.abspath(directory or os.getcwd())

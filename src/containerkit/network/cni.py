"""Networks that plugins of the Container Network Interface (CNI) make.

Each plugin is a program. It reads its configuration from stdin and the command from ``CNI_*`` variables, and writes a
result, or an error, to stdout. Source: the CNI specification 1.0.0, "Network configuration format", "Execution
protocol", "Execution of network configurations".
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING, Any, Final

from containerkit import _native
from containerkit._linux.privileges import is_privileged
from containerkit._native import constants as k
from containerkit.errors import SetupError, SpecError, UnsupportedError
from containerkit.network import links
from containerkit.network.endpoint import Endpoint, settings_of
from containerkit.network.files import resolv_conf
from containerkit.network.leases import DIRECTORY
from containerkit.network.macvlan import hosts_servers
from containerkit.plan import calls
from containerkit.plan.operation import Slot
from containerkit.plan.program import proc
from containerkit.start.staging import opened

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerkit.spec.network import CNI, Port

__all__ = ["Plugins", "sweep"]

_CONFIGURATIONS: Final = "/etc/cni/net.d"
_RECORDS: Final = f"{DIRECTORY}/cni"
_TIMEOUT_S: Final = 60
_LARGEST: Final = 1 << 20
_TYPE: Final = re.compile(r"[A-Za-z0-9_.-]+")
_INTERFACE: Final = "eth0"
_VERSIONS: Final = ("1.0.0", "0.4.0", "0.3.1", "0.3.0")


class Plugins:
    """Makes the network of each start with the plugins of one configuration list.

    Args:
        name: the name of the network.
        plugins: the configuration of each plugin, in order.
        version: the version of the specification for which they are written.
        directories: the directories that contain plugins.
        capabilities: arguments for the plugins that declare them.
        sysctls: parameters of the network namespace, by their path below ``net``.
    """

    def __init__(
        self,
        name: str,
        plugins: list[dict[str, Any]],
        version: str,
        directories: tuple[str, ...],
        capabilities: dict[str, Any],
        sysctls: Mapping[str, str],
    ) -> None:
        self._name = name
        self._plugins = plugins
        self._version = version
        self._directories = directories
        self._capabilities = capabilities
        self._sysctls = sysctls
        self._dns: dict[str, Any] = {}

    @classmethod
    def of(cls, wish: CNI, ports: tuple[Port, ...], sysctls: Mapping[str, str]) -> Plugins:
        """Read a configuration, and look up its plugins.

        Raises:
            SpecError: the configuration does not exist or is invalid.
            UnsupportedError: the caller is not root, or a plugin is not installed.
        """
        if not is_privileged():
            hint = "plugins change the host's network, which needs root: run as root, or use network='internet'"
            raise UnsupportedError("execve", 1, "CNI plugins", hint)
        path, config = _read(os.fspath(wish.config))
        name, plugins = config.get("name"), config.get("plugins")
        if plugins is None:
            plugins = [config]
        if not isinstance(name, str) or not _TYPE.fullmatch(name) or not isinstance(plugins, list) or not plugins:
            raise SpecError(f"cni: {path}: it has no name, or no plugins")
        version = config.get("cniVersion", "0.3.0")
        if version not in _VERSIONS:
            raise SpecError(f"cni: {path}: cniVersion {version!r:.50} is not one of {', '.join(_VERSIONS)}")
        for plugin in plugins:
            kind = plugin.get("type") if isinstance(plugin, dict) else None
            if not isinstance(kind, str) or not _TYPE.fullmatch(kind):
                raise SpecError(f"cni: {path}: the type {kind!r:.100} is not the name of a plugin")
            _program(kind, wish.plugins)
        return cls(name, plugins, version, wish.plugins, _capabilities(ports, wish.aliases), sysctls)

    def take(self) -> Endpoint:
        """Make the network of one container.

        Raises:
            SetupError: a plugin failed. The plugins before it have undone their changes.
        """
        fd = self._namespace()
        identity = os.urandom(16).hex()
        record, lock = _record(identity)
        done: list[int] = []
        try:
            result: dict[str, Any] | None = None
            _note(lock, self._name, self._plugins, self._version, self._directories, self._capabilities)
            for number, plugin in enumerate(self._plugins):
                done.append(number)
                result = self._run("ADD", plugin, fd, identity, result)
            self._dns = (result or {}).get("dns") or {}
        except BaseException:
            self.undo(fd, identity, done, None)
            os.close(fd)
            _forget(record, lock)
            raise
        last = result

        def end() -> None:
            self.undo(fd_of_end, identity, done, last)
            os.close(fd_of_end)
            _forget(record, lock)

        fd_of_end = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _native.LOWEST)
        return Endpoint.adopt(fd, [end])

    def _namespace(self) -> int:
        own, inside = Slot("endpoint"), Slot("rtnetlink")
        steps = [
            calls.unshare(k.CLONE_NEWNET, "network namespace"),
            calls.open_at(Slot("proc"), b"thread-self/ns/net", k.O_RDONLY, own),
            *calls.netlink_socket(0, inside),
            *settings_of(self._sysctls),
            links.set_up(inside, "lo", 1),
            calls.close(inside),
        ]
        return opened(steps, {"proc": proc()}, ("endpoint",)).pop()

    def undo(self, fd: int, identity: str, done: list[int], result: dict[str, Any] | None) -> None:
        """Let the plugins undo their changes in reverse order, even if one fails."""
        for number in reversed(done):
            with contextlib.suppress(SetupError):
                self._run("DEL", self._plugins[number], fd, identity, result)

    def _run(
        self, command: str, plugin: dict[str, Any], fd: int, identity: str, result: dict[str, Any] | None
    ) -> dict[str, Any] | None:
        kind = plugin["type"]
        config = {**plugin, "name": self._name, "cniVersion": self._version}
        known = config.pop("capabilities", None)
        if isinstance(known, dict):
            arguments = {name: value for name, value in self._capabilities.items() if known.get(name)}
            config.update({"runtimeConfig": arguments} if arguments else {})
        if result is not None:
            config["prevResult"] = result
        namespace = f"/proc/{os.getpid()}/fd/{fd}" if fd >= 0 else ""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": identity,
            "CNI_NETNS": namespace,
            "CNI_IFNAME": _INTERFACE,
            "CNI_PATH": ":".join(self._directories),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }
        target = f"CNI plugin {kind} {command}"
        try:
            done = subprocess.run(
                [_program(kind, self._directories)],
                input=json.dumps(config).encode(),
                capture_output=True,
                env=environment,
                cwd="/",
                timeout=_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise SetupError("execve", 110, target, f"it did not end within {_TIMEOUT_S} s") from None
        except OSError as error:
            raise SetupError("execve", error.errno or 0, target, "") from None
        if done.returncode:
            raise SetupError("execve", 125, target, _error_text(done.stdout, done.stderr))
        if command == "DEL" or not done.stdout.strip():
            return None
        answer: dict[str, Any] = json.loads(done.stdout[:_LARGEST])
        return answer

    def resolv_conf(self) -> bytes | None:
        """Return the name servers that the plugins reported, or otherwise the host's."""
        servers = [server for server in self._dns.get("nameservers") or () if isinstance(server, str)]
        return resolv_conf(servers, None) if servers else hosts_servers()


def _read(wish: str) -> tuple[str, dict[str, Any]]:
    """Return the path and the content of a configuration, by its path or the name of the network."""
    paths = [wish] if "/" in wish else sorted(glob.glob(f"{_CONFIGURATIONS}/*.conf*"))
    for path in paths:
        try:
            with open(path, "rb") as file:
                config = json.loads(file.read(_LARGEST))
        except (OSError, ValueError) as error:
            if path == wish:
                raise SpecError(f"cni: {wish}: {error}") from None
            continue
        if isinstance(config, dict) and (path == wish or config.get("name") == wish):
            return path, config
    raise SpecError(
        f"cni: {wish!r}: no configuration in {_CONFIGURATIONS} has that name; pass a path that contains a slash"
    )


def _program(kind: str, directories: tuple[str, ...]) -> str:
    for directory in directories:
        path = f"{directory}/{kind}"
        if os.access(path, os.X_OK):
            return path
    hint = f"it is in none of {', '.join(directories)}: install containernetworking-plugins"
    raise UnsupportedError("execve", 2, f"CNI plugin {kind}", hint)


def _capabilities(ports: tuple[Port, ...], aliases: tuple[str, ...]) -> dict[str, Any]:
    if any(port.last is not None for port in ports):
        raise SpecError("publish: the plugin portmap takes one port of the host, not the first free one of a range")
    mappings = [
        {
            "hostPort": port.host_port + number,
            "containerPort": port.container_port + number,
            "protocol": port.protocol,
            "hostIP": port.host,
        }
        for port in ports
        for number in range(port.count)
    ]
    found: dict[str, Any] = {"portMappings": mappings} if mappings else {}
    if aliases:
        found["aliases"] = {_INTERFACE: list(aliases)}
    return found


def _error_text(stdout: bytes, stderr: bytes) -> str:
    with contextlib.suppress(ValueError):
        error = json.loads(stdout[:_LARGEST])
        if isinstance(error, dict):
            return " ".join(str(error.get(name) or "") for name in ("msg", "details")).strip()[:500]
    return stderr.decode(errors="replace").strip()[-500:]


# --- Records: what plugins have made does not end with its owner


def _record(identity: str) -> tuple[str, int]:
    path = f"{_RECORDS}/{identity}"
    try:
        os.makedirs(_RECORDS, mode=0o700, exist_ok=True)
        fd = _native.high(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise SetupError("open", error.errno or 0, path, f"{_RECORDS} must be writable") from None
    return path, fd


def _note(fd: int, *parts: Any) -> None:
    os.write(fd, json.dumps(parts).encode())


def _forget(path: str, fd: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def sweep() -> list[str]:
    """Let plugins undo their changes for dead owners. Return descriptions of the changes."""
    done: list[str] = []
    for path in sorted(glob.glob(f"{_RECORDS}/*")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        with contextlib.suppress(ValueError, TypeError, SpecError):
            name, plugins, version, directories, capabilities = json.loads(os.read(fd, _LARGEST))
            maker = Plugins(name, plugins, version, tuple(directories), capabilities, {})
            maker.undo(-1, os.path.basename(path), list(range(len(plugins))), None)
            done.append(f"network {name} of CNI plugins")
        _forget(path, fd)
    return done

"""Check config.json for members that contradict each other."""

from __future__ import annotations

import os

from containerkit._native.names import RESOURCES
from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.config import Config, Process

__all__ = ["RLIMITS", "check", "check_host", "check_process"]


def check(config: Config) -> None:
    """Check for members that contradict each other."""
    version = config.oci_version
    major, _, rest = version.partition(".")
    if major != "1" or not rest.partition(".")[0].isdigit():
        raise ConfigError("ociVersion", f"{version!r} is not a version 1 of the specification")
    if config.root is None or not config.root.path:
        raise ConfigError("root", "is missing: a container of Linux needs a root filesystem")
    seen: set[str] = set()
    for index, namespace in enumerate(config.linux.namespaces):
        if namespace.type in seen:
            raise ConfigError(f"linux.namespaces[{index}].type", f"{namespace.type} is given twice")
        seen.add(namespace.type)
    _check_namespaces(config)
    for index, mount in enumerate(config.mounts):
        if not mount.destination:
            raise ConfigError(f"mounts[{index}].destination", "is empty")
        if bool(mount.uid_mappings) != bool(mount.gid_mappings):
            raise ConfigError(f"mounts[{index}]", "uidMappings and gidMappings go together")
    if config.process is not None:
        check_process(config.process, "process")


def _check_namespaces(config: Config) -> None:
    linux = config.linux
    if "mount" not in {each.type for each in linux.namespaces}:
        raise ConfigError("linux.namespaces", "has no mount namespace; without one the host's own root would change")
    if config.is_new("user") and not (linux.uid_mappings and linux.gid_mappings):
        raise ConfigError("linux.uidMappings", "a new user namespace needs uidMappings and gidMappings")
    if (linux.uid_mappings or linux.gid_mappings) and config.namespace("user") is None:
        raise ConfigError("linux.uidMappings", "linux.namespaces has no user namespace to map ids in")
    for what, kind, value in (("hostname", "uts", config.hostname), ("domainname", "uts", config.domainname)):
        if value and config.namespace(kind) is None:
            raise ConfigError(what, "can only be set in a uts namespace")
        if len(os.fsencode(value)) > 64:
            raise ConfigError(what, "is longer than 64 bytes")
    if linux.time_offsets and not config.is_new("time"):
        raise ConfigError("linux.timeOffsets", "can only be set in a new time namespace")
    for clock in linux.time_offsets:
        if clock not in ("monotonic", "boottime"):
            raise ConfigError(f"linux.timeOffsets.{clock}", "the clocks are monotonic and boottime")
    if linux.net_devices and config.namespace("network") is None:
        raise ConfigError("linux.netDevices", "needs a network namespace")
    for name in linux.sysctl:
        _check_sysctl(config, name)


_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def _check_sysctl(config: Config, name: str) -> None:
    """Refuse a parameter that does not belong to a new namespace, because it would change the host."""
    path = f"linux.sysctl.{name}"
    if config.namespace(owner := _owner_of(name)) is None:
        raise ConfigError(path, f"can only be set in a container with its own {owner} namespace")


def _owner_of(name: str) -> str:
    """Return the kind of the namespaces that have their own value of a kernel parameter.

    Raises:
        ConfigError: no kind has.
    """
    path = f"linux.sysctl.{name}"
    plain = name.replace("/", ".")
    if ".." in plain or plain.startswith("."):
        raise ConfigError(path, "is not a name of a kernel parameter")
    if plain in _IPC_SYSCTLS or plain.startswith("fs.mqueue."):
        return "ipc"
    if plain.startswith("net."):
        return "network"
    if plain == "kernel.hostname":
        raise ConfigError(path, "is set by hostname in the configuration")
    if plain == "kernel.domainname":
        return "uts"
    if plain.startswith("user."):
        return "user"
    raise ConfigError(path, "belongs to no namespace, so it would be set for the whole host")


def check_host(config: Config, kind: str) -> None:
    """Refuse changes of the host, when a joined namespace is the runtime's own.

    Args:
        config: the configuration.
        kind: of the namespace.

    Raises:
        ConfigError: it sets a kernel parameter, or a name, of that namespace.
    """
    hint = f"remove it, or use a new {kind} namespace"
    why = f"would apply to the host: the {kind} namespace to join is the runtime's own (hint: {hint})"
    for name in config.linux.sysctl:
        if _owner_of(name) == kind:
            raise ConfigError(f"linux.sysctl.{name}", why)
    for name, value in (("hostname", config.hostname), ("domainname", config.domainname)):
        if value and kind == "uts":
            raise ConfigError(name, why)


def check_process(process: Process, path: str) -> None:
    """Check for members of a process that contradict each other.

    Raises:
        ConfigError: they contradict each other.
    """
    if not process.args:
        raise ConfigError(f"{path}.args", "must have at least one argument")
    if not process.args[0]:
        raise ConfigError(f"{path}.args[0]", "is empty")
    for index, variable in enumerate(process.env):
        if "=" not in variable.lstrip("="):
            raise ConfigError(f"{path}.env[{index}]", f"{variable!r} is not NAME=value")
    seen: set[str] = set()
    for index, limit in enumerate(process.rlimits):
        where = f"{path}.rlimits[{index}]"
        if limit.type not in RLIMITS:
            raise ConfigError(f"{where}.type", f"unknown limit {limit.type!r}")
        if limit.type in seen:
            raise ConfigError(f"{where}.type", f"{limit.type} is given twice")
        if limit.soft > limit.hard:
            raise ConfigError(f"{where}.soft", f"{limit.soft} exceeds the hard limit {limit.hard}")
        seen.add(limit.type)


RLIMITS = {f"RLIMIT_{name.upper()}": number for name, number in RESOURCES.items()}
"""The limits of setrlimit(2), by name."""

"""config.json, typed: the objects of the OCI runtime specification 1.2 for Linux.

Source: OCI runtime-spec, config.md and config-linux.md; the names are the specification's own, in Python's spelling.
"""

from __future__ import annotations

from containerkit import jsontext
from containerkit.oci import files
from containerkit.oci.checks import check
from containerkit.oci.errors import RuntimeFailure, strerror
from containerkit.oci.resources import Resources
from containerkit.oci.schema import (
    Field,
    Model,
    absolute,
    any_value,
    array,
    boolean,
    choice,
    integer,
    mapping,
    model,
    text,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar

__all__ = ["NAMESPACES", "Config", "Device", "Hook", "IdMap", "Linux", "Mount", "Namespace", "Process", "load", "parse"]

NAMESPACES = ("pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time")

_ID = integer(0, 2**32 - 2)
_UNSIGNED = integer(0, 2**32 - 1)
_LONG = integer(-(2**63), 2**64 - 1)
_COUNT = integer(0, 2**64 - 1)
_words = array(text)


class IdMap(Model):
    """A range of ids inside and the corresponding range outside."""

    container_id: int
    host_id: int
    size: int
    FIELDS: ClassVar = {
        "containerID": Field("container_id", _UNSIGNED, 0),
        "hostID": Field("host_id", _UNSIGNED, 0),
        "size": Field("size", integer(1, 2**32 - 1), 1),
    }


class Box(Model):
    """The size of a terminal in characters."""

    height: int
    width: int
    FIELDS: ClassVar = {"height": Field("height", integer(0, 65535), 0), "width": Field("width", integer(0, 65535), 0)}


class User(Model):
    """The user and groups of the process."""

    uid: int
    gid: int
    umask: int | None
    additional_gids: list[int]
    username: str
    FIELDS: ClassVar = {
        "uid": Field("uid", _ID, 0),
        "gid": Field("gid", _ID, 0),
        "umask": Field("umask", integer(0, 0o777)),
        "additionalGids": Field("additional_gids", array(_ID), []),
        "username": Field("username", text, ""),
    }


class Capabilities(Model):
    """The five sets of the process."""

    bounding: list[str]
    effective: list[str]
    inheritable: list[str]
    permitted: list[str]
    ambient: list[str]
    FIELDS: ClassVar = {
        name: Field(name, _words, []) for name in ("bounding", "effective", "inheritable", "permitted", "ambient")
    }


class Rlimit(Model):
    """A limit of setrlimit(2)."""

    type: str
    soft: int
    hard: int
    FIELDS: ClassVar = {
        "type": Field.required("type", text),
        "soft": Field.required("soft", _COUNT),
        "hard": Field.required("hard", _COUNT),
    }


class IOPriority(Model):
    """The priority of the process's input and output."""

    cls: str
    priority: int
    FIELDS: ClassVar = {
        "class": Field.required("cls", choice("IOPRIO_CLASS_RT", "IOPRIO_CLASS_BE", "IOPRIO_CLASS_IDLE")),
        "priority": Field("priority", integer(0, 7), 0),
    }


POLICIES = ("SCHED_OTHER", "SCHED_FIFO", "SCHED_RR", "SCHED_BATCH", "", "SCHED_IDLE", "SCHED_DEADLINE", "SCHED_EXT")
"""Policies by their numbers. Source: linux/sched.h; number 4, SCHED_ISO, was never implemented."""


class Scheduler(Model):
    """The scheduling policy of the process."""

    policy: str
    nice: int
    priority: int
    flags: list[str]
    runtime: int
    deadline: int
    period: int
    FIELDS: ClassVar = {
        "policy": Field.required("policy", choice(*[name for name in POLICIES if name], "SCHED_ISO")),
        "nice": Field("nice", integer(-20, 19), 0),
        "priority": Field("priority", integer(0, 99), 0),
        "flags": Field("flags", _words, []),
        "runtime": Field("runtime", _COUNT, 0),
        "deadline": Field("deadline", _COUNT, 0),
        "period": Field("period", _COUNT, 0),
    }


class Affinity(Model):
    """The processors of a process that ``exec`` starts: before and after it joins the control groups."""

    initial: str
    final: str
    FIELDS: ClassVar = {"initial": Field("initial", text, ""), "final": Field("final", text, "")}


class Process(Model):
    """The process to run."""

    terminal: bool
    console_size: Box | None
    cwd: str
    env: list[str]
    args: list[str]
    user: User
    rlimits: list[Rlimit]
    apparmor_profile: str
    capabilities: Capabilities | None
    no_new_privileges: bool
    oom_score_adj: int | None
    selinux_label: str
    io_priority: IOPriority | None
    scheduler: Scheduler | None
    exec_cpu_affinity: Affinity | None
    FIELDS: ClassVar = {
        "terminal": Field("terminal", boolean, False),
        "consoleSize": Field("console_size", model(Box)),
        "cwd": Field.required("cwd", absolute),
        "env": Field("env", _words, []),
        "args": Field("args", _words, []),
        "commandLine": Field("command_line", text, ""),
        "user": Field("user", model(User), User.read({}, "process.user")),
        "rlimits": Field("rlimits", array(model(Rlimit)), []),
        "apparmorProfile": Field("apparmor_profile", text, ""),
        "capabilities": Field("capabilities", model(Capabilities)),
        "noNewPrivileges": Field("no_new_privileges", boolean, False),
        "oomScoreAdj": Field("oom_score_adj", integer(-1000, 1000)),
        "selinuxLabel": Field("selinux_label", text, ""),
        "ioPriority": Field("io_priority", model(IOPriority)),
        "scheduler": Field("scheduler", model(Scheduler)),
        "execCPUAffinity": Field("exec_cpu_affinity", model(Affinity)),
    }


class Root(Model):
    """The root filesystem."""

    path: str
    readonly: bool
    FIELDS: ClassVar = {"path": Field.required("path", text), "readonly": Field("readonly", boolean, False)}


class Mount(Model):
    """A mount inside."""

    destination: str
    source: str
    type: str
    options: list[str]
    uid_mappings: list[IdMap]
    gid_mappings: list[IdMap]
    FIELDS: ClassVar = {
        "destination": Field.required("destination", text),
        "source": Field("source", text, ""),
        "type": Field("type", text, ""),
        "options": Field("options", _words, []),
        "uidMappings": Field("uid_mappings", array(model(IdMap)), []),
        "gidMappings": Field("gid_mappings", array(model(IdMap)), []),
    }


class Hook(Model):
    """A program that is run at a point of the lifecycle."""

    path: str
    args: list[str]
    env: list[str] | None
    timeout: int | None
    FIELDS: ClassVar = {
        "path": Field.required("path", absolute),
        "args": Field("args", _words, []),
        "env": Field("env", _words),
        "timeout": Field("timeout", integer(1, 2**31)),
    }


class Hooks(Model):
    """The six kinds of hooks."""

    prestart: list[Hook]
    create_runtime: list[Hook]
    create_container: list[Hook]
    start_container: list[Hook]
    poststart: list[Hook]
    poststop: list[Hook]
    FIELDS: ClassVar = {
        name: Field(attribute, array(model(Hook)), [])
        for name, attribute in (
            ("prestart", "prestart"),
            ("createRuntime", "create_runtime"),
            ("createContainer", "create_container"),
            ("startContainer", "start_container"),
            ("poststart", "poststart"),
            ("poststop", "poststop"),
        )
    }


class Namespace(Model):
    """A namespace that is new, or joined by its path."""

    type: str
    path: str
    FIELDS: ClassVar = {"type": Field.required("type", choice(*NAMESPACES)), "path": Field("path", absolute, "")}


class Device(Model):
    """A device node inside."""

    path: str
    type: str
    major: int
    minor: int
    file_mode: int | None
    uid: int
    gid: int
    FIELDS: ClassVar = {
        "path": Field.required("path", absolute),
        "type": Field.required("type", choice("c", "b", "u", "p")),
        "major": Field("major", integer(0, 2**32 - 1), 0),
        "minor": Field("minor", integer(0, 2**32 - 1), 0),
        "fileMode": Field("file_mode", _UNSIGNED),
        "uid": Field("uid", _ID, 0),
        "gid": Field("gid", _ID, 0),
    }


class NetDevice(Model):
    """A network device that is moved into the container."""

    name: str
    FIELDS: ClassVar = {"name": Field("name", text, "")}


class TimeOffset(Model):
    """The offset of a clock of the time namespace from the host's."""

    secs: int
    nanosecs: int
    FIELDS: ClassVar = {"secs": Field("secs", _LONG, 0), "nanosecs": Field("nanosecs", integer(0, 999_999_999), 0)}


class IntelRdt(Model):
    """Cache and memory bandwidth allocation through resctrl."""

    clos_id: str
    schemata: list[str]
    l3_cache_schema: str
    mem_bw_schema: str
    enable_monitoring: bool
    FIELDS: ClassVar = {
        "closID": Field("clos_id", text, ""),
        "schemata": Field("schemata", _words, []),
        "l3CacheSchema": Field("l3_cache_schema", text, ""),
        "memBwSchema": Field("mem_bw_schema", text, ""),
        "enableCMT": Field("enable_cmt", boolean, False),
        "enableMBM": Field("enable_mbm", boolean, False),
        "enableMonitoring": Field("enable_monitoring", boolean, False),
    }


class Personality(Model):
    """The execution domain."""

    domain: str
    flags: list[str]
    FIELDS: ClassVar = {
        "domain": Field.required("domain", choice("LINUX", "LINUX32")),
        "flags": Field("flags", _words, []),
    }


class MemoryPolicy(Model):
    """The NUMA policy of the process."""

    mode: str
    nodes: str
    flags: list[str]
    FIELDS: ClassVar = {
        "mode": Field.required("mode", text),
        "nodes": Field("nodes", text, ""),
        "flags": Field("flags", _words, []),
    }


class Linux(Model):
    """The configuration that is specific to Linux."""

    namespaces: list[Namespace]
    uid_mappings: list[IdMap]
    gid_mappings: list[IdMap]
    time_offsets: dict[str, TimeOffset]
    devices: list[Device]
    net_devices: dict[str, NetDevice]
    cgroups_path: str
    resources: Resources | None
    rootfs_propagation: str
    seccomp: dict[str, Any] | None
    sysctl: dict[str, str]
    masked_paths: list[str]
    readonly_paths: list[str]
    mount_label: str
    intel_rdt: IntelRdt | None
    personality: Personality | None
    memory_policy: MemoryPolicy | None
    FIELDS: ClassVar = {
        "namespaces": Field("namespaces", array(model(Namespace)), []),
        "uidMappings": Field("uid_mappings", array(model(IdMap)), []),
        "gidMappings": Field("gid_mappings", array(model(IdMap)), []),
        "timeOffsets": Field("time_offsets", mapping(model(TimeOffset)), {}),
        "devices": Field("devices", array(model(Device)), []),
        "netDevices": Field("net_devices", mapping(model(NetDevice)), {}),
        "cgroupsPath": Field("cgroups_path", text, ""),
        "resources": Field("resources", model(Resources)),
        "rootfsPropagation": Field(
            "rootfs_propagation",
            choice("", "private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"),
            "",
        ),
        "seccomp": Field("seccomp", mapping(any_value)),
        "sysctl": Field("sysctl", mapping(text), {}),
        "maskedPaths": Field("masked_paths", array(absolute), []),
        "readonlyPaths": Field("readonly_paths", array(absolute), []),
        "mountLabel": Field("mount_label", text, ""),
        "intelRdt": Field("intel_rdt", model(IntelRdt)),
        "personality": Field("personality", model(Personality)),
        "memoryPolicy": Field("memory_policy", model(MemoryPolicy)),
    }


class Config(Model):
    """The whole document."""

    oci_version: str
    process: Process | None
    root: Root | None
    hostname: str
    domainname: str
    mounts: list[Mount]
    hooks: Hooks
    annotations: dict[str, str]
    linux: Linux
    FIELDS: ClassVar = {
        "ociVersion": Field.required("oci_version", text),
        "process": Field("process", model(Process)),
        "root": Field("root", model(Root)),
        "hostname": Field("hostname", text, ""),
        "domainname": Field("domainname", text, ""),
        "mounts": Field("mounts", array(model(Mount)), []),
        "hooks": Field("hooks", model(Hooks), Hooks.read({}, "hooks")),
        "annotations": Field("annotations", mapping(text), {}),
        "linux": Field("linux", model(Linux), Linux.read({}, "linux")),
    }

    @property
    def version(self) -> tuple[int, int]:
        """The major and minor version of the specification for which it is written."""
        major, minor, *_ = (*self.oci_version.split("."), "0", "0")
        return int(major), int(minor) if minor.isdecimal() else 0

    def namespace(self, kind: str) -> Namespace | None:
        """Return the namespace of a kind, or None if it is the runtime's own."""
        return next((each for each in self.linux.namespaces if each.type == kind), None)

    def is_new(self, kind: str) -> bool:
        """Return whether the container has a new namespace of a kind."""
        found = self.namespace(kind)
        return found is not None and not found.path


def load(bundle: str, name: str = "config.json") -> tuple[bytes, Config]:
    """Read the configuration of a bundle.

    Returns:
        The JSON document, and the configuration as an object.

    Raises:
        RuntimeFailure: it can't be read.
        ConfigError: it is invalid.
    """
    path = name if name.startswith("/") else f"{bundle}/{name}"
    try:
        content = files.read(path)
    except OSError as error:
        raise RuntimeFailure(f"open {path}: {strerror(error.errno or 0)}") from None
    return content, parse(content, path)


def parse(content: bytes, what: str = "config.json") -> Config:
    """Return a configuration as an object.

    Raises:
        ConfigError: it is invalid.
    """
    try:
        value = jsontext.loads(content)
    except ValueError as error:
        raise RuntimeFailure(f"{what}: {error}") from None
    config = Config.read(value, "")
    check(config)
    return config

"""Argument names of other libraries that have another name here. Imported only when one of them was used."""

from __future__ import annotations

from typing import Final

__all__ = ["ELSEWHERE"]

_MEMORY: Final = 'limits=Limits(memory="256M")'
_SWAP: Final = 'limits=Limits(memory="256M", swap="256M")'
_CPUS: Final = "limits=Limits(cpus=1.5)"
_PIDS: Final = "limits=Limits(pids=64)"
_IMAGE: Final = 'rootfs=RootFS.image("alpine:3.20")'
_NETWORK: Final = "network="
_CAPABILITIES: Final = "capabilities=Capabilities.none().add(...)"
_START: Final = "popen(), which returns once the command has started"
_SESSION: Final = "nothing: each command has its own session"

ELSEWHERE: Final = {
    "auto_remove": "nothing: a container leaves nothing behind",
    "binds": "volumes=, or mounts=[Mount.bind(...)]",
    "cap_add": _CAPABILITIES,
    "cap_drop": _CAPABILITIES,
    "close_fds": "nothing: a command only gets the descriptors in pass_fds=",
    "command": "argv, the first argument",
    "cpu_shares": "limits=Limits(cpu_shares=...)",
    "cpus": _CPUS,
    "cpuset_cpus": 'limits=Limits(cpuset_cpus="0-1")',
    "detach": _START,
    "entrypoint": "argv, the first argument",
    "environment": "env=, or extra_env= to add to the environment",
    "image": _IMAGE,
    "ipc_mode": "namespaces=Namespaces(ipc=...)",
    "mem_limit": _MEMORY,
    "memory": _MEMORY,
    "memswap_limit": _SWAP,
    "name": "id=",
    "network_mode": _NETWORK,
    "nano_cpus": _CPUS,
    "pid_mode": "namespaces=Namespaces(pid=...)",
    "pids": _PIDS,
    "pids_limit": _PIDS,
    "ports": "publish=",
    "preexec_fn": "nothing: use user=, groups=, umask=, nice=, rlimits=, cwd= instead",
    "privileged": "capabilities=Capabilities.all(), seccomp=None",
    "process_group": _SESSION,
    "read_only": "rootfs=RootFS.host(readonly=True)",
    "remove": "nothing: a container leaves nothing behind",
    "rm": "nothing: a container leaves nothing behind",
    "security_opt": "seccomp=, apparmor=, selinux=, no_new_privs=",
    "shell": "argv, ['sh', '-c', ...]",
    "start_new_session": _SESSION,
    "tmpfs": "mounts=[Mount.tmpfs(...)]",
    "tty": "pty=True",
    "ulimits": "rlimits=",
    "universal_newlines": "text=True",
    "userns_mode": "namespaces=Namespaces(user=...)",
    "workdir": "cwd=",
    "working_dir": "cwd=",
}
"""The corresponding argument of containerkit for each name."""

"""The devices controller decides which devices may be opened and which device nodes may be created.

Version 1 has lists in files. On version 2 a BPF program that is attached to the group decides.

Source: Documentation/admin-guide/cgroup-v1/devices.rst; "Device controller" in Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.device_rules import DeviceRule
    from containerkit.cgroup.limits import Limits

_PRIVILEGE = "device rules on version 2 need CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN; leave out devices="


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:
    """Return the settings that deny all devices except the allowed ones."""
    if limits.devices is None:
        return []
    rules: list[DeviceRule] = [rule for rule in limits.devices if not isinstance(rule, str)]
    if version == 2:
        return [Attachment("bpf device program", lambda fd: _attach(fd, rules), _PRIVILEGE)]
    found: list[Setting | Attachment] = [Setting("devices.deny", b"a")]
    for rule in rules:
        everything = rule.kind == "a" and rule.major is None and rule.minor is None and len(rule.access) == 3
        text = "a" if everything else None
        for kind in ("b", "c") if rule.kind == "a" and text is None else (rule.kind,):
            entry = text or str(rule).replace(rule.kind, kind, 1)
            found.append(Setting("devices.allow" if rule.allow else "devices.deny", entry.encode()))
    return found


def _attach(group_fd: int, rules: list[DeviceRule]) -> None:
    from containerkit.cgroup.device_program import attach_device_program

    attach_device_program(group_fd, rules)


def report(read: Callable[[str], str | None], version: int) -> str | None:
    """Return version 1's list of allowed devices. Version 2 has no report."""
    return read("devices.list") if version == 1 else None

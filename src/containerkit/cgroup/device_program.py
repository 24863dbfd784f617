"""Device rules of version 2: compiled to a BPF program and attached to a group.

The program gets ``struct bpf_cgroup_dev_ctx {u32 access_type; u32 major; u32 minor;}``. The low half of the first word
is the kind of device, its high half is the requested access. The program returns 1 to allow and 0 to deny.

Source: bpf(2); include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from containerkit._linux import bpf
from containerkit._linux.bpf import Code, Register

if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.cgroup.device_rules import DeviceRule

__all__ = ["attach_device_program", "device_program"]

_ON_ACCESS: Final = 6  # BPF_CGROUP_DEVICE
_KINDS: Final = {"b": 1, "c": 2}
_ACCESS: Final = {"m": 1, "r": 2, "w": 4}

_VERDICT, _CONTEXT = Register(0), Register(1)
_KIND, _REQUESTED, _MAJOR, _MINOR = map(Register, (2, 3, 4, 5))
_REST: Final = Register(1)  # the context is not needed any more


def device_program(rules: Sequence[DeviceRule]) -> Code:
    """Return a program that denies every device which the rules do not allow. The last rule that matches decides.

    Args:
        rules: in order.
    """
    code = Code()
    code.load(4, _KIND, _CONTEXT, 0)
    code.compute(_REQUESTED, "=", _KIND, wide=False)
    code.compute(_KIND, "&", 0xFFFF, wide=False)
    code.compute(_REQUESTED, ">>", 16, wide=False)
    code.load(4, _MAJOR, _CONTEXT, 4)
    code.load(4, _MINOR, _CONTEXT, 8)
    for number, rule in enumerate(reversed(rules)):
        _decide(code, rule, f"after {number}")
        if _decides_all(rule):  # the kernel refuses a program with unreachable instructions
            return code
    _end_with(code, allow=False)
    return code


def _decide(code: Code, rule: DeviceRule, after: str) -> None:
    """End the program if the rule decides, otherwise go on after it."""
    if rule.kind != "a":
        code.jump_if(_KIND, "!=", _KINDS[rule.kind], after)
    if rule.major is not None:
        code.jump_if(_MAJOR, "!=", rule.major, after)
    if rule.minor is not None:
        code.jump_if(_MINOR, "!=", rule.minor, after)
    mask = sum(_ACCESS[letter] for letter in rule.access)
    if mask != 7:
        # A rule that allows must cover all of the requested access. A rule that denies needs to cover any of it.
        code.compute(_REST, "=", _REQUESTED, wide=False)
        code.compute(_REST, "&", (~mask & 7) if rule.allow else mask, wide=False)
        code.jump_if(_REST, "!=" if rule.allow else "==", 0, after)
    _end_with(code, allow=rule.allow)
    code.label(after)


def _end_with(code: Code, *, allow: bool) -> None:
    code.compute(_VERDICT, "=", int(allow))
    code.exit()


def _decides_all(rule: DeviceRule) -> bool:
    return (rule.kind, rule.major, rule.minor, len(rule.access)) == ("a", None, None, 3)


def attach_device_program(group_fd: int, rules: Sequence[DeviceRule]) -> None:
    """Load the program of these rules and attach it to a group. It replaces the program attached by an earlier call.

    Programs of the groups above stay in force: a device must be allowed by all of them.

    Args:
        group_fd: a descriptor of the version 2 directory.
        rules: in order.

    Raises:
        OSError: the kernel refuses it.

    Source: bpf(2), BPF_PROG_ATTACH.
    """
    former = bpf.attached(group_fd, _ON_ACCESS)
    program = bpf.load(bpf.DEVICES_OF_A_GROUP, b"ck_devices", device_program(rules))
    try:
        bpf.attach(group_fd, program, _ON_ACCESS)
        for identity in former:
            bpf.detach(group_fd, identity, _ON_ACCESS)
    finally:
        os.close(program)

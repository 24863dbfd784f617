"""Seccomp profiles in the JSON format of the OCI runtime specification and in Docker's variant of it.

Docker's variant has ``archMap`` in place of ``architectures``, and each entry can have ``includes`` and ``excludes``:
the entry then applies only for some capabilities, architectures or kernels.

If several entries name one call, the format defines no order. The first entry without arguments decides alone, as in
runtimes that use libseccomp. Without such an entry the strictest one whose arguments match decides, as the kernel does
among filters.

Source: the OCI runtime specification, config-linux, "Seccomp"; seccomp(2).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from errno import EPERM
from typing import TYPE_CHECKING, Any, Final

from containerkit.errors import SpecError
from containerkit.security.checks import check_instance, instances
from containerkit.security.seccomp.architecture import architecture, is_call
from containerkit.security.seccomp.profile import Action, Condition, Rule, Seccomp

if TYPE_CHECKING:
    from os import PathLike

__all__ = ["read", "write"]

_ACTIONS: Final = {
    "SCMP_ACT_KILL": "kill_thread",
    "SCMP_ACT_KILL_PROCESS": "kill_process",
    "SCMP_ACT_KILL_THREAD": "kill_thread",
    "SCMP_ACT_TRAP": "trap",
    "SCMP_ACT_ERRNO": "errno",
    "SCMP_ACT_TRACE": "trace",
    "SCMP_ACT_ALLOW": "allow",
    "SCMP_ACT_LOG": "log",
    "SCMP_ACT_NOTIFY": "user_notif",
}
_STRICTEST_FIRST: Final = ("kill_process", "kill_thread", "trap", "errno", "user_notif", "trace", "log", "allow")
_COMPARISONS: Final = {
    "SCMP_CMP_NE": "ne",
    "SCMP_CMP_LT": "lt",
    "SCMP_CMP_LE": "le",
    "SCMP_CMP_EQ": "eq",
    "SCMP_CMP_GE": "ge",
    "SCMP_CMP_GT": "gt",
    "SCMP_CMP_MASKED_EQ": "masked_eq",
}
_FLAGS: Final = {
    "SECCOMP_FILTER_FLAG_TSYNC": "tsync",
    "SECCOMP_FILTER_FLAG_LOG": "log",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": "spec_allow",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": "wait_killable_recv",
}
_WITH_NUMBER: Final = ("errno", "trace")
_KINDS: Final = {list: "a list", dict: "an object", str: "a string", int: "a number"}


def read(
    profile: Mapping[str, object] | str | PathLike[str],
    capabilities: frozenset[str],
    machine: str,
    kernel: tuple[int, int] | None,
) -> Seccomp:
    """Read a profile; see :meth:`Seccomp.from_oci`."""
    if isinstance(profile, (str, os.PathLike)):
        content = _load(profile)
    else:
        check_instance(profile, Mapping, "seccomp profile")
        content = dict(profile)
    if kernel is not None:
        _check_version(kernel)
    host = _Host(capabilities, machine, kernel or _running())
    default = _action(_get(content, "defaultAction", str, "the profile"), content.get("defaultErrnoRet"))
    entries = [_Entry(entry, default) for entry in _list(content, "syscalls", dict) if host.takes(entry)]
    flags = [_known(flag, _FLAGS, "seccomp flag") for flag in _list(content, "flags", str)]
    return Seccomp(
        default_action=default,
        rules=_rules(entries, default),
        architectures=_architectures(content, machine),
        flags=flags,
        listener_path=_get(content, "listenerPath", str, "the profile", ""),
        listener_metadata=_get(content, "listenerMetadata", str, "the profile", ""),
    )


def _load(path: str | PathLike[str]) -> dict[str, Any]:
    import json

    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except OSError as error:
        raise SpecError(f"seccomp profile {os.fspath(path)}: {os.strerror(error.errno or 0)}") from error
    except (ValueError, RecursionError) as error:
        raise SpecError(f"seccomp profile {os.fspath(path)}: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"seccomp profile {os.fspath(path)}: not an object")
    return content


def _check_version(kernel: object) -> None:
    numbers = instances(kernel, int, "kernel")  # type: ignore[arg-type] # it refuses what is not a sequence
    if len(numbers) != 2:
        raise SpecError(f"kernel: {kernel!r} is not a pair such as (6, 1)")


def _running() -> tuple[int, int]:
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, int]:
    parts = text.split(".")
    minor = "".join(digit for digit in parts[1] if digit.isdigit()) if len(parts) > 1 else ""
    if not parts[0].isdigit() or not minor:
        raise SpecError(f"not a kernel version: {text!r}")
    return int(parts[0]), int(minor)


def _get(source: Mapping[str, Any], key: str, kind: type, where: str, otherwise: Any = None) -> Any:
    value = source.get(key)
    if value is None:
        value = otherwise
    if not isinstance(value, kind) or isinstance(value, bool):
        raise SpecError(f"seccomp profile: {key} of {where} is not {_KINDS[kind]}: {value!r}")
    return value


def _list(source: Mapping[str, Any], key: str, kind: type, where: str = "the profile") -> list[Any]:
    """Return a list that may be absent or null, after checking the type of its elements."""
    found: list[Any] = _get(source, key, list, where, [])
    for each in found:
        if not isinstance(each, kind):
            raise SpecError(f"seccomp profile: {key} of {where} holds {each!r}, not {_KINDS[kind]}")
    return found


def _known(name: str, table: Mapping[str, str], what: str) -> str:
    if name not in table:
        raise SpecError(f"seccomp profile: unknown {what} {name!r}: must be one of {', '.join(table)}")
    return table[name]


def _action(name: str, number: object) -> Action:
    kind = _known(name, _ACTIONS, "action")
    if kind not in _WITH_NUMBER:
        return Action(kind)
    number = EPERM if number is None else number
    if not isinstance(number, int) or isinstance(number, bool):
        raise SpecError(f"seccomp profile: an errno must be a number, not {number!r}")
    return Action(kind, number)


class _Host:
    """The facts to which the conditions of Docker's entries refer."""

    def __init__(self, capabilities: frozenset[str], machine: str, kernel: tuple[int, int]) -> None:
        from containerkit.security.capabilities import canonical

        self._capabilities = frozenset(canonical(name) for name in capabilities)
        self._golang = architecture(machine).golang
        self._kernel = kernel

    def takes(self, entry: Mapping[str, Any]) -> bool:
        """Return whether an entry applies here."""
        wants = _get(entry, "includes", dict, "a syscall entry", {})
        shuns = _get(entry, "excludes", dict, "a syscall entry", {})
        if self._golang in _list(shuns, "arches", str, "excludes"):
            return False
        if self._capabilities & frozenset(_list(shuns, "caps", str, "excludes")):
            return False
        if shuns.get("minKernel") and self._kernel >= _version(_get(shuns, "minKernel", str, "excludes")):
            return False
        arches = _list(wants, "arches", str, "includes")
        if arches and self._golang not in arches:
            return False
        if not self._capabilities >= frozenset(_list(wants, "caps", str, "includes")):
            return False
        least = _get(wants, "minKernel", str, "includes", "0.0")
        return self._kernel >= _version(least or "0.0")


class _Entry:
    """One entry of ``syscalls`` after parsing."""

    def __init__(self, entry: Mapping[str, Any], default: Action) -> None:
        self.names = _list(entry, "names", str, "a syscall entry")
        if "name" in entry:  # the oldest form of the format
            self.names = [*self.names, _get(entry, "name", str, "a syscall entry")]
        if not self.names:
            raise SpecError("seccomp profile: a syscall entry has no names")
        where = f"the entry of {self.names[0]}"
        self.action = _action(_get(entry, "action", str, where), entry.get("errnoRet"))
        self.cases = _cases(tuple(_condition(each, where) for each in _list(entry, "args", dict, where)))
        unknown = [name for name in self.names if not is_call(name)]
        if unknown and default.permits and not self.action.permits:
            raise SpecError(
                f"seccomp profile: {where} forbids {unknown[0]!r}, which is not a known system call: "
                f"it would stay allowed; remove it, or deny by default"
            )
        self.names = [name for name in self.names if name not in unknown]


def _cases(conditions: tuple[Condition, ...]) -> tuple[tuple[Condition, ...], ...]:
    """Return the cases in which an entry matches. All conditions of a case must hold. Without conditions it has none.

    If two conditions have the same argument, each condition is a case of its own. runc and crun do the same, and
    profiles that list the values of an argument depend on it.
    """
    if len({condition.argument for condition in conditions}) < len(conditions):
        return tuple((condition,) for condition in conditions)
    return (conditions,) if conditions else ()


def _condition(entry: Mapping[str, Any], where: str) -> Condition:
    op = _known(_get(entry, "op", str, where), _COMPARISONS, "comparison")
    value = _get(entry, "value", int, where, 0)
    index = _get(entry, "index", int, where)
    if op == "masked_eq":  # in the format the mask comes first
        return Condition(argument=index, op="masked_eq", mask=value, value=_get(entry, "valueTwo", int, where, 0))
    return Condition(argument=index, op=op, value=value)  # type: ignore[arg-type] # one of _COMPARISONS


def _rules(entries: list[_Entry], default: Action) -> list[Rule]:
    """Return rules in an order in which the first match decides."""
    alone: dict[str, Action] = {}
    for entry in entries:
        for name in entry.names:
            # An entry that only repeats the default changes nothing. Every other runtime does the same.
            if entry.cases or entry.action == default:
                continue
            alone.setdefault(name, entry.action)
    by_action: dict[Action, list[str]] = {}
    for name, action in alone.items():
        by_action.setdefault(action, []).append(name)
    conditional = [
        Rule(names=names, action=entry.action, when=when)
        for entry in entries
        for when in entry.cases
        if (names := tuple(name for name in entry.names if name not in alone))
    ]
    conditional.sort(key=lambda rule: _STRICTEST_FIRST.index(rule.action.kind))
    return [Rule(names=tuple(names), action=action) for action, names in by_action.items()] + conditional


def _architectures(content: Mapping[str, Any], machine: str) -> list[str]:
    listed = [architecture(name).name for name in _list(content, "architectures", str)]
    mapped = _list(content, "archMap", dict)
    if listed and mapped:
        raise SpecError("seccomp profile: it has both architectures and archMap; remove one of them")
    for each in mapped:
        if architecture(_get(each, "architecture", str, "archMap")).name == machine:
            listed += [architecture(name).name for name in _list(each, "subArchitectures", str, "archMap")]
    return [name for name in dict.fromkeys(listed) if name != machine]


def write(seccomp: Seccomp, machine: str) -> dict[str, object]:
    """Write a profile; see :meth:`Seccomp.to_oci`."""
    content: dict[str, object] = {"defaultAction": _action_name(seccomp.default_action)}
    if seccomp.default_action.kind in _WITH_NUMBER:
        content["defaultErrnoRet"] = seccomp.default_action.data
    names = dict.fromkeys([machine, *seccomp.architectures])
    content["architectures"] = [architecture(name).oci for name in names]
    if seccomp.flags:
        content["flags"] = sorted(oci for oci, flag in _FLAGS.items() if flag in seccomp.flags)
    told = {"listenerPath": seccomp.listener_path, "listenerMetadata": seccomp.listener_metadata}
    content |= {key: value for key, value in told.items() if value}
    content["syscalls"] = [_entry(rule) for rule in _disjoint(seccomp)]
    return content


def _disjoint(seccomp: Seccomp) -> list[Rule]:
    """Return the rules without the parts that an earlier rule overrides."""
    settled: set[str] = set()
    judged: dict[str, Action] = {}
    kept: list[Rule] = []
    for rule in seccomp.rules:
        names = tuple(name for name in dict.fromkeys(rule.names) if name not in settled)
        for name in names:
            if rule.when and judged.setdefault(name, rule.action) != rule.action:
                raise SpecError(f"the rules for {name!r} depend on their order, which an OCI profile can't express")
            if not rule.when and name in judged and rule.action != seccomp.default_action:
                raise SpecError(f"{name!r} has two actions, one with conditions: an OCI profile can't express that")
        if not rule.when:
            settled.update(names)
        if names and (rule.when or rule.action != seccomp.default_action):
            kept.append(Rule(names=names, action=rule.action, when=rule.when))
    return kept


def _entry(rule: Rule) -> dict[str, object]:
    entry: dict[str, object] = {"names": list(rule.names), "action": _action_name(rule.action)}
    if rule.action.kind in _WITH_NUMBER:
        entry["errnoRet"] = rule.action.data
    if len(_cases(rule.when)) > 1:
        raise SpecError(f"{rule.names[0]!r} has two conditions on one argument: in an OCI profile either would match")
    if rule.when:
        entry["args"] = [_argument(condition) for condition in rule.when]
    return entry


def _argument(condition: Condition) -> dict[str, object]:
    words = {ours: theirs for theirs, ours in _COMPARISONS.items()}
    if condition.op not in words:
        raise SpecError(f"the comparison {condition.op!r} has no name in an OCI profile")
    told: dict[str, object] = {"index": condition.argument, "op": words[condition.op], "value": condition.value}
    if condition.op == "masked_eq":
        told |= {"value": condition.mask, "valueTwo": condition.value}
    return told


def _action_name(action: Action) -> str:
    return next(oci for oci, kind in _ACTIONS.items() if kind == action.kind and oci != "SCMP_ACT_KILL")

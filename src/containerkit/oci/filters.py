"""The seccomp filter of a container: compiled by :mod:`containerkit.security.seccomp`, once for each profile.

Engines pass the same long profile for every container. The compiled program is cached below the runtime's root, under a
digest of the profile. So neither the compiler nor attrs is loaded a second time.
"""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from containerkit.security.seccomp import Seccomp

__all__ = ["FLAGS", "NEW_LISTENER", "program"]

FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
NEW_LISTENER = 8
_TSYNC_ESRCH = 16
_DIRECTORY = ".seccomp"
_KEPT = 64
_DEADLOCK = "the process would wait for the agent before the agent has the listener (hint: name the calls)"
_FORMAT = 4
_NOTIFY = "SCMP_ACT_NOTIFY"
_PATH = "linux.seccomp"


def program(profile: dict[str, Any], capabilities: Iterable[str], root: str) -> tuple[bytes, int]:
    """Return the filter of a profile and the flags to install it with.

    Args:
        profile: ``linux.seccomp``.
        capabilities: the names that the process holds.
        root: the runtime's directory, in which programs are cached.

    Raises:
        ConfigError: the profile is malformed.
    """
    flags = 0
    wanted = profile.get("flags") or []
    if not isinstance(wanted, list):
        raise ConfigError(f"{_PATH}.flags", "must be a list")
    for index, name in enumerate(wanted):
        if name not in FLAGS:
            raise ConfigError(f"{_PATH}.flags[{index}]", f"{name!r} is not one of {', '.join(FLAGS)}")
        flags |= FLAGS[name]
    listener = profile.get("listenerPath") or ""
    if not isinstance(listener, str):
        raise ConfigError(f"{_PATH}.listenerPath", "must be a string")
    if listener:
        flags |= NEW_LISTENER | (_TSYNC_ESRCH if flags & 1 else 0)
    held = sorted(capabilities)
    place = f"{root}/{_DIRECTORY}/{_digest(profile, held)}"
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        compiled = _compile(profile, held)
        _keep(root, place, compiled)
        return compiled, flags
    try:
        return os.read(fd, 1 << 20), flags
    finally:
        os.close(fd)


def _digest(profile: dict[str, Any], held: list[str]) -> str:
    from _blake2 import blake2b

    from containerkit import __version__

    what = (_FORMAT, __version__, k.MACHINE, os.uname().release, held, profile)
    return str(blake2b(repr(what).encode(), digest_size=24).hexdigest())


def _compile(profile: dict[str, Any], held: list[str]) -> bytes:
    from containerkit.errors import SpecError
    from containerkit.security.seccomp import Seccomp

    _refuse_deadlock(profile)
    try:
        seccomp = Seccomp.from_oci(profile, capabilities=held)
        if seccomp.notifies and not profile.get("listenerPath"):
            raise ConfigError(f"{_PATH}.listenerPath", "is missing: SCMP_ACT_NOTIFY needs an agent to ask")
        return _answer_newer(seccomp).program()
    except SpecError as error:
        raise ConfigError(_PATH, str(error).removeprefix("seccomp profile: ")) from None


def _answer_newer(seccomp: Seccomp) -> Seccomp:
    """Make system calls that are newer than any in the profile fail with ``ENOSYS``, as other runtimes do.

    The author of the profile did not know these calls. Programs treat ``EPERM`` as final. After ``ENOSYS`` they use an
    older call, as on an older kernel. A profile that allows, logs or traces all other calls is not changed.

    Args:
        seccomp: the profile.
    """
    from errno import ENOSYS

    from attrs import evolve

    from containerkit.security.seccomp import Action, Rule
    from containerkit.security.seccomp.architecture import architecture, calls_of

    if seccomp.default_action.kind in ("allow", "log", "trace"):
        return seccomp
    numbers = calls_of(architecture(k.MACHINE).table)
    known = [numbers[name] for rule in seccomp.rules for name in rule.names if name in numbers]
    newer = tuple(name for name, number in numbers.items() if number > max(known, default=0))
    answer = Action.errno(ENOSYS)
    rules = (*seccomp.rules, Rule(names=newer, action=answer)) if known and newer else seccomp.rules
    return evolve(seccomp, rules=rules, unknown_action=answer)


def _refuse_deadlock(profile: dict[str, Any]) -> None:
    """Refuse a filter that asks the agent about write(2). The process needs this call to send its listener."""
    if profile.get("defaultAction") == _NOTIFY:
        raise ConfigError(f"{_PATH}.defaultAction", f"{_NOTIFY} can't be the default: {_DEADLOCK}")
    rules = profile.get("syscalls")
    for index, rule in enumerate(rules if isinstance(rules, list) else ()):
        if isinstance(rule, dict) and rule.get("action") == _NOTIFY and "write" in (rule.get("names") or ()):
            raise ConfigError(f"{_PATH}.syscalls[{index}]", f"{_NOTIFY} can't be for write: {_DEADLOCK}")


def _keep(root: str, place: str, compiled: bytes) -> None:
    """Cache a program. If that fails, it is compiled again next time."""
    directory = f"{root}/{_DIRECTORY}"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        names = os.listdir(directory)
        if len(names) >= _KEPT:
            for name in names:
                os.unlink(f"{directory}/{name}")
        draft = f"{directory}/.{os.getpid()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, compiled)
        finally:
            os.close(fd)
        os.rename(draft, place)
    except OSError:
        return

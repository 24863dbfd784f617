"""The seccomp filter of a container: compiled by :mod:`containerkit.security.seccomp`, once for each profile.

Engines hand over the same long profile for every container. Its program is kept below the runtime's root, named by a
digest of the profile, so that neither the compiler nor attrs is loaded a second time.
"""

from __future__ import annotations

import os

from containerkit._native import constants as k
from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = ["FLAGS", "NEW_LISTENER", "program"]

FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
NEW_LISTENER = 8
_TSYNC_ESRCH = 16
_FOLDER = ".seccomp"
_KEPT = 64
_FORMAT = 1
_PATH = "linux.seccomp"


def program(profile: dict[str, Any], capabilities: Iterable[str], root: str) -> tuple[bytes, int]:
    """Return the filter of a profile and the flags to install it with.

    Args:
        profile: ``linux.seccomp``.
        capabilities: the names that the process holds.
        root: the runtime's, where programs are kept.

    Raises:
        ConfigError: the profile is malformed.
    """
    flags = 0
    wanted = profile.get("flags") or []
    if not isinstance(wanted, list):
        raise ConfigError(f"{_PATH}.flags", "must be a list")
    for index, name in enumerate(wanted):
        if name not in FLAGS:
            raise ConfigError(f"{_PATH}.flags[{index}]", f"{name!r} is none of {', '.join(FLAGS)}")
        flags |= FLAGS[name]
    listener = profile.get("listenerPath") or ""
    if not isinstance(listener, str):
        raise ConfigError(f"{_PATH}.listenerPath", "must be a string")
    if listener:
        flags |= NEW_LISTENER | (_TSYNC_ESRCH if flags & 1 else 0)
    held = sorted(capabilities)
    place = f"{root}/{_FOLDER}/{_digest(profile, held)}"
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

    try:
        seccomp = Seccomp.from_oci(profile, capabilities=held)
        if seccomp.notifies and not profile.get("listenerPath"):
            raise ConfigError(f"{_PATH}.listenerPath", "is missing: SCMP_ACT_NOTIFY needs an agent to ask")
        return seccomp.program()
    except SpecError as error:
        raise ConfigError(_PATH, str(error).removeprefix("seccomp profile: ")) from None


def _keep(root: str, place: str, compiled: bytes) -> None:
    """Keep a program; where that fails it is compiled again the next time."""
    folder = f"{root}/{_FOLDER}"
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        names = os.listdir(folder)
        if len(names) >= _KEPT:
            for name in names:
                os.unlink(f"{folder}/{name}")
        draft = f"{folder}/.{os.getpid()}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, compiled)
        finally:
            os.close(fd)
        os.rename(draft, place)
    except OSError:
        return

"""Devices of the host in the short form ``PATH:TARGET:rwm``, as binds of their nodes."""

from __future__ import annotations

import os

from containerkit.errors import SpecError
from containerkit.security.checks import text_of
from containerkit.spec.mount import Mount
from containerkit.spec.words import sequence

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from containerkit.options import ListOf

__all__ = ["DEVICE", "device", "devices", "split"]

DEVICE: Final = "device"
"""The option of a bind whose source must be a device, or a directory of devices. The start checks it."""

_ACCESS: Final = frozenset("rwm")


def split(text: str, what: str) -> tuple[str, str]:
    """Return the source and the target of ``PATH[:TARGET][:ACCESS]``. The default target is the path itself.

    Args:
        text: the short form.
        what: the name of the argument, for errors.

    Raises:
        SpecError: the text is invalid, or requests less than reading and writing. A mount can't restrict access: a
            read-only mount refuses no write to a device.

    Source: docker-run(1), ``--device``; inode_permission() in the kernel's fs/namei.c.
    """
    source, _, rest = text.partition(":")
    target, _, access = rest.partition(":")
    if target and not target.startswith("/") and not access:
        target, access = "", target
    if not source.startswith("/") or ":" in access or not _ACCESS.issuperset(access):
        raise SpecError(f"{what} {text!r:.200}: must be PATH[:TARGET][:rwm], with absolute paths")
    if access and not access.startswith("rw"):
        raise SpecError(
            f"{what} {text!r:.200}: a node can be shown with the access rw only; to restrict a device further, let a "
            f'control group do it: limits=Limits(devices=["{source} {access}", ...])'
        )
    return source, target or source


def device(text: str, what: str = "devices") -> Mount:
    """Return the bind of a device node or of a directory of nodes. The start checks that it is one.

    Raises:
        SpecError: the text is invalid.
    """
    source, target = split(text_of(text, what), what)
    options = ((DEVICE, None),)
    return Mount(source=os.path.normpath(source), target=target, options=options, nodev=False, noexec=True, idmap=False)


def devices(values: ListOf[str]) -> tuple[Mount, ...]:
    """Return the binds of a list of devices.

    Raises:
        SpecError: an entry is invalid.
    """
    return tuple(device(value) for value in sequence(values, "devices"))

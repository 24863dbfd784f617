"""Extended attributes, capabilities and access control lists of tar members."""

from __future__ import annotations

import os
from errno import ENOTSUP
from struct import pack
from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CAPABILITY", "IMPLIED", "attributes_of", "is_kept", "mark_opaque", "mark_whiteouts", "posix_acl"]

IMPLIED: Final = "user.containerkit.implied"
"""Marks a directory that a layer does not name, but has files in. A lower layer defines its attributes."""
CAPABILITY: Final = "security.capability"
UNKNOWN: Final = "(of unknown users) "
"""The prefix of the name of a list that can't be stored, because it names a user without a number."""
_XATTR: Final = "SCHILY.xattr."
_LIBARCHIVE: Final = "LIBARCHIVE.xattr."
_ACLS: Final = {"SCHILY.acl.access": "system.posix_acl_access", "SCHILY.acl.default": "system.posix_acl_default"}
_MOST_BYTES: Final = 1 << 16  # the kernel's own limit for one value

_VERSION: Final = 2
_NO_ID: Final = 0xFFFF_FFFF
_TAGS: Final = {("user", False): 0x01, ("user", True): 0x02, ("group", False): 0x04, ("group", True): 0x08,
                ("mask", False): 0x10, ("other", False): 0x20}  # fmt: skip
_SHORT: Final = {"u": "user", "g": "group", "m": "mask", "o": "other"}


def mark_opaque(directory: int, spaces: tuple[str, ...]) -> None:
    """Mark a directory so that overlayfs hides its content in lower layers.

    Args:
        directory: its descriptor.
        spaces: the name spaces of the attribute, see :class:`containerkit.archive.extract.Extraction`.

    Source: Documentation/filesystems/overlayfs.rst.
    """
    for space in spaces:
        os.setxattr(directory, f"{space}overlay.opaque", b"y")


def mark_whiteouts(directory: int, spaces: tuple[str, ...]) -> None:
    """Mark a directory that contains whiteouts. Otherwise overlayfs lists them, if only one layer has the directory.

    The attribute is that for the origin of a copied file, with an empty value. Some filesystems do not support it.

    Args:
        directory: its descriptor.
        spaces: as for :func:`mark_opaque`.

    Source: the kernel's fs/overlayfs/util.c, ovl_path_check_origin_xattr().
    """
    for space in spaces:
        try:
            os.setxattr(directory, f"{space}overlay.origin", b"")
        except OSError as error:
            if error.errno != ENOTSUP:
                raise


class UnknownNameError(ImageError):
    """An access control list names a user or group without a number. Only the archive's creator knows it."""


def attributes_of(headers: Mapping[str, str]) -> dict[str, bytes]:
    """Return the extended attributes in the pax headers of a member.

    Access control lists can have two encodings: the kernel's own bytes, or the text of star and GNU tar.

    Raises:
        ImageError: a list is malformed, or a value is larger than 64 KiB.

    Source: GNU tar manual, "Extended File Attributes"; acl(5).
    """
    found: dict[str, bytes] = {}
    for key, value in headers.items():
        if key.startswith(_XATTR):
            name, content = key[len(_XATTR) :], value.encode("utf-8", "surrogateescape")
        elif key in _ACLS:
            try:
                name, content = _ACLS[key], posix_acl(value)
            except UnknownNameError:
                name, content = f"{UNKNOWN}{_ACLS[key]}", b""
        elif key.startswith(_LIBARCHIVE):
            name, content = _from_libarchive(key[len(_LIBARCHIVE) :], value)
        else:
            continue
        if not name or "\0" in name or len(content) > _MOST_BYTES:
            raise ImageError(f"layer: the extended attribute {name[:40]!r} is malformed or over {_MOST_BYTES} bytes")
        found.setdefault(name, content)
    return found


def _from_libarchive(name: str, value: str) -> tuple[str, bytes]:
    import binascii
    from urllib.parse import unquote

    try:
        return unquote(name), binascii.a2b_base64(value + "=" * (-len(value) % 4))
    except ValueError as error:
        raise ImageError(f"layer: the extended attribute {name[:40]!r} is not in base64") from error


def is_kept(name: str) -> bool:
    """Return whether an attribute of an image can be set on the host.

    ``trusted.*`` controls the host's overlayfs (redirects, opaque directories), and ``security.*`` its access control
    and integrity checks. Of these only file capabilities belong to the image. ``user.overlay.*`` is the counterpart of
    ``trusted.*`` for users.

    Source: xattr(7); Documentation/filesystems/overlayfs.rst.
    """
    if name == CAPABILITY or name.startswith("system.posix_acl_"):
        return True
    return name.startswith("user.") and not name.startswith(
        ("user.overlay.", "user.fuseoverlayfs.", "user.containerkit.")
    )


def posix_acl(text: str) -> bytes:
    """Encode an access control list from text to the kernel's format.

    Args:
        text: entries such as ``user:1000:rw-``, separated by commas or newlines. A fourth field (star's numeric id)
            takes precedence over a name. Of names only ``root`` is known.

    Raises:
        ImageError: the text is malformed.

    Source: acl(5); linux/posix_acl_xattr.h.
    """
    entries: list[tuple[int, int, int]] = []
    for line in text.replace(",", "\n").splitlines():
        plain = line.partition("#")[0].strip()
        if not plain:
            continue
        fields = plain.split(":")
        if len(fields) not in (3, 4) or set(fields[2]) - set("rwx-"):
            raise ImageError(f"layer: the access control entry {plain[:60]!r} is malformed")
        kind = _SHORT.get(fields[0], fields[0])
        who = fields[3] if len(fields) == 4 else fields[1]
        tag = _TAGS.get((kind, bool(who)))
        if tag is None:
            raise ImageError(f"layer: the access control entry {plain[:60]!r} is malformed")
        permissions = sum(bit for letter, bit in (("r", 4), ("w", 2), ("x", 1)) if letter in fields[2])
        entries.append((tag, _NO_ID if not who else _number(who, plain), permissions))
    entries.sort(key=lambda entry: entry[:2])
    return pack("<I", _VERSION) + b"".join(pack("<HHI", tag, bits, number) for tag, number, bits in entries)


def _number(who: str, entry: str) -> int:
    if who == "root":
        return 0
    if not who.isdecimal():
        raise UnknownNameError(f"layer: the access control entry {entry[:60]!r} has a name without a number")
    if int(who) >= _NO_ID:
        raise ImageError(f"layer: the access control entry {entry[:60]!r} is out of range")
    return int(who)

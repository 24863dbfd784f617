"""Rules for devices: which devices a group may use, and how fast it may read and write a disk."""

from __future__ import annotations

from typing import Final, Literal

import attrs

from containerkit.cgroup.quantities import Amount, amount, flag, whole
from containerkit.errors import SpecError

__all__ = ["DeviceRule", "IOLimit", "device_name"]

_UNSIGNED: Final = (1 << 32) - 1


def device_name(argument: str, value: object) -> str:
    """Return the name of a device: an absolute path or ``"major:minor"``.

    Raises:
        SpecError: the value is neither.
    """
    if isinstance(value, str):
        major, colon, minor = value.partition(":")
        if value.startswith("/") and "\0" not in value:
            return value
        if colon and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit():
            return f"{whole(int(major[:9]), argument, 0, 4095)}:{whole(int(minor[:9]), argument, 0, 1048575)}"
    raise SpecError(f'{argument}: {value!r} is not a device; write an absolute path or "major:minor"')


def _major(value: int | None) -> int | None:
    return None if value is None else whole(value, "major", 0, 4095)


def _minor(value: int | None) -> int | None:
    return None if value is None else whole(value, "minor", 0, 1048575)


def _allow(value: bool) -> bool:  # noqa: FBT001 - a converter
    return flag(value, "allow")


@attrs.frozen(kw_only=True)
class DeviceRule:
    """One rule for devices. If several rules match a device, the last one decides.

    Args:
        kind: ``"c"`` for character devices, ``"b"`` for block devices, ``"a"`` for both.
        major: the major number. None matches all.
        minor: the minor number. None matches all.
        access: any of r (read), w (write), m (mknod). Default: all three.
        allow: True allows the access, False denies it. Default True.

    Raises:
        SpecError: an unknown kind or access, or a number out of range.

    Source: Documentation/admin-guide/cgroup-v1/devices.rst.
    """

    kind: Literal["a", "b", "c"]
    major: int | None = attrs.field(default=None, converter=_major)
    minor: int | None = attrs.field(default=None, converter=_minor)
    access: str = "rwm"
    allow: bool = attrs.field(default=True, converter=_allow)

    def __attrs_post_init__(self) -> None:
        if self.kind not in {"a", "b", "c"}:
            raise SpecError(f"kind: {self.kind!r} is not one of a, b, c")
        letters = self.access
        if (
            not isinstance(letters, str)
            or not letters
            or not set(letters) <= set("rwm")
            or len(set(letters)) < len(letters)
        ):
            raise SpecError(f"access: {letters!r} does not consist of the letters r, w, m, each at most once")

    @classmethod
    def parse(cls, text: str, *, allow: bool = True) -> DeviceRule:
        """Parse a rule in the kernel's notation, such as ``"c 1:3 rwm"`` or ``"b 8:* r"``.

        Raises:
            SpecError: the text is not in that notation.
        """
        words = text.split()
        if words == ["a"]:
            return cls(kind="a", allow=allow)
        if len(words) not in {2, 3} or ":" not in words[1]:
            raise SpecError(f'devices: {text!r} is not a rule such as "c 1:3 rwm"')
        found: list[int | None] = []
        for part in words[1].split(":"):
            if part != "*" and not (part.isascii() and part.isdigit()):
                raise SpecError(f"devices: {part!r} in {text!r} is neither a number nor *")
            found.append(None if part == "*" else int(part[:9]))
        if len(found) != 2:
            raise SpecError(f'devices: {text!r} is not a rule such as "c 1:3 rwm"')
        access = words[2] if len(words) == 3 else "rwm"
        return cls(kind=words[0], major=found[0], minor=found[1], access=access, allow=allow)  # type: ignore[arg-type] # the class refuses other kinds

    def __str__(self) -> str:
        major = "*" if self.major is None else self.major
        minor = "*" if self.minor is None else self.minor
        return f"{self.kind} {major}:{minor} {self.access}"


def _disk(value: str) -> str:
    return device_name("device", value)


def _read_bps(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "read_bps", size=True, least=1)


def _write_bps(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "write_bps", size=True, least=1)


def _read_iops(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "read_iops", least=1, most=_UNSIGNED)


def _write_iops(value: int | str | None) -> Amount | None:
    return None if value is None else amount(value, "write_iops", least=1, most=_UNSIGNED)


def _latency_us(value: int | None) -> int | None:
    return None if value is None else whole(value, "latency_us", 1, _UNSIGNED)


@attrs.frozen(kw_only=True)
class IOLimit:
    """The limits of a group for one block device.

    Args:
        device: its path (``"/dev/sda"``) or ``"major:minor"``. It must be a whole disk, not a partition.
        read_bps: bytes read per second, a number or text such as ``"10M"``. Default: no limit.
        write_bps: bytes written per second. Default: no limit.
        read_iops: reads per second. Default: no limit.
        write_iops: writes per second. Default: no limit.
        latency_us: the target latency of the group in microseconds (version 2 only). Default: none.

    Raises:
        SpecError: a value is out of range, or no limit is given.

    Source: "IO Interface Files" in Documentation/admin-guide/cgroup-v2.rst.
    """

    device: str = attrs.field(converter=_disk)
    read_bps: Amount | None = attrs.field(default=None, converter=_read_bps)
    write_bps: Amount | None = attrs.field(default=None, converter=_write_bps)
    read_iops: Amount | None = attrs.field(default=None, converter=_read_iops)
    write_iops: Amount | None = attrs.field(default=None, converter=_write_iops)
    latency_us: int | None = attrs.field(default=None, converter=_latency_us)

    def __attrs_post_init__(self) -> None:
        if {self.read_bps, self.write_bps, self.read_iops, self.write_iops, self.latency_us} == {None}:
            raise SpecError(f"io: no limit is given for {self.device}")

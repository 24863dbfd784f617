"""The hugetlb controller limits huge pages of each size.

Source: "HugeTLB" in Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/hugetlb.rst.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from containerkit.cgroup.controllers import Attachment, Setting
from containerkit.cgroup.quantities import MAX, parse_size
from containerkit.cgroup.statfiles import flat, integer

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.cgroup.limits import Limits
    from containerkit.cgroup.stats import HugetlbStats

_PAGES = "/sys/kernel/mm/hugepages"


def page_name(size: str | int) -> str:
    """Return a page size as in the names of the controller's files: ``2MB``, ``1GB``, ``64KB``."""
    number = parse_size(size, "hugetlb")
    for shift, unit in ((30, "GB"), (20, "MB")):
        if number >= 1 << shift:
            return f"{number >> shift}{unit}"
    return f"{number >> 10}KB"


def settings(limits: Limits, version: int) -> list[Setting | Attachment]:
    """Return the settings that apply the limits."""
    found: list[Setting | Attachment] = []
    for wishes, middle in ((limits.hugetlb, ""), (limits.hugetlb_reserved, "rsvd.")):
        for page, most in wishes:
            tail = "max" if version == 2 else "limit_in_bytes"
            value = (b"max" if version == 2 else b"-1") if most == MAX else b"%d" % most
            hint = f"the machine has pages of {', '.join(_sizes()) or 'no size'}"
            found.append(Setting(f"hugetlb.{page_name(page)}.{middle}{tail}", value, hint))
    return found


def _sizes() -> list[str]:
    try:
        names = os.listdir(_PAGES)
    except OSError:
        return []
    found = []
    for name in names:
        digits = name.removeprefix("hugepages-").removesuffix("kB")
        if digits.isdigit():
            found.append(page_name(int(digits) * 1024))
    return sorted(found)


def report(read: Callable[[str], str | None], version: int) -> dict[str, HugetlbStats]:
    """Return the report for each page size of the machine."""
    from containerkit.cgroup.stats import HugetlbStats

    found: dict[str, HugetlbStats] = {}
    for size in _sizes():
        base = f"hugetlb.{size}."
        if version == 2:
            current, limit = integer(read(f"{base}current")), integer(read(f"{base}max"))
            peak, hits = None, flat(read(f"{base}events")).get("max")
        else:
            current, limit = integer(read(f"{base}usage_in_bytes")), integer(read(f"{base}limit_in_bytes"))
            peak, hits = integer(read(f"{base}max_usage_in_bytes")), integer(read(f"{base}failcnt"))
            limit = None if limit is None or limit >= 1 << 62 else limit
        found[size] = HugetlbStats(current_bytes=current, peak_bytes=peak, limit_bytes=limit, limit_hits=hits)
    return found

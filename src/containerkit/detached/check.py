"""One health check, as a keeper starts it: the record is descriptor 3, and the exit status tells whether it has passed.

See :mod:`containerkit.detached.health`.
"""

from __future__ import annotations

import os
import sys

from containerkit.detached.health import check
from containerkit.detached.store import Entry
from containerkit.errors import ContainerError

__all__ = ["main"]

_RECORD = 3


def main() -> None:
    """Check, and end with 0 if it has passed."""
    entry = Entry(os.path.basename(os.readlink(f"/proc/self/fd/{_RECORD}")))
    os.close(_RECORD)
    try:
        passed = check(entry)
    except ContainerError:  # it has ended meanwhile
        passed = False
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

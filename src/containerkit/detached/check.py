"""One health check, started by a keeper. Descriptor 3 is the record, and exit status 0 means that it has passed.

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
    """Check, and exit with 0 if it has passed."""
    entry = Entry(os.path.basename(os.readlink(f"/proc/self/fd/{_RECORD}")))
    os.close(_RECORD)
    try:
        passed = check(entry)
    except ContainerError:  # it has ended in the meantime
        passed = False
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()

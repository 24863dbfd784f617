"""The number of the kernel's last capability."""

from __future__ import annotations

import os
from errno import EINVAL, EMFILE, ENFILE, ENOMEM

__all__ = ["last_capability"]


def last_capability(proc: str = "/proc") -> int:
    """Return the number of the last capability that this kernel knows.

    If an outer container covers the file, the kernel is asked about one capability after the other.

    Args:
        proc: the mount point of a procfs.

    Raises:
        OSError: there is no free descriptor or memory. Guessing could leave a capability that is not dropped.

    Source: capabilities(7), PR_CAPBSET_READ(2const).
    """
    try:
        fd = os.open(f"{proc}/sys/kernel/cap_last_cap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 32))
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in (EMFILE, ENFILE, ENOMEM):
            raise
    except ValueError:  # /dev/null is mounted over it
        pass
    from containerkit._native import calls, constants

    number = 0
    while True:
        try:
            calls.prctl(constants.PR_CAPBSET_READ, number)
        except OSError as error:
            if error.errno != EINVAL:
                raise
            return number - 1
        number += 1

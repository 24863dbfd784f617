"""Archives that may come from a pipe."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["as_file"]


@contextmanager
def as_file(path: str) -> Iterator[str]:
    """Yield a path. For ``-`` copy stdin to a file and yield its path, because readers of archives seek.

    Raises:
        SpecError: stdin is a terminal.
    """
    if path != "-":
        yield path
        return
    if os.isatty(sys.stdin.fileno()):
        raise SpecError("the input is a terminal; name a file, or use a pipe")
    import shutil
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="containerkit-") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
        file.flush()
        yield file.name

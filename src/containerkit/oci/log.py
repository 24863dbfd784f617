"""The log that engines read: one line for each message, as text or as JSON.

podman parses the whole file as one JSON object, containerd takes the last line of level ``error``: nothing but errors
is written unless ``--debug`` asks for it.
"""

from __future__ import annotations

import os
import sys

from containerkit.oci import jsontext
from containerkit.oci.errors import RuntimeFailure

__all__ = ["Log", "timestamp"]


def timestamp(nanoseconds: int | None = None) -> str:
    """Return a time of RFC 3339 in UTC, such as ``2024-02-29T12:00:00.123456789Z``.

    Args:
        nanoseconds: since the epoch (default: now).
    """
    import time

    total = time.time_ns() if nanoseconds is None else nanoseconds
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(total // 10**9)) + f".{total % 10**9:09d}Z"


class Log:
    """Where messages go.

    Args:
        path: the file that ``--log`` names, or empty for none.
        style: ``"text"`` or ``"json"``.
        debug: whether messages of level ``debug`` are wanted.

    Raises:
        RuntimeFailure: another style.
    """

    __slots__ = ("debugs", "path", "style")

    def __init__(self, path: str = "", style: str = "text", *, debug: bool = False) -> None:
        if style not in ("text", "json"):
            raise RuntimeFailure(f"--log-format: {style!r} is neither text nor json")
        self.path = path
        self.style = style
        self.debugs = debug

    def debug(self, message: str) -> None:
        """Write a message that only ``--debug`` asks for."""
        if self.debugs:
            self._write("debug", message)

    def error(self, message: str, program: str = "containerkit-oci") -> None:
        """Write why the verb failed, to the log and to the standard error."""
        self._write("error", message)
        sys.stderr.write(f"{program}: {message}\n")

    def _write(self, level: str, message: str) -> None:
        if not self.path:
            if level == "debug":
                sys.stderr.write(f"{level}: {message}\n")
            return
        if self.style == "json":
            line = jsontext.dumps({"level": level, "msg": message, "time": timestamp()})
        else:
            line = f'time="{timestamp()}" level={level} msg={jsontext.dumps(message)}'
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return
        try:
            os.write(fd, line.encode(errors="surrogateescape") + b"\n")
        finally:
            os.close(fd)

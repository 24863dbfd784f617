"""The log for engines: one line for each message, as text or as JSON.

podman parses the whole file as one JSON object. containerd takes the last line of level ``error``. So if a verb fails,
only its error is written, unless ``--debug`` is given. Warnings are written after the verb has succeeded.
"""

from __future__ import annotations

import os
import sys

from containerkit import jsontext
from containerkit.oci.errors import RuntimeFailure, strerror

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
    """The destination of messages.

    Args:
        path: the file that ``--log`` names, or empty for none.
        style: ``"text"`` or ``"json"``.
        debug: whether to write messages of level ``debug``.

    Raises:
        RuntimeFailure: the style is unknown, or the file can't be written.
    """

    __slots__ = ("debugs", "path", "style", "warnings")

    def __init__(self, path: str = "", style: str = "text", *, debug: bool = False) -> None:
        if style not in ("text", "json"):
            raise RuntimeFailure(f"--log-format: {style!r} is neither text nor json")
        self.path = path
        self.style = style
        self.debugs = debug
        self.warnings: list[str] = []
        if path:
            self._append(b"")

    def debug(self, message: str) -> None:
        """Write a message if ``--debug`` is given."""
        if self.debugs:
            self._write("debug", message)

    def warning(self, message: str) -> None:
        """Record a warning, to be written if the verb succeeds."""
        self.warnings.append(message)

    def write_warnings(self) -> None:
        """Write the recorded warnings to the log, or to the standard error if there is no log."""
        for message in self.warnings:
            self._write("warning", message)
        self.warnings.clear()

    def error(self, message: str, program: str = "containerkit-oci") -> None:
        """Write why the verb failed, to the standard error and to the log."""
        sys.stderr.write(f"{program}: {message}\n")
        self._write("error", message)

    def _write(self, level: str, message: str) -> None:
        if not self.path:
            if level != "error":
                sys.stderr.write(f"{level}: {message}\n")
            return
        if self.style == "json":
            line = jsontext.dumps({"level": level, "msg": message, "time": timestamp()})
        else:
            line = f'time="{timestamp()}" level={level} msg={jsontext.dumps(message)}'
        try:
            self._append(line.encode(errors="surrogateescape") + b"\n")
        except RuntimeFailure as error:  # a full disk does not undo the work of the verb
            sys.stderr.write(f"warning: {error}\n" if level == "error" else f"{level}: {message}\nwarning: {error}\n")

    def _append(self, content: bytes) -> None:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, content)
            finally:
                os.close(fd)
        except OSError as error:
            raise RuntimeFailure(f"--log {self.path}: {strerror(error.errno or 0)}") from None

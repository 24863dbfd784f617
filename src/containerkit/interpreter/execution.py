"""The result of a piece of code, as data."""

from __future__ import annotations

import binascii
from typing import Any, Literal

import attrs

from containerkit.process.result import Usage

__all__ = ["Execution", "ExecutionError", "Logs", "Result"]

ExecutionCause = Literal["done", "error", "timeout", "oom", "lost"]
"""Why it ended. ``"lost"`` means that its process has ended."""


@attrs.frozen(kw_only=True)
class Logs:
    """The output, in the pieces in which it was read.

    Attributes:
        stdout, stderr: text. Bytes that are not UTF-8 are replaced.
    """

    stdout: tuple[str, ...] = ()
    stderr: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class ExecutionError:
    """The exception that the code raised.

    Attributes:
        name: of the class.
        value: its message.
        traceback: as Python prints it.
    """

    name: str
    value: str
    traceback: str = ""


@attrs.frozen(kw_only=True)
class Result:
    """A result: the value of the last expression, an argument of ``display``, or a figure.

    Attributes:
        data: by MIME type: text, for binary types base64, for JSON the value.
        is_main_result: whether it is the value of the last expression.
    """

    data: dict[str, Any]
    is_main_result: bool = False

    @property
    def text(self) -> str | None:
        """Its repr."""
        return self._text("text/plain")

    @property
    def html(self) -> str | None:
        """As HTML. It comes from the code, so it is not safe to show in a page with other content."""
        return self._text("text/html")

    @property
    def markdown(self) -> str | None:
        """As Markdown."""
        return self._text("text/markdown")

    @property
    def latex(self) -> str | None:
        """As LaTeX."""
        return self._text("text/latex")

    @property
    def svg(self) -> str | None:
        """As SVG."""
        return self._text("image/svg+xml")

    @property
    def json(self) -> Any:
        """As the value for JSON."""
        return self.data.get("application/json")

    @property
    def png(self) -> bytes | None:
        """As a PNG image."""
        return self._bytes("image/png")

    @property
    def jpeg(self) -> bytes | None:
        """As a JPEG image."""
        return self._bytes("image/jpeg")

    def _text(self, mime: str) -> str | None:
        found = self.data.get(mime)
        return found if isinstance(found, str) else None

    def _bytes(self, mime: str) -> bytes | None:
        try:
            text = self._text(mime)
            return None if text is None else binascii.a2b_base64(text)
        except ValueError:
            return None


@attrs.frozen(kw_only=True)
class Execution:
    """The result of a piece of code.

    Attributes:
        results: all results, in order. The value of the last expression is the last one.
        logs: the output.
        error: the exception that it raised, or None.
        usage: what it used, as its own process reports. With limits, also the peak memory of the container.
        cause: ``"done"``, ``"error"`` for an exception, ``"timeout"``, ``"oom"`` if the kernel killed it because
            memory ran out, ``"lost"`` if its process ended otherwise, such as by ``os._exit``.
        state_lost: whether all variables are gone: after ``"oom"``, ``"lost"`` and a timeout that the code ignored.
        truncated: whether output or results were dropped.
        duration_s: seconds from the call to the end.
    """

    results: tuple[Result, ...] = ()
    logs: Logs = Logs()
    error: ExecutionError | None = None
    usage: Usage = attrs.field(factory=Usage)
    cause: ExecutionCause = "done"
    state_lost: bool = False
    truncated: bool = False
    duration_s: float = 0.0

    @property
    def text(self) -> str | None:
        """The repr of the value of the last expression, or None."""
        return next((result.text for result in self.results if result.is_main_result), None)

    @property
    def stdout(self) -> str:
        """Its whole output on stdout."""
        return "".join(self.logs.stdout)

    @property
    def stderr(self) -> str:
        """Its whole output on stderr."""
        return "".join(self.logs.stderr)

    def to_dict(self) -> dict[str, Any]:
        """Return it as data for JSON."""
        return {
            "text": self.text,
            "results": [result.data for result in self.results],
            "stdout": self.stdout,
            "stderr": self.stderr,
            "error": None if self.error is None else attrs.asdict(self.error),
            "cause": self.cause,
            "state_lost": self.state_lost,
            "truncated": self.truncated,
            "duration_s": round(self.duration_s, 6),
        }

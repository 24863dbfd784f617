"""Patterns of names: wildcards of COPY, and ``.dockerignore``."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Ignore", "has_wildcard", "pattern"]


def has_wildcard(text: str) -> bool:
    """Return whether a path contains wildcards."""
    return any(mark in text for mark in "*?[")


@lru_cache(256)
def pattern(text: str) -> re.Pattern[str]:
    r"""Compile a pattern: ``*`` and ``?`` stay within one component, ``**`` does not, ``[a-z]``, ``[^a]``, ``\x``.

    Raises:
        SpecError: a bracket is not closed, or a backslash is at the end.

    Source: Go's path/filepath.Match; Dockerfile reference, ".dockerignore file".
    """
    at, found = 0, []
    while at < len(text):
        char = text[at]
        if text.startswith("**/", at):
            found.append("(?:.*/)?")
            at += 3
        elif text.startswith("**", at):
            found.append(".*")
            at += 2
        elif char == "*":
            found.append("[^/]*")
            at += 1
        elif char == "?":
            found.append("[^/]")
            at += 1
        elif char == "[":
            end = text.find("]", at + 2)
            if end < 0:
                raise SpecError(f"the pattern {text!r} has a bracket that is not closed")
            inner = text[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            found.append(f"[{inner}]")
            at = end + 1
        elif char == "\\":
            if at + 1 == len(text):
                raise SpecError(f"the pattern {text!r} ends with a backslash")
            found.append(re.escape(text[at + 1]))
            at += 2
        else:
            found.append(re.escape(char))
            at += 1
    try:
        return re.compile("".join(found), re.DOTALL)
    except re.error as error:
        raise SpecError(f"the pattern {text!r}: {error}") from error


class Ignore:
    """The files that a build context excludes.

    Args:
        lines: of ``.dockerignore``: patterns, and exceptions that begin with ``!``. The last match counts.

    Source: Dockerfile reference, ".dockerignore file".
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self.rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in lines:
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            keep = text.startswith("!")
            clean = "/".join(part for part in text.removeprefix("!").strip().split("/") if part not in ("", "."))
            if clean:
                self.rules.append((keep, pattern(clean)))

    def __call__(self, path: str) -> bool:
        """Return whether a path, relative to the context, or a parent of it is excluded."""
        parts = path.split("/")
        heads = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
        left_out = False
        for keep, rule in self.rules:
            if any(rule.fullmatch(head) for head in heads):
                left_out = not keep
        return left_out

    @property
    def has_exceptions(self) -> bool:
        """Whether something in an excluded directory may be kept."""
        return any(keep for keep, _ in self.rules)

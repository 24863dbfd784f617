"""Parse Dockerfiles: directives, continuations, heredocs, flags, stages."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

import attrs

from containerkit.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Dockerfile", "Heredoc", "Instruction", "Stage", "parse_dockerfile"]

NAMES: Final = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER",
    "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
_FLAGS: Final = {
    "ADD": {"chown", "chmod", "link", "checksum", "keep-git-dir", "exclude", "unpack"},
    "COPY": {"chown", "chmod", "link", "from", "parents", "exclude"},
    "FROM": {"platform"},
    "HEALTHCHECK": {"interval", "timeout", "start-period", "start-interval", "retries"},
    "RUN": {"mount", "network", "security"},
}
_REPEATED: Final = {"mount", "exclude"}
_DIRECTIVE: Final = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
_FLAG: Final = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")
_HEREDOC: Final = re.compile(r"(?:^|(?<=\s))(\d*)<<(-?)\s*(?:\"([^\"\s<>]+)\"|'([^'\s<>]+)'|([^\s<>\"'|&;()`$]+))")
_STAGE: Final = re.compile(r"[a-z][a-z0-9-_.]*")
_LARGEST: Final = 4 << 20


@attrs.frozen(kw_only=True)
class Heredoc:
    """A document inside a Dockerfile.

    Attributes:
        name: the word that ends it.
        content: its lines.
        expand: whether variables in it are replaced, because the word was not quoted.
    """

    name: str
    content: str
    expand: bool


@attrs.frozen(kw_only=True)
class Instruction:
    """One instruction.

    Attributes:
        name: in capitals.
        flags: the flags ``--name=value``. Repeatable flags have all their values.
        text: the rest, with its lines joined.
        heredocs: its heredocs.
        line: the number of its first line.
    """

    name: str
    flags: Mapping[str, tuple[str, ...]] = attrs.field(factory=dict, hash=False)
    text: str = ""
    heredocs: tuple[Heredoc, ...] = ()
    line: int = 0

    def __str__(self) -> str:
        flags = "".join(f" --{key}={value}" for key, values in self.flags.items() for value in values)
        return f"{self.name}{flags} {self.text}".rstrip()

    def flag(self, name: str, default: str = "") -> str:
        """Return the value of a flag that can be given once."""
        return self.flags.get(name, (default,))[-1]

    def switch(self, name: str) -> bool:
        """Return whether a flag is given without a value, or with ``true``."""
        return self.flag(name, "false") in ("", "true", "1")

    @property
    def json_form(self) -> tuple[str, ...] | None:
        """The words if the text is a JSON list of strings (the exec form), otherwise None (the shell form)."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except (ValueError, RecursionError):
            return None
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            return None
        return tuple(words)

    def problem(self, message: str) -> SpecError:
        """Return an error that names the line of the instruction."""
        where = f"line {self.line}: " if self.line else ""
        return SpecError(f"{where}{self.name}: {message}")


@attrs.frozen(kw_only=True)
class Stage:
    """One stage: from a FROM to the next.

    Attributes:
        base: the base image, before variables are replaced.
        name: its name, or empty.
        platform: the flag, before variables are replaced.
        instructions: the instructions after FROM.
        line: the line number of FROM.
    """

    base: str
    name: str = ""
    platform: str = ""
    instructions: tuple[Instruction, ...] = ()
    line: int = 0


@attrs.frozen(kw_only=True)
class Dockerfile:
    """A complete Dockerfile.

    Attributes:
        stages: at least one.
        arguments: the ARG instructions before the first FROM.
        escape: the character that escapes and continues lines.
        directives: the directives in comments at the top (``syntax``, ``escape``, ``check``).
    """

    stages: tuple[Stage, ...]
    arguments: tuple[Instruction, ...] = ()
    escape: str = "\\"
    directives: Mapping[str, str] = attrs.field(factory=dict, hash=False)

    def find(self, target: str) -> int:
        """Return the index of a stage by its name or number. An empty text means the last stage.

        Raises:
            SpecError: the stage does not exist.
        """
        if not target:
            return len(self.stages) - 1
        for index, stage in enumerate(self.stages):
            if stage.name == target.lower():
                return index
        if target.isdecimal() and int(target) < len(self.stages):
            return int(target)
        names = ", ".join(stage.name for stage in self.stages if stage.name) or "none has a name"
        raise SpecError(f"there is no stage {target!r} (there are: {names})")


def parse_dockerfile(text: str) -> Dockerfile:
    """Parse a Dockerfile.

    Args:
        text: its content.

    Raises:
        SpecError: it is malformed. The error names the line.

    Source: Dockerfile reference.
    """
    if len(text) > _LARGEST:
        raise SpecError(f"the Dockerfile has more than {_LARGEST} characters")
    reader = _Reader(text)
    instructions = reader.instructions()
    first = next((index for index, one in enumerate(instructions) if one.name == "FROM"), None)
    if first is None:
        raise SpecError("no FROM: a Dockerfile needs at least one stage")
    for one in instructions[:first]:
        if one.name != "ARG":
            raise one.problem("only ARG is allowed before the first FROM")
    stages: list[Stage] = []
    for one in instructions[first:]:
        if one.name == "FROM":
            stages.append(_stage(one, stages))
        else:
            stages[-1] = attrs.evolve(stages[-1], instructions=(*stages[-1].instructions, one))
    return Dockerfile(
        stages=tuple(stages), arguments=tuple(instructions[:first]), escape=reader.escape, directives=reader.directives
    )


def parse_instruction(text: str, escape: str = "\\", line: int = 0) -> Instruction:
    """Parse a single instruction, such as the trigger of an ONBUILD.

    Raises:
        SpecError: it is malformed, or there is more than one.
    """
    reader = _Reader(text)
    reader.escape = escape
    found = reader.instructions()
    if len(found) != 1:
        raise SpecError(f"{text[:60]!r} is not one instruction")
    return attrs.evolve(found[0], line=line)


def _stage(one: Instruction, before: list[Stage]) -> Stage:
    words = one.text.split()
    if len(words) == 3 and words[1].lower() == "as":
        name = words[2].lower()
        if _STAGE.fullmatch(name) is None:
            raise one.problem(f"the stage's name {words[2]!r} must begin with a letter, then letters, digits, - _ .")
        if any(stage.name == name for stage in before):
            raise one.problem(f"there are two stages {name!r}")
    elif len(words) == 1:
        name = ""
    else:
        raise one.problem("expected IMAGE or IMAGE AS NAME")
    return Stage(base=words[0], name=name, platform=one.flag("platform"), line=one.line)


class _Reader:
    """Iterates over the lines once."""

    def __init__(self, text: str) -> None:
        self.lines = text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n")
        self.at = 0
        self.escape = "\\"
        self.directives: dict[str, str] = {}
        self._read_directives()

    def _read_directives(self) -> None:
        for line in self.lines:
            found = _DIRECTIVE.fullmatch(line.strip())
            if found is None:
                return
            key, value = found[1].lower(), found[2]
            if key not in ("syntax", "escape", "check"):
                return
            if key in self.directives:
                raise SpecError(f"the directive {key!r} is given twice")
            self.directives[key] = value
            if key == "escape":
                if value not in ("\\", "`"):
                    raise SpecError(f"the directive escape must be \\ or `, not {value!r}")
                self.escape = value

    def instructions(self) -> list[Instruction]:
        found: list[Instruction] = []
        while self.at < len(self.lines):
            line = self.lines[self.at].strip()
            if not line or line.startswith("#"):
                self.at += 1
                continue
            found.append(self._instruction())
        return found

    def _instruction(self) -> Instruction:
        start = self.at + 1
        name, _, rest = self._joined().strip().partition(" ")
        if "\t" in name:
            name, _, more = name.partition("\t")
            rest = f"{more} {rest}"
        name = name.upper()
        if name not in NAMES:
            from difflib import get_close_matches

            near = get_close_matches(name, NAMES, 1)
            raise SpecError(
                f"line {start}: unknown instruction {name[:30]!r}" + (f" (did you mean {near[0]}?)" if near else "")
            )
        flags, text = _split_flags(name, rest.strip(), start)
        inner = text.lstrip().partition(" ")[0].upper() if name == "ONBUILD" else name
        heredocs = self._heredocs(text, start) if inner in ("RUN", "COPY", "ADD") else ()
        return Instruction(name=name, flags=flags, text=text, heredocs=heredocs, line=start)

    def _joined(self) -> str:
        """Join a line with its continuation lines. Comments and empty lines between them are skipped."""
        pieces: list[str] = []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            if pieces and (not line.strip() or line.lstrip().startswith("#")):
                self.at += 1
                continue
            self.at += 1
            bare = line.rstrip()
            if not bare.endswith(self.escape):
                pieces.append(line)
                break
            pieces.append(bare[: -len(self.escape)])
        return "".join(pieces)

    def _heredocs(self, text: str, start: int) -> tuple[Heredoc, ...]:
        found: list[Heredoc] = []
        for match in _HEREDOC.finditer(_outside_quotes(text)):
            plain = match[5]
            name = match[3] or match[4] or plain
            content: list[str] = []
            while True:
                if self.at >= len(self.lines):
                    raise SpecError(f"line {start}: the heredoc {name!r} has no end")
                line = self.lines[self.at]
                self.at += 1
                if match[2]:
                    line = line.lstrip("\t")
                if line == name:
                    break
                content.append(line + "\n")
            found.append(Heredoc(name=name, content="".join(content), expand=plain is not None))
        return tuple(found)


def _outside_quotes(text: str) -> str:
    """Blank out quoted parts, except for the quoted word of a heredoc itself."""
    return re.sub(r"(?<!<)(?<!<-)(?:\"[^\"]*\"|'[^']*')", lambda found: " " * len(found[0]), text)


def _split_flags(name: str, rest: str, line: int) -> tuple[dict[str, tuple[str, ...]], str]:
    known = _FLAGS.get(name)
    flags: dict[str, tuple[str, ...]] = {}
    while known and (found := _FLAG.match(rest)):
        key, value = found[1], found[2] or ""
        if key not in known:
            raise SpecError(f"line {line}: {name}: unknown flag --{key} (there are: {', '.join(sorted(known))})")
        if key in flags and key not in _REPEATED:
            raise SpecError(f"line {line}: {name}: the flag --{key} is given twice")
        flags[key] = (*flags.get(key, ()), value)
        rest = rest[found.end() :]
    return flags, rest

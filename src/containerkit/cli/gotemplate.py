"""Templates of Go, as Docker's ``--format`` has them: ``{{.Name}}``, ``{{range .Ports}}{{.}} {{end}}``, ``{{json .}}``.

Not supported, and refused by name: ``define``, ``template``, ``block``, and calls of functions that are values.

Source: Go's package text/template, "Actions", "Pipelines", "Functions"; Docker's documentation, "Format command and log
output".
"""

from __future__ import annotations

import re

from containerkit.cli.gofunctions import FUNCTIONS, is_true, shown
from containerkit.errors import SpecError
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final

    Node = tuple[Any, ...]
    """A part of a template: its kind, then what belongs to it. See :class:`_Parser`."""

__all__ = ["Template", "titles"]

_ACTION: Final = re.compile(
    r"\{\{(-(?=\s))?\s*(/\*.*?\*/|(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|[^}\"`]|\}(?!\}))*?)\s*((?<=\s)-)?\}\}", re.DOTALL
)
_TOKEN: Final = re.compile(
    r"""\s*(?:(?P<string>"(?:\\.|[^"\\])*"|`[^`]*`)|(?P<number>[-+]?\d+(?:\.\d+)?)(?![\w.])
    |(?P<field>(?:\$\w*)?(?:\.\w+)+|\$\w*|\.)|(?P<word>\w+)|(?P<sign>:=|[()|,=]))""",
    re.VERBOSE,
)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}
_REFUSED: Final = ("define", "template", "block", "call")


class _Token(NamedTuple):
    kind: str
    text: str


class Template:
    r"""A parsed template.

    Args:
        text: the template. ``\t`` and ``\n`` stand for a tab and a new line, also outside of actions.

    Raises:
        SpecError: it is malformed, or uses something that is not supported.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._nodes = _Parser(text).whole()

    def __call__(self, value: Any) -> str:
        """Return the template filled in from a value: mappings, lists, texts, numbers, and functions as methods.

        Raises:
            SpecError: no such field, or a function does not take its arguments.
        """
        try:
            return "".join(_Run(value).block(self._nodes))
        except (_Break, _Continue):
            raise SpecError(f"--format {self._text!r:.200}: break and continue belong in range") from None


class _Parser:
    """Makes a tree of nodes of a template's text.

    Nodes: ``("text", text)``, ``("show", pipeline)``, ``("set", name, pipeline)``, ``("if" | "with", pipeline, yes,
    no)``, ``("range", names, pipeline, body, no)``, ``("break",)``, ``("continue",)``. A pipeline is a list of
    commands, a command a list of operands.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._parts = list(self._split(text.replace(r"\t", "\t").replace(r"\n", "\n")))
        self._at = 0

    def whole(self) -> list[Node]:
        nodes, end = self._block()
        if end:
            raise self._error(f"{end!r} ends nothing")
        return nodes

    def _error(self, why: str) -> SpecError:
        return SpecError(f"--format {self._text!r:.200}: {why}")

    def _split(self, text: str) -> Iterator[str | list[_Token]]:
        """Yield texts, and the tokens of actions."""
        at, trims = 0, False
        for found in _ACTION.finditer(text):
            before = text[at : found.start()]
            before = before.lstrip() if trims else before
            yield before.rstrip() if found[1] else before
            if not found[2].startswith("/*"):
                yield self._tokens(found[2])
            at, trims = found.end(), bool(found[3])
        rest = text[at:].lstrip() if trims else text[at:]
        if "{{" in rest:
            raise self._error("'{{' without '}}'")
        yield rest

    def _tokens(self, text: str) -> list[_Token]:
        found, at = [], 0
        while at < len(text.rstrip()):
            token = _TOKEN.match(text, at)
            if token is None or token.lastgroup is None:
                raise self._error(f"{text[at:].strip()!r:.60} is not understood")
            found.append(_Token(token.lastgroup, token[token.lastgroup]))
            at = token.end()
        return found

    def _block(self) -> tuple[list[Node], str]:
        """Return the nodes up to ``end``, ``else`` or the end of the text, and which of them it was."""
        nodes: list[Node] = []
        while self._at < len(self._parts):
            part = self._parts[self._at]
            self._at += 1
            if isinstance(part, str):
                nodes.append(("text", part))
                continue
            word = part[0].text if part else ""
            if word == "end" or (word == "else" and part[0].kind == "word"):
                if word == "else" and len(part) > 1:  # "else if" is an "if" in "else", with one common "end"
                    self._at -= 1
                    self._parts[self._at] = part[1:]
                    return nodes, "else if"
                return nodes, word
            nodes.append(self._action(word, part))
        return nodes, ""

    def _action(self, word: str, part: list[_Token]) -> Node:
        if word in ("if", "with", "range") and part[0].kind == "word":
            names, pipeline = self._declared(part[1:])
            body, end = self._block()
            no: list[Node] = []
            if end == "else if":
                following = self._parts[self._at]
                self._at += 1
                no, end = [self._action(following[0].text, list(following))], "end"  # type: ignore[union-attr, arg-type] # an action
            elif end == "else":
                no, end = self._block()
            if end != "end":
                raise self._error(f"{word!r} without 'end'")
            return word, names, pipeline, body, no
        if word in ("break", "continue") and len(part) == 1:
            return (word,)
        names, pipeline = self._declared(part)
        return ("set", names[0], pipeline) if names else ("show", pipeline)

    def _declared(self, tokens: list[_Token]) -> tuple[list[str], list[Node]]:
        """Return the names before ``:=``, and the pipeline."""
        signs = [number for number, token in enumerate(tokens) if token.text in (":=", "=") and token.kind == "sign"]
        names = [token.text for token in tokens[: signs[0]] if token.kind == "field"] if signs else []
        rest = tokens[signs[0] + 1 :] if signs else tokens
        pipeline, left = self._pipeline(rest)
        if left or not pipeline or (signs and not names):
            raise self._error("an action is malformed")
        return names, pipeline

    def _pipeline(self, tokens: list[_Token]) -> tuple[list[Node], list[_Token]]:
        """Return the commands of a pipeline up to a closing parenthesis, and the tokens from there on."""
        commands: list[list[Any]] = [[]]
        while tokens and tokens[0].text != ")":
            token, tokens = tokens[0], tokens[1:]
            if token == ("sign", "|"):
                commands.append([])
            elif token == ("sign", "("):
                inner, tokens = self._pipeline(tokens)
                if not tokens or not inner:
                    raise self._error("'(' without ')'")
                tokens = tokens[1:]
                after: str = ""
                if tokens and tokens[0].kind == "field" and re.fullmatch(r"(?:\.\w+)+", tokens[0].text):
                    after, tokens = tokens[0].text, tokens[1:]
                commands[-1].append(("pipeline", inner, after))
            else:
                commands[-1].append(self._operand(token))
        if not all(commands):
            raise self._error("an action is empty")
        return [tuple(command) for command in commands], tokens

    def _operand(self, token: _Token) -> Node:
        kind, text = token
        if kind == "string":
            return "value", text[1:-1] if text[0] == "`" else re.sub(
                r"\\(.)", lambda m: _ESCAPES.get(m[1], m[1]), text[1:-1]
            )
        if kind == "number":
            return "value", float(text) if "." in text else int(text)
        if kind == "field":
            return "field", text
        if kind == "word" and text in ("true", "false", "nil"):
            return "value", {"true": True, "false": False}.get(text)
        if kind == "word" and text in FUNCTIONS:
            return "function", text
        if text in _REFUSED:
            raise self._error(f"{text!r} is not supported")
        raise self._error(f"there is no function {text!r:.60}; the functions are {', '.join(sorted(FUNCTIONS))}")


class _Break(Exception):  # noqa: N818 - not an error
    pass


class _Continue(Exception):  # noqa: N818 - not an error
    pass


class _Run:
    """Fills in a template."""

    def __init__(self, value: Any, names: dict[str, Any] | None = None) -> None:
        self._value = value
        self._names = {"$": value} if names is None else names

    def _inside(self, value: Any) -> _Run:
        return _Run(value, self._names)

    def block(self, nodes: list[Node]) -> Iterator[str]:
        for node in nodes:
            match node[0]:
                case "text":
                    yield node[1]
                case "show":
                    yield shown(self._pipeline(node[1]))
                case "set":
                    self._names[node[1]] = self._pipeline(node[2])
                case "range":
                    yield from self._range(*node[1:])
                case "break":
                    raise _Break
                case "continue":
                    raise _Continue
                case kind:
                    yield from self._choice(kind, *node[1:])

    def _choice(
        self, kind: str, names: list[str], pipeline: list[Node], yes: list[Node], no: list[Node]
    ) -> Iterator[str]:
        value = self._pipeline(pipeline)
        self._names.update(dict.fromkeys(names, value))
        if is_true(value):
            yield from (self._inside(value) if kind == "with" else self).block(yes)
        else:
            yield from self.block(no)

    def _range(self, names: list[str], pipeline: list[Node], body: list[Node], no: list[Node]) -> Iterator[str]:
        value = self._pipeline(pipeline)
        pairs = (
            sorted(value.items())
            if isinstance(value, dict)
            else enumerate(range(value) if isinstance(value, int) else value or ())
        )
        empty = True
        for key, item in pairs:
            empty = False
            self._names.update(zip(names, (key, item) if len(names) > 1 else (item,), strict=False))
            try:
                yield from self._inside(item).block(body)
            except _Continue:
                continue
            except _Break:
                break
        if empty:
            yield from self.block(no)

    def _pipeline(self, commands: list[Node]) -> Any:
        more: tuple[Any, ...] = ()
        for command in commands:
            more = (self._command(command, more),)
        return more[0]

    def _command(self, command: Node, more: tuple[Any, ...]) -> Any:
        kind, what = command[0][:2]
        given = (*map(self._argument, command[1:]), *more)
        if kind == "function":
            return _called(what, FUNCTIONS[what], given)
        value = self._argument(command[0])
        if callable(value):
            return _called(what, value, given)
        if given:
            raise SpecError(f"--format: {what!r:.60} takes no arguments")
        return value

    def _argument(self, operand: Node) -> Any:
        kind, what = operand[:2]
        if kind == "function":
            return _called(what, FUNCTIONS[what], ())
        if kind == "pipeline":
            return _below(self._pipeline(what), operand[2])
        if kind == "value":
            return what
        if what.startswith("$"):
            name, dot, rest = what.partition(".")
            if name not in self._names:
                raise SpecError(f"--format: there is no variable {name!r:.60}")
            return _below(self._names[name], dot + rest)
        return _below(self._value, what)


def _called(name: str, function: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    try:
        return function(*given)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise SpecError(f"--format: {name}: {error}") from None


def _below(value: Any, path: str) -> Any:
    """Return the field of a value at a path, such as ``.State.Pid``."""
    for name in path.split(".")[1:]:
        if not name:
            continue
        if not isinstance(value, dict) or name not in value:
            known = ", ".join(value) if isinstance(value, dict) else "none"
            raise SpecError(f"--format: there is no field {path!r:.100}; the fields are {known}")
        value = value[name]
    return value


_TITLES: Final = {
    "ID": "CONTAINER ID",
    "RunningFor": "CREATED",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
}


class _Titles(dict[str, object]):
    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> object:
        if name == "Label":
            return lambda label: label
        return _TITLES.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).upper()


def titles() -> dict[str, object]:
    """Return a row with the title of each field, for the first line of a table."""
    return _Titles()

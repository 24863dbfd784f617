"""No module and no function is too long to be read at once."""

import ast
from pathlib import Path

import pytest

import containerkit

SOURCE = Path(containerkit.__file__).parent
MODULE_LINES = 500
FUNCTION_LINES = 60
REMEDY = (
    "part it by its subjects, as the rooms of docs/architecture.md are: what others share goes into a module below, which "
    "both import"
)
FUNCTION_REMEDY = "give a stretch of it that has a purpose of its own a name, as a function beside it"


def long_functions(text):
    """Yield name, first line and length of each function that is too long, with its decorators and its docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = node.end_lineno - first + 1
            if length > FUNCTION_LINES:
                yield node.name, first, length


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCE)))
def test_modules_and_functions_are_short(path):
    text = path.read_text()
    length = len(text.splitlines())
    assert length <= MODULE_LINES, f"{path.name} has {length} lines of at most {MODULE_LINES}: {REMEDY}"
    for name, line, lines in long_functions(text):
        pytest.fail(f"{path.name}:{line}: {name} has {lines} lines of at most {FUNCTION_LINES}: {FUNCTION_REMEDY}")


@pytest.mark.parametrize(("lines", "found"), [(FUNCTION_LINES, []), (FUNCTION_LINES + 1, [("work", 2, 61)])])
def test_length_of_a_function_is_that_with_its_decorators(lines, found):
    text = "\n".join(
        ["class Thing:", "    @property", "    def work(self):", *["        pass"] * (lines - 2), "", "x = 1"]
    )
    assert found == list(long_functions(text))

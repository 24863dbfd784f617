"""No module and no function is too long."""

import ast
from pathlib import Path

import pytest

import containerkit

SOURCE = Path(containerkit.__file__).parent
TESTS = Path(__file__).parents[1]
MODULE_LINES = 500
FUNCTION_LINES = 60
REMEDY = (
    "part it by its subjects, as the rooms of docs/architecture.md are: what others share goes into a module below, which "
    "both import"
)
FUNCTION_REMEDY = "give a stretch of it that has a purpose of its own a name, as a function beside it"


def held_to():
    """Return all modules of the package and of the benchmarks, and those that tests share, in Python and in C."""
    places = [SOURCE, TESTS, TESTS.parent / "benchmarks"]
    found = [path for place in places for ending in ("py", "c", "h") for path in place.rglob(f"*.{ending}")]
    return sorted(path for path in found if not path.name.startswith(("test_", "_lib.")))


def name_of(path):
    return str(path.relative_to(SOURCE if path.is_relative_to(SOURCE) else TESTS.parent))


def long_functions(text):
    """Yield name, first line and length of each function that is too long, with its decorators and its docstring."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = node.end_lineno - first + 1
            if length > FUNCTION_LINES:
                yield node.name, first, length


def long_c_functions(text):
    """Do the same for C in the style of clang-format: a function ends with a brace at the beginning of a line."""
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.endswith("{") and "(" in line and not line.startswith((" ", "\t")):
            first, name = number, line[: line.index("(")].split()[-1].lstrip("*")
        elif line == "}" and first:
            if number - first + 1 > FUNCTION_LINES:
                yield name, first, number - first + 1
            first = 0


def complaints(path):
    """Yield what is too long in a module."""
    text = path.read_text()
    length = len(text.splitlines())
    if length > MODULE_LINES:
        yield f"{name_of(path)} has {length} lines of at most {MODULE_LINES}: {REMEDY}"
    for name, line, lines in (long_functions if path.suffix == ".py" else long_c_functions)(text):
        yield f"{name_of(path)}:{line}: {name} has {lines} lines of at most {FUNCTION_LINES}: {FUNCTION_REMEDY}"


def test_modules_and_functions_are_short():
    assert "" == "\n".join(complaint for path in held_to() for complaint in complaints(path))


def test_shared_modules_of_tests_are_among_them():
    assert {"conftest.py", "oci_bundles.py", "attacks.c", "keeper.c", "native.h"} <= {path.name for path in held_to()}
    assert not [path for path in held_to() if path.name == "test_sizes.py"]


@pytest.mark.parametrize(("lines", "found"), [(FUNCTION_LINES, []), (FUNCTION_LINES + 1, [("work", 2, 61)])])
def test_length_of_a_function_is_that_with_its_decorators(lines, found):
    text = "\n".join(
        ["class Thing:", "    @property", "    def work(self):", *["        pass"] * (lines - 2), "", "x = 1"]
    )
    assert found == list(long_functions(text))


@pytest.mark.parametrize(("lines", "found"), [(FUNCTION_LINES, []), (FUNCTION_LINES + 1, [("work", 3, 61)])])
def test_length_of_a_c_function_is_that_with_its_braces(lines, found):
    text = "\n".join(["struct s {", "};", "static long *work(int x) {", *["    x++;"] * (lines - 2), "}", "int y;"])
    assert found == list(long_c_functions(text))

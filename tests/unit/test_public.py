import ast
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import containerkit
from containerkit import aio, cgroup, executor, fleet, image, interpreter, measure, namespace, project, volume

PACKAGES = (containerkit, aio, executor, fleet, image)
OTHERS = (cgroup, interpreter, measure, namespace, project, volume)
"""Packages that mostly name classes of results. ``test_reference.py`` checks that the reference has them."""


def names_of(packages):
    return [pytest.param(each, name, id=f"{each.__name__}.{name}") for each in packages for name in each.__all__]


NAMES = names_of(PACKAGES)
ROOT = Path(__file__).parents[2]
SOURCE = Path(containerkit.__file__).parent
SILENCED = re.compile(r"# (?:ruff: )?noqa(?:: [A-Z0-9]+(?:, [A-Z0-9]+)*)?|# type: ?ignore(?:\[[a-z, -]+\])?")


def words_of(paths):
    return {word for path in paths for word in re.findall(r"\w+", path.read_text())}


def twin(package):
    """Return the imports that type checkers see, by name."""
    tree = ast.parse(inspect.getsource(package))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_exist(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_public_names_match_those_for_type_checkers():
    for name, module in twin(containerkit).items():
        if name in containerkit.__all__:
            assert getattr(importlib.import_module(module), name) is getattr(containerkit, name)
    assert set(containerkit.__all__) <= set(twin(containerkit))
    assert set(image.__all__) <= set(twin(image))
    assert set(aio.__all__) <= set(twin(aio))
    assert set(executor.__all__) <= set(twin(executor))
    assert set(fleet.__all__) <= set(twin(fleet))


def test_a_name_stands_for_one_class():
    known = {}
    for package in (*PACKAGES, *OTHERS):
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isclass(value):
                assert known.setdefault(name, value) is value


@pytest.mark.parametrize("name", ["Image", "Build"])
def test_names_of_images_are_imported_on_first_use(name):
    code = f"import sys, containerkit; print(*sys.modules); containerkit.{name}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = (set(line.split()) for line in shown.splitlines())
    assert not {"attr", "json", "re", "typing", "containerkit.image"} & before - set(sys.builtin_module_names)
    assert "containerkit.image" in after
    assert "urllib3" not in after


def test_public_names_are_documented():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    if not pages[0].exists():
        pytest.skip("the documentation is not beside the tests")
    public = {name: getattr(package, name) for package in PACKAGES for name in package.__all__}
    assert set() == public.keys() - words_of(pages)
    described = {name: value for name, value in public.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert [] == [name for name, value in described.items() if not (inspect.getdoc(value) or "").strip()]


def test_public_names_are_tested():
    tests = [path for path in (ROOT / "tests").glob("[!t]*/test_*.py") if path.name != Path(__file__).name]
    assert set() == {name for package in PACKAGES for name in package.__all__} - words_of(tests)


def calls_of(value):
    """Yield the callables of a public name: itself, or the methods of a class, including inherited ones."""
    if inspect.isfunction(value):
        yield value
    methods = (
        {name: each for kind in reversed(inspect.getmro(value)) for name, each in vars(kind).items()}
        if inspect.isclass(value)
        else {}
    )
    for name, each in methods.items():
        call = each.fget if isinstance(each, property) else getattr(each, "__func__", each)
        own = inspect.isfunction(call) and call.__module__.startswith("containerkit.")
        if own and (not name.startswith("_") or (name == "__init__" and not hasattr(value, "__attrs_attrs__"))):
            yield call


@pytest.mark.parametrize(("package", "name"), names_of((*PACKAGES, *OTHERS)))
def test_public_name_is_typed(package, name):
    for call in calls_of(getattr(package, name)):
        signature = inspect.signature(call)
        told = {
            each.name: each.annotation for each in signature.parameters.values() if each.name not in ("self", "cls")
        }
        assert inspect.Parameter.empty not in told.values(), call
        assert signature.return_annotation not in (inspect.Signature.empty, "Any") or call.__qualname__ in OPEN, call
        for parameter, kind in told.items():
            assert not re.search(r"\bAny\b", str(kind)) or (call.__qualname__, parameter) in OPEN, call
    for field in getattr(getattr(package, name), "__attrs_attrs__", ()):
        assert field.type not in (None, "Any"), field.name


OPEN = {("Live.program", "key"), ("CompletedProcess.now", "written"), ("Live.reap", "dying")} | {
    ("Process.__init__", "finish"),
    ("Attended.__init__", "process"),
    ("Attended.of", "made"),
    ("Opening.__init__", "start"),
    ("Project.of", "model"),
    ("Service.of", "keys"),
    ("FleetContainer.__init__", "engine"),
    ("FleetContainer.call", "given"),
    ("FleetContainer.call", "listener"),
    ("FleetProcess.__init__", "future"),
    ("FleetProcess.__init__", "lines"),
    "Result.json",
}
"""Parameters that only the library passes, and calls that return any JSON."""


def test_each_silenced_check_has_its_reason():
    without = []
    for path in (path for part in (SOURCE, ROOT / "tests", ROOT / "benchmarks") for path in part.rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            rest = line
            while found := SILENCED.search(rest):
                rest = rest[found.end() :]
            if rest is not line and not re.match(r" (-|#) \S", rest):
                without.append(f"{path}:{number}: {line.strip()}")
    assert [] == without

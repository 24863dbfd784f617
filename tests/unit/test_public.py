import ast
import importlib
import inspect
import subprocess
import sys

import pytest

import containerkit
from containerkit import image

PACKAGES = (containerkit, image)


def twin(package):
    """Return what type checkers are told to import, by name."""
    tree = ast.parse(inspect.getsource(package))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }  # fmt: skip


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_public_names_are_there(package):
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


def test_public_names_are_what_type_checkers_are_told():
    for name, module in twin(containerkit).items():
        if name in containerkit.__all__:
            assert getattr(importlib.import_module(module), name) is getattr(containerkit, name)
    assert set(containerkit.__all__) <= set(twin(containerkit))
    assert set(image.__all__) <= set(twin(image))


@pytest.mark.parametrize("name", ["Image", "Build"])
def test_names_of_images_cost_nothing_before_they_are_used(name):
    code = f"import sys, containerkit; print(*sys.modules); containerkit.{name}; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    before, after = (set(line.split()) for line in shown.splitlines())
    assert not {"attr", "json", "re", "typing", "containerkit.image"} & before - set(sys.builtin_module_names)
    assert "containerkit.image" in after
    assert "urllib3" not in after

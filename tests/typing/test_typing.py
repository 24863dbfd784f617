"""Type checkers find what is wrong in programs, and nothing in those that are right."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import containerkit

HERE = Path(__file__).parent
PROGRAMS = sorted((HERE / "programs").glob("*.py"))
MISTAKES = HERE / "mistakes.py"
PACKAGE = Path(containerkit.__file__).parents[1]

pytestmark = pytest.mark.timeout(900)  # the first look at all modules takes a minute where others work beside


def planted():
    lines = MISTAKES.read_text().splitlines()
    return {number: line.strip() for number, line in enumerate(lines, 1) if line.endswith("# mistake")}


UNUSED = (
    "IPython",
    "PIL",
    "jupyter_client",
    "kubernetes",
    "matplotlib",
    "mcp",
    "numpy",
    "ray",
    "rich",
    "smolagents",
    "traitlets",
)
"""Packages that some modules of ours import, or what these import, and no program here. Reading them takes longer than ours."""


def mypy(directory):
    if find_spec("mypy") is None:
        pytest.skip("mypy is not installed: pip install containerkit[typing]")
    stems = "".join(f"[mypy-{path.stem}]\ndisallow_any_expr = True\n" for path in PROGRAMS)
    (directory / "mypy.ini").write_text(
        f"[mypy]\nstrict = True\npython_executable = {sys.executable}\nexclude_gitignore = False\n"
        f"[mypy-containerkit.*]\nfollow_imports = silent\n{stems}"
        f"[mypy-{','.join(f'{package}.*' for package in UNUSED)}]\nfollow_imports = skip\n"
    )
    more = {} if "-packages" in PACKAGE.name else {"MYPYPATH": f"{PACKAGE}"}
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", os.devnull, *PROGRAMS, MISTAKES],
        cwd=directory,
        env={**os.environ, **more},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = re.findall(r"^(.*?\.py):(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    return [((directory / path).resolve(), int(line), message) for path, line, message in found]


def pyright(directory):
    program = next(filter(None, map(shutil.which, ("pyright", "basedpyright"))), None)
    beside = Path(sys.executable).with_name("basedpyright")
    if program is None and not beside.exists():
        pytest.skip("neither pyright nor basedpyright is installed: pip install containerkit[typing]")
    roots = [os.path.relpath(path, directory) for path in (*PROGRAMS, MISTAKES, PACKAGE)]
    (directory / "pyrightconfig.json").write_text(
        json.dumps({"include": roots[:-1], "extraPaths": roots[-1:], "typeCheckingMode": "strict"})
    )
    done = subprocess.run(
        [program or beside, "--pythonpath", sys.executable, "--outputjson"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] > len(PROGRAMS), done.stdout + done.stderr
    return [
        (Path(each["file"]), each["range"]["start"]["line"] + 1, each["message"])
        for each in report["generalDiagnostics"]
        if each["severity"] == "error"
    ]


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda checker: checker.__name__)
def found(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp(request.param.__name__))


def test_each_mistake_is_found(found):
    lines = {line for path, line, _ in found if path == MISTAKES}
    assert {} == {line: text for line, text in planted().items() if line not in lines}


def test_nothing_else_is_found(found):
    known = planted()
    others = [each for each in found if each[0] != MISTAKES or each[1] not in known]
    assert "" == "\n".join(f"{path.name}:{line}: {message}" for path, line, message in others)


def test_there_are_mistakes_and_programs_enough():
    assert len(planted()) >= 32
    assert len(PROGRAMS) >= 10


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_program_runs(path):
    done = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=120)
    assert (0, "") == (done.returncode, done.stderr)

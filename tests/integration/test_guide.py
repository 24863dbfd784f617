"""The examples of the guide and of the README do what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(name, language):
    text = (ROOT / name).read_text()
    return [
        pytest.param(found[2], id=f"line {text.count(chr(10), 0, found.start()) + 1}")
        for found in BLOCK.finditer(text)
        if found[1] == language
    ]


@pytest.mark.parametrize("code", blocks("docs/guide.md", "python"))
def test_guide_examples_hold(code, tmp_path):
    if code.startswith("# as root") and os.geteuid() != 0:
        pytest.skip("control groups need root")
    # As a program of its own, for nothing to be there that the example does not bring about.
    path = tmp_path / "example.py"
    path.write_text(code)
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=60)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


COMMANDS = [
    pytest.param(line, id=line) for block in blocks("docs/guide.md", "sh") for line in block.values[0].splitlines()
]


@pytest.mark.parametrize("line", COMMANDS)
def test_guide_commands_work(line):
    line = line.replace("containerkit", f"{sys.executable} -m containerkit", 1)
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("code", blocks("README.md", "python"))
def test_readme_examples_run(code, tmp_path):
    if "limits=" in code and os.geteuid() != 0:
        code = re.sub(r"^Container\(limits=.*\n", "", code, flags=re.MULTILINE)
    path = tmp_path / "example.py"
    path.write_text(code)
    done = subprocess.run([sys.executable, "-W", "error", path], capture_output=True, text=True, timeout=60)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_readme_and_guide_link_to_what_is_there():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"

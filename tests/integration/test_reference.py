"""The documentation site is built without a warning, and contains each public name."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import containerkit
from containerkit import aio, cgroup, executor, fleet, image, interpreter, measure

DOCS = Path(__file__).parents[2] / "docs"
ENTRY = re.compile(r"^\.\. (?:auto)?(?:class|exception|function|data):: (\S+)$", re.MULTILINE)
TOOLS = ("sphinx", "furo", "myst_parser")


def entries():
    return [name for page in sorted((DOCS / "reference").glob("*.rst")) for name in ENTRY.findall(page.read_text())]


def test_each_public_name_has_its_entry():
    told = entries()
    assert len(told) == len(set(told))
    wanted = {f"containerkit.{name}" for name in containerkit.__all__}
    for package in (aio, cgroup, executor, fleet, image, interpreter, measure):
        # Objects that are public under a shorter name too are documented there.
        wanted |= {
            f"{package.__name__}.{name}"
            for name in package.__all__
            if getattr(package, name) is not getattr(containerkit, name, None)
        }
    assert wanted <= set(told)
    for name in set(told) - wanted:  # classes that methods return are documented where they are defined
        module, _, attribute = name.rpartition(".")
        assert attribute in importlib.import_module(module).__all__


def test_each_decision_is_in_the_index():
    text = (DOCS / "decisions" / "README.md").read_text()
    linked = re.findall(r"\]\((\d{4}-[^)]+\.md)\)", text)
    assert sorted(linked) == sorted(path.name for path in (DOCS / "decisions").glob("[0-9]*.md"))
    for name in linked:
        title = re.sub(r"^# (?:\d+[.:] )?", "", (DOCS / "decisions" / name).read_text().splitlines()[0])
        assert f"]({name}): {title}\n" in text


@pytest.mark.timeout(600)
def test_site_is_built_without_a_warning(tmp_path):
    for tool in TOOLS:
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"needs the extra docs: {tool} is not installed")
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-E", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run([*sphinx, str(DOCS), str(tmp_path / "site")], capture_output=True, text=True, timeout=540)
    assert (0, "") == (done.returncode, done.stderr)
    site = tmp_path / "site"
    told = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    for name in entries():
        assert f'id="{name}"' in told
    for inherited in ("Container.run", "Container.files", "Image.pull", "CGroup.stats"):
        assert f'id="containerkit.{inherited}"' in told
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).exists()

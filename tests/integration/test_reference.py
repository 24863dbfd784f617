"""The documentation site is built without a warning, and contains each public name."""

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import containerkit
from containerkit import (
    aio,
    cgroup,
    executor,
    fleet,
    gc,
    image,
    interpreter,
    measure,
    namespace,
    project,
    volume,
)

DOCS = Path(__file__).parents[2] / "docs"
PACKAGES = (
    aio, cgroup, executor, fleet, gc, image, interpreter, measure, namespace, project, volume,
)  # fmt: skip
ENTRY = re.compile(r"^\.\. (?:auto)?(?:class|exception|function|data):: (\S+)$", re.MULTILINE)
TOOLS = ("sphinx", "furo", "myst_parser")


def entries():
    return [name for page in sorted((DOCS / "reference").glob("*.rst")) for name in ENTRY.findall(page.read_text())]


def test_each_public_name_has_its_entry():
    told = entries()
    assert len(told) == len(set(told))
    wanted = {f"containerkit.{name}" for name in containerkit.__all__}
    for package in PACKAGES:
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


def test_contributors_are_sent_to_files_that_exist():
    text = (DOCS.parent / "CONTRIBUTING.md").read_text()
    named = {
        word
        for line in text.splitlines()
        if line.startswith("|")
        for word in re.findall(r"`([\w/]+\.(?:py|c|h))`", line)
    }
    assert len(named) > 40
    package = Path(containerkit.__file__).parent
    missing = {each for each in named if not ((package / each).exists() or (DOCS.parent / each).exists())}
    assert missing == set()


# Collecting garbage, of which there is none, takes a sixth of a build, and the index of its search another one.
SPHINX = """
import gc, sys
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.cmd.build import main
gc.disable()
StandaloneHTMLBuilder.search = False
sys.exit(main(["-q", "-W", "--keep-going", *sys.argv[1:]]))
"""


def built(*words):
    for tool in TOOLS:
        if importlib.util.find_spec(tool) is None:
            pytest.skip(f"needs the extra docs: {tool} is not installed")
    command = [sys.executable, "-c", SPHINX, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=540)
    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.timeout(600)
def test_site_is_built_without_a_warning(tmp_path):
    """With the plainest theme: the site's own lists all pages on each page, which takes longer than all the rest.

    Curly quotation marks, which can't be wrong, take a tenth.
    """
    site = tmp_path / "site"
    built("-D", "html_theme=basic", "-D", "smartquotes=0", "-d", tmp_path / "doctrees", DOCS, site)
    told = "".join(page.read_text() for page in (site / "reference").glob("*.html"))
    for name in entries():
        assert f'id="{name}"' in told
    for inherited in ("Container.run", "Container.files", "Image.pull", "CGroup.stats"):
        assert f'id="containerkit.{inherited}"' in told
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS).with_suffix(".html")).exists()


def test_theme_of_the_site_shows_a_page_without_a_warning(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Title\n\n```python\nx = 1\n```\n\n```{py:function} f(a: int)\n```\n")
    built("-c", DOCS, "-d", tmp_path / "doctrees", tmp_path / "docs", tmp_path / "site")
    page = (tmp_path / "site/index.html").read_text()
    assert "furo.css" in page
    assert 'id="f"' in page

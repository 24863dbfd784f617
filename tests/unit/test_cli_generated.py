"""Output made from the parsers: shell completion and manual pages."""

import argparse
import re
import shutil
import subprocess
import sys

import pytest

from containerkit import cli
from containerkit.cli import completion, manual
from containerkit.cli.parsers import commands

KNOWN = list(commands())


def test_every_command_and_verb_has_a_purpose():
    assert {command.path[0] for command in KNOWN} == set(cli.COMMANDS)
    assert not [command.path for command in KNOWN if not command.purpose]


def test_every_option_and_argument_is_explained():
    actions = [(each.path, action) for each in KNOWN for action in each.parser._actions]
    unexplained = [
        (*path, *action.option_strings, action.metavar)
        for path, action in actions
        if action.help is None and not isinstance(action, argparse._SubParsersAction)
    ]
    assert unexplained == []


def complete(shell, line, tmp_path):
    """Return what a shell proposes for the last word of a line."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell}: it is not installed")
    script = {"bash": completion._bash, "zsh": completion._zsh, "fish": completion._fish}[shell](KNOWN)
    words = line.split(" ")
    if shell == "bash":
        quoted = " ".join(f"'{word}'" for word in words)
        program = f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _containerkit\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
        return _run(["bash", "-c", program]).split()
    if shell == "fish":
        (tmp_path / "completion.fish").write_text(script)
        program = f"source {tmp_path}/completion.fish; complete -C '{line}'"
        return [each.split("\t")[0] for each in _run(["fish", "--no-config", "-c", program]).splitlines()]
    quoted = " ".join(f"'{word}'" for word in words)
    program = (
        f"{script}\nsetopt ksharrays shwordsplit\ncompopt() {{ : }}\n"
        f'COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _containerkit\nprint -l -- "${{COMPREPLY[@]}}"'
    )
    # zsh itself drops what does not begin as the word does.
    return [each for each in _run(["zsh", "-f", "-c", program]).split() if each.startswith(words[-1])]


def _run(words):
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr.strip(), done.stderr
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "among", "not_among"),
    [
        ("containerkit pu", {"pull", "push"}, {"run"}),
        ("containerkit image ", {"list", "build"}, {"run"}),
        ("containerkit image pull --", {"--platform", "--all-platforms"}, {"--tag"}),
        ("containerkit volume create --", {"--size", "--label"}, {"--force"}),
        ("containerkit run --pull ", {"missing", "always", "never"}, {"--image"}),
        ("containerkit container ls --", {"--filter"}, {"--image"}),
        ("containerkit completion ", {"bash", "zsh", "fish"}, set()),
    ],
)
def test_shells_complete_verbs_options_and_choices(shell, line, among, not_among, tmp_path):
    found = set(complete(shell, line, tmp_path))
    assert among <= found
    assert not not_among & found


def test_manual_pages_are_well_formed(tmp_path):
    names = manual.write(str(tmp_path / "man1"))
    assert {"containerkit.1", "containerkit-run.1", "containerkit-image-pull.1", "containerkit-volume-export.1"} <= set(
        names
    )
    assert len(names) == len(set(names)) == len(list((tmp_path / "man1").iterdir()))
    page = (tmp_path / "man1" / "containerkit-run.1").read_text()
    assert "\\fB\\-\\-memory\\fR" in page
    for command in KNOWN:
        assert re.search(r'^\.TH "', manual._page(command))
    programs = [
        words
        for words in (["mandoc", "-Tlint", "-Wwarning"], ["groff", "-man", "-Tutf8", "-ww", "-z"])
        if shutil.which(words[0])
    ]
    if not programs:
        pytest.skip("mandoc or groff: neither is installed")
    for words in programs:
        done = subprocess.run(
            [*words, *sorted((tmp_path / "man1").iterdir())], capture_output=True, text=True, check=False
        )
        said = [line for line in (done.stdout + done.stderr).splitlines() if "STYLE" not in line]
        assert not said, said[:5]


def test_commands_load_nothing_that_only_others_need():
    code = (
        "import sys, io, contextlib\nimport containerkit.cli as cli\n"
        "with contextlib.redirect_stdout(io.StringIO()): cli.main([*sys.argv[1].split(), '--help'])\n"
        "print(*sys.modules)"
    )
    heavy = {"urllib3", "asyncio", "yaml", "click", "rich", "logging", "tempfile", "containerkit.image.registry"}
    for name in ("pull", "images", "volume", "network", "container", "system", "create", "build", "rmi", "generate"):
        loaded = subprocess.run([sys.executable, "-c", code, name], capture_output=True, text=True, check=True).stdout
        assert not heavy & set(loaded.split()), name

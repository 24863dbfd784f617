"""Dockerfiles: lines, flags, heredocs, stages, words and patterns."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import SpecError
from containerkit.image import Image, Store
from containerkit.image.build import Build, parse_dockerfile
from containerkit.image.build.copying import mode_of
from containerkit.image.build.patterns import Ignore, pattern
from containerkit.image.build.running import parse_mount
from containerkit.image.build.words import expand, name_values, split_words

VARIABLES = {"a": "one", "empty": "", "path": "/usr/local/lib/x.tar.gz", "dollar": "$a"}


def instructions(text):
    return parse_dockerfile(f"FROM scratch\n{text}").stages[0].instructions


def test_dockerfile_is_split_into_stages():
    found = parse_dockerfile("ARG V=1\nFROM a:${V} AS One\nRUN x\nfrom --platform=$P b\nCOPY --from=one /a /b\n")
    assert [("a:${V}", "one", ""), ("b", "", "$P")] == [
        (stage.base, stage.name, stage.platform) for stage in found.stages
    ]
    assert ["V=1"] == [one.text for one in found.arguments]
    assert [0, 1, 1, 0] == [found.find(name) for name in ("one", "1", "", "0")]
    assert {"from": ("one",)} == found.stages[1].instructions[0].flags
    with pytest.raises(SpecError, match="there is no stage"):
        found.find("two")


def test_dockerfile_lines_are_continued():
    text = "RUN a \\\n   # a comment\n\n   b \\\n c\n# one more\nRUN d \\  \n e"
    assert ["a    b  c", "d  e"] == [one.text for one in instructions(text)]
    assert [2, 8] == [one.line for one in instructions(text)]


def test_dockerfile_directives_choose_the_escape():
    found = parse_dockerfile("# syntax=docker/dockerfile:1\n# escape=`\nFROM a\nRUN x `\n y\\\n")
    assert ("`", {"syntax": "docker/dockerfile:1", "escape": "`"}) == (found.escape, found.directives)
    assert "x  y\\" == found.stages[0].instructions[0].text
    assert "\\" == parse_dockerfile("# a comment\n# escape=`\nFROM a").escape
    with pytest.raises(SpecError, match="escape"):
        parse_dockerfile("# escape=x\nFROM a")


def test_dockerfile_heredocs():
    found = instructions(
        "RUN <<EOF\n one\n  two\nEOF\nCOPY <<-\"A\" <<B /x/\n\t$a\n\tA\nb\nB\nRUN cat <<'X' > y\nq\nX\nRUN echo '<<no' $((1<<2))"
    )
    assert [(" one\n  two\n", True)] == [(one.content, one.expand) for one in found[0].heredocs]
    assert [("A", "$a\n", False), ("B", "b\n", True)] == [
        (one.name, one.content, one.expand) for one in found[1].heredocs
    ]
    assert ("cat <<'X' > y", "q\n") == (found[2].text, found[2].heredocs[0].content)
    assert () == found[3].heredocs


def test_dockerfile_shell_and_exec_forms():
    found = instructions('CMD ["a", "b c"]\nCMD [a]\nCMD a b')
    assert [("a", "b c"), None, None] == [one.json_form for one in found]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "no FROM"),
        ("RUN x\nFROM a", "before the first FROM"),
        ("FROM", "expected IMAGE"),
        ("FROM a b", "expected IMAGE"),
        ("FROM a AS 1x", "must begin with a letter"),
        ("FROM a AS x\nFROM b AS X", "two stages"),
        ("FROM a\nRNU x", "did you mean RUN"),
        ("FROM a\nCOPY --form=b /a /b", "unknown flag --form"),
        ("FROM a\nCOPY --from=b --from=c /a /b", "twice"),
        ("FROM a\nRUN <<EOF\nx", "has no end"),
        ("FROM a\n" + "#" * (5 << 20), "more than"),
    ],
)
def test_dockerfile_that_is_malformed_is_refused(text, word):
    with pytest.raises(SpecError, match=word):
        parse_dockerfile(text)


@given(st.text(alphabet="FROMRUNCOPYaé \n\\#<>'\"$={}[]-,", max_size=120))
def test_dockerfile_of_anything_is_read_or_a_spec_error(text):
    with suppress(SpecError):
        assert parse_dockerfile(text).stages
    with suppress(SpecError):
        split_words(text, VARIABLES)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$a ${a}b \\$a", "one oneb $a"),
        ("'$a' \"$a\" \"\\$a\"", "$a one $a"),
        ("${missing:-x} ${empty:-x} ${empty-x} ${a:-x}", "x x  one"),
        ("${missing:+x} ${empty:+x} ${empty+x} ${a:+x}", "  x x"),
        ("${missing:-$a} ${missing:-${missing:-deep}}", "one deep"),
        ("${path#*/} ${path##*/}", "usr/local/lib/x.tar.gz x.tar.gz"),
        ("${path%.*} ${path%%.*}", "/usr/local/lib/x.tar /usr/local/lib/x"),
        ("${path/lib/LIB} ${path//l/L}", "/usr/LIBal/x".replace("/usr/LIBal/x", "/usr/local/LIB/x.tar.gz") + " /usr/LocaL/Lib/x.tar.gz"),
        ("$dollar $9 $", "$a  $"),
        ("${path#*l*l} ${path##*l*l} ${path%l*x*} ${path#/[a-u]?r/}", "/lib/x.tar.gz ib/x.tar.gz /usr/local/ local/lib/x.tar.gz"),
        ("${path%[!a-y]} ${path/[.]/_} ${path//[.]/_}", "/usr/local/lib/x.tar.g /usr/local/lib/x_tar.gz /usr/local/lib/x_tar_gz"),
    ],
)  # fmt: skip
def test_words_expand_variables(text, expected):
    assert expected == expand(text, VARIABLES)


@pytest.mark.parametrize("text", ["'", '"', "${a", "${}", "${a!x}", "${missing:?gone}", "${a:#x}"])
def test_words_that_are_malformed_are_refused(text):
    with pytest.raises(SpecError):
        expand(text, VARIABLES)


def test_words_are_split_at_blanks_outside_quotes():
    assert ["a b", "c", "one d"] == split_words(r"'a b'   c  $a\ d", VARIABLES)
    assert ["$a  $a"] == split_words("'$a  $a'", VARIABLES)


def test_names_and_values_in_both_forms():
    assert [("a", "1"), ("b", "x y"), ("c", "z w")] == name_values('a=1 b="x y" c=z\\ w', {})
    assert [("a", "b c = d")] == name_values("a b c = d", {})
    for wrong in ("", "a", "a=1 b"):
        with pytest.raises(SpecError):
            name_values(wrong, {})


@pytest.mark.parametrize(
    ("rule", "path", "fits"),
    [
        ("*.py", "a.py", True), ("*.py", "d/a.py", False), ("**/*.py", "d/e/a.py", True), ("**/*.py", "a.py", True),
        ("a?c", "abc", True), ("a?c", "a/c", False), ("[a-c]x", "bx", True), ("[^a]x", "ax", False), (r"\*", "*", True),
        ("d/**", "d/e/f", True),
    ],
)  # fmt: skip
def test_patterns_fit_as_go_says(rule, path, fits):
    assert fits == bool(pattern(rule).fullmatch(path))


def test_patterns_that_are_malformed_are_refused():
    for wrong in ("[a", "a\\", "[z-a]"):
        with pytest.raises(SpecError):
            pattern(wrong)


def test_ignore_takes_the_last_rule_that_fits():
    ignore = Ignore(["# comment", "", "*.log", "!keep.log", "/build", "**/secret", "doc/", "!doc/in.md"])
    found = {
        path: ignore(path) for path in ("a.log", "d/a.log", "keep.log", "build/x/y", "a/b/secret", "doc/x", "doc/in.md")
    }
    assert [True, False, False, True, True, True, False] == list(found.values())
    assert ignore.has_exceptions


@pytest.mark.parametrize(
    "text",
    ["type=x,target=/a", "type=cache", "target=/a,colour=red", "type=cache,target=/a,sharing=some", "type=tmpfs"],
)
def test_mount_flag_that_is_malformed_is_refused(text):
    with pytest.raises(SpecError):
        parse_mount(text)


def test_mount_flag_takes_short_names():
    flag = parse_mount("type=bind,src=a,dst=/b,ro")
    assert ("bind", "a", "/b", True) == (flag.kind, flag.get("source"), flag.get("target"), flag.switch("readonly"))


def test_build_in_python_is_the_same_as_a_dockerfile():
    tools = Build.from_("tools").run("make")
    made = Build.from_("base").env(A='x $y "z"').copy("/out", "/in", from_=tools).command("a", "b")
    stages = made.dockerfile.stages
    assert ["tools", "base"] == [stage.base for stage in stages]
    env, copy, command = stages[1].instructions
    assert [("A", 'x $y "z"')] == name_values(env.text, {"y": "no"})
    assert stages[0].name == copy.flag("from")
    assert ("a", "b") == command.json_form
    assert made == Build.from_("base").env(A='x $y "z"').copy("/out", "/in", from_=tools).command("a", "b")


@pytest.mark.parametrize(
    ("text", "mode", "directory", "expected"),
    [
        ("755", 0o600, False, 0o755), ("0640", 0o777, True, 0o640), ("u=rwX,go=rX", 0o600, True, 0o755),
        ("u=rwX,go=rX", 0o600, False, 0o644), ("+x", 0o644, False, 0o755), ("go-w,o-r", 0o666, False, 0o640),
        ("a=r", 0o777, False, 0o444), ("u+s,g+s,+t", 0o755, False, 0o7755), ("g=u", 0o640, False, 0o660),
        ("u=rw+x", 0o000, False, 0o700), ("o=", 0o777, False, 0o770),
    ],
)  # fmt: skip
def test_chmod_of_numbers_and_of_symbols(text, mode, directory, expected):
    assert oct(expected) == oct(mode_of(text)(mode, directory))


@pytest.mark.parametrize("text", ["", "9", "u", "u=q", "77777", "u=r,,g=w"])
def test_chmod_that_is_malformed_is_refused(text):
    with pytest.raises(SpecError):
        mode_of(text)


# --- Bounds


def doubling(lines, times):
    text = ["ARG A0=aaaaaaaaaa", *(f"ARG A{number}={f'$A{number - 1}' * times}" for number in range(1, lines))]
    return "\n".join(["FROM scratch", *text, f"LABEL x=$A{lines - 1}"])


@pytest.mark.parametrize(("lines", "times"), [(12, 10), (40, 2), (3, 2000), (12, 100)])
def test_arguments_that_double_are_bounded(tmp_path, lines, times):
    began = time.monotonic()
    with pytest.raises(SpecError, match=r"line \d+: ARG: its variables expand to more than 1048576 characters"):
        Image.build(tmp_path, text=doubling(lines, times), store=Store(tmp_path / "store"))
    assert time.monotonic() - began < 10


def test_arguments_below_the_bound_are_expanded(tmp_path):
    image = Image.build(tmp_path, text=doubling(5, 10), store=Store(tmp_path / "store"))
    assert image.defaults.labels["x"] == "a" * 100_000


@pytest.mark.parametrize(
    "line", ["ARG B=" + "$A" * 2000, "FROM " + "$A" * 2000, "FROM --platform=" + "$A" * 2000 + " scratch"]
)
def test_expansion_before_the_first_stage_names_its_line(tmp_path, line):
    text = "ARG A=" + "a" * 1000 + f"\n{line}\n" + ("FROM scratch\n" if line.startswith("ARG") else "")
    with pytest.raises(SpecError, match="line 2: "):
        Image.build(tmp_path, text=text, store=Store(tmp_path / "store"))


@pytest.mark.parametrize(
    "word", ["$A" * 2000, '"' + "$A" * 2000 + '"', "${A}" * 2000, "${x:-$A}" * 2000, "${A//a/$A}$A", "${A:+$A}" * 2000]
)
def test_expansion_is_bounded_in_whatever_way_it_is_written(word):
    with pytest.raises(SpecError, match="more than"):
        expand(word, {"A": "a" * 1100})

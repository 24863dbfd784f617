"""Command lines that are read without argparse have the values that argparse gives them."""

import random
import shlex
from functools import cache

import pytest

from containerkit.cli import COMMANDS, plain
from containerkit.cli.commands import HOST_NAMES, verb_of
from containerkit.cli.parsing import parser_of

READ = """
run -- true
run true
run -d --name web -- sleep 60
run --bind .:/work -v a:b --tmpfs /x --cwd /work -- make -j 2
run --image alpine:3.20 sh -c 'echo -- $0'
run --env= --memory=64M -e A=b -e C -- -x -- --
run --no-pty --read-only -m 64M - -x
run
ps
ps -a -q
ps --latest
ps --last 3 --filter name=a -f name=b
exec web ls -l
exec -e A=b --user 1:1 web ls
logs web
logs --follow web
logs web --tail 3
rm -f one two
rm one two -f
stop one
wait one two
inspect one --type container
kill -s TERM web
create --name web true
"""
LEFT = """
run --help
run -it -- sh
run --cwd -1 true
run --cwd
run --nonsense true
run --privileged true
run -mA true
run --pull wrong true
run -t -T true
run --sig-proxy true
run --readonly=yes true
run --rootfs a --tmpfs-root true
run -m=1 true
exec -- web ls
exec web -- ls
exec
logs -- web
logs
logs one two
rm one -f two
stop
ps -h
ps one
images alpine
volume ls
"""


def lines(text):
    return [shlex.split(line) for line in text.split("\n") if line]


def read(words):
    name, *rest = words
    return plain.read(verb_of(name).define, f"containerkit {name}", rest, add_help=name not in HOST_NAMES)


parser_for = cache(parser_of)


def by_argparse(words):
    """Return the values of argparse, except those of options of Docker that are refused or have no effect."""
    found = vars(parser_for(words[0]).parse_args(words[1:]))
    return {name: value for name, value in found.items() if not name.startswith("_")}


@pytest.mark.parametrize("words", lines(READ), ids=shlex.join)
def test_plain_lines_are_read(words):
    found = read(words)
    assert found is not None
    assert {name: value for name, value in vars(found).items() if name in by_argparse(words)} == by_argparse(words)


@pytest.mark.parametrize("words", lines(LEFT), ids=shlex.join)
def test_other_lines_are_left_to_argparse(words):
    assert read(words) is None


def random_words(random_, name):
    """Return a command line of a command: options and arguments, most of them right."""
    names = [word for word in parser_for(name)._option_string_actions if word not in ("-h", "--help")] or ["-x"]
    words = []
    for _ in range(random_.randrange(4)):
        word = random_.choice(names)
        value = random_.choice(["a", "1", "", "a=b", "missing", "a b", "-", "-1", "--", "-q"])
        words += random_.choice([[word], [word, value], [f"{word}={value}"], [word + value]])
    for _ in range(random_.randrange(4)):
        words.insert(random_.randrange(len(words) + 1), random_.choice(["x", "y", "", "-", "--"]))
    return [name, *words]


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_random_lines_have_the_values_of_argparse(name, capsys):
    random_ = random.Random(name)
    found = 0
    for _ in range(300):
        words = random_words(random_, name)
        if (options := read(words)) is None:
            continue
        found += 1
        try:
            expected = by_argparse(words)
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: argparse refuses it: {capsys.readouterr().err}")
        assert {each: vars(options).get(each, "missing") for each in expected} == expected, shlex.join(words)
    assert found or read([name]) is None

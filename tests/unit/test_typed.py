"""Classes that ``containerkit.typed`` makes when a program runs are those that ``typing`` would make."""

import pickle
import subprocess
import sys
import typing

import pytest

from containerkit import CompletedProcess, Process, Timings, typed


class Ours(typed.NamedTuple):
    """A tuple."""

    first: "int"
    second: "str" = "x"

    def both(self):
        return f"{self.first}{self.second}"

    @property
    def double(self):
        return self.first * 2


class Theirs(typing.NamedTuple):
    """A tuple."""

    first: "int"
    second: "str" = "x"

    def both(self):
        return f"{self.first}{self.second}"

    @property
    def double(self):
        return self.first * 2


def test_named_tuples_are_those_of_typing():
    ours, theirs = Ours(1), Theirs(1)
    assert ours == theirs == (1, "x")
    assert repr(ours).replace("Ours", "Theirs") == repr(theirs)
    assert (ours.both(), ours.double) == (theirs.both(), theirs.double) == ("1x", 2)
    assert ours._replace(second="y") == Ours(first=1, second="y")
    assert pickle.loads(pickle.dumps(ours)) == ours
    for name in ("__doc__", "_fields", "_field_defaults", "__match_args__", "__bases__", "__module__", "__slots__"):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert Ours.__qualname__ == "Ours"
    assert typing.get_type_hints(Ours) == typing.get_type_hints(Theirs)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'first'"):
        Ours()


def test_a_field_without_a_default_can_not_follow_one_with_a_default():
    with pytest.raises(TypeError, match="without a default"):

        class _Wrong(typed.NamedTuple):
            first: int = 1
            second: int


def test_public_classes_take_types_when_a_program_runs():
    assert typing.get_args(CompletedProcess[str]) == typing.get_args(Process[str]) == (str,)
    assert typing.get_origin(CompletedProcess[str]) is CompletedProcess
    assert Timings.__mro__ == (Timings, tuple, object)


def test_a_start_imports_neither_typing_nor_re():
    program = (
        "import sys; before = set(sys.modules); from containerkit import Container, RootFS, run; run(['true'])\n"
        "with Container() as c: c.run(['true'])\n"
        "print(sorted({'typing', 're', 'inspect', 'dataclasses', 'attr'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

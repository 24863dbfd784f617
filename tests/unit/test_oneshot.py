"""What ``run`` keeps of its arguments."""

import pytest

from containerkit import Mount, Namespaces, NetworkPool, RootFS, SpecError, oneshot
from containerkit.command import Command
from containerkit.invocation import Recall


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(oneshot, "_recipes", Recall())


def _recipe(arguments):
    return oneshot._recipes.get(arguments, oneshot.Recipe.of, oneshot._is_lasting)


def test_recipe_is_kept_for_the_same_arguments():
    first = _recipe({"cwd": "/tmp", "rootfs": RootFS.host(readonly=True)})
    assert first is _recipe({"cwd": "/tmp", "rootfs": RootFS.host(readonly=True)})
    assert first is not _recipe({"cwd": "/", "rootfs": RootFS.host(readonly=True)})


def test_recipe_tells_numbers_from_truths():
    _recipe({"umask": 1})
    with pytest.raises(SpecError, match="umask"):
        _recipe({"umask": True})


@pytest.mark.parametrize(
    "arguments",
    [{"env": {"A": "1"}}, {"mounts": [Mount.tmpfs("/tmp")]}, {"masked_paths": ()}, {"masked_paths": ("/proc/kcore",)}],
)
def test_recipe_is_kept_of_what_holds_values(arguments):
    assert _recipe(arguments) is _recipe({name: type(value)(value) for name, value in arguments.items()})


@pytest.mark.parametrize("arguments", [{"groups": (1,)}, {"env": {"A": b"1"}}, {"namespaces": Namespaces(network=1)}])
def test_recipe_is_not_kept_where_something_could_change(arguments):
    assert _recipe(arguments) is not _recipe(arguments)


def test_recipes_are_bounded():
    for number in range(200):
        _recipe({"hostname": f"h{number}"})
    assert len(oneshot._recipes) == 64


def test_recipe_of_a_pool_is_kept(request):
    try:
        pool = NetworkPool(1)
    except OSError as error:
        pytest.skip(str(error))
    with pool:
        assert _recipe({"namespaces": Namespaces(network=pool)}) is _recipe({"namespaces": Namespaces(network=pool)})


def test_command_with_other_words_is_the_same_otherwise():
    one = Command(argv=["a", "b"], cwd="/tmp", env={"A": "1"}, umask=0o77)
    other = one.with_argv(["c"])
    assert Command(argv=["c"], cwd="/tmp", env={"A": "1"}, umask=0o77) == other
    assert ((b"a", b"b"), (b"c",)) == (one.argv, other.argv)
    with pytest.raises(SpecError, match="at least one word"):
        one.with_argv([])

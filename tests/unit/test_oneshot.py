"""What ``run`` keeps of its arguments."""

import pytest

from containerkit import Mount, Namespaces, NetworkPool, RootFS, SpecError, oneshot
from containerkit.command import Command
from containerkit.invocation import Recall


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(oneshot, "_recipes", Recall())


def test_recipe_is_kept_for_the_same_arguments():
    first = oneshot._recipe({"cwd": "/tmp", "rootfs": RootFS.host(readonly=True)})
    assert first is oneshot._recipe({"cwd": "/tmp", "rootfs": RootFS.host(readonly=True)})
    assert first is not oneshot._recipe({"cwd": "/", "rootfs": RootFS.host(readonly=True)})


def test_recipe_tells_numbers_from_truths():
    oneshot._recipe({"umask": 1})
    with pytest.raises(SpecError, match="umask"):
        oneshot._recipe({"umask": True})


@pytest.mark.parametrize(
    "arguments",
    [{"env": {"A": "1"}}, {"mounts": [Mount.tmpfs("/tmp")]}, {"masked_paths": ()}, {"masked_paths": ("/proc/kcore",)}],
)
def test_recipe_is_kept_of_what_holds_values(arguments):
    assert oneshot._recipe(arguments) is oneshot._recipe(
        {name: type(value)(value) for name, value in arguments.items()}
    )


@pytest.mark.parametrize("arguments", [{"groups": (1,)}, {"env": {"A": b"1"}}, {"namespaces": Namespaces(network=1)}])
def test_recipe_is_not_kept_where_something_could_change(arguments):
    assert oneshot._recipe(arguments) is not oneshot._recipe(arguments)


def test_recipes_are_bounded():
    for number in range(200):
        oneshot._recipe({"hostname": f"h{number}"})
    assert len(oneshot._recipes) == 64


def test_recipe_of_a_pool_is_kept(request):
    try:
        pool = NetworkPool(1)
    except OSError as error:
        pytest.skip(str(error))
    with pool:
        assert oneshot._recipe({"namespaces": Namespaces(network=pool)}) is oneshot._recipe(
            {"namespaces": Namespaces(network=pool)}
        )


def test_command_with_other_words_is_the_same_otherwise():
    one = Command(argv=["a", "b"], cwd="/tmp", env={"A": "1"}, umask=0o77)
    other = one.with_argv(["c"])
    assert Command(argv=["c"], cwd="/tmp", env={"A": "1"}, umask=0o77) == other
    assert ((b"a", b"b"), (b"c",)) == (one.argv, other.argv)
    with pytest.raises(SpecError, match="at least one word"):
        one.with_argv([])

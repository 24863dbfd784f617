"""Which arguments of ``run`` are cached."""

import pytest

from containerkit import Mount, Namespaces, NetworkPool, RootFS, SpecError
from containerkit.container import run as oneshot
from containerkit.container.captured import ArgumentCache
from containerkit.spec.command import Command


@pytest.fixture(autouse=True)
def _nothing_kept(monkeypatch):
    monkeypatch.setattr(oneshot, "recipes", ArgumentCache())


def test_recipe_is_kept_for_the_same_arguments():
    first = oneshot.recipe_of_run({"cwd": "/tmp", "rootfs": RootFS.host(readonly=True)})
    assert first is oneshot.recipe_of_run({"cwd": "/tmp", "rootfs": RootFS.host(readonly=True)})
    assert first is not oneshot.recipe_of_run({"cwd": "/", "rootfs": RootFS.host(readonly=True)})


def test_recipe_distinguishes_numbers_from_booleans():
    oneshot.recipe_of_run({"umask": 1})
    with pytest.raises(SpecError, match="umask"):
        oneshot.recipe_of_run({"umask": True})


@pytest.mark.parametrize(
    "arguments",
    [{"env": {"A": "1"}}, {"mounts": [Mount.tmpfs("/tmp")]}, {"masked_paths": ()}, {"masked_paths": ("/proc/kcore",)}],
)
def test_recipe_of_immutable_values_is_kept(arguments):
    assert oneshot.recipe_of_run(arguments) is oneshot.recipe_of_run(
        {name: type(value)(value) for name, value in arguments.items()}
    )


@pytest.mark.parametrize("arguments", [{"groups": (1,)}, {"env": {"A": b"1"}}, {"namespaces": Namespaces(network=1)}])
def test_recipe_of_mutable_values_is_not_kept(arguments):
    assert oneshot.recipe_of_run(arguments) is not oneshot.recipe_of_run(arguments)


def test_recipes_are_bounded():
    for number in range(200):
        oneshot.recipe_of_run({"hostname": f"h{number}"})
    assert len(oneshot.recipes) == 64


def test_recipe_of_a_pool_is_kept(request):
    try:
        pool = NetworkPool(1)
    except OSError as error:
        pytest.skip(str(error))
    with pool:
        assert oneshot.recipe_of_run({"namespaces": Namespaces(network=pool)}) is oneshot.recipe_of_run(
            {"namespaces": Namespaces(network=pool)}
        )


def test_command_with_another_argv_is_otherwise_equal():
    one = Command(argv=["a", "b"], cwd="/tmp", env={"A": "1"}, umask=0o77)
    other = one.with_argv(["c"])
    assert Command(argv=["c"], cwd="/tmp", env={"A": "1"}, umask=0o77) == other
    assert ((b"a", b"b"), (b"c",)) == (one.argv, other.argv)
    with pytest.raises(SpecError, match="at least one argument"):
        one.with_argv([])

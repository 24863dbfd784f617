import pytest

from containerkit import RootFS
from containerkit.container.arguments import describe, has_names, unresolved_user, with_defaults
from containerkit.errors import SpecError
from containerkit.spec.command import DEFAULT_ENVIRONMENT, User
from containerkit.spec.container import Spec

IMAGE = RootFS(
    kind="overlay", lowers=("/lower",), defaults=(("env", (("A", "1"), ("B", "2"))), ("cwd", "/srv"), ("user", "web"))
)


def test_defaults_are_none_unless_a_root_has_them():
    for root in (RootFS.host(), RootFS.dir("/x"), RootFS.tmpfs(), RootFS.overlay("/x"), RootFS.image("x")):
        assert () == root.defaults
        assert {"cwd": "/y"} == with_defaults(root, {"cwd": "/y"})


def test_defaults_replace_missing_arguments():
    env = {"PATH": DEFAULT_ENVIRONMENT["PATH"], "HOME": "/", "A": "1", "B": "2"}
    assert {"env": env, "cwd": "/srv", "user": "web"} == with_defaults(IMAGE, {})
    assert {"env": env, "cwd": "/srv", "user": "web"} == with_defaults(IMAGE, {"env": None, "cwd": None})


def test_home_is_that_of_the_user_who_was_found_unless_the_image_sets_one():
    made = with_defaults(IMAGE, {}, (User(5, 6), "/home/web"))
    assert ("/home/web", User(5, 6)) == (made["env"]["HOME"], made["user"])
    own = RootFS(kind="overlay", lowers=("/lower",), defaults=(("env", (("HOME", "/own"),)),))
    assert "/own" == with_defaults(own, {}, (User(5, 6), "/home/web"))["env"]["HOME"]


def test_defaults_are_replaced_as_a_whole():
    given = {"env": {"C": "3"}, "cwd": "/", "user": 0, "seccomp": None}
    assert given == with_defaults(IMAGE, given)
    assert {} == with_defaults(IMAGE, {"env": {}})["env"]


def test_defaults_do_not_change_their_arguments():
    given = {"nice": 3}
    with_defaults(IMAGE, given)
    assert {"nice": 3} == given


def test_defaults_of_a_root_are_checked():
    with pytest.raises(SpecError, match="unknown default of commands 'umask'"):
        RootFS(kind="tmpfs", defaults=(("umask", 0),))


@pytest.mark.parametrize(
    ("default", "given", "expected"),
    [
        (None, None, None),
        (None, "5", None),
        (None, "5:6", None),
        (None, 5, None),
        (None, "web", "web"),
        (None, "5:web", "5:web"),
        ("web", None, "web"),
        ("web", "0", None),
        ("web", User(3), None),
        ("70", None, "70"),
        ("70:71", None, None),
        ("70:log", None, "70:log"),
    ],
)
def test_names_and_bare_ids_of_images_are_looked_up_inside(default, given, expected):
    root = RootFS(kind="tmpfs", defaults=() if default is None else (("user", default),))
    assert expected == unresolved_user(root, {"user": given})
    assert (expected is not None) == has_names(root, {"user": given})


def test_names_of_groups_are_looked_up_inside():
    assert has_names(RootFS.host(), {"groups": ["audio"]})
    assert not has_names(RootFS.host(), {"groups": [29]})
    assert not has_names(RootFS.host(), {})


def test_describe_takes_none_for_the_default():
    command = describe(Spec(), ["true"], {"env": None, "cwd": None, "user": None})
    assert (tuple(DEFAULT_ENVIRONMENT.items()), "/", User()) == (command.env, command.cwd, command.user)

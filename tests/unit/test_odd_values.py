"""Any value for an argument is either accepted, or refused with a SpecError."""

import inspect
import os
import pathlib

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containerkit import (
    Command,
    Container,
    IdMapping,
    Limits,
    Mount,
    Namespaces,
    RootFS,
    SpecError,
    TimeOffsets,
    User,
    popen,
    run,
)
from containerkit.spec import container as specs
from containerkit.spec.rootfs import Volume


def lookalike(name, *fields):
    """An instance of a different class with the same name, as in two libraries."""
    return attrs.make_class(name, list(fields))()


class Refuses:
    """An object that claims to be a path, number, list and mapping, and fails when used as one."""

    def __fspath__(self):
        return 7

    def __iter__(self):
        raise TypeError("no")

    def items(self):
        return [1, 2]


ODD = (
    None, True, False, 0, 1, -1, 7, 2**31, 2**32, 2**63, 2**64, 10**30, 0.5, -0.0, float("nan"), float("inf"), 1j,
    "", "x", "/", "/x", "..", "/../x", "/x/../y", "\0", "/x\0y", "\ud800", "/\ud800", "\udcff", "/\udcff", "x" * 70_000,
    "/" + "x" * 70_000, "\n", "\u00e9\u4e2d", "1:2:3", "0:\ud800", "64M", "99999999999999999999T", "\u0663", "\u00b2M",
    b"", b"x", b"/x", b"\xff\0", bytearray(b"x"), memoryview(b"x"),
    (), (1,), ("x",), ("/x",), (None,), ("\ud800",), ("a\0",), (1, 2), (1, 2, 3), ((1, 2),), (("a", "b"),),
    [], [1], ["x"], ["\ud800"], [b"\xff"], [[]], [{}], [True], [2**70], [-5], [object()],
    {}, {"x": 1}, {1: 2}, {"x": "y"}, {"\ud800": "x"}, {"x": "\ud800"}, {"x": "a\0b"}, {"a\0": "b"}, {"": ""}, {"a=b": "c"},
    {"nofile": "x"}, {"nofile": (1, 2, 3)}, {"nofile": 2**70}, {"net.x": object()}, {(): ()}, {"x": None}, {None: "x"},
    {"kernel.shm\ud800": "1"}, {"net.ipv4.ip_forward": "\ud800"},
    set(), {1}, {"x"}, frozenset({"x"}), range(3), iter([]), (item for item in "ab"), object(), object, int, print, ...,
    NotImplemented, pathlib.Path("/x"), pathlib.PurePath("\ud800"), Refuses(), Refuses,
    lookalike("Limits"), lookalike("Seccomp"), lookalike("Landlock"), lookalike("RootFS"), lookalike("Mount"),
    lookalike("NetworkPool"), lookalike("Capabilities"), lookalike("User"), lookalike("IdMapping"),
    Limits, RootFS, Mount, Limits(), RootFS.host(), Mount.proc(), IdMapping(0, 1), Namespaces(), User(1), SpecError("x"),
)  # fmt: skip


def fields_of(cls):
    return [field.alias for field in attrs.fields(cls) if field.init]


def arguments_of(function):
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, one in inspect.signature(function).parameters.items() if one.kind in kinds]


def container(**fields):
    return Container(**fields)


def plan(**fields):
    from containerkit.compile.facts import Host, Mode
    from containerkit.compile.start import start_plan

    spec = specs.build(fields)
    start_plan(spec, Host(privileged=True, programs=("usr",), directories=(True,) * 9), Mode(command=None)).encode()


def command(**fields):
    made = Command(**{"argv": ["true"], **fields})
    return hash((tuple(made.envp), made.candidates, tuple(made.words), made))


MAKERS = {
    "Container": (container, sorted(specs.DESCRIPTION), {}),
    "plan": (plan, sorted({"rootfs", "mounts", "namespaces", "hostname", "domainname", "sysctls", "masked_paths"}), {}),
    "Command": (command, fields_of(Command), {}),
    "Limits": (Limits, fields_of(Limits), {}),
    "Namespaces": (Namespaces, fields_of(Namespaces), {}),
    "TimeOffsets": (TimeOffsets, fields_of(TimeOffsets), {}),
    "IdMapping": (IdMapping, fields_of(IdMapping), {"inside": 0, "outside": 0}),
    "User": (User, fields_of(User), {}),
    "User.parse": (User.parse, ["text"], {}),
    "Volume": (Volume, fields_of(Volume), {"target": "/x"}),
    "Mount": (Mount, fields_of(Mount), {"target": "/x", "source": "/y"}),
    "Mount.bind": (
        Mount.bind,
        [*arguments_of(Mount.bind), "idmap", "nosuid", "create"],
        {"source": "/y", "target": "/x"},
    ),
    "Mount.tmpfs": (Mount.tmpfs, [*arguments_of(Mount.tmpfs), "noexec"], {"target": "/x"}),
    "Mount.overlay": (
        lambda lower="/l", **fields: Mount.overlay(fields.pop("target"), lower, **fields),
        ["lower", "target", "upper", "work"],
        {"target": "/x", "upper": "/u", "work": "/w"},
    ),
    "Mount.proc": (Mount.proc, arguments_of(Mount.proc), {}),
    "Mount.cgroup": (Mount.cgroup, arguments_of(Mount.cgroup), {}),
    "Mount.from_mapping": (Mount.from_mapping, ["values"], {}),
    "RootFS": (RootFS, fields_of(RootFS), {"kind": "dir", "lowers": ("/x",)}),
    "RootFS.host": (RootFS.host, arguments_of(RootFS.host), {}),
    "RootFS.dir": (RootFS.dir, arguments_of(RootFS.dir), {"path": "/x"}),
    "RootFS.overlay": (
        lambda lower="/l", **fields: RootFS.overlay(lower, **fields),
        ["lower", *arguments_of(RootFS.overlay)],
        {},
    ),
    "RootFS.tmpfs": (RootFS.tmpfs, arguments_of(RootFS.tmpfs), {}),
    "RootFS.image": (RootFS.image, ["reference", "pull", "store"], {"reference": "x"}),
    "RootFS.template": (RootFS.template, ["name", "programs"], {"name": "x"}),
}


HOLD_ANYTHING = {("RootFS.image", "pull"), ("RootFS.image", "store"), ("RootFS.template", "programs")} | {
    ("RootFS", name) for name in ("arguments", "defaults")
}
"""Arguments of a provider, which can't be checked here."""


@pytest.mark.parametrize(
    ("maker", "argument"), [(name, argument) for name, (_, arguments, _) in MAKERS.items() for argument in arguments]
)
def test_odd_value_is_accepted_or_refused(maker, argument):
    make, _, needed = MAKERS[maker]
    wrong = []
    for value in ODD:
        try:
            made = make(**{**needed, argument: value})
            if (maker, argument) not in HOLD_ANYTHING:
                hash(made)
        except SpecError as error:
            if not str(error):
                wrong.append(f"{value!r:.60}: an error without a word")
        except Exception as error:  # noqa: BLE001 - any exception is what the test looks for
            wrong.append(f"{value!r:.60}: {error!r:.120}")
    assert wrong == []


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([(name, argument) for name, (_, arguments, _) in MAKERS.items() for argument in arguments]),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(st.characters(), max_size=9)
        | st.binary(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.tuples(inner, inner)
            | st.dictionaries(st.text(st.characters(), max_size=9) | st.integers(), inner, max_size=3)
        ),
        max_leaves=5,
    ),
)
def test_random_value_is_accepted_or_refused(where, value):
    make, _, needed = MAKERS[where[0]]
    try:
        make(**{**needed, where[1]: value})
    except SpecError:
        return


@pytest.mark.parametrize("text", ["\udcff", "a\udc80b"])
def test_undecodable_bytes_are_accepted_by_surrogateescape(text):
    made = Command(argv=["x", text], env={"A": text}, cwd=f"/{text}")
    assert made.argv[1] == os.fsencode(text)
    assert made.envp == [b"A=" + os.fsencode(text)]
    assert Mount.bind(f"/{text}", f"/{text}").source == f"/{text}"


@pytest.mark.parametrize(
    "fields",
    [{"argv": ["\ud800"]}, {"env": {"\ud800": "x"}}, {"env": {"x": "\ud800"}}, {"cwd": "/\ud800"}, {"env": {"a": "\0"}},
     {"env": {"a\0": "b"}}],
)  # fmt: skip
def test_unencodable_text_is_refused_by_name(fields):
    with pytest.raises(SpecError, match=r"surrogate|NUL|U\+D800") as caught:
        Command(**{"argv": ["x"], **fields})
    str(caught.value).encode("utf-8", "backslashreplace")


def test_limits_of_another_class_of_that_name_are_refused():
    from containerkit.image import UnpackLimits

    with pytest.raises(SpecError, match="limits"):
        Container(limits=UnpackLimits())


@pytest.mark.parametrize("name", ["mounts", "devices", "publish", "groups", "pass_fds"])
def test_mapping_is_no_list(name):
    with pytest.raises(SpecError, match=f"{name}: must be a list"):
        popen(["true"], network="internet", **{name: {80: 8080}})


def test_mapping_is_no_command():
    with pytest.raises(SpecError, match=r"command: must be a list of strings, not \{'true': 1\}$"):
        run({"true": 1})

"""Each public constructor and method of the security package accepts or refuses arguments of the wrong type."""

import os
from contextlib import suppress

import attrs
import pytest
from examples import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from containerkit import Capabilities, Condition, Landlock, Sandbox, Seccomp
from containerkit.errors import SpecError
from containerkit.security.confinement import Confinement
from containerkit.security.landlock import PathRule, PortRule
from containerkit.security.listener import Fail, Inject, Listener, Return
from containerkit.security.lsm import AppArmor, SELinux
from containerkit.security.notify import Supervisor
from containerkit.security.personality import Personality
from containerkit.security.record import Recorder, profile, record
from containerkit.security.seccomp import Action, Rule


class Pretender:
    """An object that pretends to be of another class."""


def pretender(name):
    return type(name, (Pretender,), {})()


class Awkward:
    """An object that can't be compared, and has no length, truth value or hash."""

    __hash__ = None

    def __eq__(self, other):
        raise TypeError("not comparable")

    def __bool__(self):
        raise TypeError("neither true nor false")


STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.sampled_from([int, 1j, os.PathLike, Awkward(), *map(pretender, ("Seccomp", "Landlock", "Capabilities"))]),
    st.lists(st.one_of(st.none(), st.integers(), st.text(max_size=3), st.binary(max_size=3)), max_size=2),
    st.lists(st.lists(st.integers(), max_size=1), min_size=1, max_size=2),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


FEW = settings(max_examples=examples(ci=25, nightly=300))


def fields_of(cls):
    return [field.name for field in attrs.fields(cls) if field.init]


CLASSES = {
    Action: {"kind": "errno"},
    AppArmor: {"profile": "unconfined"},
    Capabilities: {},
    Condition: {"argument": 0},
    Confinement: {},
    Fail: {},
    Inject: {"descriptor": 0},
    Landlock: {},
    PathRule: {"path": "/", "rights": ["execute"]},
    Personality: {},
    PortRule: {"port": 1, "rights": ["bind_tcp"]},
    Return: {},
    Rule: {"names": ["read"], "action": Action.errno()},
    SELinux: {"label": "a:b:c"},
    Sandbox: {},
    Seccomp: {"default_action": Action.errno()},
}
FIELDS = [(cls, name) for cls in CLASSES for name in fields_of(cls)]

CAPABILITIES, FILTER, RULES = Capabilities.docker(), Seccomp.permissive(), Landlock()
METHODS = {
    "Action.errno": Action.errno,
    "Action.trace": Action.trace,
    "Capabilities.add": CAPABILITIES.add,
    "Capabilities.add ambient": lambda value: CAPABILITIES.add("KILL", ambient=value),
    "Capabilities.all": Capabilities.all,
    "Capabilities.drop": CAPABILITIES.drop,
    "Capabilities.from_masks": lambda value: Capabilities.from_masks(bounding=value, permitted=value),
    "Capabilities.mask": CAPABILITIES.mask,
    "Capabilities.of": Capabilities.of,
    "Landlock.allow": lambda value: RULES.allow("/", rights=value),
    "Landlock.allow optional": lambda value: RULES.allow("/", rights=["execute"], optional=value),
    "Landlock.allow_bind": RULES.allow_bind,
    "Landlock.allow_connect": RULES.allow_connect,
    "Landlock.allow_execute": RULES.allow_execute,
    "Landlock.allow_read": RULES.allow_read,
    "Landlock.allow_write": RULES.allow_write,
    "Landlock.operations": RULES.operations,
    "Landlock.report": RULES.report,
    "Personality.flags": lambda value: Personality(flags=value),
    "Recorder": Recorder,
    "Sandbox.operations": Sandbox(landlock=attrs.evolve(RULES, strict=False)).operations,
    "Sandbox.report": lambda value: Sandbox().report(value),
    "Seccomp.allow": FILTER.allow,
    "Seccomp.allow when": lambda value: FILTER.allow("read", when=value),
    "Seccomp.default": Seccomp.default,
    "Seccomp.deny": FILTER.deny,
    "Seccomp.deny errno": lambda value: FILTER.deny("read", errno=value),
    "Seccomp.from_oci": Seccomp.from_oci,
    "Seccomp.from_oci capabilities": lambda value: Seccomp.from_oci({"defaultAction": "SCMP_ACT_ALLOW"}, capabilities=value),
    "Seccomp.from_oci kernel": lambda value: Seccomp.from_oci({"defaultAction": "SCMP_ACT_ALLOW"}, kernel=value),
    "Seccomp.from_oci machine": lambda value: Seccomp.from_oci({"defaultAction": "SCMP_ACT_ALLOW"}, machine=value),
    "Seccomp.kill": FILTER.kill,
    "Seccomp.log": FILTER.log,
    "Seccomp.notify": FILTER.notify,
    "Seccomp.operations": lambda value: FILTER.operations(available=value),
    "Seccomp.program": FILTER.program,
    "Seccomp.to_oci": FILTER.to_oci,
    "profile": profile,
    "profile log": lambda value: profile(["read"], log=value),
}  # fmt: skip


def refused_or_taken(call, *args, **fields):
    """Any error but SpecError fails the test, except UnsupportedError for a feature that the kernel lacks."""
    from containerkit.errors import UnsupportedError

    with suppress(SpecError, UnsupportedError):
        call(*args, **fields)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=[f"{cls.__name__}.{name}" for cls, name in FIELDS])
@FEW
@given(value=STRANGE)
def test_constructor_refuses_or_takes(cls, name, value):
    refused_or_taken(cls, **{**CLASSES[cls], name: value})


@pytest.mark.parametrize("name", METHODS)
@FEW
@given(value=STRANGE)
@example(value="x")
@example(value=5)
def test_method_refuses_or_takes(name, value):
    refused_or_taken(METHODS[name], value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: Capabilities.of(5),
        lambda: Capabilities.of("KILL", ambient="yes"),
        lambda: Capabilities(bounding=5),
        lambda: Capabilities.all(1.5),
        lambda: CAPABILITIES.mask("all"),
        lambda: Landlock().allow_bind("x"),
        lambda: Landlock().allow_connect(True),
        lambda: Landlock().allow_read(b"/usr"),
        lambda: Landlock(path_rules=["/usr"]),
        lambda: Landlock(strict="yes"),
        lambda: Landlock().apply(this_thread_only=0),
        lambda: Sandbox(landlock=pretender("Landlock")),
        lambda: Sandbox(seccomp=pretender("Seccomp")),
        lambda: Sandbox(set_id_bits=None),
        lambda: Sandbox(other_processes=1),
        lambda: Sandbox().apply(this_thread_only=None),
        lambda: Confinement(seccomp=pretender("Seccomp")),
        lambda: Confinement(landlock=pretender("Landlock")),
        lambda: Confinement(capabilities=pretender("Capabilities")),
        lambda: Confinement(no_new_privs=0),
        lambda: Confinement(set_id_bits=1),
        lambda: Confinement(oom_score_adj=True),
        lambda: Confinement(keyring=["new"]),
        lambda: Seccomp(default_action="allow"),
        lambda: Seccomp.permissive().deny("read", errno=None),
        lambda: Seccomp.permissive().allow("read", when=[5]),
        lambda: Rule(names=[5], action=Action.errno()),
        lambda: Rule(names=["read"], action="allow"),
        lambda: Inject(descriptor="x"),
        lambda: Fail("EPERM"),
        lambda: AppArmor(5),
        lambda: SELinux(None),
        lambda: Personality(8),
    ],
)  # fmt: skip
def test_wrong_type_is_refused(call):
    with pytest.raises(SpecError):
        call()


@pytest.mark.parametrize("value", ["x", None, -2, 1.5, True])
def test_owners_of_a_descriptor_refuse_invalid_numbers(value):
    for call in (Listener, lambda fd: Supervisor(fd, print), lambda fd: record(fd, "x86_64")):
        with pytest.raises(SpecError):
            call(value)


def test_supervisor_refuses_an_uncallable_handler():
    with pytest.raises(SpecError):
        Supervisor(0, "handler")


def test_subclass_is_of_its_class():
    class Own(Seccomp):
        pass

    own = Own(default_action=Action.errno())
    assert own is Confinement(seccomp=own).seccomp


def test_profile_that_is_too_deep_is_refused(tmp_path):
    (tmp_path / "deep.json").write_text('{"a":' * 100_000)
    with pytest.raises(SpecError):
        Seccomp.from_oci(tmp_path / "deep.json")

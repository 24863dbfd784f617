"""Classes that ``containerkit.values`` makes are those that attrs would make."""

import copy
import inspect
import pickle
import subprocess
import sys
import weakref

import attrs
import pytest

from containerkit import (
    Capabilities,
    Command,
    IdMapping,
    Limits,
    Mount,
    Namespace,
    Namespaces,
    RootFS,
    TimeOffsets,
    User,
    values,
)
from containerkit.detached.settings import Keeping
from containerkit.process.result import CompletedProcess, Usage
from containerkit.security.confinement import Confinement
from containerkit.spec.container import Spec
from containerkit.spec.rootfs import Volume

VALUES = [
    Capabilities.none(),
    Command(argv=["true"], cwd="/tmp", umask=0o77),
    CompletedProcess(args=["true"], returncode=3, stdout=b"x"),
    Confinement(no_new_privs=True),
    IdMapping(0, 1000, 5),
    Keeping(name="one", labels={"a": "b"}),
    Limits(memory="1M", hugetlb={"2MB": "4M"}),
    Mount.tmpfs("/tmp", size="1M"),
    Namespaces(network="host"),
    RootFS.tmpfs(size="1M"),
    Spec(hostname="other", mounts=[Mount.tmpfs("/tmp")]),
    TimeOffsets(monotonic_s=2.5),
    Usage(user_us=3),
    User(1, 2, (3,)),
    Volume(target="/data"),
]
CLASSES = [type(value) for value in VALUES]


def twin(cls):
    """Return the class that attrs makes of the same fields, with the same methods."""
    fields = cls.__containerkit_fields__
    own = {name: value for name, value in cls.__dict__.items() if name in {"__attrs_post_init__", "__bool__"}}
    if cls.__repr__.__qualname__ == f"{cls.__qualname__}.__repr__":
        own["__repr__"] = cls.__repr__
    body = {each.name: each.to_attrs() for each in fields}
    body |= own | {
        "__annotations__": cls.__annotations__,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
    }
    return attrs.frozen(type(cls.__name__, (), body), kw_only=not cls.__match_args__)


def plain(value):
    return {each.name: getattr(value, each.name) for each in type(value).__containerkit_fields__}


def hashed(value):
    """Return the hash of a value, or the error, for instance of a list in it."""
    try:
        return hash(value)
    except TypeError as error:
        return str(error)


@pytest.mark.parametrize("cls", [*CLASSES, Namespace], ids=lambda cls: cls.__name__)
def test_value_class_has_the_fields_and_the_signature_that_attrs_would_give_it(cls):
    expected = twin(cls) if cls is not Namespace else None
    assert attrs.has(cls)
    assert [each.name for each in attrs.fields(cls)] == [each.name for each in cls.__containerkit_fields__]
    if expected is not None:
        assert attrs.fields(cls) == attrs.fields(expected)
        assert cls.__match_args__ == expected.__match_args__
        given, wanted = inspect.signature(cls).parameters, inspect.signature(expected).parameters
        assert [(each.name, each.kind, each.annotation) for each in given.values()] == [
            (each.name, each.kind, each.annotation) for each in wanted.values()
        ]
        assert [repr(each.default) for each in given.values()] == [repr(each.default) for each in wanted.values()]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_is_shown_compared_and_copied_as_one_of_attrs(value):
    same = twin(type(value))
    other = object.__new__(same)
    for name, each in plain(value).items():
        object.__setattr__(other, name, each)
    assert repr(value) == repr(other)
    assert attrs.asdict(value, recurse=False) == plain(value) == attrs.asdict(other, recurse=False)
    evolved = value if isinstance(value, Command) else attrs.evolve(value)  # its converters do not take what they made
    for equal in (copy.copy(value), copy.deepcopy(value), pickle.loads(pickle.dumps(value)), evolved):
        assert equal == value
        assert hashed(value) == hashed(equal)
        assert plain(equal) == plain(value)
    assert value != other
    assert value != plain(value)
    assert value.__eq__(other) is NotImplemented


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_value_can_not_be_changed(value):
    name = next(iter(plain(value)))
    for change in (lambda: setattr(value, name, 1), lambda: delattr(value, name), lambda: setattr(value, "new", 1)):
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            change()
    if type(value) is not Command:
        assert not hasattr(value, "__dict__")
    assert weakref.ref(value)() is value


def test_evolve_gives_what_attrs_gives_and_takes_its_values_too():
    mount = Mount.tmpfs("/tmp")
    assert values.evolve(mount, readonly=True) == attrs.evolve(mount, readonly=True) != mount

    @attrs.frozen
    class Other:
        number: int = 1

    assert values.evolve(Other(), number=2) == Other(2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'number'"):
        values.evolve(mount, number=2)


def test_defaults_factories_converters_and_validators_run_in_the_order_of_attrs():
    def make(frozen, field):
        order = []

        def check(_instance, attribute, value):
            order.append((attribute.name, value))

        class Made:
            first: int = field(converter=lambda value: order.append(value) or int(value), validator=check)
            second: list = field(factory=list, converter=tuple, validator=check)
            _third: str = "x"
            fourth: int = field(default="4", init=False, converter=int)

            def __attrs_post_init__(self):
                order.append("end")

        Made.__annotations__ = {name: str(kind) for name, kind in Made.__annotations__.items()}
        value = frozen(Made)("1", third="y")
        return order, value.first, value.second, value._third, value.fourth, Made.__qualname__

    assert make(values.frozen, values.field) == make(attrs.frozen, attrs.field)


def test_what_the_module_does_not_do_is_refused_when_the_class_is_made():
    class Base:
        pass

    class Inherits(Base):
        pass

    class Checked:
        field = values.field(converter=int)

    Checked.__annotations__ = {"field": "int"}
    with pytest.raises(TypeError, match="can't inherit"):
        values.frozen(Inherits)
    with pytest.raises(TypeError, match="need a frozen class"):
        values.define(Checked)
    with pytest.raises(TypeError, match="order"):
        values.frozen(order=True)(Base)


def test_attrs_classes_can_inherit_from_a_value_class_and_see_its_fields():
    @attrs.frozen(kw_only=True)
    class More(TimeOffsets):
        more: int = 0

    assert [each.name for each in attrs.fields(More)] == ["monotonic_s", "boottime_s", "more"]
    assert More(monotonic_s=1, more=2).monotonic_s == 1


def test_a_start_imports_neither_attrs_nor_what_only_attrs_needs():
    program = (
        "import sys; from containerkit import Container, RootFS, run; run(['true'])\n"
        "with Container() as c: c.run(['true'])\n"
        "print(sorted({'attr', 'attrs', 'inspect', 'platform'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

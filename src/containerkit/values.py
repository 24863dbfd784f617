"""Value classes that type checkers, programs and readers see as those of attrs, made without importing attrs.

Importing attrs, and making the classes of a start with it, takes longer than the start. So :func:`frozen`,
:func:`define` and :func:`field` make the same classes, with the same constructor, comparison, ``repr`` and pickles.
What programs ask attrs about such a class (``attrs.fields``, ``attrs.evolve``, ``attrs.asdict``), attrs answers, once
one asks: see :class:`_Lazy`. Only what these classes need is here; anything else is refused when the class is made. All
other classes of the package are made by attrs.
"""

from __future__ import annotations

import sys
from operator import attrgetter

TYPE_CHECKING = False  # importing typing takes long
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final, NoReturn

__all__ = ["asdict", "define", "evolve", "field", "fields_of", "frozen"]


class _Nothing:
    """The default of an argument that a factory replaces."""

    def __repr__(self) -> str:
        return "NOTHING"


_NOTHING: Final = _Nothing()
_FIELDS: Final = "__containerkit_fields__"
_set: Final = object.__setattr__


_ASKED: Final = ("default", "factory", "converter", "validator", "init", "eq", "repr", "kw_only", "metadata")


class _Field:
    """A field: the arguments of :func:`field`, and its name and type, as in ``attrs.Attribute``."""

    __slots__ = (*_ASKED, "alias", "name")

    def __init__(
        self,
        *,
        default: Any = _NOTHING,
        factory: Callable[..., Any] | None = None,
        converter: Callable[[Any], Any] | None = None,
        validator: Callable[[Any, Any, Any], None] | None = None,
        init: bool = True,
        eq: bool = True,
        repr: bool = True,  # noqa: A002 - as in attrs
        kw_only: bool = False,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.name = self.alias = ""
        self.default, self.factory, self.converter, self.validator = default, factory, converter, validator
        self.init, self.eq, self.repr, self.kw_only = init, eq, repr, kw_only
        self.metadata = metadata or {}

    def to_attrs(self) -> Any:
        """Return what attrs would have been given."""
        import attrs

        given = {name: getattr(self, name) for name in _ASKED}
        del given["default" if self.default is _NOTHING else "factory"]
        if given.get("factory", self) is None:
            del given["factory"]
        return attrs.field(**given)


class _Lazy:
    """An attribute of the class that attrs would have set, such as ``__attrs_attrs__``. attrs makes it on first use."""

    def __init__(self, name: str, owner: type, kwargs: dict[str, Any]) -> None:
        self.name, self.owner, self.kwargs = name, owner, kwargs

    def __get__(self, _instance: object, _kind: type) -> Any:
        import attrs

        fields: tuple[_Field, ...] = getattr(self.owner, _FIELDS)
        body: dict[str, Any] = {each.name: each.to_attrs() for each in fields}
        body |= {"__annotations__": self.owner.__annotations__, "__module__": self.owner.__module__}
        twin = attrs.define(type(self.owner.__name__, (), body), **self.kwargs)
        found = getattr(twin, self.name, None)
        if found is None:  # this version of attrs does not have it
            raise AttributeError(self.name)
        setattr(self.owner, self.name, found)
        return found


def _define(cls: type | None = None, **kwargs: Any) -> Any:
    """Make a class of values, as ``attrs.define`` does, of those arguments that this package uses.

    Args:
        cls: the class. It inherits from no other.
        kwargs: ``frozen``, ``slots``, ``kw_only``, ``eq``, ``repr``, ``weakref_slot``, ``cache_hash``.
    """
    return (lambda given: _built(given, **kwargs)) if cls is None else _built(cls, **kwargs)


def _frozen(cls: type | None = None, **kwargs: Any) -> Any:
    """Make a class of immutable values, as ``attrs.frozen`` does."""
    return _define(cls, frozen=True, **kwargs)


def _built(
    cls: type,
    *,
    frozen: bool = False,
    slots: bool = True,
    kw_only: bool = False,
    eq: bool = True,
    repr: bool = True,  # noqa: A002 - as in attrs
    weakref_slot: bool = True,
    cache_hash: bool = False,
) -> type:
    if any(base.__dict__.get("__slots__") != () for base in cls.__bases__ if base is not object):
        raise TypeError(f"{cls.__name__}: such a class can't inherit fields; make it with attrs")
    fields = _fields(cls, kw_only=kw_only)
    if not frozen and any(each.converter or each.validator for each in fields):
        raise TypeError(f"{cls.__name__}: converters and validators need a frozen class; make it with attrs")
    body = {name: value for name, value in cls.__dict__.items() if name not in {"__dict__", "__weakref__"}}
    for each in fields:
        body.pop(each.name, None)
    if eq:
        compared = _compared(fields, cache_hash=cache_hash)
        own_hash = "__hash__" in body  # also set, to None, by an own __eq__
        body.setdefault("__eq__", compared["__eq__"])
        if not own_hash:
            body["__hash__"] = compared["__hash__"] if frozen else None
    if repr:
        body.setdefault("__repr__", _repr_of(tuple(each.name for each in fields if each.repr)))
    if frozen:
        body |= {"__setattr__": _refuse, "__delattr__": _refuse}
    if slots:
        body |= _slotted(body, fields, weakref_slot=weakref_slot, cache_hash=cache_hash)
    body[_FIELDS] = fields
    body["__match_args__"] = tuple(each.name for each in fields if each.init and not each.kw_only)
    body["__init__"] = _constructor(cls, fields, frozen=frozen, slots=slots, then="__attrs_post_init__" in body)
    body["__replace__"] = _evolve
    made = type(cls)(cls.__name__, cls.__bases__, body)
    asked = {"frozen": frozen, "slots": slots, "kw_only": kw_only, "eq": eq, "repr": repr, "weakref_slot": weakref_slot}
    asked["cache_hash"] = cache_hash
    for name in ("__attrs_attrs__", "__attrs_props__"):
        setattr(made, name, _Lazy(name, made, asked))
    return made


def _fields(cls: type, *, kw_only: bool) -> tuple[_Field, ...]:
    found = []
    for name, kind in cls.__annotations__.items():
        if kind.startswith(("ClassVar", "Final")):
            continue
        given = cls.__dict__.get(name, _NOTHING)
        each = given if isinstance(given, _Field) else _Field(default=given)
        each.name, each.alias = name, name.lstrip("_")
        each.kw_only = each.kw_only or kw_only
        found.append(each)
    return tuple(found)


def _compared(fields: tuple[_Field, ...], *, cache_hash: bool) -> dict[str, Any]:
    wanted = [each.name for each in fields if each.eq]
    values: Callable[[Any], Any] = attrgetter(*wanted)

    def __eq__(self: Any, other: object) -> Any:  # noqa: N807 - it becomes a method
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    def __hash__(self: Any) -> int:  # noqa: N807 - it becomes a method
        return hash(values(self))

    def kept(self: Any) -> int:
        try:
            found: int = self._kept_hash
        except AttributeError:
            found = hash(values(self))
            _set(self, "_kept_hash", found)
        return found

    return {"__eq__": __eq__, "__hash__": kept if cache_hash else __hash__}


def _repr_of(shown: tuple[str, ...]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:  # noqa: N807 - it becomes a method
        name = self.__class__.__qualname__.rsplit(">.", 1)[-1]
        return f"{name}({', '.join([f'{each}={getattr(self, each, _NOTHING)!r}' for each in shown])})"

    return __repr__


def _refuse(_self: Any, *_: object) -> NoReturn:
    from attrs.exceptions import FrozenInstanceError

    raise FrozenInstanceError


def _slotted(
    body: dict[str, Any], fields: tuple[_Field, ...], *, weakref_slot: bool, cache_hash: bool
) -> dict[str, Any]:
    """Return the members of a class with slots. Cached properties have slots too, which ``__getattr__`` fills."""
    names = tuple(each.name for each in fields)
    functools = sys.modules.get("functools")
    kind = functools.cached_property if functools else ()
    cached = {name: value.func for name, value in body.items() if isinstance(value, kind)}
    for name in cached:
        del body[name]

    def __getstate__(self: Any) -> dict[str, Any]:  # noqa: N807 - it becomes a method
        return {name: getattr(self, name) for name in names}

    def __setstate__(self: Any, state: dict[str, Any]) -> None:  # noqa: N807 - it becomes a method
        for name, value in state.items():
            _set(self, name, value)

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807 - it becomes a method
        if (make := cached.get(name)) is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
        value = make(self)
        _set(self, name, value)
        return value

    more: dict[str, Any] = {"__getattr__": __getattr__} if cached else {}
    room = (*names, *cached, *(("__weakref__",) if weakref_slot else ()), *(("_kept_hash",) if cache_hash else ()))
    if "__getstate__" not in body and "__setstate__" not in body:
        more |= {"__getstate__": __getstate__, "__setstate__": __setstate__}
    return {"__slots__": room, **more}


def _constructor(cls: type, fields: tuple[_Field, ...], *, frozen: bool, slots: bool, then: bool) -> Any:
    """Compile the constructor: fields in order, each converted, then the validators, then ``__attrs_post_init__``."""
    known: dict[str, Any] = {"_NOTHING": _NOTHING, "_bound": _set.__get__}
    before: list[str] = []
    after: list[str] = []
    arguments, checks = [], []
    # No argument begins with an underscore. In the dictionary of the instance a value is stored as fast as any other.
    stored = '_d["{}"] = {}' if frozen and not slots else '_put("{}", {})' if frozen else "self.{} = {}"
    for number, each in enumerate(fields):
        value = each.alias if each.init else f"_d{number}"
        known |= {f"_d{number}": each.default, f"_f{number}": each.factory, f"_c{number}": each.converter}
        if each.factory is not None:
            made = f"_f{number}()"
            value = f"{made} if {each.alias} is _NOTHING else {each.alias}" if each.init else made
        if each.converter is not None:
            value = f"_c{number}({value})"
        if each.init:
            default = "" if each.factory is None and each.default is _NOTHING else f"=_d{number}"
            (after if each.kw_only else before).append(f"{each.alias}{default}")
        elif each.factory is None and each.default is _NOTHING:
            continue
        arguments.append(stored.format(each.name, value))
        if each.validator is not None:
            known |= {f"_v{number}": each.validator, f"_a{number}": each}
            checks.append(f"_v{number}(self, _a{number}, self.{each.name})")
    head = ", ".join(["self", *before, *(["*", *after] if after else [])])
    first = ["_put = _bound(self)" if slots else "_d = self.__dict__"] if frozen else []
    lines = [*first, *arguments, *checks]
    lines += ["self.__attrs_post_init__()"] if then else []
    exec(f"def __init__({head}):\n " + "\n ".join(lines or ["pass"]), known)  # noqa: S102 - names of fields
    made = known["__init__"]
    made.__qualname__, made.__module__ = f"{cls.__qualname__}.__init__", cls.__module__
    made.__annotations__ = dict(_types(cls, fields)) | {"return": None}
    return made


def _types(cls: type, fields: tuple[_Field, ...]) -> Iterator[tuple[str, Any]]:
    """Yield the types of the arguments. A converter takes what it is declared to take."""
    for each in fields:
        if each.init and each.converter is None:
            yield each.alias, cls.__annotations__[each.name]
        elif each.init and (code := getattr(each.converter, "__code__", None)) is not None:
            first = code.co_varnames[0]
            if first in (taken := getattr(each.converter, "__annotations__", {})):
                yield each.alias, taken[first]


def _fields_of(cls: type) -> tuple[_Field, ...]:
    """Return the fields, with ``name``, ``init`` and ``default``."""
    found: tuple[_Field, ...] = getattr(cls, _FIELDS)
    return found


def _evolve(value: Any, /, **changes: Any) -> Any:
    """Return a copy with other values in some fields, as ``attrs.evolve`` does. It takes values of attrs too."""
    fields = getattr(value, _FIELDS, None)
    if fields is None:
        import attrs

        return attrs.evolve(value, **changes)
    for each in fields:
        if each.init and each.alias not in changes:
            changes[each.alias] = getattr(value, each.name)
    return value.__class__(**changes)


def _asdict(value: Any) -> dict[str, Any]:
    """Return the fields of a value that contains no other values, as ``attrs.asdict`` does."""
    found = {each.name: getattr(value, each.name) for each in _fields_of(type(value))}
    return {name: list(each) if isinstance(each, tuple) else each for name, each in found.items()}


if TYPE_CHECKING:  # type checkers know attrs
    from attrs import asdict, define, evolve, field, frozen
    from attrs import fields as fields_of
else:
    asdict, define, evolve, field, fields_of, frozen = _asdict, _define, _evolve, _Field, _fields_of, _frozen

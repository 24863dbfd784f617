"""What classes need of ``typing`` when a program runs, without importing it: that takes longer than a start.

Type checkers see ``typing`` itself. The classes are those that ``typing`` would make. Annotations stay text.
"""

from __future__ import annotations

from types import GenericAlias

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import AnyStr, Generic, Literal, NamedTuple, Protocol, TypeVar, overload
else:
    from collections import namedtuple

    AnyStr = object

    def TypeVar(name: str, **_: object) -> str:  # noqa: N802 - as in typing
        """Return what stands for a type."""
        return name

    def overload(call: object) -> object:
        """Return a declaration, which the definition after it replaces."""
        return call

    class Generic:
        """A class that takes types: ``Process[str]``."""

        __slots__ = ()
        __class_getitem__ = classmethod(GenericAlias)

    class Literal(Generic):
        """Values, for type checkers."""

    class Protocol:
        """What a value must have, for type checkers."""

        __slots__ = ()

    class _Named(type):
        """Makes tuples with named fields of classes with annotations, as the class of ``typing`` does."""

        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, object]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, body)
            fields = tuple(body.get("__annotations__", ()))
            defaults = [body[each] for each in fields if each in body]
            if any(each not in body for each in fields[len(fields) - len(defaults) :]):
                raise TypeError(f"{name}: a field without a default follows one with a default")
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])  # noqa: PYI024 - typing is what is not imported
            for key, value in body.items():
                if key not in {"__module__", "__qualname__", "__slots__"} and key not in fields:
                    setattr(made, key, value)
            made.__qualname__ = body["__qualname__"]
            return made

    class NamedTuple(metaclass=_Named):
        """The base of tuples with named fields. They do not inherit from it."""


__all__ = ["AnyStr", "Generic", "Literal", "NamedTuple", "Protocol", "TypeVar", "overload"]

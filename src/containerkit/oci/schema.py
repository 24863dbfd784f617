"""Read JSON into typed objects: every value is checked, every error names the JSON path, unknown members are kept.

It does not use attrs and cattrs. Their import takes longer than a container's start.
"""

from __future__ import annotations

from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self

    Kind = Callable[[Any, str], Any]

__all__ = [
    "Field",
    "Model",
    "absolute",
    "any_value",
    "array",
    "boolean",
    "choice",
    "integer",
    "mapping",
    "model",
    "number",
    "text",
]

_REQUIRED = object()


class Field:
    """A member of an object.

    Args:
        attribute: the name that the value has in Python.
        kind: the function that checks and reads it.
        default: the value if the member is absent or null.
    """

    __slots__ = ("attribute", "default", "kind")

    def __init__(self, attribute: str, kind: Kind, default: object = None) -> None:
        self.attribute = attribute
        self.kind = kind
        self.default = default

    @classmethod
    def required(cls, attribute: str, kind: Kind) -> Field:
        """Return a required member."""
        return cls(attribute, kind, _REQUIRED)


class Model:
    """An object of config.json. Subclasses name their members in ``FIELDS``.

    Attributes:
        extra: the members that this version of the specification does not define.
    """

    FIELDS: ClassVar[dict[str, Field]] = {}
    extra: dict[str, Any]

    @classmethod
    def read(cls, value: object, path: str) -> Self:
        """Return the object that a JSON value describes.

        Raises:
            ConfigError: it does not describe one.
        """
        if not isinstance(value, dict):
            raise ConfigError(path, f"must be an object, not {_kind(value)}")
        found = cls()
        known = cls.FIELDS
        for name, field in known.items():
            member = value.get(name)
            where = f"{path}.{name}" if path else name
            if member is not None:
                member = field.kind(member, where)
            elif field.default is _REQUIRED:
                raise ConfigError(where, "is missing")
            else:
                member = field.default
            setattr(found, field.attribute, member)
        found.extra = {name: member for name, member in value.items() if name not in known}
        return found

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{field.attribute}={getattr(self, field.attribute, None)!r}" for field in self.FIELDS.values()
        )
        return f"{type(self).__name__}({shown})"


def _kind(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a fraction",
    }
    return names.get(type(value), "null")


def text(value: object, path: str) -> str:
    """Read a string. A NUL inside is refused, because the kernel would cut the string there."""
    if not isinstance(value, str):
        raise ConfigError(path, f"must be a string, not {_kind(value)}")
    if "\0" in value:
        raise ConfigError(path, "has a NUL character inside")
    return value


def absolute(value: object, path: str) -> str:
    """Read an absolute path."""
    found = text(value, path)
    if not found.startswith("/"):
        raise ConfigError(path, f"{found!r} must be an absolute path")
    return found


def boolean(value: object, path: str) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ConfigError(path, f"must be true or false, not {_kind(value)}")
    return value


def integer(least: int, most: int) -> Kind:
    """Return a function that reads a whole number in a range."""

    def read(value: object, path: str) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(path, f"must be a whole number, not {_kind(value)}")
        if not least <= value <= most:
            raise ConfigError(path, f"{value} is not from {least} to {most}")
        return value

    return read


def number(value: object, path: str) -> float:
    """Read any number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(path, f"must be a number, not {_kind(value)}")
    return float(value)


def choice(*names: str) -> Kind:
    """Return a function that reads one of several names."""

    def read(value: object, path: str) -> str:
        found = text(value, path)
        if found not in names:
            raise ConfigError(path, f"{found!r} is not one of {', '.join(name for name in names if name)}")
        return found

    return read


def array(kind: Kind) -> Kind:
    """Return a function that reads a list."""

    def read(value: object, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise ConfigError(path, f"must be a list, not {_kind(value)}")
        return [kind(each, f"{path}[{index}]") for index, each in enumerate(value)]

    return read


def mapping(kind: Kind) -> Kind:
    """Return a function that reads an object with arbitrary names."""

    def read(value: object, path: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ConfigError(path, f"must be an object, not {_kind(value)}")
        return {text(name, path): kind(each, f"{path}.{name}") for name, each in value.items()}

    return read


def model(cls: type[Model]) -> Kind:
    """Return a function that reads an object of a model."""
    return cls.read


def any_value(value: object, path: str) -> object:  # noqa: ARG001 - the common signature of kinds
    """Accept any value."""
    return value

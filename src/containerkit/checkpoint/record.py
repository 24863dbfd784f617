"""The record beside CRIU's images: the description of the container, and its state that the images do not contain.

A record is JSON. A value of the library is written as its class and its fields. When it is read, the class checks the
fields as usual. A record can't contain anything else.
"""

from __future__ import annotations

import json
import os
from errno import EINVAL, ENOENT, EPERM
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import attrs

from containerkit.errors import SetupError, SpecError

if TYPE_CHECKING:
    from containerkit.spec.container import Spec

__all__ = ["NAME", "Record", "read", "write"]

NAME: Final = "containerkit.json"
"""The file beside the images."""

_VERSION: Final = 1
_CLASS: Final = "class"
_SET: Final = "set"
_PACKAGE: Final = "containerkit."
_OWN_TO_READ_HINT: Final = (
    "a user who can write to it can run anything as root: it must belong to root, and only root may write to it"
)


@attrs.frozen(kw_only=True)
class Record:
    """Everything that a restore needs to know.

    Attributes:
        spec: the container, with the root filesystem that its provider made.
        owner: the key of the pipe that replaces the owner's pidfd.
        image: the key of the init's program.
        mounts: the mounts that the images don't contain: their mount points, and their sources below the directory in
            which a restore prepares them.
        network: the key of a shared network namespace; empty for its own.
        arguments: more arguments for CRIU, for the dump and the restore.
    """

    spec: Spec
    owner: str
    image: str
    mounts: tuple[tuple[str, str], ...] = ()
    network: str = ""
    arguments: tuple[str, ...] = ()


def write(directory: int, record: Record) -> None:
    """Write a record to an open directory.

    Raises:
        SpecError: the description has a value that can't be saved.
        OSError: it can't be written.
    """
    text = json.dumps({"version": _VERSION, "record": _plain(record)}, indent=1)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(NAME, flags, 0o600, dir_fd=directory), "w", encoding="utf-8") as file:
        file.write(text)


def read(path: str, directory: int) -> Record:
    """Read the record of a checkpoint.

    Args:
        path: the directory, for messages.
        directory: a descriptor of it.

    Raises:
        SetupError: it is missing, can't be read, or users other than root could have written it.
        SpecError: it contains an invalid value.
    """
    name = os.path.join(path, NAME)
    try:
        _check_owner(path, os.fstat(directory))
        fd = os.open(NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=directory)
        with os.fdopen(fd, encoding="utf-8") as file:
            _check_owner(name, os.fstat(file.fileno()))
            content = json.load(file)
    except SetupError:
        raise
    except OSError as error:
        hint = "Container.checkpoint() writes it" if error.errno == ENOENT else ""
        raise SetupError("read", error.errno or 0, name, hint) from None
    except ValueError:
        raise SetupError("read", EINVAL, name, "it is not JSON") from None
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        raise SetupError("read", EINVAL, name, f"it is not a checkpoint of version {_VERSION}")
    try:
        record = _value(content.get("record"))
    except (AttributeError, ImportError, KeyError, TypeError, ValueError) as error:
        raise SpecError(f"{name}: {error}") from None
    if not isinstance(record, Record):
        raise SpecError(f"{name}: it does not contain the record of a checkpoint")
    return record


def _check_owner(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise SetupError("read", EPERM, path, _OWN_TO_READ_HINT)


def _plain(value: Any) -> Any:
    """Return a value in its JSON form."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, frozenset):
        return {_SET: sorted(value)}
    kind = type(value)
    if attrs.has(kind) and kind.__module__.startswith(_PACKAGE):
        fields = {field.alias: _plain(getattr(value, field.name)) for field in attrs.fields(kind) if field.init}
        return {_CLASS: f"{kind.__module__.removeprefix(_PACKAGE)}:{kind.__qualname__}", **fields}
    raise SpecError(f"checkpoint: {value!r:.100} can't be saved")


def _value(plain: Any) -> Any:
    """Return the value for its JSON form."""
    if isinstance(plain, list):
        return tuple(_value(each) for each in plain)
    if not isinstance(plain, dict):
        return plain
    if _SET in plain:
        return frozenset(plain[_SET])
    module, _, name = plain[_CLASS].partition(":")
    kind = getattr(import_module(_PACKAGE + module), name)
    if not (isinstance(kind, type) and attrs.has(kind)):
        raise SpecError(f"checkpoint: {plain[_CLASS]!r} is not a description")
    return kind(**{name: _value(each) for name, each in plain.items() if name != _CLASS})

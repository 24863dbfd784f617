"""Weak references that run no Python code when their object is freed.

The containers of :mod:`weakref` register a callback in Python. A signal handler can run inside it, and Python discards
an exception that is raised there: an interruption would be lost.
"""

from __future__ import annotations

from _weakref import ref  # the weakref package imports more

from containerkit.typed import Generic, TypeVar

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

__all__ = ["WeakMembers", "WeakValues"]

Member = TypeVar("Member")
_SPARE = 32  # the number of dead references before the first search for them


class WeakMembers(Generic[Member]):
    """A set of hashable objects that it does not keep alive. Any thread may use it."""

    __slots__ = ("_limit", "_references")

    def __init__(self) -> None:
        self._references: set[ref[Member]] = set()
        self._limit = _SPARE

    def add(self, member: Member) -> None:
        """Add an object."""
        self._references.add(ref(member))
        if len(self._references) > self._limit:
            for each in list(self._references):
                if each() is None:  # a dead reference stays dead, so no other thread needs it
                    self._references.discard(each)
            self._limit = 2 * len(self._references) + _SPARE

    def discard(self, member: Member) -> None:
        """Remove an object, if it is there."""
        self._references.discard(ref(member))

    def clear(self) -> None:
        """Remove all objects."""
        self._references.clear()

    def __iter__(self) -> Iterator[Member]:
        return iter([member for each in list(self._references) if (member := each()) is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class WeakValues(Generic[Member]):
    """A dictionary that does not keep its values alive. The caller must hold a lock."""

    __slots__ = ("_limit", "_references")

    def __init__(self) -> None:
        self._references: dict[Hashable, ref[Member]] = {}
        self._limit = _SPARE

    def get(self, key: Hashable, make: Callable[[], Member]) -> Member:
        """Return the value of a key, made by ``make`` if there is none."""
        found = self._references.get(key)
        value = found() if found is not None else None
        if value is None:
            value = make()
            self._references[key] = ref(value)
            if len(self._references) > self._limit:
                self._references = {known: each for known, each in self._references.items() if each() is not None}
                self._limit = 2 * len(self._references) + _SPARE
        return value

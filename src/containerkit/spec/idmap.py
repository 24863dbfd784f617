"""Mappings between ids inside a container and ids of the host."""

from __future__ import annotations

import itertools

from containerkit.errors import SpecError
from containerkit.values import field, frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    import attrs

__all__ = ["IdMapping", "check_mappings", "mapping_text", "within"]


LARGEST_ID: Final = 2**32 - 2


def _an_id(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_ID:
        raise SpecError(f"id mapping: {attribute.name} must be an id from 0 to {LARGEST_ID}, not {value!r}")


@frozen
class IdMapping:
    """A range of ``count`` ids that starts at ``inside`` in the container and at ``outside`` outside.

    Args:
        inside: the first id in the container, 0 to 4294967294.
        outside: the first id in the caller's user namespace.
        count: the number of ids, at least 1.

    Raises:
        SpecError: an id is out of range.

    Source: user_namespaces(7).
    """

    inside: int = field(validator=_an_id)
    outside: int = field(validator=_an_id)
    count: int = field(default=1)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise SpecError(f"id mapping: count must be at least 1, not {self.count!r}")
        if max(self.inside, self.outside) + self.count - 1 > LARGEST_ID:
            raise SpecError(f"id mapping: {self} extends past the largest id {LARGEST_ID}")


def mapping_text(mappings: tuple[IdMapping, ...]) -> bytes:
    """Return the mappings in the format of uid_map and gid_map."""
    return b"".join(b"%d %d %d\n" % (m.inside, m.outside, m.count) for m in mappings)


def check_mappings(mappings: tuple[IdMapping, ...], what: str) -> None:
    """Refuse a set of mappings that is empty or overlaps, or that does not map id 0.

    Raises:
        SpecError: the message names the two mappings that overlap, or says that id 0 is not mapped.
    """
    if not mappings:
        raise SpecError(f"{what}: at least one mapping is needed")
    for side in ("inside", "outside"):
        ordered = sorted(mappings, key=lambda m: int(getattr(m, side)))
        for one, two in itertools.pairwise(ordered):
            if getattr(one, side) + one.count > getattr(two, side):
                raise SpecError(f"{what}: {one} and {two} overlap {side}")
    if not any(m.inside == 0 for m in mappings):
        raise SpecError(f"{what}: id 0 inside must be mapped, because root of the container sets it up")


def within(mapping: IdMapping, granted: tuple[IdMapping, ...]) -> IdMapping:
    """Return a mapping whose outside ids are the inside ids of the granted mapping that contains them.

    Raises:
        SpecError: none contains them.
    """
    for grant in granted:
        if grant.outside <= mapping.outside and mapping.outside + mapping.count <= grant.outside + grant.count:
            return IdMapping(mapping.inside, grant.inside + mapping.outside - grant.outside, mapping.count)
    raise SpecError(f"id mappings: {mapping} is not granted to this user in /etc/subuid and /etc/subgid")

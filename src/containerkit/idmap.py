"""Which ids inside a container are which ids outside.

A privileged caller gives every container a range of 65,536 ids of its own, far from the ids of people, and holds it by
a file lock for as long as the container lives: no two live containers on the machine share one. An ordinary user maps
its own id alone, or the ranges that /etc/subuid grants it, by newuidmap(1) and newgidmap(1).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from typing import Final

import attrs

from containerkit.errors import SpecError, UnsupportedError

__all__ = ["RANGE", "IdMapping", "IdRange", "lease", "mapping_text", "subordinate"]

RANGE: Final = 65_536
"""Ids in the range of one container."""

LARGEST_ID: Final = 2**32 - 2

_FIRST_BASE: Final = 0x1000_0000  # 268 million: beyond what useradd, systemd's DynamicUser and subuid hand out
_BLOCK_RANGES: Final = 256  # ranges under one lock file
_BLOCKS: Final = 224  # up to 0xF000_0000
_FOLDER: Final = "/run/containerkit/ids"


def _an_id(_instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LARGEST_ID:
        raise SpecError(f"id mapping: {attribute.name} must be an id from 0 to {LARGEST_ID}, not {value!r}")


@attrs.frozen
class IdMapping:
    """``count`` ids from ``inside`` on are the ids from ``outside`` on.

    Args:
        inside: the first id as the container sees it, 0 to 4294967294.
        outside: the first id in the caller's user namespace.
        count: how many, at least 1.

    Raises:
        SpecError: an id out of range.

    Source: user_namespaces(7).
    """

    inside: int = attrs.field(validator=_an_id)
    outside: int = attrs.field(validator=_an_id)
    count: int = attrs.field(default=1)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise SpecError(f"id mapping: count must be at least 1, not {self.count!r}")
        if max(self.inside, self.outside) + self.count - 1 > LARGEST_ID:
            raise SpecError(f"id mapping: {self} runs past the largest id {LARGEST_ID}")


def mapping_text(mappings: tuple[IdMapping, ...]) -> bytes:
    """Return the mappings as the kernel reads them from uid_map and gid_map."""
    return b"".join(b"%d %d %d\n" % (m.inside, m.outside, m.count) for m in mappings)


def check_mappings(mappings: tuple[IdMapping, ...], what: str) -> None:
    """Refuse an empty or overlapping set.

    Raises:
        SpecError: naming the two that overlap, or that id 0 is not mapped.
    """
    if not mappings:
        raise SpecError(f"{what}: at least one mapping is needed")
    for side in ("inside", "outside"):
        ordered = sorted(mappings, key=lambda m: int(getattr(m, side)))
        for one, two in itertools.pairwise(ordered):
            if getattr(one, side) + one.count > getattr(two, side):
                raise SpecError(f"{what}: {one} and {two} overlap {side}")
    if not any(m.inside == 0 for m in mappings):
        raise SpecError(f"{what}: id 0 inside must be mapped, since the container is set up as its root")


class IdRange:
    """A range that one container holds; :meth:`release` gives it back, and may be called twice."""

    __slots__ = ("_owner", "base")

    def __init__(self, base: int, owner: _Ranges) -> None:
        self.base = base
        self._owner: _Ranges | None = owner

    def release(self) -> None:
        """Let another container have it; only once nothing runs under these ids any more."""
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.give_back(self.base)

    def __repr__(self) -> str:
        state = "held" if self._owner is not None else "released"
        return f"<IdRange {self.base} to {self.base + RANGE - 1}, {state}>"


class _Ranges:
    """The ranges of this process: whole blocks, each held by a lock that the kernel drops when the process ends."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.free: list[int] = []
        self.locks: list[int] = []

    def take(self) -> int:
        with self.lock:
            if not self.free:
                self._take_block()
            return self.free.pop()

    def give_back(self, base: int) -> None:
        with self.lock:
            self.free.append(base)

    def _take_block(self) -> None:
        import fcntl

        os.makedirs(_FOLDER, mode=0o700, exist_ok=True)
        for block in range(_BLOCKS):
            fd = os.open(f"{_FOLDER}/{block}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                # Of the open file, so that a forked child, which has a copy, does not count as another holder.
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            self.locks.append(fd)
            first = _FIRST_BASE + block * _BLOCK_RANGES * RANGE
            # The lowest comes off the end first and is used again first: its caches are warm.
            self.free.extend(first + number * RANGE for number in reversed(range(_BLOCK_RANGES)))
            return
        raise UnsupportedError("lease", 11, "id range", f"all {_BLOCKS} blocks in {_FOLDER} are held by live processes")


_ranges: _Ranges | None = None
_making = threading.Lock()


def lease() -> IdRange:
    """Take a range of 65,536 ids that no other live container on this machine has.

    Raises:
        UnsupportedError: every range is taken.
        OSError: the lock files can't be made.

    Side effects: a lock file under /run/containerkit/ids, held until the process ends.
    """
    global _ranges  # noqa: PLW0603 - one set of ranges for a process, made when first asked for
    with _making:
        if _ranges is None or _ranges.pid != os.getpid():
            _ranges = _Ranges()
        owner = _ranges
    return IdRange(owner.take(), owner)


def subordinate(path: str, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the (first, count) ranges that a file such as /etc/subuid grants to a user.

    Args:
        path: ``/etc/subuid`` or ``/etc/subgid``.
        uid: the user.

    Returns:
        An empty tuple where there is no file or no line of that user. Malformed lines grant nothing.

    Source: subuid(5).
    """
    import pwd

    names = {str(uid)}
    with contextlib.suppress(KeyError):
        names.add(pwd.getpwuid(uid).pw_name)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return ()
    found: list[tuple[int, int]] = []
    for line in lines:
        owner, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if owner in names and first.isdecimal() and count.isdecimal() and int(count) > 0:
            found.append((int(first), int(count)))
    return tuple(found)

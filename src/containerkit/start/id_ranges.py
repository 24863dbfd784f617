"""Ranges of ids, one for each running container.

A privileged caller gives every container its own range of 65,536 ids, far from the ids of real users. A file lock holds
the range as long as the container runs, so no two running containers on the machine share one. An unprivileged user
maps only its own id, or the ranges that /etc/subuid grants, by newuidmap(1) and newgidmap(1).
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from errno import EAGAIN, EPERM

from containerkit._linux.privileges import FIRST_BASE, RANGE, has_ids_to_spare, maps_range
from containerkit._native import high
from containerkit.errors import SetupError, UnsupportedError
from containerkit.spec.idmap import LARGEST_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Final

__all__ = ["RANGE", "IdRange", "lease", "lease_singly", "subordinate"]


_BLOCK_RANGES: Final = 256  # ranges under one lock file


_BLOCKS: Final = 224  # up to 0xF000_0000


_DIRECTORY: Final = "/run/containerkit/ids"


_GRANTEES: Final = ("containerkit", "root")
"""The users whose granted ranges a privileged caller's containers use. The first one with a grant is used."""


class IdRange:
    """The range of one container, until :meth:`release`, which may be called twice.

    Attributes:
        base: the first user id, outside.
        gid_base: the first group id.
    """

    __slots__ = ("_give_back", "base", "gid_base")

    def __init__(self, base: int, gid_base: int, give_back: Callable[[], None]) -> None:
        self.base = base
        self.gid_base = gid_base
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Release it for other containers. No process may have these ids any more."""
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()

    def __repr__(self) -> str:
        state = "held" if self._give_back is not None else "released"
        return f"<IdRange {self.base} to {self.base + RANGE - 1}, {state}>"


def _hold(name: str, *, shared: bool = False) -> int | None:
    """Lock a file. Return the descriptor that holds the lock, or None if another process holds it.

    Args:
        name: its name.
        shared: whether others may hold it too, shared.
    """
    import fcntl

    try:
        os.makedirs(_DIRECTORY, mode=0o700, exist_ok=True)
        fd = high(os.open(f"{_DIRECTORY}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        hint = f"{_DIRECTORY} must be writable: mount a tmpfs on /run (podman and docker run: --tmpfs /run)"
        raise SetupError("open", error.errno or 0, f"{_DIRECTORY}/{name}", hint) from None
    try:
        # A lock of the open file: a forked child with a copy is not another holder.
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _release(fd: int) -> None:
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_UN)  # closing is not enough if a forked child has a copy
    os.close(fd)


class _Granted:
    """The ranges that the administrator granted. Each has its own locks while it is in use."""

    def __init__(self) -> None:
        self.lock = allocate_lock()
        self.files: tuple[tuple[int, ...], ...] | None = None
        self.ranges: tuple[tuple[int, int], ...] = ()
        self.used: set[tuple[int, int]] = set()

    def take(self) -> IdRange | None:
        """Return a free one, or None."""
        with self.lock:
            self._read()
            for pair in self.ranges:
                if pair not in self.used and (locks := self._locks(*pair)) is not None:
                    self.used.add(pair)
                    return IdRange(*pair, lambda pair=pair, locks=locks: self._give_back(pair, locks))  # type: ignore[misc] # mypy does not infer a lambda with a default
        return None

    def _locks(self, uid: int, gid: int) -> tuple[int, int] | None:
        user = _hold(f"uid-{uid}")
        if user is None:
            return None
        group = _hold(f"gid-{gid}")
        if group is None:
            _release(user)
            return None
        return user, group

    def _give_back(self, pair: tuple[int, int], locks: tuple[int, int]) -> None:
        with self.lock:
            for fd in locks:
                _release(fd)
            self.used.discard(pair)

    def _read(self) -> None:
        """Read the files again if they have changed."""
        now = _signature(_SUBUID), _signature(_SUBGID)
        if now == self.files:
            return
        self.files, self.ranges = now, ()
        if () in now or any(size == 0 for _, _, size in now):
            return  # nothing is granted to anyone, so the users are not looked up
        for name in _GRANTEES:
            uids, gids = (_of_names(path, _names(name)) for path in (_SUBUID, _SUBGID))
            found = tuple(zip(_split(uids, "uid_map"), _split(gids, "gid_map"), strict=False))
            if found:
                self.ranges = found
                return


def _signature(path: str) -> tuple[int, ...]:
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


def _split(granted: tuple[tuple[int, int], ...], mapped: str) -> Iterator[int]:
    """Yield the first id of each whole range that the caller's own user namespace maps."""
    for first, count in granted:
        for number in range(count // RANGE):
            base = first + number * RANGE
            if base + RANGE - 1 <= LARGEST_ID and maps_range(mapped, base):
                yield base


class _Ranges:
    """The library's own ranges, in blocks.

    Each block is held by a lock, which the kernel drops when the process ends.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = allocate_lock()
        self.free: list[int] = []
        self.locks: list[int] = []
        self.granted = _Granted()

    def take(self) -> IdRange:
        found = self.granted.take()
        if found is not None:
            return found
        with self.lock:
            if not self.free:
                self._take_free()
            base = self.free.pop()
        return IdRange(base, base, lambda: self._give_back(base))

    def _give_back(self, base: int) -> None:
        with self.lock:
            self.free.append(base)

    def _take_free(self) -> None:
        if not has_ids_to_spare():
            hint = "the user namespace of the caller does not have these ids: pass uid_mappings and gid_mappings"
            raise UnsupportedError("lease", EPERM, "id range", hint)
        if not (self._take_single() if _singly else self._take_block()):
            hint = f"all {_BLOCKS} blocks in {_DIRECTORY} are held by live processes"
            raise UnsupportedError("lease", EAGAIN, "id range", hint)

    def _take_single(self) -> bool:
        """Take one range of a block that is shared with processes that do the same. Return whether there was one."""
        for block in reversed(range(_BLOCKS)):
            whole = _hold(str(block), shared=True)
            if whole is None:
                continue
            offset = os.getpid() % _BLOCK_RANGES
            for number in range(_BLOCK_RANGES):
                place = (offset + number) % _BLOCK_RANGES
                fd = _hold(f"{block}.{place}")
                if fd is not None:
                    self.locks += [whole, fd]
                    self.free.append(FIRST_BASE + (block * _BLOCK_RANGES + place) * RANGE)
                    return True
            _release(whole)
        return False

    def _take_block(self) -> bool:
        """Take a block. Return whether there was one."""
        # Not always the first one, because the lock of a killed process ends slightly before its containers.
        offset = os.getpid() % _BLOCKS
        for number in range(_BLOCKS):
            block = (offset + number) % _BLOCKS
            fd = _hold(str(block))
            if fd is None:
                continue
            self.locks.append(fd)
            first = FIRST_BASE + block * _BLOCK_RANGES * RANGE
            # The lowest is used first and reused first, because its caches are warm.
            self.free.extend(first + number * RANGE for number in reversed(range(_BLOCK_RANGES)))
            return True
        return False


_ranges: _Ranges | None = None


_singly = False


def lease_singly() -> None:
    """Make this process take single ranges. By default it takes blocks of 256, of which a host has 224.

    Use it in processes with one container each, of which there may be thousands.
    """
    global _singly  # noqa: PLW0603 - one way for a process
    _singly = True


def lease() -> IdRange:
    """Lease a range of 65,536 ids that no other running container on this machine has.

    Raises:
        UnsupportedError: every range is in use, or the caller's own user namespace does not have the ids.
        SetupError: the lock files can't be made.

    Side effects: a lock file under /run/containerkit/ids is held until the process ends; for a granted range two, until
        it is released.

    Source: subuid(5), user_namespaces(7).
    """
    global _ranges  # noqa: PLW0603 - one set of ranges for a process, made when first asked for
    with _making:
        if _ranges is None or _ranges.pid != os.getpid():
            _ranges = _Ranges()
        owner = _ranges
    return owner.take()


def subordinate(path: str, uid: int) -> tuple[tuple[int, int], ...]:
    """Return the (first, count) ranges that a file such as /etc/subuid grants to a user.

    Args:
        path: ``/etc/subuid`` or ``/etc/subgid``.
        uid: the user.

    Returns:
        The ranges. Empty if there is no file or no line for the user. Malformed lines grant nothing.

    Source: subuid(5).
    """
    return _of_names(path, _names(uid))


def _names(user: int | str) -> frozenset[str]:
    """Return the name and the number of a user, as far as they are known."""
    import pwd

    try:
        entry = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        return frozenset({str(user)})
    return frozenset({entry.pw_name, str(entry.pw_uid)})


def _of_names(path: str, names: frozenset[str]) -> tuple[tuple[int, int], ...]:
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


_SUBUID, _SUBGID = "/etc/subuid", "/etc/subgid"


_making = allocate_lock()

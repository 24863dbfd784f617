"""Choose the directories that overlayfs mounts for a stack of layers. Small neighbouring layers may be merged.

Overlayfs differs in two points from the specification of layers. It takes the attributes of a directory from the
topmost layer that has it, even if that layer does not name it. A stack with such directories gets one more layer on
top, which contains only these. And it lists whiteouts in directories that only one layer has, unless they are marked.
"""

from __future__ import annotations

import os
import stat
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from containerkit._linux.tree_walk import DIRECTORY, walk
from containerkit.archive.attributes import mark_whiteouts
from containerkit.archive.beneath import is_on_same_mount
from containerkit.archive.extract import Extraction
from containerkit.archive.recreate import copy_metadata
from containerkit.archive.tree import Tree
from containerkit.archive.view import View
from containerkit.errors import SetupError
from containerkit.image.digest import Digest
from containerkit.image.layers.merge import copy_owner_record, merge
from containerkit.image.layers.unpack import (
    CONTENT,
    ORIGINS,
    UNNAMED,
    add_fact,
    facts_of,
    is_complete,
    place_layer,
    settle,
)
from containerkit.image.store.locks import locked, workspace
from containerkit.start import userns_helper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from containerkit.archive.links import Parts
    from containerkit.image.store import Lease, Store

__all__ = ["Stack", "grouped", "parts_of", "stack_id", "stack_layers"]

_FEW: Final = 8
"""Up to this number, layers hardly lengthen a start. Only larger stacks are merged."""
_MOST: Final = 48
"""The names of this many layers fit into the options of one mount. Larger stacks are merged at any cost."""
_MOST_ENTRIES: Final = 3000
"""The number of files and directories that are merged in about 0.15 seconds."""
_SEARCH: Final = 0o001
_LOWERS: Final = "lowers"
_ATTRIBUTES: Final = "attributes"


class Stack(NamedTuple):
    """The directories that a container mounts for an image.

    Attributes:
        directories: topmost first.
        base: a directory that contains all of them on one mount, or None.
    """

    directories: tuple[str, ...]
    base: str | None


def stack_id(chain_id: Digest) -> Digest:
    """Return the id of the record that tells how a stack is assembled; ``chain_id`` identifies its layers."""
    return Digest.of(f"stack {chain_id}".encode())


def stack_layers(store: Store, directories: Sequence[str], chain_id: Digest, lease: Lease) -> Stack:
    """Return the directories with which overlayfs shows the root of a stack of unpacked layers.

    The result is recorded, so that the same image always has the same directories. A detached container
    depends on that.

    Args:
        store: the store.
        directories: the directories of the layers, topmost first.
        chain_id: the id of the whole stack.
        lease: a claim that will cover the directories.

    Raises:
        SetupError: the disk is full.

    Source: OCI image specification, config.md, "Layer ChainID"; Documentation/filesystems/overlayfs.rst.
    """
    with userns_helper.kept():
        found = _stacked(store, tuple(directories), chain_id, lease)
    return Stack(found, _base(store, found) if len(found) > 1 else None)


def _base(store: Store, directories: Sequence[str]) -> str | None:
    """Return the directory of all layers, if a container can reach them through a copy of its mount.

    Other users can't reach it in either case: only its owner can enter the store.
    """
    base = store.layers
    try:
        if not base.stat().st_mode & _SEARCH:
            base.chmod(0o711)
        root = os.open(base, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        names = [os.path.relpath(directory, base) for directory in directories]
        above = {name.rpartition("/")[0] for name in names}
        above |= {name.partition("/")[0] for name in names}
        if all(os.stat(name, dir_fd=root).st_mode & _SEARCH for name in above) and all(
            is_on_same_mount(root, os.fsencode(name)) for name in names
        ):
            return str(base)
    except OSError:
        return None
    finally:
        os.close(root)
    return None


def _stacked(store: Store, directories: tuple[str, ...], chain_id: Digest, lease: Lease) -> tuple[str, ...]:
    if len(directories) == 1:
        return directories
    record = stack_id(chain_id)
    lease.claim([chain_id, record])
    merged = store.layer_directory(chain_id)
    if is_complete(merged):  # an earlier version has merged all layers
        settle(merged)
        return (str(merged / CONTENT),)
    groups = _groups(directories)
    if len(groups) == len(directories) and not _needs_extra_layer(directories):
        return directories
    lease.claim([_id_of(group) for group in groups])
    if (known := _recorded(store, record, lease)) is None:
        with locked(store.root / "layers/.merging", exclusive=True):
            if (known := _recorded(store, record, lease)) is None:
                _make(store, groups, record)
                known = _recorded(store, record, lease)
    if known is None:
        raise SetupError("assemble", 5, str(store.layer_directory(record)), "it was removed in the meantime: try again")
    return known


def _needs_extra_layer(directories: Sequence[str]) -> bool:
    """Return whether overlayfs would show a wrong root for these layers without another layer."""
    facts = [facts_of(Path(directory).parent) for directory in directories]
    return any(each.get("implied") for each in facts[:-1]) or not all(each.get(ORIGINS) for each in facts)


def grouped(sizes: Sequence[int], *, few: int, most: int, entries: int) -> list[slice]:
    """Divide a stack into groups of neighbours to merge, so that few layers remain and little work is done.

    Args:
        sizes: the number of entries of each layer.
        few: the number of groups that is small enough.
        most: the maximum number of groups, whatever the work.
        entries: the maximum number of entries to merge, unless ``most`` requires more.
    """
    groups = [slice(number, number + 1) for number in range(len(sizes))]

    def cost(group: slice) -> int:
        return 0 if group.stop - group.start > 1 else max(sizes[group.start], 1)

    spent = 0
    while len(groups) > few:
        costs = [cost(one) + cost(other) for one, other in pairwise(groups)]
        least = min(costs)
        if spent + least > entries and len(groups) <= most:
            break
        spent += least
        at = costs.index(least)
        groups[at : at + 2] = [slice(groups[at].start, groups[at + 1].stop)]
    return groups


def _groups(directories: tuple[str, ...]) -> list[tuple[str, ...]]:
    sizes = [int(facts_of(Path(directory).parent).get("entries", 0)) for directory in directories]
    found = grouped(sizes, few=_FEW, most=_MOST, entries=_MOST_ENTRIES)
    return [directories[group] for group in found]


def _own_id(directory: str) -> Digest:
    _, algorithm, encoded, _ = directory.rsplit("/", 3)
    return Digest(f"{algorithm}:{encoded}")


def _id_of(group: Sequence[str]) -> Digest:
    """Return the id of some layers merged, or of a single layer."""
    if len(group) == 1:
        return _own_id(group[0])
    return Digest.of(" ".join(["merged", *(str(_own_id(directory)) for directory in group)]).encode())


def _recorded(store: Store, record: Digest, lease: Lease) -> tuple[str, ...] | None:
    """Return the directories that are recorded for a stack, if all of them are complete."""
    directory = store.layer_directory(record)
    facts = facts_of(directory)
    if not facts:
        return None
    ids = [Digest(text) for text in facts[_LOWERS]]
    lease.claim(ids)
    lowers = [directory] if facts[_ATTRIBUTES] else []
    lowers += [store.layer_directory(one) for one in ids]
    if not all(map(is_complete, lowers)):
        return None
    for one in {directory, *lowers}:
        settle(one)
    return tuple(str(lower / CONTENT) for lower in lowers)


def parts_of(directory: Path) -> set[Digest]:
    """Return the ids of the layers that a stack consists of, given the directory of its record."""
    return set(map(Digest, facts_of(directory).get(_LOWERS, ())))


def _make(store: Store, groups: Sequence[tuple[str, ...]], record: Digest) -> None:
    """Make the merged layers of a stack, the layer of attributes if it is needed, and the record."""
    lowers: list[str] = []
    for group in groups:
        for path in group:
            if not facts_of(Path(path).parent).get(ORIGINS):
                userns_helper.call(_mark_origins, path)
                add_fact(Path(path).parent, ORIGINS)
        directory = store.layer_directory(_id_of(group))
        if is_complete(directory) or userns_helper.call(merge, store, group, directory):
            lowers.append(str(directory / CONTENT))
        else:
            lowers += group
    unnamed = {name for lower in lowers[:-1] for name in facts_of(Path(lower).parent).get(UNNAMED, ())}
    userns_helper.call(_record, store, tuple(lowers), tuple(unnamed), store.layer_directory(record))


def _mark_origins(path: str) -> None:
    """Mark the directories with whiteouts in a layer that an earlier version has unpacked."""
    spaces = Extraction.for_user().marks
    root = os.open(path, DIRECTORY)
    try:
        for trail, _, names in walk(root):
            if trail.names and any(_is_whiteout(name, trail.fd) for name in names):
                mark_whiteouts(trail.fd, spaces)
    finally:
        os.close(root)


def _is_whiteout(name: bytes, directory: int) -> bool:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def _record(store: Store, lowers: tuple[str, ...], unnamed: tuple[str, ...], directory: Path) -> None:
    """Record which layers form a stack, and make a layer of the directories whose attributes overlayfs would not find.

    Args:
        store: the store.
        lowers: the directories of its layers, topmost first.
        unnamed: the paths of directories that a layer has but does not name; it may contain other paths.
        directory: the directory of the record.
    """
    view = View(lowers)
    wanted: set[Parts] = set()
    for name in unnamed:
        parts = tuple(os.fsencode(name).split(b"/"))
        above, found = view.directories(parts), view.find(parts)
        if above and found is not None and above[0] != found.path:
            wanted.update(parts[:depth] for depth in range(1, len(parts) + 1))
    with workspace(store.root / "layers") as new:
        new.chmod(0o711)
        (new / CONTENT).mkdir()
        root = os.open(new / CONTENT, DIRECTORY)
        try:
            with Tree(root) as tree:
                for parts in sorted(wanted):
                    tree.new_directory(parts)
                for parts in sorted(wanted | {()}, reverse=True):
                    copy_owner_record(view, parts, tree.directory(parts))
                    copy_metadata(tree.directory(parts), view.find(parts))
        finally:
            os.close(root)
        ids = [str(_own_id(lower)) for lower in lowers]
        place_layer(store, new, directory, {_LOWERS: ids, _ATTRIBUTES: bool(wanted), ORIGINS: True})

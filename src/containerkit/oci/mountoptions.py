"""The options of a mount, sorted: those of the mount, those of the filesystem, and those for the runtime itself.

Source: OCI runtime-spec, config.md, "Linux mount options"; mount(8), mount_setattr(2).
"""

from __future__ import annotations

from containerkit._native import constants as k
from containerkit._native.names import PROPAGATION
from containerkit.oci.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NAMES", "Options", "read"]

# The attribute that an option sets or clears. With an ``r`` before it, an option applies to the whole tree.
_ATTRIBUTES = {
    "ro": (k.MOUNT_ATTR_RDONLY, 0),
    "rw": (0, k.MOUNT_ATTR_RDONLY),
    "nosuid": (k.MOUNT_ATTR_NOSUID, 0),
    "suid": (0, k.MOUNT_ATTR_NOSUID),
    "nodev": (k.MOUNT_ATTR_NODEV, 0),
    "dev": (0, k.MOUNT_ATTR_NODEV),
    "noexec": (k.MOUNT_ATTR_NOEXEC, 0),
    "exec": (0, k.MOUNT_ATTR_NOEXEC),
    "nodiratime": (k.MOUNT_ATTR_NODIRATIME, 0),
    "diratime": (0, k.MOUNT_ATTR_NODIRATIME),
    "relatime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR__ATIME),
    "norelatime": (k.MOUNT_ATTR_STRICTATIME, k.MOUNT_ATTR__ATIME),
    "noatime": (k.MOUNT_ATTR_NOATIME, k.MOUNT_ATTR__ATIME),
    "atime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR__ATIME),
    "strictatime": (k.MOUNT_ATTR_STRICTATIME, k.MOUNT_ATTR__ATIME),
    "nostrictatime": (k.MOUNT_ATTR_RELATIME, k.MOUNT_ATTR__ATIME),
    "nosymfollow": (k.MOUNT_ATTR_NOSYMFOLLOW, 0),
    "symfollow": (0, k.MOUNT_ATTR_NOSYMFOLLOW),
}
# Options of the filesystem that are passed as flags. None marks its default.
_FILESYSTEM = {
    "sync": "sync",
    "async": None,
    "dirsync": "dirsync",
    "mand": "mand",
    "nomand": None,
    "lazytime": "lazytime",
    "nolazytime": None,
    "iversion": "iversion",
    "noiversion": None,
    "silent": None,
    "loud": None,
}
_OWN = ("bind", "rbind", "defaults", "remount", "tmpcopyup", "copy-symlink", "idmap", "ridmap", "acl", "noacl")

NAMES = tuple(
    sorted(
        {*_ATTRIBUTES, *_FILESYSTEM, *PROPAGATION, *_OWN}
        | {f"r{name}" for name in (*_ATTRIBUTES, *PROPAGATION)} - {"rrw", "rro"}
        | {"rro", "rrw"}
    )
)
"""All options that are not passed to the filesystem unchanged."""


class Options:
    """The result of parsing ``options``.

    Attributes:
        bind: it is a bind, even if its type is another.
        recursive: whether to include the mounts below the source.
        set, clear: attributes of the mount itself.
        tree_set, tree_clear: attributes of the mount and all below it.
        propagation: pairs of ``MS_*`` and whether it is for the whole tree.
        data: the filesystem's own options; None marks a flag.
        copy_symlink: a source that is a symlink is recreated inside instead of bound.
        copy_up: the tmpfs starts with a copy of the directory that it covers.
        idmap: ``""``, ``"idmap"`` or ``"ridmap"``.
    """

    __slots__ = (
        "bind",
        "clear",
        "copy_symlink",
        "copy_up",
        "data",
        "idmap",
        "propagation",
        "recursive",
        "set",
        "tree_clear",
        "tree_set",
    )

    def __init__(self) -> None:
        self.bind = self.recursive = self.copy_up = self.copy_symlink = False
        self.set = self.clear = self.tree_set = self.tree_clear = 0
        self.propagation: list[tuple[int, bool]] = []
        self.data: list[tuple[str, str | None]] = []
        self.idmap = ""

    def change(self, set_flags: int, clear: int, *, tree: bool) -> None:
        """Let an option override those before it."""
        if tree:
            self.tree_set = self.tree_set & ~clear | set_flags
            self.tree_clear = self.tree_clear & ~set_flags | clear
        else:
            self.set = self.set & ~clear | set_flags
            self.clear = self.clear & ~set_flags | clear

    def take(self, name: str, value: str | None) -> None:
        """Record an option of the filesystem. The last one of a name wins, unless the name may be repeated."""
        self.data.append((name, value))


def read(words: Sequence[str], path: str) -> Options:
    """Sort the options of a mount.

    Raises:
        ConfigError: two of them can't be combined.
    """
    found = Options()
    for index, word in enumerate(words):
        if not _take(found, word) and word:
            name, equals, value = word.partition("=")
            if not name:
                raise ConfigError(f"{path}[{index}]", f"{word!r} is not an option")
            found.take(name, value if equals else None)
    if found.copy_up and found.bind:
        raise ConfigError(path, "tmpcopyup applies only to tmpfs, not to a bind")
    if found.copy_symlink and not found.bind:
        raise ConfigError(path, "copy-symlink applies only to a bind")
    return found


def _take(found: Options, word: str) -> bool:
    if word in ("bind", "rbind"):
        found.bind = True
        found.recursive = found.recursive or word == "rbind"
    elif word == "tmpcopyup":
        found.copy_up = True
    elif word == "copy-symlink":
        found.copy_symlink = True
    elif word in ("idmap", "ridmap"):
        found.idmap = word
    elif word in _ATTRIBUTES:
        found.change(*_ATTRIBUTES[word], tree=False)
    elif word[:1] == "r" and word[1:] in _ATTRIBUTES:
        found.change(*_ATTRIBUTES[word[1:]], tree=True)
    elif word in PROPAGATION:
        found.propagation.append((PROPAGATION[word], False))
    elif word[:1] == "r" and word[1:] in PROPAGATION:
        found.propagation.append((PROPAGATION[word[1:]], True))
    elif word in _FILESYSTEM:
        name = _FILESYSTEM[word]
        if name is not None:
            found.take(name, None)
    elif word not in ("defaults", "remount", "acl", "noacl"):
        return False
    return True

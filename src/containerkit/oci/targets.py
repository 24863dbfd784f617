"""Targets: paths below the container's root, which the first process resolves to descriptors.

Another process may have write access to the root filesystem and rename entries during the start. So a path on a
filesystem that the start has mounted is resolved below that mount's own descriptor, not from the root. A file of a new
/proc is found there even if the directory on which /proc was mounted has been renamed.

Source: openat2(2); CVE-2021-30465, CVE-2025-52881.
"""

from __future__ import annotations

import os
from errno import EEXIST, ENOENT
from stat import S_IFREG, S_ISDIR, S_ISLNK
from struct import pack

from containerkit._native import constants as k
from containerkit.oci import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.tape import Descriptor, Slot, Tape

__all__ = ["KERNEL_PATHS", "Targets"]

_INSIDE = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
KERNEL_PATHS = ("/proc", "/sys", "/dev")
"""Paths that must be directories. With a symlink, the kernel's files and their masks would be elsewhere."""

_MAX_SYMLINKS = 40
"""The maximum number of symlinks that the kernel follows. Source: path_resolution(7)."""

_HINT = "it must be a directory of the root filesystem, not a symlink"


class Targets:
    """Writes the steps that open and make paths inside.

    Args:
        tape: the tape that takes the steps.

    Attributes:
        root: the root filesystem, once it is open.
        view: the root filesystem as the runtime sees it; -1 if the runtime can't see it.
    """

    def __init__(self, tape: Tape) -> None:
        self.tape = tape
        self.root: Descriptor = -1
        self.view = -1
        self._views: dict[str, int] = {}
        self._mounts: dict[str, Descriptor] = {}

    # --- record of mounts

    def note(self, target: str, tree: Descriptor | None = None, *, view: int = -1) -> None:
        """Record a mount on a target.

        Args:
            target: the path of the mount.
            tree: its descriptor, if paths on it must be resolved below it from now on.
            view: a descriptor of it through which the runtime itself can see its content; -1 for none.
        """
        for hidden in [each for each in self._views if _is_below(each, target)]:
            del self._views[hidden]
        self._views[target] = view
        for hidden in [each for each in self._mounts if _is_below(each, target)]:
            del self._mounts[hidden]
        if tree is not None:
            self._mounts[target] = tree

    def note_again(self, source: str, target: str) -> int:
        """Record that a path inside, with all mounts below it, was mounted on another path too.

        Args:
            source: the path.
            target: the path of the mount.

        Returns:
            A descriptor of it, which the caller closes after the tape is written; -1 for none.
        """
        below = {each[len(source) :]: view for each, view in self._views.items() if _is_below(each, source)}
        view, rest = self._seen(source)
        if view >= 0:
            try:
                view = kernel.open_inside(view, rest, k.O_PATH)
            except OSError:
                view = -1
        self.note(target, view=view)
        self._views |= {target + rest: seen for rest, seen in below.items() if rest}
        return view

    def is_covered(self, target: str) -> bool:
        """Return whether a target itself is a mount point."""
        return target in self._views

    def is_below_a_mount(self, target: str) -> bool:
        """Return whether a target or a directory above it is a mount point."""
        return any(_is_below(target, each) for each in self._views)

    def base(self, path: str) -> tuple[Descriptor, str]:
        """Return the descriptor below which a path is resolved, and the rest of the path."""
        best = max((each for each in self._mounts if _is_below(path, each)), key=len, default="")
        if not best:
            return self.root, path.strip("/")
        return self._mounts[best], path[len(best) :].strip("/")

    # --- steps

    def refuse_symlinks(self) -> None:
        """Add the steps that fail if /proc, /sys or /dev is a symlink."""
        at = self.tape.slot("target")
        for path in KERNEL_PATHS:
            opened = self.try_open(path, at, ok=(ENOENT,), plain=True)
            self.tape.step(k.STEP_CLOSE, "close", at)
            self.tape.skip_here(opened)

    def reach(self, target: str, *, directory: bool, plain: bool = False) -> Slot:
        """Add the steps that open a target. It is made with its parents if it is missing.

        Args:
            target: the path.
            directory: whether it is a directory.
            plain: a symlink on the path is an error. For /proc, /sys and /dev it always is.
        """
        if not self.is_there(target):
            self._make(target, directory=directory)
        return self.open(target, "target", k.O_DIRECTORY if directory else 0, plain=plain or target in KERNEL_PATHS)

    def _make(self, target: str, *, directory: bool) -> None:
        tape = self.tape
        base, rest = self.base(target)
        above = target[: len(target) - len(rest)].rstrip("/")
        parts = rest.split("/") if rest else []
        for depth, part in enumerate(parts, start=1):
            parent = "/".join(parts[: depth - 1])
            holder = self.open(f"{above}/{parent}", "parent") if parent else base
            shown = f"{above}/{'/'.join(parts[:depth])}"
            if depth < len(parts) or directory:
                tape.call("mkdirat", holder, os.fsencode(part), 0o755, target=shown, ok=(EEXIST,))
            else:
                tape.call("mknodat", holder, os.fsencode(part), S_IFREG | 0o644, 0, target=shown, ok=(EEXIST,))
            if parent:
                tape.step(k.STEP_CLOSE, "close", tape.slot("parent"))

    def open(self, path: str, slot: str = "target", flags: int = 0, *, plain: bool = False) -> Slot:
        """Add the step that opens a path, which must exist."""
        at = self.tape.slot(slot)
        self.try_open(path, at, flags, plain=plain)
        return at

    def try_open(self, path: str, at: Slot, flags: int = 0, ok: tuple[int, ...] = (), *, plain: bool = False) -> int:
        """Add the step that opens a path, and return its number."""
        base, rest = self.base(path)
        resolve = _INSIDE | (k.RESOLVE_NO_SYMLINKS if plain else 0)
        how = self.tape.block(pack("=QQQ", k.O_PATH | k.O_CLOEXEC | flags, 0, resolve))
        hint = _HINT if plain else ""
        inner = os.fsencode(rest) or b"."
        return self.tape.call("openat2", base, inner, how, 24, target=path, result=at, ok=ok, hint=hint)

    # --- the runtime's own view

    def _seen(self, path: str) -> tuple[int, str]:
        """Return the descriptor through which the runtime sees a path, -1 for none, and the path below that."""
        best = max((each for each in self._views if _is_below(path, each)), key=len, default="")
        return (self._views[best] if best else self.view), path[len(best) :].strip("/")

    def is_there(self, target: str) -> bool:
        """Return whether a target certainly exists. The content of new filesystems is not known yet."""
        view, rest = self._seen(target)
        if view < 0:
            return False
        try:
            os.close(kernel.open_inside(view, rest, k.O_PATH))
        except OSError:
            return False
        return True

    def is_directory(self, target: str) -> bool:
        """Return whether a path is a directory. A path that the runtime can't see counts as one."""
        view, rest = self._seen(target)
        if view < 0:
            return True
        try:
            fd = kernel.open_inside(view, rest, k.O_PATH)
        except OSError:
            return True
        try:
            return S_ISDIR(os.fstat(fd).st_mode)
        finally:
            os.close(fd)

    def mode_of(self, target: str) -> int | None:
        """Return the permissions of a directory; None if the runtime does not see one."""
        view, rest = self._seen(target)
        if view < 0:
            return None
        try:
            fd = kernel.open_inside(view, rest, k.O_PATH | k.O_DIRECTORY)
        except OSError:
            return None
        try:
            return os.fstat(fd).st_mode & 0o7777
        finally:
            os.close(fd)

    def resolve(self, target: str) -> str:
        """Return the path of a target after all its symlinks are followed below the root.

        A missing component is kept, so that the target of a dangling symlink can be made. The first process resolves
        the result again, in the kernel. So changing the root in the meantime has no effect.

        Args:
            target: an absolute path without ``..``.
        """
        waiting = target.strip("/").split("/")[::-1]
        found: list[str] = []
        followed = 0
        while waiting:
            part = waiting.pop()
            if part in ("", "."):
                continue
            if part == "..":
                found[-1:] = []
                continue
            content = self.symlink("/" + "/".join([*found, part]))
            if not content:
                found.append(part)
                continue
            followed += 1
            if followed > _MAX_SYMLINKS:
                return target  # the first process fails at this name
            if content.startswith("/"):
                found.clear()
            waiting += content.split("/")[::-1]
        return "/" + "/".join(found)

    def symlink(self, path: str) -> str:
        """Return the target of a symlink; empty if there is none. /proc, /sys and /dev are never followed."""
        view, rest = self._seen(path)
        if view < 0 or not rest or path in KERNEL_PATHS:
            return ""
        try:
            fd = kernel.open_inside(view, rest, k.O_PATH | os.O_NOFOLLOW, plain=True)
        except OSError:
            return ""
        try:
            return os.readlink("", dir_fd=fd) if S_ISLNK(os.fstat(fd).st_mode) else ""
        finally:
            os.close(fd)


def _is_below(path: str, above: str) -> bool:
    return (path + "/").startswith(above + "/")

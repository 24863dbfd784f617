"""The content of ``RootFS.host()``: directories of the host, and a copy of the files in /etc that programs need.

This module lists everything that is shown. It has no list of secrets. A file that is not listed, or not readable for
everybody, does not appear inside.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from errno import ELOOP
from itertools import chain
from operator import attrgetter

from containerkit._native.calls_seam import backend
from containerkit.descriptors import keep, lend
from containerkit.typed import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

__all__ = ["HOSTNAME", "HostRoot", "hosts_line", "programs", "read"]

HOSTNAME: Final = "container"
"""The default host name of containers."""

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_")

_PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32", "nix", "gnu")

_DIRECTORIES: Final = {
    "dev": 0o755,
    "etc": 0o755,
    "home": 0o755,
    "media": 0o755,
    "mnt": 0o755,
    "opt": 0o755,
    "proc": 0o555,
    "root": 0o700,
    "run": 0o755,
    "run/lock": 0o1777,
    "srv": 0o755,
    "sys": 0o555,
    "tmp": 0o1777,
    "var": 0o755,
    "var/cache": 0o755,
    "var/lib": 0o755,
    "var/log": 0o755,
    "var/tmp": 0o1777,
}

_ETC: Final = (
    *("alternatives", "bash.bashrc", "bindresvport.blacklist", "ca-certificates", "ca-certificates.conf"),
    *("crypto-policies", "debian_version", "ethertypes", "fedora-release", "fonts", "gai.conf"),
    *("group", "host.conf", "hosts", "inputrc", "java", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "locale.alias"),
    *("locale.conf", "localtime", "login.defs", "lsb-release", "magic", "magic.mime", "mailcap", "manpath.config"),
    *("mime.types", "mke2fs.conf", "networks", "nsswitch.conf", "openal", "OpenCL", "os-release", "passwd", "perl"),
    *("pki", "postgresql-common", "profile", "profile.d", "protocols", "python3", "R", "redhat-release"),
    *("resolv.conf", "rpc", "services", "shells", "ssl", "system-release", "terminfo", "timezone"),
    *("vulkan", "xattr.conf", "xml", "sgml", "php", "ghc", "emacs", "texmf", "groff", "papersize", "vim"),
    *("gss", "libpaper.d", "alsa", "ImageMagick-6", "ImageMagick-7", "glvnd", "zsh_command_not_found"),
)
_SHOWN: Final = tuple(f"/{name}/" for name in (*_PROGRAMS, "etc"))
_ETC_PREFIXES: Final = ("java-", "python3.", "lua", "openjdk", "ghostscript")
_PRIVATE: Final = frozenset({"private", "key.pem"})
_LARGEST: Final = 4 * 1024 * 1024
_MOST: Final = 8192
_DEEPEST: Final = 100


class HostRoot(NamedTuple):
    """The skeleton of the default root filesystem.

    Attributes:
        programs: top-level directories of the host that are mounted completely, such as ``"usr"``.
        directories: (path, mode) of directories to create, parents first.
        links: (path, content) of symlinks.
        files: (path, mode, content).
        packed: more of them, as entries of one operation, see :mod:`containerkit.plan.entries`.
    """

    programs: tuple[str, ...]
    directories: tuple[tuple[str, int], ...]
    links: tuple[tuple[str, str], ...]
    files: tuple[tuple[str, int, bytes], ...]
    packed: bytes = b""


def programs() -> tuple[str, ...]:
    """Return the top-level directories, such as ``"usr"``, to mount completely. Symlinks are not included."""
    return tuple(name for name in _PROGRAMS if os.path.isdir(f"/{name}") and not os.path.islink(f"/{name}"))


def read() -> HostRoot:
    """Read the machine's part of the default root filesystem.

    Side effects: reads files and creates nothing.
    """
    collector = _Collector()
    for path, mode in _DIRECTORIES.items():
        collector.directories[path] = mode
    for name in _PROGRAMS:
        collector.program(name)
    names = [name for name in sorted(_names("/etc")) if name in _ETC or name.startswith(_ETC_PREFIXES)]
    copied = getattr(backend, "copied", None)
    for name in names if copied is None else ("hosts",):
        collector.copy(f"etc/{name}")
    others = [f"/etc/{name}" for name in names if name != "hosts"]
    packed = b"" if copied is None else copied(others, _SHOWN, _PRIVATE, _MOST, _LARGEST)
    collector.own_name()
    collector.links["etc/mtab"] = "../proc/self/mounts"
    collector.links["var/run"] = "../run"
    collector.links["var/lock"] = "../run/lock"
    return HostRoot(
        tuple(collector.programs),
        tuple(collector.directories.items()),
        tuple(collector.links.items()),
        tuple((path, mode, content) for path, (mode, content) in collector.files.items()),
        packed,
    )


def hosts_line(name: str) -> bytes:
    """Return the line of /etc/hosts for a container's own name. Empty if the name is invalid in hosts(5)."""
    return b"127.0.0.1\t%s\n" % name.encode() if _LETTERS.issuperset(name) else b""


def _joined(directory: str, content: str) -> str:
    """Return what a symlink in a directory leads to."""
    return content if content.startswith("/") else f"{directory}/{content}"


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


class _Collector:
    """Collects the skeleton. Each path is collected once."""

    def __init__(self) -> None:
        self.programs: list[str] = []
        self.directories: dict[str, int] = {}
        self.links: dict[str, str] = {}
        self.files: dict[str, tuple[int, bytes]] = {}
        self._known = {"": "/"}

    def program(self, name: str) -> None:
        path = f"/{name}"
        if os.path.islink(path):
            self.links[name] = os.readlink(path)
        elif os.path.isdir(path):
            self.programs.append(name)
            self.directories[name] = 0o755

    def copy(self, path: str) -> None:
        """Copy a file that everybody may read. A symlink that leads out of the listed directories is followed."""
        with suppress(OSError):
            self._copy(path, os.lstat(f"/{path}").st_mode)

    def _copy(self, path: str, mode: int) -> None:
        source = f"/{path}"
        if len(self.files) + len(self.links) >= _MOST:
            return
        if stat.S_ISDIR(mode) and mode & 0o005 == 0o005:
            self.directories[path] = 0o755
            # All in C, as in keep(): Python would warn of an iterator that a handler's exception left open.
            found = sorted(chain.from_iterable(map(os.scandir, (source,))), key=attrgetter("name"))
            for entry in found:
                if entry.name not in _PRIVATE:
                    with suppress(OSError):  # it was removed or made unreadable in the meantime, so it is left out
                        # The directory tells which entries are symlinks; hundreds of them need no call each.
                        mode = stat.S_IFLNK if entry.is_symlink() else entry.stat(follow_symlinks=False).st_mode
                        self._copy(f"{path}/{entry.name}", mode)
        elif stat.S_ISLNK(mode):
            self._link(path, source)
        elif stat.S_ISREG(mode):
            self._file(path, source)

    def own_name(self) -> None:
        """Add the default host name to the hosts file."""
        if "etc/hosts" not in self.links:
            mode, content = self.files.get("etc/hosts", (0o644, b"127.0.0.1\tlocalhost\n"))
            self.files["etc/hosts"] = mode, content.rstrip(b"\n") + b"\n" + hosts_line(HOSTNAME)

    def _link(self, path: str, source: str) -> None:
        content = os.readlink(source)
        resolved = self._resolved(_joined(source.rpartition("/")[0], content))
        if resolved.startswith(_SHOWN):
            self.links[path] = content
        elif os.path.isfile(resolved):
            self._file(path, resolved)

    def _resolved(self, path: str, depth: int = 0) -> str:
        """Return an absolute path without symlinks, as :func:`os.path.realpath` does, which takes five times as long.

        Many symlinks lead to few directories, and often to each other, so intermediate results are cached.

        Raises:
            OSError: ``ELOOP``.
        """
        if (known := self._known.get(path)) is not None:
            return known
        if depth > _DEEPEST:  # a loop of symlinks, or a path of very many parts
            raise OSError(ELOOP, os.strerror(ELOOP), path)
        parent, _, name = path.rpartition("/")
        found = self._resolved(parent, depth + 1)
        if name == "..":
            found = os.path.dirname(found)
        elif name not in {"", "."}:
            directory = found.rstrip("/")
            found = f"{directory}/{name}"
            try:
                content = os.readlink(found)
            except OSError:  # it is no symlink, or does not exist
                pass
            else:
                found = self._resolved(_joined(directory, content), depth + 1)
        self._known[path] = found
        return found

    def _file(self, path: str, source: str) -> None:
        def read(kept: list[int]) -> None:
            fd = keep(kept, os.open, source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o004 and status.st_size <= _LARGEST:
                content = bytearray()
                while len(content) < _LARGEST and (chunk := os.read(fd, _LARGEST - len(content))):
                    content += chunk
                self.files[path] = status.st_mode & 0o755, bytes(content)

        lend(read)

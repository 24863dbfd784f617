"""Find the shared libraries of a program by reading its file. The program is not run."""

from __future__ import annotations

import os
import subprocess
from errno import ENOENT
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from containerkit.errors import ImageError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["closure", "is_elf", "library_cache"]

_DEFAULT_DIRECTORIES: Final = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")


class _Facts(NamedTuple):
    loader: str
    needed: tuple[str, ...]
    directories: tuple[str, ...]
    machine: str


def is_elf(path: str) -> bool:
    """Return whether a file is a program or library. Source: elf(5)."""
    with open(path, "rb") as file:
        return file.read(4) == b"\x7fELF"


def library_cache() -> dict[str, list[str]]:
    """Return the paths of libraries in the cache of the dynamic loader; empty without the program ldconfig.

    Source: ldconfig(8).
    """
    found: dict[str, list[str]] = {}
    for program in ("ldconfig", "/sbin/ldconfig", "/usr/sbin/ldconfig"):
        try:
            done = subprocess.run([program, "-p"], capture_output=True, text=True, check=False)
        except FileNotFoundError:
            continue
        for line in done.stdout.splitlines():
            name, arrow, path = line.strip().partition(" => ")
            if arrow:
                found.setdefault(name.split(" ", 1)[0], []).append(path)
        break
    return found


def closure(programs: Iterable[str]) -> list[str]:
    """Return the files that programs need to start: loaders and libraries, each once, by the requested names.

    Args:
        programs: paths of ELF files.

    Raises:
        ImageError: a required library does not exist.
        UnsupportedError: pyelftools is not installed.

    Source: ld.so(8).
    """
    cache = library_cache()
    found: dict[str, None] = {}
    waiting: list[tuple[str, tuple[str, ...]]] = [(path, ()) for path in programs]
    seen: set[str] = set()
    while waiting:
        path, inherited = waiting.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        facts = _read(path)
        if facts.loader and facts.loader not in found:
            found[facts.loader] = None
            waiting.append((facts.loader, ()))
        directories = (*facts.directories, *inherited)
        for name in facts.needed:
            library = _locate(name, directories, cache, facts.machine)
            if library is None:
                raise ImageError(f"{path} needs {name}, which does not exist on this machine")
            found[library] = None
            waiting.append((library, directories))
    return list(found)


def _locate(name: str, directories: tuple[str, ...], cache: dict[str, list[str]], machine: str) -> str | None:
    if "/" in name:
        return name if os.path.exists(name) else None
    candidates = [f"{directory}/{name}" for directory in directories]
    candidates += cache.get(name, [])
    candidates += [f"{directory}/{name}" for directory in _DEFAULT_DIRECTORIES]
    for path in candidates:
        if os.path.isfile(path) and is_elf(path) and _read(path).machine == machine:
            return path
    return None


def _read(path: str) -> _Facts:
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError as error:
        raise UnsupportedError("import", ENOENT, "pyelftools", "pip install 'containerkit[image]'") from error
    try:
        with open(path, "rb") as file:
            elf = ELFFile(file)
            loader, needed, directories = "", [], []
            segments: Iterable[Any] = elf.iter_segments()
            for segment in segments:
                kind = segment.header.p_type
                if kind == "PT_INTERP":
                    loader = segment.get_interp_name()
                elif kind == "PT_DYNAMIC":
                    for tag in segment.iter_tags():
                        if tag.entry.d_tag == "DT_NEEDED":
                            needed.append(tag.needed)
                        elif tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
                            text = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
                            directories += list(_expanded(text, path))
            machine = f"{elf.header.e_machine} {elf.elfclass}"
    except (ELFError, OSError) as error:
        raise ImageError(f"{path}: it is not a readable program or library ({error})") from error
    return _Facts(loader, tuple(needed), tuple(directories), machine)


def _expanded(text: str, path: str) -> Iterator[str]:
    """Replace ``$ORIGIN`` in a search path. Source: ld.so(8), "Dynamic string tokens"."""
    origin = os.path.dirname(os.path.realpath(path))
    for directory in filter(None, text.split(":")):
        yield directory.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)

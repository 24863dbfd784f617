"""Roots made from the host's own programs: ``busybox`` and ``host``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Final

from containerkit.errors import SpecError, UnsupportedError
from containerkit.image.config import DEFAULT_PATH, Defaults
from containerkit.image.templates import Template
from containerkit.image.templates.elf import closure, is_elf

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["BUSYBOX", "HOST"]

_PYTHON: Final = re.compile(r"python(?:3(?:\.[0-9]+)?)?")
_MERGED: Final = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ASK_PYTHON: Final = (
    "import sys, sysconfig, os; print(os.path.realpath(sys.executable)); print(sysconfig.get_path('stdlib')); "
    "print(sysconfig.get_path('platstdlib'))"
)


def _skeleton(root: Path) -> None:
    """Create what every root needs."""
    for name in ("dev", "proc", "sys", "etc", "run", "root", "var/tmp", "tmp", "home"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "root").chmod(0o700)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def _find_busybox(path: str = "") -> str:
    found = path or shutil.which("busybox")
    if not found or not os.path.exists(found):
        raise UnsupportedError(
            "template busybox", ENOENT, path or "busybox", "install busybox-static, or pass path=..."
        )
    return os.path.realpath(found)


def _make_busybox(root: Path, *, path: str = "") -> Defaults:
    """Fill a directory with busybox and a symlink for each of its programs.

    Args:
        root: the directory.
        path: the busybox to use. Default: the one on the PATH.
    """
    program = _find_busybox(path)
    _skeleton(root)
    for name in ("bin", "sbin", "usr/bin", "usr/sbin"):
        (root / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(program, root / "bin/busybox")
    for library in closure([program]):
        _bring(library, root)
    done = subprocess.run([program, "--list-full"], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines() or ["bin/sh"]:
        place = root / line.strip().lstrip("/")
        if line.strip() and not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to("/bin/busybox")
    return Defaults(command=("/bin/sh",), env={"PATH": DEFAULT_PATH})


def _fingerprint_busybox(*, path: str = "") -> str:
    return _fingerprint([_find_busybox(path)])


def _fingerprint(paths: Iterable[str]) -> str:
    facts = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in sorted(paths)]
    return repr(facts)


BUSYBOX: Final = Template(make=_make_busybox, fingerprint=_fingerprint_busybox)


# --- host


def _make_host(root: Path, *, programs: Sequence[str] = ("sh",), files: Sequence[str] = ()) -> Defaults:
    """Fill a directory with programs of the host and the files that they need to start.

    Args:
        root: the directory.
        programs: names that are looked up on the PATH, or absolute paths. Python is copied with its standard library.
        files: more files and directories of the host, as absolute paths.
    """
    _skeleton(root)
    for name in _MERGED:
        if os.path.islink(f"/{name}") and not os.path.lexists(root / name):
            (root / name).symlink_to(os.readlink(f"/{name}"))
            (root / os.readlink(f"/{name}").lstrip("/")).mkdir(parents=True, exist_ok=True)
    wanted = [*_located(programs), *files]
    binaries: list[str] = []
    for path in wanted:
        if not os.path.isabs(path) or not os.path.exists(path):
            raise SpecError(f"template host: {path} is not an absolute path of an existing file")
        binaries += _bring_all(path, root)
    for library in closure(binaries):
        _bring(library, root)
    _write_library_cache(root)
    first = programs[0] if programs else ""
    command = (first if first.startswith("/") else os.path.basename(first),) if first else ()
    return Defaults(command=command, env={"PATH": _search_path(wanted)})


def _located(programs: Sequence[str]) -> list[str]:
    if isinstance(programs, str):
        raise SpecError(f"template host: programs must be a list, such as [{programs!r}], not a string")
    found: list[str] = []
    for name in programs:
        path = shutil.which(name)
        if path is None:
            raise SpecError(f"template host: there is no program {name!r} in PATH")
        if _PYTHON.fullmatch(os.path.basename(name)):
            found += _python(path)
        else:
            found += [path, *_interpreter(path)]
    return found


def _python(path: str) -> list[str]:
    """Return the program and standard library of a Python. A script on the PATH may only start the real program."""
    done = subprocess.run([path, "-I", "-c", _ASK_PYTHON], capture_output=True, text=True, check=False)
    lines = done.stdout.split()
    if done.returncode != 0 or not lines:
        raise SpecError(f"template host: {path} does not run: {done.stderr.strip()[:200]}")
    same = is_elf(path)
    return list(dict.fromkeys([path, *lines] if same else lines))


def _interpreter(path: str) -> list[str]:
    """Return the interpreter of a script. Source: execve(2), "Interpreter scripts"."""
    with open(path, "rb") as file:
        start = file.read(256)
    if not start.startswith(b"#!"):
        return []
    words = start[2:].split(b"\n", 1)[0].split()
    if not words:
        return []
    interpreter = os.fsdecode(words[0])
    more: list[str] = []
    if os.path.basename(interpreter) == "env" and len(words) > 1:
        found = shutil.which(os.fsdecode(words[-1]))
        more = [found] if found else []
    return [interpreter, *more]


def _bring_all(path: str, root: Path) -> list[str]:
    """Copy a file, or a directory with its content. Return the programs and libraries among them."""
    if not os.path.isdir(path):
        _bring(path, root)
        real = os.path.realpath(path)
        return [path] if os.path.isfile(real) and is_elf(real) else []
    found: list[str] = []
    for here, directories, names in os.walk(path):
        directories[:] = [
            name for name in directories if name not in ("__pycache__", "test", "site-packages", "dist-packages")
        ]
        for name in names:
            inner = f"{here}/{name}"
            if os.path.isfile(inner) and not name.endswith((".pyc", ".a")):
                _bring(inner, root)
                if not os.path.islink(inner) and is_elf(inner):
                    found.append(inner)
    return found


def _bring(path: str, root: Path) -> None:
    """Copy a file to the same place below ``root``, with each symlink in its path."""
    waiting = [part for part in path.split("/") if part][::-1]
    done: list[str] = []
    while waiting:
        part = waiting.pop()
        if part in ("", "."):
            continue
        if part == "..":
            done = done[:-1]
            continue
        outside = "/" + "/".join([*done, part])
        place = root.joinpath(*done, part)
        if os.path.islink(outside):
            target = os.readlink(outside)
            if not os.path.lexists(place):
                place.symlink_to(target)
            if target.startswith("/"):
                done = []
            waiting += [inner for inner in target.split("/") if inner][::-1]
            continue
        done.append(part)
        if waiting:
            place.mkdir(exist_ok=True)
        elif not os.path.lexists(place):
            shutil.copy2(outside, place, follow_symlinks=False)


def _write_library_cache(root: Path) -> None:
    """Make the loader find libraries in the directories that the host configures."""
    for name in ("ld.so.conf", "ld.so.conf.d"):
        source = Path("/etc") / name
        if source.is_dir():
            shutil.copytree(source, root / "etc" / name, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, root / "etc" / name)
    program = shutil.which("ldconfig") or "/sbin/ldconfig"
    if os.path.exists(program):
        subprocess.run([program, "-r", root], capture_output=True, check=False)


def _search_path(paths: Iterable[str]) -> str:
    directories = [os.path.dirname(path) for path in paths if os.path.isfile(path)]
    return ":".join(dict.fromkeys([*directories, *DEFAULT_PATH.split(":")]))


def _fingerprint_host(*, programs: Sequence[str] = ("sh",), files: Sequence[str] = ()) -> str:
    return _fingerprint([path for path in (*_located(programs), *files) if os.path.exists(path)])


HOST: Final = Template(make=_make_host, fingerprint=_fingerprint_host)

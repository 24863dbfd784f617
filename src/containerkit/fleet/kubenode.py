"""Installs the OCI runtime on a node of Kubernetes, and registers it with containerd. The node needs no Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from errno import ENOENT
from typing import TYPE_CHECKING, Any, Final

from containerkit._native import front
from containerkit.errors import SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["CONFIGURATION", "HANDLER", "PREFIX", "configured", "install", "uninstall"]

HANDLER: Final = "containerkit"
"""The name of the runtime in containerd and in the RuntimeClass."""

PREFIX: Final = "/opt/containerkit"
"""Its directory on a node."""

CONFIGURATION: Final = "/etc/containerd/config.toml"
"""The configuration file of containerd."""

_BEGIN: Final = "# --- containerkit: begin"
_END: Final = "# --- containerkit: end"
_PLUGINS: Final = {1: "cri", 2: "io.containerd.grpc.v1.cri", 3: "io.containerd.cri.v1.runtime"}
"""The plugin that creates pods, by the version of the configuration. Source: containerd, docs/cri/config.md."""

_DEFAULT: Final = "runc"
_TYPE: Final = 'runtime_type = "io.containerd.runc.v2"'
_LAUNCHER: Final = """\
#!/bin/sh
p={prefix}
exec $p/lib/{loader} --library-path $p/lib $p/bin/python3 "$@"
"""
_PROGRAM: Final = """\
import gc, sys
gc.disable()
sys.dont_write_bytecode = True
sys.path.append({packages!r})
from containerkit.oci.main import leave, main
leave(main({resumed}))
"""
_UNUSED: Final = frozenset({
    "__pycache__", "config-3", "dist-packages", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "site-packages",
    "test", "tests", "tkinter", "turtledemo", "venv",
})  # fmt: skip


def configured(content: str, program: str | os.PathLike[str], *, records: str = "", path: str = CONFIGURATION) -> str:
    """Return containerd's configuration with the runtime ``containerkit`` added. The rest, with comments, is unchanged.

    containerd drops its own default runtime as soon as another one is configured. If the configuration relies on the
    default one, it is added too.

    Args:
        content: the configuration, of version 1, 2, or 3 for containerd 2; an empty one becomes version 2.
        program: the path of ``containerkit-oci`` on the node.
        records: the directory of the runtime's records (default: its own default).
        path: the path of the file, for errors.

    Raises:
        SpecError: it is not TOML, has another version, or already has a different runtime with this name.

    Source: containerd, docs/cri/config.md.
    """
    bare = _without_ours(content)
    parsed = _parsed(bare, path)
    version = parsed.get("version", 1 if bare.strip() else 2)
    if version not in _PLUGINS:
        raise SpecError(
            f"{path}: version {version!r:.100} of containerd's configuration is not supported; choose from 1, 2 and 3"
        )
    plugin = _PLUGINS[version]
    present = parsed.get("plugins", {}).get(plugin, {}).get("containerd", {})
    runtimes = present.get("runtimes", {})
    if HANDLER in runtimes:
        raise SpecError(f"{path}: it already has a runtime {HANDLER!r} (hint: remove it there)")
    table = f"plugins.{_quoted(plugin)}.containerd.runtimes"
    default = present.get("default_runtime_name", _DEFAULT)
    added = [] if default in runtimes else [f"[{table}.{_quoted(default)}]", f"  {_TYPE}"]
    added += [f"[{table}.{HANDLER}]", f"  {_TYPE}", f"[{table}.{HANDLER}.options]"]
    added.append(f"  BinaryName = {_quoted(os.fspath(program))}")
    added += [f"  Root = {_quoted(records)}"] if records else []
    first = "" if bare.strip() else f"version = {version}\n"
    gap = "" if not bare or bare.endswith("\n") else "\n"
    made = "\n".join([f"{first}{bare}{gap}{_BEGIN}", *added, f"{_END}\n"])
    try:
        tomllib.loads(made)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(
            f"{path}: a runtime {HANDLER!r} can't be added to its tables: {error} (hint: write the table "
            f"{table} as a separate table)"
        ) from None
    return made


def _quoted(text: str) -> str:
    import json

    return json.dumps(text)


# --- The configuration


def _without_ours(content: str) -> str:
    before, begin, rest = content.partition(f"{_BEGIN}\n")
    if not begin:
        return content
    _, end, after = rest.partition(f"{_END}\n")
    if not end:
        raise SpecError(f"{_BEGIN!r} has no {_END!r} after it (hint: remove those lines by hand)")
    return before + after


def _parsed(content: str, path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"{path}: it is not TOML: {error}") from None


def _replace(path: str, content: str) -> None:
    """Write a file atomically, with the mode of the one that it replaces."""
    mode = os.stat(path).st_mode & 0o777 if os.path.exists(path) else 0o644
    fd = os.open(f"{path}.containerkit", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(f"{path}.containerkit", path)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


# --- The files


def _libraries(files: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Return the dynamic loader, and the libraries that programs and modules need, by their names.

    Raises:
        UnsupportedError: a program is static, or a library is missing.
    """
    loader, found = "", {}
    for file in files:
        done = subprocess.run(["ldd", file], capture_output=True, text=True, check=False)
        for line in done.stdout.splitlines():
            name, arrow, rest = line.strip().partition(" => ")
            path = (rest if arrow else name).rpartition(" (")[0]
            if arrow and path.startswith("not found"):
                raise UnsupportedError("copy", ENOENT, file, f"its library {name} is missing here")
            if not arrow and path.startswith("/"):
                loader = path
            elif path.startswith("/"):
                found[name] = path
    if not loader:
        raise UnsupportedError("copy", ENOENT, sys.executable, "ldd names no dynamic loader for it")
    return loader, found


def _copy_files(prefix: str, packages: str) -> str:
    """Copy the interpreter, its library, this package and the C libraries. Return the name of the loader."""
    import _cffi_backend  # type: ignore[import-untyped] # cffi has no type stubs for it
    import attr

    import containerkit

    library = os.path.join(prefix, "lib", f"python{sys.version_info.major}.{sys.version_info.minor}")
    ignored = shutil.ignore_patterns(*(f"{name}*" if name == "config-3" else name for name in _UNUSED))
    shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=ignored)
    dynamic = os.path.join(library, "lib-dynload")
    if not os.path.isdir(dynamic):
        shutil.copytree(os.path.join(sysconfig.get_path("platstdlib"), "lib-dynload"), dynamic)
    caches = shutil.ignore_patterns("__pycache__")
    for module in (containerkit, attr):
        place = os.path.dirname(os.path.abspath(str(module.__file__)))
        shutil.copytree(place, os.path.join(packages, os.path.basename(place)), ignore=caches)
    shutil.copy2(_cffi_backend.__file__, packages)
    python = os.path.join(prefix, "bin/python3")
    os.makedirs(os.path.dirname(python))
    shutil.copy2(os.path.realpath(sys.executable), python)
    modules = [python, os.path.join(packages, os.path.basename(_cffi_backend.__file__))]
    modules += [entry.path for entry in os.scandir(dynamic) if entry.name.endswith(".so")]
    loader, libraries = _libraries(modules)
    for name, path in {**libraries, os.path.basename(loader): loader}.items():
        shutil.copy2(os.path.realpath(path), os.path.join(prefix, "lib", name))
    return os.path.basename(loader)


def install(root: str, *, prefix: str = PREFIX, configuration: str = CONFIGURATION) -> bool:
    """Install ``containerkit-oci`` with its dependencies on a node, and add it to containerd's configuration.

    The node needs a shell and a kernel, but no Python: this interpreter, its library and the C libraries are copied,
    about 40 MB. An earlier installation is replaced by two renames, without disturbing running containers.

    Args:
        root: the mount point of the node's root directory, such as ``/host``.
        prefix: the directory for the files on the node (default ``/opt/containerkit``).
        configuration: containerd's configuration on the node (default ``/etc/containerd/config.toml``). A copy of the
            file from before the first installation stays beside it.

    Returns:
        Whether the configuration has changed, so that containerd must be restarted.

    Raises:
        SpecError: an invalid path, or a configuration that can't be extended; nothing was changed.
        UnsupportedError: this interpreter can't be copied.
        OSError: a file of the node can't be read or written.

    Side effects: writes below ``root`` only.
    """
    for name, path in (("root", root), ("prefix", prefix), ("configuration", configuration)):
        if not os.path.isabs(path) or "\0" in path:
            raise SpecError(f"{name}: {path!r:.100} is not an absolute path")
    if any(char in prefix for char in " \t\n'\"$`\\"):
        raise SpecError(f"prefix: {prefix!r:.100}: spaces and quotes are not supported")
    if not os.path.isdir(root):
        raise SpecError(f"root: {root}: it is not a directory (hint: mount the node's root there)")
    program = f"{prefix}/bin/containerkit-oci"
    path = _below(root, configuration)
    before = _read(path)
    after = configured(before, program, path=configuration)
    command = _command(prefix)
    target = _below(root, prefix)
    new, old = f"{target}.new", f"{target}.old"
    for each in (new, old):
        shutil.rmtree(each, ignore_errors=True)
    os.makedirs(f"{new}/lib")
    loader = _copy_files(new, f"{new}/lib/packages")
    _write(f"{new}/bin/python", _LAUNCHER.format(prefix=prefix, loader=loader).encode(), 0o755)
    _write(f"{new}/bin/containerkit-oci", command, 0o755)
    if os.path.isdir(target):
        os.rename(target, old)
    os.rename(new, target)
    shutil.rmtree(old, ignore_errors=True)
    if before == after:
        return False
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if before and not os.path.exists(f"{path}.before-containerkit"):
        shutil.copy2(path, f"{path}.before-containerkit")
    _replace(path, after)
    return True


def uninstall(root: str, *, prefix: str = PREFIX, configuration: str = CONFIGURATION) -> bool:
    """Remove the files and the configuration of :func:`install` from a node. Does nothing if there are none.

    Args:
        root, prefix, configuration: as for :func:`install`.

    Returns:
        Whether the configuration has changed.

    Raises:
        SpecError: the added lines in the configuration are incomplete; nothing was removed.
        OSError: a file of the node can't be read or written.
    """
    path = _below(root, configuration)
    before = _read(path)
    after = _without_ours(before)
    if before != after:
        _replace(path, after)
    target = _below(root, prefix)
    if os.path.isdir(target):
        shutil.rmtree(target)
    return before != after


def _below(root: str, path: str) -> str:
    return os.path.join(root, path.lstrip("/"))


def _command(prefix: str) -> bytes:
    """Return the OCI command. The Python that it executes is the launcher."""
    code = _PROGRAM.format(packages=f"{prefix}/lib/packages", resumed=front.RESUMED)
    command = front.configured(f"{prefix}/bin/python", code)
    if command is None:
        raise UnsupportedError("copy", ENOENT, front.FRONT, "it was not built: install containerkit from a wheel")
    return command


def _write(path: str, content: bytes, mode: int) -> None:
    with open(path, "wb") as file:
        file.write(content)
    os.chmod(path, mode)

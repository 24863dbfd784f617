"""The bytecode of what ``create`` and ``exec`` import, which the launcher carries in one piece.

Python's own import opens, checks and reads a file for each of about fifty modules, which takes a tenth of the processor
time of ``create``. As in Python's own files, bytecode is only used while its source has the size and the time that it
had when the launcher was written. Otherwise, and for all other modules, Python imports from the package as usual.

The layout: Python's number of its bytecode format, four bytes; the bytecode of this module and the table of the others,
as marshal writes them; the bytecode of the others.

This module is itself carried, and is executed before any other is imported. So it imports only what the interpreter
has loaded at its start.
"""

import marshal
import posix
import sys
from _frozen_importlib import ModuleSpec
from _frozen_importlib_external import MAGIC_NUMBER, ExtensionFileLoader, SourceFileLoader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import CodeType

    Stamp = tuple[int, int]
    Row = tuple[str, str, bool, Stamp, int, int]
    """The file, its bytecode file, whether it is a package, its stamp, the bytecode's place and size. An extension has
    none, and the size 0."""

__all__ = ["gather", "install"]

_VERBS = ("create", "execute")
_OFTEN = ("cgroups", "filters", "hooks", "lifehooks", "limits", "console", "devicerules", "sysfs", "cgroupmounts")
"""What the configurations of engines need besides, in ``containerkit.oci``."""
_OTHERS = ("fcntl", "pwd", "resource")
"""Modules of Python that they import late. Most Pythons have them built in, and then nothing is carried."""

_STARTED = ("encodings", "encodings.aliases", "encodings.utf_8")
"""What the interpreter itself imports from files at its start."""


class _Loader(SourceFileLoader):
    """Loads a module as from its source, with the bytecode that is carried."""

    def __init__(self, name: str, path: str, code: memoryview) -> None:
        super().__init__(name, path)
        self._code = code

    def get_code(self, fullname: str) -> "CodeType":  # noqa: ARG002 - the name is that of this loader
        code: CodeType = marshal.loads(self._code)  # noqa: S302 - of the file that is being executed
        return code


class _Finder:
    """Finds the modules whose files are unchanged.

    Args:
        table: a row for each module, by its name.
        codes: the bytecode of all of them, followed by nothing.
    """

    def __init__(self, table: "dict[str, Row]", codes: memoryview) -> None:
        self._table = table
        self._codes = codes

    def find_spec(self, name: str, path: object, target: object = None) -> "ModuleSpec | None":  # noqa: ARG002 - as called
        """Return how to load a module, None if it is not carried or has changed."""
        row = self._table.get(name)
        if row is None or _stamp(row[0]) != row[3]:
            return None
        origin, cached, is_package, _, at, size = row
        loader = _Loader(name, origin, self._codes[at : at + size]) if size else ExtensionFileLoader(name, origin)
        spec = ModuleSpec(name, loader, origin=origin)
        spec.has_location = True
        spec.cached = cached or None
        if is_package:
            spec.submodule_search_locations = [origin.rpartition("/")[0]]
        return spec


def _stamp(path: str) -> "Stamp":
    """Return the size of a file and its time of modification in nanoseconds, zeros if it does not exist."""
    try:
        status = posix.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def install(table: "dict[str, Row]", content: bytes) -> None:
    """Let imports find the modules that are carried.

    Args:
        table: that of ``content``.
        content: what :func:`gather` has returned.
    """
    size = sum(row[5] for row in table.values())
    sys.meta_path.insert(0, _Finder(table, memoryview(content)[len(content) - size :]))


def gather() -> bytes:
    """Import what is carried, and return it. The interpreter must be a new one, started with ``-IS``."""
    __import__("containerkit.oci.main")
    for name in (*_VERBS, *_OFTEN):
        __import__(f"containerkit.oci.{name}")
    for name in _OTHERS:
        __import__(name)
    table: dict[str, Row] = {}
    codes = bytearray()
    for name, module in sorted(sys.modules.items()):
        spec = module.__spec__
        if spec is None or spec.origin is None or not spec.has_location or name == __name__ or name in _STARTED:
            continue
        code = marshal.dumps(_compiled(spec.loader)) if isinstance(spec.loader, SourceFileLoader) else b""
        is_package = spec.submodule_search_locations is not None
        table[name] = spec.origin, spec.cached or "", is_package, _stamp(spec.origin), len(codes), len(code)
        codes += code
    own = _compiled(SourceFileLoader(__name__, __file__))
    return MAGIC_NUMBER + marshal.dumps((own, table)) + codes


def _compiled(loader: SourceFileLoader) -> "CodeType":
    """Return a module's bytecode without docstrings and assertions. Here, the latter are for type checkers."""
    return compile(loader.get_data(loader.path), loader.path, "exec", dont_inherit=True, optimize=2)

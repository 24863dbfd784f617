"""``launcher``: write the program that engines start.

It is the front end, ``_native/front.c``, which does ``state``, ``start``, ``kill`` and ``delete`` without an
interpreter. For everything else it executes Python. The Python of the front end that pip installs searches all
installed packages for startup hooks, which takes longer than these verbs. This one names the interpreter and the two
directories that are needed, and Python searches nothing else. It does not collect garbage or clean up at exit, because
the process lives only for milliseconds. The bytecode that ``create`` and ``exec`` need is at its end (``bytecode.py``).
"""

from __future__ import annotations

import os
import sys

from containerkit._native import front
from containerkit.oci.errors import RuntimeFailure, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from containerkit.oci.main import Call

__all__ = ["launcher", "program", "text"]

_SHEBANG_LIMIT = 255


def program() -> bytes:
    """Return the front end, or the script where the front end was not built.

    Raises:
        RuntimeFailure: see :func:`text`.
    """
    size = front.size()
    carried = _carried() if size else b""
    return front.configured(sys.executable, _code(front.RESUMED, size, carried), carried) or os.fsencode(text())


def text() -> str:
    """Return the script that does the same with Python alone.

    Raises:
        RuntimeFailure: the interpreter's path is too long for the kernel's first line of a script.
    """
    first = f"#!{sys.executable} -IS"
    if len(first) > _SHEBANG_LIMIT or " " in sys.executable:
        raise RuntimeFailure(f"{sys.executable}: the kernel does not accept this path in the first line of a script")
    return f"{first}\n{_code('')}"


def _carried() -> bytes:
    """Return the bytecode to carry, gathered by a new interpreter.

    Raises:
        RuntimeFailure: the interpreter can't import the modules.
    """
    import subprocess

    code = "from containerkit.oci.bytecode import gather\nsys.stdout.buffer.write(gather())\n"
    words = [sys.executable, "-ISc", f"import sys\nsys.path += {_directories()!r}\n{code}"]
    done = subprocess.run(words, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeFailure(f"{sys.executable}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _code(arguments: str, place: int = 0, carried: bytes = b"") -> str:
    """Return the Python code that runs the command.

    Args:
        arguments: those of ``main``.
        place: the offset in the front end of what it carries.
        carried: that. If there is any, the first argument that the front end passes is a descriptor of itself.
    """
    lines = ["import gc, sys", "gc.disable()", f"sys.path += {_directories()!r}"]
    if carried:
        lines += [
            "fd = sys.argv.pop(1)",
            "if fd:",
            " import marshal, posix",
            " from _frozen_importlib_external import MAGIC_NUMBER",
            f" content = posix.pread(int(fd), {len(carried)}, {place})",
            " posix.close(int(fd))",
            f" if content[:4] == MAGIC_NUMBER and len(content) == {len(carried)}:",
            "  code, table = marshal.loads(memoryview(content)[4:])",
            "  names = {'__name__': 'containerkit.oci.bytecode'}",
            "  exec(code, names)",
            "  names['install'](table, content)",
        ]
    lines += ["from containerkit.oci.main import leave, main", f"leave(main({arguments}))", ""]
    return "\n".join(lines)


def _directories() -> list[str]:
    """Return the directories in which Python finds this package and cffi's module."""
    import _cffi_backend  # type: ignore[import-untyped] # cffi ships no types of it

    import containerkit

    package = os.path.dirname(os.path.dirname(containerkit.__file__))
    return list(dict.fromkeys((package, os.path.dirname(_cffi_backend.__file__))))


def _hidden_from_others() -> str:
    """Return the first directory or file that the program needs and that other users can't read."""
    import containerkit

    needed = (sys.executable, os.path.realpath(sys.executable), os.path.dirname(containerkit.__file__))
    for path in needed:
        above = "/"
        for part in path.strip("/").split("/"):
            above = os.path.join(above, part)
            if not os.stat(above).st_mode & 0o001:
                return above
    return ""


def launcher(call: Call) -> int:
    """Write the program to the file named, or to the standard output."""
    content = program()
    if hidden := _hidden_from_others():
        call.journal.warning(f"launcher: other users can't run it: they can't read {hidden} (hint: chmod o+rx)")
    if not call.flags.arguments:
        sys.stdout.buffer.write(content)
        return 0
    path = call.flags.arguments[0]
    try:
        fd = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o755)
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise RuntimeFailure(f"write {path}: {strerror(error.errno or 0)}") from None
    return 0

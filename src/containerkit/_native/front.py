"""The front end of the OCI command, ``front.c``, with what it executes written into it."""

from __future__ import annotations

import os

__all__ = ["FRONT", "PYTHON", "RESUMED", "beside", "configured", "size"]

FRONT = os.path.join(os.path.dirname(__file__), "front")
RESUMED = "resumed=sys.argv.pop(1)"
"""The argument with which the interpreter's code calls ``main``: the front end passes a word of its own first."""

PYTHON = "containerkit-oci-python"
"""The program that pip writes beside the front end, which executes it for everything that it leaves to Python."""

_SIZE = 8192
_UNSET = b"containerkit-oci: the front end is not configured\n"


def size() -> int:
    """Return the size of the front end in bytes, 0 if it was not built."""
    return len(_built())


def configured(interpreter: str, code: str, carried: bytes = b"") -> bytes | None:
    """Return the program.

    Args:
        interpreter: the absolute path of Python, or of a program that takes the same arguments.
        code: what Python runs for all that the front end leaves to it.
        carried: what that reads at the end of the front end, from :func:`size` on. If there is any, the first argument
            is a descriptor of the front end for this, or empty, and the next one the word of its own.

    Returns:
        None if the front end was not built, or has too little room.
    """
    launch = f"{interpreter}\0{code}\0" + ("carries\0" if carried else "")
    program = _with(_built(), os.fsencode(launch))
    return program if program is None else program + carried


def _built() -> bytes:
    try:
        with open(FRONT, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return b""


def beside(path: str) -> bytes:
    """Return the front end that pip installs: it executes :data:`PYTHON` in its own directory.

    Args:
        path: the program as it was built.

    Raises:
        ValueError: it is another program.
    """
    with open(path, "rb") as file:
        image = _with(file.read(), f"./{PYTHON}\0".encode())
    if image is None:
        raise ValueError(f"{path} is not the front end of the OCI command")
    return image


def _with(image: bytes, launch: bytes) -> bytes | None:
    at = image.find(_UNSET.ljust(_SIZE, b"\0"))
    if at < 0 or len(launch) >= _SIZE:
        return None
    return image[:at] + launch.ljust(_SIZE, b"\0") + image[at + _SIZE :]

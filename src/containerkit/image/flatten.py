"""Images as read-only filesystems, erofs and squashfs: made by their own tools, mounted by the kernel."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import contextmanager
from errno import ENOENT
from pathlib import Path
from typing import TYPE_CHECKING, Final

from containerkit.errors import ImageError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["make_filesystem", "mounted_filesystem"]

_TOOLS: Final = {
    "erofs": ("mkfs.erofs", "erofs-utils"),
    "squashfs": ("mksquashfs", "squashfs-tools"),
}
_MANY_FILES: Final = ("sh", "-c", 'ulimit -Sn "$(ulimit -Hn)"; exec "$@"', "sh")
"""Start a program with the maximum number of descriptors, because these tools keep one open for each parent."""
_ID: Final = "00000000-0000-0000-0000-000000000000"


def make_filesystem(root: int, path: Path, form: str, epoch: int | None) -> None:
    """Write a directory as a filesystem image. An existing file is replaced only after everything has been written.

    Args:
        root: descriptor of the directory.
        path: the file.
        form: ``erofs`` or ``squashfs``.
        epoch: in seconds; all times are set to it. Default: unchanged.

    Raises:
        SpecError: the form is unknown.
        UnsupportedError: the program that makes it is not installed.
        ImageError: the program fails.

    Source: mkfs.erofs(1); mksquashfs(1).
    """
    if form not in _TOOLS:
        raise SpecError(f"form must be one of {', '.join(_TOOLS)}, not {form!r}")
    program, package = _TOOLS[form]
    if shutil.which(program) is None:
        raise UnsupportedError("flatten", ENOENT, program, f"install {package}, or choose another form")
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    source = f"/proc/self/fd/{root}/."
    if form == "erofs":
        times = [] if epoch is None else ["-T", str(epoch)]
        command = [program, "-U", _ID, *times, str(new), source]
    else:
        times = [] if epoch is None else ["-all-time", str(epoch), "-mkfs-time", str(epoch)]
        command = [program, source, str(new), "-noappend", "-no-progress", "-quiet", *times]
    environment = {key: value for key, value in os.environ.items() if key != "SOURCE_DATE_EPOCH"}
    try:
        done = subprocess.run(
            [*_MANY_FILES, *command], capture_output=True, text=True, check=False, pass_fds=(root,), env=environment
        )
        if done.returncode != 0:
            raise ImageError(f"{program}: {(done.stderr or done.stdout).strip()[-300:]}")
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


@contextmanager
def mounted_filesystem(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Mount a filesystem image read-only for the duration of a ``with`` statement.

    Args:
        path: an erofs or squashfs file.

    Yields:
        The directory. It can be a layer of :meth:`containerkit.RootFS.overlay`.

    Raises:
        ImageError: the file is in neither format.
        UnsupportedError: this user may not mount it, or the kernel does not support it.

    Source: mount(8); erofs in the kernel's documentation.
    """
    from tempfile import mkdtemp

    form = _recognise(Path(path))
    directory = Path(mkdtemp(prefix="containerkit-"))
    try:
        done = subprocess.run(
            ["mount", "-t", form, "-o", "ro,loop,nodev,nosuid", os.fspath(path), directory],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise UnsupportedError(
                "mount", 95, f"{form} {path}", f"{done.stderr.strip()[-200:]}; needs root and {form} in the kernel"
            )
        try:
            yield directory
        finally:
            subprocess.run(["umount", directory], check=True)
    finally:
        directory.rmdir()


def _recognise(path: Path) -> str:
    """Detect the type of a filesystem by its magic number.

    Source: the kernel's fs/erofs/erofs_fs.h and fs/squashfs/squashfs_fs.h.
    """
    with path.open("rb") as file:
        start = file.read(1028)
    if start[:4] == b"hsqs":
        return "squashfs"
    if start[1024:1028] == b"\xe2\xe1\xf5\xe0":
        return "erofs"
    raise ImageError(f"{path}: neither erofs nor squashfs")

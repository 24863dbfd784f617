"""Write the processes of a container to a directory with CRIU."""

from __future__ import annotations

import os
import shutil
from errno import EIO
from typing import TYPE_CHECKING, Final

from containerkit._linux import criu
from containerkit.checkpoint import record as records
from containerkit.checkpoint.calling import call, criu_command, find_program, plain_plan
from containerkit.checkpoint.guard import finish_checkpoint, replace_owner
from containerkit.checkpoint.refusals import IMAGES, check, external_mounts
from containerkit.errors import SetupError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.checkpoint.refusals import Subject

__all__ = ["checkpoint"]

_LOG: Final = "dump.log"
_LAST: Final = "stats-dump"
"""The file that CRIU writes last."""


def checkpoint(
    subject: Subject,
    path: str | os.PathLike[str],
    guard: Callable[[], None],
    *,
    leave_running: bool,
    arguments: tuple[str, ...],
    program: str | os.PathLike[str] | None,
) -> None:
    """Write a container to a directory.

    Args:
        subject: the container.
        path: the directory. It is made, or must be empty.
        guard: starts the process that watches the owner.
        leave_running: let the processes continue; otherwise they are killed.
        arguments: more arguments for CRIU.
        program: CRIU's path; None to look it up in ``PATH``.

    Raises:
        StateError, UnsupportedError: as :func:`containerkit.checkpoint.refusals.check`; nothing was made.
        SpecError: the directory is not empty.
        SetupError: it failed. The container continues to run, and the directory is unchanged.
    """
    check(subject)
    criu_path = find_program(program)
    mounts = external_mounts(subject)
    images = _Images(path)
    try:
        guard()
        owner = replace_owner(subject.pid, subject.pidfd)
        record = records.Record(
            spec=subject.spec,
            owner=owner,
            image=criu.file_key(subject.pid, "exe"),
            mounts=mounts,
            network=_network(subject),
            arguments=arguments,
        )
        records.write(images.fd, record)
        words = [criu_path, "dump", "--tree", str(subject.pid), *criu.logged(images.below, images.path, _LOG)]
        words += ["--manage-cgroups=ignore", *arguments, *(["--leave-running"] if leave_running else [])]
        keys = [record.image, *(f"mnt[{mount}]:{mount}" for mount, _ in mounts)]
        keys += [record.network] if record.network else []
        _run([*words, *criu.external(keys)], images)
    finally:
        finish_checkpoint(subject.pidfd)
        images.close()


def _network(subject: Subject) -> str:
    """Return the key of the caller's network namespace, if the container shares it."""
    if subject.spec.namespaces.network == "new":
        return ""
    name, key = criu.NAMESPACE_KEYS["network"]
    return f"{name}[{os.stat(f'/proc/{subject.pid}/ns/{name}').st_ino}]:{key}"


def _run(words: list[str], images: _Images) -> None:
    """Run CRIU. The umask lets root of the container read the files, through its own mount (trees.py)."""
    command = criu_command(words)
    status, told = call(command, plain_plan(command), {})
    if status:
        raise SetupError("checkpoint", EIO, "", criu.failure("dump", status, told, f"{images.path}/{_LOG}"))


class _Images:
    """The directory of a checkpoint that is being written.

    Args:
        path: its path. It is made if it is missing.

    Raises:
        SpecError: it is not empty.
        SetupError: it can't be made or opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(os.fspath(path))
        self.below = f"{self.path}/{IMAGES}"
        self._made = False
        try:
            try:
                os.mkdir(self.path, 0o700)
                self._made = True
            except FileExistsError:
                if os.listdir(self.path):
                    raise SpecError(f"checkpoint: {self.path} is not empty: choose an empty directory") from None
            self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            os.fchmod(self.fd, 0o700)  # it contains the memory of processes
            os.mkdir(self.below, 0o755)
            os.chmod(self.below, 0o755)  # regardless of the umask
        except OSError as error:
            raise SetupError("mkdir", error.errno or 0, self.path) from None

    def close(self) -> None:
        """Keep what was written if it is complete, else remove it."""
        os.close(self.fd)
        if os.path.exists(f"{self.path}/{_LAST}"):
            return
        if self._made:
            shutil.rmtree(self.path)
            return
        shutil.rmtree(self.below)
        for name in os.listdir(self.path):
            os.unlink(f"{self.path}/{name}")

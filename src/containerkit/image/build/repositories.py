"""ADD of git repositories. It runs the installed program ``git``."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import attrs

from containerkit._linux.tree_walk import DIRECTORY, remove, walk
from containerkit.errors import ImageError, SpecError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Repository"]

_ADDRESS: Final = re.compile(
    r"(?:https?://[^#]+\.git|(?:git|ssh)://[^#]+|git@[A-Za-z0-9._-]+:[^#]+)(?:#(.*))?", re.DOTALL
)
_REF: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/+@=-]*")
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_CHECKSUM: Final = re.compile(r"[0-9a-f]{7,64}")
_PROTOCOLS: Final = "http:https:git:ssh"  # neither file nor protocols that run programs
_CHANGING: Final = ("logs", "hooks", "branches", "FETCH_HEAD", "ORIG_HEAD", "index")


@attrs.frozen(kw_only=True)
class Repository:
    """A commit of a repository.

    Attributes:
        address: the address of the repository.
        ref: a branch, tag or commit; empty for the repository's ``HEAD``.
        directory: the directory in it to use; empty for all.
    """

    address: str
    ref: str = ""
    directory: str = ""

    @classmethod
    def parse(cls, text: str) -> Repository | None:
        """Parse ``ADDRESS[#[REF][:DIRECTORY]]``. Return None if it is not a repository.

        An HTTP address is a repository if it ends in ``.git``.

        Raises:
            SpecError: the part after ``#`` is malformed.

        Source: Dockerfile reference, "ADD", "Adding files from a Git repository".
        """
        found = _ADDRESS.fullmatch(text)
        if found is None:
            return None
        ref, _, directory = (found[1] or "").partition(":")
        if ref and _REF.fullmatch(ref) is None:
            raise SpecError(f"{text}: {ref!r} is not a branch, tag or commit")
        return cls(address=text.partition("#")[0], ref=ref, directory=directory)

    def fetch(self, place: Path, *, checksum: str = "", keep_git: bool = False) -> str:
        """Check it out. Each file gets the time of the commit, so that the same commit gives the same files.

        Args:
            place: an empty directory.
            checksum: the required commit, or the first digits of it; empty for any.
            keep_git: whether to keep the directory ``.git``, without parts that change from fetch to fetch.

        Returns:
            The commit.

        Raises:
            SpecError: the checksum is not a commit.
            ImageError: it is not available, or it is another commit.
            UnsupportedError: ``git`` is not installed.

        Source: git-fetch(1); Dockerfile reference, "ADD --checksum" and "ADD --keep-git-dir".
        """
        if checksum and _CHECKSUM.fullmatch(checksum) is None:
            raise SpecError(f"--checksum={checksum}: for a repository it must be 7 to 64 hexadecimal digits")
        self._git(place, "init", "-q", "--template=")
        self._get(place)
        self._git(place, "checkout", "-q", "--detach", "FETCH_HEAD")
        commit = self._git(place, "rev-parse", "HEAD")
        if not commit.startswith(checksum):
            raise ImageError(f"{self.address}: {self.ref or 'HEAD'} is commit {commit}, not {checksum}")
        self._git(place, "submodule", "update", "-q", "--init", "--recursive", "--depth=1")
        time_s = int(self._git(place, "log", "-1", "--format=%ct"))
        if keep_git:
            self._normalize(place)
        else:
            _drop_git(place)
        _set_times(place, time_s * 1_000_000_000)
        return commit

    def _get(self, place: Path) -> None:
        """Fetch the one commit, or everything if the server does not provide single commits."""
        wanted = self.ref or "HEAD"
        try:
            self._git(place, "fetch", "-q", "--depth=1", "--no-tags", "--", self.address, wanted)
        except ImageError:
            self._git(place, "fetch", "-q", "--no-tags", "--", self.address, "+refs/heads/*:refs/fetched/heads/*",
                      "+refs/tags/*:refs/fetched/tags/*", *([] if _COMMIT.fullmatch(wanted) else [wanted]))  # fmt: skip
            if _COMMIT.fullmatch(wanted):
                name = wanted
            else:
                name = self._git(place, "ls-remote", "--exit-code", "--", self.address, wanted).split()[0]
            found = self._git(place, "rev-parse", "--verify", f"{name}^{{commit}}")
            (place / ".git/FETCH_HEAD").write_text(f"{found}\t\tfetched\n")

    def _normalize(self, place: Path) -> None:
        """Convert ``.git`` to a form that depends only on the commit."""
        for name in self._git(place, "for-each-ref", "--format=%(refname)", "refs/fetched").split():
            self._git(place, "update-ref", "-d", name)
        self._git(place, "remote", "add", "origin", self.address)
        for name in _CHANGING:
            path = place / ".git" / name
            with suppress(FileNotFoundError), _opened(path.parent) as above:
                remove(os.fsencode(path.name), above)
        self._git(place, "-c", "pack.threads=1", "repack", "-q", "-a", "-d", "-f")
        self._git(place, "prune")
        self._git(place, "read-tree", "HEAD")

    def _git(self, place: Path, *words: str) -> str:
        """Run ``git`` without user settings and without prompts."""
        own = {
            "GIT_ALLOW_PROTOCOL": _PROTOCOLS, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -o BatchMode=yes", "LC_ALL": "C",
        }  # fmt: skip
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("GIT_") or "SSL" in key}
        try:
            done = subprocess.run(
                ["git", "-c", "core.hooksPath=/dev/null", "-c", "gc.auto=0", *words],
                cwd=place, env=inherited | own, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                umask=0o022, errors="replace",
            )  # fmt: skip
        except FileNotFoundError as error:
            raise UnsupportedError("git", 2, self.address, "install git") from error
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            problem = lines[-1] if lines else f"exit status {done.returncode}"
            raise ImageError(f"{self._shown()}: git {words[0]}: {problem}")
        return done.stdout.strip()

    def _shown(self) -> str:
        """Return the address without a password."""
        parts = urlsplit(self.address) if "://" in self.address else None
        if parts is None or not parts.password:
            return self.address
        return parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}").geturl()


def _drop_git(place: Path) -> None:
    with _opened(place) as root:
        for trail, directories, files in walk(root):
            if b".git" in (*directories, *files):  # a submodule has it as a file
                remove(b".git", trail.fd)
            if b".git" in directories:
                directories.remove(b".git")


def _set_times(place: Path, time_ns: int) -> None:
    with _opened(place) as root:  # setting a time does not change the directory above
        for trail, directories, files in walk(root):
            for name in (*files, *directories):
                os.utime(name, ns=(time_ns, time_ns), dir_fd=trail.fd, follow_symlinks=False)
        os.utime(root, ns=(time_ns, time_ns))


@contextmanager
def _opened(place: Path) -> Iterator[int]:
    descriptor = os.open(place, DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

"""A backend for llm-sandbox: its sessions in containers of this library, without a daemon.

::

    import containerkit.adapters.llm_sandbox  # registers "containerkit"
    from llm_sandbox import SandboxSession

    with SandboxSession(backend="containerkit", lang="python") as session:
        session.run("print(6 * 7)").stdout

Needs llm-sandbox 0.3.40 or later.
"""

from __future__ import annotations

import codecs
import io
import os
import select
import tarfile
import tempfile
import time
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Final

from llm_sandbox.backends import BackendCapabilities, register_backend
from llm_sandbox.const import SupportedLanguage
from llm_sandbox.core.config import SessionConfig
from llm_sandbox.core.session_base import BaseSession
from llm_sandbox.data import ConsoleOutput
from llm_sandbox.exceptions import (
    CommandEmptyError,
    ContainerError,
    LibraryInstallationNotSupportedError,
    NotOpenSessionError,
    SandboxTimeoutError,
)

from containerkit.container.lifecycle import Container
from containerkit.errors import ContainerTimeout, SetupError
from containerkit.process.process import DEVNULL, OUTPUT_LIMIT_BYTES, PIPE
from containerkit.spec.command import DEFAULT_ENVIRONMENT
from containerkit.spec.rootfs import RootFS

if TYPE_CHECKING:
    from collections.abc import Callable

    from containerkit.process.process import Process

__all__ = ["ContainerkitSession"]

_PROGRAMS: Final = "/opt/containerkit/bin"
"""The directory of ``python`` in a root with the host's programs, because Debian only has ``python3``."""


_PATH: Final = {"PATH": f"{DEFAULT_ENVIRONMENT['PATH']}:{_PROGRAMS}"}


class ContainerkitSession(BaseSession):
    """A session of llm-sandbox in a :class:`containerkit.Container`.

    Args:
        image: a reference; None for the host's programs (default).
        lang: the language (default Python).
        workdir: the working directory of code (default ``"/sandbox"``).
        verbose, security_policy, default_timeout, execution_timeout, session_timeout: as in other backends.
        skip_environment_setup: as in other backends, but True by default: the setup installs packages, for which
            these containers have no network unless ``runtime_configs`` enables it.
        runtime_configs: arguments of :class:`containerkit.Container`, such as ``limits``.
        libraries: packages to install when the session opens; only with the setup of the environment.
        keep_template: as in other backends, but without effect: an image always stays.
        dockerfile, commit_container: not supported.

    Raises:
        ContainerError: an existing container, a build or a commit is requested, which this backend does not support.
        LibraryInstallationNotSupportedError: ``libraries`` without the setup of the environment.
    """

    def __init__(
        self,
        image: str | None = None,
        lang: str = SupportedLanguage.PYTHON,
        *,
        workdir: str | None = "/sandbox",
        verbose: bool = False,
        runtime_configs: dict[str, Any] | None = None,
        security_policy: Any = None,
        default_timeout: float | None = None,
        execution_timeout: float | None = None,
        session_timeout: float | None = None,
        container_id: str | None = None,
        skip_environment_setup: bool = True,
        libraries: list[str] | None = None,
        dockerfile: str | None = None,
        commit_container: bool = False,
        keep_template: bool = False,  # noqa: ARG002 - an image always stays
    ) -> None:
        if dockerfile is not None:
            raise ContainerError(
                "dockerfile: this backend builds no images: build it before, and pass its name as image="
            )
        if commit_container:
            raise ContainerError("commit_container: this backend does not commit: use session.container.commit(...)")
        if libraries and skip_environment_setup:
            raise LibraryInstallationNotSupportedError(lang)
        if container_id is not None:
            raise ContainerError("containers of this backend end with their session: can't connect to an existing one")
        config = SessionConfig(
            image=image,
            lang=SupportedLanguage(lang.upper()),
            verbose=verbose,
            workdir=workdir or "/sandbox",
            runtime_configs=runtime_configs or {},
            security_policy=security_policy,
            default_timeout=default_timeout,
            execution_timeout=execution_timeout,
            session_timeout=session_timeout,
            skip_environment_setup=skip_environment_setup,
        )
        self.container: Container | None
        self.stream = False
        self._timeout: float | None = None
        super().__init__(config=config, libraries=libraries)
        self.container_api = self

    def open(self) -> None:
        """Start the container."""
        root = None if self.config.image is None else RootFS.image(self.config.image)
        self.container = container = Container(root, **self.config.runtime_configs)
        try:
            container.start().files.make_directory(self.config.workdir)
            if root is None:
                container.files.make_directory(_PROGRAMS)
                container.run(["ln", "-s", "/usr/bin/python3", f"{_PROGRAMS}/python"], check=True)
            super().open()
            self.environment_setup()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the container. May be called twice."""
        super().close()
        if self.container is not None:
            self.container.stop()
            self.container = None

    def _handle_timeout(self) -> None:
        self.close()

    def _connect_to_existing_container(self, container_id: str) -> None:
        raise ContainerError(f"{container_id}: containers of this backend end with their session")

    def execute_command(
        self,
        command: str,
        workdir: str | None = None,
        on_stdout: Callable[[str], object] | None = None,
        on_stderr: Callable[[str], object] | None = None,
    ) -> ConsoleOutput:
        """Run a command in a shell inside, as llm-sandbox's other local backends do.

        Args:
            command: the argument of ``/bin/sh -c``.
            workdir: the working directory (default ``/``).
            on_stdout, on_stderr: called with each piece of text. An exception in them ends the command.

        Raises:
            CommandEmptyError, NotOpenSessionError, SandboxTimeoutError: as for other backends.
        """
        if not command:
            raise CommandEmptyError
        if self.container is None:
            raise NotOpenSessionError
        argv = ["/bin/sh", "-c", command]
        path = None if self.config.image is not None else _PATH
        timeout = self.config.get_execution_timeout() if self._timeout is None else self._timeout
        try:
            if on_stdout is None and on_stderr is None:
                done = self.container.run(
                    argv, extra_env=path, cwd=workdir, timeout=timeout, text=True, errors="replace"
                )
                return _output(done.returncode, done.stdout, done.stderr)
            process = self.container.popen(argv, extra_env=path, cwd=workdir, stdin=DEVNULL, stdout=PIPE, stderr=PIPE)
            with process:
                out, err = _heard_out(process, (on_stdout, on_stderr), timeout)
                return _output(process.wait(), out, err)
        except ContainerTimeout as error:
            raise SandboxTimeoutError(str(error)) from error

    def run(self, code: str, libraries: list[str] | None = None, timeout: float | None = None, **more: Any) -> Any:
        """Run code, as other backends do.

        Args:
            code: the code.
            libraries: packages to install before.
            timeout: the time limit in seconds (default: that of the session).
            more: the other arguments of :meth:`BaseSession.run`.

        Raises:
            ValueError: a timeout that is not more than 0.
        """
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: {timeout!r} is not a number of seconds above 0")
        self._timeout = timeout
        try:
            return super().run(code, libraries=libraries, timeout=timeout, **more)
        finally:
            self._timeout = None

    def copy_to_container(self, container: Any, src: str, dest: str, **_: Any) -> None:
        """Copy a file or directory in. A relative ``dest`` is relative to the working directory."""
        container.files.put(src, self._at(dest))

    def copy_from_runtime(self, src: str, dest: str) -> None:
        """Copy a file or directory out. Symlinks and devices in it are omitted.

        Raises:
            FileNotFoundError: it does not exist.
            SecurityError: ``..`` is in the path. A relative one is relative to the working directory.
            NotOpenSessionError: as for other backends.
        """
        if self.container is None:
            raise NotOpenSessionError
        inside = self._validate_container_path(os.path.join(self.config.workdir, src))
        os.makedirs(os.path.dirname(os.path.abspath(dest)), exist_ok=True)
        _get(self.container, inside, dest)

    def copy_from_container(self, container: Any, src: str, **_: Any) -> tuple[bytes, dict[str, int]]:
        """Return a file or directory as a tar archive, and its size. Symlinks and devices are omitted."""
        archive = io.BytesIO()
        with tempfile.TemporaryDirectory(prefix="containerkit-") as place:
            copy = os.path.join(place, os.path.basename(src.rstrip("/")) or "root")
            _get(container, src, copy)
            with tarfile.open(fileobj=archive, mode="w") as tar:
                tar.add(copy, arcname=os.path.basename(copy))
        content = archive.getvalue()
        return content, {"size": len(content)}

    def get_archive(self, path: str) -> tuple[bytes, dict[str, int]]:
        """Return the result of :meth:`copy_from_container`, for plots."""
        if self.container is None:
            raise NotOpenSessionError
        return self.copy_from_container(self.container, path)

    def _ensure_directory_exists(self, path: str) -> None:
        if self.container is not None:
            self.container.files.make_directory(self._at(path))

    def _at(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.config.workdir, path))

    def _ensure_ownership(self, paths: list[str]) -> None:
        """Do nothing: copied files belong to root, who also runs the commands."""

    def _process_non_stream_output(self, output: Any) -> tuple[str, str]:
        raise NotImplementedError

    def _process_stream_output(self, output: Any, on_stdout: Any = None, on_stderr: Any = None) -> tuple[str, str]:
        raise NotImplementedError


def _get(container: Container, source: str, target: str) -> None:
    try:
        container.files.get(source, target)
    except SetupError as error:
        raise FileNotFoundError(error.errno, os.strerror(error.errno or 0), source) from error


def _output(returncode: int, out: str, err: str) -> ConsoleOutput:
    return ConsoleOutput(exit_code=returncode if returncode >= 0 else 128 - returncode, stdout=out, stderr=err)


def _heard_out(
    process: Process[bytes], listeners: tuple[Callable[[str], object] | None, ...], timeout: float | None
) -> tuple[str, str]:
    """Pass on each piece of a command's output, until it has ended, and return the whole output.

    Raises:
        ContainerTimeout: the timeout expired; the command and its processes are dead.
    """
    decode = codecs.getincrementaldecoder("utf-8")
    outputs = [
        (stream, decode("replace"), hear, list[str]()) for stream, hear in zip(_pipes(process), listeners, strict=True)
    ]
    poll = select.poll()
    by_number = {each[0].fileno(): each for each in outputs}
    for number in (*by_number, process.fileno()):
        poll.register(number, select.POLLIN)
    for number in by_number:
        os.set_blocking(number, False)
    deadline = None if timeout is None else time.monotonic() + timeout
    total, ended = 0, False
    while not ended and total <= OUTPUT_LIMIT_BYTES:
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {number for number, _ in poll.poll(left)}
        if not ready and timeout is not None:
            process.kill_all("timeout")
            raise ContainerTimeout(process.args, timeout)
        ended = bool(ready - by_number.keys())
        for number in by_number.keys() & ready if not ended else by_number:
            raw = _read(number)
            if not raw and not ended:
                poll.unregister(number)
            total += len(raw)
            _, decoder, hear, pieces = by_number[number]
            if text := decoder.decode(raw, ended):
                pieces.append(text)
                if hear is not None:
                    hear(text)
    if not ended:
        process.kill_all()
    out, err = ("".join(pieces) for _, _, _, pieces in outputs)
    return out, err


def _pipes(process: Process[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdout, process.stderr


def _read(number: int) -> bytes:
    """Read what is in a pipe now, at most 1 MiB. Processes that were left running may write more forever."""
    raw = b""
    with suppress(BlockingIOError):
        while len(raw) < _PIECE and (piece := os.read(number, 65536)):
            raw += piece
    return raw


_PIECE: Final = 1 << 20


register_backend(
    "containerkit",
    ContainerkitSession,
    capabilities=BackendCapabilities(
        platforms=("linux",),
        container_images=True,
        filesystem_isolation=True,
        network_isolation=True,
        seccomp=True,
        daemon_required=False,
    ),
)

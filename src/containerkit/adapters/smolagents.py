"""A Python executor for smolagents' agents: their code runs in a container on this machine.

::

    from containerkit.adapters.smolagents import ContainerPythonExecutor
    from smolagents import CodeAgent

    agent = CodeAgent(tools=[], model=model, executor=ContainerPythonExecutor(logger=logger))

Needs smolagents 1.20 or later.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, Final, Self

from smolagents.local_python_executor import CodeOutput
from smolagents.remote_executors import RemotePythonExecutor
from smolagents.utils import AgentError

from containerkit.interpreter import Interpreter
from containerkit.meanings import explained
from containerkit.options import ContainerOptions
from containerkit.spec.rootfs import RootFS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Unpack

    from containerkit.container.template import Template
    from containerkit.interpreter import Execution
    from containerkit.options import ListOf, Word

__all__ = ["ContainerPythonExecutor"]

_REMEDY: Final = (
    "not in the container, which has no network to install it: choose a root that contains it, such as "
    "RootFS.image(...) or RootFS.host(python=sys.prefix)"
)
_SHOWN: Final = ("html", "json", "latex", "markdown", "svg", "text")
"""The MIME types of the output of a piece of code, in the order of preference."""


class _InterpreterOptions(ContainerOptions, total=False):
    root: Template | RootFS | None
    python: str
    preload: ListOf[str]
    workspace: str
    extra_env: Mapping[str, Word] | None
    output_limit_bytes: int


@explained
class ContainerPythonExecutor(RemotePythonExecutor):
    """Runs the code of an agent in an :class:`Interpreter`, which keeps variables from step to step.

    Args:
        additional_imports: modules for the code; they must be in the container, because it has no network to install
            them (default none).
        logger: a logger of smolagents.
        allow_pickle: as in smolagents: answers may be unpickled, which lets the code inside run code outside (default
            False).
        timeout: the time limit of a piece of code, in seconds (default: no limit).
        root, python: as for :class:`Interpreter` (default: the host's programs and the caller's virtual environment,
            because smolagents' tools import numpy and pillow). With another root, Python is ``"python3"``.
        preload, workspace, extra_env, output_limit_bytes: as for :class:`Interpreter`.
        options: see :class:`containerkit.options.ContainerOptions`.

    Raises:
        AgentError: a module is missing.
        SpecError, SetupError: as for :class:`Interpreter`.
    """

    def __init__(
        self,
        additional_imports: list[str] | None = None,
        logger: Any = None,
        *,
        allow_pickle: bool = False,
        timeout: float | None = None,
        **options: Unpack[_InterpreterOptions],
    ) -> None:
        if logger is None:
            from smolagents.monitoring import AgentLogger

            logger = AgentLogger()
        super().__init__(additional_imports or [], logger, allow_pickle)
        if "root" not in options:
            # It may have been called by a path with ".." or symlinks. Only the prefix is shown, by its own path.
            prefix = os.path.abspath(sys.prefix)
            directory, name = os.path.split(sys.executable)
            within = os.path.relpath(os.path.realpath(directory), os.path.realpath(prefix))
            options["root"] = RootFS.host(python=prefix)
            options.setdefault("python", os.path.join(prefix, within, name))
        self.interpreter = Interpreter(timeout=timeout, **options)
        try:
            missing = self._missing(additional_imports or [])
        except BaseException:
            self.cleanup()
            raise
        if missing:
            self.cleanup()
            raise AgentError(f"{', '.join(missing)}: {_REMEDY}", self.logger)
        self.installed_packages = list(additional_imports or [])

    def run_code_raise_errors(self, code: str) -> CodeOutput:
        """Run a piece of code.

        Raises:
            AgentError: it raised an exception, exceeded its time limit, or was killed because memory ran out.
        """
        done = self.interpreter.run_code(code)
        logs = done.stdout
        if done.error is not None and done.cause == "error":
            if done.error.name == self.FINAL_ANSWER_EXCEPTION:
                answer = self._deserialize_final_answer(done.error.value, self.allow_pickle)
                return CodeOutput(output=answer, logs=logs, is_final_answer=True)
            told = f"{done.error.name}\n{done.error.value}\n{done.error.traceback}"
            raise AgentError(f"{logs}\nExecuting code yielded an error:\n{told}", self.logger)
        if done.cause != "done":
            lost = "; all variables are lost" if done.state_lost else ""
            raise AgentError(f"{logs}\nExecuting code was ended: {done.cause}{lost}", self.logger)
        return CodeOutput(output=_output(done), logs=logs, is_final_answer=False)

    def install_packages(self, additional_imports: list[str]) -> list[str]:
        """Log which packages of tools are missing, and return the others. A tool may work without them."""
        missing = self._missing(additional_imports)
        if missing:
            self.logger.log(f"{', '.join(missing)}: {_REMEDY}")
        return [name for name in additional_imports if name not in missing]

    def _missing(self, names: list[str]) -> list[str]:
        """Return the packages that can't be imported."""
        missing: list[str] = []
        for name in names:
            module = {"pillow": "PIL"}.get(name, name.partition("[")[0].replace("-", "_"))
            done = self.interpreter.run_code(f"import importlib\nimportlib.import_module({module!r})\nNone")
            if done.error is not None:
                missing.append(name)
        return missing

    def cleanup(self) -> None:
        """End the container. May be called twice."""
        interpreter = getattr(self, "interpreter", None)
        if interpreter is not None:
            interpreter.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cleanup()


def _output(done: Execution) -> Any:
    """Return the value of the last expression for an agent: an image, otherwise text."""
    for result in done.results:
        picture = result.png or result.jpeg
        if picture is not None:
            import PIL.Image

            return PIL.Image.open(io.BytesIO(picture))
        if result.is_main_result:
            return next((value for name in _SHOWN if (value := getattr(result, name)) is not None), None)
    return None

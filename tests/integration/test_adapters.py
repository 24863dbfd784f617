"""Adapters to other projects: smolagents' executor, llm-sandbox's backend, Jupyter's provisioner."""

import os
import subprocess
import sys
import time

import pytest

from containerkit import Limits

# --- smolagents


@pytest.fixture
def executor():
    smolagents = pytest.importorskip(
        "containerkit.adapters.smolagents", exc_type=ImportError, reason="needs smolagents"
    )
    with smolagents.ContainerPythonExecutor() as made:
        yield made


def test_smolagents_keeps_variables_and_reports_outputs(executor):
    executor("x = 40")
    done = executor("print('hi')\nx + 2")
    assert (done.output, done.logs, done.is_final_answer) == ("42", "hi\n", False)


def test_smolagents_sends_variables(executor):
    executor.send_variables({"name": "World", "numbers": [1, 2], "pair": (1, 2)})
    assert executor("name, numbers, pair").output == "('World', [1, 2], (1, 2))"


def test_smolagents_takes_the_final_answer(executor):
    from smolagents import FinalAnswerTool

    executor.send_tools({"final_answer": FinalAnswerTool()})
    done = executor("final_answer({'a': [1, (2, 3)]})")
    assert (done.output, done.is_final_answer) == ({"a": [1, (2, 3)]}, True)


def test_smolagents_answers_that_would_run_code_are_refused(executor):
    """A pickle in an answer is not loaded, because it would run code in the caller."""
    import base64
    import pickle

    class Bomb:
        def __reduce__(self):
            return exec, ("raise SystemExit('ran outside')",)

    raw = base64.b64encode(pickle.dumps(Bomb())).decode()
    code = f"class FinalAnswerException(BaseException): pass\nraise FinalAnswerException('pickle:{raw}')"
    with pytest.raises(Exception, match=r"(?i)pickle"):
        executor(code)


def test_smolagents_runs_tools(executor):
    from smolagents import Tool

    class Doubling(Tool):
        name = "double"
        description = "doubles"
        inputs = {"number": {"type": "integer", "description": "what"}}  # noqa: RUF012 - as smolagents wants it
        output_type = "integer"

        def forward(self, number: int) -> int:
            return number * 2

    tool = Doubling()
    executor.interpreter.run_code(
        "import sys, types\nm = types.ModuleType('smolagents')\nclass Tool:\n    def __call__(self, *a, **k): return self.forward(*a, **k)\nm.Tool = Tool\nsys.modules['smolagents'] = m"
    )
    executor.send_tools({"double": tool})
    assert executor("double(21)").output == "42"


def test_smolagents_errors_are_errors(executor):
    from smolagents.utils import AgentError

    with pytest.raises(AgentError, match="ZeroDivisionError"):
        executor("1 / 0")
    with pytest.raises(AgentError, match="ended: lost; all variables are lost"):
        executor("import os; os._exit(1)")
    assert executor.install_packages(["no-such-package", "json"]) == ["json"]
    with pytest.raises(AgentError, match="no-such-package: not in the container"):
        type(executor)(["no-such-package"])


def test_smolagents_agent_runs_to_its_answer():
    pytest.importorskip("smolagents")
    from smolagents import CodeAgent
    from smolagents.models import ChatMessage, MessageRole, Model

    from containerkit.adapters.smolagents import ContainerPythonExecutor

    class Scripted(Model):
        steps = ["x = 6 * 7\nprint(x)", "final_answer(x)"]  # noqa: RUF012 - a script

        def generate(self, messages, **more):
            del messages, more
            code = self.steps.pop(0)
            return ChatMessage(role=MessageRole.ASSISTANT, content=f"Thought: so.\n<code>\n{code}\n</code>")

    with ContainerPythonExecutor() as executor:
        agent = CodeAgent(tools=[], model=Scripted(), executor=executor, verbosity_level=0)
        assert agent.run("what is six times seven?") == 42


def test_smolagents_in_an_interpreter_that_was_called_by_an_odd_path(tmp_path):
    pytest.importorskip("containerkit.adapters.smolagents", exc_type=ImportError, reason="needs smolagents")
    directory, name = os.path.split(sys.executable)
    odd = f"{directory}/../{os.path.basename(directory)}/{name}"
    code = "from containerkit.adapters.smolagents import ContainerPythonExecutor as E\nwith E() as e: print(e('6 * 7').output)"
    assert subprocess.check_output([odd, "-c", code], text=True, cwd=tmp_path).endswith("\n42\n")


# --- llm-sandbox


@pytest.fixture
def session():
    pytest.importorskip("llm_sandbox", reason="needs llm-sandbox")
    from llm_sandbox import SandboxSession

    import containerkit.adapters.llm_sandbox  # noqa: F401 - registers the backend

    with SandboxSession(backend="containerkit", lang="python") as made:
        yield made


def test_llm_sandbox_runs_code(session):
    done = session.run("import sys; print('hi'); print('err', file=sys.stderr)")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "hi\n", "err\n")
    assert session.run("raise SystemExit(3)").exit_code == 3
    assert "ZeroDivisionError" in session.run("1 / 0").stderr


def test_llm_sandbox_streams(session):
    heard = []
    session.run("print('a'); print('b')", on_stdout=heard.append)
    assert "".join(heard) == "a\nb\n"
    split = "printf '\\342'; sleep 0.05; printf '\\202\\254'; printf err >&2"
    pieces = []
    done = session.execute_command(split, on_stdout=pieces.append, on_stderr=pieces.append)
    assert (done.stdout, done.stderr, sorted(pieces)) == ("\u20ac", "err", ["err", "\u20ac"])

    def fails(piece):
        raise RuntimeError(piece)

    with pytest.raises(RuntimeError, match="ready"):
        session.execute_command("printf ready; sleep 1000", on_stdout=fails)
    assert session.execute_command("sleep 1000 & echo on", on_stdout=heard.append).stdout == "on\n"


def test_llm_sandbox_commands_and_files(session, tmp_path):
    (tmp_path / "in").write_text("x")
    session.copy_to_runtime(str(tmp_path / "in"), "/sandbox/deep/in")
    assert session.execute_command("cat /sandbox/deep/in").stdout == "x"
    session.copy_to_runtime(str(tmp_path / "in"), "relative")
    assert session.execute_command("cat relative", workdir="/sandbox").stdout == "x"
    session.copy_from_runtime("/sandbox/deep/in", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "x"
    with pytest.raises(FileNotFoundError):
        session.copy_from_runtime("/sandbox/missing", str(tmp_path / "no"))
    assert session.execute_command("no-such-program").exit_code == 127
    assert session.execute_command("pwd", workdir="/usr").stdout == "/usr\n"
    assert session.execute_commands(["true", "false", "true"]).exit_code == 1


def test_llm_sandbox_refuses_ways_out(session, tmp_path):
    from llm_sandbox.exceptions import SecurityError

    (tmp_path / "in").write_text("x")
    with pytest.raises(SecurityError):
        session.copy_to_runtime(str(tmp_path / "in"), "/sandbox/../etc/passwd")
    with pytest.raises(SecurityError):
        session.copy_from_runtime("../etc/passwd", str(tmp_path / "out"))
    session.execute_command(f"ln -s {tmp_path}/in /sandbox/link")
    with pytest.raises(FileNotFoundError):
        session.copy_from_runtime("/sandbox/link", str(tmp_path / "out"))


def test_llm_sandbox_refuses_unsupported_features(session):
    from llm_sandbox import SandboxSession
    from llm_sandbox.exceptions import ContainerError, LibraryInstallationNotSupportedError

    for do in (
        lambda: session.run("1", libraries=["six"]),
        lambda: SandboxSession(backend="containerkit", libraries=["six"]),
    ):
        with pytest.raises(LibraryInstallationNotSupportedError):
            do()
    with pytest.raises(TypeError):
        SandboxSession(backend="containerkit", colour=1)
    for more in {"dockerfile": "Dockerfile"}, {"commit_container": True}, {"container_id": "x"}:
        with pytest.raises(ContainerError, match=r"this backend|can't connect"):
            SandboxSession(backend="containerkit", **more)


def test_llm_sandbox_sessions_with_artifacts(session):
    """They pass all arguments that any backend has, with their defaults."""
    from llm_sandbox import ArtifactSandboxSession

    with ArtifactSandboxSession(backend="containerkit", lang="python", enable_plotting=False) as made:
        assert made.run("print(6 * 7)").stdout == "42\n"


def test_llm_sandbox_time_is_up(session):
    from llm_sandbox import SandboxSession
    from llm_sandbox.exceptions import SandboxTimeoutError

    began = time.monotonic()
    with pytest.raises(SandboxTimeoutError):
        session.run("import time; time.sleep(60)", timeout=0.5)
    assert time.monotonic() - began < 20
    with SandboxSession(backend="containerkit", default_timeout=0.1) as other:
        assert other.run("import time; time.sleep(0.3); print('done')", timeout=60).stdout == "done\n"
        with pytest.raises(ValueError, match="timeout"):
            other.run("pass", timeout=0)
        with pytest.raises(SandboxTimeoutError):
            other.execute_command("printf x; sleep 1000", on_stdout=len)


# --- Jupyter


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel", reason="needs ipykernel and jupyter_client")
    import json

    place = tmp_path / "kernels" / "boxed"
    place.mkdir(parents=True)

    def write(**config):
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            "display_name": "boxed",
            "language": "python",
            "env": {"OF_THE_SPEC": "yes"},
            "metadata": {"kernel_provisioner": {"provisioner_name": "containerkit-provisioner", "config": config}},
        }
        (place / "kernel.json").write_text(json.dumps(spec))

    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("SECRET", "of the caller")
    return write


@pytest.mark.filterwarnings("default")  # of zmq and traitlets
def test_jupyter_kernel_runs_in_a_container(kernels):
    from jupyter_client.manager import KernelManager

    kernels()
    manager = KernelManager(kernel_name="boxed")
    manager.start_kernel()
    client = manager.blocking_client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=60)

        def text(code):
            answer = client.execute_interactive(
                code, store_history=False, allow_stdin=False, timeout=30, output_hook=heard.append
            )
            assert answer["content"]["status"] == "ok"
            return [m["content"]["data"]["text/plain"] for m in heard if m["msg_type"] == "execute_result"][-1]

        heard = []
        assert text("import os, socket; os.uname().nodename") == "'container'"
        assert text("os.environ.get('SECRET'), os.environ.get('OF_THE_SPEC')") == "(None, 'yes')"
        assert text("[name for _, name in socket.if_nameindex()]") == "['lo']"
        manager.interrupt_kernel()
        manager.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert text("6 * 7") == "42"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert not manager.is_alive()


@pytest.mark.root
@pytest.mark.filterwarnings("default")  # as above
def test_jupyter_kernel_that_uses_up_its_memory_ends_alone(kernels):
    import os

    if os.geteuid() != 0:
        pytest.skip("needs root: control groups")
    from jupyter_client.manager import KernelManager

    kernels(memory="400M")
    manager = KernelManager(kernel_name="boxed")
    manager.start_kernel()
    try:
        client = manager.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        assert manager.provisioner.container.spec.limits == Limits(memory="400M")
        client.execute("b = bytearray(1 << 30)\nfor k in range(0, len(b), 4096): b[k] = 1")
        deadline = time.monotonic() + 30
        while manager.is_alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not manager.is_alive()
        client.stop_channels()
    finally:
        manager.shutdown_kernel(now=True)

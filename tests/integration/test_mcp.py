"""The interpreter over the Model Context Protocol, with MCP's own client."""

import asyncio
import json
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from importlib.util import find_spec

import pytest

pytestmark = pytest.mark.skipif(find_spec("mcp") is None, reason="needs the extra mcp")


@asynccontextmanager
async def connected(*arguments):
    """Start a server, and yield a client's session with it."""
    # Here, since each worker that collects these tests would need half a second for it.
    from mcp import ClientSession, StdioServerParameters, stdio_client

    server = StdioServerParameters(command=sys.executable, args=["-m", "containerkit.mcp", *arguments])
    async with stdio_client(server) as streams, ClientSession(*streams) as session:
        await session.initialize()
        yield session


@pytest.fixture(scope="module")
def talk():
    """A function that runs a coroutine as the client of a server, which is the same for all tests."""
    from anyio.from_thread import start_blocking_portal

    with start_blocking_portal() as portal, portal.wrap_async_context_manager(connected("--timeout", "5")) as session:

        async def within(do):
            await asyncio.wait_for(do(session), 60)

        yield partial(portal.call, within)


async def run_code(session, code, **more):
    answer = await session.call_tool("run_code", {"code": code, **more})
    return json.loads(answer.content[0].text), answer


def test_tools_are_listed_with_their_parameters(talk):
    async def do(session):
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert set(tools) == {"run_code", "read_file", "write_file", "list_files", "snapshot", "rollback", "reset"}
        assert tools["run_code"].input_schema["required"] == ["code"]
        assert all(tool.description for tool in tools.values())

    talk(do)


def test_code_files_and_snapshots(talk):
    async def do(session):
        told, _ = await run_code(session, "x = 40; print('hi')\nx + 2")
        assert (told["text"], told["stdout"], told["cause"]) == ("42", "hi\n", "done")
        told, _ = await run_code(session, "1 / 0")
        assert told["error"]["name"] == "ZeroDivisionError"
        await session.call_tool("write_file", {"path": "d/data.txt", "content": "hello"})
        assert (await session.call_tool("read_file", {"path": "d/data.txt"})).content[0].text == "hello"
        assert (await session.call_tool("list_files", {})).content[0].text == "d"
        name = (await session.call_tool("snapshot", {})).content[0].text
        await run_code(session, "x = None")
        await session.call_tool("rollback", {"name": name})
        assert (await run_code(session, "x"))[0]["text"] == "40"
        await session.call_tool("reset", {})
        assert (await run_code(session, "x"))[0]["error"]["name"] == "NameError"

    talk(do)


def test_errors_are_reported_and_do_not_end_the_server(talk):
    async def do(session):
        for name, arguments in (
            ("read_file", {"path": "missing"}),
            ("rollback", {"name": "no"}),
            ("list_files", {"path": "/no"}),
        ):
            assert (await session.call_tool(name, arguments)).is_error
        told, _ = await run_code(session, "while True: pass", timeout_s=0.3)
        assert told["cause"] == "timeout"
        assert (await run_code(session, "import os; os._exit(1)"))[0]["cause"] == "lost"
        assert (await run_code(session, "2"))[0]["text"] == "2"

    talk(do)


def test_pictures_are_pictures():
    pytest.importorskip("matplotlib")

    async def do():
        async with connected("--venv", sys.prefix) as session:
            _, answer = await run_code(session, "import matplotlib.pyplot as plt; plt.plot([1, 2]); None")
        assert [content.type for content in answer.content] == ["text", "image"]

    asyncio.run(asyncio.wait_for(do(), 60))


def test_server_that_cannot_start_reports_the_cause():
    words = [sys.executable, "-m", "containerkit.mcp", "--preload", "no_such_module"]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == 125
    assert "no_such_module" in done.stderr

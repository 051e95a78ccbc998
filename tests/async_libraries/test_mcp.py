"""The official MCP client over stdio and Streamable HTTP: a session that stays open over several calls."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from sseqbridge import Bridge, RequestAbortedError, cancel_on, enter, run
from tests.support import ROOT, in_thread, until

mcp = pytest.importorskip("mcp", reason="needs the extra sdk")

# The SDK imports modules, and reads files, when it is first used.
pytestmark = [pytest.mark.sdk, pytest.mark.blocks_its_loop]

Client = Callable[[], Any]


@contextlib.contextmanager
def served() -> Iterator[str]:
    """Serve the tests' MCP server by uvicorn in a thread, and yield its URL."""
    from tests.apps.mcp_server import server

    uvicorn_server = uvicorn.Server(uvicorn.Config(server.streamable_http_app(), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: uvicorn_server.run(sockets=[listener]), "uvicorn")
        until(lambda: uvicorn_server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
        uvicorn_server.should_exit = True
        serving.result(30)


@pytest.fixture(params=["stdio", "http"])
def connect(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A function that makes a client, which is called on the loop."""
    if request.param == "stdio":
        command = mcp.StdioServerParameters(
            command=sys.executable, args=["-m", "tests.apps.mcp_server"], cwd=ROOT, env=dict(os.environ)
        )
        yield partial(mcp.Client, command)
    else:
        with served() as url:
            yield partial(mcp.Client, url)


def test_tools_are_listed_and_called(connect: Client) -> None:
    with enter(connect) as client:
        assert [tool.name for tool in run(client.list_tools()).tools] == ["add", "count", "wait"]
        assert run(client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}
        assert run(client.call_tool("add", {"a": 3, "b": 4})).structured_content == {"result": 7}


def test_progress_of_a_tool_is_reported(connect: Client) -> None:
    progress: list[tuple[float, float | None]] = []

    async def on_progress(done: float, total: float | None, message: str | None) -> None:
        progress.append((done, total))

    with enter(connect) as client:
        result = run(client.call_tool("count", {"steps": 3}, progress_callback=on_progress))
        assert result.structured_content == {"result": "counted"}
    assert progress == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("by", ["flag", "scope"])
def test_call_is_cancelled_in_the_middle(connect: Client, by: str, tmp_path: Path) -> None:
    flag, ended = threading.Event(), tmp_path / "ended"

    def set_when_started() -> None:
        until((tmp_path / "started").exists)
        flag.set()

    watching = in_thread(set_when_started)
    with enter(connect) as client:
        if by == "flag":
            with pytest.raises(RequestAbortedError):
                run(client.call_tool("wait", {"directory": str(tmp_path)}), cancel=flag)
        else:
            with cancel_on(flag) as scope:
                run(client.call_tool("wait", {"directory": str(tmp_path)}))
            assert scope.cancelled
        watching.result(30)
        until(ended.exists)
        # The session is still good.
        assert run(client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}


def test_sessions_of_several_threads_are_open_at_once(connect: Client) -> None:
    def ask(n: int) -> int:
        with enter(connect) as client:
            return int(run(client.call_tool("add", {"a": n, "b": n})).structured_content["result"])

    asking = [in_thread(partial(ask, n)) for n in range(3)]
    assert [each.result(120) for each in asking] == [0, 2, 4]


def test_block_that_fails_ends_the_session(connect: Client) -> None:
    with pytest.raises(BaseException, match=r"of the block|unhandled errors") as caught, enter(connect) as client:
        run(client.list_tools())
        raise ZeroDivisionError("of the block")
    assert "ZeroDivisionError" in repr(caught.value)


def test_server_that_cannot_be_started_is_the_error() -> None:
    command = mcp.StdioServerParameters(command="/nonexistent")
    with pytest.raises(FileNotFoundError), enter(partial(mcp.Client, command)):
        raise AssertionError("the block must not run")


def test_bridge_of_ones_own_has_sessions(connect: Client) -> None:
    with Bridge() as bridge, bridge.enter(connect) as client:
        assert bridge.run(client.call_tool("add", {"a": 1, "b": 2})).structured_content == {"result": 3}

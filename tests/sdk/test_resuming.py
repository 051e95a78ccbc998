"""Streams of real servers that are cut in mid-answer, and resumed by another request than the one that began them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import uvicorn

from sseqbridge import ReconnectionError, ReconnectionPolicy, Timeout, request_sse
from tests.leaks import shared
from tests.proxy import CuttingProxy
from tests.support import in_thread, reserved_port, until

pytest.importorskip("mcp", reason="needs the extra sdk")

pytestmark = pytest.mark.sdk

POLICY = ReconnectionPolicy(delay=0.05, jitter=0)
GET = ReconnectionPolicy(delay=0.05, jitter=0, resume="get")


class Events:
    """An MCP event store (mcp.server.streamable_http.EventStore) in memory. Its IDs are numbers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self.events.append((stream_id, message))
        return str(len(self.events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str:
        from mcp.server.streamable_http import EventMessage

        at = int(last_event_id)
        stream_id = self.events[at - 1][0]
        for number, (stream, message) in enumerate(self.events[at:], at + 1):
            if stream == stream_id and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream_id


class Tool:
    """A tool of an MCP server that waits in mid-answer."""

    def __init__(self, *, ends_its_answer: bool = False) -> None:
        from mcp.server import MCPServer
        from mcp.server.mcpserver import Context

        self.runs = 0
        self.ends_its_answer = ends_its_answer
        self.may_go_on = threading.Event()
        self.server = MCPServer("tests")

        async def slow(ctx: Context) -> str:
            self.runs += 1
            await ctx.report_progress(1, 2)
            if self.ends_its_answer:
                await ctx.close_sse_stream()
            await anyio.to_thread.run_sync(self.may_go_on.wait, 60)
            await ctx.report_progress(2, 2)
            return "ran"

        # The SDK evaluates the annotations where it finds no local names.
        slow.__annotations__ = {"ctx": Context, "return": str}
        self.server.tool()(slow)


@contextlib.contextmanager
def served(app: Any) -> Iterator[int]:
    """Serve an application by uvicorn in a thread, and yield its port."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = in_thread(lambda: server.run(sockets=[listener]), "uvicorn")
        until(lambda: server.started)
        yield listener.getsockname()[1]
        server.should_exit = True
        serving.result(30)


def session(url: str) -> dict[str, str]:
    """Begin a session with an MCP server, and return the headers of its requests."""
    headers = {"Accept": "application/json, text/event-stream"}
    version = "2025-11-25"
    params = {"protocolVersion": version, "capabilities": {}, "clientInfo": {"name": "tests", "version": "1"}}
    begin = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
    status, answered, it = request_sse(url, headers, begin, dialect="mcp")
    assert (status, next(it)["result"]["protocolVersion"]) == (200, version)
    it.collect()
    headers |= {"Mcp-Session-Id": answered["mcp-session-id"], "MCP-Protocol-Version": version}
    initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert request_sse(url, headers, initialized).status == 202
    return headers


CALL = {"name": "slow", "arguments": {}, "_meta": {"progressToken": "p"}}


@pytest.mark.blocks_its_loop
@pytest.mark.parametrize("policy", [GET, POLICY], ids=["get", "default"])
def test_tool_of_an_mcp_server_runs_once(policy: ReconnectionPolicy) -> None:
    tool = Tool()
    app = tool.server.streamable_http_app(event_store=Events())  # type: ignore[arg-type]
    with served(app) as port, CuttingProxy(port, most=None, seed=0) as proxy:
        url = f"http://127.0.0.1:{proxy.port}/mcp"
        headers = session(url)
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": CALL}
        status, _, it = request_sse(url, headers, call, dialect="mcp", reconnect=policy)
        assert status == 200
        assert next(it)["params"]["progress"] == 1
        proxy.cut_all()
        if policy is POLICY:
            with pytest.raises(ReconnectionError, match="get"):
                next(it)
            tool.may_go_on.set()
        else:
            until(lambda: it.stats.reconnections)
            tool.may_go_on.set()
            progress, result = it.collect()
            assert progress["params"]["progress"] == 2
            assert result["result"]["content"][0]["text"] == "ran"
            assert it.outcome == "done"
        assert tool.runs == 1


@pytest.mark.blocks_its_loop
def test_answer_that_an_mcp_server_ends_on_purpose_is_resumed() -> None:
    """As servers do that keep no connection open while a tool runs (SEP-1699)."""
    tool = Tool(ends_its_answer=True)
    app = tool.server.streamable_http_app(event_store=Events(), retry_interval=50)  # type: ignore[arg-type]
    with served(app) as port:
        url = f"http://127.0.0.1:{port}/mcp"
        headers = session(url)
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": CALL}
        it = request_sse(url, headers, call, dialect="mcp", reconnect=GET).events
        assert next(it)["params"]["progress"] == 1
        until(lambda: it.stats.reconnections)
        tool.may_go_on.set()
        progress, result = it.collect()
        assert (progress["params"]["progress"], result["result"]["content"][0]["text"]) == (2, "ran")
        assert (it.outcome, tool.runs) == ("done", 1)


GRAPH = """
import asyncio
from pathlib import Path
from typing import TypedDict

from langgraph.graph import END, START, StateGraph


class State(TypedDict):
    directory: str
    steps: int


async def begin(state):
    runs = Path(state["directory"], "runs")
    await asyncio.to_thread(lambda: runs.write_text((runs.read_text() if runs.exists() else "") + "x"))
    return {"steps": 1}


async def end(state):
    while not await asyncio.to_thread(Path(state["directory"], "go").exists):
        await asyncio.sleep(0.05)
    return {"steps": 2}


builder = StateGraph(State)
builder.add_node("begin", begin)
builder.add_node("end", end)
builder.add_edge(START, "begin")
builder.add_edge("begin", "end")
builder.add_edge("end", END)
graph = builder.compile()
"""


@pytest.fixture(scope="module")
def langgraph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a LangGraph server in memory, which runs without a network."""
    program = Path(sys.prefix) / "langgraph" / "bin" / "langgraph"
    if not program.exists():
        pytest.skip(f"langgraph-cli[inmem] is not installed in {program.parents[1]}; nox -s sdk installs it")
    directory = tmp_path_factory.mktemp("langgraph")
    (directory / "graph.py").write_text(GRAPH, "utf-8")
    config = {"dependencies": ["."], "graphs": {"agent": "./graph.py:graph"}}
    (directory / "langgraph.json").write_text(json.dumps(config), "utf-8")
    command = [str(program), "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1"]
    quiet = {"LANGGRAPH_CLI_NO_ANALYTICS": "1", "LANGGRAPH_NO_VERSION_CHECK": "true", "LANGSMITH_TRACING": "false"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LANG", "PYTHON"))}
    with (
        shared(),
        reserved_port() as port,
        subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=directory,
            env=kept | quiet,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        try:
            until(lambda: _answers(f"http://127.0.0.1:{port}/ok"), timeout=120)
            yield port
        finally:
            process.kill()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=30):
            return True
    except OSError:
        return False


def test_run_of_a_langgraph_server_runs_once(langgraph: int, tmp_path: Path) -> None:
    """In a thread: the Location of a stateless run answers 404 (langgraph-api 0.16)."""
    with CuttingProxy(langgraph, most=None, seed=0) as proxy:
        url = f"http://127.0.0.1:{proxy.port}"
        request = urllib.request.Request(f"{url}/threads", b"{}", {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            path = f"/threads/{json.load(answer)['thread_id']}/runs/stream"
        run = {
            "assistant_id": "agent",
            "input": {"directory": str(tmp_path), "steps": 0},
            "stream_mode": ["values"],
            "stream_resumable": True,
            "on_disconnect": "continue",
        }
        status, headers, it = request_sse(
            url + path, {}, run, dialect="events", reconnect=GET, decode="event", timeout=Timeout(read=120)
        )
        assert status == 200
        assert "location" in headers
        steps: list[int] = []
        while steps != [0, 1]:
            event = next(it)
            if event.event == "values":
                steps.append(event.json()["steps"])
        proxy.cut_all()
        until(lambda: it.stats.reconnections)
        (tmp_path / "go").touch()
        steps += [event.json()["steps"] for event in it if event.event == "values"]
        assert steps == [0, 1, 2]
        assert it.outcome == "eof"
    assert (tmp_path / "runs").read_text("utf-8") == "x"

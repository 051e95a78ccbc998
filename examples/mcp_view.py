"""A Flask view that calls the tools of an MCP server, with MCP's asynchronous client.

    MCP_SERVER=http://localhost:8000/mcp flask --app examples.mcp_view run
    curl -d '{"a": 1, "b": 2}' -H 'Content-Type: application/json' http://127.0.0.1:5000/tools/add
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from functools import cache

from flask import Flask, request
from flask.typing import ResponseReturnValue
from mcp import Client
from mcp.types import CallToolResult, TextContent

from sseqbridge import enter, run

app = Flask(__name__)


@app.post("/tools/<name>")
def call_tool(name: str) -> ResponseReturnValue:
    with enter(lambda: Client(os.environ["MCP_SERVER"])) as client:
        try:
            result = run(client.call_tool(name, request.get_json()), timeout=30)
        except TimeoutError:
            return {"error": "the tool took too long"}, 504
    return answer_of(result)


def answer_of(result: CallToolResult) -> ResponseReturnValue:
    if result.is_error:
        return {"error": [part.text for part in result.content if isinstance(part, TextContent)]}, 502
    return result.structured_content or {}


stack = ExitStack()


@cache
def shared_client() -> Client:
    """Return the client of the process, connected by the first call."""
    return stack.enter_context(enter(lambda: Client(os.environ["MCP_SERVER"])))


@app.post("/shared/<name>")
def call_tool_of_shared_client(name: str) -> ResponseReturnValue:
    return answer_of(run(shared_client().call_tool(name, request.get_json()), timeout=30))

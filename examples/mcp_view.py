"""A Flask view that calls the tools of an MCP server, with MCP's asynchronous client.

    MCP_SERVER=http://localhost:8000/mcp flask --app examples.mcp_view run
    curl -d '{"a": 1, "b": 2}' -H 'Content-Type: application/json' http://127.0.0.1:5000/tools/add
"""

from __future__ import annotations

import os

from flask import Flask, request
from flask.typing import ResponseReturnValue
from mcp import Client

from sseqbridge import enter, run

app = Flask(__name__)


@app.post("/tools/<name>")
def call_tool(name: str) -> ResponseReturnValue:
    with enter(lambda: Client(os.environ["MCP_SERVER"])) as client:
        result = run(client.call_tool(name, request.get_json()), timeout=30)
    return result.structured_content or {}

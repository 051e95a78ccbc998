"""An MCP server for tests. `python -m tests.apps.mcp_server` serves it on standard input and output."""

from __future__ import annotations

from pathlib import Path

import anyio
from mcp.server import MCPServer
from mcp.server.mcpserver import Context

__all__ = ["server"]

server = MCPServer("tests")


@server.tool()
def add(a: int, b: int) -> int:
    """Return the sum."""
    return a + b


@server.tool()
async def count(steps: int, ctx: Context) -> str:
    """Report the progress of each step."""
    for n in range(steps):
        await ctx.report_progress(n + 1, steps)
    return "counted"


@server.tool()
async def wait(directory: str) -> str:
    """Wait forever; the files `started` and `ended` in the directory show how far it came."""
    Path(directory, "started").touch()
    try:
        await anyio.sleep_forever()
    finally:
        Path(directory, "ended").touch()
    return "not reached"


if __name__ == "__main__":
    server.run("stdio")

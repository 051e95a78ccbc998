"""Serve the page: `python -m examples.flask_chat [--host ADDRESS] [--port NUMBER]`."""

from __future__ import annotations

import argparse

from werkzeug.serving import make_server

from examples.flask_chat.app import create_app
from examples.flask_chat.upstream import upstream_from_environment


def main() -> None:
    """Serve until interrupted."""
    arguments = argparse.ArgumentParser(prog="python -m examples.flask_chat", description="A chat page on Flask.")
    arguments.add_argument("--host", default="127.0.0.1")
    arguments.add_argument("--port", type=int, default=5000, help="0: any free port")
    options = arguments.parse_args()
    upstream = upstream_from_environment()
    # One thread per request; an open stream occupies its thread.
    server = make_server(options.host, options.port, create_app(upstream), threaded=True)
    print(f"The page is at http://{options.host}:{server.port}/", flush=True)
    print(f"Requests go to {upstream.about['name']} {upstream.about['place']}. Ctrl+C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()

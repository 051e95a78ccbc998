"""Serve the Flask application."""

from __future__ import annotations

from examples.small_chat.flask_app import app

if __name__ == "__main__":
    app.run(threaded=True)

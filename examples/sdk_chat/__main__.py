"""Serve the Flask application, with an upstream of its own for OpenAI's SDK unless OPENAI_API_KEY is set."""

from __future__ import annotations

import os

from examples.sdk_chat.flask_app import app
from sseqbridge.testing import SSEServer, chat_completions

if __name__ == "__main__":
    if "OPENAI_API_KEY" in os.environ:
        app.run()
    else:
        # It repeats the prompt, a word every half second.
        with SSEServer(chat_completions(delay=0.5)) as upstream:
            os.environ.update(OPENAI_API_KEY="none", OPENAI_BASE_URL=upstream.url)
            app.run()

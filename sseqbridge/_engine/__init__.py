"""One event loop, and what crosses from it to a consumer: channels, exchanges, reconnecting, the bridge."""

"""The wire format of Server-Sent Events: events, parser, encoder, as sans-IO code."""

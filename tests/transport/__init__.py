"""Tests of BridgeTransport, with the clients of httpx and httpx2."""

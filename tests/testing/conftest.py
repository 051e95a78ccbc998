"""TLS contexts for the tests of SSEServer. The tests run once, since SSEServer is the same in each configuration."""

from __future__ import annotations

import ssl

import pytest
import trustme

from tests import tiers


def pytest_itemcollected(item: pytest.Item) -> None:
    tiers.set_defaults(item, "default")


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def server_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def client_context(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    ca.configure_trust(context)
    return context

"""SDKs find neither credentials nor telemetry in the environment."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

_PREFIXES = ("OPENAI_", "ANTHROPIC_", "GROQ_", "MISTRAL_", "CO_", "COHERE_", "LANGSMITH_", "LANGCHAIN_", "OTEL_")


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.sdk)


@pytest.fixture(autouse=True, scope="package")
def no_telemetry() -> Iterator[None]:
    """Turn telemetry off, and let no variable of the machine point an SDK elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_PREFIXES)]:
            patch.delenv(name)
        for name in ("LANGSMITH_TRACING", "LANGCHAIN_TRACING_V2", "MISTRAL_SDK_TELEMETRY"):
            patch.setenv(name, "false")
        yield

"""Pictures and servers for the workers' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from PIL import Image
from tests.chat_server import Server


@pytest.fixture(scope="session")
def squares() -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that nobody asked for are short."""
    import openai._base_client

    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.02)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.05)

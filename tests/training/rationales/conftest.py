"""Pictures for the workers' tests."""

from __future__ import annotations

import pytest
from PIL import Image


@pytest.fixture(scope="session")
def squares() -> list[Image.Image]:
    return [Image.new("RGB", (64, 64), color) for color in ("red", "green", "blue")]

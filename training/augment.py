"""Vary the pictures of a training example, with a random stream of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from mmemb_r1.modeling.media_mmemb_r1 import DEFAULTS, MediaOptions, open_image

Augment = Callable[[Image.Image, np.random.Generator], Image.Image]


def augmented(
    value: dict[str, Any], augment: Augment, rng: np.random.Generator, media: MediaOptions = DEFAULTS
) -> dict[str, Any]:
    """Apply an augmentation to each picture of an input, which `media` says how to open."""
    images = value.get("image")
    if not images:
        return value
    several = images if isinstance(images, list) else [images]
    return {**value, "image": [augment(open_image(image, media), rng) for image in several]}

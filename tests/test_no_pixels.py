"""Pictures and films without a pixel are named, at every door that plans batches by their sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1.modeling.inputs_mmemb_r1 import InputError


@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm"])
@pytest.mark.parametrize(
    "empty",
    [
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 0, 3), np.uint8),
        torch.zeros((3, 0, 5), dtype=torch.uint8),
        {"image": np.zeros((0, 0, 3), np.uint8)},
        {"video": np.zeros((4, 0, 8, 3), np.uint8)},
        {"video": np.zeros((0, 8, 8, 3), np.uint8)},
        Image.new("RGB", (0, 5)),
        {"text": "a film", "video": [Image.new("L", (3, 0))]},
    ],
    ids=repr,
)
def test_what_has_no_pixels_is_named(empty, family, thinking):
    with pytest.raises(InputError, match="Input 1 can't be embedded: its .* has no (pixels|frames)") as error:
        thinking(family).encode(["Lima", empty], reasoning="never")
    assert error.value.index == 1

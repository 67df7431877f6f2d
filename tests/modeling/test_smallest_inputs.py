"""The smallest and the emptiest input of each kind in every family: a vector of its own, or the same refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mmemb_r1.modeling.inputs_mmemb_r1 import EmptyText, InputError

PIXEL, FRAME = np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1, 1, 3), np.uint8)
SMALLEST: dict[str, Any] = {
    "a letter": "a",
    "an empty turn": {"text": EmptyText()},
    "a picture of one pixel": PIXEL,
    "a grey one": PIXEL[..., 0],
    "a tensor": torch.zeros(3, 1, 1, dtype=torch.uint8),
    "two of them and a text": {"image": [PIXEL, PIXEL], "text": "a"},
    "a video of one pixel in one frame": FRAME,
    "with its times": {"array": FRAME, "video_metadata": {"fps": 1.0}},
    "as a picture": {"video": [PIXEL]},
    "a message": [{"role": "user", "content": "a"}],
    "a message of one pixel": [{"role": "user", "content": [{"type": "image", "image": PIXEL}]}],
    "an instruction of one letter": {"text": "a", "instruction": "b"},
}
EMPTIEST: dict[str, tuple[Any, str]] = {
    "no text": ("", "it is empty. Pass some text, an image or a video."),
    "blanks": (" \n", "it is empty. Pass some text, an image or a video."),
    "a dict of nothing": ({}, "it is empty. Pass some text, an image or a video."),
    "nothing in it": ({"text": None, "image": [], "video": None}, "it is empty. Pass some text, an image or a video."),
    "a chat without turns": ([], "it is an empty list; allowed: "),
    "a turn without parts": ([{"role": "user", "content": []}], "it is empty. Pass some text, an image or a video."),
    "no pixels": (PIXEL[:0], "its image has no pixels (size (1, 0))."),
    "no bytes": (b"", "its image of 0 bytes can't be read"),
    "no frames": ({"video": FRAME[:0]}, "its video has no frames."),
    "frames without pixels": ({"video": FRAME[:, :0]}, "its image has no pixels (size (1, 0))."),
    "no bytes of a video": ({"video": b""}, "its video of 0 bytes can't be read"),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_the_smallest_inputs_have_a_vector(name, tiny):
    value = SMALLEST[name]
    if "video" in name or name in ("with its times", "as a picture"):
        if not tiny.takes_videos:
            with pytest.raises(InputError, match="Input 1 can't be embedded: this model's backbone takes no videos"):
                tiny.batch(["a neighbour", value])
            return
    alone = tiny.embed([value], reasoning="never").embeddings
    beside = tiny.embed(["a neighbour that is longer", value], reasoning="never").embeddings
    assert alone.isfinite().all() and alone.norm() > 0.99
    assert (alone[0] - beside[1]).abs().max() < 1e-4
    assert (beside[0] - beside[1]).abs().max() > 1e-4


@pytest.mark.parametrize("name", EMPTIEST)
def test_the_emptiest_inputs_are_refused_in_one_way(name, tiny):
    value, message = EMPTIEST[name]
    with pytest.raises(InputError) as error:
        tiny.batch(["a neighbour", value])
    assert str(error.value).startswith(f"Input 1 can't be embedded: {message}")

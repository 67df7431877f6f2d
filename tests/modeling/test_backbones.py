"""What differs between families of backbones is in one file, and each part does what its family needs."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmemb_r1.modeling import backbones_mmemb_r1
from mmemb_r1.modeling.backbones_mmemb_r1 import (
    cache_of,
    fitted_video,
    image_token_counter,
    is_per_token,
    media_placeholders,
    next_positions,
    rotary_positions,
    video_options,
    with_cache,
)


@pytest.mark.parametrize(("multimodal", "shape"), [(True, (3, 2, 1)), (False, (2, 1))])
def test_positions_of_later_tokens(multimodal, shape):
    base = SimpleNamespace(get_rope_index=None) if multimodal else SimpleNamespace()
    positions = next_positions(SimpleNamespace(base_model=base), torch.tensor([[4], [7]]), torch.tensor([[0], [-3]]))
    assert positions.shape == shape
    assert positions.reshape(-1, 2, 1)[0].tolist() == [[4], [4]]


def test_pictures_are_numbered_like_text_where_the_config_says_so():
    """As some published embedders were trained: no rows and columns, and nothing to add for what follows."""
    base = SimpleNamespace(get_rope_index=lambda **_: pytest.fail("rows and columns were counted"))
    vlm = SimpleNamespace(base_model=base, config=SimpleNamespace(sequential_positions=True))
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    positions, offset = rotary_positions(vlm, mask, mask, {"image_grid_thw": torch.tensor([[1, 2, 2]])})
    assert positions.tolist() == [[[0, 0, 0, 1], [0, 1, 2, 3]]] * 3
    assert offset.tolist() == [[0], [0]]


def test_what_belongs_to_tokens():
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert is_per_token(torch.ones_like(ids), ids)
    assert not is_per_token(torch.ones(2, 5), ids)  # pixels that happen to have the shape
    assert not is_per_token(torch.ones(2, 4, dtype=torch.long), ids)
    assert not is_per_token("text", ids)


def test_a_processor_that_does_not_count_is_taken_for_one_of_qwen():
    count = image_token_counter(SimpleNamespace())
    assert count(280, 28) == 11


def test_placeholders_of_media_that_a_processor_lacks():
    assert media_placeholders(SimpleNamespace(image_token="<image>", video_token=None)) == {"<image>"}


def test_videos_where_a_processor_takes_none():
    with pytest.raises(ValueError, match="takes no videos"):
        video_options(SimpleNamespace(), [{"type": "video", "video": [0], "metadata": {}}])
    assert video_options(SimpleNamespace(), [{"type": "text", "text": "a"}]) == {}


def test_no_other_file_of_the_model_asks_for_a_family():
    pattern = re.compile(r"get_rope_index|grid_thw|\w+Processor\"|_get_num_multimodal_tokens|\"pixel_")
    own = Path(backbones_mmemb_r1.__file__)
    others = [path for path in own.parent.glob("*.py") if path != own]
    assert not [path.name for path in others if pattern.search(path.read_text(encoding="utf-8"))]


def test_a_film_that_is_too_short_gets_frames_with_their_numbers():
    qwen = SimpleNamespace(video_processor=SimpleNamespace(temporal_patch_size=2))
    film = {
        "type": "video",
        "video": np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3),
        "metadata": {"fps": 24, "frames_indices": (7,)},
    }
    fitted = fitted_video(qwen, film)
    assert (fitted["video"] == film["video"].repeat(2, axis=0)).all()
    assert fitted["metadata"] == {"fps": 24, "frames_indices": [7, 7]}
    assert len(film["video"]) == 1 and film["metadata"]["frames_indices"] == (7,)
    assert fitted_video(SimpleNamespace(video_processor=None), film) is film


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_the_cache_is_called_as_the_model_calls_it(name):
    """transformers 5.24 renamed it, and a model that knows only one of the names would ignore the other."""
    scope = {}
    exec(f"class Model:\n    def forward(self, input_ids, {name}=None, **others): ...", scope)
    assert with_cache(scope["Model"](), "kept") == {name: "kept"}
    assert cache_of({"last_hidden_state": 0, name: "kept"}) == "kept"

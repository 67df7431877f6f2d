"""Build Qwen3-VL of the published sizes without their weights: numbers from `config.json` of the repositories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Qwen3VLConfig

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config


@dataclass(frozen=True)
class Size:
    """
    The numbers of a Qwen3-VL that its memory follows from.

    Attributes:
        parameters: of the published weights, as the Hub counts them; `None` for a model that is not published.
        layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary, tied: of the language model.
        vision_layers, vision_hidden, vision_intermediate, vision_heads, deepstack: of the vision tower.
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    vision_layers: int
    vision_hidden: int
    vision_intermediate: int
    vision_heads: int
    deepstack: tuple[int, ...]
    parameters: int | None = None

    @property
    def kv_bytes(self) -> int:
        """Bytes that the cache keeps of a token in bfloat16, keys and values."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim


_TEXT = {"kv_heads": 8, "head_dim": 128, "vocabulary": 151_936}
_SMALL_TOWER = {
    "vision_layers": 24, "vision_hidden": 1024, "vision_intermediate": 4096, "vision_heads": 16,
    "deepstack": (5, 11, 17),
}  # fmt: skip
_LARGE_TOWER = {
    "vision_layers": 27, "vision_hidden": 1152, "vision_intermediate": 4304, "vision_heads": 16,
    "deepstack": (8, 16, 24),
}  # fmt: skip
# Source: https://huggingface.co/Qwen/Qwen3-VL-2B-Instruct, -4B-Instruct and -8B-Instruct, config.json.
SIZES: dict[str, Size] = {
    "2B": Size(28, 2048, 6144, 16, tied=True, parameters=2_127_532_032, **_TEXT, **_SMALL_TOWER),
    "4B": Size(36, 2560, 9728, 32, tied=True, parameters=4_437_815_808, **_TEXT, **_SMALL_TOWER),
    "8B": Size(36, 4096, 12_288, 32, tied=False, parameters=8_767_123_696, **_TEXT, **_LARGE_TOWER),
}


def build(size: Size, device: str = "meta") -> Any:
    """Build an embedding model over a Qwen3-VL of a size; by default without memory for its weights."""
    sections = [size.head_dim // 2 - 2 * (size.head_dim // 6), size.head_dim // 6, size.head_dim // 6]
    text = {
        "num_hidden_layers": size.layers, "hidden_size": size.hidden, "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads, "num_key_value_heads": size.kv_heads, "head_dim": size.head_dim,
        "vocab_size": size.vocabulary, "tie_word_embeddings": size.tied,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True,
        },
    }  # fmt: skip
    vision = {
        "depth": size.vision_layers, "hidden_size": size.vision_hidden, "intermediate_size": size.vision_intermediate,
        "num_heads": size.vision_heads, "out_hidden_size": size.hidden, "deepstack_visual_indexes": [*size.deepstack],
        "num_position_embeddings": 2304, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    backbone = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size.tied)
    config = MMEmbR1Config(vlm_config=backbone, embed_token_id=1, think_token_id=2, end_think_token_id=3)
    with torch.device(device):
        return MMEmbR1Model(config)

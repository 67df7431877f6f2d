"""Configure tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any

from transformers import (
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from mmemb_r1.tiny.config import MERGE_SIZE, VISION_MLP_RATIO, Family, TinySizes, text_config, token_id
from mmemb_r1.tiny.text import tiny_chat_template

SPECIAL_TOKENS = {
    "pad_token": "<|endoftext|>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"
MAX_FRAMES = 8
TEMPORAL_PATCH_SIZE = 2
MAX_DEEPSTACK_LAYERS = 3


def _rope(sizes: TinySizes, **extra: Any) -> dict[str, Any]:
    """Divide the pairs of a head's dimensions between time, height and width (multimodal rotary embedding)."""
    pairs = sizes.head_dim // 2
    section = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **extra}


def _vision_config(sizes: TinySizes, **extra: Any) -> dict[str, Any]:
    return {
        "depth": sizes.vision_layers,
        "num_heads": sizes.num_heads,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        **extra,
    }


def _top_level(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    roles = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    ids = {f"{role}_id": token_id(tokenizer, SPECIAL_TOKENS[role]) for role in roles}
    return {"tie_word_embeddings": True, **ids}


def _qwen2_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
    vision = _vision_config(
        sizes,
        embed_dim=sizes.vision_hidden_size,
        hidden_size=sizes.hidden_size,
        mlp_ratio=VISION_MLP_RATIO,
    )
    text = text_config(sizes, tokenizer, rope_parameters=_rope(sizes))
    return Qwen2VLConfig(text_config=text, vision_config=vision, **_top_level(tokenizer))


def _qwen2_5_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    vision = _vision_config(
        sizes,
        hidden_size=sizes.vision_hidden_size,
        intermediate_size=sizes.vision_intermediate_size,
        out_hidden_size=sizes.hidden_size,
        window_size=MERGE_SIZE * sizes.patch_size,
        fullatt_block_indexes=[sizes.vision_layers - 1],
    )
    text = text_config(sizes, tokenizer, rope_parameters=_rope(sizes))
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **_top_level(tokenizer))


def deepstack_layers(vision_layers: int, num_layers: int) -> list[int]:
    """Choose the vision layers whose states are added to the first language layers, one vision layer for each.

    They are evenly spread and lie before the last vision layer, whose state the model reads anyway. A vision model of
    one layer has no other to offer than that one.
    """
    count = max(1, min(MAX_DEEPSTACK_LAYERS, vision_layers // 2, num_layers))
    return [ceil(vision_layers * i / (count + 1)) - 1 for i in range(1, count + 1)]


def _qwen3_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLConfig:
    vision = _vision_config(
        sizes,
        hidden_size=sizes.vision_hidden_size,
        intermediate_size=sizes.vision_intermediate_size,
        out_hidden_size=sizes.hidden_size,
        num_position_embeddings=sizes.grid**2,
        deepstack_visual_indexes=deepstack_layers(sizes.vision_layers, sizes.num_layers),
    )
    rope = _rope(sizes, mrope_interleaved=True)
    text = text_config(sizes, tokenizer, head_dim=sizes.head_dim, rope_parameters=rope)
    return Qwen3VLConfig(text_config=text, vision_config=vision, **_top_level(tokenizer))


def _patches(sizes: TinySizes) -> dict[str, Any]:
    return {"patch_size": sizes.patch_size, "merge_size": MERGE_SIZE, "temporal_patch_size": TEMPORAL_PATCH_SIZE}


def _pixels(sizes: TinySizes, fewest_frames: int = 1, most_frames: int = 1) -> dict[str, int]:
    """Bound the number of pixels so that a square picture becomes exactly `image_size x image_size`.

    One row of slack keeps the rounding of the processor's square roots from moving a picture to the next size.
    """
    area, slack = sizes.image_size**2, sizes.image_size
    return {"shortest_edge": fewest_frames * area - slack, "longest_edge": most_frames * area + slack}


def _processor_parts(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "image_processor": Qwen2VLImageProcessor(size=_pixels(sizes), **_patches(sizes)),
        "video_processor": Qwen2VLVideoProcessor(size=_pixels(sizes), cap_pixels_per_frame=False, **_patches(sizes)),
        "tokenizer": tokenizer,
        "chat_template": tiny_chat_template(IMAGE, VIDEO),
    }


def _make_processor(kind: type[ProcessorMixin]) -> Callable[[TinySizes, PreTrainedTokenizerFast], ProcessorMixin]:
    return lambda sizes, tokenizer: kind(**_processor_parts(sizes, tokenizer))


def _qwen3_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
    # Qwen3-VL bounds the pixels of a whole clip, its predecessors those of one frame; and its processor writes the
    # vision tokens around each frame of a video itself.
    video_processor = Qwen3VLVideoProcessor(
        size=_pixels(sizes, fewest_frames=TEMPORAL_PATCH_SIZE, most_frames=MAX_FRAMES),
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        **_patches(sizes),
    )
    parts = _processor_parts(sizes, tokenizer)
    template = tiny_chat_template(IMAGE, SPECIAL_TOKENS["video_token"])
    return Qwen3VLProcessor(**{**parts, "video_processor": video_processor, "chat_template": template})


QWEN2_VL = Family(SPECIAL_TOKENS, _qwen2_config, _make_processor(Qwen2VLProcessor))
QWEN2_5_VL = Family(SPECIAL_TOKENS, _qwen2_5_config, _make_processor(Qwen2_5_VLProcessor))
QWEN3_VL = Family(SPECIAL_TOKENS, _qwen3_config, _qwen3_processor)

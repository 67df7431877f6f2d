"""Configure tiny Qwen2-VL, Qwen2.5-VL and Qwen3-VL."""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from mmemb_r1.tiny.config import MERGE_SIZE, VISION_MLP_RATIO, Family, TinySizes, text_config
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


def _config(
    kind: type[PreTrainedConfig],
    sizes: TinySizes,
    tokenizer: PreTrainedTokenizerFast,
    vision: dict[str, Any],
    rope: dict[str, Any] | None = None,
    **text: Any,
) -> PreTrainedConfig:
    """Make the config of a whole model; `vision`, `rope` and `text` are what the generation adds."""
    pairs = sizes.head_dim // 2  # of a head's dimensions; multimodal rotary embedding: of time, height and width
    section = [pairs - 2 * (pairs // 3), pairs // 3, pairs // 3]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": section, **(rope or {})}
    vision = {
        "depth": sizes.vision_layers,
        "num_heads": sizes.num_heads,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": MERGE_SIZE,
        "temporal_patch_size": TEMPORAL_PATCH_SIZE,
        **vision,
    }
    roles = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    ids = {f"{role}_id": getattr(tokenizer, f"{role}_id") for role in roles}
    text = text_config(sizes, tokenizer, rope_parameters=rope, **text)
    return kind(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)


def _qwen2_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = {
        "embed_dim": sizes.vision_hidden_size,
        "hidden_size": sizes.hidden_size,
        "mlp_ratio": VISION_MLP_RATIO,
    }
    return _config(transformers.Qwen2VLConfig, sizes, tokenizer, vision)


def _vision_sizes(sizes: TinySizes) -> dict[str, int]:
    return {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": sizes.vision_intermediate_size,
        "out_hidden_size": sizes.hidden_size,
    }


def _qwen2_5_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = {
        **_vision_sizes(sizes),
        "window_size": MERGE_SIZE * sizes.patch_size,
        "fullatt_block_indexes": [sizes.vision_layers - 1],
    }
    return _config(transformers.Qwen2_5_VLConfig, sizes, tokenizer, vision)


def deepstack_layers(vision_layers: int, num_layers: int) -> list[int]:
    """Choose the vision layers whose states are added to the first language layers, one vision layer for each.

    They are evenly spread and lie before the last vision layer, whose state the model reads anyway. A vision model of
    one layer has no other to offer than that one.
    """
    count = max(1, min(MAX_DEEPSTACK_LAYERS, vision_layers // 2, num_layers))
    return [ceil(vision_layers * i / (count + 1)) - 1 for i in range(1, count + 1)]


def _qwen3_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = {
        **_vision_sizes(sizes),
        "num_position_embeddings": sizes.grid**2,
        "deepstack_visual_indexes": deepstack_layers(sizes.vision_layers, sizes.num_layers),
    }
    rope = {"mrope_interleaved": True}
    return _config(transformers.Qwen3VLConfig, sizes, tokenizer, vision, rope, head_dim=sizes.head_dim)


def _patches(sizes: TinySizes) -> dict[str, Any]:
    return {"patch_size": sizes.patch_size, "merge_size": MERGE_SIZE, "temporal_patch_size": TEMPORAL_PATCH_SIZE}


def _pixels(sizes: TinySizes, fewest_frames: int = 1, most_frames: int = 1) -> dict[str, int]:
    """Bound the number of pixels so that a square picture becomes exactly `image_size x image_size`."""
    area, slack = sizes.image_size**2, sizes.image_size  # slack: the processor rounds square roots
    return {"shortest_edge": fewest_frames * area - slack, "longest_edge": most_frames * area + slack}


def _processor(
    kind: type[ProcessorMixin], sizes: TinySizes, tokenizer: PreTrainedTokenizerFast, **parts: Any
) -> ProcessorMixin:
    common = {
        "image_processor": transformers.Qwen2VLImageProcessor(size=_pixels(sizes), **_patches(sizes)),
        "video_processor": transformers.Qwen2VLVideoProcessor(
            size=_pixels(sizes), cap_pixels_per_frame=False, **_patches(sizes)
        ),
        "chat_template": tiny_chat_template(tokenizer, IMAGE, VIDEO),
    }
    return kind(tokenizer=tokenizer, **{**common, **parts})


def _qwen3_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    # Qwen3-VL bounds the pixels of a whole clip, its predecessors those of one frame; and its processor writes the
    # vision tokens around each frame of a video itself.
    video_processor = transformers.Qwen3VLVideoProcessor(
        size=_pixels(sizes, fewest_frames=TEMPORAL_PATCH_SIZE, most_frames=MAX_FRAMES),
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        **_patches(sizes),
    )
    template = tiny_chat_template(tokenizer, IMAGE, tokenizer.video_token)
    parts = {"video_processor": video_processor, "chat_template": template}
    return _processor(transformers.Qwen3VLProcessor, sizes, tokenizer, **parts)


QWEN2_VL = Family(SPECIAL_TOKENS, _qwen2_config, partial(_processor, transformers.Qwen2VLProcessor))
QWEN2_5_VL = Family(SPECIAL_TOKENS, _qwen2_5_config, partial(_processor, transformers.Qwen2_5_VLProcessor))
QWEN3_VL = Family(SPECIAL_TOKENS, _qwen3_config, _qwen3_processor)

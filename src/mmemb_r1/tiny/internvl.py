"""Tiny InternVL: InternViT in front of Qwen2."""

from __future__ import annotations

from transformers import (
    GotOcr2ImageProcessor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    PreTrainedTokenizerFast,
)

from .configs import text_config, token_id, vision_config
from .family import Family
from .sizes import MERGE_SIZE, TinySizes
from .templates import chat_template

SPECIAL_TOKENS = {
    "pad_token": "<|endoftext|>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> InternVLConfig:
    return InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(sizes, tokenizer)},
        vision_config=vision_config(sizes),
        image_token_id=token_id(tokenizer, SPECIAL_TOKENS["context_image_token"]),
        image_seq_length=sizes.tokens_per_image,
        downsample_ratio=1 / MERGE_SIZE,
        tie_word_embeddings=True,
    )


def _processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> InternVLProcessor:
    size = {"height": sizes.image_size, "width": sizes.image_size}
    return InternVLProcessor(
        # The processor cuts pictures into tiles by default; with one tile at most a picture stays whole.
        image_processor=GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=1),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=size),
        image_seq_length=sizes.tokens_per_image,
        chat_template=chat_template(SPECIAL_TOKENS["context_image_token"], SPECIAL_TOKENS["video_token"]),
    )


INTERNVL = Family(SPECIAL_TOKENS, _config, _processor)

"""Tiny Idefics3 and its offspring SmolVLM."""

from __future__ import annotations

from typing import Any

from transformers import (
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from .configs import text_config, token_id, vision_config
from .family import Family
from .sizes import MERGE_SIZE, TinySizes
from .templates import chat_template

IDEFICS3_TOKENS = {
    "pad_token": "<|endoftext|>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
}
SMOLVLM_TOKENS = {**IDEFICS3_TOKENS, "video_token": "<video>"}


def _config_parts(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "text_config": {"model_type": "llama", **text_config(sizes, tokenizer)},
        "vision_config": vision_config(sizes),
        "scale_factor": MERGE_SIZE,
        "image_token_id": token_id(tokenizer, IDEFICS3_TOKENS["image_token"]),
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
    }


def _idefics3_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Idefics3Config:
    return Idefics3Config(**_config_parts(sizes, tokenizer))


def _smolvlm_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> SmolVLMConfig:
    return SmolVLMConfig(**_config_parts(sizes, tokenizer))


def _edges(sizes: TinySizes) -> dict[str, Any]:
    edge = {"longest_edge": sizes.image_size}
    return {"size": edge, "max_image_size": edge}


def _template(video: str | None = None) -> str:
    return chat_template(IDEFICS3_TOKENS["image_token"], video, end=IDEFICS3_TOKENS["eos_token"])


def _idefics3_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    return Idefics3Processor(
        image_processor=Idefics3ImageProcessor(do_image_splitting=False, **_edges(sizes)),
        tokenizer=tokenizer,
        image_seq_len=sizes.tokens_per_image,
        chat_template=_template(),
    )


def _smolvlm_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> SmolVLMProcessor:
    return SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(do_image_splitting=False, **_edges(sizes)),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**_edges(sizes)),
        image_seq_len=sizes.tokens_per_image,
        chat_template=_template(SMOLVLM_TOKENS["video_token"]),
    )


IDEFICS3 = Family(IDEFICS3_TOKENS, _idefics3_config, _idefics3_processor)
SMOLVLM = Family(SMOLVLM_TOKENS, _smolvlm_config, _smolvlm_processor)

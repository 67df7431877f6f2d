"""Tiny LLaVA: CLIP in front of Llama."""

from __future__ import annotations

from typing import Literal

from transformers import LlavaConfig, LlavaImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from .configs import text_config, token_id, vision_config
from .family import Family
from .sizes import TinySizes
from .templates import chat_template

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "image_token": "<image>",
}
FEATURES: Literal["default"] = "default"  # all patches, without the class token


def _config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    return LlavaConfig(
        text_config={"model_type": "llama", **text_config(sizes, tokenizer)},
        vision_config={
            "model_type": "clip_vision_model",
            **vision_config(sizes, projection_dim=sizes.vision_hidden_size),
        },
        image_token_index=token_id(tokenizer, SPECIAL_TOKENS["image_token"]),
        image_seq_length=sizes.grid**2,
        vision_feature_select_strategy=FEATURES,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def _processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    image_processor = LlavaImageProcessor(
        size={"shortest_edge": sizes.image_size},
        crop_size={"height": sizes.image_size, "width": sizes.image_size},
        do_pad=True,
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=sizes.patch_size,
        vision_feature_select_strategy=FEATURES,
        num_additional_image_tokens=1,
        chat_template=chat_template(SPECIAL_TOKENS["image_token"]),
    )


LLAVA = Family(SPECIAL_TOKENS, _config, _processor)

"""Tiny Gemma 3: SigLIP in front of a language model with local and global attention."""

from __future__ import annotations

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PreTrainedTokenizerFast,
)

from .configs import text_config, token_id, vision_config
from .family import Family
from .sizes import TinySizes
from .templates import chat_template

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "turn_start_token": "<start_of_turn>",
    "eos_token": "<end_of_turn>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
SLIDING_WINDOW = 512


def _config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Gemma3Config:
    text = text_config(
        sizes,
        tokenizer,
        head_dim=sizes.head_dim,
        query_pre_attn_scalar=sizes.head_dim,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
    )
    return Gemma3Config(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", **vision_config(sizes, vision_use_head=False)},
        mm_tokens_per_image=sizes.tokens_per_image,
        boi_token_index=token_id(tokenizer, SPECIAL_TOKENS["boi_token"]),
        eoi_token_index=token_id(tokenizer, SPECIAL_TOKENS["eoi_token"]),
        image_token_index=token_id(tokenizer, SPECIAL_TOKENS["image_token"]),
        tie_word_embeddings=True,
    )


def _processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> Gemma3Processor:
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": sizes.image_size, "width": sizes.image_size}),
        tokenizer=tokenizer,
        image_seq_length=sizes.tokens_per_image,
        chat_template=chat_template(
            SPECIAL_TOKENS["boi_token"],
            start=SPECIAL_TOKENS["turn_start_token"],
            end=SPECIAL_TOKENS["eos_token"],
        ),
    )


GEMMA3 = Family(SPECIAL_TOKENS, _config, _processor)

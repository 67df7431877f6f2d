"""The parts that the families' configs have in common."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerFast

from .sizes import TinySizes


def text_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast, **extra: Any) -> dict[str, Any]:
    """Arguments of a language model's config; `extra` adds to them or replaces them."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "max_position_embeddings": sizes.max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        **extra,
    }


def vision_config(sizes: TinySizes, **extra: Any) -> dict[str, Any]:
    """Arguments of a CLIP-like vision model's config; `extra` adds to them or replaces them."""
    return {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": sizes.vision_intermediate_size,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.num_heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        **extra,
    }


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """Id of a control token."""
    return tokenizer.get_vocab()[token]

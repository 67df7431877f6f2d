"""Describe the sizes of a tiny VLM, and make the parts that the configs of all families have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from mmemb_r1.tiny.text import MAX_LENGTH

MERGE_SIZE = 2
VISION_MLP_RATIO = 4  # width of the vision model's MLP over that of its states


@dataclass(frozen=True)
class TinySizes:
    """Sizes that all families have.

    A square picture becomes `image_size x image_size` pixels and then `(image_size / patch_size / 2) ** 2` tokens
    (LLaVA, which merges nothing: four times as many). Of other pictures the Qwen families keep the aspect, within that
    area; LLaVA pads and the rest stretch them to a square. ValueError if a size is not a positive integer or two sizes
    do not fit together.
    """

    hidden_size: int = 32  # width of the language model
    num_layers: int = 2  # of the language model
    num_heads: int = 4  # of the language model and of the vision model
    vision_hidden_size: int = 16  # width of the vision model
    vision_layers: int = 2
    image_size: int = 64  # edge of a picture, in pixels
    patch_size: int = 16  # edge of a patch, in pixels

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"Got {field.name}={value!r}, which must be an integer of at least 1.")
        # Rotary embeddings pair the dimensions of a text head, and those of a vision head once per image axis.
        self._check_multiple("hidden_size", 2 * self.num_heads, "2 * num_heads")
        self._check_multiple("vision_hidden_size", 4 * self.num_heads, "4 * num_heads")
        self._check_multiple("image_size", MERGE_SIZE * self.patch_size, f"{MERGE_SIZE} * patch_size")

    def _check_multiple(self, name: str, factor: int, rule: str) -> None:
        if getattr(self, name) % factor:
            raise ValueError(f"Got {name}={getattr(self, name)}, which must be a multiple of {rule} = {factor}.")

    @classmethod
    def from_kwargs(cls, sizes: dict[str, Any]) -> TinySizes:
        """Make sizes from keyword arguments. ValueError, with the known names, for an unknown one."""
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(set(sizes) - set(allowed))
        if unknown:
            raise ValueError(f"Got unknown size(s) {unknown}. Allowed: {allowed}.")
        return cls(**sizes)

    @property
    def num_key_value_heads(self) -> int:
        """Key-value heads of the language model: half of its heads, or all of them if their number is odd."""
        return self.num_heads if self.num_heads % 2 else self.num_heads // 2

    @property
    def intermediate_size(self) -> int:
        """Width of the language model's MLP."""
        return 3 * self.hidden_size

    @property
    def head_dim(self) -> int:
        """Width of one head of the language model."""
        return self.hidden_size // self.num_heads

    @property
    def vision_intermediate_size(self) -> int:
        """Width of the vision model's MLP."""
        return VISION_MLP_RATIO * self.vision_hidden_size

    @property
    def grid(self) -> int:
        """Patches along one edge of a picture."""
        return self.image_size // self.patch_size

    @property
    def tokens_per_image(self) -> int:
        """Tokens of a picture once 2 x 2 patches are merged into one."""
        return (self.grid // MERGE_SIZE) ** 2


def text_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast, **extra: Any) -> dict[str, Any]:
    """Make the arguments of a language model's config; `extra` adds to them or replaces them."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "num_key_value_heads": sizes.num_key_value_heads,
        "max_position_embeddings": MAX_LENGTH,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "tie_word_embeddings": True,
        **extra,
    }


def vision_config(sizes: TinySizes, **extra: Any) -> dict[str, Any]:
    """Make the arguments of a CLIP-like vision model's config; `extra` adds to them or replaces them."""
    return {
        "hidden_size": sizes.vision_hidden_size,
        "intermediate_size": sizes.vision_intermediate_size,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.num_heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        **extra,
    }


@dataclass(frozen=True)
class Family:
    """Hold what makes a family of VLMs: its control tokens, the config of the whole model, and the processor."""

    special_tokens: Mapping[str, str]  # role -> token, see [`train_tokenizer`]
    make_config: Callable[[TinySizes, PreTrainedTokenizerFast], PreTrainedConfig]
    make_processor: Callable[[TinySizes, PreTrainedTokenizerFast], ProcessorMixin]

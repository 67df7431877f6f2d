"""Build tiny random VLMs and their processors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig, PreTrainedModel, ProcessorMixin

from mmemb_r1.tiny.config import Family, TinySizes
from mmemb_r1.tiny.others import GEMMA3, IDEFICS3, INTERNVL, LLAVA, SMOLVLM
from mmemb_r1.tiny.qwen import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from mmemb_r1.tiny.text import DEFAULT_TEXTS, train_tokenizer

_REGISTRY: dict[str, Family] = {
    "qwen3_vl": QWEN3_VL,
    "qwen2_5_vl": QWEN2_5_VL,
    "qwen2_vl": QWEN2_VL,
    "smolvlm": SMOLVLM,
    "idefics3": IDEFICS3,
    "llava": LLAVA,
    "gemma3": GEMMA3,
    "internvl": INTERNVL,
}
FAMILIES = tuple(_REGISTRY)
WEIGHT_STD = 0.02


def build_tiny_vlm(
    family: str,
    *,
    texts: Iterable[str] | None = None,
    vocab_size: int = 384,
    seed: int = 0,
    **sizes: Any,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build a vision-language model with random weights and its processor; nothing is downloaded.

    Args:
        family (`str`): One of `FAMILIES`.
        texts (`Iterable[str]`, *optional*): Texts to train the tokenizer on; a few built-in sentences if not given.
        vocab_size (`int`, *optional*, defaults to `384`): Upper bound on the tokenizer's vocabulary.
        seed (`int`, *optional*, defaults to `0`): Seed of the weights. The global random state is left as it was.
        **sizes: Fields of [`TinySizes`], such as `hidden_size`, `num_layers` or `image_size`.

    Returns:
        The model (float32, CPU, eval mode, tied embeddings) and the family's own processor.

    Raises:
        ValueError: If the family or a size is unknown, or sizes do not fit together.
    """
    if family not in _REGISTRY:
        raise ValueError(f"Got family={family!r}. Allowed: {list(FAMILIES)}.")
    parts = _REGISTRY[family]
    checked = TinySizes.from_kwargs(sizes)
    tokenizer = train_tokenizer(DEFAULT_TEXTS if texts is None else texts, vocab_size, parts.special_tokens)
    config = parts.make_config(checked, tokenizer)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        vlm = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
        # Gemma 3 starts its projection of pictures at zero, and InternVL its position embeddings: a random model would
        # be blind to what it is shown, or to where.
        for parameter in vlm.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=WEIGHT_STD)
    vlm.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return vlm.eval(), parts.make_processor(checked, tokenizer)

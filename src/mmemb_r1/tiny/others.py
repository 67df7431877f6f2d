"""Configure tiny Gemma 3, Idefics3, SmolVLM, InternVL and LLaVA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

from mmemb_r1.tiny.config import MERGE_SIZE, Family, TinySizes, text_config, vision_config
from mmemb_r1.tiny.text import tiny_chat_template


def _square(sizes: TinySizes) -> dict[str, int]:
    return {"height": sizes.image_size, "width": sizes.image_size}


GEMMA_SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "turn_start_token": "<start_of_turn>",
    "eos_token": "<end_of_turn>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
SLIDING_WINDOW = 512


def _gemma_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    text = text_config(
        sizes,
        tokenizer,
        head_dim=sizes.head_dim,
        query_pre_attn_scalar=sizes.head_dim,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention"] * (sizes.num_layers - 1) + ["full_attention"],
    )
    return transformers.Gemma3Config(
        text_config=text,
        vision_config={"model_type": "siglip_vision_model", **vision_config(sizes, vision_use_head=False)},
        mm_tokens_per_image=sizes.tokens_per_image,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
        tie_word_embeddings=True,
    )


def _gemma_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return transformers.Gemma3Processor(
        image_processor=transformers.Gemma3ImageProcessor(size=_square(sizes)),
        tokenizer=tokenizer,
        image_seq_length=sizes.tokens_per_image,
        chat_template=tiny_chat_template(tokenizer, tokenizer.boi_token),
    )


GEMMA3 = Family(GEMMA_SPECIAL_TOKENS, _gemma_config, _gemma_processor)


IDEFICS3_TOKENS = {
    "pad_token": "<|endoftext|>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<end_of_utterance>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "image_token": "<image>",
}
SMOLVLM_TOKENS = {**IDEFICS3_TOKENS, "video_token": "<video>"}


def _idefics_config(kind: type[PreTrainedConfig]) -> Callable[[TinySizes, PreTrainedTokenizerFast], PreTrainedConfig]:
    return lambda sizes, tokenizer: kind(
        text_config={"model_type": "llama", **text_config(sizes, tokenizer)},
        vision_config=vision_config(sizes),
        scale_factor=MERGE_SIZE,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )


def _edges(sizes: TinySizes) -> dict[str, Any]:
    edge = {"longest_edge": sizes.image_size}
    return {"size": edge, "max_image_size": edge}


def _idefics3_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return transformers.Idefics3Processor(
        image_processor=transformers.Idefics3ImageProcessor(do_image_splitting=False, **_edges(sizes)),
        tokenizer=tokenizer,
        image_seq_len=sizes.tokens_per_image,
        chat_template=tiny_chat_template(tokenizer, tokenizer.image_token),
    )


def _smolvlm_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return transformers.SmolVLMProcessor(
        image_processor=transformers.SmolVLMImageProcessor(do_image_splitting=False, **_edges(sizes)),
        tokenizer=tokenizer,
        video_processor=transformers.SmolVLMVideoProcessor(**_edges(sizes)),
        image_seq_len=sizes.tokens_per_image,
        chat_template=tiny_chat_template(tokenizer, tokenizer.image_token, tokenizer.video_token),
    )


IDEFICS3 = Family(IDEFICS3_TOKENS, _idefics_config(transformers.Idefics3Config), _idefics3_processor)
SMOLVLM = Family(SMOLVLM_TOKENS, _idefics_config(transformers.SmolVLMConfig), _smolvlm_processor)


INTERNVL_SPECIAL_TOKENS = {
    "pad_token": "<|endoftext|>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def _internvl_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    return transformers.InternVLConfig(
        text_config={"model_type": "qwen2", **text_config(sizes, tokenizer)},
        vision_config=vision_config(sizes),
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=sizes.tokens_per_image,
        downsample_ratio=1 / MERGE_SIZE,
        tie_word_embeddings=True,
    )


def _internvl_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    size = _square(sizes)
    return transformers.InternVLProcessor(
        # The processor cuts pictures into tiles by default; with one tile at most a picture stays whole.
        image_processor=transformers.GotOcr2ImageProcessor(size=size, min_patches=1, max_patches=1),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size),
        image_seq_length=sizes.tokens_per_image,
        chat_template=tiny_chat_template(tokenizer, tokenizer.context_image_token, tokenizer.video_token),
    )


INTERNVL = Family(INTERNVL_SPECIAL_TOKENS, _internvl_config, _internvl_processor)


LLAVA_SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "turn_start_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "image_token": "<image>",
}
FEATURES = "default"  # all patches, without the class token


def _llava_config(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    vision = vision_config(sizes, projection_dim=sizes.vision_hidden_size)
    return transformers.LlavaConfig(
        text_config={"model_type": "llama", **text_config(sizes, tokenizer)},
        vision_config={"model_type": "clip_vision_model", **vision},
        image_token_index=tokenizer.image_token_id,
        image_seq_length=sizes.grid**2,
        vision_feature_select_strategy=FEATURES,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )


def _llava_processor(sizes: TinySizes, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    return transformers.LlavaProcessor(
        image_processor=transformers.LlavaImageProcessor(
            size={"shortest_edge": sizes.image_size}, crop_size=_square(sizes), do_pad=True
        ),
        tokenizer=tokenizer,
        patch_size=sizes.patch_size,
        vision_feature_select_strategy=FEATURES,
        num_additional_image_tokens=1,
        chat_template=tiny_chat_template(tokenizer, tokenizer.image_token),
    )


LLAVA = Family(LLAVA_SPECIAL_TOKENS, _llava_config, _llava_processor)

"""Render inputs as prompts for an engine, which opens up the places of pictures itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmemb_r1.engines.protocol import EnginePrompt
from mmemb_r1.modeling.backbones_mmemb_r1 import fitted_picture, fitted_video
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.locking_mmemb_r1 import tokenizing
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.rendering_mmemb_r1 import RENDERING_ERRORS, plain_conversations


def engine_prompts(
    processor: Any, config: Any, inputs: Sequence[Any], instruction: str | None, media: MediaOptions
) -> list[EnginePrompt]:
    """
    Open inputs and render them, each to a prompt that ends in the marker.

    Args:
        processor: the model's.
        config: the [`MMEmbR1Config`].
        inputs: as for `encode`.
        instruction: the system turn of inputs that bring none.
        media: how pictures are opened.

    Raises:
        InputError: showing the input and its position.
    """
    try:
        conversations = to_conversations(inputs, instruction=instruction, media=media)
        return [_prompt(processor, config, index, chat) for index, chat in enumerate(conversations)]
    except InputError as error:
        raise InputError(error.index, error.fault, inputs[error.index]) from error


def _prompt(processor: Any, config: Any, index: int, conversation: list[dict[str, Any]]) -> EnginePrompt:
    if any(part["type"] == "video" for turn in conversation for part in turn["content"]):
        raise InputError(
            index, "it holds a video, which engines don't take; allowed: text and pictures, or no engine at all."
        )
    token_ids, chat = folded_prompt(
        processor, conversation, processor.chat_template, config.max_text_tokens, config.max_image_tokens, index
    )
    images = tuple(part["image"] for turn in chat for part in turn["content"] if part["type"] == "image")
    return EnginePrompt(token_ids, len(token_ids), images, tuple(chat))


def folded_prompt(
    processor: Any,
    conversation: list[dict[str, Any]],
    chat_template: str,
    max_text_tokens: int | None = None,
    max_image_tokens: int | None = None,
    index: int = 0,
) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """
    Render a conversation as `render` does, but with one placeholder for each picture and video.

    Args:
        processor: of the model.
        conversation: from `to_conversations`.
        chat_template, max_text_tokens, max_image_tokens: as for `render`.
        index: of the input, for errors.

    Returns:
        The token ids, and the conversation as it was rendered: its text cut, its pictures and videos fitted.

    Raises:
        InputError: if the processor can't take it.
    """
    try:
        with tokenizing():
            (chat,) = plain_conversations(processor, [conversation], max_text_tokens)
            chat = [
                {**turn, "content": [_fitted(processor, part, max_image_tokens) for part in turn["content"]]}
                for turn in chat
            ]
            text = processor.apply_chat_template(
                chat, chat_template=chat_template, tokenize=False, add_generation_prompt=True
            )
            # as transformers does: a template that writes the first token itself gets no second one
            bos = processor.tokenizer.bos_token
            special = not (bos is not None and text.startswith(bos))
            return tuple(processor.tokenizer(text, add_special_tokens=special)["input_ids"]), chat
    except RENDERING_ERRORS as error:
        raise InputError(index, str(error)) from error


def _fitted(processor: Any, part: dict[str, Any], max_image_tokens: int | None) -> dict[str, Any]:
    return fitted_picture(processor, fitted_video(processor, part), max_image_tokens)

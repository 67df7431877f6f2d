"""Render chat conversations as the tensors of a batch: control tokens in users' text become plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .backbones_mmemb_r1 import (
    MEDIA_COUNTS,
    compatible_runs,
    fitted_picture,
    fitted_video,
    join_batches,
    picture_options,
    video_options,
)
from .inputs_mmemb_r1 import InputError, to_conversations
from .locking_mmemb_r1 import tokenizing
from .media_mmemb_r1 import MediaOptions
from .tokens_mmemb_r1 import as_plain_text, control_strings

MAX_INSTRUCTION_TOKENS = 8192  # instructions are not cut
RENDERING_ERRORS: tuple[type[Exception], ...] = (ValueError,)
try:  # transformers renders chat templates with it, and asks for it only then
    from jinja2 import TemplateError, TemplateSyntaxError

    RENDERING_ERRORS += (TemplateError,)
    TEMPLATE_ERRORS: tuple[type[Exception], ...] = (TemplateSyntaxError,)
except ImportError:
    TEMPLATE_ERRORS = ()


def truncate_text(tokenizer: Any, text: str, max_tokens: int) -> str:
    """Cut `text` to its longest beginning of at most `max_tokens` tokens."""
    if len(text.encode()) <= max_tokens:  # a token is at least one byte
        return text
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # a character may take several tokens: it is kept whole or not at all
    return text if len(offsets) <= max_tokens else text[: min(offsets[max_tokens - 1][1], offsets[max_tokens][0])]


def truncate_conversation(tokenizer: Any, conversation: list[dict[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
    """
    Cut the text of all turns but the system's to `max_tokens` tokens in all, before anything is rendered: markers and
    media are never cut.
    """
    left = max_tokens
    messages = []
    for message in conversation:
        content = []
        for part in message["content"]:
            if part["type"] == "text" and message["role"] != "system":
                text = truncate_text(tokenizer, part["text"], left) if left > 0 else ""
                left -= len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
                part = {"type": "text", "text": text}
            content.append(part)
        messages.append({"role": message["role"], "content": content})
    return messages


def check_instruction(tokenizer: Any, conversation: list[dict[str, Any]]) -> None:
    """Refuse a system turn that is too long: it is never cut, and what it costs grows with the square of it."""
    parts = [part for turn in conversation if turn["role"] == "system" for part in turn["content"]]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    if truncate_text(tokenizer, text[: 32 * MAX_INSTRUCTION_TOKENS], MAX_INSTRUCTION_TOKENS) != text:
        raise ValueError(
            f"its instruction has {len(text)} characters, which are more than {MAX_INSTRUCTION_TOKENS} tokens; make "
            "it shorter (the prompt, if that is its instruction), or pass it as text, which is cut to max_text_tokens "
            "of the config."
        )


def render_inputs(
    processor: ProcessorMixin, inputs: Sequence[Any], config: Any, instruction: str | None, allow_remote_media: bool
) -> tuple[dict[str, Any], list[list[dict[str, Any]]]]:
    """
    Open inputs and render them, as a checkpoint's config says.

    Returns:
        The tensors of the batch, see [`render`], and the conversations, see [`to_conversations`].

    Raises:
        InputError: showing the input and its position in this batch.
    """
    media = MediaOptions.of(config, allow_remote_media)
    conversations = to_conversations(inputs, instruction=instruction, media=media)
    try:
        batch = render(processor, conversations, config.max_text_tokens, max_image_tokens=config.max_image_tokens)
        return dict(batch), conversations
    except InputError as error:
        raise InputError(error.index, error.reason, inputs[error.index]) from error


def batch_features(
    processor: ProcessorMixin, inputs: Sequence[Any], config: Any, instruction: str | None, allow_remote_media: bool
) -> dict[str, Any]:
    """
    Make the tensors of a batch: those of [`render_inputs`], whose errors these are, and, of the media that are in it,
    how many each row has, `(B,)`, by the names in `MEDIA_COUNTS`.
    """
    features, conversations = render_inputs(processor, inputs, config, instruction, allow_remote_media)
    for kind, name in MEDIA_COUNTS.items():
        counts = [sum(part["type"] == kind for turn in chat for part in turn["content"]) for chat in conversations]
        if any(counts):
            features[name] = torch.tensor(counts)
    return features


def render(
    processor: ProcessorMixin,
    conversations: list[list[dict[str, Any]]],
    max_text_tokens: int | None = None,
    chat_template: str | None = None,
    max_image_tokens: int | None = None,
) -> BatchFeature:
    """
    Render conversations as the tensors of a batch, padded on the left, each prompt ending in `<|embed|>`.

    Control tokens inside the users' text are encoded as plain text. Encoding, training and reinforcement learning all
    come through here.

    Args:
        processor: the processor.
        conversations: from [`to_conversations`].
        max_text_tokens: the text of a conversation is cut to so many tokens. Default: never.
        chat_template: takes the place of the processor's, for prompts that are not to be embedded.
        max_image_tokens: pictures are made smaller, so that each has so many tokens at most. Default: as large as the
            processor makes them.

    Raises:
        InputError: naming the index of the conversation that the processor can't take.
        ValueError: if it takes each of them alone but not all together, or the chat template is none.
    """
    with tokenizing():
        try:
            return _render(processor, conversations, max_text_tokens, chat_template, max_image_tokens)
        except TEMPLATE_ERRORS as error:
            raise ValueError(
                f"The chat template is no template of Jinja ({error}). It is chat_template.jinja of the checkpoint, "
                "or what was set in its place; save or download the checkpoint again, or correct it."
            ) from error
        except RENDERING_ERRORS as error:
            for index, chat in enumerate(conversations):
                try:
                    _render(processor, [chat], max_text_tokens, chat_template, max_image_tokens)
                except RENDERING_ERRORS as alone:
                    raise InputError(index, str(alone)) from error
            raise


def _render(
    processor: ProcessorMixin,
    conversations: list[list[dict[str, Any]]],
    max_text_tokens: int | None,
    chat_template: str | None,
    max_image_tokens: int | None,
) -> BatchFeature:
    conversations = plain_conversations(processor, conversations, max_text_tokens)
    runs = compatible_runs(processor, conversations)
    batches = [_render_run(processor, run, chat_template, max_image_tokens) for run in runs]
    if len(batches) == 1:
        return batches[0]
    return BatchFeature(join_batches(batches, processor.tokenizer.pad_token_id))


def _render_run(
    processor: ProcessorMixin,
    conversations: Sequence[list[dict[str, Any]]],
    chat_template: str | None,
    max_image_tokens: int | None,
) -> BatchFeature:
    def fitted(part: dict[str, Any]) -> dict[str, Any]:
        return fitted_picture(processor, fitted_video(processor, part), max_image_tokens)

    conversations = [
        [{**turn, "content": [fitted(part) for part in turn["content"]]} for turn in chat] for chat in conversations
    ]
    parts = [part for chat in conversations for message in chat for part in message["content"]]
    has_pictures = any(part["type"] == "image" for part in parts)
    options = picture_options(processor, max_image_tokens) if has_pictures else {}
    return processor.apply_chat_template(
        conversations,
        # unless it is given, SmolVLM's processor replaces it beside videos
        chat_template=chat_template or processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={
            "padding": True,
            "padding_side": "left",
            **({"images_kwargs": options} if options else {}),
            **video_options(processor, parts),
        },
    )


def plain_conversations(
    processor: ProcessorMixin, conversations: list[list[dict[str, Any]]], max_text_tokens: int | None = None
) -> list[list[dict[str, Any]]]:
    """
    Clean conversations as [`render`] does: no control strings in their text, which is cut to so many tokens.
    Those that went through here once stay as they are.
    """
    controls = control_strings(processor)
    conversations = [_with_plain_text(chat, controls) for chat in conversations]
    for chat in conversations:
        check_instruction(processor.tokenizer, chat)
    if max_text_tokens is None:
        return conversations
    return [truncate_conversation(processor.tokenizer, chat, max_text_tokens) for chat in conversations]


def _with_plain_text(conversation: list[dict[str, Any]], controls: tuple[str, ...]) -> list[dict[str, Any]]:
    """Break control strings. Neighbouring texts become one: templates join them, and halves would make a whole."""
    messages = []
    for message in conversation:
        content: list[dict[str, Any]] = []
        for part in message["content"]:
            if part["type"] == "text" and content and content[-1]["type"] == "text":
                part = {"type": "text", "text": content.pop()["text"] + part["text"]}
            content.append(part)
        content = [
            {**part, "text": as_plain_text(part["text"], controls)} if part["type"] == "text" else part
            for part in content
        ]
        messages.append({"role": message["role"], "content": content})
    return messages

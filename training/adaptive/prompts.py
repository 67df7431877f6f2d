"""Make the prompts of a policy of a pairs table, in the form that TRL's trainers read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.content import content_key, given_parts
from mmemb_r1.modeling.backbones_mmemb_r1 import fitted_picture
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import DEFAULTS, MediaOptions
from mmemb_r1.modeling.rendering_mmemb_r1 import plain_conversations, render
from mmemb_r1.training.distributed import evaluating, gather_rows, num_processes, process_index
from mmemb_r1.training.tables import PAIR_COLUMNS, StoredInputs, check_pairs

BATCH_SIZE = 32
Messages = list[dict[str, Any]]


def policy_prompts(
    pairs: Dataset,
    processor: ProcessorMixin,
    max_text_tokens: int | None = None,
    max_image_tokens: int | None = None,
    media: MediaOptions = DEFAULTS,
) -> Dataset:
    """
    Make prompts of the queries of a pairs table; texts longer than `max_text_tokens` are cut, and pictures that
    the processor alone would not keep within `max_image_tokens` made smaller.

    Returns:
        Rows, in which pictures and videos are opened when they are read, as `media` says, of `prompt` (chat messages
        with a place for each picture, and with their videos), `images` (a list, `[]` where there are none), `row` (in
        `pairs`) and `pair_id`. A bad table, or, when it is read, a query that is unusable, is a `ValueError`.
    """
    check_pairs(pairs, PAIR_COLUMNS)
    table = pairs.select_columns(["query"]).add_column("row", list(range(len(pairs))))
    return table.with_transform(_PromptRows(processor, max_text_tokens, max_image_tokens, media, pairs["pair_id"]))


@dataclass(frozen=True)
class _PromptRows:
    """Make prompts of the rows that are read. No closure: `datasets` would hash all functions that it leads to."""

    processor: ProcessorMixin
    max_text_tokens: int | None
    max_image_tokens: int | None
    media: MediaOptions
    ids: Sequence[str]

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows = [self._prompt(query, row) for query, row in zip(batch["query"], batch["row"], strict=True)]
        return {name: [row[name] for row in rows] for name in ("prompt", "images", "row", "pair_id")}

    def _prompt(self, query: Any, row: int) -> dict[str, Any]:
        pair_id = self.ids[row]
        try:
            conversations = to_conversations([given_parts(query)], media=self.media)
            (conversation,) = plain_conversations(self.processor, conversations, self.max_text_tokens)
        except InputError as error:
            raise ValueError(f"the query of pair {pair_id!r} can't be used: {error.reason}") from error
        parts = [
            fitted_picture(self.processor, part, self.max_image_tokens)
            for message in conversation
            for part in message["content"]
        ]
        prompt = _with_parts(conversation, lambda part: {"type": "image"})
        images = [part["image"] for part in parts if part["type"] == "image"]
        return {"prompt": prompt, "images": images, "row": row, "pair_id": pair_id}


@torch.no_grad()
def prompt_gate_inputs(model: Any, processor: ProcessorMixin, prompts: Dataset, number: int = 256) -> Tensor:
    """
    Compute what the gate reads, `(N, G)`, at the `<|embed|>` of at most `number` of the prompts, from all over their
    table. Processes share the work, and all get all of it.
    """
    width = model.config.hidden_size * len(model.config.gate_inputs)
    read = [torch.zeros(0, width, device=model.device)]
    places = range(0, len(prompts), -(-len(prompts) // number))[process_index() :: num_processes()]
    with evaluating(model):
        for start in range(0, len(places), BATCH_SIZE):
            rows = [prompts[place] for place in places[start : start + BATCH_SIZE]]
            chats = [with_pictures(row["prompt"], row["images"]) for row in rows]
            batch = render(processor, chats, max_image_tokens=model.config.max_image_tokens)
            output = model(**batch.to(model.device))
            read.append(output.gate_inputs[:, 0].float())
    return gather_rows(torch.cat(read))


def warn_of_overlap(pairs: Dataset, joint_pairs: Dataset | None) -> None:
    """Warn of queries that the joint phase was trained on: there the gate would learn that reasoning never pays."""
    if joint_pairs is None or "query" not in joint_pairs.column_names:
        return
    seen = {content_key(query) for query in StoredInputs(joint_pairs, "query")}
    number = sum(content_key(query) in seen for query in StoredInputs(pairs, "query"))
    if number:
        warnings.warn(
            f"{number} of {len(pairs)} queries are among those of the joint phase. What a model knows by heart it "
            "finds with and without a rationale, and its gate learns to skip such inputs; leave these pairs out.",
            stacklevel=3,
        )


def check_rendering(prompts: Dataset, processor: ProcessorMixin, config: Any) -> None:
    """
    Check that rollouts and log-probabilities will be of the same ids, on the first prompts with and without a picture,
    and on one with a video if it stands before them.

    It is a `ValueError` if one does not end in the marker of the `config`, or TRL, which renders text first, gives
    other ids, or if the marker is the tokenizer's end of a text, with which completions end.
    """
    if config.embed_token_id == processor.tokenizer.eos_token_id:
        raise ValueError(
            f"The marker (id {config.embed_token_id}) is the tokenizer's eos_token, with which TRL ends completions; "
            "set another eos_token in the checkpoint's tokenizer_config.json."
        )
    first: dict[str, int] = {}
    for place, query in enumerate(StoredInputs(prompts, "query")):  # no picture is opened for it
        first.setdefault(next((kind for kind in ("video", "image") if kind in query), "text"), place)
        if {"image", "text"} <= first.keys():
            break
    for place in first.values():
        _check_prompt(prompts[place], processor, config.embed_token_id)


def _check_prompt(row: dict[str, Any], processor: ProcessorMixin, embed_token_id: int | None) -> None:
    conversation = with_pictures(row["prompt"], row["images"])
    ids = render(processor, [conversation])["input_ids"][0].tolist()
    if ids[-1] != embed_token_id or ids.count(embed_token_id) != 1:
        raise ValueError(
            f"The prompt of pair {row['pair_id']!r} does not end in `<|embed|>` (id {embed_token_id}); pass the "
            "processor that is saved beside the model, with its chat template."
        )
    if holds_video(conversation):  # which TRL does not render
        return
    text = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    theirs = processor(text=[text], images=[row["images"]] if row["images"] else None)["input_ids"][0]
    if list(theirs) != ids:
        raise ValueError(
            f"The prompt of pair {row['pair_id']!r} has other ids when its text is rendered first ({list(theirs)[:8]} "
            f"... against {ids[:8]} ...): log-probabilities would be of other prompts than the rollouts'."
        )


def holds_video(prompt: Messages) -> bool:
    """Tell whether a prompt holds a video, which TRL's own way from prompts to tensors does not take."""
    return any(part["type"] == "video" for message in prompt for part in message["content"])


def rendered_alone(
    processor: ProcessorMixin, prompts: Sequence[Messages], max_image_tokens: int | None, device: torch.device
) -> list[dict[str, Tensor]]:
    """Render each prompt as a batch of its own: what belongs to it is known, whatever form its media have."""
    return [dict(render(processor, [one], max_image_tokens=max_image_tokens).to(device)) for one in prompts]


def with_pictures(prompt: Messages, images: Sequence[Any]) -> Messages:
    """Put pictures into their places in a prompt."""
    left = iter(images)
    return _with_parts(prompt, lambda part: {"type": "image", "image": next(left)})


def without_frames(prompt: Messages) -> Messages:
    """Leave of the videos of a prompt their places alone."""
    return _with_parts(prompt, lambda part: {"type": "video"}, "video")


def _with_parts(
    messages: Sequence[dict[str, Any]], change: Callable[[Any], dict[str, Any]], kind: str = "image"
) -> Messages:
    """Replace the pictures of messages, or another kind of parts, in their order."""
    return [
        {**message, "content": [change(part) if part["type"] == kind else part for part in message["content"]]}
        for message in messages
    ]

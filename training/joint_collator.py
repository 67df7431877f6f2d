"""Rows of a pairs table -> the tensors of one joint step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import render, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import open_image
from mmemb_r1.training.suffixes import NUM_CONTROL_TOKENS, append_tokens, thought_ids
from mmemb_r1.training.tables import content_key

IGNORED = -100
Augment = Callable[[Image.Image], Image.Image]


class JointCollator:
    """
    Makes `prompt <|embed|> <think> r </think> <|embed|>` of both sides of every pair (without a rationale: just the
    prompt).

    The rationale's tokens and its `</think>` are labelled. `<think>` is the gate's decision and the last `<|embed|>`
    is forced: neither is.

    Args:
        processor: the processor saved beside the model.
        config: the model's config, for the control tokens.
        use_rationales: whether rationales are appended.
        max_rationale_tokens: longer rationales are refused.
        augment: applied to every picture, a new draw each time. Default: none.
        num_chunks: a side is split by length into so many batches, each padded to its own length.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        config: MMEmbR1Config,
        use_rationales: bool = True,
        max_rationale_tokens: int = 256,
        augment: Augment | None = None,
        num_chunks: int = 1,
    ) -> None:
        self.num_chunks = num_chunks
        self.processor = processor
        self.config = config
        self.use_rationales = use_rationales
        self.max_rationale_tokens = max_rationale_tokens
        self.augment = augment

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """
        Args:
            rows: dicts with `query`, `target` and, optionally, `query_rationale`, `target_rationale` (segments).

        Returns:
            `query` and `target`: sides as `_side` makes them; targets that occur several times are there once.
            `target_index` `(B,)` says which one is a row's, and `query_keys` `(B,)` are equal where queries are the
            same.
        """
        target_index, first = _numbered([content_key(row["target"]) for row in rows])
        query_keys, _ = _numbered([content_key(row["query"]) for row in rows])
        return {
            "query": self._side([row["query"] for row in rows], [row.get("query_rationale") for row in rows]),
            "target": self._side([rows[i]["target"] for i in first], [rows[i].get("target_rationale") for i in first]),
            "target_index": target_index,
            "query_keys": query_keys,
        }

    def _side(self, inputs: list[dict[str, Any]], rationales: list[Sequence[str] | None]) -> dict[str, Any]:
        """
        One side of the pairs.

        Returns:
            `chunks`, a list of keyword arguments of the model's `forward`, and `order` `(B,)`: where in the chunks,
            one after another, each row is.
        """
        suffixes = [self._suffix(segments) for segments in rationales]
        by_length = sorted(range(len(inputs)), key=lambda row: _rough_length(inputs[row]) + len(suffixes[row]))
        size = -(-len(inputs) // self.num_chunks)
        parts = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        chunks = [self._chunk([inputs[row] for row in part], [suffixes[row] for row in part]) for part in parts]
        return {"chunks": chunks, "order": torch.tensor(by_length).argsort()}

    def _chunk(self, inputs: list[dict[str, Any]], suffixes: list[list[int]]) -> dict[str, Tensor]:
        if self.augment is not None:
            inputs = [augmented(value, self.augment) for value in inputs]
        conversations = to_conversations(inputs, num_video_frames=self.config.num_video_frames)
        batch = dict(render(self.processor, conversations, self.config.max_text_tokens))
        return append_suffixes(batch, suffixes, self.processor.tokenizer.pad_token_id)

    def _suffix(self, segments: Sequence[str] | None) -> list[int]:
        """`<think> r </think> <|embed|>`, or nothing."""
        if not segments or not self.use_rationales:
            return []
        text = " ".join(segments)
        suffix = thought_ids(self.processor, self.config, text)
        if (length := len(suffix) - NUM_CONTROL_TOKENS) > self.max_rationale_tokens:
            raise ValueError(
                f"A rationale has {length} tokens; allowed: max_rationale_tokens={self.max_rationale_tokens}. Raise "
                f"the limit or drop the row. It begins: {text[:80]!r}"
            )
        return suffix


def append_suffixes(batch: dict[str, Tensor], suffixes: list[list[int]], pad_token_id: int) -> dict[str, Tensor]:
    """
    Append rationales to the prompts of a batch and label them.

    Args:
        batch: what the processor returned.
        suffixes: per row `<think> r </think> <|embed|>`, or `[]`.
        pad_token_id: fills up rows on the right.

    Returns:
        The batch with rows one after another without gaps, padded on the right, and `labels` `(B, S')`.
    """
    result = append_tokens(batch, suffixes, pad_token_id)
    labels = torch.full_like(result["input_ids"], IGNORED)
    for row, (tail, length) in enumerate(zip(suffixes, batch["attention_mask"].sum(dim=1).tolist(), strict=True)):
        if tail:
            labels[row, length + 1 : length + len(tail) - 1] = torch.tensor(tail[1:-1])  # r </think>
    result["labels"] = labels
    return result


def _numbered(keys: list[bytes]) -> tuple[Tensor, list[int]]:
    """Keys -> a number `(B,)` for each, equal where keys are, and where each number came first.

    >>> _numbered([b"x", b"y", b"x"])
    (tensor([0, 1, 0]), [0, 1])
    """
    first: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        first.setdefault(key, place)
    number = {key: code for code, key in enumerate(first)}
    return torch.tensor([number[key] for key in keys]), list(first.values())


def _rough_length(value: dict[str, Any]) -> int:
    """Order of magnitude of a prompt's length in tokens; only good for sorting."""
    media = sum(len(value[key]) if isinstance(value[key], list) else 1 for key in ("image", "video") if value.get(key))
    return len(str(value.get("text") or "")) // 4 + 6 * media


def augmented(value: dict[str, Any], augment: Augment) -> dict[str, Any]:
    """The input with `augment` applied to each of its pictures."""
    images = value.get("image")
    if not images:
        return value
    several = images if isinstance(images, list) else [images]
    return {**value, "image": [augment(open_image(image)) for image in several]}

"""Make the tensors of one joint step of examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.content import content_key
from mmemb_r1.encoding import input_sizes
from mmemb_r1.modeling.backbones_mmemb_r1 import narrow_pixels
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError, to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, MediumError
from mmemb_r1.modeling.paths_mmemb_r1 import chosen_places, num_control_tokens, reading_places
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens, rationale_suffix, split_rounds
from mmemb_r1.training.augment import Augment, augmented
from mmemb_r1.training.joint.chunks import parts_by_number, parts_by_tokens
from mmemb_r1.training.joint.data import Example
from mmemb_r1.training.joint.keys import key_number
from mmemb_r1.training.settling.faults import unreadable
from mmemb_r1.training.tables import number_distinct

IGNORED = -100


class Chunk(TypedDict):
    """Hold b inputs that run through the model at once, with N labelled tokens."""

    features: dict[str, Tensor]  # keyword arguments of the model's `forward`, `labels` among them
    token_weights: Tensor  # (N,), row by row
    token_rows: Tensor  # (N,) the place of each token's input among those of its side
    num_rows: Tensor  # (b,) how many rows of the batch each input is of


class SideBatch(TypedDict):
    """Hold one side of a batch: R rows, U distinct inputs in chunks."""

    chunks: list[Chunk]  # each of similar lengths
    order: Tensor  # (U,) the place of each input in the chunks, one after another
    index: Tensor  # (R,) the input of each row
    keys: Tensor  # (R,) integers, equal where rows hold the same
    names: list[str]  # U descriptions of the inputs, for messages


JointBatch = dict[str, SideBatch]  # "query", B rows; "target", B rows and behind them the hard negatives


_Row = dict[str, Any]  # an input's value, rationale (ids of each round), weight, seed, and name for messages


@dataclass
class JointCollator:
    """
    Make `prompt <|embed|> <think> r </think> <|embed|>` of both sides of every pair; without a rationale, the prompt.

    The tokens of a rationale and its `</think>` are labelled; `<think>`, which the gate decides, and the last
    `<|embed|>`, which always follows, are not. See [`JointConfig`] for most fields.
    """

    processor: ProcessorMixin
    config: MMEmbR1Config
    use_rationales: bool = True
    max_reasoning_rounds: int = 1
    max_rationale_tokens: int = 256
    augment: Augment | None = None  # of every picture, with the random stream of its example
    num_chunks: int = 1  # of a side, by length, each padded to its own length
    chunk_size: int | None = None  # inputs per chunk instead
    chunk_tokens: int | None = None  # tokens per chunk, padding included; a longer input is a chunk of its own
    pixel_dtype: torch.dtype = torch.float32  # of the model's arithmetic; pixels travel in it if it is narrower

    def __call__(self, examples: Sequence[Example]) -> JointBatch:
        """
        Collate B examples: `query` with B rows, `target` with B and, behind them, the hard negatives.

        Inputs that occur several times with the same rationale run once.
        """

        def row_of(example: Example, side: str, value: Any, segments: Sequence[str] = (), weight: float = 1.0) -> _Row:
            name = f"the {side} of pair {example['pair_id']!r}"
            ids = self.rationale_ids(segments)
            return {"value": value, "rationale": ids, "weight": weight, "seed": example["seed"], "name": name}

        queries, targets = (
            [row_of(one, side, one[side], one[f"{side}_rationale"], one[f"{side}_weight"]) for one in examples]
            for side in ("query", "target")
        )
        negatives = [row_of(one, "negative", value) for one in examples for value in one["negatives"]]
        return {"query": self._side(queries), "target": self._side([*targets, *negatives])}

    def rationale_ids(self, segments: Sequence[str]) -> list[list[int]]:
        """`<think> r </think> <|embed|>` of each round."""
        if not segments or not self.use_rationales:
            return []
        rounds = split_rounds(segments, self.max_reasoning_rounds)
        ids = [rationale_suffix(self.processor, self.config, text) for text in rounds]
        for text, own in zip(rounds, ids, strict=True):
            if (length := len(own) - num_control_tokens(self.config)) > self.max_rationale_tokens:
                raise ValueError(
                    f"A rationale has {length} tokens; allowed: max_rationale_tokens={self.max_rationale_tokens}. "
                    f"Raise the limit or drop the row. It begins: {text[:80]!r}"
                )
        return ids

    def _side(self, rows: list[_Row]) -> SideBatch:
        contents = [content_key(row["value"], MediaOptions.of(self.config)) for row in rows]
        index, first = number_distinct([(key, str(row["rationale"])) for key, row in zip(contents, rows, strict=True)])
        inputs: list[_Row] = [{**rows[place], "weight": 0.0, "num_rows": 0} for place in first]
        for row, place in zip(rows, index, strict=True):
            inputs[place]["weight"] += row["weight"]  # every row counts, however rows are spread over processes
            inputs[place]["num_rows"] += 1
        parts = self.parts(self.lengths(inputs), len(rows))
        return {
            "chunks": [self._chunk(inputs, part) for part in parts],
            "order": torch.tensor(list(chain.from_iterable(parts))).argsort(),
            "index": torch.tensor(index),
            "keys": torch.tensor([key_number(key) for key in contents]),
            "names": [row["name"] for row in inputs],
        }

    def lengths(self, inputs: Sequence[Mapping[str, Any]]) -> list[float]:
        """Count the tokens of each input, its `value` and `rationale`, up to a few of the chat template."""
        tokenizer = self.processor.tokenizer
        sizes = input_sizes(
            [row["value"] for row in inputs],
            self.processor,
            self.config,
            count_text=lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
        )
        return [
            self._template_length + size.tokens + sum(map(len, row["rationale"]))
            for size, row in zip(sizes, inputs, strict=True)
        ]

    @cached_property
    def _template_length(self) -> int:
        """Count the tokens that the chat template puts around an input."""
        word = "a"
        rendered = render(self.processor, to_conversations([word]), None)["input_ids"].shape[1]
        return rendered - len(self.processor.tokenizer(word, add_special_tokens=False)["input_ids"])

    def parts(self, lengths: Sequence[float], num_rows: int) -> list[list[int]]:
        """Part the inputs of a side, which has `num_rows` rows, into chunks of similar lengths."""
        if self.chunk_tokens is not None:
            return parts_by_tokens(lengths, self.chunk_tokens, self.chunk_size)
        return parts_by_number(
            lengths, self.num_chunks if self.chunk_size is None else -(-num_rows // self.chunk_size)
        )

    def _chunk(self, inputs: list[_Row], places: list[int]) -> Chunk:
        rows = [inputs[place] for place in places]
        values, media = [row["value"] for row in rows], MediaOptions.of(self.config)
        if self.augment is not None:
            values = [_augmented(row, self.augment, media) for row in rows]
        try:
            conversations = to_conversations(values, media=media)
            batch = dict(
                render(
                    self.processor,
                    conversations,
                    self.config.max_text_tokens,
                    max_image_tokens=self.config.max_image_tokens,
                )
            )
        except InputError as error:
            raise unreadable(rows[error.index]["name"], error.fault) from error
        batch = narrow_pixels(batch, self.pixel_dtype)
        rationales, pad_token_id = [row["rationale"] for row in rows], self.processor.tokenizer.pad_token_id
        features = append_rationales(batch, rationales, self.config, pad_token_id)
        counts = (features["labels"] != IGNORED).sum(dim=1)  # (b,)
        weights = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return {
            "features": features,
            "token_weights": weights.repeat_interleave(counts),
            "token_rows": torch.tensor(places).repeat_interleave(counts),
            "num_rows": torch.tensor([row["num_rows"] for row in rows]),
        }


def _augmented(row: _Row, augment: Augment, media: MediaOptions) -> Any:
    try:
        return augmented(row["value"], augment, np.random.default_rng(row["seed"]), media)
    except MediumError as error:
        raise unreadable(row["name"], str(error)) from error


def append_rationales(
    batch: dict[str, Tensor], rationales: Sequence[Sequence[Sequence[int]]], config: MMEmbR1Config, pad_token_id: int
) -> dict[str, Tensor]:
    """
    Append rationales, per row and round `<think> r </think> <|embed|>`, to the prompts of a batch and label what a
    model has to choose: r and `</think>`.

    Returns:
        The batch with rows one after another without gaps, padded on the right, and `labels` `(B, S')`.
    """
    suffixes = [list(chain.from_iterable(rounds)) for rounds in rationales]
    result = append_tokens(batch, suffixes, pad_token_id)
    places = reading_places(config, result["input_ids"], result["attention_mask"])
    result["labels"] = result["input_ids"].where(chosen_places(config, places), IGNORED)
    return result

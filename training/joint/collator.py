"""Make the tensors of one joint step of examples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from transformers import ProcessorMixin

from mmemb_r1.content import content_key
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import NUM_CONTROL_TOKENS, append_tokens, rationale_suffix
from mmemb_r1.training.augment import Augment, augmented
from mmemb_r1.training.joint.data import Example
from mmemb_r1.training.tables import number_distinct

IGNORED = -100


class Chunk(TypedDict):
    """
    Hold b inputs that run through the model at once.

    Attributes:
        features: keyword arguments of the model's `forward`, `labels` among them.
        token_weights: `(N,)` weight of each labelled token, row by row.
        token_rows: `(N,)` the place of each token's input among those of its side.
    """

    features: dict[str, Tensor]
    token_weights: Tensor
    token_rows: Tensor


class SideBatch(TypedDict):
    """
    Hold one side of a batch: U inputs in chunks.

    Attributes:
        chunks: the chunks, each of similar lengths.
        order: `(U,)` the place of each input in the chunks, one after another.
        index: `(R,)` the input of each row.
        keys: `(R,)` integers, equal where rows hold the same.
        names: U descriptions of the inputs, for messages.
    """

    chunks: list[Chunk]
    order: Tensor
    index: Tensor
    keys: Tensor
    names: list[str]


JointBatch = dict[str, SideBatch]  # "query", B rows; "target", B rows and behind them the hard negatives


class _Row(TypedDict):
    value: dict[str, Any]
    rationale: list[list[int]]
    weight: float
    seed: int
    name: str


class JointCollator:
    """
    Make `prompt <|embed|> <think> r </think> <|embed|>` of both sides of every pair; without a rationale, the prompt.

    The tokens of a rationale and its `</think>` are labelled; `<think>`, which the gate decides, and the last
    `<|embed|>`, which always follows, are not.

    Args:
        processor: the processor saved beside the model.
        config: the model's config, for the control tokens.
        use_rationales: whether rationales are appended.
        max_reasoning_rounds: segments that become rounds of their own, each with an `<|embed|>` after it; what is left
            goes into the last one.
        max_rationale_tokens: longer rationales are refused.
        augment: applied to every picture, with the random stream of its example. Default: none.
        num_chunks: number of chunks of a side, by length, each padded to its own length.
        chunk_size: inputs per chunk instead.
        fixed_num_chunks: whether a chunk is repeated, without weight, where equal inputs leave too few of them: all
            processes then make as many passes.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        config: MMEmbR1Config,
        use_rationales: bool = True,
        max_reasoning_rounds: int = 1,
        max_rationale_tokens: int = 256,
        augment: Augment | None = None,
        num_chunks: int = 1,
        chunk_size: int | None = None,
        fixed_num_chunks: bool = False,
    ) -> None:
        self.processor = processor
        self.config = config
        self.use_rationales = use_rationales
        self.max_reasoning_rounds = max_reasoning_rounds
        self.max_rationale_tokens = max_rationale_tokens
        self.augment = augment
        self.num_chunks = num_chunks
        self.chunk_size = chunk_size
        self.fixed_num_chunks = fixed_num_chunks

    def __call__(self, examples: Sequence[Example]) -> JointBatch:
        """
        Args:
            examples: of [`JointPairs`], B of them.

        Returns:
            `query`, a [`SideBatch`] with B rows, and `target`, one whose first B rows are the targets and whose others
            are the hard negatives. Inputs that occur several times with the same rationale run once.
        """
        queries, targets = ([self._row(example, side) for example in examples] for side in ("query", "target"))
        negatives = [
            _Row(value=value, rationale=[], weight=1.0, seed=example["seed"], name=_name(example, "negative"))
            for example in examples
            for value in example["negatives"]
        ]
        return {"query": self._side(queries), "target": self._side([*targets, *negatives])}

    def _row(self, example: Example, side: str) -> _Row:
        return {
            "value": example[side],  # type: ignore[literal-required]
            "rationale": self._rationale_ids(example[f"{side}_rationale"]),  # type: ignore[literal-required]
            "weight": example[f"{side}_weight"],  # type: ignore[literal-required]
            "seed": example["seed"],
            "name": _name(example, side),
        }

    def _rationale_ids(self, segments: Sequence[str]) -> list[list[int]]:
        """`<think> r </think> <|embed|>` of each round."""
        if not segments or not self.use_rationales:
            return []
        last = self.max_reasoning_rounds - 1
        rounds = [*segments[:last], " ".join(segments[last:])] if len(segments) > last else list(segments)
        ids = [rationale_suffix(self.processor, self.config, text) for text in rounds]
        for text, own in zip(rounds, ids, strict=True):
            if (length := len(own) - NUM_CONTROL_TOKENS) > self.max_rationale_tokens:
                raise ValueError(
                    f"A rationale has {length} tokens; allowed: max_rationale_tokens={self.max_rationale_tokens}. "
                    f"Raise the limit or drop the row. It begins: {text[:80]!r}"
                )
        return ids

    def _side(self, rows: list[_Row]) -> SideBatch:
        contents = [content_key(row["value"], MediaOptions.of(self.config)) for row in rows]
        index, first = number_distinct([(key, str(row["rationale"])) for key, row in zip(contents, rows, strict=True)])
        inputs: list[_Row] = [{**rows[place], "weight": 0.0} for place in first]
        for row, place in zip(rows, index, strict=True):
            inputs[place]["weight"] += row["weight"]  # every row counts, however rows are spread over processes
        lengths = [_rough_length(row["value"]) + sum(map(len, row["rationale"])) for row in inputs]
        by_length = sorted(range(len(inputs)), key=lengths.__getitem__)
        number = self.num_chunks if self.chunk_size is None else -(-len(rows) // self.chunk_size)
        parts = [part.tolist() for part in np.array_split(by_length, number)]
        chunks = [self._chunk(inputs, part) for part in parts if part]
        if self.fixed_num_chunks:
            idle = self._chunk(inputs, by_length[:1])
            idle["token_weights"].zero_()
            chunks += [idle] * (len(parts) - len(chunks))
        return {
            "chunks": chunks,
            "order": torch.tensor(by_length).argsort(),
            "index": torch.tensor(index),
            "keys": torch.tensor([int.from_bytes(key[:8], "little", signed=True) for key in contents]),
            "names": [row["name"] for row in inputs],
        }

    def _chunk(self, inputs: list[_Row], places: list[int]) -> Chunk:
        rows = [inputs[place] for place in places]
        values, media = [row["value"] for row in rows], MediaOptions.of(self.config)
        if (augment := self.augment) is not None:
            values = [augmented(row["value"], augment, np.random.default_rng(row["seed"]), media) for row in rows]
        conversations = to_conversations(values, media=media)
        batch = dict(render(self.processor, conversations, self.config.max_text_tokens))
        features = append_rationales(batch, [row["rationale"] for row in rows], self.processor.tokenizer.pad_token_id)
        counts = (features["labels"] != IGNORED).sum(dim=1)  # (b,)
        weights = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return {
            "features": features,
            "token_weights": weights.repeat_interleave(counts),
            "token_rows": torch.tensor(places).repeat_interleave(counts),
        }


def append_rationales(
    batch: dict[str, Tensor], rationales: Sequence[Sequence[Sequence[int]]], pad_token_id: int
) -> dict[str, Tensor]:
    """
    Append rationales to the prompts of a batch and label them.

    Args:
        batch: what the processor returned.
        rationales: per row and round `<think> r </think> <|embed|>`; `[]` for the prompt alone.
        pad_token_id: fills up rows on the right.

    Returns:
        The batch with rows one after another without gaps, padded on the right, and `labels` `(B, S')`.
    """
    suffixes = [list(chain.from_iterable(rounds)) for rounds in rationales]
    result = append_tokens(batch, suffixes, pad_token_id)
    labels = torch.full_like(result["input_ids"], IGNORED)
    for row, (rounds, start) in enumerate(zip(rationales, batch["attention_mask"].sum(dim=1).tolist(), strict=True)):
        for ids in rounds:
            labels[row, start + 1 : start + len(ids) - 1] = torch.tensor(ids[1:-1])  # r </think>
            start += len(ids)
    result["labels"] = labels
    return result


def _name(example: Example, side: str) -> str:
    return f"the {side} of pair {example['pair_id']!r}"


def _rough_length(value: dict[str, Any]) -> int:
    """Estimate a prompt's length in tokens; only good for sorting."""
    media = sum(len(value[key]) if isinstance(value[key], list) else 1 for key in ("image", "video") if value.get(key))
    return len(str(value.get("text") or "")) // 4 + 6 * media

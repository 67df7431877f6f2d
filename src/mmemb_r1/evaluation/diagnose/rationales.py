"""What a model thinks about queries of its own accord, token by token, so that the same or another can be forced."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.encoders import in_parts
from mmemb_r1.rationale_tokens import rationale_suffix, shuffled, suffix_of_ids


@dataclass(frozen=True)
class Thought:
    """
    What was thought about one query.

    Attributes:
        ids: of everything that came after the prompt's `<|embed|>`: `<think> r </think> <|embed|>`, once per round.
        texts: of the rationales, one per round.
        num_tokens: of the rationales.
        embedding: `(D,)` float32, the vector after it, of unit norm.
    """

    ids: list[int]
    texts: tuple[str, ...]
    num_tokens: int
    embedding: npt.NDArray[np.float32]


def own_thoughts(
    model: Any,
    queries: Sequence[Any],
    *,
    prompt: str | None = None,
    batch_size: int = 64,
    options: Mapping[str, Any] | None = None,
    advance: Callable[[int], object] | None = None,
) -> list[Thought]:
    """
    Let a model think about every query.

    Args:
        model: an [`MMEmbR1`].
        queries: inputs as for `encode`.
        prompt: the system turn of queries that bring none.
        batch_size: queries that are read at once.
        options: of `encode`: `max_reasoning_tokens` and `max_reasoning_rounds`. Default: the checkpoint's.
        advance: is told how many more are done, part by part.

    Raises:
        InputError: a `ValueError` that names the number of a query that can't be embedded.
    """

    def think(values: list[Any]) -> list[Any]:
        items: list[Any] = model.encode(
            values,
            output_value=None,
            reasoning="always",
            batch_size=batch_size,
            normalize_embeddings=True,
            show_progress_bar=False,
            **({"prompt": prompt} if prompt else {}),
            **(options or {}),
        )
        return items

    thoughts = []
    for _, items in in_parts(queries, batch_size, think):
        thoughts += [_thought(model, item) for item in items]
        if advance is not None:
            advance(len(items))
    return thoughts


def _thought(model: Any, item: Mapping[str, Any]) -> Thought:
    config = model[0].model.config
    ids = [int(token) for token in item["rationale_ids"] if token >= 0]
    rounds: list[list[int]] = [[]]
    for token in ids:
        if token == config.end_think_token_id:
            rounds.append([])
        elif token not in (config.embed_token_id, config.think_token_id):  # they stand between rounds alone
            rounds[-1].append(token)
    return Thought(
        ids=suffix_of_ids(config, ids),
        texts=tuple(model.tokenizer.decode(one).strip() for one in rounds),
        num_tokens=int(item["num_reasoning_tokens"]),
        embedding=item["sentence_embedding"].float().cpu().numpy(),
    )


def written_thought(model: Any, texts: Sequence[str]) -> list[int]:
    """Ids of `<think> r </think> <|embed|>` for each text, one after another."""
    config = model[0].model.config
    return list(chain.from_iterable(rationale_suffix(model.processor, config, text) for text in texts))


def shuffled_thought(texts: Sequence[str], seed: int) -> tuple[str, ...]:
    """Every rationale with its words in another order, where two of them differ."""
    return tuple(shuffled(text, seed) for text in texts)

"""Many inputs embedded part by part, so that no more of them are in memory than one part has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np

from mmemb_r1.evaluation.encoders.encoder import Embedded, Encoder

BATCHES_AT_ONCE = 16  # are handed to the model: their thinkers think together, and their media are in memory
Made = TypeVar("Made")


def in_parts(inputs: Sequence[Any], batch_size: int, embed: Callable[[list[Any]], Made]) -> Iterator[tuple[int, Made]]:
    """
    What a function makes of inputs, part by part.

    Args:
        inputs: N of them, read in order.
        batch_size: inputs that are read at once; a part has 16 times as many.
        embed: is given a part.

    Yields:
        The number of a part's first input, and what was made of it.

    Raises:
        InputError: what `embed` raises, with the number of the input among all of them.
    """
    from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

    size = BATCHES_AT_ONCE * batch_size
    for start in range(0, len(inputs), size):
        try:
            made = embed([inputs[row] for row in range(start, min(start + size, len(inputs)))])
        except InputError as error:
            raise error.at(start + error.index) from error
        yield start, made


def embed_all(
    encoder: Encoder,
    inputs: Sequence[Any],
    *,
    side: str,
    reasoning: str,
    batch_size: int,
    prompt: str | None = None,
    ids: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Embedded:
    """
    Embed inputs part by part, so that no more of them are read than one part has.

    Args:
        encoder: the model.
        inputs: N of them, at least one; read in order.
        side: `"query"` or `"document"`.
        reasoning: mode.
        batch_size: inputs that are read at once; a part has 16 times as many.
        prompt: instruction of inputs that have none of their own. `None`: what the model saved for the side.
        ids: of the inputs, for errors. Default: their numbers.
        advance: told how many more are embedded, part by part.

    Raises:
        InputError: a `ValueError` that names the number of an input that can't be embedded.
        ValueError: if a vector is not finite, or the model gives more or fewer than inputs.
    """
    parts = []
    for start, part in in_parts(
        inputs, batch_size, partial(encoder.embed, side=side, reasoning=reasoning, prompt=prompt)
    ):
        finite = np.isfinite(part.embeddings).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(
                f"the vector of the {side} {row if ids is None else repr(ids[row])} holds NaN or infinity: a model "
                "that gives such vectors can't be scored; look for an overflow of its dtype"
            )
        parts.append(part)
        advance(len(part.embeddings))
    return _joined(parts)


def _joined(parts: list[Embedded]) -> Embedded:
    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    rationales: list[str] = [text for part in parts for text in part.rationales or []]
    return Embedded(
        embeddings=column("embeddings"),
        reasoned=column("reasoned"),
        num_reasoning_tokens=column("num_reasoning_tokens"),
        num_reasoning_rounds=column("num_reasoning_rounds"),
        gate_prob=None if parts[0].gate_prob is None else column("gate_prob"),
        rationales=None if parts[0].rationales is None else rationales,
        seconds=sum(part.seconds for part in parts),
        timed=sum(part.timed for part in parts),
    )

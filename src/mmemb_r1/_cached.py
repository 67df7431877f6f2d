"""Between rows of a batch and what the cache keeps: keys, and rows one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb_r1._content import DIGEST_SIZE, content_key
from mmemb_r1.modeling.configuration_mmemb_r1 import REASONING_OPTIONS, MMEmbR1Config, check_reasoning_options
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions

_ROWS = 1  # goes up when the same checkpoint gives other vectors, or rows hold something else
_FILLER = -1  # of rationale_ids


def resolved_options(config: MMEmbR1Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Those of `encode`'s options that change a row, each with the value that it gets where it is not given.

    Where nothing thinks, the options of thinking change nothing, and are left out.

    Raises:
        ValueError: if an option is out of its range.

    >>> resolved_options(MMEmbR1Config(), {"task": "document", "gate_threshold": 0.9, "batch_size": 8})
    {'reasoning': 'never'}
    >>> resolved_options(MMEmbR1Config(), {"reasoning": "always", "gate_threshold": None})["gate_threshold"]
    0.5
    """
    given = {name: getattr(config, name) if options.get(name) is None else options[name] for name in REASONING_OPTIONS}
    if options.get("task") == "document" and options.get("reasoning") is None:
        given["reasoning"] = config.document_reasoning
    for name in ("max_reasoning_tokens", "max_reasoning_rounds"):
        if not isinstance(given[name], Integral):
            raise ValueError(f"{name}={given[name]!r:.80} has to be one whole number for all inputs.")
        given[name] = int(given[name])
    check_reasoning_options(**given)
    if given["reasoning"] == "never":
        return {"reasoning": "never"}
    return {**given, "gate_threshold": float(given["gate_threshold"])}


def row_keys(
    values: Sequence[Any], prompt: str | None, options: Mapping[str, Any], fingerprint: str, media: MediaOptions
) -> list[bytes]:
    """
    Keys of what `encode` makes of inputs, before truncation and normalisation.

    Args:
        values: inputs of `encode`.
        prompt: the system turn of those that bring none.
        options: from `resolved_options`.
        fingerprint: the checkpoint's, from `checkpoint_fingerprint`.
        media: limits, and whether inputs may be web addresses.

    Returns:
        One key per input. Two are equal where inputs, prompt, options and checkpoint are.
    """
    facts = json.dumps([_ROWS, fingerprint, prompt, options], sort_keys=True).encode()
    common = blake2b(facts, digest_size=64).digest()
    return [blake2b(content_key(value, media), digest_size=DIGEST_SIZE, key=common).digest() for value in values]


def unbatched(features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The rows of a batch, each without what only fills it up; every tensor has the batch first."""
    rows = []
    for row in range(len(features["sentence_embedding"])):
        tensors = {name: value[row] for name, value in features.items()}
        ids = tensors["rationale_ids"]  # (T,)
        rows.append({**tensors, "rationale_ids": ids[ids != _FILLER]})
    return rows


def batched(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The opposite of `unbatched`."""
    features = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: pad_sequence(values, batch_first=True, padding_value=_FILLER)  # (B, T)
        if name == "rationale_ids"
        else torch.stack(values)  # (B, ...)
        for name, values in features.items()
    }

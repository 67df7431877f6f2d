"""What `encode` does on one device: rows from the cache, and the others from the adaptive model, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from sentence_transformers.util import batch_to_device
from torch import Tensor

from mmemb_r1._batches import input_sizes, plan_batches
from mmemb_r1._cached import batched, resolved_options, row_keys, unbatched
from mmemb_r1._fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions

if TYPE_CHECKING:
    from mmemb_r1.sentence_transformer import MMEmbR1

MAX_BATCH_TOKENS = 16_384  # of one prefill, padding included
DECODED_PER_READ = 4  # rows that think at the same time, in batches that are read
READ_AT_ONCE = 1024  # rows of the cache


def media_options(model: MMEmbR1, options: Mapping[str, Any]) -> MediaOptions:
    """How pictures and videos are opened, by the model's config and the options of `encode`."""
    return MediaOptions.of(model[0].model.config, options.get("allow_remote_media", False))


def adaptive_rows(
    model: MMEmbR1,
    inputs: Sequence[Any],
    device: torch.device,
    prompt: str | None,
    batch_size: int,
    options: dict[str, Any],
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """
    Embed inputs, in any order, before what other modules, truncation and normalisation do.

    Args:
        model: whose first module is the adaptive model; with its `embedding_cache`, if it has one.
        inputs: as for `encode`.
        device: where the model is.
        prompt: the system turn of inputs that bring none.
        batch_size: inputs that are read at once.
        options: of `encode`.

    Yields:
        Places of some inputs, and what the adaptive model makes of them, or made of them before.
    """
    resolved = resolved_options(model[0].model.config, options)
    if options.get("max_batch_tokens", 1) < 1:
        raise ValueError(f"max_batch_tokens={options['max_batch_tokens']} has to be at least 1.")
    cache = model.embedding_cache
    if cache is None:
        yield from _embedded(model, inputs, range(len(inputs)), device, prompt, batch_size, options)
        return
    keys = row_keys(inputs, prompt, resolved, checkpoint_fingerprint(model[0]), media_options(model, options))
    missing = []
    for start in range(0, len(keys), READ_AT_ONCE):
        found = cache.get(keys[start : start + READ_AT_ONCE])
        there = [(place, row) for place, row in enumerate(found, start) if row is not None]
        missing += [place for place, row in enumerate(found, start) if row is None]
        if there:
            yield [place for place, _ in there], batch_to_device(batched([row for _, row in there]), device)
    for places, features in _embedded(model, inputs, missing, device, prompt, batch_size, options):
        cache.put({keys[place]: row for place, row in zip(places, unbatched(features), strict=True)})
        yield places, features


def _embedded(
    model: MMEmbR1,
    inputs: Sequence[Any],
    wanted: Sequence[int],
    device: torch.device,
    prompt: str | None,
    batch_size: int,
    options: dict[str, Any],
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """The inputs at the places `wanted`: those of several batches think together."""
    options = {"decode_batch_size": DECODED_PER_READ * batch_size, "max_batch_tokens": MAX_BATCH_TOKENS, **options}
    max_batch_tokens = options.pop("max_batch_tokens")
    sizes = input_sizes([inputs[place] for place in wanted], model.processor, model[0].model.config)
    plan = [[wanted[row] for row in rows] for rows in plan_batches(sizes, batch_size, max_batch_tokens)]
    read = (
        batch_to_device(model.preprocess([inputs[place] for place in places], prompt=prompt, **options), device)
        for places in plan
    )
    yield from zip(plan, model[0].embed_batches(read, **options), strict=True)

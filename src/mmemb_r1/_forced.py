"""Embedding inputs after thoughts that are given, as if the model had thought them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from mmemb_r1._adaptive_rows import MAX_BATCH_TOKENS
from mmemb_r1._batches import input_sizes, plan_batches
from mmemb_r1._suffixes import append_tokens
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.sentence_mmemb_r1 import model_inputs
from mmemb_r1.sentence_transformer import MMEmbR1


class Forced(NamedTuple):
    """
    What N inputs are embedded as; float32 on the CPU, of unit norm.

    Attributes:
        direct: `(N, D)` vectors before any thought.
        last: `(N, D)` vectors after the whole of it; the direct ones where there is none.
    """

    direct: Tensor
    last: Tensor


@torch.inference_mode()
def forced_embeddings(
    encoder: MMEmbR1,
    inputs: Sequence[Any],
    suffixes: Sequence[Sequence[int]],
    *,
    prompt: str | None = None,
    batch_size: int = 32,
    advance: Callable[[int], object] | None = None,
) -> Forced:
    """
    Embed inputs in one pass each over `prompt <|embed|>` and the ids that are to follow.

    Args:
        encoder: whose first module is the adaptive model.
        inputs: N inputs as for `encode`.
        suffixes: N lists of token ids: none, or whole thoughts `<think> r </think> <|embed|>` one after another, see
            `thought_ids`.
        prompt: the system turn of inputs that bring none.
        batch_size: inputs at once; fewer if they are long.
        advance: is told of every batch how many inputs it had.

    Raises:
        InputError: a `ValueError` that names the index of an input that can't be embedded.
        ValueError: if there are more or fewer inputs than suffixes, or none.
    """
    if len(inputs) != len(suffixes) or not len(inputs):
        raise ValueError(f"Got {len(inputs)} inputs and {len(suffixes)} suffixes; each input has one, possibly empty.")
    module, device = encoder[0], encoder.device
    sizes = [
        size._replace(tokens=size.tokens + len(suffix))
        for size, suffix in zip(input_sizes(inputs, encoder.processor, module.model.config), suffixes, strict=True)
    ]
    plan = plan_batches(sizes, batch_size, MAX_BATCH_TOKENS)
    direct, last = [], []
    for rows in plan:
        try:
            features = module.preprocess([inputs[row] for row in rows], prompt=prompt)
        except InputError as error:
            raise error.at(rows[error.index]) from error
        batch = append_tokens(model_inputs(features), [suffixes[row] for row in rows], encoder.tokenizer.pad_token_id)
        output = module.model(**{name: value.to(device) for name, value in batch.items()})
        direct.append(output.embeddings[:, 0].float().cpu())  # (b, K, D) -> (b, D)
        last.append(output.embeddings[:, -1].float().cpu())
        if advance is not None:
            advance(len(rows))
    order = torch.tensor([row for rows in plan for row in rows]).argsort()
    return Forced(*(normalize(torch.cat(vectors)[order], dim=-1) for vectors in (direct, last)))

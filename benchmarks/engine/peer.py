"""
The way of the nearest peer, UME-R1, to a reasoned vector, as its evaluation does it, on a backbone and with an
embedding head of ours.

Every row thinks, in a static batch: `generate` goes on until the longest rationale has ended, and feeds padding to the
others. It keeps the hidden states of all layers at all steps, of which one per row is used: that of the last layer at
the `<|embed|>` which was written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.decoding_mmemb_r1 import without_suppressed

CONTROL_TOKENS = 3  # `<think>`, `</think>` and `<|embed|>` are fed beside a rationale


@dataclass
class Written:
    """
    What the peer made of a batch.

    Attributes:
        embeddings: `(B, D)`.
        rationales: ids of each row's rationale.
        steps: forward passes after the prefill.
    """

    embeddings: Tensor
    rationales: list[list[int]]
    steps: int


class Script(LogitsProcessor):
    """
    Makes rows write `<think> r </think> <|embed|>` and the end of the turn, with as many tokens in `r` as a row's
    budget; `r` is free but for ids that can't occur in a rationale.

    Args:
        config: of the [`MMEmbR1Model`].
        width: length of the prompts, padding included.
        budgets: `(B,)`.
        end_of_turn: id that ends a row.
    """

    def __init__(self, config: Any, width: int, budgets: Tensor, end_of_turn: int) -> None:
        self.config, self.width, self.budgets = config, width, budgets
        self.closing = budgets.new_tensor([config.end_think_token_id, config.embed_token_id, end_of_turn])

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = without_suppressed(scores.clone(), self.config)  # (B, V)
        written = input_ids.shape[1] - self.width
        after = written - 1 - self.budgets  # (B,), tokens after the rationale
        forced = self.closing[after.clamp(0, 2)]
        if written == 0:
            forced, after = torch.full_like(forced, self.config.think_token_id), torch.zeros_like(after)
        rows = (after >= 0).nonzero().squeeze(-1)
        scores[rows] = -torch.inf
        scores[rows, forced[rows]] = 0
        return scores


@torch.no_grad()
def embed_as_peer(model: MMEmbR1Model, batch: Mapping[str, Any], budgets: Sequence[int]) -> Written:
    """
    Embed a batch the peer's way.

    Args:
        model: whose backbone and embedding head are used.
        batch: what the model takes; padded on the left.
        budgets: tokens of each row's rationale, which has to be kept from ending earlier: see `without_end`.

    Raises:
        ValueError: if the embedding head pools more than the last state, which the peer does not.
    """
    if model.config.pooling != "last":
        raise ValueError(f"pooling={model.config.pooling!r}; the peer reads one state: take a model with 'last'.")
    prompts = batch["input_ids"]
    end_of_turn = model.generation_config.eos_token_id
    end_of_turn = end_of_turn[0] if isinstance(end_of_turn, list) else end_of_turn
    lengths = torch.tensor(budgets, device=prompts.device)
    output = model.generate(
        **batch,
        max_new_tokens=max(budgets) + CONTROL_TOKENS + 1,  # the end of the turn, which is not fed
        do_sample=False,
        use_cache=True,
        output_hidden_states=True,
        return_dict_in_generate=True,
        logits_processor=LogitsProcessorList([Script(model.config, prompts.shape[1], lengths, end_of_turn)]),
        eos_token_id=end_of_turn,
    )
    written = output.sequences[:, prompts.shape[1] :].tolist()
    states = []
    for row, ids in enumerate(written):
        at = len(ids) - 1 - ids[::-1].index(model.config.embed_token_id)
        states.append(output.hidden_states[at + 1][-1][row, -1])  # step 0 is the prefill
    return Written(
        embeddings=model.embedding_head(torch.stack(states).float()),
        rationales=[ids[1 : 1 + length] for ids, length in zip(written, budgets, strict=True)],
        steps=len(output.hidden_states) - 1,
    )


@contextmanager
def without_end(model: MMEmbR1Model) -> Iterator[None]:
    """No rationale ends before its budget is spent, whoever decodes."""

    def suppress(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        logits[..., model.config.end_think_token_id] = -torch.inf
        return logits

    hook = model.get_output_embeddings().register_forward_hook(suppress)
    try:
        yield
    finally:
        hook.remove()

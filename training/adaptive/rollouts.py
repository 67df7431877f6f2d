"""Draw rollouts in groups that share one prefill, and write them as completions of token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmemb_r1.modeling.decoding_mmemb_r1 import Context, Decoder, Sampling, prefill
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.paths_mmemb_r1 import round_ids
from mmemb_r1.modeling.states_mmemb_r1 import RationaleState
from mmemb_r1.training.adaptive.forward import decision_logps
from mmemb_r1.training.adaptive.written import Writer, embed_after, think_with


class RolloutGroup(NamedTuple):
    """Hold B prompts with G rollouts each, of which M in all reason, those of a prompt side by side."""

    direct: Tensor  # (B, D) embeddings
    gate_logits: Tensor  # (B,) at the first `<|embed|>`
    thinks: Tensor  # (B, G) bool, which rollouts reason
    reasoned: Tensor  # (M, D) last embeddings
    rationales: list[list[int]]  # M, per rollout `<think> r </think> <|embed|>`, once a round
    num_tokens: Tensor  # (M,) of rationales
    num_rounds: Tensor  # (M,) rationales
    num_forced: Tensor  # (M,) rationales that were truncated
    logps: list[list[float]] | None = None  # B * G, of a completion's tokens; known where another engine wrote them

    @property
    def rows(self) -> Tensor:
        """`(M,)` the prompt of each rollout that reasons."""
        return self.thinks.nonzero()[:, 0]


@torch.no_grad()
def roll_out(
    model: MMEmbR1Model,
    batch: Mapping[str, Tensor],
    num_reasoned: int,
    *,
    num_direct: int = 0,
    sampled: bool = False,
    max_tokens: int,
    max_rounds: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    writer: Writer | None = None,
) -> RolloutGroup:
    """
    Read B prompts once each, pictures included, and draw rationales of each that go on from there.

    Args:
        model: the policy.
        batch: what the processor gave, padded on the left, on the model's device.
        num_reasoned, num_direct: rollouts of a group that reason, and that embed directly and stand before them.
        sampled: draw from the gate which of all these reason, instead.
        max_tokens: budget of one rationale.
        max_rounds: rationales per rollout at most. Whether another follows the first is drawn from the gate.
        temperature: divides the logits of tokens and of the gate.
        generator: source of randomness. Default: torch's.
        writer: what writes the rationales of these prompts, at this temperature. Default: the policy itself.
    """
    context, direct = _read(model, batch)
    gate_logits = model.ask_gate(context.hidden, context.words)

    def decide(logits: Tensor) -> Tensor:
        return torch.rand(logits.shape, generator=generator).to(logits.device) < (logits / temperature).sigmoid()

    size = num_direct + num_reasoned
    if sampled:
        thinks = decide(gate_logits[:, None].expand(-1, size))  # (B, G)
    else:
        thinks = (torch.arange(size, device=direct.device) >= num_direct).expand(len(direct), -1)
    rows = thinks.nonzero()[:, 0]
    states = [RationaleState(max_tokens, max_rounds) for _ in range(len(rows))]
    logps = None
    if writer is not None:
        written = iter(think_with(writer, model, context, rows, states, decide, temperature, generator))
        stops = decision_logps(gate_logits / temperature, torch.zeros_like(gate_logits, dtype=torch.bool)).tolist()
        logps = [
            next(written) if one else [stop] for own, stop in zip(thinks.tolist(), stops, strict=True) for one in own
        ]
    elif states:
        sampling = Sampling(do_sample=True, temperature=temperature, generator=generator)
        decoder = Decoder(model, decide=decide, sampling=sampling)
        decoder.add(context, rows, states)
        decoder.run()
    return RolloutGroup(
        direct,
        gate_logits,
        thinks,
        torch.stack([state.embeddings[-1] for state in states]) if states else direct[:0],
        [state.token_ids for state in states],
        torch.tensor([state.num_tokens for state in states], device=rows.device),
        torch.tensor([len(state.embeddings) for state in states], device=rows.device),
        torch.tensor([state.num_truncated for state in states], device=rows.device),
        logps,
    )


def read_group(model: MMEmbR1Model, batch: Mapping[str, Tensor], group: RolloutGroup) -> tuple[Tensor, Tensor]:
    """Embed the direct `(B, D)` and the reasoned rollouts `(M, D)` of a policy's group with another embedder."""
    context, direct = _read(model, batch)
    return direct, embed_after(model, context, group.rows, group.rationales) if group.rationales else direct[:0]


@torch.no_grad()
def _read(model: MMEmbR1Model, batch: Mapping[str, Tensor]) -> tuple[Context, Tensor]:
    """Read prompts, and embed them directly."""
    media: dict[str, Any] = dict(batch)
    input_ids, attention_mask = media.pop("input_ids"), media.pop("attention_mask")
    context = prefill(model.vlm, model.embedding_head, input_ids, attention_mask, True, **media)
    return context, model.embeddings_of(context.pooled.mean)


def in_groups(direct: Tensor, reasoned: Tensor, thinks: Tensor) -> Tensor:
    """
    Order vectors by rollout, `(B * G, D)`: where `thinks` `(B, G)` the next reasoned one `(M, D)`, else the direct one
    of the prompt `(B, D)`.

    >>> in_groups(torch.zeros(1, 1), torch.ones(2, 1), torch.tensor([[False, True, True]])).tolist()
    [[0.0], [1.0], [1.0]]
    """
    vectors = direct[:, None].repeat(1, thinks.shape[1], 1)  # (B, G, D)
    vectors[thinks] = reasoned
    return vectors.flatten(0, 1)


def as_columns(
    group: RolloutGroup, config: Any, eos_token_id: int, max_tokens: int, max_rounds: int
) -> dict[str, Any]:
    """
    Write a group as columns with a row per rollout, those of a prompt side by side.

    Returns:
        `completion_ids`, which end in `eos_token_id`, their `logprobs`, as far as these are known, `env_mask` (see
        [`loss_mask`]), `reasoned`, `num_reasoning_tokens`, `num_reasoning_rounds`, `truncated` and
        `reasoning_budget`.
    """
    left = iter(group.rationales)
    rationales: list[list[int]] = [next(left) if thinks else [] for thinks in group.thinks.flatten().tolist()]

    def of_all(values: Tensor) -> list[Any]:
        """Extend values of the reasoned rollouts `(M,)` to all, with 0 for direct ones."""
        everywhere = torch.zeros_like(group.thinks, dtype=values.dtype)  # (B, G)
        return everywhere.masked_scatter(group.thinks, values).flatten().tolist()

    return {
        "completion_ids": [[*ids, eos_token_id] for ids in rationales],
        "logprobs": group.logps,
        "env_mask": [loss_mask(ids, config, max_tokens, max_rounds) for ids in rationales],
        "reasoned": [bool(ids) for ids in rationales],
        "num_reasoning_tokens": of_all(group.num_tokens),
        "num_reasoning_rounds": of_all(group.num_rounds),
        "truncated": [bool(forced) for forced in of_all(group.num_forced)],
        "reasoning_budget": [max_tokens * max_rounds] * len(rationales),
    }


def loss_mask(rationale: Sequence[int], config: Any, max_tokens: int, max_rounds: int) -> list[int]:
    """
    Mark the tokens of a rationale, and the end of its completion, that were chosen, 1, not inserted, 0: inserted are
    `<|embed|>`, the `</think>` of a spent budget, and the end after the last round that was allowed.
    """
    opening, closing = len(config.opening_ids), len(config.closing_ids)
    mask: list[int] = []
    rounds = round_ids(config, rationale[opening : len(rationale) - 1 - closing]) if rationale else []
    for ids in rounds:  # to think is chosen by its first token
        mask += [1, *[0] * (opening - 1), *[1] * len(ids), int(len(ids) < max_tokens), *[0] * closing]
    return [*mask, int(len(rounds) < max_rounds)]

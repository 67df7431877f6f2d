"""Draw rollouts in groups that share one prefill, and write them as completions of token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb_r1.modeling.backbones_mmemb_r1 import next_positions, token_positions
from mmemb_r1.modeling.decoding_mmemb_r1 import Context, Decoder, RationaleState, Sampling, prefill
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model


class RolloutGroup(NamedTuple):
    """Hold B prompts, each with a direct embedding and n reasoned rollouts, those of a prompt side by side."""

    direct: Tensor  # (B, D) embeddings
    gate_logits: Tensor  # (B,) at the first `<|embed|>`
    reasoned: Tensor  # (B * n, D) last embeddings
    rationales: list[list[int]]  # per rollout `<think> r </think> <|embed|>`, once a round
    num_tokens: Tensor  # (B * n,) of rationales
    num_rounds: Tensor  # (B * n,) rationales
    num_forced: Tensor  # (B * n,) rationales that were truncated


@torch.no_grad()
def roll_out(
    model: MMEmbR1Model,
    batch: Mapping[str, Tensor],
    num_reasoned: int,
    *,
    max_tokens: int,
    max_rounds: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> RolloutGroup:
    """
    Read B prompts once each, pictures included, and draw `num_reasoned` rationales of each that go on from there.

    Args:
        model: the policy.
        batch: what the processor gave, padded on the left, on the model's device.
        max_tokens: budget of one rationale.
        max_rounds: rationales per rollout at most. Whether another follows the first is drawn from the gate.
        temperature: divides the logits of tokens and of the gate.
        generator: source of randomness. Default: torch's.
    """
    context, direct = _read(model, batch)
    gate_logits = model.gate(context.hidden)
    rows = torch.arange(len(direct), device=direct.device).repeat_interleave(num_reasoned)
    states = [RationaleState(max_tokens, max_rounds) for _ in range(len(rows))]
    decoder = Decoder(
        model,
        decide=lambda logits: (
            torch.rand(logits.shape, generator=generator).to(logits.device) < (logits / temperature).sigmoid()
        ),
        sampling=Sampling(do_sample=True, temperature=temperature, generator=generator),
    )
    decoder.add(context, rows, states)
    decoder.run()
    return RolloutGroup(
        direct,
        gate_logits,
        torch.stack([state.embeddings[-1] for state in states]),
        [state.token_ids for state in states],
        torch.tensor([state.num_tokens for state in states], device=rows.device),
        torch.tensor([len(state.embeddings) for state in states], device=rows.device),
        torch.tensor([state.num_truncated for state in states], device=rows.device),
    )


@torch.no_grad()
def embed_after(model: MMEmbR1Model, context: Context, rows: Tensor, rationales: Sequence[Sequence[int]]) -> Tensor:
    """
    Embed prompts after rationales that another model wrote, `(N, D)`; the prompts are not read again.

    Rationale n, a list of ids that ends in `<|embed|>`, continues prompt `rows[n]` of the `context` that `model` read.
    """
    context = context.branch(rows)
    tails = [torch.tensor(ids, device=rows.device) for ids in rationales]
    ids = pad_sequence(tails, batch_first=True)  # (N, T), padded on the right: nothing after it is read
    tail_mask = pad_sequence([torch.ones_like(tail) for tail in tails], batch_first=True)
    prompt_mask = cast(Tensor, context.mask)  # a branch is padded
    mask = torch.cat([prompt_mask, tail_mask.to(prompt_mask.dtype)], dim=1)  # (N, S + T)
    numbers = token_positions(mask)[:, -ids.shape[1] :]  # (N, T)
    hidden = model.vlm.base_model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=next_positions(model.vlm, numbers, context.offset),
        past_key_values=context.cache,
        use_cache=True,
        return_dict=True,
    ).last_hidden_state
    head = model.embedding_head
    return head(head.join(context.pooled, head.pool(hidden, tail_mask.bool())).mean)


def read_group(model: MMEmbR1Model, batch: Mapping[str, Tensor], group: RolloutGroup) -> tuple[Tensor, Tensor]:
    """Embed the direct `(B, D)` and the reasoned rollouts `(B * n, D)` of a policy's group with another embedder."""
    context, direct = _read(model, batch)
    rows = torch.arange(len(direct), device=direct.device).repeat_interleave(len(group.rationales) // len(direct))
    return direct, embed_after(model, context, rows, group.rationales)


@torch.no_grad()
def _read(model: MMEmbR1Model, batch: Mapping[str, Tensor]) -> tuple[Context, Tensor]:
    """Read prompts, and embed them directly."""
    media = dict(batch)
    input_ids, attention_mask = media.pop("input_ids"), media.pop("attention_mask")
    context = prefill(model.vlm, model.embedding_head, input_ids, attention_mask, True, **media)
    return context, model.embedding_head(context.pooled.mean)


def in_groups(direct: Tensor, reasoned: Tensor, num_direct: int) -> Tensor:
    """
    Order vectors by rollout: for each prompt the direct one `(B, D)`, repeated, then its reasoned ones `(B * n, D)`.

    >>> in_groups(torch.zeros(1, 1), torch.ones(2, 1), num_direct=1).tolist()
    [[0.0], [1.0], [1.0]]
    """
    first = direct[:, None].expand(-1, num_direct, -1)  # (B, n_d, D)
    return torch.cat([first, reasoned.unflatten(0, (len(direct), -1))], dim=1).flatten(0, 1)


def as_columns(
    group: RolloutGroup, num_direct: int, config: Any, eos_token_id: int, max_tokens: int, max_rounds: int
) -> dict[str, list[Any]]:
    """
    Write a group as columns with a row per rollout: for each prompt the direct ones, then the reasoned ones.

    Returns:
        `completion_ids`, which end in `eos_token_id`, `env_mask` (see [`loss_mask`]), `reasoned`,
        `num_reasoning_tokens`, `num_reasoning_rounds`, `truncated` and `reasoning_budget`.
    """
    number = len(group.rationales) // len(group.direct)
    rationales: list[list[int]] = []
    for start in range(0, len(group.rationales), number):
        rationales += [[]] * num_direct + group.rationales[start : start + number]

    def of_all(values: Tensor) -> list[Any]:
        """Extend values of the reasoned rollouts `(B * n,)` to all, with 0 for direct ones."""
        return torch.nn.functional.pad(values.view(-1, number), (num_direct, 0)).flatten().tolist()

    return {
        "completion_ids": [[*ids, eos_token_id] for ids in rationales],
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
    mask, spent, rounds = [], 0, 0
    for token in rationale:
        if token == config.think_token_id:
            spent = 0
        inserted = token == config.embed_token_id or (token == config.end_think_token_id and spent >= max_tokens)
        rounds += token == config.embed_token_id
        spent += token not in (config.think_token_id, config.end_think_token_id, config.embed_token_id)
        mask.append(int(not inserted))
    return [*mask, int(rounds < max_rounds)]

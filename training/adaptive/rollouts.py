"""Rollouts of a policy that may think: groups that share one prefill, and their completions as token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb_r1.modeling.backbones_mmemb_r1 import next_positions, token_positions
from mmemb_r1.modeling.decoding_mmemb_r1 import Context, Decoder, RationaleState, Sampling, prefill
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model


class Group(NamedTuple):
    """
    B prompts, each with a direct embedding and n reasoned rollouts.

    Attributes:
        direct: `(B, D)` direct embeddings.
        gate_logits: `(B,)` at the first `<|embed|>`.
        reasoned: `(B * n, D)` last embeddings, rollouts of a prompt side by side.
        thoughts: per rollout `<think> r </think> <|embed|>`, once or, with several rounds, more often.
        num_tokens: `(B * n,)` rationale tokens.
        num_rounds: `(B * n,)` rationales.
        num_forced: `(B * n,)` rationales that were closed by force.
    """

    direct: Tensor
    gate_logits: Tensor
    reasoned: Tensor
    thoughts: list[list[int]]
    num_tokens: Tensor
    num_rounds: Tensor
    num_forced: Tensor


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
) -> Group:
    """
    Read each prompt once, pictures included, and draw rationales that go on from there.

    Args:
        model: the policy.
        batch: what the processor gave for B prompts, padded on the left, on the model's device.
        num_reasoned: n, rollouts of each prompt that think.
        max_tokens: budget of one rationale.
        max_rounds: rationales per rollout at most. The first is drawn in any case, whether another follows is drawn
            from the gate.
        temperature: divides the logits of tokens and of the gate.
        generator: source of randomness. Default: torch's.
    """
    media = dict(batch)
    input_ids, attention_mask = media.pop("input_ids"), media.pop("attention_mask")
    context = prefill(model.vlm, model.embedding_head, input_ids, attention_mask, True, **media)
    direct, gate_logits = model.embedding_head(context.pooled.mean), model.gate(context.hidden)
    rows = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(num_reasoned)
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
    return Group(
        direct,
        gate_logits,
        torch.stack([state.embeddings[-1] for state in states]),
        [state.token_ids for state in states],
        torch.tensor([state.num_tokens for state in states], device=rows.device),
        torch.tensor([len(state.embeddings) for state in states], device=rows.device),
        torch.tensor([state.num_truncated for state in states], device=rows.device),
    )


@torch.no_grad()
def read_thoughts(model: MMEmbR1Model, context: Context, rows: Tensor, thoughts: Sequence[Sequence[int]]) -> Tensor:
    """
    Last embeddings `(N, D)` after thoughts that somebody else wrote; the prompts are not read again.

    Args:
        model: the embedder.
        context: B prompts that it read.
        rows: `(N,)` which prompt each thought is about.
        thoughts: N lists of ids, each ending in `<|embed|>`.
    """
    context = context.branch(rows)
    tails = [torch.tensor(thought, device=rows.device) for thought in thoughts]
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


def read_group(model: MMEmbR1Model, batch: Mapping[str, Tensor], group: Group) -> tuple[Tensor, Tensor]:
    """
    A group's direct embeddings `(B, D)` and last ones `(B * n, D)` as another embedder sees them.

    Args:
        model: the embedder.
        batch: the B prompts.
        group: what a policy made of them.
    """
    media = dict(batch)
    with torch.no_grad():
        input_ids, attention_mask = media.pop("input_ids"), media.pop("attention_mask")
        context = prefill(model.vlm, model.embedding_head, input_ids, attention_mask, True, **media)
        direct = model.embedding_head(context.pooled.mean)
    rows = torch.arange(len(direct), device=direct.device).repeat_interleave(len(group.thoughts) // len(direct))
    return direct, read_thoughts(model, context, rows, group.thoughts)


def in_groups(direct: Tensor, reasoned: Tensor, num_direct: int) -> Tensor:
    """
    A row per rollout: for each prompt the direct one so many times, then those that think.

    Args:
        direct: `(B, D)`.
        reasoned: `(B * n, D)`.
        num_direct: direct rollouts of each prompt.

    >>> in_groups(torch.zeros(1, 1), torch.ones(2, 1), num_direct=1).tolist()
    [[0.0], [1.0], [1.0]]
    """
    first = direct[:, None].expand(-1, num_direct, -1)  # (B, n_d, D)
    return torch.cat([first, reasoned.unflatten(0, (len(direct), -1))], dim=1).flatten(0, 1)


def as_columns(
    group: Group, num_direct: int, config: Any, eos_token_id: int, max_tokens: int, max_rounds: int
) -> dict[str, list[Any]]:
    """
    A group as the columns of a table with a row per rollout: for each prompt the direct ones, then those that think.

    Args:
        group: of B prompts.
        num_direct: direct rollouts of each.
        config: with the ids of the control tokens.
        eos_token_id: what a rollout ends in.
        max_tokens: budget of one rationale.
        max_rounds: rationales at most.

    Returns:
        `completion_ids`, `env_mask` (see [`loss_mask`]), `reasoned`, `num_reasoning_tokens`, `num_reasoning_rounds`,
        `truncated` and `reasoning_budget`.
    """
    number = len(group.thoughts) // len(group.direct)
    thoughts: list[list[int]] = []
    for start in range(0, len(group.thoughts), number):
        thoughts += [[]] * num_direct + group.thoughts[start : start + number]

    def of_all(values: Tensor) -> list[Any]:
        """Values of the rollouts that think `(B * n,)` -> of all, 0 for direct ones."""
        return torch.nn.functional.pad(values.view(-1, number), (num_direct, 0)).flatten().tolist()

    return {
        "completion_ids": [completion(thought, eos_token_id) for thought in thoughts],
        "env_mask": [loss_mask(thought, config, max_tokens, max_rounds) for thought in thoughts],
        "reasoned": [bool(thought) for thought in thoughts],
        "num_reasoning_tokens": of_all(group.num_tokens),
        "num_reasoning_rounds": of_all(group.num_rounds),
        "truncated": [bool(forced) for forced in of_all(group.num_forced)],
        "reasoning_budget": [max_tokens * max_rounds] * len(thoughts),
    }


def completion(thought: Sequence[int], eos_token_id: int) -> list[int]:
    """The ids of a rollout: its thoughts, none for a direct embedding, and the end.

    >>> completion([], 2), completion([7, 40, 8, 9], 2)
    ([2], [7, 40, 8, 9, 2])
    """
    return [*thought, eos_token_id]


def loss_mask(thought: Sequence[int], config: Any, max_tokens: int, max_rounds: int) -> list[int]:
    """
    Which tokens of a [`completion`] were chosen, 1, and which forced, 0.

    Forced are `<|embed|>`, the `</think>` of a rationale that has spent its budget, and the end after the last round
    that was allowed.

    Args:
        thought: of the rollout.
        config: with the ids of the control tokens.
        max_tokens: budget of one rationale.
        max_rounds: rationales at most.
    """
    mask, spent, rounds = [], 0, 0
    for token in thought:
        if token == config.think_token_id:
            spent = 0
        forced = token == config.embed_token_id or (token == config.end_think_token_id and spent >= max_tokens)
        rounds += token == config.embed_token_id
        spent += token not in (config.think_token_id, config.end_think_token_id, config.embed_token_id)
        mask.append(int(not forced))
    return [*mask, int(rounds < max_rounds)]

"""Let another engine write the rationales of rollouts; the policy reads, embeds and decides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb_r1.modeling.backbones_mmemb_r1 import next_positions, token_positions, with_cache
from mmemb_r1.modeling.decoding_mmemb_r1 import Context
from mmemb_r1.modeling.modeling_mmemb_r1 import MMEmbR1Model
from mmemb_r1.modeling.paths_mmemb_r1 import reading_places
from mmemb_r1.modeling.states_mmemb_r1 import RationaleState
from mmemb_r1.training.adaptive.forward import decision_logps


class Written(NamedTuple):
    """Hold what an engine wrote: ids, and the log-probability with which each was drawn."""

    ids: list[int]
    logps: list[float]


class Writer(Protocol):
    """Write rationales of the prompts of a batch."""

    def write(self, begun: Sequence[tuple[int, list[int]]], max_tokens: int, seeds: Sequence[int]) -> list[Written]:
        """
        Draw what follows each of N beginnings, up to the id that ends a rationale, or, without one, `max_tokens` ids.

        Args:
            begun: the number of a prompt in the batch, and the ids after it.
            max_tokens: ids of each at most, the one that ends it included.
            seeds: N, from which alone each is drawn.
        """
        ...


@torch.no_grad()
def think_with(
    writer: Writer,
    model: MMEmbR1Model,
    context: Context,
    rows: Tensor,
    states: Sequence[RationaleState],
    decide: Callable[[Tensor], Tensor],
    temperature: float,
    generator: torch.Generator | None = None,
) -> list[list[float]]:
    """
    Let M rows think as a [`~mmemb_r1.modeling.decoding_mmemb_r1.Decoder`] does, with rationales that a writer writes.

    Args:
        writer: of the prompts of the context.
        model: the policy.
        context: of prompts that it read; it stays as it is.
        rows: `(M,)` the prompt of each row.
        states: M, which have not begun.
        decide: gate logits `(N,)` -> `(N,)` bool, which rows think another round.
        temperature: divides the gate's logits where it decides.
        generator: source of the seeds. Default: torch's.

    Returns:
        Of each row the log-probabilities with which its ids, and its end, were chosen: the writer's for tokens, the
        policy's for decisions, 0 for what nobody chose.
    """
    config, left = model.config, list(range(len(states)))
    gates = model.ask_gate(context.hidden, context.words)[rows]  # (M,)
    logps: list[list[float]] = [[] for _ in states]
    for state in states:
        state.begin(config.opening_ids)
    while left:
        chosen = decision_logps(gates / temperature, torch.ones_like(gates, dtype=torch.bool))
        for place, logp in zip(left, chosen.tolist(), strict=True):
            _feed_until(states[place], config, "choose")
            logps[place] += [logp, *[0.0] * (len(config.opening_ids) - 1)]
        begun = [(int(rows[place]), list(states[place].token_ids)) for place in left]
        seeds = torch.randint(2**31 - 1, (len(left),), generator=generator).tolist()
        # One more than the budget: an end that is chosen right after it is no forced one.
        written = writer.write(begun, max(states[place].max_tokens for place in left) + 1, seeds)
        for place, one in zip(left, written, strict=True):
            logps[place] += _take_up(states[place], config, one)
        at = torch.tensor(left, device=rows.device)
        vectors, hidden = _read_on(model, context, rows[at], [states[place].token_ids for place in left])
        gates = model.ask_gate(hidden, context.words_of(rows[at]))  # (N,)
        stops = decision_logps(gates / temperature, torch.zeros_like(gates, dtype=torch.bool)).tolist()
        for place, vector, again, stop in zip(left, vectors, decide(gates).tolist(), stops, strict=True):
            states[place].embed(vector, again, config.opening_ids)
            if states[place].done:
                logps[place].append(stop)
        gates = gates[torch.tensor([not states[place].done for place in left], device=gates.device)]
        left = [place for place in left if not states[place].done]
    return logps


def _feed_until(state: RationaleState, config: Any, wanted: str) -> None:
    """Feed what a row has before it, up to where something follows that is chosen, or is read."""
    while state.take(config) != wanted:
        pass


def _take_up(state: RationaleState, config: Any, written: Written) -> list[float]:
    """Feed a row the rationale that was written for it, and what closes it; return the log-probabilities of that."""
    logps = []
    for token, logp in zip(written.ids, written.logps, strict=True):
        forced = state.num_truncated
        state.follow(token, config.end_think_token_id)
        logps.append(0.0 if state.num_truncated > forced else logp)
        if state.feed == config.end_think_token_id:
            _feed_until(state, config, "embed")
            return [*logps, *[0.0] * len(config.closing_ids)]
        state.take(config)
    raise ValueError(
        f"An engine stopped after {len(written.ids)} tokens of a rationale, before its end and before the budget of "
        f"{state.max_tokens} was spent. Give it room for the longest prompt and what is drawn after it."
    )


def embed_after(model: MMEmbR1Model, context: Context, rows: Tensor, rationales: Sequence[Sequence[int]]) -> Tensor:
    """
    Embed prompts after rationales that another model wrote, `(N, D)`; the prompts are not read again.

    Rationale n, a list of ids that ends in `<|embed|>`, continues prompt `rows[n]` of the `context` that `model` read.
    """
    return _read_on(model, context, rows, rationales)[0]


@torch.no_grad()
def _read_on(
    model: MMEmbR1Model, context: Context, rows: Tensor, rationales: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """Do as [`embed_after`], and give the hidden states `(N, H)` of the last ids too."""
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
        **with_cache(model.vlm.base_model, context.cache),
        use_cache=True,
        return_dict=True,
    ).last_hidden_state  # (N, T, H)
    last = hidden[torch.arange(len(hidden), device=ids.device), tail_mask.sum(dim=1) - 1]  # (N, H)
    head, tail_mask = model.embedding_head, tail_mask.bool()
    if model.config.embed_position == "before":
        tail_mask = tail_mask & ~reading_places(model.config, ids, tail_mask, read=True)
    return model.embeddings_of(head.join(context.pooled, head.pool(hidden, tail_mask)).mean), last

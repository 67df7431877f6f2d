"""
Adaptive decoding: from one prefill, think only for the rows that should, and embed again.

Every row is a small state machine whose state is the token it feeds next:

    <think>  ->  r_1 ... r_n  ->  </think>  ->  <|embed|>  ->  stop, or <think> again

All rows that are still thinking advance by one token per step, whatever state they are in. The hidden state at
`<|embed|>` falls out of the step that feeds it, and a row that stops leaves the batch and its cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .heads_mmemb_r1 import EmbeddingHead, Pooled


@dataclass
class Context:
    """
    What decoding needs to know of a batch of rows, all padded on the left.

    Attributes:
        cache: the backbone's key-value cache of the tokens so far, or `None` if it was not kept.
        mask: `(B, S)` attention mask of the tokens so far.
        offset: `(B, 1)` difference between a token's rotary position and its index in the row (multimodal RoPE).
        pooled: the pooled hidden states so far.
        hidden: `(B, H)` hidden state of the last token.
    """

    cache: Any
    mask: Tensor
    offset: Tensor
    pooled: Pooled
    hidden: Tensor

    def select(self, rows: Tensor) -> Context:
        """Keep the given rows; the cache is changed in place."""
        self.cache.batch_select_indices(rows)
        return Context(self.cache, self.mask[rows], self.offset[rows], self.pooled.select(rows), self.hidden[rows])


@dataclass
class Sampling:
    """
    How the tokens of a rationale are chosen.

    Args:
        do_sample: draw from the distribution; otherwise the likeliest token (greedy).
        temperature: divides the logits when drawing.
        generator: source of randomness; `None` is torch's default.
    """

    do_sample: bool = False
    temperature: float = 1.0
    generator: torch.Generator | None = None

    def choose(self, logits: Tensor) -> Tensor:
        """Next token ids `(B,)` from `logits` `(B, V)`."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = nn.functional.softmax(logits.float() / self.temperature, dim=-1)
        return torch.multinomial(probabilities, num_samples=1, generator=self.generator).squeeze(-1)


def uses_multimodal_rope(vlm: Any) -> bool:
    """Whether the backbone keeps three rotary positions per token (Qwen-VL), which have to be passed to it."""
    return hasattr(vlm.base_model, "get_rope_index")


def rotary_positions(
    vlm: Any, input_ids: Tensor, attention_mask: Tensor, media: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """
    Rotary positions of complete sequences, `(B, S)` or, for multimodal RoPE, `(3, B, S)`, and what a later token's
    position has over its index in the row, `(B, 1)`.

    They are always passed to the backbone: left to itself, a Qwen-VL counts padding as positions when there are no
    media, and keeps the offsets as its own state, which two threads would share.
    """
    positions = token_positions(attention_mask)
    if not uses_multimodal_rope(vlm):
        return positions, positions.new_zeros(len(positions), 1)
    if not any(key.endswith("grid_thw") for key in media):
        return positions.expand(3, -1, -1), positions.new_zeros(len(positions), 1)
    return vlm.base_model.get_rope_index(input_ids=input_ids, attention_mask=attention_mask, **media)


def token_positions(mask: Tensor) -> Tensor:
    """Index of each token in its row, `(B, S)`; padding counts as 0."""
    return (mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def left_padded(mask: Tensor) -> Tensor | None:
    """
    Column order `(B, S)` that moves all padding to the left, or `None` if it is there already.

    >>> left_padded(torch.tensor([[1, 1, 0], [1, 1, 1]])).tolist()
    [[2, 0, 1], [0, 1, 2]]
    >>> left_padded(torch.tensor([[0, 1, 1]])) is None
    True
    """
    order = mask.long().argsort(dim=1, stable=True)
    if torch.equal(order, torch.arange(mask.shape[1], device=mask.device).expand_as(order)):
        return None
    return order


def prefill(
    vlm: Any, head: EmbeddingHead, input_ids: Tensor, attention_mask: Tensor, keep_cache: bool, **media: Any
) -> Context:
    """
    Run the prompts through the backbone once.

    Args:
        vlm: the backbone.
        head: the embedding head, whose pooling is begun.
        input_ids: `(B, S)` token ids, padded on the left.
        attention_mask: `(B, S)`.
        keep_cache: whether decoding may follow.
        **media: whatever else the processor gave (pixel values, grids, token types ...).
    """
    position_ids, offset = rotary_positions(vlm, input_ids, attention_mask, media)
    output = vlm.base_model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=position_ids,
        use_cache=keep_cache,
        return_dict=True,
        **media,
    )
    hidden = output.last_hidden_state
    return Context(
        cache=output.past_key_values if keep_cache else None,
        mask=attention_mask,
        offset=offset,
        pooled=head.pool(hidden, attention_mask),
        hidden=hidden[:, -1],
    )


def advance(vlm: Any, head: EmbeddingHead, context: Context, token_ids: Tensor) -> Context:
    """Feed one token per row, `token_ids` `(B,)`, and read the hidden state there."""
    mask = torch.cat([context.mask, context.mask.new_ones(len(token_ids), 1)], dim=1)  # (B, S) -> (B, S + 1)
    position_ids = mask.long().sum(dim=1, keepdim=True) - 1 + context.offset  # (B, 1)
    if uses_multimodal_rope(vlm):
        position_ids = position_ids.expand(3, -1, -1)  # (3, B, 1)
    output = vlm.base_model(
        input_ids=token_ids[:, None],
        attention_mask=mask,
        position_ids=position_ids,
        past_key_values=context.cache,
        use_cache=True,
        return_dict=True,
    )
    hidden = output.last_hidden_state[:, -1]
    return Context(output.past_key_values, mask, context.offset, head.extend(context.pooled, hidden), hidden)


@dataclass
class Thoughts:
    """
    What decoding did, per row of the whole batch (`B`) and round (`K`).

    Attributes:
        embeddings: `(B, K + 1, D)`; slot 0 is the direct embedding, slot k the one after k rationales. Slots that a
            row did not reach repeat its last one.
        rounds: `(B,)` number of rationales.
        num_tokens: `(B,)` rationale tokens, control tokens not counted.
        num_forced: `(B,)` rationales that were closed by force because their budget was spent.
        token_ids: a list of the ids after the first `<think>`, per row.
    """

    embeddings: Tensor
    rounds: Tensor
    num_tokens: Tensor
    num_forced: Tensor
    token_ids: list[list[int]]


def think(
    model: Any,
    context: Context,
    thoughts: Thoughts,
    rows: Tensor,
    *,
    decide: Callable[[Tensor], Tensor] | None,
    max_tokens: int,
    max_rounds: int,
    sampling: Sampling,
) -> None:
    """
    Let `rows` `(N,)` of the batch think and record it in `thoughts`.

    Args:
        model: the [`MMEmbR1Model`].
        context: the prefilled batch; used up.
        thoughts: the record, changed in place.
        rows: which rows of the batch think.
        decide: gate logits `(N,)` -> `(N,)` bool, which rows think another round; `None` always thinks on.
        max_tokens: budget of one rationale.
        max_rounds: rationales per row at most.
        sampling: how rationale tokens are chosen.
    """
    config = model.config
    embed_id, think_id, end_id = config.embed_token_id, config.think_token_id, config.end_think_token_id
    context = context.select(rows)
    feed = torch.full_like(rows, think_id)
    spent = torch.zeros_like(rows)  # tokens of the current rationale
    round_ = torch.ones_like(rows)
    history: list[tuple[Tensor, Tensor]] = []
    while len(rows):
        context = advance(model.vlm, model.embedding_head, context, feed)
        history.append((rows, feed))
        at_marker = feed == embed_id
        follow = _next_tokens(model, context.hidden, sampling)  # (N,)
        forced = (spent >= max_tokens) & (feed != end_id) & ~at_marker
        thoughts.num_forced[rows] += (forced & (follow != end_id)).long()
        follow = torch.where(forced, end_id, follow)
        follow = torch.where(feed == end_id, embed_id, follow)
        if at_marker.any():
            marked = rows[at_marker]
            embedding = model.embedding_head(context.pooled.mean[at_marker])
            for slot in range(1, thoughts.embeddings.shape[1]):
                reached = round_[at_marker] <= slot
                thoughts.embeddings[marked[reached], slot] = embedding[reached].to(thoughts.embeddings.dtype)
            thoughts.rounds[marked] = round_[at_marker]
            again = round_ < max_rounds
            if decide is not None:
                again &= decide(model.gate(context.hidden))
            follow = torch.where(at_marker, think_id, follow)
            round_ = torch.where(at_marker, round_ + 1, round_)
            spent = torch.where(at_marker, 0, spent)
            stay = (~at_marker | again).nonzero().squeeze(-1)
            if len(stay) < len(rows):
                rows, follow, spent, round_ = rows[stay], follow[stay], spent[stay], round_[stay]
                if len(stay):
                    context = context.select(stay)
        counts = (follow != end_id) & (follow != embed_id) & (follow != think_id)
        spent = spent + counts.long()
        thoughts.num_tokens[rows] += counts.long()
        feed = follow
    _collect(history, thoughts.token_ids, embed_id)


def _next_tokens(model: Any, hidden: Tensor, sampling: Sampling) -> Tensor:
    """Rationale tokens `(N,)` after the hidden states `(N, H)`; ids that can't occur in a rationale are left out."""
    logits = model.vlm.get_output_embeddings()(hidden)  # (N, H) -> (N, V)
    return sampling.choose(without_suppressed(logits, model.config))


def without_suppressed(logits: Tensor, config: Any) -> Tensor:
    """Logits `(N, V)`, changed in place: minus infinity at the ids that can't occur in a rationale."""
    logits[:, config.suppressed_token_ids] = -torch.inf
    if config.rationale_vocab_size is not None:
        logits[:, config.rationale_vocab_size :] = -torch.inf
    return logits


def _collect(history: list[tuple[Tensor, Tensor]], token_ids: list[list[int]], embed_id: int) -> None:
    """Sort the tokens of all steps into rows; the first `<think>` and the last `</think> <|embed|>` are left out."""
    for rows, fed in history[1:]:
        for row, token in zip(rows.tolist(), fed.tolist(), strict=True):
            token_ids[row].append(token)
    for row in set(history[0][0].tolist()) if history else ():
        del token_ids[row][-2:]

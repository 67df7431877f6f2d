"""
Decode adaptively: from one prefill, think only for the rows that should, and embed again.

Every row is a small state machine whose state is the token it feeds next:

    <think>  ->  r_1 ... r_n  ->  </think>  ->  <|embed|>  ->  stop, or <think> again

or what `paths_mmemb_r1` says stands in their places. All rows that are still thinking advance by one token per step,
whatever state they are in and whichever prefill they come from. The hidden state at `<|embed|>` falls out of the step
that feeds it, and a row that stops leaves the batch and its cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .backbones_mmemb_r1 import (
    cache_of,
    can_be_ragged,
    can_join,
    is_per_token,
    next_positions,
    rotary_positions,
    with_cache,
)
from .caching_mmemb_r1 import branched, joined, keep, places_kept
from .gate_inputs_mmemb_r1 import mean_words
from .heads_mmemb_r1 import EmbeddingHead, Pooled
from .ragged_mmemb_r1 import RaggedCache, attend_ragged
from .states_mmemb_r1 import RationaleState, think_again


@dataclass
class Context:
    """
    Hold what decoding needs to know of a batch of rows.

    Attributes:
        cache: the key-value cache of the tokens so far: the backbone's, all rows padded on the left, or a
            [`RaggedCache`]; `None` if it was not kept.
        mask: `(B, S)` attention mask of the tokens so far; `None` where the cache is ragged.
        lengths: `(B,)` tokens of each row so far.
        offset: `(B, 1)` difference between a token's rotary position and its index in the row (multimodal RoPE).
        pooled: the pooled hidden states so far.
        hidden: `(B, H)` hidden state of the last token.
        words: `(B, H)` mean word embedding of the prompt, where the gate reads it.
    """

    cache: Any
    mask: Tensor | None
    lengths: Tensor
    offset: Tensor
    pooled: Pooled
    hidden: Tensor
    words: Tensor | None = None

    def branch(self, rows: Tensor) -> Context:
        """Copy the given rows `(N,)`, any of them left out or repeated; this one stays as it is."""
        return self._of(branched(self.cache, rows), self.mask, rows)

    def branch_ragged(self, rows: Tensor) -> Context:
        """Copy rows without padding, where [`can_be_ragged`] says so."""
        return self._of(RaggedCache.of(self.cache, rows.tolist(), self.lengths[rows].tolist()), None, rows)

    def keep(self, order: Tensor) -> Context:
        """Keep the rows `order` `(n,)`, from [`places_kept`]; the cache is changed in place."""
        if isinstance(self.cache, RaggedCache):
            self.cache.keep(order.tolist())
        else:
            keep(self.cache, order)
        return self._of(self.cache, self.mask, order)

    def _of(self, cache: Any, mask: Tensor | None, rows: Tensor) -> Context:
        mask = None if mask is None else mask[rows]
        pooled, hidden = self.pooled.select(rows), self.hidden[rows]
        return Context(cache, mask, self.lengths[rows], self.offset[rows], pooled, hidden, self.words_of(rows))

    def words_of(self, rows: Tensor) -> Tensor | None:
        """Get the mean word embeddings of rows `(N,)`, if the gate reads them."""
        return None if self.words is None else self.words[rows]

    def join(self, other: Context) -> Context:
        """Join the rows of both, without the padding that all of them have; both are used up."""
        lengths, mask = torch.cat([self.lengths, other.lengths]), None
        if self.mask is None or other.mask is None:
            self.cache.join(other.cache)
            cache = self.cache
        else:
            widths = int(self.lengths.max()), int(other.lengths.max())
            width = max(widths)
            masks = (
                nn.functional.pad(part[:, -own:], (width - own, 0))
                for part, own in zip((self.mask, other.mask), widths, strict=True)
            )
            cache, mask = joined(self.cache, other.cache, widths), torch.cat(tuple(masks))
        return Context(
            cache,
            mask,
            lengths,
            torch.cat([self.offset, other.offset]),
            self.pooled.beside(other.pooled),
            torch.cat([self.hidden, other.hidden]),
            None if self.words is None or other.words is None else torch.cat([self.words, other.words]),
        )


@dataclass
class Sampling:
    """
    Choose the tokens of a rationale.

    Args:
        do_sample: draw from the distribution; otherwise the likeliest token (greedy).
        temperature: divides the logits when drawing.
        generator: source of randomness; `None` is torch's default.
    """

    do_sample: bool = False
    temperature: float = 1.0
    generator: torch.Generator | None = None

    def choose(self, logits: Tensor) -> Tensor:
        """Choose the next token ids `(B,)` from `logits` `(B, V)`."""
        if not self.do_sample:
            return logits.argmax(dim=-1)
        probabilities = nn.functional.softmax(logits.float() / self.temperature, dim=-1)
        return torch.multinomial(probabilities, num_samples=1, generator=self.generator).squeeze(-1)


def left_padded(mask: Tensor) -> Tensor | None:
    """
    Find the order of columns `(B, S)` that moves all padding to the left; `None` if it is there already.

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
    vlm: Any,
    head: EmbeddingHead,
    input_ids: Tensor,
    attention_mask: Tensor,
    keep_cache: bool,
    ahead: Sequence[int] = (),
    **media: Any,
) -> Context:
    """
    Run the prompts through the backbone once.

    Args:
        vlm: the backbone.
        head: the embedding head, whose pooling is begun.
        input_ids: `(B, S)` token ids, padded on the left, each row ending in the marker.
        attention_mask: `(B, S)`.
        keep_cache: whether decoding may follow.
        ahead: ids that every row is to be fed next, and that are read in the same pass. They are in the cache;
            `pooled` and `hidden` are those of the marker.
        **media: whatever else the processor gave (pixel values, grids, token types ...).
    """
    at = input_ids.shape[1] - 1
    pooled_mask = attention_mask.bool()
    if head.config.embed_position == "before":
        pooled_mask = pooled_mask & (torch.arange(at + 1, device=input_ids.device) < at)
    words = mean_words(vlm, input_ids[:, :at], attention_mask[:, :at]) if head.config.gate_reads_words else None
    if ahead:
        # as many new columns for everything that is per token: token types and the like are 0 there
        media = {
            key: _wider(value, len(ahead)) if is_per_token(value, input_ids) else value for key, value in media.items()
        }
        attention_mask = _wider(attention_mask, len(ahead), 1)
        input_ids = torch.cat([input_ids, input_ids.new_tensor(ahead).expand(len(input_ids), -1)], dim=1)
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
        cache=cache_of(output) if keep_cache else None,
        mask=attention_mask,
        lengths=attention_mask.long().sum(dim=1),
        offset=offset,
        pooled=head.pool(hidden[:, : at + 1], pooled_mask),
        hidden=hidden[:, at],
        words=words,
    )


def _wider(values: Tensor, columns: int, value: int = 0) -> Tensor:
    return nn.functional.pad(values, (0, columns), value=value)


def advance(
    vlm: Any,
    head: EmbeddingHead,
    context: Context,
    token_ids: Tensor,
    compile_options: Mapping[str, Any] | None = None,
    unread: Tensor | None = None,
) -> Context:
    """
    Feed one token per row, and read the hidden state there.

    Args:
        vlm, head: as for [`prefill`].
        context: of the tokens so far; used up.
        token_ids: `(B,)`.
        compile_options: of `torch.compile`. Default: it runs as it is.
        unread: `(B,)` bool, whose token is no part of what is pooled. Default: none.
    """
    numbers, offset, order, mask = context.lengths[:, None], context.offset, None, None  # (B, 1)
    if context.mask is None:  # a ragged cache has its own masks, and an order of its own
        order = context.cache.begin_step(token_ids.device)
        token_ids, numbers, offset = token_ids[order], numbers[order], offset[order]
    else:
        mask = torch.cat([context.mask, context.mask.new_ones(len(token_ids), 1)], dim=1)  # (B, S) -> (B, S + 1)
    run = vlm.base_model
    if compile_options is not None:
        run = partial(_compiled(type(run).forward, compile_options), run)
    output = run(
        input_ids=token_ids[:, None],
        attention_mask=mask,
        position_ids=next_positions(vlm, numbers, offset),
        **with_cache(vlm.base_model, context.cache),
        use_cache=True,
        return_dict=True,
    )
    hidden = output.last_hidden_state[:, -1]
    if order is not None:
        hidden = torch.empty_like(hidden).index_copy_(0, order, hidden)
    pooled = head.extend(context.pooled, hidden)
    if unread is not None:
        pooled = context.pooled.where(unread, pooled)
    return Context(cache_of(output), mask, context.lengths + 1, context.offset, pooled, hidden, context.words)


_COMPILED: dict[tuple[Callable[..., Any], str], Callable[..., Any]] = {}


def _compiled(forward: Callable[..., Any], options: Mapping[str, Any]) -> Callable[..., Any]:
    """Compile a class's forward once for all its models: they stay free of what can't be copied or pickled."""
    key = forward, repr(sorted(options.items()))
    if key not in _COMPILED:
        _COMPILED[key] = torch.compile(forward, **options)
    return _COMPILED[key]


@dataclass
class DecodingStatistics:
    """
    Count what decoding cost.

    Attributes:
        steps: forward passes.
        row_steps: rows of all these passes; those that were still thinking, as no other takes part.
    """

    steps: int = 0
    row_steps: int = 0


class Decoder:
    """
    Decode rows that think, of any number of prefills, one token per step.

    Args:
        model: the [`MMEmbR1Model`].
        decide: gate logits `(N,)` -> `(N,)` bool, which rows think another round. Default: those whose probability
            reaches the threshold of their state.
        sampling: how rationale tokens are chosen.
        statistics: where to count.
        across_batches: whether rows of one batch join those of others. They are at different places then, and padding
            is saved where the backbone's attention allows it; rows of a single batch have little.
    """

    def __init__(
        self,
        model: Any,
        *,
        decide: Callable[[Tensor], Tensor] | None = None,
        sampling: Sampling | None = None,
        statistics: DecodingStatistics | None = None,
        across_batches: bool = False,
    ) -> None:
        self.model = model
        self.across_batches = across_batches
        self.decide = decide
        self.sampling = sampling or Sampling()
        self.statistics = statistics or DecodingStatistics()
        self.states: list[RationaleState] = []
        self.context: Context | None = None

    def __len__(self) -> int:
        """Count the rows that are still thinking."""
        return len(self.states)

    def add(self, context: Context, rows: Tensor, states: Sequence[RationaleState], num_read: int = 0) -> None:
        """
        Let more rows think: `rows` `(N,)` of a batch that was read, any of them left out or repeated, one per state.
        Those of a backbone with a recurrent state can't stand beside others: what is at work is finished first. Of
        what opens a rationale `num_read` tokens were read with the batch.
        """
        if self._is_ragged(context):
            attend_ragged(self.model.vlm.get_decoder())
            branch = context.branch_ragged(rows)
        else:
            if not can_join(context.cache):
                self.run()
            branch = context.branch(rows)
        for state in states:
            state.begin(self.model.config.opening_ids, num_read)
        self.context = branch if self.context is None else self.context.join(branch)
        self.states += states

    def _is_ragged(self, context: Context) -> bool:
        compiled = self.model.decode_compile_options is not None
        return self.across_batches and not compiled and can_be_ragged(self.model.vlm.get_decoder(), context.cache)

    def run(self, until: int = 0) -> None:
        """Decode until at most so many rows are still thinking."""
        while len(self) > until:
            self.step()

    @torch.no_grad()
    def step(self) -> None:
        """Feed every row one token."""
        config, context = self.model.config, self.context
        if context is None:
            return
        fed = [state.feed for state in self.states if state.feed is not None]  # all are at work
        ids = torch.tensor(fed, device=context.hidden.device)  # (N,)
        follows = [state.take(config) for state in self.states]
        inside = [place for place, what in enumerate(follows) if what == "choose"]
        markers = [place for place, what in enumerate(follows) if what == "embed"]
        unread = None
        if markers and config.embed_position == "before":
            unread = torch.tensor([what == "embed" for what in follows], device=ids.device)
        self.context = context = advance(
            self.model.vlm, self.model.embedding_head, context, ids, self.model.decode_compile_options, unread
        )
        self.statistics.steps += 1
        self.statistics.row_steps += len(fed)
        if inside:
            self._choose(context.hidden, inside)
        if markers:
            self._embed(context, markers)

    def _choose(self, hidden: Tensor, places: list[int]) -> None:
        """Go on with the rows inside a rationale, at the hidden states `(N, H)` of all."""
        if len(places) < len(self):
            hidden = hidden[torch.tensor(places, device=hidden.device)]
        states = [self.states[place] for place in places]
        asked = [number for number, state in enumerate(states) if state.look is not None]
        tokens, logps = _next_tokens(self.model, hidden, self.sampling, asked)
        likely = dict(zip(asked, logps.tolist(), strict=True)) if logps is not None else {}
        for number, (state, token) in enumerate(zip(states, tokens.tolist(), strict=True)):
            state.follow(token, self.model.config.end_think_token_id, likely.get(number))

    def _embed(self, context: Context, places: list[int]) -> None:
        """Read the embeddings of the rows whose rationale has ended, and let go of those that are done."""
        model = self.model
        at = torch.tensor(places, device=context.hidden.device)
        embeddings = model.embeddings_of(context.pooled.mean[at])
        again = self._again(model.ask_gate(context.hidden[at], context.words_of(at)), places)
        looks = [self.states[place].look for place in places]
        if any(look is not None for look in looks):
            whole = model.embeddings_of(context.pooled.mean[at], whole=True)
            for look, vector in zip(looks, whole, strict=True):
                if look is not None:
                    look.reasoned = vector
        for place, embedding, more in zip(places, embeddings, again.tolist(), strict=True):
            self.states[place].embed(embedding, more, model.config.opening_ids)
        self._let_go()

    def _again(self, gate_logits: Tensor, places: list[int]) -> Tensor:
        """Tell which rows think another round, by their gate logits `(N,)` -> `(N,)` bool."""
        if self.decide is not None:
            return self.decide(gate_logits)
        return think_again(gate_logits, [self.states[place] for place in places])

    @torch.no_grad()
    def stop(self, states: Sequence[RationaleState]) -> None:
        """Take rows out in the middle of a rationale; see [`RationaleState.stop`]."""
        for state in states:
            state.stop()
        self._let_go()

    def _let_go(self) -> None:
        """Keep the rows that are still thinking."""
        stay = [place for place, state in enumerate(self.states) if state.feed is not None]
        if self.context is not None and len(stay) < len(self):
            order = places_kept(stay)
            self.states = [self.states[place] for place in order]
            rows = torch.tensor(order, device=self.context.hidden.device)
            self.context = self.context.keep(rows) if order else None


def _next_tokens(
    model: Any, hidden: Tensor, sampling: Sampling, asked: Sequence[int] = ()
) -> tuple[Tensor, Tensor | None]:
    """
    Choose tokens `(N,)` after the hidden states `(N, H)`, without ids that can't occur in a rationale.

    Returns:
        The tokens, and of n rows that are `asked` about their log-probabilities `(n,)` float32, of the whole
        vocabulary at temperature 1; `None` if there is no such row.
    """
    logits = model.vlm.get_output_embeddings()(hidden)  # (N, H) -> (N, V)
    if not asked:
        return sampling.choose(without_suppressed(logits, model.config)), None
    rows = torch.tensor(asked, device=logits.device)
    total = logits[rows].float().logsumexp(dim=-1)  # (n,); before ids are suppressed, which happens in place
    tokens = sampling.choose(without_suppressed(logits, model.config))
    return tokens, logits[rows, tokens[rows]].float() - total


def without_suppressed(logits: Tensor, config: Any) -> Tensor:
    """Set logits `(N, V)`, in place, to minus infinity at the ids that can't occur in a rationale."""
    logits[:, config.suppressed_token_ids] = -torch.inf
    if config.rationale_vocab_size is not None:
        logits[:, config.rationale_vocab_size :] = -torch.inf
    return logits

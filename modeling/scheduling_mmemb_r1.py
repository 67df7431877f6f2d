"""Schedule prompts: they are read batch by batch, and the rows of several batches that think are decoded together."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from .backbones_mmemb_r1 import can_join, is_per_token
from .decoding_mmemb_r1 import Context, Decoder, DecodingStatistics, Sampling, left_padded, prefill
from .options_mmemb_r1 import (
    REASONING_OPTIONS,
    check_option,
    context_length,
    list_budgets,
    resolve_reasoning,
)
from .outputs_mmemb_r1 import MMEmbR1EmbedOutput
from .second_look_mmemb_r1 import Look, look_again
from .states_mmemb_r1 import RationaleState

REFILL_FRACTION = 1 / 8  # of a full decoder: its cache is copied only when so many new rows can join


@dataclass(frozen=True)
class ReasoningOptions:
    """Say how to think, with the config's defaults filled in; see [`MMEmbR1Model.embed`]."""

    reasoning: str
    gate_threshold: float
    max_reasoning_tokens: int | Sequence[int]
    max_reasoning_rounds: int
    sampling: Sampling
    second_look: bool = False

    @classmethod
    def of(cls, config: Any, sampling: Sampling | None, *given: Any) -> ReasoningOptions:
        """
        Resolve the values that are `given`, in the order of `REASONING_OPTIONS`, see [`resolve_reasoning`]; the last
        may be left out.
        """
        options = dict(zip(REASONING_OPTIONS, given, strict=False))
        return cls(**resolve_reasoning(config, options, "query"), sampling=sampling or Sampling())

    def budgets(self, rows: int, given: int | Sequence[int] | None = None) -> list[int]:
        """List each row's budget of one rationale; `given` ones go before the options'."""
        budgets = self.max_reasoning_tokens if given is None else given
        budgets = list_budgets(budgets) * (rows if isinstance(budgets, Integral) else 1)
        if len(budgets) != rows:
            raise ValueError(
                f"max_reasoning_tokens={str(list(budgets)):.80} are the budgets of {rows} rows; pass one number per "
                "row, or one for all."
            )
        return budgets

    @property
    def threshold(self) -> float:
        """Get the gate probability from which a row thinks, and thinks again; any or none is infinite."""
        return {"always": -math.inf, "never": math.inf}.get(self.reasoning, self.gate_threshold)

    @property
    def looks(self) -> bool:
        """Tell whether rows that think get a second look."""
        return self.second_look and self.reasoning != "never"

    def thinks(self, gate_prob: Tensor) -> list[int]:
        """List the rows that think, by their gate probabilities `(B,)`."""
        return (gate_prob >= self.threshold).nonzero().squeeze(-1).tolist()


@dataclass
class ReadBatch:
    """
    Hold a batch whose prompts were read.

    Attributes:
        direct: `(B, D)` direct embeddings.
        gate_prob: `(B,)`.
        states: of the rows that think, by row.
        config: the [`MMEmbR1Config`].
        looks: whether rows that think get a second look.
    """

    direct: Tensor
    gate_prob: Tensor
    states: dict[int, RationaleState]
    config: Any
    looks: bool = False

    @property
    def done(self) -> bool:
        """Tell whether no row is thinking any more."""
        return all(state.done for state in self.states.values())

    def output(self, slots: int, output_all_embeddings: bool) -> MMEmbR1EmbedOutput:
        """Make what `embed` returns, with `slots` vectors per row."""
        rows, device = len(self.direct), self.direct.device
        embeddings = self.direct
        if self.states:
            places = torch.tensor(list(self.states), device=device)
            last = torch.stack([state.embeddings[-1] for state in self.states.values()])
            embeddings = self.direct.index_copy(0, places, last.to(self.direct.dtype))
        kept = self.gate_prob.new_zeros(rows)
        if looking := {row: state for row, state in self.states.items() if state.look is not None}:
            places = torch.tensor(list(looking), device=device)
            vectors, weights = look_again(self.config, list(looking.values()), self.gate_prob[places])
            embeddings = embeddings.index_copy(0, places, vectors.to(embeddings.dtype))
            kept = kept.index_copy(0, places, weights.to(kept.dtype))
        none = RationaleState(0, 0)
        states = [self.states.get(row, none) for row in range(rows)]
        rounds = torch.tensor([len(state.embeddings) for state in states], device=device)
        return MMEmbR1EmbedOutput(
            embeddings=embeddings,
            gate_prob=self.gate_prob,
            reasoned=rounds > 0,
            num_reasoning_rounds=rounds,
            num_reasoning_tokens=torch.tensor([state.num_tokens for state in states], device=device),
            num_forced_closings=torch.tensor([state.num_truncated for state in states], device=device),
            rationale_ids=_filled_up([state.rationale_ids(self.config) for state in states], device),
            all_embeddings=self._every(slots) if output_all_embeddings else None,
            second_look_weight=kept if self.looks else None,
        )

    def _every(self, slots: int) -> Tensor:
        """Stack `(B, slots, D)`: the vector after k rationales in slot k, or the last one there is."""
        every = self.direct[:, None].repeat(1, slots, 1)
        for row, state in self.states.items():
            for slot, embedding in enumerate(state.embeddings, start=1):
                every[row, slot:] = embedding
        return every


def embed_batches(
    model: Any,
    batches: Iterable[Mapping[str, Any]],
    options: ReasoningOptions,
    decode_batch_size: int | None = None,
    output_all_embeddings: bool = False,
    statistics: DecodingStatistics | None = None,
    several: bool = True,
) -> Iterator[MMEmbR1EmbedOutput]:
    """Embed batches, see [`MMEmbR1Model.embed_batches`]; `several` is whether there can be more than one."""
    if decode_batch_size is not None:
        decode_batch_size = check_option("decode_batch_size", decode_batch_size)
    slots = 1 if options.reasoning == "never" else options.max_reasoning_rounds + 1
    decoder = Decoder(
        model,
        sampling=options.sampling,
        statistics=statistics,
        across_batches=several or decode_batch_size is not None,
    )
    waiting: deque[ReadBatch] = deque()
    for batch in batches:
        read, context = read_prompts(model, batch, options)
        waiting.append(read)
        start_thinking(decoder, read.states, context, decode_batch_size)
        del context
        while waiting and waiting[0].done:
            yield waiting.popleft().output(slots, output_all_embeddings)
    decoder.run()
    for read in waiting:
        yield read.output(slots, output_all_embeddings)


def read_prompts(
    model: Any, batch: Mapping[str, Any], options: ReasoningOptions | Sequence[ReasoningOptions]
) -> tuple[ReadBatch, Context]:
    """
    Read prompts once, pictures included: direct embeddings, the gate's answers, and what decoding goes on from.

    Args:
        model: the [`MMEmbR1Model`].
        batch: what the processor gave; padding may be on either side. With `max_reasoning_tokens`, budgets of its own.
        options: how to think, for all rows or one for each.

    Raises:
        ValueError: if a prompt does not end in the marker.
    """
    media = dict(batch)
    input_ids, attention_mask = media.pop("input_ids"), media.pop("attention_mask", None)
    given = media.pop("max_reasoning_tokens", None)
    options = options_of_rows(options, len(input_ids), given)
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    order = left_padded(attention_mask)
    if order is not None:
        # everything of the prompts' shape is per token and moves along; media is stored flat, in reading order
        media = {key: value.gather(1, order) if is_per_token(value, order) else value for key, value in media.items()}
        input_ids, attention_mask = input_ids.gather(1, order), attention_mask.gather(1, order)
    model.require_markers((input_ids[:, -1] == model.config.embed_token_id) & attention_mask[:, -1].bool())
    never = all(own.reasoning == "never" for own in options)
    # a token that was chosen has no gradient, so a vector after it would have a wrong one
    with torch.set_grad_enabled(torch.is_grad_enabled() and never):
        ahead = () if never else opening_ahead(model.config)
        context = prefill(model.vlm, model.embedding_head, input_ids, attention_mask, not never, ahead, **media)
        direct = model.embeddings_of(context.pooled.mean)
        gate_prob = model.ask_gate(context.hidden, context.words).sigmoid()
    states = thinking_states(model.config, gate_prob, options)
    looks = any(own.looks for own in options)
    if looks and states:
        begin_looks(states, options, model.embeddings_of(context.pooled.mean, whole=True))
    return ReadBatch(direct, gate_prob, states, model.config, looks), context


def begin_looks(states: Mapping[int, RationaleState], options: Sequence[ReasoningOptions], direct: Tensor) -> None:
    """Let those rows that get a second look collect for it, from their direct embeddings `(B, D)`, not truncated."""
    for row, state in states.items():
        if options[row].looks:
            state.look = Look(direct[row].clone())  # not a view, which would hold the whole batch


def options_of_rows(
    options: ReasoningOptions | Sequence[ReasoningOptions], rows: int, given: int | Sequence[int] | None = None
) -> list[ReasoningOptions]:
    """List the options of each of so many rows, if they are for all; `given` budgets go before those in them."""
    if not isinstance(options, ReasoningOptions):
        return list(options)
    return [replace(options, max_reasoning_tokens=budget) for budget in options.budgets(rows, given)]


def thinking_states(config: Any, gate_prob: Tensor, options: Sequence[ReasoningOptions]) -> dict[int, RationaleState]:
    """Start the states of the rows that think, by their gate probabilities `(B,)` and the options of each."""
    limit = context_length(config)
    thresholds = [own.threshold for own in options]
    thinks = (gate_prob >= gate_prob.new_tensor(thresholds)).nonzero().squeeze(-1).tolist()
    return {
        row: RationaleState(options[row].budgets(1)[0], options[row].max_reasoning_rounds, limit, thresholds[row])
        for row in thinks
    }


def opening_ahead(config: Any) -> list[int]:
    """
    List what of a long opening is read with the prompts, in one pass: all but its last token, after which a rationale
    begins. Rows that won't think read it, too, so it is short where most are of that kind: nothing for `<think>`.
    """
    return config.opening_ids[:-1] if config.pooling == "last" else []  # other poolings need each state


@torch.no_grad()
def start_thinking(
    decoder: Decoder, states: Mapping[int, RationaleState], context: Context, decode_batch_size: int | None = None
) -> None:
    """
    Hand rows of a batch that was read to the decoder. With a `decode_batch_size`, it makes room for them first: for an
    eighth of what it may hold, so that it is nearly full all the time, and its cache is copied for them only now and
    then.
    """
    if not states:
        return
    num_read = len(opening_ahead(decoder.model.config))
    rows = torch.tensor(list(states), device=context.hidden.device)
    size = decode_batch_size or len(rows)
    if decode_batch_size is not None and can_join(context.cache):
        size = max(int(decode_batch_size * REFILL_FRACTION), 1)
    for part in rows.split(size):
        if decode_batch_size is not None:
            decoder.run(until=max(decode_batch_size - len(part), 0))
        decoder.add(context, part, [states[row] for row in part.tolist()], num_read)


def _filled_up(rows: list[list[int]], device: torch.device) -> Tensor:
    """Stack lists of ids as `(B, T)`, filled up with -1."""
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long, device=device).reshape(
        len(rows), width
    )

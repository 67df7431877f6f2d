"""Embed by an engine: ask it for states and rationales, and let the model's own head and gate decide on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb_r1.engines.prompts import engine_prompts
from mmemb_r1.engines.protocol import Engine, EnginePrompt, likelihood_engine
from mmemb_r1.modeling.gate_inputs_mmemb_r1 import mean_words
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.options_mmemb_r1 import REASONING_OPTIONS
from mmemb_r1.modeling.scheduling_mmemb_r1 import (
    ReadBatch,
    ReasoningOptions,
    begin_looks,
    options_of_rows,
    thinking_states,
)
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module, features_of
from mmemb_r1.modeling.states_mmemb_r1 import RationaleState, think_again

CHUNKS_AT_ONCE = 2  # so that states are read while rationales of the chunk before are written


def engine_rows(
    engine: Engine,
    module: MMEmbR1Module,
    inputs: Sequence[Any],
    chunks: Sequence[Sequence[int]],
    prompt: str | None,
    media: MediaOptions,
    options: dict[str, Any],
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """
    Embed the inputs of chunks.

    Args:
        engine: that runs the backbone.
        module: whose head and gate are used.
        inputs: as for `encode`.
        chunks: places of inputs, each chunk of which is one question to the engine.
        prompt: the system turn of inputs that bring none.
        media: how pictures are opened.
        options: those of thinking, see [`MMEmbR1Module.reasoning_options`].

    Yields:
        For each chunk its places, and what the module gives for a batch of these inputs.

    Raises:
        InputError: showing an input that can't be embedded.
        EngineError: if the engine can't go on.
        ValueError: if it can't tell what a second look reads.
    """
    thinking = ReasoningOptions.of(module.model.config, None, *(options.get(name) for name in REASONING_OPTIONS))
    if thinking.looks:
        likelihood_engine(engine)
    engine.start(module, writes=thinking.reasoning != "never")

    def embedded(places: Sequence[int]) -> dict[str, Tensor]:
        values = [inputs[place] for place in places]
        with torch.inference_mode():
            prompts = engine_prompts(module.processor, module.model.config, values, prompt, media)
            try:
                read = embed_prompts(engine, module.model, prompts, thinking)
            except InputError as error:
                raise InputError(error.index, error.fault, values[error.index]) from error
            slots = 1 if thinking.reasoning == "never" else thinking.max_reasoning_rounds + 1
            return features_of(read.output(slots, False))

    left, running = iter(chunks), deque[tuple[Sequence[int], Future[dict[str, Tensor]]]]()
    with ThreadPoolExecutor(CHUNKS_AT_ONCE, "mmemb-r1-engine") as threads:
        try:
            while True:
                for places in islice(left, CHUNKS_AT_ONCE - len(running)):
                    running.append((places, threads.submit(embedded, places)))
                if not running:
                    return
                places, future = running.popleft()
                yield list(places), future.result()
        finally:
            for _, future in running:
                future.cancel()


def embeddings_after(
    engine: Engine,
    module: MMEmbR1Module,
    inputs: Sequence[Any],
    follow: Sequence[Callable[[int], Sequence[int]]],
    prompt: str | None,
    media: MediaOptions,
) -> Tensor:
    """
    Embed inputs after given ids, such as another model's rationale between the tokens of thought.

    Args:
        engine, module, prompt, media: as for `engine_rows`.
        inputs: as for `encode`.
        follow: of each input, what gives the ids after its marker, from the number of ids up to there; of those, a
            picture is one.

    Returns:
        `(N, D)`.

    Raises:
        InputError, EngineError: as `engine_rows`.
    """
    engine.start(module, writes=False)
    prompts = engine_prompts(module.processor, module.model.config, inputs, prompt, media)
    whole = [one.then(ids_after(len(one.token_ids))) for one, ids_after in zip(prompts, follow, strict=True)]
    try:
        return module.model.embeddings_of(_read(engine, module.model, whole)[0])
    except InputError as error:
        raise InputError(error.index, error.fault, inputs[error.index]) from error


def embed_prompts(engine: Engine, model: Any, prompts: Sequence[EnginePrompt], options: ReasoningOptions) -> ReadBatch:
    """
    Embed prompts as [`MMEmbR1Model.embed`] does: [`begin`], and [`think`] as long as some have not finished.

    Args:
        engine, model, prompts: as for [`begin`].
        options: how to think.

    Raises:
        InputError, EngineError: as [`begin`].
    """
    read = begin(engine, model, prompts, options)
    while rows := [row for row, state in read.states.items() if not state.done]:
        try:
            after = think(engine, model, [prompts[row] for row in rows], [read.states[row] for row in rows])
        except InputError as error:
            raise error.at(rows[error.index]) from error
        read.states |= zip(rows, after, strict=True)
    return read


def begin(
    engine: Engine,
    model: Any,
    prompts: Sequence[EnginePrompt],
    options: ReasoningOptions | Sequence[ReasoningOptions],
) -> ReadBatch:
    """
    Read prompts: their direct embeddings, the gate's answers, and the states of those that are about to think.

    Args:
        engine: that runs the backbone.
        model: the [`MMEmbR1Model`], whose head and gate are used.
        prompts: to embed, each ending in the marker.
        options: how to think, for all or one for each.

    Raises:
        InputError: naming the index of a prompt that can't be read.
        EngineError: if the engine can't go on.
    """
    pooled, gate_logits = _read(engine, model, prompts)
    gate_prob, own = gate_logits.sigmoid(), options_of_rows(options, len(prompts))
    states = thinking_states(model.config, gate_prob, own)
    looks = any(one.looks for one in own)
    if looks:
        begin_looks(states, own, model.embeddings_of(pooled, whole=True))
    for state in states.values():
        state.begin(model.config.opening_ids)
    return ReadBatch(model.embeddings_of(pooled), gate_prob, states, model.config, looks)


def think(
    engine: Engine, model: Any, prompts: Sequence[EnginePrompt], states: Sequence[RationaleState]
) -> list[RationaleState]:
    """
    Write a rationale after each prompt, and read the vectors there.

    Args:
        engine, model: as for [`begin`].
        prompts: that have not finished thinking.
        states: where each of them is. They stay as they are, so that it can be asked again after an error.

    Returns:
        Where each is then: done, or about to think another round.

    Raises:
        InputError, EngineError: as [`begin`].
    """
    config, states = model.config, [state.copy() for state in states]
    for state in states:
        while state.take(config) == "ahead":
            pass
    begun = [prompt.then(state.token_ids) for prompt, state in zip(prompts, states, strict=True)]
    # one token more than fits tells whether the rationale would have ended there
    limits = [state.max_tokens + 1 for state in states]
    if any(state.look is not None for state in states):
        for state, (ids, logps) in zip(
            states, likelihood_engine(engine).likely_rationales(begun, limits), strict=True
        ):
            _feed(state, config, ids, logps)
    else:
        for state, ids in zip(states, engine.rationales(begun, limits), strict=True):
            _feed(state, config, ids)
    ended = [prompt.then(state.token_ids) for prompt, state in zip(prompts, states, strict=True)]
    pooled, gate_logits = _read(engine, model, ended)
    embeddings = model.embeddings_of(pooled)
    for state, whole in zip(states, model.embeddings_of(pooled, whole=True), strict=True):
        if state.look is not None:
            state.look.reasoned = whole
    for state, embedding, again in zip(states, embeddings, think_again(gate_logits, states).tolist(), strict=True):
        state.embed(embedding, again, config.opening_ids)
    return states


def _feed(state: RationaleState, config: Any, ids: Sequence[int], logps: Sequence[float] | None = None) -> None:
    """
    Feed a row the tokens of its rationale, with their log-probabilities where a second look wants them, and what
    closes it, up to where the next vector is read.
    """
    end = config.end_think_token_id
    if end not in ids and len(ids) <= state.max_tokens:  # the engine stopped at a limit of its own
        state.num_truncated += 1
    told: Sequence[float | None] = [None] * len(ids) if logps is None else logps
    tokens = chain(zip(ids, told, strict=True), [(end, None)])
    follows = "choose"
    while follows != "embed":
        if follows == "choose":
            token, logp = next(tokens)
            state.follow(token, end, logp)
        follows = state.take(config)


def _read(engine: Engine, model: Any, prompts: Sequence[EnginePrompt]) -> tuple[Tensor, Tensor]:
    """Read what embeddings are made of, `(N, H)`, and the gate's logits `(N,)`, at the end of prompts."""
    device = next(model.gate.parameters()).device
    states = engine.states(prompts).to(device)
    pooled = states
    if model.config.embed_position == "before":
        pooled = engine.states([_without_last(prompt) for prompt in prompts]).to(device)
    words = _mean_words(model, prompts, device) if model.config.gate_reads_words else None
    return pooled, model.ask_gate(states, words)


def _mean_words(model: Any, prompts: Sequence[EnginePrompt], device: torch.device) -> Tensor:
    """Compute the mean word embeddings `(N, H)` of rendered prompts, without the marker."""
    rows = [torch.tensor(prompt.token_ids[: prompt.num_rendered - 1], device=device) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return mean_words(model.vlm, ids, mask)


def _without_last(prompt: EnginePrompt) -> EnginePrompt:
    return EnginePrompt(
        prompt.token_ids[:-1], min(prompt.num_rendered, len(prompt.token_ids) - 1), prompt.images, prompt.messages
    )

"""Embed by an engine: ask it for states and rationales, and let the model's own head and gate decide on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from mmemb_r1.engines.prompts import engine_prompts
from mmemb_r1.engines.protocol import Engine, EnginePrompt
from mmemb_r1.modeling.decoding_mmemb_r1 import RationaleState
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.options_mmemb_r1 import REASONING_OPTIONS, context_length
from mmemb_r1.modeling.scheduling_mmemb_r1 import ReadBatch, ReasoningOptions
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module, features_of

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
    """
    thinking = ReasoningOptions.of(module.model.config, None, *(options[name] for name in REASONING_OPTIONS))
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
        return _read(engine, module.model, whole)[0]
    except InputError as error:
        raise InputError(error.index, error.fault, inputs[error.index]) from error


def embed_prompts(engine: Engine, model: Any, prompts: Sequence[EnginePrompt], options: ReasoningOptions) -> ReadBatch:
    """
    Embed prompts, each ending in the marker, as [`MMEmbR1Model.embed`] does.

    Args:
        engine: that runs the backbone.
        model: the [`MMEmbR1Model`], whose head and gate are used.
        prompts: to embed.
        options: how to think.
    """
    config = model.config
    direct, gate_logits = _read(engine, model, prompts)
    gate_prob = gate_logits.sigmoid()
    budgets, limit = options.budgets(len(prompts)), context_length(config)
    states = {
        row: RationaleState(budgets[row], options.max_reasoning_rounds, limit) for row in options.thinks(gate_prob)
    }
    for state in states.values():
        state.begin(config.opening_ids)
    while rows := [row for row, state in states.items() if state.feed is not None]:
        _think(engine, model, prompts, {row: states[row] for row in rows}, options)
    return ReadBatch(direct, gate_prob, states, config)


def _think(
    engine: Engine,
    model: Any,
    prompts: Sequence[EnginePrompt],
    states: dict[int, RationaleState],
    options: ReasoningOptions,
) -> None:
    """Write a rationale for each row, and read the vectors after them."""
    config, rows = model.config, list(states)
    for state in states.values():
        while state.take(config) == "ahead":
            pass
    # one token more than fits tells whether the rationale would have ended there
    written = _of_rows(
        rows,
        engine.rationales,
        [prompts[row].then(state.token_ids) for row, state in states.items()],
        [state.max_tokens + 1 for state in states.values()],
    )
    for state, ids in zip(states.values(), written, strict=True):
        _feed(state, config, ids)
    follow = [prompts[row].then(state.token_ids) for row, state in states.items()]
    embeddings, gate_logits = _of_rows(rows, lambda some: _read(engine, model, some), follow)
    again = options.again(gate_logits).tolist()
    for state, embedding, more in zip(states.values(), embeddings, again, strict=True):
        state.embed(embedding, more, config.opening_ids)


def _feed(state: RationaleState, config: Any, ids: Sequence[int]) -> None:
    """Feed a row the tokens of its rationale and what closes it, up to where the next vector is read."""
    end = config.end_think_token_id
    if end not in ids and len(ids) <= state.max_tokens:  # the engine stopped at a limit of its own
        state.num_truncated += 1
    tokens = chain(ids, [end])
    follows = "choose"
    while follows != "embed":
        if follows == "choose":
            state.follow(next(tokens), end)
        follows = state.take(config)


def _read(engine: Engine, model: Any, prompts: Sequence[EnginePrompt]) -> tuple[Tensor, Tensor]:
    """Read embeddings `(N, D)` and the gate's logits `(N,)` at the end of prompts."""
    device = next(model.gate.parameters()).device
    states = engine.states(prompts).to(device)
    pooled = states
    if model.config.embed_position == "before":
        pooled = engine.states([_without_last(prompt) for prompt in prompts]).to(device)
    return model.embeddings_of(pooled), model.gate(states)


def _without_last(prompt: EnginePrompt) -> EnginePrompt:
    return EnginePrompt(
        prompt.token_ids[:-1], min(prompt.num_rendered, len(prompt.token_ids) - 1), prompt.images, prompt.messages
    )


def _of_rows(rows: Sequence[int], ask: Any, *arguments: Any) -> Any:
    """Ask for some rows; an error about one of them names its place among all."""
    try:
        return ask(*arguments)
    except InputError as error:
        raise error.at(rows[error.index]) from error

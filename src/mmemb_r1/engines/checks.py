"""Refuse what an engine can't run as the local one does, and an engine that runs another model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from mmemb_r1.engines.prompts import engine_prompts
from mmemb_r1.engines.protocol import Engine, EngineError, EnginePrompt
from mmemb_r1.engines.served import PROBED_TOKENS
from mmemb_r1.fingerprint import weights_digest
from mmemb_r1.modeling.gate_inputs_mmemb_r1 import media_token_ids
from mmemb_r1.modeling.inputs_mmemb_r1 import InputError
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions
from mmemb_r1.modeling.sentence_mmemb_r1 import MMEmbR1Module

MAX_SUPPRESSED = 1024  # ids that vLLM takes in the logit_bias of a request
LEAST_COSINE = 0.98  # of the probe's state: 16-bit arithmetic gives .99 and more
_START_IT = (
    "Start it with the folder that `mmemb-r1 export vllm` wrote for this checkpoint, by the lines in its README"
)
MOST_LENGTHS = 1.1  # of the probe's state: how often one may be the other's length


def check_runs(module: MMEmbR1Module, facts: dict[str, Any] | None) -> None:
    """
    Refuse a model whose vectors an engine can't give.

    Args:
        module: the model.
        facts: what the exported folder says that the engine runs; `None` where it has none.

    Raises:
        ValueError: for gates that read words which an engine writes itself, poolings of more than one state, positions
            that count pictures like text, more suppressed ids than a request may name, a limit of pictures other than
            the exported one, or another checkpoint.
    """
    config, instead = module.model.config, "leave the engine out for it"
    suppressed = config.suppressed_token_ids or []
    if config.pooling != "last":
        raise ValueError(
            f"pooling={config.pooling!r} needs the states of all tokens, and an engine gives that of the last one; "
            f"{instead}."
        )
    if getattr(config.vlm_config, "sequential_positions", False):
        raise ValueError(
            "This embedder numbers the tokens of pictures like text (positions: sequence in its recipe), which "
            f"engines don't; {instead}."
        )
    if len(suppressed) > MAX_SUPPRESSED:
        raise ValueError(
            f"{len(suppressed)} ids can't occur in this model's rationales, and an engine takes "
            f"{MAX_SUPPRESSED} at most; {instead}."
        )
    if config.gate_reads_words and not _reads_the_same_words(module):
        raise ValueError(
            "The gate reads the words of the prompt (gate_inputs), and this backbone's processor writes tokens around "
            f"pictures that an engine writes itself. Fit a gate that reads the state alone, or {instead}."
        )
    if facts is None:
        return
    if weights_digest(module) != facts["weights"]:
        raise ValueError(
            f"The engine runs another checkpoint (exported with the fingerprint {facts['fingerprint'][:12]}); export "
            "this one with `mmemb-r1 export vllm`, or load the model from the folder that the engine runs."
        )
    if config.max_image_tokens != facts["max_image_tokens"]:
        raise ValueError(
            f"max_image_tokens={config.max_image_tokens}, and the checkpoint was exported with "
            f"{facts['max_image_tokens']}: the engine makes the pictures smaller, so that it can't be changed "
            "afterwards. Export the checkpoint again with the other limit."
        )


def _reads_the_same_words(module: MMEmbR1Module) -> bool:
    """Tell whether a picture is placeholders and nothing else, in rendered prompts and those for engines."""
    config, given = module.model.config, [{"image": Image.new("RGB", (64, 64))}]
    (prompt,) = engine_prompts(module.processor, config, given, None, MediaOptions.of(config))
    media = media_token_ids(config.vlm_config)
    rendered, told = module.preprocess(given)["input_ids"][0].tolist(), prompt.token_ids
    return [one for one in rendered if one not in media] == [one for one in told if one not in media]


@contextmanager
def _refusing(where: str) -> Iterator[None]:
    """A built-in text is no bad input: whoever refuses it is not what it should be."""
    try:
        yield
    except InputError as error:
        raise EngineError(f"{where} refuses a built-in text: {error.reason} {_START_IT}.") from error


def check_probe(engine: Engine, module: MMEmbR1Module, probe: dict[str, Any], where: str) -> None:
    """
    Ask for what is known of a built-in text, and compare.

    Args:
        engine: ready to answer.
        module: the model.
        probe: from `probe_of`.
        where: names the engine in errors.

    Raises:
        EngineError: if it gives another state, or begins another rationale.
    """
    prompt = EnginePrompt(tuple(probe["token_ids"]), len(probe["token_ids"]))
    with _refusing(where):
        state = engine.states([prompt])[0].double()
    known = torch.tensor(probe["state"], dtype=torch.double)
    again = f"{_START_IT}."
    if state.shape != known.shape:
        raise EngineError(f"{where} gives states of {len(state)} dimensions, and this model has {len(known)}. {again}")
    lengths = float(state.norm() / known.norm())
    if not 1 / MOST_LENGTHS <= lengths <= MOST_LENGTHS:
        raise EngineError(
            f"{where} gives a state of {lengths:.3g} times the length that this model's has: it runs another model, "
            f"or normalises states. {again}"
        )
    cosine = float(torch.cosine_similarity(state, known, dim=0))
    if cosine < LEAST_COSINE:
        raise EngineError(
            f"{where} runs another model: its state for a built-in text has a cosine of {cosine:.3f} with this "
            f"model's; allowed: {LEAST_COSINE}. {again}"
        )


def check_probed_rationale(engine: Engine, module: MMEmbR1Module, probe: dict[str, Any], where: str) -> None:
    """Compare likewise how a rationale begins; other tokens may differ by the rounding of 16-bit arithmetic."""
    begun = EnginePrompt(tuple(probe["token_ids"]), len(probe["token_ids"])).then(module.model.config.opening_ids)
    with _refusing(where):
        (written,) = engine.rationales([begun], [PROBED_TOKENS])
    end = module.model.config.end_think_token_id
    known = [*probe["after"], end]
    if written[:1] != known[:1]:
        raise EngineError(
            f"{where} begins the rationale of a built-in text with the token {written[:1]}, and this model with "
            f"{known[:1]}: it runs another model. {_START_IT}; verify=False goes on without this comparison."
        )

"""Encode on one device: plan batches of like length, look up the cache, run the adaptive model on the rest."""

from __future__ import annotations

import copy
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mmemb_r1.content import DIGEST_SIZE, content_key
from mmemb_r1.embedding_cache import EmbeddingCache
from mmemb_r1.engines.protocol import engine_facts
from mmemb_r1.engines.rows import engine_rows
from mmemb_r1.fingerprint import checkpoint_fingerprint
from mmemb_r1.modeling.backbones_mmemb_r1 import image_token_counter
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.modeling.inputs_mmemb_r1 import parse_input
from mmemb_r1.modeling.media_mmemb_r1 import MediaOptions, find_file, stored_source
from mmemb_r1.modeling.options_mmemb_r1 import require_one_space, resolve_reasoning

CHARACTERS_PER_TOKEN = 4
UNKNOWN_SIZE = (512, 512)  # of pictures and frames that are not looked into: videos, web addresses


class InputSize(NamedTuple):
    """Estimate how large an input is."""

    media: bool  # whether it has pictures or videos
    tokens: float


def plan_batches(sizes: Sequence[InputSize], batch_size: int, max_batch_tokens: int | None = None) -> list[list[int]]:
    """
    Sort rows, those with media and then the longest first, and cut them into batches.

    Rows with media stay together: each batch that has any runs the part of the model that sees.

    Args:
        sizes: of every row.
        batch_size: rows per batch at most.
        max_batch_tokens: tokens per batch at most, padding included; a longer row is a batch of its own. Default: no
            limit.

    Returns:
        The rows of each batch. Every row is in one of them.

    >>> plan_batches([InputSize(False, 1), InputSize(False, 5), InputSize(True, 3)], batch_size=2)
    [[2, 1], [0]]
    >>> plan_batches([InputSize(False, tokens) for tokens in (1, 5, 3, 2, 2)], batch_size=3, max_batch_tokens=6)
    [[1], [2, 3], [4, 0]]
    """
    batches: list[list[int]] = []
    longest = 0.0
    for row in sorted(range(len(sizes)), key=lambda row: sizes[row], reverse=True):
        tokens = max(longest, sizes[row].tokens)
        fits = bool(batches) and len(batches[-1]) < batch_size
        if fits and (max_batch_tokens is None or (len(batches[-1]) + 1) * tokens <= max_batch_tokens):
            batches[-1].append(row)
            longest = tokens
        else:
            batches.append([row])
            longest = sizes[row].tokens
    return batches


def input_sizes(
    inputs: Sequence[Any],
    processor: Any,
    config: Any,
    media: MediaOptions | None = None,
    count_text: Callable[[str], float] | None = None,
) -> list[InputSize]:
    """
    Estimate how large each input is: text by its characters, as far as it is read, pictures by what the processor
    makes of their size. Nothing is decoded or downloaded: videos and what is on the web get a common size.

    Args:
        count_text: counts the tokens of a text. Default: a quarter of its characters.
    """
    media, count = media or MediaOptions.of(config), image_token_counter(processor, config.max_image_tokens)
    count_text = count_text or _by_characters
    return [_input_size(value, media, config.max_text_tokens, count, count_text) for value in inputs]


def _by_characters(text: str) -> float:
    return len(text) / CHARACTERS_PER_TOKEN  # no whole number: neighbours are of like length, too


def _input_size(
    value: Any,
    media: MediaOptions,
    max_text_tokens: int | None,
    count: Callable[[int, int], int],
    count_text: Callable[[str], float],
) -> InputSize:
    try:
        parts = [part for message in parse_input(value, media) for part in message["content"]]
    except (ValueError, OSError):
        return InputSize(False, 1)  # whoever embeds it says what is wrong with it
    texts = [part["text"] for part in parts if part["type"] == "text"]
    text = sum(1 + count_text(text) for text in texts)
    pictures = [size for part in parts if part["type"] != "text" for size in _picture_sizes(part, media)]
    text = text if max_text_tokens is None else min(text, max_text_tokens)
    return InputSize(bool(pictures), text + sum(count(*size) for size in pictures))


def _picture_sizes(part: Mapping[str, Any], media: MediaOptions) -> list[tuple[int, int]]:
    """Get width and height of a picture, or of each of a video's frames."""
    source = part[part["type"]]
    if part["type"] == "image":
        return [_size(source)]
    if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
        return [_size(frame) for frame in source]
    return [UNKNOWN_SIZE] * media.num_video_frames


def _size(source: Any) -> tuple[int, int]:
    source = stored_source(source)
    if isinstance(source, Image.Image):
        return source.size
    if getattr(source, "ndim", 0) > 1:
        return int(source.shape[1]), int(source.shape[0])
    is_bytes = isinstance(source, bytes | bytearray)
    path = find_file(source) if isinstance(source, str | os.PathLike) else None
    if not is_bytes and path is None:
        return UNKNOWN_SIZE
    try:
        file: Any = io.BytesIO(source) if is_bytes else path
        with Image.open(file) as image:
            return image.size
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return UNKNOWN_SIZE  # whoever opens it says what is wrong with it


_ROWS = 1  # goes up when the same checkpoint gives other vectors, or rows hold something else
_FILLER = -1  # of rationale_ids


def row_options(config: MMEmbR1Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """
    Resolve those of `encode`'s options that change a row, see `resolve_reasoning`.

    Where nothing thinks, the options of thinking change nothing, and are left out.

    Raises:
        ValueError: if an option is out of its range.

    >>> row_options(MMEmbR1Config(), {"task": "document", "gate_threshold": 0.9, "batch_size": 8})
    {'reasoning': 'never'}
    """
    task = options.get("task") or ("query" if options.get("prompt_name") == "query" else None)
    resolved = resolve_reasoning(config, options, task)
    if not isinstance(resolved["max_reasoning_tokens"], int):
        raise ValueError(
            f"max_reasoning_tokens={resolved['max_reasoning_tokens']!r:.80} has to be one whole number for all inputs."
        )
    return {"reasoning": "never"} if resolved["reasoning"] == "never" else resolved


def thinking_options(model: SentenceTransformer, options: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve what `row_options` does; where inputs think and a thinker is set, also say with whom, as `thinker`."""
    config = model[0].model.config
    resolved = row_options(config, options)
    thinking = getattr(model, "thinking", None)
    if thinking is None or resolved["reasoning"] == "never":
        return resolved
    return thinking.options(config, options, resolved)


def row_keys(
    values: Sequence[Any], prompt: str | None, options: Mapping[str, Any], fingerprint: str, media: MediaOptions
) -> list[bytes]:
    """
    Make the cache's keys of inputs; rows are kept before truncation and normalisation.

    Args:
        values: inputs of `encode`.
        prompt: the system turn of those that bring none.
        options: from `thinking_options`.
        fingerprint: the checkpoint's, from `checkpoint_fingerprint`.
        media: limits, and whether inputs may be web addresses.

    Returns:
        One key per input. Two are equal where inputs, prompt, options and checkpoint are.
    """
    facts = json.dumps([_ROWS, fingerprint, prompt, options], sort_keys=True).encode()
    common = blake2b(facts, digest_size=64).digest()
    return [blake2b(content_key(value, media), digest_size=DIGEST_SIZE, key=common).digest() for value in values]


def unbatched(features: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Split a batch into its rows, each without padding; every tensor has the batch first."""
    rows = []
    for row in range(len(features["sentence_embedding"])):
        tensors = {name: value[row] for name, value in features.items()}
        ids = tensors["rationale_ids"]  # (T,)
        rows.append({**tensors, "rationale_ids": ids[ids != _FILLER]})
    return rows


def batched(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join rows to a batch: the opposite of `unbatched`."""
    features = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: pad_sequence(values, batch_first=True, padding_value=_FILLER)  # (B, T)
        if name == "rationale_ids"
        else torch.stack(values)  # (B, ...)
        for name, values in features.items()
    }


def spread(outputs: Any, index: np.ndarray) -> Any:
    """
    Repeat what came out for distinct inputs for all of them, by the index that `distinct` gave.

    >>> spread(np.array([[1.0], [2.0]]), np.array([1, 0, 1])).tolist()
    [[2.0], [1.0], [2.0]]
    """
    if isinstance(outputs, np.ndarray):
        return outputs[index]
    if isinstance(outputs, Tensor):
        return outputs[torch.from_numpy(index).to(outputs.device)]
    return [copy.deepcopy(outputs[row]) for row in index.tolist()]  # nobody changes a neighbour's


MAX_BATCH_TOKENS = 16_384  # of one prefill, padding included
DECODED_PER_READ = 4  # rows that think at the same time, in batches that are read
READ_AT_ONCE = 1024  # rows of the cache
ENGINE_BATCHES = 8  # of inputs, whose prompts an engine gets at once; it makes batches itself


def media_options(model: SentenceTransformer, options: Mapping[str, Any]) -> MediaOptions:
    """Read from the model's config and the options of `encode` how pictures and videos are opened."""
    return MediaOptions.of(model[0].model.config, options.get("allow_remote_media", False))


def options_in_one_space(
    model: SentenceTransformer, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Fill in what options of `encode` mean for vectors that are compared or kept.

    Args:
        model: whose first module is the adaptive model.
        options: checked. A `task` stands for its prompt too, where none is named.

    Returns:
        The options, with the prompt of their task; and those of thinking, see `thinking_options`.

    Raises:
        ValueError: if an option is out of its range, or `reasoning="auto"` would mix vectors of two spaces.
    """
    config, options = model[0].model.config, dict(options)
    task = options.get("task")
    if task is not None and options.get("prompt") is None and options.get("prompt_name") is None:
        options["prompt"] = model.prompts.get(task)
    thinking = thinking_options(model, options)
    require_one_space(config, thinking["reasoning"])
    return options, thinking


def encoding_settings(model: SentenceTransformer, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Say all that vectors which are kept depend on besides their inputs, so that only the same ones go into one place.

    Args:
        model, options: as for `options_in_one_space`, whose errors these are.

    Returns:
        The options, with the prompt of their task; and what is to be recorded, plain values: `spaces` where there are
        two, `checkpoint` (the fingerprint), `engine` where there is one, `reasoning`, `reasoning_options`, and
        `options` (`prompt`, `truncate_dim`, `normalize_embeddings`).
    """
    options, thinking = options_in_one_space(model, options)
    spaces, truncate_dim = model[0].model.config.spaces, options.get("truncate_dim")
    return options, {
        **({"spaces": spaces} if spaces > 1 else {}),
        "checkpoint": checkpoint_fingerprint(*model),
        **engine_facts(model),
        "reasoning": thinking.pop("reasoning"),
        "reasoning_options": thinking,
        "options": {
            "prompt": model._resolve_prompt(options.get("prompt"), options.get("prompt_name")),
            "truncate_dim": model.truncate_dim if truncate_dim is None else truncate_dim,
            "normalize_embeddings": options.get("normalize_embeddings"),
        },
    }


def adaptive_rows(
    model: SentenceTransformer,
    inputs: Sequence[Any],
    device: torch.device,
    prompt: str | None,
    batch_size: int,
    options: dict[str, Any],
    cache: EmbeddingCache | None = None,
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """
    Embed inputs, in any order, before what other modules, truncation and normalisation do.

    Args:
        model: whose first module is the adaptive model.
        inputs: as for `encode`.
        device: where the model is.
        prompt: the system turn of inputs that bring none.
        batch_size: inputs that are read at once.
        options: of `encode`.
        cache: where rows are looked up, and what is computed is stored.

    Yields:
        Places of some inputs, and what the adaptive model makes of them, or made of them before.
    """
    resolved = thinking_options(model, options)
    options = options | resolved
    embedded = model.thinking.rows if "thinker" in resolved else embedded_rows
    if cache is None:
        yield from embedded(model, inputs, range(len(inputs)), device, prompt, batch_size, options)
        return
    keys = row_keys(inputs, prompt, resolved, _origin(model), media_options(model, options))
    missing = []
    for start in range(0, len(keys), READ_AT_ONCE):
        found = cache.get(keys[start : start + READ_AT_ONCE])
        there = [(place, row) for place, row in enumerate(found, start) if row is not None]
        missing += [place for place, row in enumerate(found, start) if row is None]
        if there:
            yield [place for place, _ in there], batch_to_device(batched([row for _, row in there]), device)
    for places, features in embedded(model, inputs, missing, device, prompt, batch_size, options):
        cache.put({keys[place]: row for place, row in zip(places, unbatched(features), strict=True)})
        yield places, features


def _origin(model: SentenceTransformer) -> str:
    """Say what makes vectors that are kept."""
    return "@".join([checkpoint_fingerprint(model[0]), *engine_facts(model).values()])


def embedded_rows(
    model: SentenceTransformer,
    inputs: Sequence[Any],
    wanted: Sequence[int],
    device: torch.device,
    prompt: str | None,
    batch_size: int,
    options: dict[str, Any],
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Embed the inputs at the places `wanted`: those of several batches think together."""
    if (engine := getattr(model, "engine", None)) is not None:
        size = ENGINE_BATCHES * batch_size
        chunks = [wanted[start : start + size] for start in range(0, len(wanted), size)]
        thinking = model[0].reasoning_options(**options)
        yield from engine_rows(engine, model[0], inputs, chunks, prompt, media_options(model, options), thinking)
        return
    plan, read, options = read_batches(model, inputs, wanted, device, prompt, batch_size, options)
    yield from zip(plan, model[0].embed_batches(read, **options), strict=True)


def read_batches(
    model: SentenceTransformer,
    inputs: Sequence[Any],
    wanted: Sequence[int],
    device: torch.device,
    prompt: str | None,
    batch_size: int,
    options: dict[str, Any],
) -> tuple[list[list[int]], Iterator[dict[str, Tensor]], dict[str, Any]]:
    """Plan batches of the inputs at the places `wanted`: their places, their tensors one by one, and the options."""
    options = {"decode_batch_size": DECODED_PER_READ * batch_size, "max_batch_tokens": MAX_BATCH_TOKENS, **options}
    max_batch_tokens = options.pop("max_batch_tokens")
    media = media_options(model, options)
    sizes = input_sizes([inputs[place] for place in wanted], model.processor, model[0].model.config, media)
    plan = [[wanted[row] for row in rows] for rows in plan_batches(sizes, batch_size, max_batch_tokens)]
    read = (
        batch_to_device(model.preprocess([inputs[place] for place in places], prompt=prompt, **options), device)
        for places in plan
    )
    return plan, read, options


def check_device(device: Any) -> None:
    """
    Refuse a device that is not there, or each of a list of them.

    Raises:
        ValueError: that says which there are.
    """
    for one in device if isinstance(device, list | tuple) else [device]:
        if one is None:
            continue
        try:
            found = torch.device(one)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"device={one!r:.80} is not known; allowed are names such as cpu, cuda:1 or mps."
            ) from error
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                f"device={one!r:.80} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} CUDA "
                "devices. Leave the device out to use the best one there is, or say cpu."
            )

"""Encode with the models under evaluation: inputs in; vectors, gate decisions and timings out."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.settings import LOOKING, OPTIONS, SAME, Settings, has_second_look, reasoning_of

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

    from mmemb_r1.embedding_cache import EmbeddingCache


QUERY, DOCUMENT = "query", "document"  # sides, and the names under which a model saves their prompts


@dataclass(frozen=True)
class Embedded:
    """
    Holds what a model made of N inputs.

    Attributes:
        embeddings: `(N, D)` float32.
        reasoned: `(N,)` whether each has a rationale.
        num_reasoning_tokens, num_reasoning_rounds: `(N,)` int64, of its rationale.
        gate_prob: `(N,)` float64; `None` of a model without a gate.
        rationales: of each input, `""` if none; `None` of a model that writes none.
        seconds: what embedding took, without what a cache took.
        timed: how many inputs were computed in these; what came from a cache or equals another input was not.
    """

    embeddings: npt.NDArray[np.float32]
    reasoned: npt.NDArray[np.bool_]
    num_reasoning_tokens: npt.NDArray[np.int64]
    num_reasoning_rounds: npt.NDArray[np.int64]
    gate_prob: npt.NDArray[np.float64] | None
    rationales: list[str] | None
    seconds: float
    timed: int

    @property
    def seconds_per_input(self) -> float | None:
        """Divide the time by the inputs; `None` if nothing was timed."""
        return self.seconds / self.timed if self.timed else None


class Encoder(Protocol):
    """Embeds inputs for an evaluation, whatever the model is."""

    @property
    def spaces(self) -> int:
        """Tell whether direct and reasoned embeddings can be compared, 1, or are two spaces, 2."""

    def facts(self) -> dict[str, Any]:
        """Tell what makes it another model: `checkpoint`, a digest or `None`, and its settings beside that."""

    def reasoning_options(self) -> dict[str, Any]:
        """Tell the options of `encode` that its queries are embedded with, as far as they are known."""

    def embed(self, inputs: list[Any], *, side: str, reasoning: str, prompt: str | None) -> Embedded:
        """Embed inputs at once; arguments as in [`embed_all`]."""


def saved_prompts(model: Any) -> dict[str, str]:
    """Look up the prompts that a model saved: side -> prompt."""
    saved = getattr(model, "prompts", None) or {}
    return {side: saved[side] for side in (QUERY, DOCUMENT) if saved.get(side)}


def _settings_beside(model: SentenceTransformer) -> dict[str, Any]:
    """Collect what a loaded model may be told beside its checkpoint."""
    return {"truncate_dim": model.truncate_dim, "prompts": saved_prompts(model)}


def check_count(rows: Sequence[Any], inputs: Sequence[Any]) -> None:
    """Refuse more or fewer rows than inputs."""
    if len(rows) != len(inputs):
        raise ValueError(f"the model gave {len(rows)} embeddings for {len(inputs)} inputs")


BATCHES_AT_ONCE = 16  # are handed to the model: their thinkers think together, and their media are in memory
Made = TypeVar("Made")


def in_parts(inputs: Sequence[Any], batch_size: int, embed: Callable[[list[Any]], Made]) -> Iterator[tuple[int, Made]]:
    """
    Call a function with parts of 16 batches each, and yield the number of a part's first input and what was made of
    it. An [`InputError`] of the function gets the number of the input among all of them.
    """
    from mmemb_r1.modeling.inputs_mmemb_r1 import InputError

    size = BATCHES_AT_ONCE * batch_size
    for start in range(0, len(inputs), size):
        try:
            made = embed([inputs[row] for row in range(start, min(start + size, len(inputs)))])
        except InputError as error:
            raise error.at(start + error.index) from error
        yield start, made


def embed_all(
    encoder: Encoder,
    inputs: Sequence[Any],
    *,
    side: str,
    reasoning: str,
    batch_size: int,
    prompt: str | None = None,
    ids: Sequence[str] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Embedded:
    """
    Embed N inputs, at least one, part by part: no more of them are read than one part has.

    Args:
        side: `"query"` or `"document"`.
        batch_size: inputs that are read at once; a part has 16 times as many.
        prompt: instruction of inputs that have none of their own. `None`: what the model saved for the side.
        ids: of the inputs, for errors. Default: their numbers.
        advance: told how many more are embedded, part by part.

    Raises:
        InputError: a `ValueError` that names the number of an input that can't be embedded.
        ValueError: if a vector is not finite, or the model gives more or fewer than inputs.
    """
    parts = []
    for start, part in in_parts(
        inputs, batch_size, partial(encoder.embed, side=side, reasoning=reasoning, prompt=prompt)
    ):
        finite = np.isfinite(part.embeddings).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise ValueError(
                f"the vector of the {side} {row if ids is None else repr(ids[row])} holds NaN or infinity: a model "
                "that gives such vectors can't be scored; look for an overflow of its dtype"
            )
        parts.append(part)
        advance(len(part.embeddings))
    return _joined(parts)


def _joined(parts: list[Embedded]) -> Embedded:
    def column(name: str) -> Any:
        return np.concatenate([getattr(part, name) for part in parts])

    first = parts[0]
    arrays = ("embeddings", "reasoned", "num_reasoning_tokens", "num_reasoning_rounds")
    return Embedded(
        **{name: column(name) for name in arrays},
        gate_prob=None if first.gate_prob is None else column("gate_prob"),
        rationales=None if first.rationales is None else [text for part in parts for text in part.rationales or []],
        seconds=sum(part.seconds for part in parts),
        timed=sum(part.timed for part in parts),
    )


class WatchedCache:
    """Wraps a cache; counts the rows `asked` for, those of them that were `missing`, and the `seconds` it took."""

    def __init__(self, cache: EmbeddingCache | None) -> None:
        self.cache, self.seconds = cache, 0.0
        self.asked = self.missing = 0

    def get(self, keys: Sequence[bytes]) -> list[dict[str, Tensor] | None]:
        rows = self._timed("get", keys)
        self.asked += len(rows)
        self.missing += sum(row is None for row in rows)
        return rows

    def put(self, rows: Mapping[bytes, Mapping[str, Tensor]]) -> None:
        self._timed("put", rows)

    def _timed(self, method: str, argument: Any) -> Any:
        start = time.perf_counter()
        result = getattr(self.cache, method)(argument)
        self.seconds += time.perf_counter() - start
        return result


class Explains(Protocol):
    """Describes what is asked of an adaptive model: [`MMEmbR1.explain`]."""

    def explain(self, inputs: list[Any], *, reasoning: str, batch_size: int, show_progress_bar: bool) -> Any: ...


class AdaptiveEncoder:
    """Embeds with a model that has the `explain` of [`MMEmbR1`]."""

    def __init__(self, model: Any, settings: Settings, cache: EmbeddingCache | None = None) -> None:
        self.model, self.cache = model, cache
        self.batch_size, self.given = settings.batch_size, settings.reasoning_options()
        self.may_look = has_second_look(model)
        if not self.may_look and (asked := [mode for mode in settings.modes if mode in LOOKING]):
            raise ValueError(
                f"the mode {asked[0]!r} is asked for, and this model has no second look; fit one with `mmemb-r1 train "
                "gate --second-look`, or leave the mode out"
            )
        check_cache(model, cache)

    @property
    def spaces(self) -> int:
        return self.model[0].model.config.spaces if hasattr(self.model, "embedding_cache") else 1

    def facts(self) -> dict[str, Any]:
        if not hasattr(self.model, "embedding_cache"):
            return {"checkpoint": None}
        from mmemb_r1.engines.protocol import engine_facts
        from mmemb_r1.fingerprint import checkpoint_fingerprint

        thinker = {} if self.model.thinking is None else {"thinker": self.model.thinking.identity}
        beside = {**_settings_beside(self.model), **thinker, **engine_facts(self.model)}
        return {"checkpoint": checkpoint_fingerprint(*self.model), **beside}

    def reasoning_options(self) -> dict[str, Any]:
        if not hasattr(self.model, "embedding_cache"):
            return self.given
        from mmemb_r1.modeling.options_mmemb_r1 import resolve_reasoning

        config = self.model[0].model.config
        resolved = resolve_reasoning(config, {**self.given, "second_look": False}, "query")
        if self.model.thinking is not None:
            resolved = self.model.thinking.options(config, self.given, resolved)
        return {name: resolved[name] for name in OPTIONS}

    def embed(self, inputs: list[Any], *, side: str, reasoning: str, prompt: str | None) -> Embedded:
        prompt = saved_prompts(self.model).get(side) if prompt is None else prompt
        options = self.given | {"reasoning": reasoning_of(reasoning), "batch_size": self.batch_size}
        options |= {"show_progress_bar": False} | ({"second_look": reasoning in LOOKING} if self.may_look else {})
        options |= {"prompt": prompt} if prompt else {}
        with self._watched_cache() as cache:
            start = time.perf_counter()
            rows = self.model.explain(inputs, **options)
            seconds = time.perf_counter() - start
        check_count(rows, inputs)
        # of equal inputs one is looked for
        computed = cache.missing if cache.asked else self._computed(inputs)
        return Embedded(
            embeddings=np.stack([np.asarray(row["embedding"], dtype=np.float32) for row in rows]),
            reasoned=np.array([bool(row["reasoned"]) for row in rows]),
            num_reasoning_tokens=np.array([int(row["num_reasoning_tokens"]) for row in rows]),
            num_reasoning_rounds=np.array([int(row.get("num_reasoning_rounds", row["reasoned"])) for row in rows]),
            gate_prob=np.array([float(row["gate_prob"]) for row in rows]),
            rationales=[row.get("rationale", "") for row in rows],
            seconds=(seconds - cache.seconds) if computed else 0.0,
            timed=computed,
        )

    def _computed(self, inputs: list[Any]) -> int:
        """Count the inputs that the model embeds: mmemb-r1 models take equal ones for one."""
        if not hasattr(self.model, "embedding_cache"):
            return len(inputs)
        from mmemb_r1.content import distinct
        from mmemb_r1.encoding import media_options

        return len(distinct(inputs, media_options(self.model, {}))[0])

    @contextmanager
    def _watched_cache(self) -> Iterator[WatchedCache]:
        """Put the given cache, or the model's own, watched, in the model's place for it."""
        own = getattr(self.model, "embedding_cache", None)
        watched = WatchedCache(own if self.cache is None else self.cache)
        if watched.cache is None:
            yield watched
            return
        self.model.embedding_cache = watched
        try:
            yield watched
        finally:
            self.model.embedding_cache = own


def check_cache(model: Any, cache: EmbeddingCache | None) -> None:
    """Refuse a cache for a model that can't use one."""
    if cache is not None and not hasattr(model, "embedding_cache"):
        raise ValueError(
            f"a cache keeps vectors of mmemb-r1 models, and this one is a {type(model).__name__}; leave the cache out"
        )


class PlainEncoder:
    """
    Embeds with any sentence-transformers model, which never thinks. The instruction of an input, else the prompt of
    its task, takes the place of the prompt that the model saved for the side.
    """

    spaces = 1

    def __init__(self, model: SentenceTransformer, settings: Settings) -> None:
        self.model, self.batch_size = model, settings.batch_size

    def facts(self) -> dict[str, Any]:
        return {"checkpoint": plain_fingerprint(self.model), **_settings_beside(self.model)}

    def reasoning_options(self) -> dict[str, Any]:
        return {}

    def embed(self, inputs: list[Any], *, side: str, reasoning: str, prompt: str | None) -> Embedded:
        if reasoning != "never":
            raise ValueError(f"{type(self.model).__name__} can't think; allowed: reasoning='never'")
        encode = self.model.encode_query if side == QUERY else self.model.encode_document
        apart = "message" in self.model.modalities  # a prompt is then a message of its own
        of_instruction: dict[str | None, list[int]] = defaultdict(list)
        values = []
        for row, value in enumerate(inputs):
            instruction, rest = _without_instruction(value)
            of_instruction[instruction or prompt].append(row)
            values.append(rest)
        start = time.perf_counter()
        parts = []
        for instruction, rows in of_instruction.items():
            given = {"prompt": instruction if apart else separated(instruction)} if instruction else {}
            chosen = [values[row] for row in rows]
            part = encode(chosen, batch_size=self.batch_size, show_progress_bar=False, **given)
            check_count(part, rows)
            parts.append(part)
        seconds = time.perf_counter() - start
        embeddings = np.empty((len(inputs), parts[0].shape[1]), dtype=np.float32)
        embeddings[[row for rows in of_instruction.values() for row in rows]] = np.concatenate(parts)
        nothing = np.zeros(len(inputs), dtype=np.int64)
        return Embedded(embeddings, nothing.astype(bool), nothing, nothing, None, None, seconds, len(inputs))


def plain_fingerprint(model: SentenceTransformer) -> str:
    """Compute a digest of weights, modules' settings and configurations, and vocabulary: 64 hexadecimal digits."""
    from mmemb_r1.fingerprint import weights_digest

    facts: list[Any] = [weights_digest(model)]
    for module in model.modules():
        of_model: dict[str, Any] = getattr(getattr(module, "config", None), "to_dict", dict)()
        settings = [getattr(module, "get_config_dict", dict)(), of_model]
        facts += [[type(module).__name__, *settings]] if any(settings) else []
    vocabulary: dict[str, int] = getattr(getattr(model, "tokenizer", None), "get_vocab", dict)()
    text = json.dumps([facts, sorted(vocabulary.items())], sort_keys=True, default=str)
    return blake2b(text.encode(), digest_size=32).hexdigest()


def separated(prompt: str) -> str:
    """
    Prepare a prompt for the front of a text, where sentence-transformers puts it without anything between them.

    >>> separated("Answer the question:"), separated("query: ")
    ('Answer the question:\\n', 'query: ')
    """
    return prompt if prompt[-1:].isspace() else f"{prompt}\n"


def _without_instruction(value: Any) -> tuple[str | None, Any]:
    """
    Split an input into its instruction and the rest as other models take it: text as a string, pictures opened.

    >>> _without_instruction({"text": "a dog", "instruction": "Name the breed."})
    ('Name the breed.', 'a dog')
    """
    if not isinstance(value, Mapping) or "role" in value:
        return None, value
    rest = {name: part for name, part in value.items() if name != "instruction" and part is not None}
    if "image" in rest:
        images = rest["image"]
        rest["image"] = [_opened(one) for one in images] if isinstance(images, list | tuple) else _opened(images)
    return value.get("instruction"), rest["text"] if list(rest) == ["text"] else rest


def _opened(image: Any) -> Any:
    if not isinstance(image, bytes | Mapping):
        return image
    from mmemb_r1.modeling.media_mmemb_r1 import DEFAULTS, open_image

    return open_image(image.get("bytes") or image.get("path") if isinstance(image, Mapping) else image, DEFAULTS)


ADAPTIVE_MODULE = "MMEmbR1Module"


def encoder_of(
    model: Explains | SentenceTransformer, settings: Settings, cache: EmbeddingCache | None = None
) -> Encoder:
    """
    Choose the encoder of a model: an [`MMEmbR1`], anything with its `explain`, or any sentence-transformers model.

    Raises:
        ValueError: if a model that can't think is asked to, or one that can't use a cache is given one.
    """
    if hasattr(model, "explain"):
        return AdaptiveEncoder(model, settings, cache)
    plain: SentenceTransformer = model
    if any(type(module).__name__ == ADAPTIVE_MODULE for module in plain):
        raise ValueError(
            f"this mmemb-r1 checkpoint was loaded as a {type(model).__name__}, which does not say when it reasoned; "
            "load it as mmemb_r1.MMEmbR1"
        )
    check_cache(plain, cache)
    if asked := {*settings.modes, *settings.document_modes} - {"never", SAME}:
        raise ValueError(
            f"{type(model).__name__} is no adaptive model, so it can't be asked to think: {min(asked)!r} was asked "
            "for, allowed for it is 'never' alone"
        )
    return PlainEncoder(plain, settings)

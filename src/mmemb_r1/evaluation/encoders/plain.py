"""Models of others, as the evaluation asks them."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mmemb_r1.evaluation.encoders.encoder import QUERY, Embedded, check_count, settings_beside
from mmemb_r1.evaluation.settings import Settings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class PlainEncoder:
    """
    Any sentence-transformers model: it never thinks.

    The instruction of an input, else the prompt of its task, takes the place of the prompt that the model saved for
    the side.
    """

    def __init__(self, model: SentenceTransformer, settings: Settings) -> None:
        self.model, self.batch_size = model, settings.batch_size

    def facts(self) -> dict[str, Any]:
        return {"checkpoint": plain_fingerprint(self.model), **settings_beside(self.model)}

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
        embeddings: npt.NDArray[np.float32] | None = None
        start = time.perf_counter()
        for instruction, rows in of_instruction.items():
            part = encode(
                [values[row] for row in rows],
                batch_size=self.batch_size,
                show_progress_bar=False,
                **({"prompt": instruction if apart else separated(instruction)} if instruction else {}),
            )
            check_count(part, rows)
            if embeddings is None:
                embeddings = np.empty((len(inputs), part.shape[1]), dtype=np.float32)
            embeddings[rows] = part
        seconds = time.perf_counter() - start
        if embeddings is None:
            raise ValueError("there are no inputs to embed")
        nothing = np.zeros(len(inputs), dtype=np.int64)
        return Embedded(embeddings, nothing.astype(bool), nothing, nothing, None, None, seconds, len(inputs))


def plain_fingerprint(model: SentenceTransformer) -> str:
    """
    A digest of what turns an input into a vector, as far as any sentence-transformers model tells: its weights, the
    settings and configurations of its modules, and its tokenizer's vocabulary. 64 hexadecimal digits.
    """
    from mmemb_r1._fingerprint import weights_digest

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
    A prompt that may be put in front of a text, which sentence-transformers does without anything between them.

    >>> separated("Answer the question:"), separated("query: ")
    ('Answer the question:\\n', 'query: ')
    """
    return prompt if prompt[-1:].isspace() else f"{prompt}\n"


def _without_instruction(value: Any) -> tuple[str | None, Any]:
    """
    An input's own instruction, and what else it has, as other models take it: text alone as a string, and pictures
    opened that are bytes.

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

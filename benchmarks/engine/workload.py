"""Make the inputs to embed, and the lengths of their rationales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine.subject import RANDOM_100M, Subject
from benchmarks.random_pairs import Kind, random_pairs
from mmemb_r1.atlas import load_atlas
from mmemb_r1.content import content_key, given_parts

ATLAS = "atlas"  # the folder beside a quickstart's model
WORDS, PIXELS = 12, 64
PICTURES_AT_ONCE = 256


def inputs_of(subject: Subject, count: int) -> list[dict[str, Any]]:
    """
    So many inputs: queries of the Atlas that lies beside the checkpoint, in random order, or else random words, every
    second of them with a picture. No two are equal, since `encode` would embed those once: what comes again has its
    number in its text.
    """
    atlas = None if subject.model is None else Path(subject.model).parent / ATLAS
    source = _random(subject) if atlas is None or not atlas.is_dir() else _of_atlas(atlas, subject.seed)
    seen: Counter[bytes] = Counter()
    values = []
    for value in islice(source, count):
        key = content_key(value)
        seen[key] += 1
        if seen[key] > 1:
            value = {**value, "text": f"{value.get('text') or ''} ({seen[key]})".strip()}
        values.append(value)
    return values


def numbered(values: Sequence[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """So many inputs, made one by one of those given, each with its number in its text: none of them is kept."""
    for number in range(count):
        value = values[number % len(values)]
        yield {**value, "text": f"{value.get('text') or ''} ({number})".strip()}


def _of_atlas(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    tables = load_atlas(folder).pairs.values()
    places = [(table, row) for table in tables for row in range(len(table))]
    order = np.random.default_rng(seed).permutation(len(places))
    for place in chain.from_iterable(repeat(order)):
        table, row = places[place]
        yield given_parts(table[int(row)]["query"])


def _random(subject: Subject) -> Iterator[dict[str, Any]]:
    for part in chain.from_iterable(repeat(range(PICTURES_AT_ONCE))):
        texts, pictures = (random_inputs(kind, PICTURES_AT_ONCE, subject, part) for kind in ("text", "mixed"))
        for text, picture in zip(texts, pictures, strict=True):
            yield {"text": text}
            yield picture


def random_inputs(kind: str, count: int, subject: Subject, part: int = 0) -> list[Any]:
    """
    Inputs of one kind, as plain sentence-transformers takes them, too: `text`, `picture` or `mixed`, a dict of both.
    There are other ones in each `part`.
    """
    edge = RANDOM_100M["image_size"] if subject.model is None else PIXELS
    shape = Kind(0 if kind == "text" else edge, WORDS, 1)
    queries = random_pairs(shape, count, subject.seed + 1000 * part)["query"]
    if kind == "text":
        return [query["text"] for query in queries]
    pictures = [query["image"][0] for query in queries]
    if kind == "picture":
        return pictures
    return [{"image": picture, "text": query["text"]} for picture, query in zip(pictures, queries, strict=True)]


def skewed_lengths(count: int, seed: int, median: int = 20, longest: int = 200) -> list[int]:
    """
    Lengths of rationales as they are in practice: lognormal, most of them short, a few very long.

    Args:
        count: how many.
        seed: of the draw.
        median: of the distribution, in tokens. A standard deviation of 1 of the logarithm puts one in a hundred at
            ten times the median.
        longest: what is longer is cut to this.
    """
    drawn = np.random.default_rng(seed).lognormal(np.log(median), 1.0, size=count)
    return np.clip(np.rint(drawn), 1, longest).astype(int).tolist()

"""Make the pairs of a night's run in small: pictures by path, some broken, some texts too long, three sources."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

SOURCES = {"products": 0.6, "pages": 0.3, "questions": 0.1}  # of each, its share of the pairs
BROKEN, TOO_LONG = 0.005, 0.02  # shares of the pairs
SIDE = 32  # of a picture, in pixels
MAX_INPUT_TOKENS = 192
WORDS = ("red", "green", "blue", "white", "black", "gray", "small", "large", "round", "square")


@dataclass(frozen=True)
class NightTable:
    """Where the pairs are, and the ids of those that can't be trained on, by reason."""

    pairs: Path
    broken: frozenset[str]
    too_long: frozenset[str]


def write_night_table(folder: Path, num_pairs: int, seed: int = 0) -> NightTable:
    """
    Write `pairs.parquet` and a picture for each of its queries but those of the third source, which are text.

    A broken picture is a JPEG that ends after half of its bytes. What is there already is not written again.
    """
    path, record = folder / "pairs.parquet", folder / "wrong.json"
    if not record.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows, wrong = _rows(folder, num_pairs, random.Random(seed))
        pq.write_table(pa.Table.from_pylist(rows), path)
        record.write_text(json.dumps(wrong), encoding="utf-8")
    wrong = json.loads(record.read_text(encoding="utf-8"))
    return NightTable(path, frozenset(wrong["broken"]), frozenset(wrong["too long"]))


def _rows(folder: Path, num_pairs: int, rng: random.Random) -> tuple[list[dict], dict[str, list[str]]]:
    sources = [name for name, share in SOURCES.items() for _ in range(round(share * num_pairs))][:num_pairs]
    sources += [next(iter(SOURCES))] * (num_pairs - len(sources))
    seen = [place for place, source in enumerate(sources) if source != "questions"]
    broken = set(rng.sample(seen, round(BROKEN * num_pairs)))
    too_long = set(rng.sample(sorted(set(range(num_pairs)) - broken), round(TOO_LONG * num_pairs)))
    rows, wrong = [], {"broken": [], "too long": []}
    for place, source in enumerate(sources):
        words = " ".join(rng.choices(WORDS, k=3))
        query = {"text": f"{source} {place}?", "image": None}
        if source != "questions":
            query["image"] = _write_picture(folder / "pictures" / str(place % 100), place, rng, place in broken)
        if place in too_long:
            query["text"] += " so" * MAX_INPUT_TOKENS
        rationale = [f"It is {words}."] if place % 3 else []
        pair_id = f"{source}-{place}"
        rows.append(
            {
                "pair_id": pair_id,
                "task": source,
                "query": query,
                "target": {"text": f"{words} {place}", "image": None},
                "query_rationale": rationale,
            }
        )
        for reason, places in (("broken", broken), ("too long", too_long)):
            if place in places:
                wrong[reason].append(pair_id)
    return rows, wrong


def _write_picture(folder: Path, place: int, rng: random.Random, is_broken: bool) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{place}.jpg"
    picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.randrange(256) for _ in range(3)))
    ImageDraw.Draw(picture).rectangle((4, 4, 4 + place % 24, 28), fill="white")
    picture.save(path)
    if is_broken:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path.resolve())

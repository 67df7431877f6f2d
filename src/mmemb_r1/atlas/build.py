"""Build Atlas from installed packages, write it as Parquet with a card, and load it again."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmemb_r1.atlas.card import build_card, source_versions
from mmemb_r1.atlas.pictures import find_font
from mmemb_r1.atlas.splits import SPLITS, TRAIN, split_questions
from mmemb_r1.atlas.tables import (
    Row,
    Studio,
    candidate_features,
    candidate_rows,
    pair_features,
    pair_rows,
    second_font_rows,
)
from mmemb_r1.atlas.world import make_world
from mmemb_r1.file_formats import read_parquet

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


MANIFEST = "atlas.json"


@dataclass(frozen=True)
class Atlas:
    """The benchmark Atlas, loaded."""

    pairs: DatasetDict  # splits train, policy, validation, test with the columns of `pair_features`
    candidates: Dataset  # every candidate of every set, columns of `candidate_features`
    directory: Path
    manifest: dict[str, Any]  # arguments, versions of the sources, counts, hashes


def build_atlas(
    directory: str | os.PathLike[str],
    *,
    seed: int = 0,
    size: int = 64,
    num_objects: int = 400,
    num_countries: int | None = None,
    generated_rows: int = 1000,
    num_drawings: int = 180,
    second_font: str | os.PathLike[str] | None = "auto",
) -> Atlas:
    """Build the benchmark in `directory`, or load it when the same one is already there.

    Args:
        directory: written as a whole or not at all; an older Atlas in it is replaced.
        seed: of the splits, the generated questions and the renderings.
        size: side of every picture in pixels, at least 16.
        num_objects: objects beside the flags, at least 10.
        num_countries: the most populous ones with a flag like no other's, at least 12; by default all, and then the
            countries whose flag is left out as a look-alike are taught as text too.
        generated_rows: training rows of each comparison, digit and mixed task; of `mixed-time` there are fewer.
        num_drawings: drawings of each perceptual task at most, at least 6.
        second_font: a colour font of another vendor for the task `picture-name-noto`; `"auto"` looks for
            NotoColorEmoji in the usual folders, None leaves the task out.

    Raises:
        ValueError: an argument is out of range, or `directory` holds something else than an Atlas.
        ImportError: a source package is missing (`pip install 'mmemb-r1[atlas]'`).
    """
    _check_at_least(size=(size, 16), num_objects=(num_objects, 10), num_drawings=(num_drawings, 6))
    _check_at_least(generated_rows=(generated_rows, 1))
    if num_countries is not None:
        _check_at_least(num_countries=(num_countries, 12))
    directory = Path(directory)
    font = find_font(second_font)
    arguments = {
        "seed": seed,
        "size": size,
        "num_objects": num_objects,
        "num_countries": num_countries,
        "generated_rows": generated_rows,
        "num_drawings": num_drawings,
        "second_font": sha256(font.read_bytes()).hexdigest() if font else None,
    }
    versions = source_versions()
    fingerprint = _fingerprint(arguments, versions)
    manifest = _read_manifest(directory)
    if manifest is not None and manifest["fingerprint"] == fingerprint:
        return load_atlas(directory)
    if manifest is None and directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{str(directory)!r} exists and is no Atlas. Choose an empty or a new directory.")

    world = make_world(size, num_objects, num_countries, num_drawings)
    studio = Studio(world, size, seed)
    tables: dict[str, list[Row]] = {}
    for split, questions in split_questions(world, seed=seed, generated_rows=generated_rows).items():
        tables[f"pairs/{split}"] = pair_rows(split, questions, studio)
        if font and split != TRAIN:
            tables[f"pairs/{split}"] += second_font_rows(split, questions, font, studio)
    tables["candidates"] = candidate_rows(world, studio)
    manifest = {"fingerprint": fingerprint, "arguments": arguments, "versions": versions}
    _write(directory, tables, manifest)
    return load_atlas(directory)


def load_atlas(directory: str | os.PathLike[str]) -> Atlas:
    """Load an Atlas that `build_atlas` wrote. ValueError when there is none."""
    from datasets import Dataset, DatasetDict

    directory = Path(directory)
    manifest = _read_manifest(directory)
    if manifest is None:
        raise ValueError(f"{str(directory)!r} holds no Atlas. Build one: mmemb-r1 atlas build --output {directory}")
    again = f"Build it again: remove {directory}, then mmemb-r1 atlas build --output {directory}."
    # Read into memory: `Dataset.from_parquet` would copy all of it to the user's cache first.
    pairs = {split: Dataset(read_parquet(directory / "pairs" / f"{split}.parquet", hint=again)) for split in SPLITS}
    candidates = Dataset(read_parquet(directory / "candidates.parquet", hint=again))
    return Atlas(DatasetDict(pairs), candidates, directory, manifest)


def _write(directory: Path, tables: dict[str, list[Row]], manifest: dict[str, Any]) -> None:
    """Write everything beside `directory`, then put it in its place."""
    import pyarrow.parquet as pq
    from datasets import Dataset

    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        (new / "pairs").mkdir(parents=True)
        content = sha256()
        for name, rows in tables.items():
            features = candidate_features() if name == "candidates" else pair_features()
            path = new / f"{name}.parquet"
            pq.write_table(Dataset.from_list(rows, features=features).data.table, path, compression="zstd")
            content.update(path.read_bytes())
        counts = {
            name.removeprefix("pairs/"): dict(Counter(row.get("task") or row["candidate_set"] for row in rows))
            for name, rows in tables.items()
        }
        manifest = {**manifest, "content_hash": content.hexdigest(), "counts": counts}
        (new / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (new / "README.md").write_text(build_card(manifest), encoding="utf-8")
        if directory.exists():
            directory.rename(old)
        new.rename(directory)


def _read_manifest(directory: Path) -> dict[str, Any] | None:
    path = directory / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _fingerprint(arguments: dict[str, Any], versions: dict[str, str]) -> str:
    code = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(Path(__file__).parent.glob("*.py"))}
    return sha256(json.dumps([arguments, versions, code], sort_keys=True).encode()).hexdigest()


def _check_at_least(**bounds: tuple[int, int]) -> None:
    for name, (value, least) in bounds.items():
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}.")


def atlas_texts(atlas: Atlas) -> list[str]:
    """List all text a model sees in training: questions, answers and rationales of train, and every candidate."""
    texts: set[str] = set()
    columns = ["query_text", "target_text", "query_rationale", "target_rationale"]
    flat = atlas.pairs[TRAIN].flatten().rename_columns({"query.text": "query_text", "target.text": "target_text"})
    flat = flat.select_columns(columns)
    for column in columns:
        for value in flat[column]:
            texts.update(value if isinstance(value, list) else [value])
    texts.update(atlas.candidates.flatten().select_columns(["input.text"])["input.text"])
    return sorted(text for text in texts if text)

"""Hand damaged files to the doors that read them: what was meant comes out, or a `ValueError` that names the file.

The doors are called as those of `input_doors`. `names` is what an error has to tell: one of them.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from tests.fuzzing.input_doors import EMBEDDED, NEVER, REFUSED, Door
from tests.fuzzing.mutators import SCALARS, mutated_bytes, mutated_text, mutated_value
from tests.fuzzing.random_inputs import as_file

from mmemb_r1 import MMEmbR1
from mmemb_r1.embedding_cache import FILE, EmbeddingCache
from mmemb_r1.hub.checks import check_checkpoint
from mmemb_r1.modeling.options_mmemb_r1 import FIELDS
from mmemb_r1.stream import encode_stream, load_shards
from mmemb_r1.stream_shards import read_shard
from mmemb_r1.training.rationales.pool import load_pool
from mmemb_r1.training.run import TrainingRun, read_recipe
from mmemb_r1.training.tables import PAIR_COLUMNS, read_pairs

TEXTS = [f"text {number}" for number in range(7)]
PARTS_OF_CHECKPOINTS = (
    *("config.json", "config.json", "config.json", "modules.json", "config_sentence_transformers.json"),
    *("processor_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "chat_template.jinja"),
)

TOLD = ("checkpoint", "chat template", "config", "prompt", *FIELDS)  # what is wrong, where it is no single file


def assert_names(error: Exception, *names: str) -> None:
    assert any(name in str(error) for name in names), f"{type(error).__name__} names none of {names}: {error}"


def some(rng: random.Random, path: Path, whole: bytes) -> None:
    """Write a damaged form of a file: one that ends early, or with other bytes."""
    path.write_bytes(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else mutated_bytes(rng, whole))


def tables_door(folder: Path) -> Door:
    """Pairs tables: damaged Parquet, and whole ones whose columns hold something else."""
    red = as_file(Image.new("RGB", (8, 8), "red"), "PNG")
    rows = [
        {"pair_id": f"p{n}", "query": {"text": f"q{n}", "image": [{"bytes": red, "path": None}]},
         "target": {"text": f"t{n}"}, "task": "a"}
        for n in range(4)
    ]  # fmt: skip
    path = folder / "pairs.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    whole = path.read_bytes()

    def check(rng: random.Random) -> str:
        if rng.random() < 0.5:
            some(rng, path, whole)
        else:
            try:
                table = pyarrow.Table.from_pylist(mutated_value(rng, rows))
                pyarrow.parquet.write_table(table, path)
            except (pyarrow.ArrowException, TypeError, ValueError, OverflowError, AttributeError):
                return REFUSED  # no table
        try:
            pairs = read_pairs(path, PAIR_COLUMNS, tasks=rng.choice((None, ["a"])))
        except ValueError as error:
            assert_names(error, "pairs.parquet", "'a'")
            return REFUSED
        assert len(set(pairs["pair_id"])) == len(pairs) > 0
        return EMBEDDED

    return check


def recipes_door(folder: Path, recipes: Sequence[tuple[str, Callable[[Path], Any]]]) -> Door:
    """Recipes and pools in YAML: `recipes` are texts and what reads them."""
    path = folder / "recipe.yaml"

    def check(rng: random.Random) -> str:
        text, read = rng.choice(recipes)
        path.write_bytes(mutated_text(rng, text))
        try:
            read(path)
        except ValueError as error:
            assert_names(error, "recipe.yaml")
            return REFUSED
        return EMBEDDED

    return check


def recipe_reader(run_class: type[TrainingRun]) -> Callable[[Path], Any]:
    """Make what reads a recipe as a training command does, up to the run's settings."""

    def read(path: Path) -> Any:
        recipe = read_recipe(path, run_class)
        recipe["settings"] |= {"use_cpu": True, "bf16": False}
        try:
            return run_class(model="model", pairs=path, output=path.parent, **recipe).config()
        except ValueError as error:  # of a value: it names the field
            names = [str(name) for part in recipe.values() for name in part]
            assert_names(error, *names, "model", "lora")
            raise ValueError(f"{path}: {error}") from error

    return read


def pool_reader(path: Path) -> Any:
    return load_pool(path)


def cards_door(checkpoint: Path, run: Callable[[list[str]], tuple[int, str]], files: dict[str, bytes]) -> Door:
    """The files that a card is made of, and the card itself, by `mmemb-r1 card`; `files` are whole ones."""

    def check(rng: random.Random) -> str:
        for name, content in files.items():
            (checkpoint / name).write_bytes(content)
        name = rng.choice(list(files))
        whole = files[name].decode()
        if name.endswith(".json") and rng.random() < 0.6:
            changed = json.dumps(mutated_value(rng, json.loads(whole)), default=str, skipkeys=True).encode()
        else:
            changed = mutated_text(rng, whole)
        (checkpoint / name).write_bytes(changed)
        status, said = run([str(checkpoint), "--check" if name == "README.md" and rng.random() < 0.5 else "--print"])
        assert status in (0, 2), said
        assert status == 0 or said.startswith("error: "), said
        if status == 2 and name != "README.md":
            assert name in said, f"{name} is not named: {said}"
        return REFUSED if status else EMBEDDED

    return check


def checkpoints_door(checkpoint: Path, folder: Path, load: Callable[[Path], MMEmbR1], expected: np.ndarray) -> Door:
    """Checkpoints with one damaged file: they load as what they say, or are refused; what looks at one says so too."""
    shutil.copytree(checkpoint, folder)

    def check(rng: random.Random) -> str:
        name = rng.choice(PARTS_OF_CHECKPOINTS)
        whole = (checkpoint / name).read_bytes()
        if name.endswith(".safetensors"):  # a flipped bit of a weight is another weight: only the header tells
            length = 8 + int.from_bytes(whole[:8], "little")
            changed = mutated_bytes(rng, whole[:length]) + whole[length:]
            changed = changed if rng.random() < 0.7 else whole[: rng.randrange(len(whole))]
        elif name.endswith(".json") and rng.random() < 0.6:
            changed = json.dumps(_another_value(rng, json.loads(whole))).encode()
        else:
            changed = mutated_text(rng, whole.decode())
        (folder / name).write_bytes(changed)
        try:
            check_checkpoint(folder)
        except ValueError as error:
            assert_names(error, str(folder))
        try:
            vectors = load(folder).encode(TEXTS[:2], **NEVER)
        except (ValueError, OSError) as error:
            assert_names(error, str(folder), *TOLD)
            return REFUSED
        finally:
            (folder / name).write_bytes(whole)
        assert vectors.shape[0] == 2 and np.isfinite(vectors).all()
        if name == "model.safetensors":
            assert np.abs(vectors - expected).max() < 1e-5
        return EMBEDDED

    return check


def _another_value(rng: random.Random, value: Any) -> Any:
    """Change JSON of a checkpoint; sizes stay small, or a machine's memory would be the test."""
    plain = [scalar for scalar in SCALARS if isinstance(scalar, bool | float | str | list | dict | None.__class__)]
    places: list[tuple[Any, Any]] = []

    def walk(holder: Any) -> None:
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            places.append((holder, key))
            if isinstance(holder[key], dict | list):
                walk(holder[key])

    walk(value)
    holder, key = rng.choice(places)
    if rng.random() < 0.3 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = copy.deepcopy(rng.choice([*plain, 0, -1, 1, 3]))
    return value


def shards_door(model: MMEmbR1, folder: Path) -> Door:
    """Folders of `encode_stream` with one damaged file: they are read, and gone on with, as they were, or refused."""
    made = {}
    for kind in ("safetensors", "parquet"):
        encode_stream(model, TEXTS, folder / kind, shard_size=3, file_format=kind, show_progress_bar=False, **NEVER)
        made[kind] = load_shards(folder / kind)[1].copy()

    def check(rng: random.Random) -> str:
        kind = rng.choice(list(made))
        path = rng.choice(sorted(path for path in (folder / kind).iterdir() if path.is_file()))
        whole = path.read_bytes()
        some(rng, path, whole)
        outcome = EMBEDDED
        try:
            try:
                if path.name.startswith("shard-"):
                    read_shard(path)
                assert np.array_equal(load_shards(folder / kind)[1], made[kind]), f"{path.name}: other vectors"
            except ValueError as error:
                assert_names(error, path.name, str(folder / kind))
                outcome = REFUSED
            try:
                encode_stream(
                    model, TEXTS, folder / kind, shard_size=3, file_format=kind, show_progress_bar=False, **NEVER
                )
                assert np.array_equal(load_shards(folder / kind)[1], made[kind]), f"{path.name}: gone on wrongly"
            except ValueError as error:
                assert_names(error, path.name, str(folder / kind))
        finally:
            path.write_bytes(whole)
            for name in ("index.json", "settings.json"):
                if not (folder / kind / name).is_file():
                    raise AssertionError(f"{name} is gone")
        return outcome

    return check


def caches_door(folder: Path) -> Door:
    """Damaged files of the embedding cache: the rows that were put, none, or a `ValueError`."""
    rows = {bytes([n]) * 32: {"embedding": torch.full((4,), float(n))} for n in range(20)}
    with EmbeddingCache(folder / "whole") as cache:
        cache.put(rows)
        cache._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    whole = (folder / "whole" / FILE).read_bytes()

    def check(rng: random.Random) -> str:
        place = folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        some(rng, place / FILE, whole)
        try:
            with EmbeddingCache(place) as cache:
                for key, found in zip(rows, cache.get(list(rows)), strict=True):
                    assert found is None or torch.equal(found["embedding"], rows[key]["embedding"])
                cache.put(rows)
        except ValueError as error:
            assert_names(error, FILE)
            return REFUSED
        return EMBEDDED

    return check

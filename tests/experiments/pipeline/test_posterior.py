from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from experiments.pipeline.posterior import (
    merged_scores,
    quality_of,
    read_scores,
    right_share,
    rows_of_workers,
    select_from,
    training_table,
)
from experiments.pipeline.prior import draw_of, draw_pool
from experiments.pipeline.tasks import JOINT_TASK_WEIGHTS, POOLED, of_tasks
from mmemb_r1.atlas.drawings import PERCEPTUAL_TASKS
from mmemb_r1.training.selection.config import SelectionOptions
from mmemb_r1.training.selection.select import select_rationales

OPTIONS = SelectionOptions(space="log-odds")


@pytest.fixture(scope="module")
def pairs(small_atlas):
    pairs = of_tasks(small_atlas.pairs["train"], POOLED)
    return pairs.select(range(0, len(pairs), 5)).flatten_indices()


@pytest.fixture(scope="module")
def rationales(small_atlas, pairs, tmp_path_factory):
    return draw_pool(small_atlas, pairs, tmp_path_factory.mktemp("pool") / "prior", seed=0)


@pytest.fixture(scope="module")
def scored(guesses):
    def score(pairs, rationales, folder):
        select_rationales(pairs, rationales, guesses, folder, OPTIONS, progress=False)
        return read_scores(folder)

    return score


@pytest.mark.slow
def test_merged_scores_are_those_of_one_scoring(scored, pairs, rationales, tmp_path):
    workers = np.array(rationales["worker"])
    some, others = (
        rationales.select(np.flatnonzero(rows)).flatten_indices()
        for rows in (workers != "verbose", workers == "verbose")
    )
    parts = [scored(pairs, table, tmp_path / name) for name, table in (("some", some), ("others", others))]
    together = select_from(merged_scores(*parts), OPTIONS, tmp_path / "together.parquet")
    at_once = select_from(scored(pairs, rationales, tmp_path / "all"), OPTIONS, tmp_path / "at-once.parquet")
    keys = ("pair_id", "side", "worker", "sample")

    def by_key(table):
        rows = {tuple(row[key] for key in keys): row for row in table.to_pylist()}
        assert len(rows) == len(table)
        return rows

    ours, theirs = by_key(together), by_key(at_once)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert row["kept"] == theirs[key]["kept"]
        assert row["posterior"] == pytest.approx(theirs[key]["posterior"])  # a softmax over all of an input's


def test_scores_of_some_workers(scored, pairs, rationales, tmp_path):
    scores = scored(pairs, rationales, tmp_path)
    found = rows_of_workers(scores, ("correct", "confused"))
    assert set(found["worker"].to_pylist()) == {"correct", "confused"} and len(found) == len(scores) / 2


def test_more_of_a_worker_begins_with_what_the_pool_has(small_atlas, pairs, rationales, tmp_path):
    more = draw_of("confused", 6, small_atlas, pairs, tmp_path / "prior", seed=0)

    def said(table, samples):
        rows = table.filter(lambda worker, sample: worker == "confused" and sample in samples, ["worker", "sample"])
        return {(row["pair_id"], row["side"], row["sample"]): row["text"] for row in rows}

    assert said(more, {0, 1}) == said(rationales, {0, 1})
    assert len(said(more, {2, 3, 4, 5})) == 2 * len(said(rationales, {0, 1}))


def test_quality_counts_what_is_known_to_help(scored, pairs, rationales, tmp_path):
    candidates = select_from(scored(pairs, rationales, tmp_path), SelectionOptions("none"), tmp_path / "all.parquet")
    found = quality_of(candidates, pairs)
    assert found["all"]["precision"] == pytest.approx(0.25) and found["all"]["recall"] == 1.0
    assert found["all"]["kept"] == {"correct": 1.0, "confused": 1.0, "verbose": 1.0, "format": 1.0}
    assert found["all"]["inputs"] == found["all"]["inputs with any kept"]
    assert {"flag-capital, query", "name-picture, target"} <= found.keys()
    nothing = select_from(read_scores(tmp_path), SelectionOptions(margin=1e9), tmp_path / "nothing.parquet")
    assert quality_of(nothing, pairs)["all"]["precision"] is None
    json.dumps(quality_of(nothing, pairs), allow_nan=False)


def test_the_right_share_is_what_training_draws(scored, pairs, rationales, tmp_path):
    scored(pairs, rationales, tmp_path)
    select_from(read_scores(tmp_path), SelectionOptions("none"), tmp_path / "all.parquet")
    assert right_share(tmp_path / "all.parquet") == pytest.approx(0.25)  # all alike
    select_from(read_scores(tmp_path), SelectionOptions(margin=1e9), tmp_path / "nothing.parquet")
    assert right_share(tmp_path / "nothing.parquet") is None
    rows = pa.table({"worker": ["correct", "verbose", "correct"], "posterior": [0.9, 0.1, 1.0]})
    pq.write_table(rows, tmp_path / "some.parquet")
    assert right_share(tmp_path / "some.parquet") == pytest.approx(1.9 / 2)
    pq.write_table(rows.set_column(0, "worker", [["correct", "verbose", "model"]]), tmp_path / "model.parquet")
    assert right_share(tmp_path / "model.parquet") is None


def test_rehearsed_pairs_keep_their_own_rationales(scored, small_atlas, pairs, rationales, tmp_path):
    select_from(scored(pairs, rationales, tmp_path), SelectionOptions("none"), tmp_path / "all.parquet")
    train = of_tasks(small_atlas.pairs["train"], set(JOINT_TASK_WEIGHTS))
    table = training_table(tmp_path / "all.parquet", train)
    assert isinstance(table, Dataset)
    task_of = dict(zip(train["pair_id"], train["task"], strict=True))
    own = {
        task_of[pair_id] for pair_id, worker in zip(table["pair_id"], table["worker"], strict=True) if worker == "own"
    }
    assert own and not own & set(POOLED)
    assert own >= {*PERCEPTUAL_TASKS, "mixed-sum", "mixed-time"}
    sides = zip(table["pair_id"], table["side"], strict=True)
    assert {side for pair_id, side in sides if task_of[pair_id] in PERCEPTUAL_TASKS} == {"query", "target"}

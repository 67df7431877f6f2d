from __future__ import annotations

import pytest
from datasets import Dataset

from mmemb_r1.training.rationales.table import (
    COLUMNS,
    rationale_shard_path,
    read_rationale_shard,
    read_rationales,
    write_rationale_shard,
)


def row(worker="a", sample=0, error=None):
    return {
        "pair_id": "p",
        "side": "query",
        "worker": worker,
        "sample": sample,
        "seed": 2**31 - 1,
        "text": None if error else "because",
        "num_tokens": None if error else 1,
        "finish_reason": "error" if error else "stop",
        "error": error,
    }


def test_a_shard_comes_back_as_it_was_written(tmp_path):
    path = rationale_shard_path(tmp_path, "a", 0)
    rows = [row(), row(sample=1, error="too dark")]
    write_rationale_shard(path, rows)
    assert read_rationale_shard(path) == rows
    write_rationale_shard(path, rows[:1])
    assert read_rationale_shard(path) == rows[:1]
    assert [file.name for file in path.parent.iterdir()] == ["a-00000.parquet"]


def test_shards_are_read_in_the_order_of_workers_and_numbers(tmp_path):
    places = [("b", 2), ("a-1", 0), ("b", 100_000), ("a", 10), ("b", 99_999), ("a", 9)]
    for sample, (worker, index) in enumerate(places):
        write_rationale_shard(rationale_shard_path(tmp_path, worker, index), [row(worker, sample)])
    table = read_rationales(tmp_path)
    read = [places[sample] for sample in table["sample"]]
    assert read == [("a", 9), ("a", 10), ("a-1", 0), ("b", 2), ("b", 99_999), ("b", 100_000)]
    assert table.column_names == list(COLUMNS)


def test_a_shard_without_rows_has_the_columns(tmp_path):
    write_rationale_shard(rationale_shard_path(tmp_path, "a", 0), [])
    table = read_rationales(str(tmp_path))
    assert len(table) == 0
    assert {name: feature.dtype for name, feature in table.features.items()} == COLUMNS


def test_reads_a_single_file_with_more_columns(tmp_path):
    Dataset.from_list([{**row(), "gain": 0.5}]).to_parquet(str(tmp_path / "selected.parquet"))
    assert read_rationales(tmp_path / "selected.parquet")[0]["gain"] == 0.5


def test_refuses_what_holds_no_rationales(tmp_path):
    with pytest.raises(ValueError, match="nowhere: there is no such folder or file"):
        read_rationales(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no shards of rationales"):
        read_rationales(tmp_path)
    Dataset.from_list([{"pair_id": "p"}]).to_parquet(str(tmp_path / "pairs.parquet"))
    with pytest.raises(
        ValueError, match=r"pairs\.parquet has no column 'side'; a rationales table has the columns pair"
    ):
        read_rationales(tmp_path / "pairs.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="bad.parquet can't be read: it is no Parquet file"):
        read_rationales(tmp_path / "bad.parquet")

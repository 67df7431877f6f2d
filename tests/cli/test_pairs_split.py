from __future__ import annotations

import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.cli import main
from mmemb_r1.training.tables import read_pairs


@pytest.fixture
def table(tmp_path):
    """Forty pairs about twenty pictures, by paths from the folder of the file."""
    rows = []
    for number in range(40):
        name = f"{number // 2}.png"
        Image.new("RGB", (8, 8), (number // 2, 0, 0)).save(tmp_path / name)
        query = {"text": "What is it?", "image": name}
        rows.append({"pair_id": f"pair {number}", "task": "ab"[number % 2], "query": query, "target": {"text": "x"}})
    Dataset.from_list(rows).to_parquet(str(tmp_path / "pairs.parquet"))
    return tmp_path / "pairs.parquet"


def test_every_pair_is_in_one_file_and_equal_queries_are_together(table, tmp_path):
    for name in ("one", "two"):
        assert main(["pairs", "split", str(table), "--share", "0.2", "--output", str(tmp_path / name)]) == 0
    train, held_out = (read_pairs(tmp_path / "one" / name) for name in ("train.parquet", "held-out.parquet"))
    assert len(held_out) == 8
    assert {*train["pair_id"][:], *held_out["pair_id"][:]} == {f"pair {number}" for number in range(40)}
    pictures = [{query["image"] for query in part["query"][:]} for part in (train, held_out)]
    assert pictures[0].isdisjoint(pictures[1])
    assert pictures[0] | pictures[1] == {str(tmp_path / f"{number}.png") for number in range(20)}
    assert (tmp_path / "one" / "held-out.parquet").read_bytes() == (tmp_path / "two" / "held-out.parquet").read_bytes()


def test_only_some_tasks(table, tmp_path):
    command = ["pairs", "split", str(table), "--tasks", "a", "--share", "0.1", "--seed", "3"]
    assert main([*command, "--output", str(tmp_path / "a")]) == 0
    parts = [read_pairs(tmp_path / "a" / name) for name in ("train.parquet", "held-out.parquet")]
    assert [len(part) for part in parts] == [18, 2] and {*parts[0]["task"][:], *parts[1]["task"][:]} == {"a"}


@pytest.mark.parametrize(
    ("share", "message"),
    [("1", "allowed: a share of the queries above 0 and below 1"), ("0.01", "0.01 of 20 different queries can't be")],
)
def test_shares_that_can_not_be(share, message, table, tmp_path, capsys):
    assert main(["pairs", "split", str(table), "--share", share, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.cli import main
from mmemb_r1.cli.pairs import LONGEST_RATIONALE
from mmemb_r1.training import JointConfig


@pytest.fixture
def table(tmp_path):
    """`table(name, broken=(), long=())`: a file of eight pairs with pictures by path, the last two of them equal."""

    def write(name, broken=(), long=()):
        rows = []
        for number in (*range(7), 6):
            path = tmp_path / f"{name}-{number}.jpg"
            Image.new("RGB", (64, 64), (number * 30, 0, 0)).save(path)
            text = "word " * 400 if number in long else f"color {number}?"
            rows.append({"query": {"text": text, "image": path.name}, "target": {"text": f"{number}"}})
        for number in broken:
            (tmp_path / f"{name}-{number}.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more")
        rows = [{"pair_id": f"{name} {place}", **row} for place, row in enumerate(rows)]
        Dataset.from_list(rows).to_parquet(str(tmp_path / f"{name}.parquet"))
        return str(tmp_path / f"{name}.parquet")

    return write


@pytest.fixture
def check(tiny_checkpoint):
    return lambda *arguments: main(["pairs", "check", *map(str, arguments), "--model", str(tiny_checkpoint)])


def test_good_tables_pass(check, table, capsys):
    first, second = table("a"), table("b")
    assert check(first, second) == 0
    said = capsys.readouterr().out
    assert f"{first}: 8 rows" in said and f"{second}: 8 rows" in said
    assert said.count("  1 pairs hold the same as an earlier one") == 2
    assert "  tokens of query, percentiles: 50 % 2" in said
    assert "all rows can be trained on" in said


def test_what_is_wrong_is_told_and_listed(check, table, tmp_path, capsys):
    bad = table("bad", broken=[2], long=[4])
    assert check(bad, "--max-input-tokens", 200, "--output", tmp_path / "wrong.jsonl", "--workers", 2) == 1
    said = capsys.readouterr().out
    assert f"2 of the 8 pairs of {bad} can't be trained on: row 2, pair 'bad 2', query: its image" in said
    lines = [json.loads(line) for line in (tmp_path / "wrong.jsonl").read_text().splitlines()]
    assert [(line["row"], line["pair_id"], line["side"]) for line in lines] == [
        (2, "bad 2", "query"),
        (4, "bad 4", "query"),
    ]
    assert "max_input_tokens=200" in lines[1]["reason"]


def test_rationales_that_are_too_long_are_told_by_worker(check, table, tmp_path, capsys):
    rows = [("a", "Short."), ("a", "Long. " * 300), ("b", "Short.")]
    selected = [{"pair_id": "good 1", "side": "query", "worker": worker, "text": text} for worker, text in rows]
    Dataset.from_list(selected).to_parquet(str(tmp_path / "selected.parquet"))
    good = table("good")
    assert check(good, "--rationales", tmp_path / "selected.parquet") == 1
    assert "1 rationales of the rationales are too long (50.0% of a's (1 of 2))" in capsys.readouterr().out
    assert check(good, "--rationales", tmp_path / "selected.parquet", "--max-rationale-tokens", 2000) == 0


def test_a_table_that_is_none_is_told_beside_the_others(check, table, tmp_path, capsys):
    rows = [{"pair_id": "a", "query": {"text": "x"}, "target": {"text": "y"}}] * 2
    Dataset.from_list(rows).to_parquet(str(tmp_path / "twice.parquet"))
    assert check(tmp_path / "twice.parquet", table("good")) == 1
    said = capsys.readouterr().out
    assert "the pair_id 'a' is there twice, in the rows 0 and 1" in said and "good.parquet: 8 rows" in said


def test_wrong_options_are_refused(check, table, capsys):
    assert check(table("good"), "--workers", -1) == 2
    assert "--workers -1; allowed: whole numbers from 0 on" in capsys.readouterr().err


def test_rationales_are_as_long_as_in_the_joint_phase():
    assert JointConfig.max_rationale_tokens == LONGEST_RATIONALE

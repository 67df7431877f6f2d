from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import pytest
from datasets import Dataset

from mmemb_r1.cli import rationales
from mmemb_r1.training.rationales import pool
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.rationales.worker import Failure, Rationale


@dataclass
class Parrot:
    name: str
    num_samples: int
    fails: bool = False
    batch_size: int = 8

    @property
    def definition(self):
        return {"kind": "parrot"}

    def draw(self, requests):
        answer = Failure("no voice") if self.fails else Rationale("hello", 1, "stop")
        return [[answer] * len(request.seeds) for request in requests]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command on three pairs and a pool of two."""
    monkeypatch.setattr(pool, "KINDS", {"parrot": f"{__name__}:Parrot"})
    entries = [{"name": "polly", "kind": "parrot"}, {"name": "mute", "kind": "parrot", "fails": True}]
    (tmp_path / "pool.yaml").write_text(json.dumps({"samples": 2, "workers": entries}), encoding="utf-8")
    rows = [{"pair_id": str(row), "query": {"text": f"{row}?"}, "target": {"text": f"{row}!"}} for row in range(3)]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "pairs.parquet"))
    parser = argparse.ArgumentParser()
    rationales.configure(parser)
    places = {"--pairs": "pairs.parquet", "--pool": "pool.yaml", "--output": "out"}

    def run(*options):
        paths = [text for option, name in places.items() for text in (option, str(tmp_path / name))]
        return rationales.run(parser.parse_args([*paths, *options]))

    return run


def test_draws(command, tmp_path, capsys):
    assert command() == 0
    assert len(read_rationales(tmp_path / "out")) == 3 * 2 * 2 * 2
    shown = capsys.readouterr().out.splitlines()
    assert shown == [
        "polly: 12 rows; shards: 1 drawn",
        "mute: 12 rows; shards: 1 drawn; 12 of 12 answers failed",
        "    12 x no voice",
        f"the rationales are in {tmp_path / 'out'}; keep those that help:",
        f"mmemb-r1 select --pairs {tmp_path / 'pairs.parquet'} --rationales {tmp_path / 'out'} --evaluator MODEL "
        "--output DIR",
    ]


def test_options(command, tmp_path, capsys):
    options = ["--workers", "polly", "--sides", "query", "--samples", "1", "--seed", "7", "--shard-size", "1"]
    assert command(*options, "--part", "2/3") == 0
    assert read_rationales(tmp_path / "out")["pair_id"] == ["1"]
    assert command(*options, "--retry-failed") == 0
    assert read_rationales(tmp_path / "out")["pair_id"] == ["0", "1", "2"]
    assert "polly: 2 rows; shards: 2 drawn, 1 there before" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["seed"] == 7


def test_too_many_failures_are_status_1(command, capsys):
    assert command("--max-failures", "2") == 1
    shown = capsys.readouterr().out
    assert (
        "stopped: more answers failed than the 2 that are allowed. The last one, of the worker 'mute': no voice."
        in shown
    )
    assert "the rationales are in" not in shown


@pytest.mark.parametrize("part", ["2", "3/2", "0/2", "a/b"])
def test_refuses_a_part(part, command, capsys):
    with pytest.raises(SystemExit):
        command("--part", part)
    assert f"'{part}' is no part; allowed: I/N" in capsys.readouterr().err


def test_refuses_files_that_are_not_there(command, tmp_path):
    (tmp_path / "pool.yaml").unlink()
    with pytest.raises(ValueError, match=r"--pool .*pool\.yaml: there is no such file"):
        command()
    (tmp_path / "pairs.parquet").unlink()
    with pytest.raises(ValueError, match=r"--pairs .*pairs\.parquet: there is no such file"):
        command()


def test_refuses_a_pair_without_target(command, tmp_path):
    rows = [{"pair_id": "lonely", "query": {"text": "x"}, "target": {"text": ""}}]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "pairs.parquet"))
    with pytest.raises(ValueError, match=r"pairs\.parquet: row 0 \(pair_id 'lonely'\), counted from 0, has no target"):
        command()
    assert not (tmp_path / "out").exists()

"""Rationales drawn and scored in parts on Ray are those of one process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from mmemb_r1.cli import main
from mmemb_r1.ray import draw_rationales, select_rationales
from mmemb_r1.ray.cluster import WorkerSlots
from mmemb_r1.ray.parts import _run_parts
from mmemb_r1.training import SelectionOptions, load_evaluator, read_rationales
from mmemb_r1.training import draw_rationales as drawn_by_one
from mmemb_r1.training import select_rationales as selected_by_one
from mmemb_r1.training.rationales.pool import load_pool
from mmemb_r1.training.tables import read_pairs

pytestmark = pytest.mark.usefixtures("cluster", "one_thread")


@pytest.fixture(scope="module")
def tables(tiny_checkpoint, tmp_path_factory):
    """A folder with pairs and a pool, whose worker is the tiny checkpoint."""
    folder = tmp_path_factory.mktemp("tables")
    rows = [{"query": {"text": f"query {number}"}, "target": {"text": f"target {number}"}} for number in range(12)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    worker = {"name": "own", "kind": "checkpoint", "model": str(tiny_checkpoint), "samples": 2}
    (folder / "pool.yaml").write_text(json.dumps({"workers": [worker]}))
    return folder


@pytest.fixture(scope="module")
def rationales(tables):
    """What one process draws."""
    pairs = read_pairs(tables / "pairs.jsonl")
    drawn_by_one(pairs, load_pool(tables / "pool.yaml"), tables / "one", shard_size=5, progress=False)
    return tables / "one"


def shards(folder):
    return {file.relative_to(folder): file.read_bytes() for file in sorted((folder / "shards").rglob("*.parquet"))}


def test_parts_draw_what_one_process_draws_and_go_on(tables, rationales, tmp_path):
    options = {"shard_size": 5, "workers": 2}
    summary = draw_rationales(tables / "pairs.jsonl", tables / "pool.yaml", tmp_path / "out", **options)
    (own,) = summary.workers
    assert (own.name, own.rows, own.answers, own.drawn, own.skipped) == ("own", 48, 48, 5, 0)
    assert shards(tmp_path / "out") == shards(rationales)
    next((tmp_path / "out" / "shards").glob("*-00003.parquet")).unlink()
    (own,) = draw_rationales(tables / "pairs.jsonl", tables / "pool.yaml", tmp_path / "out", **options).workers
    assert (own.drawn, own.skipped) == (1, 4)
    assert shards(tmp_path / "out") == shards(rationales)


def test_parts_score_what_one_process_scores(tables, rationales, tiny_checkpoint, tmp_path, capsys):
    command = ["select", "--pairs", str(tables / "pairs.jsonl"), "--rationales", str(rationales)]
    command += ["--evaluator", str(tiny_checkpoint), "--output", str(tmp_path / "out"), "--negatives", "2"]
    assert main([*command, "--shard-size", "5", "--ray", "--ray-workers", "2"]) == 0
    assert f"the selection is in {tmp_path / 'out'}" in capsys.readouterr().out
    pairs, options = read_pairs(tables / "pairs.jsonl"), SelectionOptions(num_negatives=2)
    evaluator = load_evaluator(str(tiny_checkpoint), device="cpu")
    expected = selected_by_one(
        pairs, read_rationales(rationales), evaluator, tmp_path / "one", options, batch_size=16, shard_size=5
    )
    assert shards(tmp_path / "out") == shards(tmp_path / "one")
    assert len(shards(tmp_path / "out")) == 5
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == expected
    kept = [Dataset.from_parquet(str(tmp_path / name / "candidates.parquet")) for name in ("out", "one")]
    assert kept[0].to_list() == kept[1].to_list()


def test_what_is_wrong_is_told_as_by_one_process(tables, tmp_path, capsys):
    (tmp_path / "pool.yaml").write_text("workers:\n  - name: own\n    kind: nobody\n")
    command = ["rationales", "--pairs", str(tables / "pairs.jsonl"), "--output", str(tmp_path / "out"), "--pool"]
    assert main([*command, str(tmp_path / "pool.yaml"), "--ray", "--ray-workers", "1"]) == 2
    assert "worker 'own': its kind is 'nobody'; allowed:" in capsys.readouterr().err
    assert main([*command, str(tables / "pool.yaml"), "--ray", "--part", "1/2"]) == 2
    assert "--part is for machines without Ray" in capsys.readouterr().err
    assert main([*command, str(tables / "pool.yaml"), "--gpus", "1"]) == 2
    assert "--gpus is for work on Ray; add --ray" in capsys.readouterr().err
    with pytest.raises(ValueError, match="part can't be chosen here"):
        draw_rationales(tables / "pairs.jsonl", tables / "pool.yaml", tmp_path / "out", part=(1, 2))
    with pytest.raises(ValueError, match="holds no shards of rationales"):
        (tmp_path / "empty").mkdir()
        select_rationales(tables / "pairs.jsonl", tmp_path / "empty", "org/missing", tmp_path / "out", workers=1)


def die(part, folder):
    """Die twice; the third process goes on."""
    begun = len(list(Path(folder).iterdir()))
    Path(folder, str(begun)).touch()
    if begun < 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return begun


def test_a_part_whose_process_dies_is_begun_again_and_not_for_ever(cluster, tmp_path, caplog, monkeypatch):
    assert _run_parts(die, [str(tmp_path)], WorkerSlots(1), 1) == [2]
    assert caplog.text.count("the process of part 1 of 1 died, and another goes on with what it had") == 2
    monkeypatch.setattr("mmemb_r1.ray.parts.RETRIES", 1)
    (tmp_path / "new").mkdir()
    with pytest.raises(OSError, match="the process of part 1 of 1 died 2 times. What was finished is kept"):
        _run_parts(die, [str(tmp_path / "new")], WorkerSlots(1), 1)


def test_a_part_that_fails_ends_the_others_and_not_the_driver(ray_home):
    """Ray ends a process that cancels a task when its answer comes, which happens in some of these rounds."""
    code = """
from mmemb_r1.ray import connected
from mmemb_r1.ray.cluster import WorkerSlots
from mmemb_r1.ray.parts import _run_parts


def refuse(part):
    raise ValueError(f"part {part[0]} can't be done")


def answer(part):
    return part


with connected(cpus=2):
    for _ in range(4):
        try:
            _run_parts(refuse, [], WorkerSlots(2), 3)
        except ValueError as error:
            print(error)
    print(_run_parts(answer, [], WorkerSlots(2), 4))
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert found.returncode == 0, found.stderr
    *refused, last = found.stdout.splitlines()
    assert len(refused) == 4
    assert all(line.endswith("can't be done") for line in refused)
    assert last == "[(1, 4), (2, 4), (3, 4), (4, 4)]", "parts beyond the slots wait for one"

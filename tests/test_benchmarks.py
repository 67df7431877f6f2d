"""The benchmarks of the inference engine: both sides of each agree, and the script that runs all of them runs."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from benchmarks import against_peer, auto_mixture, linear_cost, table_memory
from benchmarks.engine import memory, peer, timing, workload
from benchmarks.engine.subject import Subject
from mmemb_r1.content import content_key

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def subject(tiny_checkpoint: Path) -> Any:
    return Subject(str(tiny_checkpoint))


@pytest.fixture(scope="module")
def model(subject: Any) -> Any:
    return subject.load()


@pytest.fixture(scope="module")
def batches(model: Any, subject: Any) -> Any:
    """Two batches of four rows with rationales of different length."""
    made = against_peer.batches_of(
        against_peer.PEER, model, subject, inputs=8, sizes=against_peer.Sizes(batch=4, read=4, decoded=16)
    )
    return [(batch, budgets) for (batch, _), budgets in zip(made, ([1, 9, 3, 2], [6, 1, 1, 4]), strict=True)]


def test_both_sides_write_the_same_and_embed_it_alike(model, batches):
    with peer.without_end(model[0].model):
        written = [peer.embed_as_peer(model[0].model, *batch) for batch in batches]
        for size in (None, 3, 8):
            assert (
                against_peer.require_same(written, against_peer.ours(model[0].model, batches, size), list(range(8)))
                < 1e-5
            )
    for (batch, budgets), one in zip(batches, written, strict=True):
        assert [len(ids) for ids in one.rationales] == budgets
        assert one.steps == max(budgets) + peer.CONTROL_TOKENS  # all rows take part until the longest has ended
        assert len(one.embeddings) == len(batch["input_ids"])


def test_other_tokens_and_other_vectors_are_told(model, batches):
    with peer.without_end(model[0].model):
        written = [peer.embed_as_peer(model[0].model, *batch) for batch in batches]
        outputs = against_peer.ours(model[0].model, batches, None)
        with pytest.raises(ValueError, match="Vectors of the two sides differ by"):
            turned = [type(one)(one.embeddings.flip(0), one.rationales, one.steps) for one in written]
            against_peer.require_same(turned, outputs, list(range(8)))
        shorter = [(batch, [length + 1 for length in budgets]) for batch, budgets in batches]
        with pytest.raises(ValueError, match="different tokens"):
            against_peer.require_same(written, against_peer.ours(model[0].model, shorter, None), list(range(8)))


def test_the_end_of_a_rationale_is_possible_again(model):
    head, end = model[0].model.get_output_embeddings(), model[0].model.config.end_think_token_id
    hidden = torch.zeros(1, head.weight.shape[1])
    with peer.without_end(model[0].model):
        assert head(hidden)[0, end] == -torch.inf
    assert head(hidden)[0, end] == 0


def test_the_peer_reads_one_state(model, batches, monkeypatch):
    monkeypatch.setattr(model[0].model.config, "pooling", "mean")
    with pytest.raises(ValueError, match="pooling='mean'"):
        peer.embed_as_peer(model[0].model, *batches[0])


@pytest.mark.slow
def test_useful_work(subject):
    """Ours runs no step in vain; the static batch runs all of its rows until the longest has ended."""
    results = against_peer.run(subject, inputs=8, batch_size=4, repeats=1, memory=False)
    kept, sides = results["token_steps_kept"], results["sides"]
    lengths = workload.skewed_lengths(8, subject.seed)
    assert kept == sum(lengths) + 3 * 8
    assert [side["row_steps"] for side in sides.values()] == [
        4 * (max(lengths[:4]) + 3) + 4 * (max(lengths[4:]) + 3), kept, kept,
    ]  # fmt: skip
    assert sides["ours, across batches"]["steps"] < sides["ours, within a batch"]["steps"]
    assert results["decode_batch_size"] == 16


@pytest.mark.slow
def test_ours_reads_and_decodes_as_many_as_it_is_told(model, subject):
    results = against_peer.run(
        subject, inputs=8, batch_size=4, read_size=1, decode_batch_size=3, repeats=1, memory=False
    )
    assert (results["batch_size"], results["read_size"], results["decode_batch_size"]) == (4, 1, 3)
    assert 1 < results["sides"]["ours, across batches"]["rows_per_step"] <= 3
    sizes = against_peer.Sizes(batch=4, read=1, decoded=3)
    rows = {
        name: [len(budgets) for _, budgets in against_peer.batches_of(name, model, subject, 8, sizes)]
        for name in against_peer.SIDES
    }
    assert list(rows.values()) == [[4, 4], [1] * 8, [4, 4]]


def test_the_growth_of_a_stream_is_told_from_early_and_late_shards():
    growth = linear_cost.growth
    settling = [900] * linear_cost.SETTLING
    assert growth([*settling, *[500] * 9], shard_size=10) == 0
    assert growth([*settling, 500, 990, 500, 500, 500, 500, 500, 990, 500], shard_size=10) == 0  # bad moments
    assert growth([*settling, *range(0, 900, 100)], shard_size=10) == 10  # 100 bytes a shard


def test_skewed_lengths():
    lengths = workload.skewed_lengths(10_000, seed=0)
    assert abs(np.median(lengths) - 20) <= 1
    assert (min(lengths), max(lengths)) == (1, 200)
    assert lengths == workload.skewed_lengths(10_000, seed=0)


@pytest.mark.slow
def test_no_two_inputs_are_equal(subject):
    values = workload.inputs_of(subject, 600)  # more than there are different ones
    assert len({content_key(value) for value in values}) == len(values) == 600
    assert sum("image" in value for value in values) == 300


def test_numbered_inputs_differ_and_are_made_one_by_one():
    values = [{"text": "Lima"}, {"image": Image.new("RGB", (4, 4))}]
    made = workload.numbered(values, 10**12)
    first = list(islice(made, 100))
    assert first[0] == {"text": "Lima (0)"}
    assert len({content_key(value) for value in first}) == 100


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_as_many_think_as_wanted(model, subject, share):
    values = workload.inputs_of(subject, 8)
    options = {"batch_size": 4, "max_reasoning_tokens": 1, "show_progress_bar": False}
    gate_prob = np.array([float(one["gate_prob"]) for one in model.explain(values, reasoning="never", **options)])
    threshold = auto_mixture.threshold_of(gate_prob, share)
    assert auto_mixture.thinking(model, values, threshold, options).sum() == share * 8


def test_every_second_round_is_in_reverse_order(subject):
    seen: list[str] = []
    calls = {name: lambda name=name: seen.append(name) for name in "abc"}
    times = timing.alternating(calls, 3, subject)
    assert "".join(seen) == "abccbaabc"
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_peak_is_that_of_the_call():
    size = 64 * 2**20

    def call() -> None:
        kept = torch.ones(size, dtype=torch.uint8)
        del kept

    assert 0.95 * size < memory.peak_above(call, "cpu") < 1.25 * size  # the kernel counts roughly


def test_a_missing_checkpoint_is_named(tmp_path):
    missing = tmp_path / "nothing"
    with pytest.raises(SystemExit, match="nothing is no folder"):
        Subject.of(Namespace(random_100m=False, model=str(missing)))


@pytest.mark.slow
def test_all_in_one_go(root, tiny_checkpoint, tmp_path):
    output = tmp_path / "bench" / "all.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--model", str(tiny_checkpoint)]
    if not torch.cuda.is_available():
        refused = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
        assert (refused.returncode, "no CUDA device" in refused.stderr) == (2, True)
    command += ["--device", "cpu", "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=root)
    assert done.returncode == 0, done.stderr
    facts = json.loads(output.read_text(encoding="utf-8"))
    assert set(facts["results"]) == {"encode_never", "against_peer", "auto_mixture", "linear_cost"}
    assert facts["results"]["against_peer"]["sides"]["peer"]["peak_bytes"] > 0
    assert facts["results"]["linear_cost"]["stream"]["vector_bytes"] == 4 * 32
    assert {"versions", "machine", "options"} <= set(facts)
    assert "least share of the plain throughput" in done.stdout


def test_tables_of_many_pairs_are_read_as_training_reads_them(tmp_path):
    table_memory.write_tables(tmp_path, 120)
    for part in table_memory.PARTS.values():
        part(tmp_path)  # they say what is missing
    with pytest.raises(ValueError, match="row .* has no rationale"):
        rationales = tmp_path / "rationales" / "shards" / "w-00000.parquet"
        pq.write_table(pq.read_table(rationales)[:1], rationales)
        table_memory.joint_loader(tmp_path)

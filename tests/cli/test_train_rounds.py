"""Rounds of the whole method: what each does, and which checkpoint stays."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from mmemb_r1 import MMEmbR1
from mmemb_r1.cli import _train_rounds as rounds
from mmemb_r1.cli import main
from mmemb_r1.fingerprint import folder_digest
from mmemb_r1.training.rationales.table import read_rationales
from mmemb_r1.training.targets import validation_score

WORDS = ("red", "green", "blue", "white", "black", "grey")
JOINT = {"max_steps": 1, "per_device_train_batch_size": 4, "sub_batch_size": 2, "disable_tqdm": True}
ADAPTIVE = {
    "max_steps": 1,
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_reasoning_tokens": 3,
    "disable_tqdm": True,
}


def write_pairs(path: Path, prefix: str) -> Path:
    rows = [
        {
            "pair_id": f"{prefix} {word}",
            "query": {"text": f"{prefix}: which colour has number {number}?"},
            "target": {"text": f"{word} of {prefix}"},
        }
        for number, word in enumerate(WORDS)
    ]
    Dataset.from_list(rows).to_parquet(str(path))
    return path


# An untrained checkpoint would not end its rationales within a budget, and what is cut off is not selected.
WORKER = """
from dataclasses import dataclass

from mmemb_r1.training.rationales.worker import Rationale


@dataclass
class FirstWords:
    name: str
    num_samples: int = 1
    batch_size: int = 64
    definition = {"kind": "first words"}

    def draw(self, requests):
        return [[Rationale(request.input["text"][:8], 2, "stop")] * len(request.seeds) for request in requests]
"""


@pytest.fixture
def arguments(tiny_checkpoint, tmp_path, monkeypatch) -> list[str]:
    (tmp_path / "first_words.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "first_words", raising=False)
    pool = {"workers": [{"name": "first", "kind": "first_words:FirstWords"}]}
    files = {"--pool": pool, "--joint-config": JOINT, "--adaptive-config": ADAPTIVE}
    named = ["train", "rounds", "--model", str(tiny_checkpoint), "--evaluator", str(tiny_checkpoint), "--cpu"]
    for option, content in files.items():
        path = tmp_path / f"{option.strip('-')}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        named += [option, str(path)]
    for option in ("pairs", "policy-pairs", "eval-pairs"):
        named += [f"--{option}", str(write_pairs(tmp_path / f"{option}.parquet", option))]
    # an evaluator that knows nothing may keep nothing
    return [*named, "--samples", "1", "--selection", "none", "--output", str(tmp_path / "out")]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")
def test_two_rounds(arguments, tiny_checkpoint, tmp_path, capsys, monkeypatch):
    """The second has one more worker, starts from the better checkpoint, and an ended run does nothing again."""
    output, scores = tmp_path / "out", iter([0.1, 0.3, 0.2])
    monkeypatch.setattr(rounds, "measure", lambda model, plan: next(scores))
    assert main([*arguments, "--n", "1"]) == 0
    assert set(read_rationales(output / "rationales")["worker"]) == {"first"}
    assert main([*arguments, "--n", "2"]) == 0
    assert set(read_rationales(output / "rationales")["worker"]) == {"first", "round-1"}
    notes = json.loads((output / "rounds.json").read_text(encoding="utf-8"))
    assert [(note["round"], note["score"], note["kept"]) for note in notes] == [
        (0, 0.1, True), (1, 0.3, True), (2, 0.2, False),
    ]  # fmt: skip
    begun = json.loads((output / "round-2" / "joint" / "run.json").read_text(encoding="utf-8"))
    kept = output / "round-1" / "adaptive" / "model"
    assert begun["model"] == folder_digest(kept)
    best, first = (MMEmbR1(str(folder), device="cpu") for folder in (output / "model", kept))
    assert (best.encode("Lima") == first.encode("Lima")).all()
    told = capsys.readouterr().out
    assert "round 1: validation 0.3000, kept" in told and "round 2: validation 0.2000, not kept" in told
    assert "the best is that of round 1 (0.3000)" in told
    assert main([*arguments, "--n", "2"]) == 0  # `measure` would have no score left


def test_a_round_that_was_not_kept(arguments, tmp_path, capsys, monkeypatch):
    """The checkpoint that stays proposes in the next round; a round in which nothing is new is not run."""
    scores, drawn, ran = iter([0.3, 0.2, 0.1]), [], []
    monkeypatch.setattr(rounds, "measure", lambda model, plan: next(scores))
    monkeypatch.setattr(rounds, "draw", lambda plan, records: drawn.append(rounds.proposers(records)))
    monkeypatch.setattr(rounds, "run_command", lambda command: ran.append(command))
    monkeypatch.setattr(rounds, "replace_model", lambda output, model: None)
    assert main([*arguments, "--n", "5"]) == 0
    assert [[note["round"] for note in workers] for workers in drawn] == [[], [0]]
    assert len(ran) == 2 * 3
    assert "round 3 would repeat round 2" in capsys.readouterr().out


def test_the_stages_of_a_round(arguments, tmp_path):
    plan = rounds.Rounds(
        model="start", pairs=Path("p"), policy_pairs=Path("o"), eval_pairs=Path("e"), pool=Path("pool.yaml"),
        evaluator="judge", output=tmp_path, seed=3, cpu=True, margin=0.5, joint_config=Path("j.yaml"),
        columns={"query": "anchor"},
    )  # fmt: skip
    select, joint, adaptive = rounds.stages(plan, 2, Path("best"))
    folder = tmp_path / "round-2"
    for command in (select, joint, adaptive):
        assert command[command.index("--columns") + 1] == "query=anchor"
    assert select[:1] == ["select"] and str(folder / "selection") in select and "judge" in select
    assert select[select.index("--margin") + 1] == "0.5" and "--selection" not in select
    assert joint[joint.index("--model") + 1] == "best"
    assert joint[joint.index("--rationales") + 1] == str(folder / "selection" / "selected.parquet")
    assert joint[joint.index("--config") + 1] == "j.yaml"
    assert adaptive[adaptive.index("--model") + 1] == str(folder / "joint" / "model")
    assert adaptive[adaptive.index("--joint-pairs") + 1] == "p" and "--config" not in adaptive


def test_the_best_is_the_last_that_was_kept():
    notes = [{"round": number, "kept": kept} for number, kept in enumerate([True, False, True, False])]
    assert rounds.best_of(notes)["round"] == 2


def test_the_best_is_replaced_also_where_it_may_only_be_read(tmp_path, new_modes):
    start, later, output = tmp_path / "start", tmp_path / "later", tmp_path / "out"
    for folder in (start, later):
        (folder / "inner").mkdir(parents=True)
        (folder / "inner" / "a").write_text(folder.name)
        (folder / "inner" / "a").chmod(0o400)
        (folder / "inner").chmod(0o500)
    output.mkdir()
    for folder in (start, later):
        rounds.replace_model(output, folder)
        assert (output / "model" / "inner" / "a").read_text() == folder.name
        new_modes(output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--n", "0"], "--n 0; allowed: 1 or more"),
        (["--model", "nowhere"], "--model nowhere: there is no checkpoint"),
        (["--pool", "nowhere.yaml"], "nowhere.yaml: there is no such file"),
        (["--policy-pairs", "nowhere.parquet"], "--policy-pairs nowhere.parquet: there is no such file"),
        (["--evaluator", "nowhere"], "There is no folder nowhere, and it is no Hub id"),
        (["--adaptive-config", "nowhere.yaml"], "--adaptive-config nowhere.yaml: there is no such file"),
    ],
)
def test_what_is_wrong_is_told_before_the_first_stage(change, message, arguments, tmp_path, capsys):
    assert main([*arguments, *change]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_pairs_to_compare_on_have_to_be_others(arguments, tmp_path, capsys):
    assert main([*arguments, "--eval-pairs", str(tmp_path / "policy-pairs.parquet")]) == 2
    assert "6 pairs of --eval-pairs are in --policy-pairs too" in capsys.readouterr().err


def test_a_config_that_is_refused(arguments, tmp_path, capsys):
    for text, message in (
        ("lerning_rate: 1", "JointConfig has no field 'lerning_rate'; did you mean 'learning_rate'"),
        ("{per_device_train_batch_size: 4, sub_batch_size: 3}", "sub_batch_size=3 has to divide"),
    ):
        (tmp_path / "joint-config.yaml").write_text(text, encoding="utf-8")
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_another_run_is_kept_out(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(rounds, "measure", lambda model, plan: 0.5)
    monkeypatch.setattr(rounds, "draw", lambda plan, records: None)
    monkeypatch.setattr(rounds, "stages", lambda *args: [])
    monkeypatch.setattr(rounds, "replace_model", lambda *args: None)
    assert main([*arguments, "--n", "1"]) == 0
    assert main([*arguments, "--n", "1", "--seed", "1"]) == 2
    assert "was begun with other settings or data: seed was 0, is now 1" in capsys.readouterr().err


class TestScore:
    def test_what_has_one_vector_for_everything_scores_one_in_so_many(self, tiny_checkpoint, tmp_path):
        pairs = Dataset.from_parquet(str(write_pairs(tmp_path / "pairs.parquet", "pairs")), cache_dir=str(tmp_path))
        model = MMEmbR1(str(tiny_checkpoint), device="cpu")
        for weight in model[0].model.vlm.get_input_embeddings().parameters():
            weight.data.zero_().add_(0.1)  # every token is the same
        model[0].model.vlm.base_model.visual.requires_grad_(False)
        assert validation_score(model, pairs) == pytest.approx(1 / len(WORDS), abs=1e-3)

    def test_tasks_have_the_same_weight(self, tiny_checkpoint, tmp_path, monkeypatch):
        import torch

        from mmemb_r1.training.targets import TargetScorer

        pairs = Dataset.from_parquet(str(write_pairs(tmp_path / "pairs.parquet", "pairs")), cache_dir=str(tmp_path))
        pairs = pairs.add_column("task", ["a", "a", "a", "a", "b", "b"])
        told = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.5, 0.0]).log()
        monkeypatch.setattr(TargetScorer, "log_probability", lambda self, rows, vectors: told[rows])
        assert validation_score(MMEmbR1(str(tiny_checkpoint), device="cpu"), pairs) == pytest.approx((1 + 0.25) / 2)

    def test_the_gate_decides(self, thinking, tmp_path):
        pairs = Dataset.from_parquet(str(write_pairs(tmp_path / "pairs.parquet", "pairs")), cache_dir=str(tmp_path))
        scores = {threshold: validation_score(thinking(gate_threshold=threshold), pairs) for threshold in (0.0, 1.0)}
        assert abs(scores[0.0] - scores[1.0]) > 1e-4

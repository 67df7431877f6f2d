"""What an evaluation of held-out pairs returns, and what is shown of single rollouts."""

from __future__ import annotations

import pandas
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmemb_r1 import MMEmbR1
from mmemb_r1.content import inputs_of
from mmemb_r1.training.adaptive.completions import table_columns
from mmemb_r1.training.adaptive.metrics import retrieval_metrics, rollout_metrics

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]
EVAL = {"per_device_eval_batch_size": 12}


@pytest.fixture
def held_out(rows):
    """Text alone, of one task."""
    return rows.select(range(12, 18))


def direct_hits(model, processor, table):
    """By `encode`, as a user would: the share of queries whose target is nearer than all others of the table."""
    encoder = MMEmbR1.from_model(model.eval(), processor)
    queries, targets = (
        torch.from_numpy(encoder.encode(inputs_of(table[side]), reasoning="never")) for side in ("query", "target")
    )
    scores = queries @ targets.T
    own = scores.diagonal().clone()
    return float((own > scores.fill_diagonal_(-1).amax(dim=1)).float().mean())


@pytest.mark.parametrize("bias", [9.0, -9.0])
@pytest.mark.parametrize("scorer", ["frozen", "live"])
def test_an_evaluation_returns_rewards_and_what_reasoning_is_worth(
    trainer_of, vivid, processor, rows, held_out, bias, scorer
):
    with torch.no_grad():
        vivid.gate.output.weight.zero_()
        vivid.gate.output.bias.fill_(bias)
    trainer = trainer_of(vivid, rows, eval_dataset=held_out, scorer=scorer, **EVAL)
    found = trainer.evaluate()
    assert found["eval_gate/thinks"] == float(bias > 0)
    for name in ("hit@1", "mrr"):
        chosen = "always" if bias > 0 else "never"
        assert found[f"eval_auto_{name}"] == found[f"eval_{chosen}_{name}"]
    assert found["eval_never_hit@1"] == pytest.approx(direct_hits(vivid, processor, held_out), abs=1e-6)
    parts = sum(
        weight * found[f"eval_rewards/{name}_reward/mean"] for name, weight in trainer.args.all_rewards.items()
    )
    assert found["eval_reward"] == pytest.approx(parts, rel=1e-4)
    assert 0 < found["eval_rewards/target_probability_reward/mean"] < 1


def test_figures_are_of_the_present_model(trainer_of, vivid, processor, rows):
    """Rewards are measured by the frozen first model; retrieval by the one that was trained, on both sides."""
    held_out = rows.select(range(6))  # pictures: an untrained model does not find their names
    trainer = trainer_of(vivid, rows, eval_dataset=held_out, **EVAL)
    first = trainer.evaluate()
    with torch.no_grad():
        vivid.get_input_embeddings().weight.normal_(generator=torch.Generator().manual_seed(5))
    second = trainer.evaluate()
    assert second["eval_never_hit@1"] == pytest.approx(direct_hits(vivid, processor, held_out), abs=1e-6)
    assert second["eval_never_mrr"] != first["eval_never_mrr"]


def test_the_best_checkpoint_is_chosen_by_such_a_figure(trainer_of, vivid, rows, held_out):
    trainer = trainer_of(
        vivid,
        rows,
        eval_dataset=held_out,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="best",
        metric_for_best_model="auto_mrr",
        greater_is_better=True,
        **EVAL,
    )
    trainer.train()
    seen = [log["eval_auto_mrr"] for log in trainer.state.log_history if "eval_auto_mrr" in log]
    assert len(seen) == 2 and trainer.state.best_metric == max(seen)


def test_groups_of_an_evaluation_are_checked(trainer_of, vivid, rows, held_out):
    with pytest.raises(ValueError, match="num_generations_eval=1 with num_direct_rollouts=1"):
        trainer_of(vivid, rows, eval_dataset=held_out, num_generations_eval=1)
    with pytest.raises(ValueError, match="per_device_eval_batch_size=6 has to be a multiple of the 4 rollouts"):
        trainer_of(vivid, rows, eval_dataset=held_out, per_device_eval_batch_size=6)
    with pytest.raises(ValueError, match="the table to evaluate on has no column 'target'"):
        trainer_of(vivid, rows, eval_dataset=held_out.remove_columns("target"))


def test_figures_by_hand():
    ranks = torch.tensor([[1.0, 2.0, 4.0], [2.0, 1.0, 1.0]])
    reasoned = torch.tensor([[False, True, True]] * 2)
    found = retrieval_metrics(ranks, reasoned, torch.tensor([False, True]))
    expected = {"never": (0.5, 0.75), "always": (0.5, 0.6875), "auto": (1.0, 1.0)}
    for mode, (hits, reciprocal) in expected.items():
        assert found[f"{mode}_hit@1"].item() == hits and found[f"{mode}_mrr"].item() == reciprocal


def test_groups_of_one_kind_leave_the_numbers_of_others():
    """Decisions that are sampled may all be the same."""
    reasoned = torch.tensor([[False, False], [True, True], [False, True]])
    fields = {name: torch.arange(6.0) for name in ("num_reasoning_tokens", "num_reasoning_rounds", "truncated")}
    gap = torch.tensor([float("nan"), float("nan"), 0.5])
    rewards = torch.tensor([[0.0, 9.0], [1.0, 1.0], [0.0, 2.0]])
    found = rollout_metrics(fields, rewards, reasoned, gap, torch.tensor([0.1, 0.9, 0.9]), 0.5)
    assert found["gate/right"].item() == 1.0 and found["utility_gap"].item() == 0.5
    assert (
        found["rationale/tokens"].item() == pytest.approx(10 / 3)
        and found["rationale/groups_without_spread"].item() == 1.0
    )
    none = rollout_metrics(fields, rewards, torch.zeros_like(reasoned), gap * float("nan"), gap, 0.5)
    assert none["rationale/tokens"].isnan() and none["utility_gap"].isnan()


def test_columns_of_a_table_by_hand():
    values, reasoned = torch.tensor([[0.25, 0.75], [0.5, 0.5]]), torch.tensor([[False, True], [True, True]])
    rows = [{"pair_id": name} for name in "aabb"]
    found = table_columns(rows, ["", "x", "y", "z"], values, reasoned, torch.tensor([0.25, 0.75]))
    assert found == {
        "pair_id": ["a", "a", "b", "b"],
        "decision": ["direct", "reasoned", "reasoned", "reasoned"],
        "gate_probability": [0.75, 0.25, 0.75, 0.75],
        "gain": [0.0, 0.5, None, None],
        "rationale": ["", "x", "y", "z"],
    }


def test_rollouts_are_shown_where_a_run_reports_to(trainer_of, vivid, rows, tmp_path, monkeypatch):
    """A Parquet file, as TRL writes it; TensorBoard's text; and what TRL tells wandb and trackio, by a stand-in."""
    from trl.trainer import grpo_trainer

    class StandIn:
        tables: list[pandas.DataFrame] = []

        @staticmethod
        def Table(dataframe):
            return dataframe

        @classmethod
        def log(cls, logged):
            cls.tables.append(logged["completions"])

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    monkeypatch.setattr(grpo_trainer, "trackio", StandIn, raising=False)
    texts = rows.select(range(12, 18))
    trainer = trainer_of(vivid, texts, max_steps=1, report_to=["tensorboard"], log_completions=True)
    trainer.args.report_to = ["tensorboard", "trackio"]
    trainer.train()
    table = pandas.read_parquet(tmp_path / "checkpoints" / "completions" / "completions_00001.parquet")
    assert table["decision"].tolist() == ["direct", "reasoned", "reasoned", "reasoned"] * 3
    assert set(table["pair_id"]) <= set(texts["pair_id"])
    assert table["gate_probability"].between(0, 1).all() and (table["gain"][table["decision"] == "direct"] == 0).all()
    gains = (
        table["target_probability_reward"] - table["target_probability_reward"].iloc[[0, 4, 8]].repeat(4).to_numpy()
    )
    assert table["gain"].tolist() == pytest.approx(gains.tolist(), abs=1e-6)
    assert not any("<" in text for text in table["rationale"]) and any(
        table["rationale"][table["decision"] != "direct"]
    )
    assert StandIn.tables[0]["decision"].tolist() == table["decision"].tolist()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    (event,) = board.Tensors("completions/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert event.step == 1 and text.startswith("| pair_id | decision | gate_probability | gain | rationale |")
    assert len(text.splitlines()) == 2 + 12

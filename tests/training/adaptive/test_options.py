"""Options to compare with: sampled decisions, other rewards of the target, the other side of the pairs."""

from __future__ import annotations

import math

import pytest
import torch

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training.adaptive.advantages import group_normalised
from mmemb_r1.training.adaptive.rollouts import as_columns, in_groups, read_group, roll_out
from mmemb_r1.training.adaptive.sides import with_sides
from mmemb_r1.training.targets import embed_directly

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]


def scored(trainer, rows=(0, 1, 13)):
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    size = trainer.num_generations
    return trainer._generate_and_score_completions(
        [dict(trainer.train_dataset[row]) for row in rows for _ in range(size)]
    )


@torch.no_grad()
def with_gate(model, probability):
    model.gate.output.weight.zero_()
    model.gate.output.bias.fill_(math.log(probability / (1 - probability)))
    return model


class TestSampledDecisions:
    @pytest.mark.parametrize("probability", [1e-9, 0.3, 1 - 1e-7])
    def test_are_drawn_from_the_gate(self, vivid, processor, probability):
        with_gate(vivid, probability)
        batch = dict(render(processor, to_conversations(["say red", "say blue"])))
        draw = torch.Generator().manual_seed(0)
        group = roll_out(vivid, batch, 99, num_direct=1, sampled=True, max_tokens=1, generator=draw)
        assert group.thinks.shape == (2, 100)
        assert float(group.thinks.float().mean()) == pytest.approx(probability, abs=0.1)
        assert len(group.rationales) == len(group.reasoned) == len(group.rows) == int(group.thinks.sum())
        columns = as_columns(group, vivid.config, processor.tokenizer.eos_token_id, 1, 1)
        assert columns["reasoned"] == group.thinks.flatten().tolist()
        vectors = in_groups(*read_group(vivid, batch, group), group.thinks)
        assert torch.allclose(vectors, in_groups(group.direct, group.reasoned, group.thinks), atol=1e-4)

    def test_every_chosen_token_gets_the_normalised_reward(self, trainer_of, vivid, rows):
        with_gate(vivid, 0.5)
        torch.manual_seed(0)
        trainer = trainer_of(vivid, rows, decisions="sampled", num_generations=6, per_device_train_batch_size=18)
        batch = scored(trainer)
        rewards = trainer._rewards.view(3, 6)
        normalised = (rewards - rewards.mean(dim=1, keepdim=True)) / (rewards.std(dim=1, keepdim=True) + 1e-4)
        mask = batch["completion_mask"] * batch["tool_mask"]
        total, rollouts, later = mask.sum(), len(mask), mask[:, 1:].sum()
        expected = normalised.flatten()
        torch.testing.assert_close(batch["advantages"][:, 0], expected * total / rollouts)
        torch.testing.assert_close(batch["advantages"][:, 1], expected * total / later)
        assert trainer._fields["reasoned"].view(3, 6).sum(dim=1).unique().numel() > 1  # groups differ

    @pytest.mark.parametrize("probability", [1e-6, 1 - 1e-6])
    def test_a_gate_that_always_decides_the_same_is_trained_all_the_same(self, trainer_of, vivid, rows, probability):
        with_gate(vivid, probability)
        trainer = trainer_of(vivid, rows, decisions="sampled", max_steps=1)
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        assert len(losses) == 1 and all(map(math.isfinite, losses))

    def test_the_gate_gets_the_gradient_of_grpo(self, trainer_of, vivid, rows):
        """d loss / d logit is minus the mean over rollouts of the advantage times d log pi / d logit."""
        with_gate(vivid, 0.4)
        torch.manual_seed(1)
        trainer = trainer_of(
            vivid, rows, decisions="sampled", contrastive_weight=0.0, num_generations=8, per_device_train_batch_size=24
        )
        batch = scored(trainer)
        trainer._compute_loss(trainer.model, batch).backward()
        advantages = group_normalised(trainer._rewards.view(3, 8)).flatten()
        score = torch.where(trainer._fields["reasoned"].bool(), 1 - 0.4, -0.4)
        assert vivid.gate.output.bias.grad.item() == pytest.approx(-float((advantages * score).mean()), rel=1e-3)

    def test_go_without_the_reward_by_utility(self, trainer_of, vivid, rows):
        with pytest.raises(ValueError, match="sampled decisions may leave one out"):
            trainer_of(vivid, rows, decisions="sampled", decision_reward="utility")


class TestRewardsOfTheTarget:
    @pytest.mark.parametrize("kind", ["cosine", "margin"])
    @pytest.mark.parametrize("decision_reward", ["reward", "utility"])
    def test_are_what_they_are_called(self, trainer_of, vivid, processor, rows, kind, decision_reward):
        texts = rows.select(range(12, 18))
        trainer = trainer_of(vivid, texts, target_reward=kind, decision_reward=decision_reward)
        batch = scored(trainer, (0, 1, 2))
        found = trainer._fields[f"target_{kind}"].view(3, 4)[:, 0]  # of the direct embeddings
        with trainer._frozen.run() as first:
            queries, targets = (
                embed_directly(first, processor, [{"text": row["text"]} for row in texts[side]])
                for side in ("query", "target")
            )
        scores = (queries @ targets.T)[:3]
        own = scores.diagonal().clone()
        expected = own if kind == "cosine" else own - scores.fill_diagonal_(-1).amax(dim=1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert f"target_{kind}_reward" in trainer.reward_func_names
        weights = trainer.args.all_rewards
        assert (
            weights[f"target_{kind}"] == trainer.args.target_probability_weight and "target_probability" not in weights
        )
        assert batch["advantages"].isfinite().all()

    def test_another_kind_may_be_added(self, trainer_of, vivid, rows):
        trainer = trainer_of(vivid, rows, rewards={"target_margin": 0.5})
        scored(trainer)
        assert trainer.reward_func_names[-1] == "target_margin_reward"


class TestSides:
    def test_pairs_are_turned_round(self, make_pairs):
        table = make_pairs(
            [{"query": {"text": "q"}, "target": {"text": "t"}, "task": "x", "negatives": [{"text": "n"}]}]
        )
        assert with_sides(table, "query") is table
        (turned,) = with_sides(table, "target")
        assert turned["query"]["text"] == "t" and turned["target"]["text"] == "q"
        assert turned["pair_id"] == "pair 0 (target)" and turned["task"] == "x (target)" and "negatives" not in turned
        both = with_sides(table, "both")
        assert both["pair_id"] == ["pair 0", "pair 0 (target)"] and both["task"] == ["x", "x (target)"]
        assert both["negatives"][0] == table["negatives"][0] and not both["negatives"][1]

    def test_a_table_without_tasks_gets_two(self, make_pairs):
        table = make_pairs([{"query": {"text": "q"}, "target": {"text": "t"}}]).remove_columns(["task", "negatives"])
        assert with_sides(table, "both")["task"] == ["", " (target)"]

    def test_what_cant_be_turned_is_refused(self, make_pairs):
        table = make_pairs([{"query": {"text": "q"}, "target": {"text": "t"}}])
        with pytest.raises(ValueError, match="sides='target' needs the column 'query'"):
            with_sides(table.remove_columns("query"), "target")
        other = table.remove_columns("target").add_column("target", [{"text": "t"}])
        with pytest.raises(ValueError, match="they are stored in different forms"):
            with_sides(other, "both")

    @pytest.mark.parametrize("sides", ["target", "both"])
    def test_targets_learn_to_reason_towards_their_queries(self, trainer_of, vivid, processor, rows, sides):
        texts = rows.select(range(12, 18))
        trainer = trainer_of(vivid, texts, sides=sides, joint_pairs=texts, max_steps=1)
        place = len(trainer.train_dataset) - 1  # of the last pair, turned round
        prompt = trainer.train_dataset[place]
        assert prompt["pair_id"].endswith(" (target)")
        assert prompt["prompt"][0]["content"][0]["text"] == texts[5]["target"]["text"]
        scorer = trainer._scorers["train"]
        candidates = [scorer.candidates[number]["text"] for number in scorer.candidates.of(place)]
        assert candidates[0] == texts[5]["query"]["text"]
        assert set(candidates) == {query["text"] for query in texts["query"]}
        trainer.train()
        assert len(trainer.train_dataset) == (12 if sides == "both" else 6)
        assert trainer.facts["sides that reason"] == sides

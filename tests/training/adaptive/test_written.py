from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from tests.training.adaptive.naive_writer import NaiveWriter

from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.rationale_tokens import append_tokens
from mmemb_r1.training.adaptive.forward import PolicyForward
from mmemb_r1.training.adaptive.rollouts import as_columns, roll_out
from mmemb_r1.training.gate_phase import let_gate_read

BUDGET = 5
NEARLY_GREEDY = 1e-6


def prompts(processor):
    inputs = [{"image": Image.new("RGB", (64, 64), "red"), "text": "color?"}, {"text": "say blue"}]
    return dict(render(processor, to_conversations(inputs)))


def drawn(model, batch, rounds=1, temperature=1.0, seed=3, **options):
    generator = torch.Generator().manual_seed(seed)
    return roll_out(
        model, batch, 3, num_direct=1, max_tokens=BUDGET, max_rounds=rounds, temperature=temperature,
        generator=generator, **options,
    )  # fmt: skip


def writer_of(model, batch, processor, **options):
    return NaiveWriter(model, batch, processor.tokenizer.pad_token_id, **options)


@pytest.fixture
def ends_often(vivid):
    """A policy that reasons and goes on reasoning, and ends some rationales early, some at the budget."""
    with torch.no_grad():
        vivid.gate.output.weight.zero_()
        vivid.gate.output.bias.fill_(30.0)
    return vivid


def end_after(model, batch, place, count):
    """Make the token that greedy decoding chooses at a place the one that ends rationales."""
    ids = drawn(model, batch, temperature=NEARLY_GREEDY).rationales[3 * place]
    model.config.end_think_token_id = ids[len(model.config.opening_ids) + count]


@pytest.mark.parametrize("rounds", [1, 2])
@pytest.mark.parametrize("count", [0, BUDGET - 1, None])
def test_what_another_writes_is_read_as_what_the_policy_writes(ends_often, processor, rounds, count):
    """Ended at once, with the last token of the budget, and not at all."""
    batch = prompts(processor)
    if count is not None:
        end_after(ends_often, batch, 0, count)
    own = drawn(ends_often, batch, rounds, NEARLY_GREEDY)
    others = drawn(
        ends_often, batch, rounds, NEARLY_GREEDY, writer=writer_of(ends_often, batch, processor, temperature=0)
    )
    assert others.rationales == own.rationales
    assert own.logps is None and len(others.logps) == 8
    for name in ("thinks", "num_tokens", "num_rounds", "num_forced"):
        assert torch.equal(getattr(others, name), getattr(own, name)), name
    for name in ("direct", "gate_logits", "reasoned"):
        torch.testing.assert_close(getattr(others, name), getattr(own, name), rtol=1e-4, atol=1e-5)


def test_an_end_right_after_the_budget_is_not_forced(ends_often, processor):
    batch = prompts(processor)
    (ids, *_) = roll_out(ends_often, batch, 1, max_tokens=12, temperature=NEARLY_GREEDY).rationales
    budget = next(place for place in range(2, 12) if ids[1 + place] not in ids[1 : 1 + place])
    ends_often.config.end_think_token_id = ids[1 + budget]
    for count, forced in ((budget, 0), (budget - 1, 1)):
        writer = writer_of(ends_often, batch, processor, temperature=0)
        group = roll_out(ends_often, batch, 1, max_tokens=count, temperature=NEARLY_GREEDY, writer=writer)
        assert (group.num_tokens[0], group.num_forced[0]) == (count, forced)


@pytest.mark.parametrize("closing", [None, []])
@pytest.mark.parametrize("opening", [None, [40, 41]])
def test_what_stands_around_rationales(ends_often, processor, opening, closing):
    config = ends_often.config
    if opening is not None:
        config.think_token_id, config.opening_token_ids = None, opening
    if closing is not None:
        config.closing_token_ids = closing
    batch = prompts(processor)
    end_after(ends_often, batch, 0, 2)
    own = drawn(ends_often, batch, 2, NEARLY_GREEDY)
    writer = writer_of(ends_often, batch, processor, temperature=0)
    others = drawn(ends_often, batch, 2, NEARLY_GREEDY, writer=writer)
    assert others.rationales == own.rationales
    torch.testing.assert_close(others.reasoned, own.reasoned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("rounds", "read"), [(1, ["state"]), (2, ["state"]), (2, ["state", "words"])])
def test_log_probabilities_are_those_that_the_trainer_takes(vivid, processor, temperature, rounds, read):
    let_gate_read(vivid, read)
    torch.nn.init.normal_(vivid.gate.output.weight, generator=torch.Generator().manual_seed(0))
    batch, eos = prompts(processor), processor.tokenizer.eos_token_id
    writer = writer_of(vivid, batch, processor, temperature=temperature)
    group = drawn(vivid, batch, rounds, temperature, writer=writer)
    columns = as_columns(group, vivid.config, eos, BUDGET, rounds)
    assert [len(ids) for ids in columns["completion_ids"]] == [len(logps) for logps in columns["logprobs"]]
    rows = torch.arange(2).repeat_interleave(4)
    per_token = {key: value[rows] for key, value in batch.items() if value.shape == batch["input_ids"].shape}
    pictures = {key: torch.cat([value] * 4) for key, value in batch.items() if key not in per_token}
    inputs = append_tokens({**per_token, **pictures}, columns["completion_ids"], processor.tokenizer.pad_token_id)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    starts = [
        int(mask.sum()) - len(ids)
        for mask, ids in zip(inputs["attention_mask"], columns["completion_ids"], strict=True)
    ]
    for row, start in enumerate(starts):
        labels[row, :start] = -100
    with torch.no_grad():
        taken = PolicyForward(vivid, vivid.config, temperature)(labels=labels, **inputs).log_probs
    compared = 0
    for row, start in enumerate(starts):
        mask = torch.tensor(columns["env_mask"][row]).bool()
        found = torch.tensor(columns["logprobs"][row])[mask]
        torch.testing.assert_close(found, taken[row, start : start + len(mask)][mask], rtol=1e-3, atol=1e-4)
        compared += len(found)
    assert compared > 20


def test_each_rollout_has_a_seed_of_its_own(vivid, processor):
    batch = prompts(processor)

    def seeds(seed):
        writer = writer_of(vivid, batch, processor)
        return writer, drawn(vivid, batch, seed=seed, writer=writer)

    (first, group), (again, same), (other, _) = seeds(1), seeds(1), seeds(2)
    assert len(set(first.seeds)) == 6
    assert first.seeds == again.seeds != other.seeds
    assert group.rationales == same.rationales and len({tuple(ids) for ids in group.rationales}) > 2


def test_an_engine_that_stops_before_the_budget_is_an_error(ends_often, processor):
    batch = prompts(processor)
    writer = writer_of(ends_often, batch, processor, temperature=0, stop_after=BUDGET - 2)
    with pytest.raises(ValueError, match=f"stopped after {BUDGET - 2} tokens .* budget of {BUDGET} was spent. Give"):
        drawn(ends_often, batch, writer=writer)


class FakeVllm:
    """Stands in the place of vLLM in a trainer, and writes as the present model would."""

    def __init__(self, trainer):
        self.trainer, self.synced = trainer, []

    def sync_weights(self):
        self.synced.append(self.trainer.state.global_step)

    def of(self, chats, ids):
        model, processor = self.trainer._bare_model, self.trainer.processing_class
        batch = dict(render(processor, chats))
        assert [row[mask.bool()].tolist() for row, mask in zip(*list(batch.values())[:2], strict=True)] == ids
        return NaiveWriter(model, batch, processor.tokenizer.pad_token_id, self.trainer.temperature)


@pytest.fixture
def fake_vllm(monkeypatch):
    from mmemb_r1.training.adaptive import trainer

    monkeypatch.setattr(trainer, "check_vllm", lambda *_: None)
    monkeypatch.setattr(trainer.VllmRationales, "of_trainer", FakeVllm)


def test_a_trainer_takes_them_and_corrects_for_how_they_were_drawn(trainer_of, vivid, rows, fake_vllm, tmp_path):
    held_out = rows.select(range(3))
    trainer = trainer_of(vivid, rows, eval_dataset=held_out, use_vllm=True, max_steps=2, eval_strategy="steps")
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 2
    for log in logs:
        assert log["sampling/importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-3)
        assert log["sampling/importance_sampling_ratio/max"] == pytest.approx(1, abs=1e-3)
        assert 0 < log["sampling/sampling_logp_difference/max"] < 1e-3
    assert trainer.vllm_generation.synced == [0, 1, 2]  # before each step, and for the evaluation after the last
    assert json.dumps(trainer.facts)
    trainer._last_loaded_step = trainer.state.global_step
    trainer.state.best_model_checkpoint = None
    trainer._save_checkpoint(trainer.model, None)
    trainer.state.best_model_checkpoint = str(next((tmp_path / "checkpoints").glob("checkpoint-*")))
    trainer._load_best_model()
    trainer.evaluate()
    assert trainer.vllm_generation.synced == [0, 1, 2, 2]  # other weights, after as many steps


def test_a_wrong_log_probability_is_corrected_for(trainer_of, vivid, rows, fake_vllm, monkeypatch):
    """As where vLLM computes in fewer bits than the trainer."""
    write = NaiveWriter.write

    def less_likely(self, *asked):
        return [one._replace(logps=[logp - 0.01 for logp in one.logps]) for one in write(self, *asked)]

    monkeypatch.setattr(NaiveWriter, "write", less_likely)
    trainer = trainer_of(vivid, rows, use_vllm=True, max_steps=1)
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["sampling/importance_sampling_ratio/max"] == pytest.approx(
        torch.tensor(0.01 * 4).exp().item(), rel=2e-3
    )
    assert log["sampling/importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-3)  # a direct rollout

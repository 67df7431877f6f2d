"""Direct embeddings stay within a cosine of what they were before training, in both phases, or the phase says so."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging

import pytest
import torch

from mmemb_r1 import MMEmbR1
from mmemb_r1.content import inputs_of
from mmemb_r1.modeling.inputs_mmemb_r1 import to_conversations
from mmemb_r1.modeling.rendering_mmemb_r1 import render
from mmemb_r1.training import AdaptiveGRPOConfig, AdaptiveGRPOTrainer, JointConfig, JointRun, JointTrainer, train_joint
from mmemb_r1.training.adapters import lora_config, merged, with_adapters
from mmemb_r1.training.direct_anchor import cosine_distance, detached_direct
from mmemb_r1.training.joint.forward import encode

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]
TRAINED, HELD_OUT = [0, 1, 2, 6, 7, 12, 13], [3, 4, 9, 10]  # of `rows`: pictures and text on both sides


@pytest.fixture
def train(processor, rows, tmp_path, on_cpu):
    """`train(phase, model, **arguments)`: the trainer of a phase, on adapters, that has not begun."""

    def build(phase, model, adapted=None, held_out=HELD_OUT, **changes):
        adapters = lora_config(model, r=2)
        shared = {"output_dir": str(tmp_path / "checkpoints"), "logging_steps": 1, **on_cpu, "save_strategy": "no"}
        eval_dataset = None if held_out is None else rows.select(held_out)
        tables = {"train_dataset": rows.select(TRAINED), "eval_dataset": eval_dataset, "processing_class": processor}
        if phase == "joint":
            own = {"per_device_train_batch_size": 6, "sub_batch_size": 3, "max_steps": 4, "learning_rate": 1e-3}
            args = JointConfig(**{**shared, **own, **changes})
            return JointTrainer(model.train(), args, peft_config=adapters if adapted is None else None, **tables)
        own = {"per_device_train_batch_size": 8, "num_generations": 4, "max_steps": 4, "learning_rate": 1e-3}
        own |= {"max_reasoning_tokens": 4, "target_probability_temperature": 0.1, "per_device_eval_batch_size": 4}
        args = AdaptiveGRPOConfig(**{**shared, **own, **changes})
        wrapped = with_adapters(model, adapters).train() if adapted is None else adapted
        return AdaptiveGRPOTrainer(wrapped, args, **tables)

    return build


@torch.no_grad()
def disturb(model, by=0.02):
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += by * torch.randn(parameter.shape, generator=generator)


def direct(model, processor, inputs):
    """Direct embeddings in one plain pass each, `(N, D)`."""
    found = [model(**render(processor, to_conversations([one]))).embeddings[0, 0] for one in inputs]
    return torch.stack(found)


def cosines(model, first, processor, rows, places):
    """Of all direct embeddings of some rows, as users get them, with those of the first model."""
    inputs = inputs_of([*rows.select(places)["query"], *rows.select(places)["target"]])
    now, before = (
        MMEmbR1.from_model(one.eval(), processor).encode(inputs, reasoning="never", convert_to_tensor=True)
        for one in (model, first)
    )
    return torch.cosine_similarity(now, before)


def test_the_distance_is_exact_where_vectors_are_all_but_equal():
    vectors = torch.nn.functional.normalize(torch.randn(5, 64, generator=torch.Generator().manual_seed(0)), dim=1)
    near = vectors + 1e-4 * torch.roll(vectors, 1, dims=0)
    exact = 1 - torch.cosine_similarity(3 * near.double(), vectors.double())
    torch.testing.assert_close(cosine_distance(3 * near, vectors).double(), exact, rtol=1e-2, atol=1e-13)


def test_only_the_penalty_reaches_direct_embeddings():
    embeddings = torch.randn(2, 3, 4, requires_grad=True)
    detached = detached_direct(embeddings)
    assert torch.equal(detached, embeddings)
    detached.sum().backward()
    assert not embeddings.grad[:, 0].any() and embeddings.grad[:, 1:].eq(1).all()


@pytest.mark.parametrize("cached", [False, True])
def test_a_joint_step_is_the_plain_writing(train, vivid, processor, cached):
    """The gradient of the loss: that with direct vectors held constant, and the mean penalty of all rows."""
    first = copy.deepcopy(vivid).eval()
    trainer = train(
        "joint", vivid, direct_anchor=0.99, direct_anchor_weight=0.3, mini_batch_size=2 if cached else None
    )
    disturb(trainer.model)
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.training_step(trainer.model, batch)
    found = {name: one.grad.clone() for name, one in trainer.model.named_parameters() if one.grad is not None}
    trainer.model.zero_grad()

    trainer.anchor = None
    plain = trainer.compute_loss(trainer.model, batch)  # its direct vectors are constants: direct_anchor is set
    penalties = []
    for side in batch.values():
        now, before = (
            torch.cat([encode(model, chunk)[0].embeddings[:, 0] for chunk in side["chunks"]])
            for model in (trainer.model, first)
        )
        distance = 1 - (now * before.detach()).sum(dim=1)
        penalties.append(((distance / 0.01 - 0.5).clamp(min=0) ** 2)[side["order"]][side["index"]])
    penalty = torch.cat(penalties).mean()  # over rows
    assert penalty > 1
    (plain + 0.3 * penalty).backward()
    expected = {name: one.grad for name, one in trainer.model.named_parameters() if one.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=2e-3, atol=2e-3 * float(gradient.abs().max()), msg=name)


@pytest.mark.parametrize("scorer", ["frozen", "live"])
def test_a_grpo_step_is_the_plain_writing(train, vivid, processor, rows, scorer):
    first = copy.deepcopy(vivid).eval()
    options = {"scorer": scorer, "direct_anchor": 0.99, "direct_anchor_weight": 0.3, "contrastive_weight": 0.0}
    trainer = train("adaptive", vivid, **options)
    disturb(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    chosen = (0, 3)
    inputs = [copy.copy(trainer.train_dataset[row]) for row in chosen for _ in range(4)]
    batch = trainer._generate_and_score_completions(inputs)
    with_anchor = trainer._compute_loss(trainer.model, batch)
    anchor, trainer.anchor = trainer.anchor, None
    without = trainer._compute_loss(trainer.model, batch)
    queries = inputs_of(rows.select(TRAINED).select(chosen)["query"])
    model = trainer.model.get_base_model().eval()
    distance = 1 - torch.cosine_similarity(direct(model, processor, queries), direct(first, processor, queries))
    penalty = ((distance / 0.01 - 0.5).clamp(min=0) ** 2).mean()
    assert penalty > 1 and anchor.least == 0.99
    torch.testing.assert_close(with_anchor - without, 0.3 * penalty, rtol=1e-3, atol=1e-3)
    (with_anchor - without).backward()
    adapters = {name: one.grad for name, one in trainer.model.named_parameters() if "lora_B" in name}
    assert any(gradient is not None and gradient.any() for gradient in adapters.values())


@pytest.mark.parametrize(("phase", "rate"), [("joint", 1e-4), pytest.param("adaptive", 4e-4, marks=pytest.mark.slow)])
def test_it_holds_what_would_move(train, vivid, processor, rows, phase, rate):
    """With the same steps: without it direct embeddings leave the bound, with it they keep it, and it is logged."""
    steps = {"max_steps": 8, "learning_rate": rate}
    first = copy.deepcopy(vivid)
    free = train(phase, copy.deepcopy(vivid), **steps)
    free.train()
    least = float(cosines(free.model.get_base_model(), first, processor, rows, HELD_OUT).min())
    bound = round((1 + least) / 2, 4)  # half as far
    held = train(phase, vivid, direct_anchor=bound, direct_anchor_weight=10.0, **steps)
    held.train()
    found = cosines(held.model.get_base_model(), first, processor, rows, HELD_OUT)
    assert least < bound - 1e-4 and found.min() >= bound
    assert f"{found.min():.6f}"[:-2] in held.facts["direct embeddings"]
    measured = held.evaluate()
    assert measured["eval_direct_cosine_least"] == pytest.approx(float(found.min()), abs=1e-5)
    assert measured["eval_direct_cosine"] == pytest.approx(float(found.mean()), abs=1e-5)
    logs = [log for log in held.state.log_history if "direct_cosine" in log]
    assert len(logs) == 8 and logs[0]["direct_cosine"] == pytest.approx(1.0, abs=1e-5)
    assert all(log["direct_cosine_least"] <= log["direct_cosine"] + 1e-6 for log in logs)
    assert min(log["direct_cosine_least"] for log in logs) < 1 - (1 - bound) / 4  # it was at work


@pytest.mark.parametrize("phase", ["joint", pytest.param("adaptive", marks=pytest.mark.slow)])
def test_exact_scales_down_what_was_trained_but_the_gate(train, vivid, processor, rows, phase, caplog):
    first = copy.deepcopy(vivid)
    trainer = train(phase, vivid, direct_anchor=0.998, direct_anchor_weight=0.0, direct_anchor_exact=True)
    disturbed = {}

    def at_the_end(*args, **kwargs):  # what training came to
        if not disturbed:
            disturb(trainer.model)
            disturbed.update({name: one.detach().clone() for name, one in trainer.model.named_parameters()})
        return measure(*args, **kwargs)

    measure, trainer.anchor.measure = trainer.anchor.measure, at_the_end
    with caplog.at_level(logging.WARNING, logger="mmemb_r1"):
        trainer.train()
    assert "moved too far (allowed 0.998): training ends, with" in caplog.text
    least = float(cosines(trainer.model.get_base_model(), first, processor, rows, HELD_OUT).min())
    assert 0.998 - 1e-6 <= least < 0.9985  # no more than it needs
    assert "% of what training changed of the weights; allowed 0.998" in trainer.facts["direct embeddings"]
    for name, weight in trainer.model.named_parameters():
        if ".gate." in name:
            assert torch.equal(weight, disturbed[name]), name


def test_in_bfloat16_what_will_be_saved_is_measured(train, vivid, processor, rows):
    """Merging rounds the weights: the saved model is farther away than the one with adapters, by a lot here."""
    first = copy.deepcopy(vivid).bfloat16()
    trainer = train("joint", vivid.bfloat16(), direct_anchor=0.5, bf16=True)
    disturb(trainer.model, by=0.003)
    found = trainer.anchor.measure(trainer.model, processor, 4)
    saved = merged(copy.deepcopy(trainer.model))
    expected = cosines(saved, first, processor, rows, HELD_OUT)
    assert found.least == pytest.approx(float(expected.min()), abs=2e-4)
    assert found.mean == pytest.approx(float(expected.mean()), abs=1e-4)
    unmerged = cosines(trainer.model.get_base_model(), first, processor, rows, HELD_OUT)
    assert abs(float(unmerged.mean()) - found.mean) > 3e-4


class TestRuns:
    RECIPE = {
        "max_steps": 3,
        "save_steps": 3,
        "per_device_train_batch_size": 6,
        "sub_batch_size": 3,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "direct_anchor_weight": 0.0,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
    }

    @pytest.fixture
    def run(self, tiny_checkpoint, rows, tmp_path):
        """`run(**settings)`: a joint run in one folder."""
        for name, places in (("pairs", TRAINED), ("held_out", HELD_OUT)):
            rows.select(places).to_parquet(str(tmp_path / f"{name}.parquet"))

        def build(accept_changes=False, **settings):
            return JointRun(
                model=str(tiny_checkpoint),
                pairs=tmp_path / "pairs.parquet",
                eval_pairs=tmp_path / "held_out.parquet",
                output=tmp_path / "out",
                lora={"r": 2},
                settings={**self.RECIPE, **settings},
                accept_changes=accept_changes,
            )

        return build

    def test_a_model_that_moved_too_far_is_not_saved_and_nothing_is_lost(self, run, tmp_path):
        with pytest.raises(
            ValueError, match="Direct embeddings moved: the least cosine .* for the .* of pair"
        ) as error:
            train_joint(run(direct_anchor=0.9999))
        told = str(error.value)
        assert all(name in told for name in ("direct_anchor=0.9999", "direct_anchor_exact", "direct_anchor_weight"))
        assert str(tmp_path / "out" / "checkpoints") in told and not (tmp_path / "out" / "model").exists()
        before = (tmp_path / "out" / "checkpoints" / "checkpoint-3" / "trainer_state.json").stat().st_mtime_ns
        measured = train_joint(run(accept_changes=True, direct_anchor=0.9999, direct_anchor_exact=True))
        assert measured["eval_direct_cosine_least"] >= 0.9999 - 1e-6
        state = tmp_path / "out" / "checkpoints" / "checkpoint-3" / "trainer_state.json"
        assert state.stat().st_mtime_ns == before  # nothing was trained again
        record = json.loads((tmp_path / "out" / "model" / "training.json").read_text())
        assert "least cosine to those before training 0.9999" in record["direct embeddings"]
        inputs = ["say red", "a clear sky?", {"text": "color?"}]
        now, then = (
            MMEmbR1(str(folder), device="cpu").encode(inputs, reasoning="never")
            for folder in (tmp_path / "out" / "model", run().model)
        )
        assert (now * then).sum(axis=1).min() > 0.999  # the saved one is the scaled one

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"lora": None}, "direct_anchor=0.999 compares with .* train adapters"),
            ({"eval_pairs": None}, "direct_anchor=0.999 is a promise .* give held-out pairs"),
            ({"settings": {"use_rationales": False}}, "use_rationales=False trains nothing else"),
            ({"settings": {"direct_anchor": 1.0}}, "direct_anchor=1.0; allowed: a cosine above 0 and below 1"),
            ({"settings": {"direct_anchor": 0.9, "direct_anchor_weight": -1.0}}, "weight=-1.0; allowed: 0 or more"),
        ],
    )
    def test_refused_before_a_model_is_loaded(self, run, changes, message):
        with pytest.raises(ValueError, match=message):
            settings = {**self.RECIPE, "direct_anchor": 0.999, **changes.pop("settings", {})}
            dataclasses.replace(run(), settings=settings, **changes).config()


@pytest.mark.parametrize("phase", ["joint", "adaptive"])
def test_trainers_refuse_what_they_cant_promise(train, vivid, phase):
    with pytest.raises(ValueError, match="give held-out pairs"):
        train(phase, vivid, held_out=None, direct_anchor=0.9)


def test_trainers_refuse_a_model_that_is_trained_whole(train, vivid):
    for phase in ("joint", "adaptive"):
        with pytest.raises(ValueError, match="train adapters"):
            train(phase, vivid, adapted=vivid, direct_anchor=0.9)

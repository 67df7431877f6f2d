"""What is computed to fit: parts that can be measured on a tiny model are what is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments.recipes import activations, fits
from experiments.recipes.activations import (
    KINDS,
    bytes_per_token,
    kept_bytes,
    measured,
    measured_vision,
    vision_bytes_per_patch,
)
from experiments.recipes.memory import FITS, Plan, activation_bytes, count, prepared, state_bytes
from experiments.recipes.sizes import SIZES, build

COUNTED = fits.Counted()
TINY = replace(activations._TINY, layers=3, hidden=96, intermediate=160, heads=12, kv_heads=3)


@pytest.mark.parametrize("name", SIZES)
def test_models_have_as_many_parameters_as_those_that_are_published(name):
    backbone = build(SIZES[name]).vlm
    assert sum(weight.numel() for weight in backbone.parameters()) == SIZES[name].parameters


@pytest.mark.parametrize("method", ["full", "lora"])
def test_weights_gradients_and_optimizer_are_what_a_training_has(method):
    plan = Plan("joint", method, rank=4)
    model = prepared(build(TINY, "cpu").to(torch.float32 if method == "full" else torch.bfloat16), plan)
    ids = torch.tensor([[3, 4, 5, 1], [3, 4, 6, 1]])
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(input_ids=ids, labels=ids)
    (output.embeddings.sum() + output.gate_logits.sum() + output.rationale_logps.sum()).backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    found = {"weights": list(model.parameters()), "gradients": [one.grad for one in trained], "optimizer": moments}
    sizes = {name: sum(value.numel() * value.element_size() for value in of) for name, of in found.items()}
    assert state_bytes(count(model), plan) == sizes


def test_a_sharded_model_is_in_equal_parts_and_quantised_weights_are_small():
    counts = count(prepared(build(TINY), Plan("joint", "lora")))
    whole = state_bytes(counts, Plan("joint", "full"))
    assert state_bytes(counts, Plan("joint", "full", 8, sharded=True)) == {name: v / 8 for name, v in whole.items()}
    saved = (
        state_bytes(counts, Plan("joint", "lora"))["weights"] - state_bytes(counts, Plan("joint", "qlora"))["weights"]
    )
    assert saved == (2 - 0.5625) * counts.quantised
    linear = [part for part in build(TINY).vlm.get_decoder().layers.modules() if isinstance(part, torch.nn.Linear)]
    assert counts.quantised == sum(part.weight.numel() for part in linear)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_layer_keeps_of_a_token_follows_from_its_widths(kind):
    assert bytes_per_token(TINY, kind) == pytest.approx(measured(TINY, kind), rel=1e-3)


@pytest.mark.parametrize("kind", ["full", "sharded"])
def test_what_a_vision_layer_keeps_of_a_patch_follows_from_its_widths(kind):
    size = replace(TINY, vision_hidden=384, vision_heads=6, vision_intermediate=640)
    assert vision_bytes_per_patch(size, kind) == pytest.approx(measured_vision(size, kind), rel=1e-3)


def test_a_vision_tower_that_is_trained_needs_memory():
    plans = [Plan(phase, "full", 8, sharded=True) for phase in ("joint", "adaptive")]
    frozen, trained = (count(prepared(build(TINY), plan)) for plan in plans)
    assert trained.trained == trained.all == frozen.trained + frozen.vision
    frozen, trained = (activation_bytes(SIZES["4B"], plan) for plan in plans)
    patches = 8192 * 0.75 * 4
    assert trained - frozen > 24 * vision_bytes_per_patch(SIZES["4B"], "sharded") * patches


def test_activations_of_a_whole_model():
    """Two inputs of text; what the embedding and the head keep is less than a layer."""
    tokens = 2 * 256
    kept = kept_bytes(TINY, "lora", 256)
    plan = Plan("joint", "lora", tokens=tokens, picture_share=0, checkpointing=False)
    layer = bytes_per_token(TINY, "lora") * tokens
    assert activation_bytes(TINY, plan) - 2 * layer < kept < activation_bytes(TINY, plan)
    again = activation_bytes(TINY, replace(plan, checkpointing=True))
    assert again == 2 * layer + 3 * TINY.hidden * 2 * tokens


@pytest.mark.parametrize(("recipe", "processes"), fits.RECIPES)
def test_recipes_fit(recipe, processes):
    name, plan = fits.RECIPES[recipe, processes], fits.plan_of(recipe, processes)
    memory = COUNTED.memory(name, plan)
    assert SIZES[name].parameters / 8e9 < memory.weights < memory.total < FITS
    assert COUNTED.memory(name, replace(plan, tokens=16 * plan.tokens)).total > FITS


def test_what_does_not_fit_is_said():
    whole = Plan("joint", "full")
    assert COUNTED.memory("2B", whole).total < FITS < COUNTED.memory("4B", whole).total
    assert fits.amount(71.9) == "72" and fits.amount(82.4) == "(82)"


@pytest.mark.slow
def test_the_page_shows_what_is_computed():
    page = fits.PAGE.read_text(encoding="utf-8")
    assert fits.written(page) == page, "run python -m experiments.recipes.fits --write"


def test_a_page_without_a_place_for_the_tables_is_refused():
    with pytest.raises(ValueError, match="for the tables to stand between"):
        fits.written("# Training")

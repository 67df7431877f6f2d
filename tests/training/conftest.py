"""Tables of pairs with and without pictures and rationales, tiny models to train on them, and trainers."""

from __future__ import annotations

import copy

import pytest
import torch
from PIL import Image, ImageDraw

COLORS = ("red", "green", "blue", "white", "black", "gray")
COLUMNS = ("pair_id", "task", "query", "target", "negatives", "query_rationale", "target_rationale")
WEIGHT_SCALE = 6.0


def pair(query, target, task="color", query_rationale=(), target_rationale=(), negatives=()):
    return {
        "task": task,
        "query": query,
        "target": target,
        "negatives": list(negatives),
        "query_rationale": list(query_rationale),
        "target_rationale": list(target_rationale),
    }


def square(color):
    """A colour with a stripe of another, so that an augmentation has something to change."""
    picture = Image.new("RGB", (64, 64), color)
    ImageDraw.Draw(picture).rectangle((8, 8, 24, 56), fill="orange")
    return picture


def table_of(pairs):
    from datasets import Dataset, Features

    from mmemb_r1.atlas.tables import input_feature, pair_features

    empty = dict.fromkeys(input_feature())
    filled = [
        {
            "pair_id": f"pair {number}",
            **given,
            **{side: {**empty, "image": [], **given[side]} for side in ("query", "target")},
            "negatives": [{**empty, "image": [], **value} for value in given["negatives"]],
        }
        for number, given in enumerate(pairs)
    ]
    features = pair_features()
    return Dataset.from_list(filled, features=Features({name: features[name] for name in COLUMNS}))


@pytest.fixture(scope="session")
def make_pairs():
    """`make_pairs([{"query": ..., "target": ..., ...}])`: a pairs table."""
    return lambda pairs: table_of([pair(**given) for given in pairs])


@pytest.fixture(scope="session")
def rows():
    """Pairs of three tasks: picture -> name with a rationale, name -> picture with one on each side, text without
    any."""
    others = {color: [{"text": other} for other in COLORS if other != color] for color in COLORS}
    named = [
        pair({"image": [square(color)], "text": "color?"}, {"text": color}, "name", [f"It is {color}."])
        for color in COLORS
    ]
    shown = [
        pair({"text": color}, {"image": [square(color)]}, "show", [f"It is {color}."], [f"It is {color}."])
        for color in COLORS
    ]
    plain = [pair({"text": f"say {color}"}, {"text": color}, "plain", (), (), others[color]) for color in COLORS]
    return table_of([*named, *shown, *plain])


@pytest.fixture(scope="session")
def mixed():
    """Eight pairs of all kinds: pictures, several in one row, text, thoughts of one and two segments, hard
    negatives, and a target, a query and a thought that are there twice."""
    red, green, blue = (square(color) for color in COLORS[:3])
    steps = ["There are two.", "The second is green."]
    return table_of(
        [
            pair({"image": [red], "text": "color?"}, {"text": "red"}, "a", ["It is red."]),
            pair({"image": [red, green], "text": "second color?"}, {"text": "green"}, "a", steps, ["A color."]),
            pair({"text": "say red"}, {"text": "red"}, "a", (), (), [{"image": [blue]}, {"text": "blue"}]),
            pair({"text": "green"}, {"image": [green]}, "a", (), ["It is green."]),
            pair({"text": "green"}, {"image": [green, red]}, "b", (), steps, [{"text": "red"}]),
            pair({"image": [blue]}, {"text": "blue"}, "b"),
            pair({"text": "the sea?"}, {"image": [blue]}, "b", ["The sea is blue."], ["It is blue."]),
            pair({"text": "a clear sky?"}, {"text": "blue"}, "b", ["The sky", "is blue."], (), [{"text": "green"}]),
        ]
    )


@pytest.fixture(scope="session")
def tiny():
    """An untrained model and its processor. Not to be changed: copy it."""
    from mmemb_r1 import MMEmbR1Model
    from mmemb_r1.tiny import build_tiny_vlm

    return MMEmbR1Model.from_vlm(*build_tiny_vlm("qwen3_vl", texts=["It is red. color? say blue white black"]))


@pytest.fixture
def model(tiny):
    return copy.deepcopy(tiny[0])


@pytest.fixture(scope="session")
def processor(tiny):
    return tiny[1]


@pytest.fixture
@torch.no_grad()
def vivid(model):
    """A model whose vectors and gate differ from input to input as those of a trained one do: the untrained one is
    nearly linear, and would hardly tell what it was shown."""
    for parameter in model.vlm.parameters():
        if parameter.ndim > 1:
            parameter.mul_(WEIGHT_SCALE)
    model.gate.output.weight.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="session")
def visit():
    """`visit(table, places, seed, epoch, **options)`: examples, as the trainer takes them."""
    from mmemb_r1.training.joint.data import DrawnRow, JointPairs

    def examples(table, places=None, seed=0, epoch=0, **options):
        pairs = JointPairs(table, seed, **options)
        places = range(len(table)) if places is None else places
        return [pairs[DrawnRow(row, epoch, position)] for position, row in enumerate(places)]

    return examples


@pytest.fixture(scope="session")
def on_cpu():
    """Arguments of every trainer here: on the CPU, telling nobody."""
    return {
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
    }


@pytest.fixture
def make_trainer(processor, tmp_path, on_cpu):
    """`make_trainer(model, table, eval_dataset=..., rationales=..., augment=..., **arguments)`: a trainer on the
    CPU."""
    from mmemb_r1.training import JointConfig, JointTrainer

    def build(model, table, **changes):
        tables = {key: changes.pop(key) for key in ("eval_dataset", "rationales", "augment") if key in changes}
        defaults = {
            "output_dir": str(tmp_path / "checkpoints"),
            "per_device_train_batch_size": 6,
            "sub_batch_size": 3,
            "max_steps": 4,
            "learning_rate": 5e-3,
            "logging_steps": 1,
            **on_cpu,
            "save_strategy": "no",
        }
        return JointTrainer(model, JointConfig(**{**defaults, **changes}), table, processor, **tables)

    return build

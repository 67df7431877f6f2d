"""A table of pairs with and without pictures and rationales, and a tiny model to train on it."""

from __future__ import annotations

import copy

import pytest
from PIL import Image

COLORS = ("red", "green", "blue", "white", "black", "gray")


def pair(query, target, task="color", query_rationale=(), target_rationale=()):
    return {
        "task": task,
        "query": query,
        "target": target,
        "query_rationale": list(query_rationale),
        "target_rationale": list(target_rationale),
    }


def square(color):
    return Image.new("RGB", (64, 64), color)


@pytest.fixture(scope="session")
def rows():
    """Pairs of both kinds: picture -> name with a rationale, name -> picture with one on each side, text without
    any."""
    named = [
        pair({"image": [square(color)], "text": "color?"}, {"text": color}, "name", [f"It is {color}."])
        for color in COLORS
    ]
    shown = [
        pair({"text": color}, {"image": [square(color)]}, "show", [f"It is {color}."], [f"It is {color}."])
        for color in COLORS
    ]
    plain = [pair({"text": f"say {color}"}, {"text": color}, "plain") for color in COLORS]
    return [*named, *shown, *plain]


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

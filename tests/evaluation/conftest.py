"""A world in which right and wrong are known: answers are axes, and thinking reveals the answer of some queries."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from mmemb_r1.evaluation import Settings, run_evaluation
from mmemb_r1.evaluation.atlas_tasks import atlas_tasks

ANSWERS = ["Lima", "Paris", "Rome", "Cairo"]
INPUT = {"text": Value("string"), "image": List(Image()), "instruction": Value("string")}
PAIRS = Features(
    {name: Value("string") for name in ("pair_id", "task", "complexity", "candidate_set", "target_id")}
    | {"query": INPUT}
)
CANDIDATES = Features({"candidate_set": Value("string"), "candidate_id": Value("string"), "input": INPUT})


def text_input(text, *images):
    return {"text": text, "image": list(images), "instruction": None}


def flag(answer):
    """A picture whose first pixel says which answer it shows."""
    return PILImage.new("RGB", (4, 4), (ANSWERS.index(answer), 0, 0))


class Oracle:
    """Knows the facts in a text at once, and what a picture shows only after thinking, of which it takes 5 tokens."""

    def __init__(self):
        self.calls = []

    def explain(self, inputs, *, reasoning, batch_size, show_progress_bar):
        self.calls.append((reasoning, inputs))
        return [self._one(value, reasoning) for value in inputs]

    def _one(self, value, reasoning):
        has_image = "image" in value
        thinks = reasoning == "always" or (reasoning == "auto" and has_image)
        embedding = np.full(len(ANSWERS) + 1, 0.1, dtype=np.float32)
        known = next((answer for answer in ANSWERS if answer in value.get("text", "")), None)
        if has_image and thinks:
            known = ANSWERS[value["image"][0].getpixel((0, 0))[0]]
        embedding[len(ANSWERS) if known is None else ANSWERS.index(known)] = 1.0
        return {"embedding": embedding, "reasoned": thinks, "num_reasoning_tokens": 5 * thinks, "gate_prob": 0.5}


def evaluate(model, pairs, candidates, *, modes=("never", "always"), progress=False, **options):
    """Measure a model on tables as Atlas has them, also without the queries' pictures."""
    settings = Settings(modes=modes, no_image=True)
    return run_evaluation(model, atlas_tasks(pairs, candidates), settings, progress=progress, **options)


@pytest.fixture
def oracle():
    return Oracle()


@pytest.fixture(scope="session")
def candidates():
    rows = [{"candidate_set": "city", "candidate_id": name, "input": text_input(name)} for name in ANSWERS]
    other = {"candidate_set": "unused", "candidate_id": "x", "input": text_input("x")}
    return Dataset.from_list([*rows, other], features=CANDIDATES)


@pytest.fixture(scope="session")
def pairs():
    def pair(task, complexity, answer, query):
        return {
            "pair_id": f"{task}/{answer}",
            "task": task,
            "complexity": complexity,
            "candidate_set": "city",
            "target_id": answer,
            "query": query,
        }

    rows = [pair("fact", "simple", answer, text_input(f"where is {answer}?")) for answer in ANSWERS]
    rows += [pair("flag", "multi-hop", answer, text_input("capital?", flag(answer))) for answer in ANSWERS[:3]]
    return Dataset.from_list(rows, features=PAIRS)

"""The numbers that stand in the package and, with their reasons, in examples/."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from mmemb_r1.training.run import as_number


def of_example(root, name, config):
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    fields = yaml.safe_load((root / "examples" / name).read_text(encoding="utf-8"))
    return {key: as_number(key, value, defaults[key]) for key, value in fields.items()}


@pytest.mark.parametrize("part", ["atlas-evaluator-reading", "atlas-evaluator"])
def test_the_evaluators_numbers(root, part):
    from experiments.pipeline.evaluator import PARTS
    from experiments.pipeline.stage import ON_CPU
    from mmemb_r1.training.selection.evaluator_trainer import EvaluatorConfig

    example = of_example(root, f"{part}.yaml", EvaluatorConfig)
    assert {**PARTS[part], "save_total_limit": ON_CPU["save_total_limit"]} == example


def test_the_pools_numbers(root):
    from experiments.atlas_workers.scripted import BEHAVIOURS, POOL
    from experiments.pipeline.prior import NUM_SAMPLES

    for name, behaviours in (("pool.yaml", tuple(POOL)), ("pool-hard.yaml", BEHAVIOURS)):
        pool = yaml.safe_load((root / "experiments" / "quickstart" / name).read_text(encoding="utf-8"))
        assert pool["samples"] == NUM_SAMPLES
        assert tuple(one["behaviour"] for one in pool["workers"]) == behaviours
        assert [one["name"] for one in pool["workers"]] == [one["behaviour"] for one in pool["workers"]]

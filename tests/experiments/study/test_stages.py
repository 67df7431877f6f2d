"""What the rows' selections start from, with an evaluator that costs nothing."""

from __future__ import annotations

from collections import Counter

import pytest

from experiments.atlas_workers.scripted import HELPFUL
from experiments.study import stages
from experiments.study.forms import TINY
from experiments.study.rows import BY_NAME, ROWS
from experiments.study.tasks import ERRORS_FOLDER, NUM_PARTS, Study


@pytest.fixture(scope="module")
def scored(guesses, tmp_path_factory):
    """A study whose rationales are drawn and scored."""
    study = Study(tmp_path_factory.mktemp("study"), TINY, ROWS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.pipeline.posterior.evaluator_in", lambda folder: guesses)
        for stage in (stages.build, stages.draw, stages.draw_errors):
            stage(study, made_of={})
        for folder in ("", ERRORS_FOLDER):
            for part in range(1, NUM_PARTS + 1):
                stages.score_part(study, folder, part, made_of={})
    return study


@pytest.mark.slow
def test_the_single_worker_has_as_many_rationales_for_every_input_and_is_right_as_often(scored):
    """What differs between it and the pool is what its errors are like, and nothing else."""
    found = {name: Counter[tuple[str, str, bool]]() for name in ("full", "one-worker")}
    texts = {}
    for name, counts in found.items():
        scores = stages.scores_for(scored, BY_NAME[name], 0).to_pylist()
        counts.update((row["pair_id"], row["side"], HELPFUL[row["worker"]]) for row in scores)
        texts[name] = {(row["pair_id"], row["side"], row["text"]) for row in scores if HELPFUL[row["worker"]]}
    assert found["full"] == found["one-worker"] and set(found["full"].values()) == {2, 6}
    assert texts["full"] == texts["one-worker"]  # the same right ones
    wrong = {row["worker"] for row in stages.scores_for(scored, BY_NAME["one-worker"], 0).to_pylist()}
    assert wrong == {"correct", "confused"}


def test_a_rationale_is_scored_once(scored):
    """Rationales of one input stand together, and no two are the same sample."""
    scores = stages.scores_for(scored, BY_NAME["one-worker"], 0).to_pylist()
    keys = [(row["pair_id"], row["side"], row["worker"], row["sample"]) for row in scores]
    assert len(keys) == len(set(keys))
    places = [key[:2] for key in keys]
    assert len(set(places)) == 1 + sum(one != other for one, other in zip(places, places[1:], strict=False))

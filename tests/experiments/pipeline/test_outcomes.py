from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from experiments.pipeline.outcomes import OUTCOMES_FILE, measure_outcomes, states_all

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def checkpoint(thinking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    model = thinking("qwen3_vl", max_reasoning_tokens=3)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def test_pairs(small_atlas):
    return small_atlas.pairs["test"].select(range(0, 120, 5)).flatten_indices()


@pytest.mark.parametrize("rounds", [1, 2])
def test_auto_is_what_the_model_does_of_itself(checkpoint, test_pairs, small_atlas, tmp_path, rounds):
    """With one round it follows from the other modes; asked for, it has to come out the same."""
    from experiments.pipeline.outcomes import hits, inputs_of, vectors_of
    from mmemb_r1 import MMEmbR1
    from mmemb_r1.evaluation.atlas_tasks import embed_candidates

    measure_outcomes(checkpoint, test_pairs, small_atlas.candidates, tmp_path, rounds)
    table = pq.read_table(tmp_path / OUTCOMES_FILE).to_pydict()
    model = MMEmbR1(str(checkpoint), device="cpu")
    said = model.explain(inputs_of(test_pairs["query"]), reasoning="auto", batch_size=8, max_reasoning_rounds=rounds)
    sets = embed_candidates(model, small_atlas.candidates, set(test_pairs["candidate_set"]))
    assert table["auto"] == hits(test_pairs, vectors_of(said), sets)
    assert table["tokens_auto"] == [one["num_reasoning_tokens"] for one in said]
    assert table["rounds_auto"] == [one["num_reasoning_rounds"] for one in said]
    assert 0 < np.mean([count > 0 for count in table["rounds_auto"]]) < 1  # else nothing was compared


def test_a_rationale_is_right_if_it_states_every_fact():
    gold = ["This is the flag of Peru.", "The capital of Peru is Lima."]
    said = ["It is the flag of Peru. So Lima is the capital of Peru.", "This is the flag of Peru.", ""]
    assert states_all([gold] * 3, said) == [1, 0, 0]

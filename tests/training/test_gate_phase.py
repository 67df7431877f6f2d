from __future__ import annotations

import numpy as np
import pytest
import torch

from mmemb_r1.atlas import build_atlas
from mmemb_r1.content import inputs_of
from mmemb_r1.training import GateConfig, train_gate
from mmemb_r1.training import gate_decisions as measuring
from mmemb_r1.training.gate_decisions import competitions_of, measure_decisions, read_by_gate
from mmemb_r1.training.gate_phase import gate_report, held_out

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    small = {
        "size": 64,
        "num_countries": 24,
        "num_objects": 10,
        "generated_rows": 4,
        "num_drawings": 12,
        "second_font": None,
    }
    return build_atlas(tmp_path_factory.mktemp("atlas") / "small", **small)


@pytest.fixture(scope="module")
def policy(atlas):
    return atlas.pairs["policy"].select(range(0, 60, 4)).flatten_indices()


@pytest.fixture
def model(thinking):
    return thinking("qwen3_vl", max_reasoning_rounds=1)


@pytest.fixture
def measured(model, policy, atlas):
    """`measured(rounds)`: the decisions of the model on the policy split."""
    queries, competitions = inputs_of(policy["query"]), competitions_of(policy, atlas.candidates)
    return lambda rounds, **options: measure_decisions(
        model, queries, competitions, rounds=rounds, batch_size=8, **options
    )


def words(make_pairs, *pairs):
    return make_pairs([{"query": {"text": query}, "target": {"text": target}} for query, target in pairs])


def test_what_is_measured_is_what_explain_says(model, policy, atlas, measured):
    """The probability and the rank of each target, in closed form from the vectors that users get."""
    decisions = measured(1)
    inputs = {
        (name, candidate): value
        for name, candidate, value in zip(
            atlas.candidates["candidate_set"],
            atlas.candidates["candidate_id"],
            inputs_of(atlas.candidates["input"]),
            strict=True,
        )
    }
    for row in (0, 7):
        pair = policy[row]
        own = {candidate: value for (name, candidate), value in inputs.items() if name == pair["candidate_set"]}
        vectors = model.encode_document(list(own.values()))
        target = list(own).index(pair["target_id"])
        for depth, mode in enumerate(("never", "always")):
            cosines = vectors @ model.encode_query(inputs_of([pair["query"]]), reasoning=mode)[0]
            weights = np.exp((cosines - cosines.max()) / 0.02)
            assert decisions.probabilities[row, depth].item() == pytest.approx(
                weights[target] / weights.sum(), abs=1e-4
            )
            assert decisions.ranks[row, depth] == 1 + (np.delete(cosines, target) >= cosines[target] - 1e-6).sum()


def test_a_round_that_is_written_out_comes_to_the_same_as_encode(model, policy, measured):
    """`rounds_of`, which every further round needs, against `encode`."""
    decisions, queries = measured(1), inputs_of(policy["query"])
    written = measuring.rounds_of(model, queries, 1, batch_size=8)
    torch.testing.assert_close(decisions.inputs[:, 0], read_by_gate(model, queries, 8), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.from_numpy(written["inputs"]), decisions.inputs, atol=1e-4, rtol=1e-4)
    reasoned = model.encode(queries, reasoning="always")
    np.testing.assert_allclose(written["vectors"][:, 1], reasoned, atol=1e-4)
    np.testing.assert_array_equal(written["tokens"], decisions.tokens)


def test_every_round_is_a_decision_of_its_own(model, policy, measured):
    one, three = measured(1), measured(3)
    assert three.inputs.shape[:2] == (len(policy), 3) and three.gains.shape == (len(policy), 3)
    torch.testing.assert_close(three.inputs[:, 0], one.inputs[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(three.gains[:, 0], one.gains[:, 0], atol=1e-4, rtol=1e-3)
    assert (three.inputs[:, 1] - three.inputs[:, 0]).abs().max() > 1e-3  # the state after a rationale is another
    explained = model.explain(inputs_of(policy["query"]), reasoning="always", max_reasoning_rounds=3)
    assert three.tokens.sum(dim=1).tolist() == [one["num_reasoning_tokens"] for one in explained]
    assert three.tokens[:, 0].tolist() == one.tokens[:, 0].tolist()


@pytest.mark.parametrize(("rounds", "read"), [(1, None), (2, None), (1, "words"), (2, "words,state")])
def test_the_gate_alone_is_trained_and_auto_scores_as_reported(model, policy, atlas, rounds, read):
    before = {name: values.clone() for name, values in model[0].model.state_dict().items()}
    config = GateConfig(
        holdout=0, max_reasoning_rounds=rounds, cost=0.0, weight_decay=1e-4, gate_inputs=read, batch_size=8
    )
    facts = train_gate(model, policy, config, atlas.candidates)
    changed = {name for name, values in model[0].model.state_dict().items() if not values.equal(before[name])}
    assert changed and all(name.startswith("gate.") for name in changed)
    rows = model.explain(inputs_of(policy["query"]), reasoning="auto")
    measured = facts["measured"]
    assert model[0].model.config.max_reasoning_rounds == rounds
    assert facts["gate reads"] == {None: ["state"], "words": ["words"]}.get(read, ["state", "words"])
    assert np.mean([row["reasoned"] for row in rows]) == measured["invocation rate"]
    assert 0 < measured["invocation rate"] < 1
    competitions = competitions_of(policy, atlas.candidates)
    ranks = np.zeros(len(policy))
    for one in competitions:
        vectors = torch.stack([torch.from_numpy(rows[row]["embedding"]) for row in one.rows])
        ranks[one.rows] = measuring.outcomes(
            one, vectors, torch.from_numpy(model.encode_document(one.candidates)), 0.02
        )[1]
    assert np.mean(ranks == 1) == measured["auto"]
    assert facts["pays"] == measured["pays"] and (facts["fitted"], facts["held out"]) == (len(policy), 0)
    assert "none were held out" in "\n".join(gate_report(facts))


def test_held_out_queries_are_not_fitted_to(model, policy, atlas):
    facts = train_gate(model, policy, GateConfig(holdout=0.4, batch_size=8), atlas.candidates)
    assert facts["held out"] == facts["measured"]["queries"] == len(policy) - facts["fitted"]
    assert 0.2 * len(policy) <= facts["held out"] <= 0.6 * len(policy)
    assert f"on {facts['held out']} held-out queries" in gate_report(facts)[0]


def test_equal_queries_stay_together_and_the_seed_draws_them():
    keys = [bytes([number % 10]) for number in range(40)]
    kept = held_out(keys, 0.3, seed=0)
    assert len({key for key, out in zip(keys, kept, strict=True) if out}) == 3 and kept.sum() == 12
    assert (held_out(keys, 0.3, seed=0) == kept).all() and (held_out(keys, 0.3, seed=1) != kept).any()
    assert not held_out(keys, 0, seed=0).any()
    with pytest.raises(ValueError, match=r"0.01 of 10 different queries can't be held out; give more, or another"):
        held_out(keys, 0.01, seed=0)


def test_targets_of_the_table_compete_but_not_those_of_equal_queries(make_pairs):
    pairs = words(make_pairs, ("a", "one"), ("a", "two"), ("b", "three"), ("c", "one"))
    (competition,) = competitions_of(pairs)
    assert competition.rows.tolist() == [0, 1, 2, 3] and len(competition.candidates) == 3
    vectors = torch.eye(3)
    probabilities, ranks = measuring.outcomes(competition, vectors[[1, 1, 0, 2]], vectors, temperature=1.0)
    e = np.e
    assert ranks.tolist() == [1, 1, 3, 3]  # ties count against the target
    np.testing.assert_allclose(probabilities, [e / (e + 1), e / (e + 1), 1 / (e + 2), 1 / (e + 2)], rtol=1e-5)


def test_in_batch_negatives_are_the_targets_of_a_random_batch(make_pairs):
    pairs = words(make_pairs, *((f"query {number}", f"target {number}") for number in range(12)))
    (competition,) = competitions_of(pairs, batch_size=4, seed=0)
    assert sorted(map(len, competition.pools)) == [4] * 12
    assert all(set(right) <= set(pool) for right, pool in zip(competition.right, competition.pools, strict=True))
    (other,) = competitions_of(pairs, batch_size=4, seed=1)
    assert other.pools != competition.pools
    probabilities, ranks = measuring.outcomes(competition, torch.ones(12, 2), torch.ones(12, 2), temperature=1.0)
    assert ranks.tolist() == [4] * 12 and probabilities.tolist() == pytest.approx([0.25] * 12)


def test_a_target_without_a_competitor_is_refused(make_pairs):
    with pytest.raises(ValueError, match=r"the target of pair 'pair 0' has no competitor: its task 'color'"):
        competitions_of(words(make_pairs, ("a", "one"), ("b", "one")))


def test_a_run_that_was_killed_embeds_only_what_is_missing(model, measured, tmp_path, monkeypatch):
    monkeypatch.setattr("mmemb_r1.evaluation.encoders.BATCHES_AT_ONCE", 1)
    whole = measured(1, folder=tmp_path)
    (tmp_path / "queries-00001.npz").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npz")}
    calls = []
    explain = model.explain
    monkeypatch.setattr(
        model, "explain", lambda inputs, **options: calls.append(len(inputs)) or explain(inputs, **options)
    )
    again = measured(1, folder=tmp_path)
    assert calls == [7, 7]  # directly and with a rationale
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    torch.testing.assert_close(again.probabilities, whole.probabilities, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        model[0].model.gate.output.weight.add_(1)
    with pytest.raises(ValueError, match=r"was begun with other settings or data: weights was"):
        measured(1, folder=tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"negatives": "none"}, "negatives is 'none'; allowed: table, in-batch"),
        ({"holdout": 1.0}, "holdout is 1.0; allowed: a share"),
        ({"max_reasoning_rounds": 0}, "max_reasoning_rounds is 0; allowed: 1 or more"),
        ({"negatives": "in-batch", "batch_size": 1}, "batch_size is 1; allowed: 1 or more, 2 or more with in-batch"),
        ({"temperature": 0.0}, "temperature is 0.0; allowed: numbers above 0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0; allowed: 0 or more"),
    ],
)
def test_settings_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        GateConfig(**values)

"""The second look is fitted to the pairs of the gate, kept where it is worth something, and scores as is reported."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mmemb_r1 import MMEmbR1
from mmemb_r1.content import inputs_of
from mmemb_r1.modeling.options_mmemb_r1 import SECOND_LOOK
from mmemb_r1.modeling.paths_mmemb_r1 import suffix_of_ids
from mmemb_r1.training import GateConfig, train_gate
from mmemb_r1.training import gate_decisions as measuring
from mmemb_r1.training.gate_decisions import Competition, Decisions, competitions_of, measure_decisions
from mmemb_r1.training.gate_phase import fitted_and_measured, gate_facts, gate_report
from mmemb_r1.training.second_look import (
    Mixtures,
    cross_validation_folds,
    fit_second_look,
    gains_with_second_look,
    taught_second_look,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(thinking: Callable[..., MMEmbR1]) -> MMEmbR1:
    return thinking("qwen3_vl", max_reasoning_rounds=1, max_reasoning_tokens=5)


@pytest.fixture(scope="module")
def pairs(make_pairs):
    said = [(f"what is number {number}?", f"it is {number * number}") for number in range(24)]
    return make_pairs([{"query": {"text": query}, "target": {"text": target}} for query, target in said])


def planted(helps: bool, count: int = 300) -> tuple[Decisions, torch.Tensor]:
    """Queries whose rationale is right where it was likely, if it `helps` to know that, and else leads astray."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(count, 16, generator=generator), dim=-1)
    right = torch.rand(count, generator=generator) < 0.5 if helps else torch.ones(count, dtype=torch.bool)
    noise = torch.nn.functional.normalize(torch.randn(2, count, 16, generator=generator), dim=-1)
    target = vectors
    direct = target + 0.9 * noise[0] if helps else target.roll(1, dims=0)
    reasoned = torch.where(right[:, None], target, noise[1])
    both = torch.nn.functional.normalize(torch.stack([direct, reasoned], dim=1), dim=-1)
    mean = torch.where(right, -0.2, -2.0) + 0.1 * torch.randn(count, generator=generator)
    written = torch.stack([mean, 2 * mean, torch.full((count,), 0.5)], dim=-1)[:, None]  # (N, 1, 3)
    competition = Competition(np.arange(count), list(range(count)), [[row] for row in range(count)])
    found = [measuring.outcomes(competition, both[:, depth], target, 0.1) for depth in range(2)]
    probabilities = torch.stack([one for one, _ in found], dim=1)
    ranks = np.stack([one for _, one in found], axis=1)
    inputs = torch.zeros(count, 1, 4)
    tokens = torch.full((count, 1), 8)
    return Decisions(inputs, probabilities, tokens, ranks, both, written, [competition], [target], 0.1), right


class Network:
    """What is fitted of a model: its gate, with a bias alone to tell inputs by, for they are all the same."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self):
        self.gate = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Flatten(0))
        torch.nn.init.zeros_(self.gate[0].weight)
        self.config = config()
        self.config.gate_inputs, self.config.gate_threshold = ["state"], 0.5


def test_the_gate_is_fitted_to_what_rationales_gain_with_a_second_look():
    """As they are, they gain less than they cost on average; what a second look leaves of them gains more."""
    decisions, right = planted(helps=True)
    none, folds, settings = np.zeros(300, dtype=bool), np.arange(300) % 5, GateConfig(holdout=0, cost=0.2)
    plain, looking = Network(), Network()
    facts = fitted_and_measured(plain, decisions, none, settings)
    assert facts["thinks"] == 0 and plain.config.second_look is None
    facts = fitted_and_measured(looking, decisions, none, settings, folds)
    weights = facts["second look"]["weights"]
    assert facts["thinks"] == 1 and looking.config.second_look == weights
    gains = gains_with_second_look(looking.config, decisions, torch.full((300,), 0.5), weights)
    assert gains.shape == (300, 1) and gains.mean() > 0.2 > decisions.gains.mean()
    assert gains[~right].abs().mean() < 0.1 < decisions.gains[~right].abs().mean()


def test_rounds_gain_with_a_second_look_from_one_to_the_next():
    """By hand: a second look that keeps every vector as it is gains what rounds gain."""
    decisions, _ = planted(helps=True)
    twice = decisions._replace(
        probabilities=torch.cat([decisions.probabilities, decisions.probabilities[:, :1]], dim=1),
        vectors=torch.cat([decisions.vectors, decisions.vectors[:, :1]], dim=1),
        written=torch.cat([decisions.written, decisions.written], dim=1),
    )
    keeps = dict.fromkeys(SECOND_LOOK, 0.0) | {"bias": 50.0}
    gains = gains_with_second_look(config(), twice, torch.full((300,), 0.5), keeps)
    torch.testing.assert_close(gains, twice.gains, atol=1e-5, rtol=1e-4)


def config(**fields):
    class Config:
        second_look, truncate_dim, normalize = None, None, True

    return Config()


def test_what_the_likelihood_tells_is_learnt():
    decisions, right = planted(helps=True)
    mixtures = Mixtures.of(config(), decisions, torch.full((300,), 0.5), np.ones(300, dtype=np.int64))
    weights = fit_second_look(mixtures)
    assert list(weights) == list(SECOND_LOOK) and weights["mean_logp"] > 0
    kept = mixtures.weight(weights)
    assert kept[right].mean() > 0.8 and kept[~right].mean() < 0.2
    probabilities, _ = mixtures.outcomes(kept)
    assert probabilities.mean() > decisions.probabilities.max(dim=1).values.mean() - 0.02
    assert probabilities.mean() > decisions.probabilities[:, 1].mean() + 0.1


def test_the_fit_is_an_optimum_and_its_weights_are_of_the_features_as_they_are():
    """The gradient of the objective, by autograd through the model's own formula, is zero."""
    decisions, _ = planted(helps=True)
    mixtures = Mixtures.of(config(), decisions, torch.linspace(0.1, 0.9, 300), np.ones(300, dtype=np.int64))
    weights = fit_second_look(mixtures)
    values = torch.tensor([weights[name] for name in SECOND_LOOK], requires_grad=True)
    kept = (mixtures.features @ values[1:] + values[0]).sigmoid()
    torch.testing.assert_close(kept, mixtures.weight(weights))
    deviation = mixtures.features.std(dim=0, correction=0)
    deviation = deviation.where(deviation > 1e-4, 0)  # `length` is always the same, and not read
    assert (
        (deviation == 0).tolist()
        == [weights[name] == 0 for name in SECOND_LOOK[1:]]
        == [False, False, True, False, False]
    )
    loss = 1e-3 * (values[1:] * deviation).square().sum() - mixtures.outcomes(kept)[0].mean()
    loss.backward()
    assert values.grad is not None
    assert (values.grad[1:] * deviation).abs().max() < 1e-3 and values.grad[0].abs() < 1e-3


def test_pieces_are_the_whole(monkeypatch):
    decisions, _ = planted(helps=True)
    mixtures = Mixtures.of(config(), decisions, torch.full((300,), 0.5), np.ones(300, dtype=np.int64))
    weight = torch.linspace(0, 1, 300)
    monkeypatch.setattr("mmemb_r1.training.second_look.SCORES_AT_ONCE", 7 * 300)
    parts = list(mixtures.losses(weight))
    assert len(parts) == 43
    torch.testing.assert_close(-sum(parts), mixtures.outcomes(weight)[0].mean())


@pytest.mark.parametrize("holdout", [0, 0.3])
def test_only_one_that_is_worth_something_is_saved(holdout, caplog):
    for helps in (True, False):
        decisions, _ = planted(helps)
        own = config()
        kept = np.arange(300) < 300 * holdout
        facts = taught_second_look(
            own, decisions, torch.full((300, 1), 0.5), np.ones(300, dtype=np.int64), kept, np.arange(300) % 5
        )
        without, with_ = (facts["target probability"][name] for name in ("without", "with"))
        assert facts["saved"] == (with_ > without) == (own.second_look is not None)
        assert facts["judged on"] == ("held-out queries" if holdout else "5-fold cross-validation")
        if helps:
            assert facts["saved"] and with_ > without + 0.1
            assert own.second_look == facts["weights"]
    assert not facts["saved"]  # always right: nothing can be gained
    assert "The second look is not saved" in caplog.text


def test_cross_validation_is_on_queries_that_were_not_fitted_to(monkeypatch):
    decisions, _ = planted(helps=True)
    seen: list[set[int]] = []
    fit = fit_second_look
    marks = decisions._replace(inputs=torch.arange(300.0)[:, None, None])
    monkeypatch.setattr(
        "mmemb_r1.training.second_look.fit_second_look",
        lambda mixtures: seen.append(set(mixtures.decisions.inputs.flatten().int().tolist())) or fit(mixtures),
    )
    folds = np.arange(300) % 5
    taught_second_look(config(), marks, torch.full((300, 1), 0.5), np.zeros(300, dtype=np.int64), folds < 0, folds)
    assert [len(one) for one in seen] == [300, 240, 240, 240, 240, 240]
    assert all(one == set(np.flatnonzero(folds != fold)) for fold, one in enumerate(seen[1:]))


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_is_measured_is_what_the_model_reads(model, pairs, rounds):
    """Features of the fit are those of decoding: the mixture by any weights is the vector of `encode`."""
    queries, competitions = inputs_of(pairs["query"]), competitions_of(pairs)
    decisions = measure_decisions(model, queries, competitions, rounds=rounds, batch_size=8, for_second_look=True)
    own = model[0].model.config
    own.second_look = {"bias": 0.5, "mean_logp": 0.4, "least_logp": 0.1, "length": -2, "cosine": 1, "gate_logit": 0.3}
    told = model.explain(queries, reasoning="always", max_reasoning_rounds=rounds)
    probs = torch.tensor([one["gate_prob"] for one in told])
    mixtures = Mixtures.of(own, decisions, probs, np.full(len(queries), rounds))
    weight = mixtures.weight(own.second_look)
    np.testing.assert_allclose(weight, [one["second_look_weight"] for one in told], atol=1e-4)
    np.testing.assert_allclose(mixtures.vectors(weight), [one["embedding"] for one in told], atol=1e-4)
    assert weight.std() > 0.01


@pytest.mark.parametrize("rounds", [1, 2])
def test_train_gate_fits_it_and_encode_scores_as_reported(model, pairs, rounds):
    settings = GateConfig(
        holdout=0, cost=0.0, second_look=True, batch_size=8, max_reasoning_rounds=rounds, weight_decay=1e-4
    )
    facts = train_gate(model, pairs, settings)
    look, own = facts["second look"], model[0].model.config
    assert own.second_look == (look["weights"] if look["saved"] else None)
    own.second_look = look["weights"]  # on so few pairs of an untrained model it may be worth nothing
    (competition,) = competitions_of(pairs)
    candidates = torch.from_numpy(model.encode_document(competition.candidates))
    for mode in ("always", "auto"):
        vectors = torch.from_numpy(model.encode_query(inputs_of(pairs["query"]), reasoning=mode))[competition.rows]
        ranks = measuring.outcomes(competition, vectors, candidates, 0.02)[1]
        assert look[f"{mode}-second-look"] == pytest.approx(np.mean(ranks == 1))
    report = "\n".join(gate_report(facts))
    assert "with a second look     always " in report
    assert ("not saved" in report) == (not look["saved"])
    assert "5-fold cross-validation" in gate_facts(facts, "weights", pairs)["second look"]


def test_a_refit_embeds_nothing_anew(model, pairs, tmp_path, monkeypatch):
    settings = GateConfig(holdout=0.3, second_look=True, batch_size=8)
    first = train_gate(model, pairs, settings, folder=tmp_path)
    model[0].model.gate.reset()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}

    def refused(*args, **options):
        raise AssertionError("something was embedded anew")

    model[0].model.config.second_look = None
    weights = model[0].model.gate.state_dict()
    monkeypatch.setattr(measuring, "rounds_of", refused)
    monkeypatch.setattr(model, "explain", refused)
    monkeypatch.setattr(measuring, "weights_fingerprint", lambda _: json.loads(recorded)["weights"])
    recorded = (tmp_path / "embedded.json").read_text(encoding="utf-8")
    again = train_gate(model, pairs, replace(settings, cost=0.1, holdout=0), folder=tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert again["second look"]["weights"] != first["second look"]["weights"] and weights
    with pytest.raises(ValueError, match="second look"):  # measured with it: not what is wanted without
        train_gate(model, pairs, GateConfig(holdout=0.3, batch_size=8), folder=tmp_path)


def test_given_rationales_are_as_likely_as_the_model_finds_them(model, pairs):
    given = [suffix_of_ids(model[0].model.config, [20 + row % 3] * (row % 4)) for row in range(len(pairs))]
    decisions = measure_decisions(
        model, inputs_of(pairs["query"]), competitions_of(pairs), given=given, batch_size=8, for_second_look=True
    )
    lengths = torch.tensor([row % 4 for row in range(len(pairs))]) / model[0].model.config.max_reasoning_tokens
    torch.testing.assert_close(decisions.written[:, 0, 2], lengths)
    assert (decisions.written[lengths == 0] == 0).all() and (decisions.written[lengths > 0, 0, 0] < 0).all()
    assert (decisions.written[:, 0, 1] <= decisions.written[:, 0, 0]).all()


def test_another_gate_drops_it(model, pairs, caplog):
    model[0].model.config.second_look = dict.fromkeys(SECOND_LOOK, 1.0)
    with caplog.at_level(logging.WARNING):
        train_gate(model, pairs, GateConfig(holdout=0, batch_size=8))
    assert model[0].model.config.second_look is None
    assert "it is dropped" in caplog.text


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"truncate_dim": 8}, "shortens vectors"), ({"spaces": 2, "reasoning": "never"}, "two spaces")],
)
def test_models_that_can_not_have_one(thinking, pairs, fields, message):
    with pytest.raises(ValueError, match=message):
        train_gate(thinking(**fields), pairs, GateConfig(holdout=0, second_look=True))


def test_not_with_a_thinker(model, pairs):
    class Thinker:
        definition = {"kind": "says"}  # noqa: RUF012 - nobody changes it

        def think(self, inputs, max_tokens):
            raise AssertionError("it is not asked")

    model.set_thinker(Thinker())
    with pytest.raises(ValueError, match="leave the thinker out"):
        train_gate(model, pairs, GateConfig(holdout=0, second_look=True))


def test_folds_keep_equal_queries_together():
    keys = [bytes([number % 7]) for number in range(40)]
    folds = cross_validation_folds(keys, iter(range(7)))
    assert set(folds) == set(range(5))
    assert all(len({fold for fold, own in zip(folds, keys, strict=True) if own == key}) == 1 for key in set(keys))
    with pytest.raises(ValueError, match="all queries are equal"):
        cross_validation_folds([b"a", b"a"], iter([0]))

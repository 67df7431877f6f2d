from __future__ import annotations

import math

import pytest
import torch

from mmemb_r1.objective import target_probability
from mmemb_r1.training.gate import gate_loss
from mmemb_r1.training.joint.losses import PathBatch, PathTerm, PathTerms, path_terms
from mmemb_r1.training.joint.metrics import Means, batch_metrics, blame, utility_gap

ALL = torch.ones(4, dtype=torch.bool)


def term(probabilities, hit, valid=ALL):
    """A term whose queries give their targets these probabilities."""
    losses = -torch.tensor(probabilities).log()
    return PathTerm(losses, torch.full((len(losses),), 0.5), torch.tensor(hit), valid)


@pytest.fixture
def terms():
    direct = term([0.5, 0.2, 0.9, 0.1], [True, False, True, False])
    thought = torch.tensor([True, True, False, True])
    reasoned = term([0.9, 0.3, 0.01, 0.09], [True, True, False, False], thought)
    return PathTerms(
        {(8, 0, 0): direct, (8, 1, 0): reasoned, (4, 0, 0): term([0.01] * 4, [False] * 4)},
        num_negatives=torch.tensor([3, 3, 1, 1]),
        num_masked=torch.tensor([0, 1, 3, 0]),
    )


class TestMeans:
    def test_they_are_over_the_times_that_a_name_was_given(self):
        means = Means()
        means.add({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
        means.add({"a": torch.tensor(2.0, requires_grad=True)})
        means.add({"a": torch.tensor(6, dtype=torch.long)})
        assert means.take() == {"a": 3.0, "b": 4.0}
        assert means.take() == {}

    def test_what_was_taken_does_not_count_again(self):
        means = Means()
        means.add({"a": torch.tensor(1.0)})
        means.take()
        means.add({"a": torch.tensor(5.0)})
        assert means.take() == {"a": 5.0}

    def test_they_keep_no_graph(self):
        means, value = Means(), torch.tensor(1.0, requires_grad=True)
        means.add({"a": value * 2})
        means.add({"a": value * 2})
        assert not means._sums["a"].requires_grad


class TestUtilityGap:
    def test_it_is_the_difference_of_two_probabilities(self, terms):
        gap = utility_gap(terms.at[8, 0, 0], terms.at[8, 1, 0])
        assert gap[[0, 1, 3]].tolist() == pytest.approx([0.4, 0.1, -0.01])

    def test_it_is_the_one_that_the_gate_is_fitted_to(self):
        generator = torch.Generator().manual_seed(0)
        queries, targets = torch.randn(2, 5, 2, 6, generator=generator)
        queries, targets = (side / side.norm(dim=-1, keepdim=True) for side in (queries, targets))
        paths, keys = torch.ones(5, 2, dtype=torch.bool), torch.arange(15).split(5)
        queries.requires_grad_()
        batch = PathBatch(queries, paths, targets, paths, targets[:0, 0], keys[0], keys[1], keys[2][:0])
        found = path_terms(batch, [(0, 0), (1, 0)], 0.3).at
        scores = [queries[:, path] @ targets[:, 0].T for path in (0, 1)]
        direct, reasoned = (target_probability(similarities, torch.arange(5), 0.3) for similarities in scores)
        gap = utility_gap(found[6, 0, 0], found[6, 1, 0])
        torch.testing.assert_close(gap, (reasoned - direct).detach())
        assert not gap.requires_grad


class TestBatchMetrics:
    def test_the_numbers(self, terms):
        logits = torch.tensor([1.0, -1.0, 3.0, -3.0])
        found = {name: value.item() for name, value in batch_metrics(terms, logits, gate_cost=0.2).items()}
        losses = {"nce_00": [0.5, 0.2, 0.9, 0.1], "nce_10": [0.9, 0.3, 0.09]}  # of 8 dimensions, of valid rows
        expected = {
            **{name: sum(0.5 - math.log(p) for p in said) / 2 / len(said) for name, said in losses.items()},
            "negatives": 2.0,
            "masked": (0 + 1 / 4 + 3 / 4 + 0) / 4,
            "accuracy_direct": 1 / 3,  # of the three that have a thought
            "accuracy_reasoned": 2 / 3,
            "accuracy_gap": 1 / 3,
            "utility_gap": (0.4 + 0.1 - 0.01) / 3,
            "pays": 1 / 3,
            "gate_prob": sum(1 / (1 + math.exp(-logit)) for logit in logits.tolist()) / 4,
            "gate_thinks": 0.5,
            "gate_right": 1.0,
        }
        assert found == pytest.approx(expected)
        wrong = batch_metrics(terms, -logits, gate_cost=0.2)["gate_right"].item()
        assert wrong == 0.0

    def test_without_thoughts_accuracy_is_of_all_and_nothing_is_said_of_thinking(self, terms):
        found = batch_metrics(terms._replace(at={(8, 0, 0): terms.at[8, 0, 0]}), torch.zeros(4), 0.2)
        assert found["accuracy_direct"].item() == 0.5
        assert set(found) == {"nce_00", "negatives", "masked", "gate_prob", "gate_thinks", "accuracy_direct"}

    def test_queries_without_any_candidate_beside_the_target(self, terms):
        nothing = torch.zeros(4, dtype=torch.long)
        found = batch_metrics(terms._replace(num_negatives=nothing, num_masked=nothing), torch.zeros(4), 0.2)
        assert found["masked"].item() == found["negatives"].item() == 0.0

    def test_later_rounds_have_names_of_their_own(self, terms):
        more = terms._replace(at={**terms.at, (8, 2, 1): terms.at[8, 1, 0]})
        found = batch_metrics(more, torch.zeros(4), 0.2)
        assert found["nce_21"].item() == found["nce_10"].item()


def test_the_gates_loss_counts_what_is_at_stake():
    """Cross-entropy of the three whose gap is not the cost: 0.2 above it, 0.1 and 0.2 below it."""
    logits, gap = torch.tensor([2.0, 1.0, -1.0, 9.0]), torch.tensor([0.4, 0.1, 0.0, 0.2])
    losses = [math.log1p(math.exp(-2.0)), math.log1p(math.exp(1.0)), math.log1p(math.exp(-1.0))]
    expected = (0.2 * losses[0] + 0.1 * losses[1] + 0.2 * losses[2]) / 0.5
    assert gate_loss(logits, gap, cost=0.2).item() == pytest.approx(expected, rel=1e-5)


class TestBlame:
    def test_it_says_what_whose_and_what_to_do(self):
        message = str(blame("the embedding", ["the query of pair 'a'", "the query of pair 'b'"]))
        assert message.startswith(
            "the embedding is not finite for the query of pair 'a', the query of pair 'b'. Look at"
        )
        assert message.endswith(
            "lower the learning rate or raise the temperature, and go on from the last checkpoint."
        )

    def test_long_lists_are_cut(self):
        assert " for 0, 1, 2, 3, 4, 5, 6, 7 and 4 more. " in str(blame("x", [str(number) for number in range(12)]))
        assert " for 0, 1, 2, 3, 4, 5, 6, 7. " in str(blame("x", [str(number) for number in range(8)]))

    def test_nobody_here(self):
        assert str(blame("x", [])).startswith("x is not finite for rows of another process. ")

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mmemb_r1.training.losses import false_negatives, info_nce, matryoshka, path_loss, rationale_loss

EVERY = torch.ones(5, dtype=torch.bool)
NOTHING = torch.zeros(5, 5, dtype=torch.bool)


def unit(*shape, seed=0):
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_a_collapsed_encoder_pays_log_of_the_batch_size():
    assert info_nce(torch.full((5, 5), 0.7), NOTHING, EVERY).item() == pytest.approx(math.log(5))


def test_info_nce_is_the_mean_of_the_two_cross_entropies():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(5)
    expected = (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
    assert info_nce(scores, NOTHING, EVERY).item() == pytest.approx(expected.item())


def test_ignored_entries_are_no_negatives_and_the_diagonal_always_counts():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(2))
    ignore = NOTHING.clone()
    ignore[0, 1] = ignore[1, 0] = True
    smaller = scores.clone()
    smaller[0, 1] = smaller[1, 0] = -1e4
    assert info_nce(scores, ignore, EVERY).item() == pytest.approx(info_nce(smaller, NOTHING, EVERY).item())
    everything = torch.ones_like(NOTHING)
    assert info_nce(scores, everything, EVERY).item() == pytest.approx(0.0, abs=1e-6)


def test_rows_without_a_path_are_no_anchors_but_stay_negatives():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))
    valid = torch.tensor([True, True, False, True, True])
    labels = torch.arange(5)
    rows = functional.cross_entropy(scores, labels, reduction="none")
    columns = functional.cross_entropy(scores.T, labels, reduction="none")
    expected = ((rows + columns) / 2)[valid].mean()
    assert info_nce(scores, NOTHING, valid).item() == pytest.approx(expected.item())
    assert info_nce(scores, NOTHING, ~EVERY).item() == 0.0


def test_false_negatives_in_both_directions():
    mask = false_negatives(torch.tensor([0, 1, 0]), torch.tensor([7, 8, 9]))
    assert mask.tolist() == [[True, False, True], [False, True, False], [True, False, True]]


def test_path_loss_is_the_weighted_sum_of_its_terms():
    queries, targets = unit(5, 2, 8), unit(5, 2, 8, seed=1)
    paths = torch.ones(5, 2, dtype=torch.bool)
    weights = {(0, 0): 1.0, (1, 0): 0.5, (0, 1): 0.0, (1, 1): 2.0}
    total, terms = path_loss(queries, paths, targets, paths, NOTHING, weights, temperature=0.1)
    assert set(terms) == {"nce_00", "nce_10", "nce_11"}
    assert total.item() == pytest.approx((terms["nce_00"] + 0.5 * terms["nce_10"] + 2 * terms["nce_11"]).item())
    assert terms["nce_10"].item() == pytest.approx(
        info_nce(queries[:, 1] @ targets[:, 0].T / 0.1, NOTHING, EVERY).item()
    )


def test_a_row_without_a_reasoned_vector_takes_part_with_its_direct_one():
    queries, targets = unit(5, 2, 8), unit(5, 1, 8, seed=1)
    paths = torch.ones(5, 2, dtype=torch.bool)
    paths[2, 1] = False
    direct_only = torch.ones(5, 1, dtype=torch.bool)
    _, terms = path_loss(queries, paths, targets, direct_only, NOTHING, {(1, 0): 1.0, (1, 1): 1.0}, temperature=0.1)
    assert set(terms) == {"nce_10"}  # targets have no path 1
    mixed = queries[:, 1].clone()
    mixed[2] = queries[2, 0]
    expected = info_nce(mixed @ targets[:, 0].T / 0.1, NOTHING, paths[:, 1])
    assert terms["nce_10"].item() == pytest.approx(expected.item())


def test_no_valid_row_means_no_term_and_a_finite_gradient():
    queries = unit(5, 2, 8).requires_grad_()
    paths = torch.tensor([[True, False]] * 5)
    weights = {(0, 0): 1.0, (1, 0): 1.0}
    total, terms = path_loss(queries, paths, unit(5, 1, 8, seed=1), paths[:, :1], NOTHING, weights, temperature=0.02)
    total.backward()
    assert set(terms) == {"nce_00"}
    assert queries.grad.isfinite().all()
    assert (queries.grad[:, 1] == 0).all()


def test_rationale_loss_is_the_weighted_mean():
    logps = torch.tensor([-1.0, -2.0, -4.0])
    assert rationale_loss(logps).item() == pytest.approx(7 / 3)
    assert rationale_loss(logps, torch.tensor([1.0, 0.0, 1.0])).item() == pytest.approx(2.5)
    assert rationale_loss(torch.zeros(0)).item() == 0.0


def test_matryoshka_cuts_and_normalises():
    cut = matryoshka(unit(3, 2, 8), 4)
    assert cut.shape == (3, 2, 4)
    assert torch.allclose(cut.norm(dim=-1), torch.ones(3, 2))

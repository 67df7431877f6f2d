from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from mmemb_r1.training.joint.losses import (
    PathBatch,
    cross_entropy,
    ignored,
    matryoshka,
    mean_where,
    path_terms,
    rationale_loss,
)

ALL_PATHS = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (2, 1)]


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def batch(size=7, num_negatives=4, seed=0, distinct=False, **changes):
    """Queries with up to two rationales, targets with up to one; some queries and targets are there twice, and one
    negative is a target. With `distinct=True` nothing is."""
    query_keys, target_keys = torch.arange(size), 100 + torch.arange(size)
    negative_keys = 200 + torch.arange(num_negatives)
    if not distinct:
        query_keys[3], target_keys[5] = query_keys[1], target_keys[0]
        negative_keys[2] = target_keys[4]
    query_paths = torch.ones(size, 3, dtype=torch.bool)
    query_paths[2, 1:] = query_paths[-1, 2] = query_paths[0, 2] = False
    target_paths = torch.ones(size, 2, dtype=torch.bool)
    target_paths[1, 1] = target_paths[2, 1] = False
    given = PathBatch(
        queries=unit(size, 3, 6, seed=seed).requires_grad_(),
        query_paths=query_paths,
        targets=unit(size, 2, 6, seed=seed + 1).requires_grad_(),
        target_paths=target_paths,
        negatives=unit(num_negatives, 6, seed=seed + 2).requires_grad_(),
        query_keys=query_keys,
        target_keys=target_keys,
        negative_keys=negative_keys,
    )
    return given._replace(**changes)


def plain(queries, targets, negatives=None):
    """A batch of direct vectors alone, everything distinct."""
    paths, size = torch.ones(len(queries), 1, dtype=torch.bool), len(queries)
    negatives = queries[:0] if negatives is None else negatives
    keys = torch.arange(2 * size + len(negatives)).split([size, size, len(negatives)])
    return PathBatch(queries[:, None], paths, targets[:, None], paths, negatives, *keys)


def naive(given, dim, a, b, temperature, margin=None):
    """The definition of one term, a number at a time: per row both losses, the hit, negatives and masked ones."""
    size, num_negatives = len(given.queries), len(given.negatives)
    keys = [*given.target_keys.tolist(), *given.negative_keys.tolist()]

    def query(row, path):
        return given.queries[row, path if given.query_paths[row, path] else 0]

    def candidate(row, path):
        if row >= size:
            return given.negatives[row - size]
        return given.targets[row, path if given.target_paths[row, path] else 0]

    def score(i, j, a, b, dim):
        one, other = query(i, a)[:dim], candidate(j, b)[:dim]
        return one @ other / one.norm() / other.norm()

    def too_high(i, j, row):
        full = given.queries.shape[-1]
        return margin is not None and bool(score(i, j, 0, 0, full) > score(row, row, 0, 0, full) + margin)

    result = []
    for row in range(size):
        own = (score(row, row, a, b, dim) / temperature).exp()
        forward, backward, counted, masked, hit = own, own, 0, 0, True
        for j in range(size + num_negatives):
            same = (j < size and given.query_keys[j] == given.query_keys[row]) or keys[j] == keys[row]
            if j == row or same:
                continue
            if too_high(row, j, row):
                masked += 1
            else:
                value = (score(row, j, a, b, dim) / temperature).exp()
                forward, counted, hit = forward + value, counted + 1, hit and bool(own > value)
            if j < size and not too_high(j, row, row):
                backward = backward + (score(j, row, a, b, dim) / temperature).exp()
        valid = bool(given.query_paths[row, a] and given.target_paths[row, b])
        result.append(((forward / own).log(), (backward / own).log(), hit, counted, masked, valid))
    return result


def gradients(loss, given):
    return torch.autograd.grad(loss, [given.queries, given.targets, given.negatives])


@pytest.mark.parametrize("margin", [None, 0.1])
@pytest.mark.parametrize("dims", [None, [6, 3]])
def test_terms_and_gradients_are_those_of_the_definition(margin, dims):
    given = batch()
    terms = path_terms(given, ALL_PATHS, 0.2, dims, margin)
    assert set(terms.at) == {(dim, a, b) for dim in dims or [6] for a, b in ALL_PATHS}
    total, expected_total = 0.0, 0.0
    for number, ((dim, a, b), term) in enumerate(terms.at.items(), start=1):
        to_target, to_query, hit, counted, masked, valid = zip(*naive(given, dim, a, b, 0.2, margin), strict=True)
        assert term.valid.tolist() == list(valid) and 0 < sum(valid) < 7 or (a, b) == (0, 0)
        torch.testing.assert_close(term.query_to_target, torch.stack(to_target), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(term.target_to_query, torch.stack(to_query), rtol=1e-12, atol=1e-12)
        assert term.hit.tolist() == list(hit)
        assert (terms.num_negatives.tolist(), terms.num_masked.tolist()) == (list(counted), list(masked))
        rows = [row for row in range(7) if valid[row]]
        expected = sum(to_target[row] + to_query[row] for row in rows) / 2 / len(rows)
        assert term.loss.item() == pytest.approx(expected.item(), rel=1e-12)
        total, expected_total = total + number * term.loss, expected_total + number * expected
    assert (terms.num_masked.sum() > 3) == (margin is not None)
    for ours, theirs in zip(gradients(total, given), gradients(expected_total, given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 7])
def test_rows_at_a_time_change_neither_loss_nor_gradient(chunk_size):
    def run(size):
        given = batch(seed=3)
        terms = path_terms(given, ALL_PATHS, 0.05, [6, 4], 0.1, chunk_size=size)
        loss = sum(number * term.loss for number, term in enumerate(terms.at.values(), start=1))
        hits = torch.stack([term.hit for term in terms.at.values()])
        return loss, *gradients(loss, given), hits, terms.num_negatives, terms.num_masked

    for ours, theirs in zip(run(chunk_size), run(100), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_gradient_nothing_is_computed_twice(monkeypatch):
    calls = []

    def counted(*args):
        calls.append(args)
        return cross_entropy(*args)

    monkeypatch.setattr("mmemb_r1.training.joint.losses.cross_entropy", counted)
    given = batch()
    with torch.no_grad():
        path_terms(given, [(0, 0)], 0.1, chunk_size=3)
    assert len(calls) == 2 * 3  # two directions, three times
    path_terms(given, [(0, 0)], 0.1, chunk_size=3).at[6, 0, 0].loss.backward()
    assert len(calls) == 3 * 2 * 3
    path_terms(given, [(0, 0)], 0.1, chunk_size=7).at[6, 0, 0].loss.backward()
    assert len(calls) == 3 * 2 * 3 + 2


@pytest.mark.parametrize("chunk_size", [3, 7])
def test_in_one_direction_targets_look_for_nothing(chunk_size):
    given = batch()
    terms = path_terms(given, ALL_PATHS, 0.2, None, 0.1, chunk_size, symmetric=False)
    total, expected_total = 0.0, 0.0
    for (dim, a, b), term in terms.at.items():
        to_target, _, hit, _, _, valid = zip(*naive(given, dim, a, b, 0.2, 0.1), strict=True)
        assert term.target_to_query is None and term.hit.tolist() == list(hit)
        expected = torch.stack(to_target)[list(valid)].mean()
        assert term.loss.item() == pytest.approx(expected.item(), rel=1e-12)
        total, expected_total = total + term.loss, expected_total + expected
    for ours, theirs in zip(gradients(total, given), gradients(expected_total, given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class TestOneSidedReasoning:
    def test_the_direct_vector_stands_for_a_rationale_that_is_missing(self):
        given = batch()
        given.query_paths[4, 1:] = False  # a rationale of the target alone; rows 1 and 2 have none of the target
        usual, more = (path_terms(given, ALL_PATHS, 0.2, one_sided=wanted) for wanted in (False, True))
        both = usual.at[6, 1, 1].valid
        assert both.tolist() == [True, False, False, True, False, True, True]
        assert more.at[6, 1, 1].valid.tolist() == [True, True, False, True, True, True, True]
        # one rationale is no second one, and is not replaced by a direct vector
        assert usual.at[6, 2, 1].valid.tolist() == [False, False, False, True, False, True, False]
        assert more.at[6, 2, 1].valid.tolist() == [False, True, False, True, True, True, False]
        for pair in ((0, 0), (1, 0), (0, 1), (2, 0)):
            assert torch.equal(more.at[6, *pair].valid, usual.at[6, *pair].valid)
        to_target, to_query, *_ = zip(*naive(given, 6, 1, 1, 0.2), strict=True)
        rows = [row for row in range(7) if row != 2]
        expected = sum(to_target[row] + to_query[row] for row in rows) / 2 / len(rows)
        assert more.at[6, 1, 1].loss.item() == pytest.approx(expected.item(), rel=1e-12)
        direct = functional.cosine_similarity(given.queries[4, 0], given.targets[4, 1], dim=0)
        assert not torch.isclose(direct, functional.cosine_similarity(given.queries[4, 1], given.targets[4, 1], dim=0))

    def test_a_batch_whose_targets_have_none_has_anchors_too(self):
        given = batch()
        given = given._replace(targets=given.targets[:, :1], target_paths=given.target_paths[:, :1])
        assert (6, 1, 1) not in path_terms(given, ALL_PATHS, 0.2).at
        terms = path_terms(given, ALL_PATHS, 0.2, one_sided=True).at
        assert torch.equal(terms[6, 1, 1].valid, given.query_paths[:, 1])
        torch.testing.assert_close(terms[6, 1, 1].losses, terms[6, 1, 0].losses)


def test_a_collapsed_encoder_pays_the_log_of_what_it_chooses_among():
    same = unit(1, 6).expand(5, 6)
    term = path_terms(plain(same, same, same[:3]), [(0, 0)], 0.02).at[6, 0, 0]
    assert term.query_to_target.tolist() == pytest.approx([math.log(8)] * 5)
    assert term.target_to_query.tolist() == pytest.approx([math.log(5)] * 5)
    assert term.loss.item() == pytest.approx((math.log(8) + math.log(5)) / 2)


def test_the_loss_is_the_mean_of_the_two_cross_entropies():
    queries, targets, labels = unit(5, 6), unit(5, 6, seed=1), torch.arange(5)
    scores = queries @ targets.T / 0.1
    expected = (functional.cross_entropy(scores, labels) + functional.cross_entropy(scores.T, labels)) / 2
    assert path_terms(plain(queries, targets), [(0, 0)], 0.1).at[6, 0, 0].loss.item() == pytest.approx(expected.item())


def test_ties_are_no_hit():
    axes = torch.eye(3, dtype=torch.float64)
    assert path_terms(plain(axes, axes), [(0, 0)], 1.0).at[3, 0, 0].hit.tolist() == [True] * 3
    with_its_equal = path_terms(plain(axes, axes, axes[:1]), [(0, 0)], 1.0).at[3, 0, 0]
    assert with_its_equal.hit.tolist() == [False, True, True]
    same = axes[:1].expand(3, 3)
    assert not path_terms(plain(same, same), [(0, 0)], 1.0).at[3, 0, 0].hit.any()


def test_same_queries_and_same_targets_are_ignored_in_both_directions():
    given = batch(4, 2, distinct=True)
    given = given._replace(
        query_keys=torch.tensor([0, 1, 0, 2]),
        target_keys=torch.tensor([7, 8, 9, 8]),
        negative_keys=torch.tensor([9, 5]),
    )
    for_queries, for_targets, masked = ignored(given, slice(0, 4))
    assert for_queries.int().tolist() == [
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    assert for_targets.int().tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]
    assert masked.tolist() == [0] * 4
    later = ignored(given, slice(2, 4))
    assert torch.equal(later[0], for_queries[2:]) and torch.equal(later[1], for_targets[2:])


def test_the_own_target_always_counts():
    one = batch(3, 0, distinct=True)
    one = one._replace(query_keys=torch.zeros(3, dtype=torch.long))
    terms = path_terms(one, [(0, 0)], 0.1, score_mask_margin=-2.0)
    assert terms.at[6, 0, 0].loss.item() == pytest.approx(0.0, abs=1e-12)
    assert terms.num_negatives.tolist() == [0] * 3


def test_the_score_mask_is_taken_from_direct_vectors_and_shared():
    given = batch(distinct=True)
    masks = [ignored(given, slice(0, 7), 0.1)]
    shaken = given._replace(
        queries=torch.cat([given.queries[:, :1], -given.queries[:, 1:]], dim=1),
        targets=torch.cat([given.targets[:, :1], -given.targets[:, 1:]], dim=1),
    )
    masks.append(ignored(shaken, slice(0, 7), 0.1))
    assert all(torch.equal(one, other) for one, other in zip(*masks, strict=True))
    for_queries, for_targets, masked = masks[0]
    assert masked.sum() == for_queries.sum() > 0 and for_targets.any()
    assert not any(mask.requires_grad for mask in masks[0])
    direct = given.queries[:, 0] @ torch.cat([given.targets[:, 0], given.negatives]).T
    assert torch.equal(for_queries, direct > direct.diagonal()[:, None] + 0.1)
    assert torch.equal(for_targets, direct[:, :7].T > direct.diagonal()[:, None] + 0.1)


def test_negatives_are_counted_by_query():
    given = batch(4, 2, distinct=True)._replace(query_keys=torch.tensor([0, 1, 0, 2]))
    assert path_terms(given, [(0, 0)], 0.1).num_negatives.tolist() == [4, 5, 4, 5]
    queries, targets = torch.eye(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64).roll(1, 0)
    terms = path_terms(plain(queries, targets), [(0, 0)], 0.1, score_mask_margin=0.5)
    assert (terms.num_negatives.tolist(), terms.num_masked.tolist()) == ([1] * 3, [1] * 3)


def test_a_row_without_a_path_is_no_anchor_but_a_negative_with_its_direct_vector():
    given = batch(5, 0, distinct=True)
    mixed = given.queries[:, 1].clone()
    mixed[2] = given.queries[2, 0]
    expected = path_terms(plain(mixed, given.targets[:, 0]), [(0, 0)], 0.1).at[6, 0, 0]
    term = path_terms(given, [(1, 0)], 0.1).at[6, 1, 0]
    torch.testing.assert_close(term.query_to_target, expected.query_to_target)
    assert term.valid.tolist() == [True, True, False, True, True]
    rows = (expected.query_to_target + expected.target_to_query) / 2
    assert term.loss.item() == pytest.approx(rows[[0, 1, 3, 4]].mean().item())


@pytest.mark.parametrize("garbage", [0.0, math.inf])
def test_paths_that_no_row_has_give_no_term_and_a_finite_gradient(garbage):
    nowhere = torch.tensor([[True, False, False]] * 7)
    filled = unit(7, 3, 6)
    filled[:, 1:] = garbage
    given = batch(queries=filled.requires_grad_(), query_paths=nowhere)
    terms = path_terms(given, [*ALL_PATHS, (5, 0), (0, 7)], 0.02)
    assert set(terms.at) == {(6, 0, 0), (6, 0, 1)}
    sum(term.loss for term in terms.at.values()).backward()
    assert given.queries.grad.isfinite().all()
    assert (given.queries.grad[:, 1:] == 0).all() and (given.queries.grad[:, 0] != 0).any()


def test_matryoshka_cuts_and_normalises():
    cut = matryoshka(unit(3, 2, 8), 4)
    assert cut.shape == (3, 2, 4)
    assert torch.allclose(cut.norm(dim=-1), torch.ones(3, 2, dtype=torch.float64))


def test_a_mean_over_nothing_is_zero_with_a_gradient_of_zero():
    values = torch.tensor([1.0, math.inf], requires_grad=True)
    mean = mean_where(values, torch.tensor([False, False]))
    mean.backward()
    assert mean.item() == 0.0 and values.grad.tolist() == [0.0, 0.0]
    assert mean_where(values, torch.tensor([True, False])).item() == 1.0


def test_rationale_loss_is_a_share_of_the_weighted_mean():
    logps = torch.tensor([-1.0, -2.0, -4.0])
    assert rationale_loss(logps, torch.ones(3), 3.0).item() == pytest.approx(7 / 3)
    weights = torch.tensor([1.0, 0.0, 0.5])
    assert rationale_loss(logps, weights, 1.5).item() == pytest.approx((1 + 2) / 1.5)
    parts = [rationale_loss(logps[part], weights[part], 1.5) for part in (slice(0, 1), slice(1, 3))]
    assert sum(parts).item() == pytest.approx(2.0)
    assert rationale_loss(torch.zeros(0), torch.zeros(0), 1.0).item() == 0.0

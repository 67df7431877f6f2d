from __future__ import annotations

import pytest
import torch
from PIL import Image

from mmemb_r1 import MMEmbR1
from mmemb_r1.training.targets import TargetScorer, embed_directly


@pytest.fixture
def pairs(make_pairs):
    return make_pairs(
        [
            {"query": {"text": "a"}, "target": {"text": "red"}, "task": "x", "negatives": [{"text": "gray"}]},
            {"query": {"text": "b"}, "target": {"text": "blue"}, "task": "x"},
            {"query": {"text": "a"}, "target": {"text": "green"}, "task": "x"},  # another right one of the first query
            {"query": {"text": "c"}, "target": {"text": "white"}, "task": "y"},
            {"query": {"text": "d"}, "target": {"text": "red"}, "task": "y"},
        ]
    )


def by_hand(vector, model, processor, texts, temperature):
    vectors = embed_directly(model, processor, [{"text": text} for text in texts])
    return (vector @ vectors.T / temperature).log_softmax(dim=0)[0]


def test_the_probability_of_the_target_among_its_own_candidates(pairs, vivid, processor):
    vivid.eval()
    scorer = TargetScorer(pairs, temperature=0.1)
    scorer.embed(vivid, processor, batch_size=2)
    vectors = embed_directly(vivid, processor, [{"text": "say red"}, {"text": "color"}, {"text": "sky"}])
    found = scorer.log_probability(torch.tensor([0, 1, 3]), vectors)
    candidates = [["red", "blue", "gray"], ["blue", "red", "green"], ["white", "red"]]
    for row, texts in enumerate(candidates):
        expected = by_hand(vectors[row], vivid, processor, texts, 0.1)
        assert found[row].item() == pytest.approx(expected.item(), rel=1e-4)


def test_targets_of_another_table_are_negatives_too(pairs, make_pairs, vivid, processor):
    more = make_pairs([{"query": {"text": "e"}, "target": {"text": text}, "task": "y"} for text in ("sky", "white")])
    scorer = TargetScorer(pairs, more, temperature=0.1)
    scorer.embed(vivid.eval(), processor)
    vectors = embed_directly(vivid, processor, [{"text": "say red"}])
    found = scorer.log_probability(torch.tensor([3]), vectors)
    assert found.item() == pytest.approx(
        by_hand(vectors[0], vivid, processor, ["white", "red", "sky"], 0.1).item(), rel=1e-4
    )


def test_each_distinct_target_is_embedded_once(pairs):
    assert sorted(value["text"] for value in TargetScorer(pairs).inputs) == [
        "blue",
        "gray",
        "green",
        "red",
        "white",
    ]


def test_gradients_reach_the_vectors_but_not_the_candidates(pairs, vivid, processor):
    scorer = TargetScorer(pairs)
    scorer.embed(vivid, processor)
    vectors = torch.nn.functional.normalize(torch.randn(2, 32), dim=1).requires_grad_()
    scorer.log_probability(torch.tensor([0, 0]), vectors).sum().backward()
    assert vectors.grad.abs().sum() > 0 and not scorer._vectors.requires_grad


def test_direct_embeddings_are_those_of_encode(vivid, processor):
    inputs = [{"text": "say red"}, {"text": "a longer one, blue and white"}]
    expected = MMEmbR1.from_model(vivid.eval(), processor).encode(inputs, reasoning="never")
    torch.testing.assert_close(
        embed_directly(vivid, processor, inputs), torch.from_numpy(expected), rtol=1e-4, atol=1e-5
    )


def test_a_pair_without_negatives_is_refused(make_pairs):
    table = make_pairs([{"query": {"text": "a"}, "target": {"text": "red"}, "task": task} for task in ("x", "y")])
    with pytest.raises(ValueError, match="row 0 of the pairs table.*has no negative: its task 'x'"):
        TargetScorer(table)


def test_candidates_have_to_be_embedded_first(pairs):
    with pytest.raises(ValueError, match="call embed first"):
        TargetScorer(pairs).log_probability(torch.tensor([0]), torch.ones(1, 32))


def test_a_target_is_no_negative_of_its_own_pair(make_pairs):
    """Also where the table stores pictures, which are decoded when a row is read."""
    red, blue = ({"image": [image]} for image in (Image.new("RGB", (8, 8), name) for name in ("red", "blue")))
    rows = [
        {"query": {"text": "a"}, "target": red, "task": "x", "negatives": [red, blue]},
        {"query": {"text": "b"}, "target": {"text": "b"}, "task": "y", "negatives": [blue]},
    ]
    scorer = TargetScorer(make_pairs(rows))
    assert len(scorer.inputs) == 3
    assert [len(own) for own in scorer._own] == [1, 1]

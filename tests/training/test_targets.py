from __future__ import annotations

from collections import Counter

import pytest
import torch
from PIL import Image

from mmemb_r1 import MMEmbR1
from mmemb_r1.training import targets
from mmemb_r1.training.candidates import POOL, TargetCandidates
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
    candidates = TargetScorer(pairs).candidates
    assert sorted(candidates[number]["text"] for number in range(len(candidates))) == [
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
    candidates = TargetScorer(make_pairs(rows)).candidates
    assert len(candidates) == 3
    assert [len(candidates.of(row)) for row in range(2)] == [2, 2]  # the target and one negative


class TestSampledCandidates:
    @pytest.fixture
    def many(self, make_pairs):
        """A maker of tables of n pairs of one task, with one hard negative each."""
        return lambda number: make_pairs(
            [
                {"query": {"text": f"q {n}"}, "target": {"text": f"t {n}"}, "negatives": [{"text": f"hard {n}"}]}
                for n in range(number)
            ]
        )

    @staticmethod
    def texts(candidates, row):
        return [candidates[number]["text"] for number in candidates.of(row)]

    def test_there_are_as_many_whatever_the_size_of_the_table(self, many):
        for size in (12, 40, 300):
            candidates = TargetCandidates(many(size), number=8)
            for row in (0, 5):
                found = self.texts(candidates, row)
                assert found[:2] == [f"t {row}", f"hard {row}"]
                assert len(found) == len(set(found)) == 2 + 8
                assert set(found[2:]) <= {f"t {n}" for n in range(size)} - {f"t {row}"}

    def test_they_follow_from_the_seed_and_the_query_alone(self, many):
        table = many(40)
        turned = table.select(range(39, -1, -1))
        first, again, other = (
            TargetCandidates(table, number=8),
            TargetCandidates(turned, number=8),
            TargetCandidates(table, None, 8, 1),
        )
        assert self.texts(first, 3) == self.texts(again, 36)
        assert set(self.texts(first, 3)) != set(self.texts(other, 3))
        assert set(self.texts(first, 3)[2:]) != set(self.texts(first, 4)[2:])

    def test_all_targets_are_drawn_about_as_often(self, many):
        candidates = TargetCandidates(many(60), number=20)
        counts = Counter(text for row in range(60) for text in self.texts(candidates, row)[2:])
        assert len(counts) == 60 and max(counts.values()) < 3 * min(counts.values())

    def test_what_is_ever_embedded_of_a_task_is_bounded(self, many):
        candidates = TargetCandidates(many(100), number=2)
        drawn = {text for row in range(100) for text in self.texts(candidates, row)[2:]}
        assert 0 < len(drawn) <= 2 * POOL < 100

    def test_right_answers_of_the_other_table_are_no_negatives(self, make_pairs):
        pairs = make_pairs(
            [
                {"query": {"text": "a bird"}, "target": {"text": "sparrow"}},
                {"query": {"text": "a fish"}, "target": {"text": "trout"}},
            ]
        )
        joint = make_pairs(
            [
                {"query": {"text": "a bird"}, "target": {"text": "robin"}},
                {"query": {"text": "a tree"}, "target": {"text": "oak"}},
            ]
        )
        candidates = TargetCandidates(pairs, joint)
        assert self.texts(candidates, 0) == ["sparrow", "trout", "oak"]
        assert self.texts(candidates, 1) == ["trout", "sparrow", "robin", "oak"]

    def test_pictures_are_compared_by_content(self, make_pairs):
        """A hard negative that is a right answer of the same query elsewhere is none, and equal pictures are one."""
        shown = {name: {"image": [Image.new("RGB", (8, 8), name)]} for name in ("red", "blue", "green")}
        rows = [
            {
                "query": {"text": f"show {name}"},
                "target": shown[name],
                "negatives": [shown[n] for n in shown if n != name],
            }
            for name in shown
        ]
        rows.append({"query": {"text": "show red"}, "target": shown["blue"], "negatives": []})
        candidates = TargetCandidates(make_pairs(rows))
        assert len(candidates) == 3
        assert [len(candidates.of(row)) for row in range(4)] == [2, 3, 3, 2]

    def test_only_what_rows_need_is_embedded_and_once(self, many, vivid, processor, monkeypatch):
        read = spy_on_inputs(monkeypatch)
        scorer = TargetScorer(many(40), num_candidates=4)
        scorer.embed(vivid.eval(), processor, torch.tensor([0, 0, 7]))
        assert len(read) == len(set(read)) == len({*scorer.candidates.of(0), *scorer.candidates.of(7)})
        scorer.embed(vivid, processor, torch.tensor([7]))
        assert len(read) == len(set(read))
        with pytest.raises(ValueError, match="row 1 are not embedded yet"):
            scorer.log_probability(torch.tensor([1]), torch.ones(1, 32))

    def test_a_run_that_goes_on_reads_them_from_disk(self, many, vivid, processor, tmp_path, monkeypatch):
        vectors = torch.nn.functional.normalize(torch.randn(1, 32), dim=1)

        def scored(fingerprint):
            scorer = TargetScorer(many(40), num_candidates=4)
            scorer.keep_in(tmp_path, fingerprint)
            scorer.embed(vivid.eval(), processor, torch.tensor([3]))
            return scorer.log_probability(torch.tensor([3]), vectors)

        first, read = scored("a"), spy_on_inputs(monkeypatch)
        assert torch.equal(scored("a"), first) and not read
        scored("another model")
        assert len(read) == 6

    def test_what_the_backward_pass_keeps_does_not_grow_with_the_table(self, many):
        kept = {}
        for size in (40, 400):
            scorer = TargetScorer(many(size), num_candidates=16)
            scorer._vectors = torch.randn(len(scorer.candidates), 32)
            scorer._slots[:] = range(len(scorer.candidates))
            sizes = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: s.append(x.numel()) or x, lambda x: x):
                scorer.log_probability(torch.tensor([0, 1]), torch.randn(2, 32, requires_grad=True))
            kept[size] = sum(sizes)
        assert kept[40] == kept[400] > 0


def spy_on_inputs(monkeypatch):
    """The texts that are embedded from now on."""
    read, original = [], targets.to_conversations

    def watched(inputs, **options):
        read.extend(value["text"] for value in inputs)
        return original(inputs, **options)

    monkeypatch.setattr(targets, "to_conversations", watched)
    return read


def test_measures_of_how_near_a_target_is(pairs, vivid, processor):
    scorer = TargetScorer(pairs, temperature=0.1)
    scorer.embed(vivid.eval(), processor)
    vectors = embed_directly(vivid, processor, [{"text": "red"}, {"text": "blue"}])
    found = scorer.measures(torch.tensor([0, 0]), vectors)
    red, blue, gray = embed_directly(vivid, processor, [{"text": text} for text in ("red", "blue", "gray")])
    assert found["target_cosine"].tolist() == pytest.approx([1.0, float(red @ blue)], abs=1e-5)
    margins = [1 - max(float(red @ blue), float(red @ gray)), float(red @ blue) - 1]
    assert found["target_margin"].tolist() == pytest.approx(margins, abs=1e-5)
    assert found["target_rank"].tolist() == [1, 2 + (float(blue @ gray) >= float(blue @ red))]
    expected = scorer.log_probability(torch.tensor([0, 0]), vectors).exp()
    assert torch.equal(found["target_probability"], expected)

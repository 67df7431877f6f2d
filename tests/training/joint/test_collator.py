from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from mmemb_r1.atlas.pictures import augment
from mmemb_r1.content import content_key
from mmemb_r1.modeling.configuration_mmemb_r1 import MMEmbR1Config
from mmemb_r1.training.augment import augmented
from mmemb_r1.training.joint.collator import IGNORED, JointCollator, append_rationales
from mmemb_r1.training.joint.forward import encode, in_order


@pytest.fixture(scope="session")
def collator(tiny):
    """`collator(**options)`."""
    return lambda **options: JointCollator(tiny[1], tiny[0].config, **options)


@pytest.fixture(scope="session")
def examples(visit, rows):
    return visit(rows)


def column(chunk, name):
    return chunk["features"][name]


def counted(side, token_id):
    """How often a token is in each input of a side."""
    counts = torch.cat([(column(chunk, "input_ids") == token_id).sum(dim=1) for chunk in side["chunks"]])
    return counts[side["order"]].tolist()


@torch.no_grad()
def encoded(model, side):
    vectors, logps = zip(*(encode(model, chunk) for chunk in side["chunks"]), strict=True)
    joined = in_order(side, list(vectors))
    weights = torch.cat([chunk["token_weights"] for chunk in side["chunks"]])
    return joined.embeddings * joined.path_mask[..., None], torch.cat(logps) @ weights, weights.sum()


CONTROLS = MMEmbR1Config(embed_token_id=9, think_token_id=20, end_think_token_id=21)


class TestThoughts:
    def test_they_follow_the_prompt_without_gaps_and_only_rationales_are_labelled(self):
        batch = {
            "input_ids": torch.tensor([[0, 5, 9], [6, 7, 9]]),
            "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
            "mm_token_type_ids": torch.tensor([[0, 1, 0], [0, 1, 0]]),
            "pixel_values": torch.ones(7, 2),
        }
        result = append_rationales(batch, [[[20, 31, 32, 21, 9]], []], CONTROLS, pad_token_id=3)
        assert result["input_ids"].tolist() == [[5, 9, 20, 31, 32, 21, 9], [6, 7, 9, 3, 3, 3, 3]]
        assert result["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
        assert result["mm_token_type_ids"].tolist() == [[1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0]]
        assert result["labels"].tolist() == [[IGNORED] * 3 + [31, 32, 21, IGNORED], [IGNORED] * 7]
        assert result["pixel_values"] is batch["pixel_values"]

    def test_every_round_is_labelled_between_its_markers(self):
        batch = {"input_ids": torch.tensor([[5, 9]]), "attention_mask": torch.tensor([[1, 1]])}
        result = append_rationales(batch, [[[20, 31, 21, 9], [20, 32, 33, 21, 9]]], CONTROLS, pad_token_id=3)
        assert result["input_ids"].tolist() == [[5, 9, 20, 31, 21, 9, 20, 32, 33, 21, 9]]
        no = IGNORED
        assert result["labels"].tolist() == [[no, no, no, 31, 21, no, no, 32, 33, 21, no]]

    def test_each_row_holds_one_marker_or_two(self, collator, tiny, examples):
        config, side = tiny[0].config, collator()(examples)["query"]
        thinks = [1 if example["query_rationale"] else 0 for example in examples]
        assert counted(side, config.think_token_id) == counted(side, config.end_think_token_id) == thinks
        assert counted(side, config.embed_token_id) == [1 + number for number in thinks]
        (chunk,) = side["chunks"]
        labelled = column(chunk, "labels")[column(chunk, "labels") != IGNORED]
        assert (labelled == config.end_think_token_id).sum() == sum(thinks)
        assert not set(labelled.tolist()) & {config.embed_token_id, config.think_token_id}
        rows = chunk["token_rows"].unique().tolist()
        assert rows == [row for row, number in enumerate(thinks) if number]

    @pytest.mark.parametrize("rounds", [1, 2, 3])
    def test_segments_are_rounds_of_their_own_and_what_is_left_goes_into_the_last(self, collator, tiny, visit, rounds):
        from datasets import Dataset

        said = [[], ["one."], ["one.", "two."], ["one.", "two.", "three."]]
        table = Dataset.from_list(
            [{"query": {"text": "?"}, "target": {"text": "!"}, "query_rationale": s} for s in said]
        )
        side = collator(max_reasoning_rounds=rounds)(visit(table, range(len(said))))["query"]
        config, (chunk,) = tiny[0].config, side["chunks"]
        assert counted(side, config.embed_token_id) == [1 + min(rounds, number) for number in range(4)]
        ids, labels = column(chunk, "input_ids")[side["order"]], column(chunk, "labels")[side["order"]]
        for number, segments in enumerate(said):
            keep = labels[number] != IGNORED
            texts = tiny[1].tokenizer.decode(labels[number][keep]).split("</think>")[:-1]
            last = rounds - 1
            wanted = [*segments[:last], " ".join(segments[last:])] if len(segments) > last else segments
            assert [text.strip() for text in texts] == [text for text in wanted if text]
            assert torch.equal(ids[number][keep], labels[number][keep])

    def test_without_rationales_there_is_only_the_prompt(self, collator, tiny, examples):
        side = collator(use_rationales=False)(examples)["query"]
        assert set(counted(side, tiny[0].config.embed_token_id)) == {1}
        assert all((column(chunk, "labels") == IGNORED).all() for chunk in side["chunks"])
        assert all(len(chunk["token_weights"]) == len(chunk["token_rows"]) == 0 for chunk in side["chunks"])

    def test_one_over_the_limit_is_refused_in_any_round(self, collator, visit, mixed):
        with pytest.raises(
            ValueError, match="A rationale has .* tokens; allowed: max_rationale_tokens=2. Raise the lim"
        ):
            collator(max_rationale_tokens=2)(visit(mixed, [0]))
        example = {**visit(mixed, [0])[0], "query_rationale": ["no", "It is red, and nothing but red."]}
        with pytest.raises(ValueError, match="It begins: 'It is red, and"):
            collator(max_rationale_tokens=4, max_reasoning_rounds=2)([example])

    def test_control_strings_are_plain_text(self, collator, tiny, examples):
        example = {**examples[12], "query_rationale": ["say <|embed|> and </think>"]}
        side = collator()([example])["query"]
        assert counted(side, tiny[0].config.embed_token_id) == [2]
        assert counted(side, tiny[0].config.end_think_token_id) == [1]


class TestWhatRunsOnce:
    def test_equal_targets_point_to_one_input(self, collator, visit, rows):
        batch = collator()(visit(rows, [0, 12, 1]))  # red by picture, red by text, green
        target = batch["target"]
        assert target["index"].tolist() == [0, 0, 1] and len(target["order"]) == 2
        assert target["names"] == ["the target of pair 'pair 0'", "the target of pair 'pair 1'"]
        assert target["keys"][0] == target["keys"][1] != target["keys"][2]
        assert batch["query"]["index"].tolist() == [0, 1, 2] and len(set(batch["query"]["keys"].tolist())) == 3

    def test_pictures_that_differ_in_colours_alone_are_different_inputs(self, collator, visit, rows):
        """A palette's indices are the same, and so are the pixels below a transparent shade or before a turn."""
        pixels = np.repeat([[0, 1, 2]], 4, axis=0).astype(np.uint8)
        pictures = []
        for palette in ((0, 38, 84, 255, 255, 255, 206, 17, 38), (0, 140, 69, 255, 255, 255, 205, 33, 42)):
            pictures.append(Image.fromarray(pixels, "L").convert("P"))
            pictures[-1].putpalette([*palette, *[0] * 759])
        for shade in (0, 1):
            pictures.append(Image.fromarray(pixels * 80, "L"))
            pictures[-1].info["transparency"] = 80 * shade
        pictures.append(Image.fromarray(pixels * 80, "L"))
        pictures[-1].getexif()[0x0112] = 3
        (example,) = visit(rows, [0])
        side = collator()([{**example, "query": {"image": [picture]}} for picture in pictures])["query"]
        assert side["index"].tolist() == [0, 1, 2, 3, 4]

    def test_equal_inputs_with_another_thought_run_twice_and_stay_equal(self, collator, visit, mixed):
        side = collator()(visit(mixed, [0, 2, 3, 4]))["query"]  # picture; text; the same text twice
        assert side["index"].tolist() == [0, 1, 2, 2]
        example, other = visit(mixed, [0, 0])
        side = collator()([example, {**other, "query_rationale": ["Red it is."]}])["query"]
        assert side["index"].tolist() == [0, 1] and side["keys"][0] == side["keys"][1]

    def test_hard_negatives_follow_the_targets(self, collator, visit, mixed):
        examples = visit(mixed, range(8), num_hard_negatives=2)
        side = collator()(examples)["target"]
        said = [(example, value) for example in examples for value in example["negatives"]]
        assert len(said) == 4 and len(side["index"]) == len(side["keys"]) == 8 + 4
        keys = side["keys"].tolist()
        for (example, value), key in zip(said, keys[8:], strict=True):
            same = {row for row, other in enumerate(examples) if content_key(other["target"]) == content_key(value)}
            assert {row for row in range(8) if keys[row] == key} == same, example["pair_id"]
            name = side["names"][side["index"][8 + said.index((example, value))]]
            assert same or name == f"the negative of pair {example['pair_id']!r}"

    def test_keys_are_of_the_content_whatever_the_rest_of_the_batch(self, collator, visit, mixed):
        everything, one = collator()(visit(mixed)), collator(augment=augment)(visit(mixed, [3]))
        for side in ("query", "target"):
            assert one[side]["keys"][0] == everything[side]["keys"][3]
        assert everything["target"]["keys"][0] == everything["target"]["keys"][2]
        assert everything["query"]["keys"][3] == everything["query"]["keys"][4]
        (example,) = visit(mixed, [2])
        many = collator()([{**example, "query": {"text": str(number)}} for number in range(100)])
        assert len(set(many["query"]["keys"].tolist())) == 100

    def test_a_thought_weighs_as_much_as_all_pairs_that_have_it(self, collator, visit, rows):
        """Whether equal inputs meet in one process or in two makes no difference to the loss."""
        weighted = visit(rows, [0, 0, 1])
        for example, weight in zip(weighted, (0.5, 0.25, 1.0), strict=True):
            example["query_weight"] = weight
        (chunk,) = collator()(weighted)["query"]["chunks"]
        by_input = [chunk["token_weights"][chunk["token_rows"] == row].unique().tolist() for row in (0, 1)]
        assert by_input == [[0.75], [1.0]]


class TestChunks:
    @pytest.mark.parametrize(
        "options", [{"num_chunks": 2}, {"num_chunks": 3}, {"chunk_size": 5}, {"chunk_size": 1}, {"chunk_tokens": 90}]
    )
    def test_they_change_nothing(self, collator, tiny, visit, mixed, options):
        examples = visit(mixed, num_hard_negatives=1)
        for name in ("query", "target"):
            whole, split = (collator(**given)(examples)[name] for given in ({}, options))
            assert len(split["chunks"]) > len(whole["chunks"]) == 1
            assert torch.equal(whole["index"], split["index"]) and torch.equal(whole["keys"], split["keys"])
            for ours, theirs in zip(encoded(tiny[0], split), encoded(tiny[0], whole), strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_a_size_is_a_limit_and_a_number_is_a_number(self, collator, visit, mixed):
        examples = visit(mixed, num_hard_negatives=2)

        def sizes(name, **options):
            return [len(column(chunk, "input_ids")) for chunk in collator(**options)(examples)[name]["chunks"]]

        assert sizes("query", num_chunks=3) == [3, 2, 2]  # two of the eight are equal
        assert sizes("query", chunk_size=3) == [3, 2, 2]
        assert max(sizes("target", chunk_size=5)) <= 5
        assert sizes("query", chunk_size=100) == [7]
        assert sizes("query", chunk_size=100, num_chunks=4) == [7]

    def test_each_is_of_similar_lengths(self, collator, visit, rows):
        def padding(**options):
            chunks = collator(**options)(visit(rows))["query"]["chunks"]
            return sum(int((column(chunk, "attention_mask") == 0).sum()) for chunk in chunks)

        assert padding(num_chunks=3) < 0.5 * padding(num_chunks=1)

    def test_a_picture_is_as_long_as_its_tokens(self, collator, visit, make_pairs, tiny, monkeypatch):
        """Large pictures stand beside large ones, whatever order they came in."""
        limits = {"shortest_edge": 1024, "longest_edge": 2**24}
        monkeypatch.setattr(tiny[1].image_processor, "size", limits)
        colors = ("red", "green", "blue", "white", "black", "gray", "pink", "gold")
        pictures = [Image.new("RGB", (32 + 224 * (place % 2),) * 2, color) for place, color in enumerate(colors)]
        pairs = [{"query": {"image": [picture]}, "target": {"text": "a color"}} for picture in pictures]
        small, large = collator(chunk_size=4)(visit(make_pairs(pairs)))["query"]["chunks"]
        for chunk in (small, large):
            assert (column(chunk, "attention_mask") == 1).all()
        assert column(small, "input_ids").shape[1] < column(large, "input_ids").shape[1]

    @pytest.mark.parametrize("budget", [1, 60, 120, 10_000])
    def test_a_budget_of_tokens_counts_padding(self, collator, visit, mixed, budget):
        examples = visit(mixed, num_hard_negatives=2)
        for name in ("query", "target"):
            chunks = collator(chunk_tokens=budget)(examples)[name]["chunks"]
            sizes = [column(chunk, "input_ids").shape for chunk in chunks]
            assert all(rows == 1 or rows * length <= budget for rows, length in sizes)
            assert max(rows for rows, _ in sizes) == {1: 1, 10_000: sum(rows for rows, _ in sizes)}.get(
                budget, max(rows for rows, _ in sizes)
            )
            both = collator(chunk_tokens=budget, chunk_size=2)(examples)[name]["chunks"]
            assert max(len(column(chunk, "input_ids")) for chunk in both) <= 2

    def test_lengths_are_those_of_the_rendered_inputs(self, collator, visit, mixed):
        """Else a budget would be one of other tokens than those that are run."""
        one = collator(chunk_size=1)
        side = one(visit(mixed))["query"]
        rendered = [int(column(chunk, "attention_mask").sum()) for chunk in side["chunks"]]
        rows = [
            {"value": example["query"], "rationale": one.rationale_ids(example["query_rationale"])}
            for example in visit(mixed)
        ]
        counted = one.lengths(rows)
        ordered = [rendered[place] for place in side["order"].tolist()]
        for place, length in zip(side["index"].tolist(), counted, strict=True):
            assert length == pytest.approx(ordered[place], abs=6)


class TestPictures:
    def test_each_is_augmented_wherever_it_is(self, collator, visit, mixed):
        seen = []

        def darker(picture, rng):
            seen.append(picture)
            return picture.point(lambda value: value // 2)

        examples = visit(mixed, [1, 2], num_hard_negatives=2)
        batch = collator(augment=darker)(examples)
        plain = collator()(examples)
        assert len(seen) == 3  # two of the first query, one of the second's negatives
        for name in ("query", "target"):
            ours, theirs = (column(given[name]["chunks"][0], "pixel_values") for given in (batch, plain))
            assert ours.mean() < theirs.mean() and ours.shape == theirs.shape

    def test_the_random_stream_is_the_examples_own(self, collator, visit, rows):
        def pixels(places, seed=0, **options):
            side = collator(augment=augment, **options)(visit(rows, places, seed))["query"]
            values = [column(chunk, "pixel_values") for chunk in side["chunks"]]
            return torch.cat(values).reshape(len(side["order"]), -1)[side["order"]]

        first = pixels([0, 1, 2])
        assert torch.equal(pixels([0, 1, 2]), first)
        assert torch.equal(pixels([0, 1, 2], chunk_size=1), first)  # nor does it depend on the others
        assert torch.equal(pixels([0, 1, 3])[:2], first[:2])
        assert not torch.equal(pixels([0, 1, 2], seed=1), first)

    def test_pictures_of_one_input_are_augmented_differently(self):

        drawn = []
        rng = np.random.default_rng(0)
        value = {"image": [Image.new("RGB", (8, 8))] * 2, "text": "two"}
        result = augmented(value, lambda image, rng: drawn.append(rng.random()) or image, rng)
        assert len(result["image"]) == len(set(drawn)) == 2 and result["text"] == "two"
        text = {"text": "none"}
        assert augmented(text, lambda image, rng: image, rng) is text
        assert len(augmented({"image": value["image"][0]}, lambda image, rng: image, rng)["image"]) == 1

    def test_examples_stay_as_they_are(self, collator, visit, rows):
        examples = visit(rows, [0, 6])
        before = copy.deepcopy(examples)
        collator(augment=augment)(examples)
        assert examples == before

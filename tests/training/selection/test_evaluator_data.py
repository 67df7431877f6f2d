"""MatchExamples: half of them match, wrong ones are wrong, and each is a function of the seed and its number."""

from __future__ import annotations

import pytest
from datasets import Dataset
from PIL import Image

from mmemb_r1.atlas import augment
from mmemb_r1.modeling.media_mmemb_r1 import open_image
from mmemb_r1.training.selection.evaluator_data import KINDS, MatchExamples

COLORS = ("red", "green", "blue", "white", "black", "gray", "pink", "brown")


def table(tasks=("name",), rationales=True):
    rows = []
    for task in tasks:
        for color in COLORS:
            rows.append(
                {
                    "pair_id": f"{task}/{color}",
                    "task": task,
                    "query": {"text": f"{task} {color}?"},
                    "target": {"text": f"{task}-{color}"},
                    "query_rationale": [f"It is {color}", f"in {task}."] if rationales else [],
                }
            )
    return Dataset.from_list(rows)


def color_of(text):
    return next(color for color in COLORS if color in text)


@pytest.fixture(scope="module")
def drawn():
    examples = MatchExamples(table(("name", "show")), 1200, seed=3)
    return [examples[index] for index in range(len(examples))]


def test_labels_tell_the_truth_and_are_balanced(drawn):
    for example in drawn:
        assert example["label"] == (color_of(example["query"]["text"]) == color_of(example["target"]["text"]))
        task = example["query"]["text"].split()[0]
        assert example["target"]["text"].startswith(task), "negatives are of the same task"
    assert 0.45 < sum(example["label"] for example in drawn) / len(drawn) < 0.55


def test_rationales_are_what_their_kind_says(drawn):
    shares = {kind: sum(example["kind"] == kind for example in drawn) / len(drawn) for kind in KINDS}
    assert shares == pytest.approx({"none": 0.25, "right": 0.45, "wrong": 0.3}, abs=0.05)
    for example in drawn:
        if example["kind"] == "none":
            assert example["rationale"] is None
        else:
            same = color_of(example["rationale"]) == color_of(example["query"]["text"])
            assert same == (example["kind"] == "right")


def test_every_kind_is_balanced_so_that_style_tells_nothing(drawn):
    for kind in KINDS:
        labels = [example["label"] for example in drawn if example["kind"] == kind]
        assert 0.4 < sum(labels) / len(labels) < 0.6


@pytest.mark.parametrize(("share", "least", "most"), [(1.0, 1.0, 1.0), (0.0, 0.0, 0.3)])
def test_tempting_targets_are_those_the_wrong_rationale_speaks_of(share, least, most):
    examples = MatchExamples(table(), 400, shares=(0, 0, 1), tempting_share=share)
    wrong = [example for example in map(examples.__getitem__, range(400)) if not example["label"]]
    tempting = [color_of(example["rationale"]) == color_of(example["target"]["text"]) for example in wrong]
    assert least <= sum(tempting) / len(tempting) <= most


def test_an_example_is_a_function_of_seed_and_number():
    first, again, other = (MatchExamples(table(), 50, seed=seed) for seed in (0, 0, 1))
    assert [first[i] for i in range(50)] == [again[i] for i in reversed(range(50))][::-1]
    assert [first[i] for i in range(50)] != [other[i] for i in range(50)]


def test_same_content_is_never_a_negative():
    rows = table().to_list()
    for row in rows:
        row["query"] = {"text": "any color?"}
    rows[0]["query"] = {"text": "another question?"}  # all other targets answer the same query
    examples = MatchExamples(Dataset.from_list(rows), 300, shares=(1, 0, 0))
    for example in map(examples.__getitem__, range(300)):
        if example["query"]["text"] == "any color?" and "red" not in example["target"]["text"]:
            assert example["label"]


def test_target_side_rationales_speak_of_the_target():
    rows = [{**row, "target_rationale": row["query_rationale"], "query_rationale": []} for row in table().to_list()]
    examples = MatchExamples(Dataset.from_list(rows), 200)
    for example in map(examples.__getitem__, range(200)):
        assert example["side"] == "target"
        if example["kind"] == "right":
            assert color_of(example["rationale"]) == color_of(example["target"]["text"])
        assert example["label"] == (color_of(example["query"]["text"]) == color_of(example["target"]["text"]))


def test_without_rationales_there_are_none():
    examples = MatchExamples(table(rationales=False), 100)
    assert {examples[index]["kind"] for index in range(100)} == {"none"}


def test_task_weights_choose_tasks():
    examples = MatchExamples(table(("name", "show")), 100, task_weights={"show": 1.0})
    assert all(examples[index]["query"]["text"].startswith("show") for index in range(100))


def test_errors():
    with pytest.raises(ValueError, match="task_weights names the task 'sow'; the table has name"):
        MatchExamples(table(), 10, task_weights={"sow": 1.0})
    with pytest.raises(ValueError, match="No task has pairs with different queries and targets"):
        MatchExamples(table().select([0]), 10)
    with pytest.raises(IndexError):
        MatchExamples(table(), 10)[10]


def test_pictures_vary_from_example_to_example_but_not_from_draw_to_draw():
    rows = [
        {**row, "query": {"image": [Image.new("RGB", (16, 16), "red")], "text": row["query"]["text"]}}
        for row in table().to_list()
    ]
    examples = MatchExamples(Dataset.from_list(rows), 20, augment=augment)
    shown, again = (
        [open_image(examples[index]["query"]["image"][0]).tobytes() for index in range(20)] for _ in range(2)
    )
    assert shown == again
    assert len(set(shown)) == 20


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_blind_examples_hide_pictures_beside_a_right_rationale_only(share):
    picture = Image.new("RGB", (16, 16), "red")
    rows = [{**row, "query": {"image": [picture], "text": row["query"]["text"]}} for row in table().to_list()]
    examples = MatchExamples(Dataset.from_list(rows), 400, blind_share=share)
    examples = [examples[index] for index in range(400)]
    assert all(example["query"]["image"] for example in examples if example["kind"] != "right")
    blind = ["image" not in example["query"] for example in examples if example["kind"] == "right"]
    assert sum(blind) / len(blind) == pytest.approx(share, abs=0.08)
    assert all(example["query"]["text"] for example in examples)


def test_what_has_no_text_is_never_hidden():
    rows = [{**row, "query": {"image": [Image.new("RGB", (16, 16), row["pair_id"][5:])]}} for row in table().to_list()]
    examples = MatchExamples(Dataset.from_list(rows), 50, blind_share=1.0)
    assert all(examples[index]["query"]["image"] for index in range(50))


def test_a_wrong_rationale_never_speaks_of_a_right_partner():
    rows = [
        {
            "pair_id": f"{color}/{number}",
            "query": {"text": f"{number} {color}?"},
            "target": {"text": color},
            "query_rationale": [f"Number {number} is {color}."],
        }
        for color in COLORS
        for number in range(3)
    ]
    examples = MatchExamples(Dataset.from_list(rows), 300, shares=(0.01, 0, 1))
    wrong = [example for example in map(examples.__getitem__, range(300)) if example["kind"] == "wrong"]
    assert len(wrong) > 250
    assert all(color_of(example["rationale"]) != color_of(example["query"]["text"]) for example in wrong)


def test_a_rationales_table_brings_several_wordings():
    said = [
        {"pair_id": f"name/{color}", "side": "query", "worker": "w", "sample": sample, "text": text.format(color)}
        for color in COLORS
        for sample, text in enumerate(("It is {}.", "{}, that is.", " "))
    ]
    examples = MatchExamples(table(), 400, rationales=Dataset.from_list(said))
    examples = [examples[index] for index in range(400)]
    texts = {example["rationale"] for example in examples if example["kind"] == "right"}
    assert texts == {text.format(color) for color in COLORS for text in ("It is {}.", "{}, that is.")}
    for example in examples:
        if example["kind"] == "wrong":
            assert color_of(example["rationale"]) != color_of(example["query"]["text"])


def test_a_rationales_table_of_other_pairs_is_refused():
    said = [{"pair_id": "name/violet", "side": "query", "worker": "w", "sample": 0, "text": "It is violet."}]
    with pytest.raises(ValueError, match="1 rationales are about 1 pairs that the pairs table lacks: 'name/violet'"):
        MatchExamples(table(), 10, rationales=Dataset.from_list(said))

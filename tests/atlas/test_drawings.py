from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from mmemb_r1.atlas.build import SPLITS
from mmemb_r1.atlas.drawings import CLOCKS, PERCEPTUAL_TASKS, SPLIT_TASKS, clock_faces, load_drawings
from mmemb_r1.atlas.hashing import split_keys
from mmemb_r1.atlas.knowledge import flag_sentence, load_countries
from mmemb_r1.atlas.pictures import as_vector, colour_histogram, flag_hexcode, render_svg
from mmemb_r1.atlas.splits import FRACTIONS

EVALUATION = SPLITS[1:]


def flags_like(*codes):
    countries = {country.code: country for country in load_countries()}
    sentences = {code: flag_sentence(countries[code]) for code in codes}
    return sentences, {code: render_svg(flag_hexcode(code), 64) for code in codes}


@pytest.fixture(scope="module")
def drawn():
    """A few drawings of each task, with flags and objects that are made for it."""
    sentences, pictures = flags_like("ID", "MC", "EG", "YE", "IT", "IE", "GB")
    colours = {
        "red": (200, 0, 0),
        "rose": (220, 10, 0),
        "green": (0, 200, 0),
        "lime": (0, 220, 0),
        "blue": (0, 0, 200),
    }
    for name, colour in colours.items():
        pictures[name] = Image.new("RGB", (64, 64), colour)
    objects = {name: f"This is {name}." for name in colours}
    return load_drawings(64, 12, flags=sentences, objects=objects, pictures=pictures)


def of_task(drawings, task):
    return [drawing for drawing in drawings if drawing.task == task]


def test_every_task_has_drawings_and_no_more_than_asked_for(drawn):
    drawings, pictures = drawn
    counts = Counter(drawing.task for drawing in drawings)
    assert set(counts) == set(PERCEPTUAL_TASKS)
    assert all(2 <= number <= 12 for number in counts.values())
    for drawing in drawings:
        assert drawing.rivals and drawing.key not in drawing.rivals and len(set(drawing.rivals)) == len(drawing.rivals)
        assert set(drawing.rivals) <= {other.key for other in of_task(drawings, drawing.task)} <= set(pictures)
        assert drawing.sentence.startswith("This is ") and drawing.sentence.endswith(".")


def test_no_two_drawings_of_a_task_are_the_same_picture(drawn):
    drawings, pictures = drawn
    for task in PERCEPTUAL_TASKS:
        own = [drawing for drawing in drawings if drawing.task == task]
        assert len({drawing.sentence for drawing in own}) == len(own)
        for one, other in combinations(own, 2):
            assert np.abs(as_vector(pictures[one.key]) - as_vector(pictures[other.key])).mean() > 0.002


def test_tones_of_a_drawing_are_rivals_and_differ_in_the_tone_alone(drawn):
    tones = of_task(drawn[0], "same-tone")
    assert len(tones) == 12 and len({drawing.entity for drawing in tones}) == 4
    groups = defaultdict(dict)
    for drawing in tones:
        base, tone = drawing.sentence.split(": ")
        groups[base][tone] = drawing
    for group in groups.values():
        assert set(group) == {"light skin tone.", "medium skin tone.", "dark skin tone."}
        keys = {drawing.key for drawing in group.values()}
        assert all({drawing.key, *drawing.rivals} == keys for drawing in group.values())
        assert len({drawing.entity for drawing in group.values()}) == 1


def test_a_man_and_a_woman_do_the_same(drawn):
    groups = defaultdict(list)
    for drawing in of_task(drawn[0], "same-person"):
        groups[drawing.entity].append(drawing.sentence)
    for said in groups.values():
        done = said[0].removeprefix("This is a man ")
        assert said[:2] == [f"This is a man {done}", f"This is a woman {done}"]
        assert len(said) == 2 or said[2].endswith(done)


def test_flags_that_are_the_same_are_not_asked_and_those_nearly_so_are(drawn):
    """Monaco's flag is Indonesia's; Egypt's and Yemen's differ in the emblem; nothing is like the British."""
    rivals = {drawing.key: drawing.rivals for drawing in of_task(drawn[0], "same-flag")}
    assert rivals == {"EG": ("YE",), "YE": ("EG",)} | {code: rivals[code] for code in ("IT", "IE") if code in rivals}
    assert rivals["IT"] == ("IE",)


def test_the_nearest_in_colour_comes_first(drawn):
    rivals = {drawing.key: drawing.rivals[0] for drawing in of_task(drawn[0], "same-colours")}
    assert (rivals["red"], rivals["rose"], rivals["green"], rivals["lime"]) == ("rose", "red", "lime", "green")


def test_a_colour_histogram_does_not_see_where_a_colour_is():
    half = Image.new("RGB", (8, 8), (255, 0, 0))
    half.paste((0, 0, 255), (0, 0, 4, 8))
    turned = half.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    assert (colour_histogram(half) == colour_histogram(turned)).all() and colour_histogram(half).max() == 0.5


def test_clock_faces_go_round_in_half_hours():
    times = list(clock_faces().values())
    assert times == list(CLOCKS) and len(times) == 24
    assert times[:3] == ["twelve o’clock", "twelve-thirty", "one o’clock"]


@pytest.fixture(scope="module")
def perceptual(small_atlas):
    """Split -> its perceptual rows, pictures as stored bytes."""
    rows = {}
    for split in SPLITS:
        table = small_atlas.pairs[split].with_format("arrow")[:].to_pylist()
        rows[split] = [row for row in table if row["complexity"] == "perceptual"]
    return rows


def png(value):
    (image,) = value["image"]
    return image["bytes"]


def test_near_duplicates_are_negatives_and_among_the_candidates(small_atlas, perceptual):
    shown = {}
    for row in small_atlas.candidates.with_format("arrow")[:].to_pylist():
        if row["candidate_set"] in PERCEPTUAL_TASKS:
            shown.setdefault(row["candidate_set"], {})[png(row["input"])] = row["candidate_id"]
    for split in EVALUATION:
        for row in perceptual[split]:
            assert row["task"] == row["candidate_set"] and row["query"]["text"] == "the same drawing?"
            candidates = shown[row["task"]]
            assert candidates[png(row["target"])] == row["target_id"]
            negatives = [candidates[png(value)] for value in row["negatives"]]
            assert 1 <= len(set(negatives)) == len(negatives) <= 3 and row["target_id"] not in negatives


def test_query_target_and_negatives_are_other_renderings(perceptual):
    rows = [row for split in SPLITS for row in perceptual[split]]
    queries, targets = ({png(row[side]) for row in rows} for side in ("query", "target"))
    assert not queries & targets
    assert not {png(value) for row in rows for value in row["negatives"]} & queries
    trained = {png(row[side]) for row in perceptual["train"] for side in ("query", "target")}
    assert not trained & {
        png(row[side]) for split in EVALUATION for row in perceptual[split] for side in ("query", "target")
    }


def test_stored_pictures_have_no_names(perceptual):
    """A picture's key is its answer: it must not be in the path that a reader of the table sees."""
    for rows in perceptual.values():
        for row in rows:
            for value in (row["query"], row["target"], *row["negatives"]):
                assert [image["path"] for image in value["image"]] == [None]


@pytest.mark.parametrize("task", PERCEPTUAL_TASKS)
def test_entities_are_split_where_there_are_enough(perceptual, task):
    asked = {split: {row["entity"] for row in perceptual[split] if row["task"] == task} for split in SPLITS}
    if task not in SPLIT_TASKS:
        assert asked["train"] and all(entities == asked["train"] for entities in asked.values())
        return
    assert asked["train"] and asked["test"]
    for one, other in combinations(asked.values(), 2):
        assert not one & other


def test_no_negative_is_of_another_evaluation_split(small_atlas, perceptual):
    """Near-duplicates of a training row are trained ones; those of `policy`, trained or its own."""
    entities = defaultdict(dict)
    for row in (row for split in SPLITS for row in perceptual[split]):
        entities[row["task"]].setdefault(row["entity"], []).append(png(row["target"]))
    for task in SPLIT_TASKS:
        split_of = split_keys(entities[task], FRACTIONS, 0, task)
        of_split = {s: {p for e, ps in entities[task].items() if split_of[e] == s for p in ps} for s in SPLITS}
        for row in (row for row in perceptual["train"] if row["task"] == task):
            assert {png(value) for value in row["negatives"]} <= of_split["train"]


def test_what_is_said_tells_near_duplicates_apart(perceptual):
    said = defaultdict(dict)
    for row in (row for rows in perceptual.values() for row in rows):
        assert row["query_rationale"] == row["target_rationale"]
        assert said[row["task"]].setdefault(row["target_id"], row["query_rationale"]) == row["query_rationale"]
    for sentences in said.values():
        assert len({tuple(sentence) for sentence in sentences.values()}) == len(sentences)

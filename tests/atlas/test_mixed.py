from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.atlas.build import SPLITS
from mmemb_r1.atlas.drawings import clock_faces
from mmemb_r1.atlas.pictures import render_digits, render_svg
from mmemb_r1.atlas.splits import digit_cells, digit_indices
from mmemb_r1.atlas.tasks import SHIFTS, mixed_sum, mixed_time


def rows_of(pairs, task):
    columns = ["pair_id", "task", "entity", "target_id", "query_rationale", "complexity"]
    return [row for row in pairs.select_columns(columns) if row["task"] == task]


def test_a_sum_of_one_digit_is_told_at_sight():
    one, three = mixed_sum("mixed-k7", [7]), mixed_sum("mixed-k7-12-3", [7, 9, 0])
    assert (one.answer, one.variant, one.rationale) == ("7", "sight", ("The digit is 7.", "The sum is 7."))
    assert (three.answer, three.variant) == ("16", "step")
    assert three.rationale == ("The digits are 7, 9, 0.", "The sum is 16.")


@pytest.mark.parametrize(
    ("time", "shift", "answer"),
    [
        ("three-thirty", 0, "three-thirty"),
        ("three-thirty", 1, "four o’clock"),
        ("eleven-thirty", 4, "one-thirty"),
        ("twelve o’clock", -1, "eleven-thirty"),
    ],
)
def test_the_time_some_half_hours_later(time, shift, answer):
    clocks = clock_faces()
    key = next(key for key, name in clocks.items() if name == time)
    question = mixed_time(clocks, key, shift)
    assert question.answer == answer and question.rationale[0] == f"This is {time}." and question.pictures == (key,)
    assert question.variant.startswith("step" if shift else "sight")
    if shift:
        assert question.text == f"the time {SHIFTS[shift]}?"
        assert question.rationale[1] == f"It is {answer} {SHIFTS[shift]}."


def test_the_id_tells_what_a_row_takes_and_both_kinds_are_there(small_atlas):
    for task in ("mixed-sum", "mixed-time"):
        for row in rows_of(small_atlas.pairs["train"], task):
            sight = len(digit_cells(row["entity"])) == 1 if task == "mixed-sum" else len(row["query_rationale"]) == 1
            assert row["pair_id"].split("/")[3] == ("sight" if sight else "step") and row["complexity"] == "mixed"
        kinds = {row["pair_id"].split("/")[3] for row in rows_of(small_atlas.pairs["train"], task)}
        assert kinds == {"sight", "step"}


def test_handwritten_digits_of_mixed_sums_are_disjoint_and_sums_of_several_have_one(small_atlas):
    seen = set()
    for split in SPLITS:
        cells = [digit_cells(row["entity"]) for row in rows_of(small_atlas.pairs[split], "mixed-sum")]
        assert all(len(own) == 1 or not all(cell.keycap for cell in own) for own in cells)
        written = {
            index for row in rows_of(small_atlas.pairs[split], "mixed-sum") for index in digit_indices(row["entity"])
        }
        assert not written & seen
        seen |= written
    assert seen


def test_mixed_sums_share_the_split_of_the_other_digit_tasks(small_atlas):
    def images(pairs, start):
        return {
            i
            for task, key in zip(pairs["task"], pairs["entity"], strict=True)
            if task.startswith(start)
            for i in digit_indices(key)
        }

    for split in SPLITS:
        for other in SPLITS:
            if other != split:
                assert not images(small_atlas.pairs[split], "mixed-sum") & images(small_atlas.pairs[other], "digits-")


def test_combinations_of_clock_and_shift_are_disjoint(small_atlas):
    seen = set()
    for split in SPLITS:
        own = {
            row["pair_id"].split("/", 1)[1]
            for row in rows_of(small_atlas.pairs[split], "mixed-time")
            if "/step/" in row["pair_id"]
        }
        assert not own & seen
        seen |= own


def test_a_keycap_stands_in_its_cell():
    blank, keycap = np.zeros((8, 8)), render_svg("0037-FE0F-20E3", 64)
    pixels = np.asarray(render_digits([blank, keycap], 64))
    assert (pixels[:, :32] == 255).all() and (pixels[32:] == 255).all()
    assert (pixels[:32, 32:, 2].astype(int) - pixels[:32, 32:, 0]).max() > 50  # its ground is blue

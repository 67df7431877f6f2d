from __future__ import annotations

from pathlib import Path

import pytest

from experiments.study.forms import FULL_FORM, QUICK, TINY
from experiments.study.rows import BY_NAME, ROWS, with_needed
from experiments.study.tasks import Study, tasks_of

FORMS = {form.name: form for form in (QUICK, FULL_FORM, TINY)}


def study(form=QUICK, rows=ROWS, **given):
    return Study(Path("out"), form, tuple(rows), **given)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_need_is_a_task_that_comes_before(form):
    seen = set()
    for task in tasks_of(study(form)):
        assert set(task.needs) <= seen, task.name
        assert task.name not in seen
        seen.add(task.name)


def test_no_two_tasks_write_the_same():
    places = [task.done for task in tasks_of(study(FULL_FORM))]
    assert len(places) == len(set(places))


def test_what_is_given_is_not_made():
    made = {task.name for task in tasks_of(study(FULL_FORM, warm_up=Path("warm"), evaluator=Path("scorer")))}
    assert "warm-up, seed 0" not in made and "evaluator" not in made
    assert {"warm-up, seed 1", "warm-up, seed 2"} <= made  # only that of seed 0 was given
    assert {"warm-up, seed 0", "evaluator"} <= {task.name for task in tasks_of(study(FULL_FORM))}


def test_seeds_of_all_rows_can_be_chosen():
    chosen = study(FULL_FORM, seeds=(5, 3))
    assert {row.name: chosen.seeds_of(row) for row in ROWS} == dict.fromkeys(BY_NAME, (5, 3))


def test_three_seeds_where_that_matters_most():
    full = study(FULL_FORM)
    many = {row.name for row in ROWS if len(full.seeds_of(row)) == 3}
    third = {"absolute", "absolute-probability", "probability"}
    assert many == {"full", "no-selection", *third, "no-grpo", "random-gate"}


def test_rows_that_select_alike_share_a_table():
    tables = {row.name: row.table for row in ROWS if row.of is None}
    assert tables["full"] == tables["no-rationale-loss"] == tables["three-rounds"] == "pool"
    assert len({tables[name] for name in ("full", "no-selection", "absolute", "no-correction", "one-worker")}) == 5
    assert len({tables[name] for name in ("full", "absolute", "probability", "absolute-probability")}) == 4
    assert study().selected(BY_NAME["model-joins"], 0) != study().selected(BY_NAME["model-joins"], 1)


def test_rows_bring_what_they_need():
    assert [row.name for row in with_needed(["model-joins"])] == ["full", "model-joins", "second-round"]
    assert "probability" in [row.name for row in with_needed(["absolute-probability"])]
    with pytest.raises(ValueError, match="there is no row 'fulll'; allowed: full, no-selection"):
        with_needed(["fulll"])


def test_every_row_differs_from_the_full_method():
    def settings(row):
        return (row.table, tuple(row.joint.items()), row.rounds, row.start, row.of and row.name)

    assert len({settings(row) for row in ROWS}) == len(ROWS)


def test_a_given_warm_up_is_what_seed_0_starts_from_and_no_other_seed():
    """Whatever seeds are asked for, in one run or another: two must not share it without a word."""
    for seeds in ((5, 3), (3, 0), (0,)):
        chosen = study(FULL_FORM, seeds=seeds, warm_up=Path("warm"))
        assert chosen.warm_up_of(0) == Path("warm")
        assert chosen.warm_up_of(3) == Path("out/warm-3") and chosen.warm_up_of(5) == Path("out/warm-5")


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_evaluator_is_the_same_whatever_seeds_are_asked_for(form):
    evaluators = {study(form, seeds=seeds).evaluator_folder for seeds in ((0,), (3,), (3, 0))}
    made = [{task.name: task for task in tasks_of(study(form, seeds=seeds))} for seeds in ((0,), (3,))]
    assert len(evaluators) == 1
    assert made[0]["scoring, part 1 of 2"].needs == made[1]["scoring, part 1 of 2"].needs
    assert all("warm-up, seed 0" in tasks for tasks in made)


def test_the_quick_form_trains_no_evaluator():
    assert "evaluator" not in {task.name for task in tasks_of(study(QUICK))}
    assert study(QUICK).evaluator_folder == study(QUICK).warm_up_of(0)
    assert study(QUICK, evaluator=Path("scorer")).evaluator_folder == Path("scorer")


def test_the_quick_form_fits_an_hour_and_a_half():
    """By seconds per step that were measured on one core of two: see the comment at the form."""
    step, grpo, gate, outcomes, shortcut, scoring = 0.75, 2.6, 10, 17, 12, 400
    tasks = [task.function for task in tasks_of(study(QUICK))]
    count = tasks.count
    trained = count("train_joint") * QUICK.joint_steps * step + count("train_grpo") * QUICK.grpo_steps * grpo
    measured = count("warm_start_gate") * gate + count("measure") * outcomes + count("check_shortcut") * shortcut
    seconds = QUICK.warm_up_steps * step + (trained + measured + scoring) / 2
    assert count("train_joint") == 12 and seconds < 0.85 * 90 * 60


def test_only_the_single_worker_needs_more_errors():
    with_it, without = (
        {task.name for task in tasks_of(study(rows=rows))} for rows in (ROWS, with_needed(["absolute"]))
    )
    assert "prior: errors of one kind" in with_it and "prior: errors of one kind" not in without

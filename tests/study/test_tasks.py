from __future__ import annotations

from pathlib import Path

import pytest

from mmemb_r1.study.forms import FORMS, FULL_FORM, QUICK
from mmemb_r1.study.rows import BY_NAME, ROWS, with_needed, worker_of_entities
from mmemb_r1.study.tasks import Study, tasks_of


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
    made = {task.name for task in tasks_of(study(FULL_FORM, warm_up=Path("warm"), evaluator=Path("judge")))}
    assert "warm-up, seed 0" not in made and "evaluator" not in made
    assert {"warm-up, seed 1", "warm-up, seed 2"} <= made  # only that of the first seed was given
    assert {"warm-up, seed 0", "evaluator"} <= {task.name for task in tasks_of(study(FULL_FORM))}


def test_seeds_of_all_rows_can_be_chosen():
    chosen = study(FULL_FORM, seeds=(5, 3), warm_up=Path("warm"))
    assert chosen.warm_up_of(5) == Path("warm") and chosen.warm_up_of(3) == Path("out/warm-3")
    assert {row.name: chosen.seeds_of(row) for row in ROWS} == dict.fromkeys(BY_NAME, (5, 3))


def test_three_seeds_where_that_matters_most():
    full = study(FULL_FORM)
    many = {row.name for row in ROWS if len(full.seeds_of(row)) == 3}
    assert many == {"full", "no-selection", "absolute", "no-grpo", "random-gate"}


def test_rows_that_select_alike_share_a_table():
    tables = {row.name: row.table for row in ROWS if row.of is None}
    assert tables["full"] == tables["no-rationale-loss"] == tables["three-thoughts"] == "pool"
    assert len({tables[name] for name in ("full", "no-selection", "absolute", "no-pair-aware", "one-worker")}) == 5
    assert study().selected(BY_NAME["model-joins"], 0) != study().selected(BY_NAME["model-joins"], 1)


def test_rows_bring_what_they_need():
    assert [row.name for row in with_needed(["model-joins"])] == ["full", "model-joins", "second-round"]
    with pytest.raises(ValueError, match="there is no row 'fulll'; allowed: full, no-selection"):
        with_needed(["fulll"])


def test_every_row_differs_from_the_full_method():
    def settings(row):
        return (row.table, tuple(row.joint.items()), row.rounds, row.start, row.of and row.name)

    assert len({settings(row) for row in ROWS}) == len(ROWS)


def test_the_single_worker_is_each_of_the_four_equally_often():
    names = [f"c{number}" for number in range(103)]
    found = worker_of_entities(names * 2, ["correct", "confused", "verbose", "format"], seed=0)
    counts = [list(found.values()).count(worker) for worker in set(found.values())]
    assert set(found) == set(names) and len(counts) == 4 and max(counts) - min(counts) <= 1
    assert found == worker_of_entities(names[::-1], ["correct", "confused", "verbose", "format"], seed=0)
    assert found != worker_of_entities(names, ["correct", "confused", "verbose", "format"], seed=1)

"""The leaderboard's file: complete and consistent, or not made."""

from __future__ import annotations

import copy as copying
import json
from datetime import datetime

import pytest

from mmemb_r1.evaluation.mmeb import TASKS, overall, scores_of, submission, validate_submission, write_submission
from mmemb_r1.evaluation.mmeb.catalogue import OLD_PAGES

METADATA = {
    "model_name": "MMEmb-R1-tiny",
    "model_backbone": "Qwen3-VL",
    "model_size": "2B",
    "embedding_dimension": 2048,
    "max_length_tokens": None,
    "model_release_date": "2026-12-01",
    "url": None,
}


@pytest.fixture
def results():
    def modes(place, metric):
        numbers = {"score": place / 100, metric: place / 100, "hit@5": 0.9, "mrr": 0.5, "interval": [0.1, 0.2]}
        return {"auto": numbers, "never": numbers | {"score": 0.0, metric: 0.0}}

    return {
        "tasks": {
            name: {"metric": task.metric, "n": task.num_queries, "modes": modes(place, task.metric)}
            for place, (name, task) in enumerate(TASKS.items())
        }
    }


def with_old_pages(results):
    return {"tasks": {OLD_PAGES.get(name, name): entry for name, entry in results["tasks"].items()}}


def test_a_complete_run(results):
    made = submission(results, "auto", METADATA)
    assert {name: len(tasks) for name, tasks in made["metrics"].items()} == {"image": 36, "video": 18, "visdoc": 24}
    assert made["metrics"]["image"]["N24News"] == {"hit@1": 0.01, "hit@5": 0.9, "num_pred": 1000, "num_data": 1000}
    assert made["metrics"]["visdoc"]["ViDoRe_arxivqa"]["ndcg_linear@5"] == 0.54
    assert made["metrics"]["video"]["VATEX"]["num_pred"] == 4478
    assert list(made["metadata"]) == [
        "model_name", "model_backbone", "model_size", "embedding_dimension", "max_length_tokens", "model_release_date",
        "data_source", "url", "report_generated_date",
    ]  # fmt: skip
    assert made["metadata"]["data_source"] == "Self-Reported"
    assert datetime.fromisoformat(made["metadata"]["report_generated_date"])
    json.dumps(made, allow_nan=False)


def test_the_scores_are_those_of_the_overall(results):
    made = submission(results, "auto", METADATA)
    scores = [entry[TASKS[name].metric] for tasks in made["metrics"].values() for name, entry in tasks.items()]
    assert sum(scores) / 78 == pytest.approx(overall(scores_of(results, "auto")))
    assert submission(results, "never", METADATA)["metrics"]["image"]["GQA"]["hit@1"] == 0.0


def test_the_names_say_which_pages_were_used(results):
    fixed = submission(results, "auto", METADATA)["metrics"]["visdoc"]
    old = submission(with_old_pages(results), "auto", METADATA)["metrics"]["visdoc"]
    assert set(OLD_PAGES) <= set(fixed) and not set(OLD_PAGES.values()) & set(fixed)
    assert set(OLD_PAGES.values()) <= set(old) and not set(OLD_PAGES) & set(old)


def test_pages_are_not_mixed(results):
    results["tasks"]["ViDoSeek-page"] = results["tasks"].pop("ViDoSeek-page-fixed")
    with pytest.raises(ValueError, match="ViDoSeek-page is of the old page data and MMLongBench-page-fixed"):
        submission(results, "auto", METADATA)


def test_a_partial_run_is_no_submission(results):
    del results["tasks"]["OVEN"]
    with pytest.raises(ValueError, match="missing are 1: OVEN"):
        submission(results, "auto", METADATA)


def test_a_short_task_is_no_submission(results):
    results["tasks"]["OVEN"]["n"] = 999
    with pytest.raises(ValueError, match="OVEN has 999 queries instead of 1000"):
        submission(results, "auto", METADATA)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": None}, "'model_name' is None; expected str"),
        ({"model_name": ""}, "'model_name' is ''; expected str"),
        ({"embedding_dimension": "2048"}, "'embedding_dimension' is '2048'; expected int"),
        ({"embedding_dimension": True}, "'embedding_dimension' is True; expected int"),
        ({"colour": "red"}, "metadata has 'colour'; known are model_name, "),
    ],
)
def test_metadata_are_checked(change, message, results):
    with pytest.raises(ValueError, match=message):
        submission(results, "auto", METADATA | change)


def test_missing_metadata_are_named(results):
    with pytest.raises(ValueError, match="metadata lacks 'url'"):
        submission(results, "auto", {key: value for key, value in METADATA.items() if key != "url"})


def test_it_is_written_and_read(results, tmp_path):
    made = submission(results, "auto", METADATA)
    path = write_submission(made, tmp_path / "out" / "MMEmb-R1-tiny.json")
    assert json.loads(path.read_text()) == made
    validate_submission(json.loads(path.read_text()))


def broken(change):
    """A valid submission, changed."""

    def apply(made):
        made = copying.deepcopy(made)
        change(made)
        return made

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda made: made.pop("metrics"), r"an object of 'metadata' and 'metrics'; this is \['metadata'\]"),
        (lambda made: made["metrics"].pop("video"), "expected image, video, visdoc"),
        (lambda made: made["metrics"].update(video=7), "video is no object of tasks"),
        (lambda made: made["metrics"]["image"].pop("GQA"), "image lacks GQA"),
        (lambda made: made["metrics"]["image"].update(VQA={}), "image has VQA, none of its 36 tasks"),
        (lambda made: made["metrics"]["image"].update(GQA="FILE_N/A"), "GQA: it is 'FILE_N/A'; expected an object"),
        (lambda made: made["metrics"]["image"]["GQA"].pop("hit@1"), "GQA: it lacks 'hit@1'"),
        (lambda made: made["metrics"]["image"]["GQA"].pop("num_data"), "GQA: it lacks 'num_data'"),
        (lambda made: made["metrics"]["image"]["GQA"].update(num_pred=992), "num_pred is 992; MMEB-V2 has 1000"),
        (lambda made: made["metrics"]["image"]["GQA"].update({"hit@1": 65.4}), "hit@1 is 65.4; expected a number"),
        (lambda made: made["metrics"]["image"]["GQA"].update({"hit@1": float("nan")}), "hit@1 is nan; expected"),
        (lambda made: made["metrics"]["image"]["GQA"].update({"hit@1": True}), "hit@1 is True; expected"),
        (lambda made: made["metrics"]["image"]["GQA"].update(accuracy=0.5), "'accuracy' is no metric"),
        (
            lambda made: made["metrics"]["visdoc"].update({"ViDoSeek-page": {}}),
            "ViDoSeek-page is of the old page data",
        ),
        (lambda made: made["metadata"].pop("model_size"), "metadata lacks 'model_size'"),
        (lambda made: made["metadata"].update(report_generated_date="today"), "'today'; expected a date in ISO"),
        (lambda made: made.update(metadata=None), "metadata is a NoneType"),
    ],
)
def test_what_is_wrong_is_told(change, message, results):
    made = submission(results, "auto", METADATA)
    validate_submission(made)
    with pytest.raises(ValueError, match=message):
        validate_submission(broken(change)(made))


def test_all_that_is_wrong_is_told_at_once(results, tmp_path):
    made = submission(results, "auto", METADATA)
    made["metrics"]["image"]["GQA"]["hit@1"] = -1
    del made["metadata"]["url"], made["metrics"]["video"]["VATEX"]
    with pytest.raises(ValueError, match="(?s)lacks 'url'.*GQA: hit@1 is -1.*video lacks VATEX"):
        write_submission(made, tmp_path / "file.json")
    assert not (tmp_path / "file.json").exists()

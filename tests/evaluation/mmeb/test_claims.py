"""A mean is a claim about all of its tasks."""

from __future__ import annotations

import math

import pytest

from mmemb_r1.evaluation.mmeb import TASKS, TaskScore, group_mean, group_means, overall, scores_of
from mmemb_r1.evaluation.mmeb.catalogue import GROUPS, OLD_PAGES, VARIANTS


@pytest.fixture
def scores():
    """Complete, and no two the same."""
    return {name: TaskScore((place + 1) / 100, task.num_queries) for place, (name, task) in enumerate(TASKS.items())}


def old(scores):
    return {OLD_PAGES.get(name, name): score for name, score in scores.items()}


def test_the_overall_is_the_mean_of_78(scores):
    assert overall(scores) == pytest.approx(sum(range(1, 79)) / 7800)
    assert overall(old(scores)) == overall(scores)
    assert overall(dict(reversed(scores.items()))) == overall(scores)


def test_the_overall_is_not_the_mean_of_the_modalities(scores):
    modalities = [group_mean(scores, name) for name in ("image", "video", "visdoc")]
    assert modalities == pytest.approx([18.5 / 100, 45.5 / 100, 66.5 / 100])
    assert overall(scores) != pytest.approx(sum(modalities) / 3)


def test_group_means(scores):
    means = group_means(scores)
    assert list(means) == list(GROUPS)
    for group, names in GROUPS.items():
        assert means[group] == group_mean(scores, group)
        assert means[group] == pytest.approx(math.fsum(scores[name].score for name in names) / len(names))


def test_variants_are_left_aside(scores):
    variant = next(task for task in VARIANTS.values() if task.name == "MomentSeeker_1k8")
    assert overall({**scores, variant.name: TaskScore(1.0, variant.num_queries)}) == overall(scores)


@pytest.mark.parametrize("name", ["ImageNet-1K", "MomentSeeker", "ViDoSeek-page-fixed"])
def test_a_missing_task_is_named(name, scores):
    del scores[name]
    with pytest.raises(ValueError, match=f"no mean of overall, 78 of the 78 tasks: missing are 1: {name}$"):
        overall(scores)
    with pytest.raises(ValueError, match=f"no mean of {TASKS[name].modality}, .*missing are 1: {name}$"):
        group_mean(scores, TASKS[name].modality)
    means = group_means(scores)
    assert set(GROUPS) - set(means) == {TASKS[name].modality, TASKS[name].meta_task}


def test_old_pages_need_each_other(scores):
    del scores["ViDoSeek-page-fixed"], scores["MMLongBench-page-fixed"]
    scores["ViDoSeek-page"] = TaskScore(0.5, 1142)
    with pytest.raises(ValueError, match="missing are 1: MMLongBench-page$"):
        overall(scores)


@pytest.mark.parametrize("claim", [overall, group_means, lambda scores: group_mean(scores, "image")])
def test_old_and_fixed_pages_are_not_mixed(claim, scores):
    mixed = {**scores, "ViDoSeek-page": scores["ViDoSeek-page-fixed"]}
    with pytest.raises(ValueError, match="ViDoSeek-page is of the old page data and ViDoSeek-page-fixed of the fixed"):
        claim(mixed)
    del mixed["ViDoSeek-page-fixed"]
    with pytest.raises(ValueError, match="ViDoSeek-page is of the old page data and MMLongBench-page-fixed"):
        claim(mixed)


def test_another_number_of_queries_is_refused(scores):
    scores["VATEX"] = scores["VATEX"]._replace(num_queries=4477)
    with pytest.raises(ValueError, match="VATEX has 4477 queries instead of 4478"):
        overall(scores)
    assert group_mean(scores, "image") > 0
    assert {"video", "video/retrieval"} == set(GROUPS) - set(group_means(scores))


@pytest.mark.parametrize("score", [-0.1, 1.1, 71.2, math.nan, math.inf])
def test_impossible_scores_are_refused(score, scores):
    scores["GQA"] = TaskScore(score, 1000)
    with pytest.raises(ValueError, match=f"the score of GQA is {score}; it has to be between 0 and 1"):
        overall(scores)


def test_unknown_names_are_refused(scores):
    scores["VQA"] = TaskScore(0.5, 1000)
    with pytest.raises(ValueError, match="MMEB-V2 has no task 'VQA'; did you mean"):
        overall(scores)
    with pytest.raises(ValueError, match="MMEB-V2 has no group 'images'; did you mean image"):
        group_mean({}, "images")


def test_no_scores():
    with pytest.raises(ValueError, match="missing are 78: ImageNet-1K, "):
        overall({})
    assert group_means({}) == {}


def entry(name, score=0.5):
    return {"metric": TASKS[name].metric, "n": 7, "modes": {"auto": {"score": score, "mrr": 0.6}}}


def test_scores_of_results():
    assert scores_of({"tasks": {"GQA": entry("GQA", 0.25)}}, "auto") == {"GQA": TaskScore(0.25, 7)}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("GQA", {"metric": "ndcg_linear@5"}, "GQA was scored by ndcg_linear@5; MMEB-V2 scores it by hit@1"),
        ("GQA", {"modes": {"never": {"score": 0.1}}}, "GQA was not run in the mode 'auto'; it was in never"),
    ],
)
def test_results_that_say_something_else_are_refused(name, change, message):
    with pytest.raises(ValueError, match=message):
        scores_of({"tasks": {name: entry(name) | change}}, "auto")
    with pytest.raises(ValueError, match="no task 'Atlas'"):
        scores_of({"tasks": {"Atlas": entry(name)}}, "auto")

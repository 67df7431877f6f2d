from __future__ import annotations

from collections import Counter

import pytest

from mmemb_r1.evaluation.mmeb import TASKS, VARIANTS, select, task_named
from mmemb_r1.evaluation.mmeb.catalogue import GROUPS, OLD_PAGES, archive_of
from mmemb_r1.evaluation.mmeb.loading import READERS
from mmemb_r1.evaluation.mmeb.video import LABELS

SIZES = {
    "image": 36,
    "image/classification": 10,
    "image/qa": 10,
    "image/retrieval": 12,
    "image/grounding": 4,
    "video": 18,
    "video/classification": 5,
    "video/qa": 5,
    "video/retrieval": 5,
    "video/moment-retrieval": 3,
    "visdoc": 24,
    "visdoc/vidore-v1": 10,
    "visdoc/vidore-v2": 4,
    "visdoc/visrag": 6,
    "visdoc/ood": 4,
}


def test_there_are_78_tasks_in_their_groups():
    assert len(TASKS) == 78
    assert {name: len(names) for name, names in GROUPS.items()} == SIZES
    assert not TASKS.keys() & VARIANTS.keys()
    assert all(name == task.name for name, task in {**TASKS, **VARIANTS}.items())


def test_numbers_of_queries():
    """Those of the published result files: 36 x 1000 pictures, and as many videos and pages as there are."""
    queries = Counter()
    for task in TASKS.values():
        queries[task.modality] += task.num_queries
    assert queries == {"image": 36000, "video": 34940, "visdoc": 12590}
    assert {TASKS[name].num_queries for name in GROUPS["image"]} == {1000}


def test_metrics():
    assert {task.metric for name, task in TASKS.items() if name in GROUPS["visdoc"]} == {"ndcg_linear@5"}
    assert {task.metric for name, task in TASKS.items() if name not in GROUPS["visdoc"]} == {"hit@1"}


def test_pools():
    everywhere = {"K700", "HMDB51", "UCF101", "Breakfast", *GROUPS["video/retrieval"], *GROUPS["visdoc"]}
    assert {name for name, task in TASKS.items() if task.pool == "global"} == everywhere


def test_every_task_has_a_reader_and_its_media():
    for task in (*TASKS.values(), *VARIANTS.values()):
        assert task.layout in READERS
        archive = archive_of(task)
        assert (archive is None) == (task.modality == "visdoc"), task.name


def test_labels():
    assert {name: len(set(labels)) for name, labels in LABELS.items()} == {
        "K700": 700, "HMDB51": 51, "UCF101": 101, "Breakfast": 10,
    }  # fmt: skip
    assert all(len(set(labels)) == len(labels) for labels in LABELS.values())
    assert set(LABELS) == {name for name, task in TASKS.items() if task.layout == "video-labels"}


def test_old_and_fixed_pages_are_different_data():
    for fixed, old in OLD_PAGES.items():
        assert fixed in TASKS and old in VARIANTS
        assert TASKS[fixed].dataset != VARIANTS[old].dataset
        assert TASKS[fixed].media != VARIANTS[old].media
        assert TASKS[fixed].num_queries == VARIANTS[old].num_queries


def test_only_one_language_where_the_name_says_no_other():
    assert {task.name for task in (*TASKS.values(), *VARIANTS.values()) if task.language} == {
        "ViDoRe_biomedical_lectures_v2", "ViDoRe_economics_reports_v2", "ViDoRe_esg_reports_v2",
    }  # fmt: skip


def test_select():
    assert len(select()) == 78
    names = [task.name for task in select(["ViDoSeek-page", "video/qa", "MVBench", "image/grounding"])]
    assert names == [*GROUPS["image/grounding"], *GROUPS["video/qa"], "ViDoSeek-page"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ImageNet1K", "did you mean ImageNet-1K"),
        ("msr-vtt", "did you mean MSR-VTT"),
        ("image/vqa", "did you mean image/qa"),
        ("zzzzzzzz", "it has: ImageNet-1K, N24News"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=f"no task or group '{name}'.*{message}"):
        select([name])


def test_nothing_selected():
    with pytest.raises(ValueError, match="no task is named; allowed: .*image/classification"):
        select([])


def test_a_group_is_no_task():
    with pytest.raises(ValueError, match="MMEB-V2 has no task 'image'"):
        task_named("image")

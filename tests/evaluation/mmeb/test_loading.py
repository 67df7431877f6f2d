"""Which tasks a local copy holds, and what is said where it holds less than it should."""

from __future__ import annotations

import json
import shutil

import pytest

from mmemb_r1.evaluation.mmeb import find_tasks, load_tasks
from mmemb_r1.evaluation.mmeb.loading import read_mmeb_tasks


def test_the_tasks_that_are_there_are_found(copy, miniature):
    for name in ("DiDeMo", "GQA", "ViDoSeek-page", "ImageNet-1K"):
        miniature(name)
    assert find_tasks(copy.root) == ["ImageNet-1K", "GQA", "DiDeMo", "ViDoSeek-page"]
    tasks = load_tasks(copy.root)
    assert tasks.names == ["ImageNet-1K", "GQA", "DiDeMo"]  # variants only by their names
    assert [task.name for task in tasks] == tasks.names
    assert [task.name for task in tasks[1:]] == ["GQA", "DiDeMo"]
    assert len(tasks) == 3


def test_tasks_are_read_when_they_are_asked_for(copy, miniature):
    miniature("DiDeMo")
    miniature("GQA")
    tasks = load_tasks(copy.root)
    shutil.rmtree(copy.root / "video-tasks")
    assert tasks[0].name == "GQA"
    with pytest.raises(ValueError, match="DiDeMo: the folder .*video_ret/DiDeMo of its pictures or frames is missing"):
        tasks[1]


def test_tasks_are_checked_before_the_first_is_read(copy, miniature):
    """What is missing is said at once of all tasks, and which of them are whole."""
    for name in ("DiDeMo", "GQA", "HMDB51", "ViDoSeek-doc"):
        miniature(name)
    assert [task.name for task in read_mmeb_tasks(copy.root).tasks] == ["GQA", "HMDB51", "DiDeMo", "ViDoSeek-doc"]
    shutil.rmtree(copy.root / "video-tasks/frames/video_ret")
    shutil.rmtree(copy.root / "video-tasks/frames/video_cls/HMDB51/2x")
    with pytest.raises(ValueError) as error:
        read_mmeb_tasks(copy.root)
    first, second, rest = str(error.value).split("\n")
    assert first.startswith("HMDB51: the folder ") and "1 are missing or empty, of the 3 pictures" in first
    assert second.startswith("DiDeMo: the folder ") and "video_ret.tar.gz" in second
    assert rest == "The others are whole; to run them alone, name them: GQA,ViDoSeek-doc"
    assert len(list(read_mmeb_tasks(copy.root, names=["GQA", "ViDoSeek-doc"]).tasks)) == 2


@pytest.mark.parametrize("name", ["GQA", "NIGHTS", "DiDeMo", "MomentSeeker", "ViDoSeek-doc", "VisDial"])
def test_without_instructions(name, copy, miniature):
    """The default of the model holds then: Qwen3-VL-Embedding has one."""
    miniature(name)
    (task,) = load_tasks(copy.root, [name], instructions="none")
    plain = copy.load(name)
    assert task.query_prompt is None and task.candidate_prompt is None
    for side in ("queries", "candidates"):
        bare = [{key: part for key, part in value.items() if key != "instruction"} for value in getattr(plain, side)]
        assert list(getattr(task, side)) == bare
    assert any(plain.query_prompt or "instruction" in value for value in plain.queries)
    assert task.data["digest"] != plain.data["digest"] and task.data["instructions"] == "none"
    assert read_mmeb_tasks(copy.root, names=[name], instructions="none").noted["instructions"] == "none"
    with pytest.raises(ValueError, match="instructions='own'; allowed: task, none"):
        load_tasks(copy.root, instructions="own")


def test_annotations_may_lie_beside_the_media(copy, miniature):
    miniature("ViDoSeek-doc")
    (copy.root / "visdoc-tasks").mkdir()
    copy.dataset("ViDoSeek-doc").rename(copy.root / "visdoc-tasks" / "ViDoSeek")
    assert find_tasks(copy.root) == ["ViDoSeek-doc"]
    assert len(copy.load("ViDoSeek-doc").queries) == 3


def test_annotations_in_other_formats(copy, rows_of):
    rows = rows_of("MSVD")
    before = copy.load("MSVD")
    for suffix in (".json", ".jsonl"):
        shutil.rmtree(copy.dataset("MSVD"))
        file = copy.rows("MSVD", rows, suffix=suffix)
        if suffix == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert copy.load("MSVD").queries == before.queries


def test_rows_may_be_in_several_files(copy, rows_of):
    rows = rows_of("MSVD")
    file = copy.rows("MSVD", rows[:2])
    other = file.with_name("test-00001-of-00002.parquet")
    file.rename(other)
    copy.rows("MSVD", rows[2:]).rename(file.with_name("test-00002-of-00002.parquet"))
    assert [query["text"] for query in copy.load("MSVD").queries] == ["caption 0", "caption 1", "caption 2"]


def test_the_revision_is_reported(copy, miniature):
    miniature("DiDeMo")
    assert copy.load("DiDeMo").data["revision"] is None
    place = copy.dataset("DiDeMo")
    place.with_name(f"{place.name}.json").write_text(json.dumps({"revision": "abc"}))
    task = copy.load("DiDeMo")
    assert task.data["revision"] == "abc"
    assert {"dataset": "VLM2Vec/DiDeMo", "split": "test", "config": None}.items() <= task.data.items()
    place.rename(copy.root / "video-tasks" / "DiDeMo")  # a copy that came another way
    assert copy.load("DiDeMo").data["revision"] is None


def test_missing_annotations_are_named(copy, miniature):
    miniature("DiDeMo")
    place = copy.root / "annotations" / "VLM2Vec" / "MSVD"
    with pytest.raises(ValueError, match=rf"^MSVD: its annotations are missing, neither {place} nor .*download_task"):
        load_tasks(copy.root, ["DiDeMo", "MSVD"])


def test_a_configuration_is_missing(copy, miniature):
    miniature("GQA")
    assert load_tasks(copy.root).names == ["GQA"]  # one dataset for many tasks
    with pytest.raises(ValueError, match="^TextVQA: .*MMEB_Test_Instruct has no files of the configuration 'TextVQA'"):
        load_tasks(copy.root, ["TextVQA"])


@pytest.mark.parametrize("find", [find_tasks, load_tasks])
def test_an_unfinished_copy_is_no_absent_one(find, copy, miniature):
    miniature("ViDoSeek-doc")
    shutil.rmtree(copy.dataset("ViDoSeek-doc") / "qrels")
    with pytest.raises(ValueError, match="^ViDoSeek-doc: .*has no files of the configuration 'qrels'.*'test'"):
        find(copy.root)


def test_another_split_is_not_taken_for_it(copy, miniature):
    miniature("MSVD")
    file = next(copy.dataset("MSVD").rglob("*.parquet"))
    file.rename(file.with_name(file.name.replace("test", "train")))
    with pytest.raises(ValueError, match="^MSVD: .*has no files of the split 'test'"):
        load_tasks(copy.root, ["MSVD"])


def test_no_task_at_all(copy):
    with pytest.raises(ValueError, match=f"{copy.root} holds the annotations of no MMEB-V2 task.*download_task"):
        load_tasks(copy.root)
    with pytest.raises(ValueError, match="there is no folder .*elsewhere"):
        load_tasks(copy.root / "elsewhere")


def test_unknown_names_and_options(copy):
    with pytest.raises(ValueError, match="no task or group 'DiDemo'; did you mean DiDeMo"):
        load_tasks(copy.root, ["DiDemo"])
    with pytest.raises(ValueError, match="num_frames is 0; it has to be at least 1"):
        load_tasks(copy.root, num_frames=0)


def test_nothing_is_written(copy, miniature, tmp_path, monkeypatch):
    """Neither into the copy, nor copies of it into the cache of `datasets`."""
    import datasets.config

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for name in ("MSVD", "ViDoSeek-doc"):
        miniature(name)
    before = {file: file.stat().st_mtime_ns for file in copy.root.rglob("*")}
    for task in load_tasks(copy.root):
        list(task.candidates)
    assert {file: file.stat().st_mtime_ns for file in copy.root.rglob("*")} == before
    assert not [file for file in (tmp_path / "cache").rglob("*.arrow")]

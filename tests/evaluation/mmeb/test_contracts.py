"""What is the same for all contracts: each of the 84 tasks is read, and a model can embed what comes out."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from mmemb_r1.evaluation.metrics import ranks
from mmemb_r1.evaluation.mmeb import TASKS, VARIANTS, load_tasks, task_named
from mmemb_r1.modeling.media_mmemb_r1 import open_image
from mmemb_r1.modeling.videos_mmemb_r1 import open_video

ONE_EACH = list({task.layout: name for name, task in {**VARIANTS, **TASKS}.items()}.values())
CONTRACTS = sorted(
    set(ONE_EACH) - {"MVBench"}
)  # twenty datasets: it is slow, and its rows are those of other questions


@pytest.mark.parametrize("name", [*TASKS, *VARIANTS])
def test_every_task_is_read(name, copy, miniature):
    wanted = miniature(name)
    task = copy.load(name)
    assert (task.name, task.metric, task.groups) == (name, wanted.metric, wanted.groups)
    assert len(task.queries) == (20 if name == "MVBench" else 3)
    assert task.data["expected_queries"] == wanted.num_queries
    assert task.data["queries"] == len(task.queries)
    assert (task.pools is None) == (wanted.pool == "global")
    for value in [*task.queries, *list(task.candidates)[:12]]:
        if "image" in value:
            assert open_image(value["image"]).size == (32, 32)
        if "video" in value:
            frames, _ = open_video(value["video"])
            assert 1 < len(frames) <= 8
        assert value.keys() <= {"instruction", "text", "image", "video"} and value


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_collapsed_encoder_scores_at_the_floor(name, copy, miniature):
    """The right candidate stands first in most rows: that must not help."""
    miniature(name)
    task = copy.load(name)
    place = {one: column for column, one in enumerate(task.candidate_ids)}
    for query in range(len(task.query_ids)):
        pool = task.candidate_ids if task.pools is None else task.pools[query]
        right = [one in task.relevance[query] for one in pool]
        assert not all(right)
        scores = np.ones((1, len(place)))[:, [place[one] for one in pool]]
        assert ranks(scores, np.array([right])) > 1


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_digest_says_what_is_asked_and_not_where_it_lies(name, copy, miniature, tmp_path):
    miniature(name)
    before = copy.load(name).data["digest"]
    assert copy.load(name).data["digest"] == before
    copy.root = copy.root.rename(tmp_path / "moved")
    assert copy.load(name).data["digest"] == before
    if media := sorted([*copy.root.rglob("frame_1.jpg"), *copy.root.rglob("0.jpg")]):
        media[0].write_bytes(media[0].read_bytes() + b" ")
    else:
        miniature(name, pages_inside=False)
    assert copy.load(name).data["digest"] != before


def test_the_digest_changes_with_what_is_right(copy, rows_of):
    rows = rows_of("NExTQA")
    before = copy.load("NExTQA").data["digest"]
    copy.rows("NExTQA", [{**rows[0], "answer": 4}, *rows[1:]])
    assert copy.load("NExTQA").data["digest"] != before


def test_a_model_embeds_all_contracts(copy, miniature, tiny_checkpoint):
    from mmemb_r1 import MMEmbR1

    model = MMEmbR1(str(tiny_checkpoint))
    for name in ONE_EACH:
        miniature(name)
    for task in load_tasks(copy.root, ONE_EACH):
        for values, prompt in ((task.queries, task.query_prompt), (task.candidates, task.candidate_prompt)):
            vectors = model.encode(list(values[:1]), prompt=prompt, reasoning="never")
            assert vectors.shape[0] == 1 and np.isfinite(vectors).all(), task.name


def test_another_number_of_queries_is_warned_of(copy, miniature, caplog):
    miniature("DiDeMo")
    copy.load("DiDeMo")
    assert "DiDeMo: there are 3 queries, MMEB-V2 has 1004" in caplog.text


@pytest.mark.parametrize("name", [name for name in CONTRACTS if task_named(name).modality != "visdoc"])
def test_a_missing_file_is_named(name, copy, miniature):
    task = miniature(name)
    for file in sorted((copy.root / task.media).rglob("*.jpg")):
        content = file.read_bytes()
        for break_it, state in ((file.unlink, "missing"), (lambda: file.write_bytes(b""), "empty")):  # noqa: B023
            break_it()
            if task.modality == "image" or state == "empty":
                with pytest.raises(ValueError, match=f"^{name}: the (picture|frame) {file} is {state}") as error:
                    copy.load(name)
                assert "\n" not in str(error.value)
            file.write_bytes(content)
        if task.modality == "video":
            break


@pytest.mark.parametrize("name", [name for name in CONTRACTS if task_named(name).modality == "video"])
def test_missing_frames_are_named(name, copy, miniature, caplog):
    task = miniature(name)
    place = next(file for file in sorted((copy.root / task.media).rglob("frame_1.jpg"))).parent
    for file in place.iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=f"^{name}: the folder {place} holds no frames"):
        copy.load(name)
    place.rmdir()
    if task.layout == "moments":  # whichever clips are there compete, but they should be ten
        copy.load(name)
        assert "(v0): another number of clips than 10" in caplog.text
        return
    with pytest.raises(ValueError, match=f"^{name}: the folder {place} of"):
        copy.load(name)


@pytest.mark.parametrize("name", [name for name in CONTRACTS if task_named(name).modality != "visdoc"])
def test_a_missing_folder_of_media_is_named(name, copy, miniature, tmp_path):
    task = miniature(name)
    (copy.root / task.media).rename(tmp_path / "elsewhere")
    with pytest.raises(
        ValueError, match=rf"^{name}: the folder {copy.root / task.media} of its pictures .*download_task"
    ):
        copy.load(name)


@pytest.mark.parametrize("name", CONTRACTS)
def test_a_missing_column_is_named(name, copy, miniature):
    import pyarrow.parquet

    miniature(name)
    file = sorted(copy.dataset(name).rglob("*-of-*"))[-1]
    if file.suffix == ".json":
        file.write_text(json.dumps([{"video": "clip.mp4"}]))
    else:
        table = pyarrow.parquet.read_table(file)
        pyarrow.parquet.write_table(table.rename_columns([f"{column}_" for column in table.column_names]), file)
    with pytest.raises(ValueError, match=f"^{name}: {file} has no column '.*'; needed: "):
        copy.load(name)


def test_tasks_travel_to_other_processes(copy, miniature):
    for name in ("ViDoSeek-doc", "DiDeMo"):
        miniature(name)
        task = copy.load(name)
        assert list(pickle.loads(pickle.dumps(task)).candidates) == list(task.candidates)

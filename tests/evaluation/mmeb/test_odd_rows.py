"""Rows that are odd: they are scored as the benchmark's own evaluation scores them, told, and end no run."""

from __future__ import annotations

import numpy as np
import pytest

from mmemb_r1.evaluation.scoring import score_queries
from mmemb_r1.evaluation.tasks import some_queries

WRONG = "none of its candidates is right: it scores 0"
EMPTY = "empty: an empty text is embedded"
TEXT_ALONE = "it shows neither a .jpg nor a .mp4: its text asks alone"


def perfect_scores(task):
    """Score queries whose vectors are those of their best candidates: each that can be right is."""
    candidates = np.eye(len(task.candidate_ids), dtype=np.float32)
    place = {one: row for row, one in enumerate(task.candidate_ids)}
    best = [max(grades, key=grades.get, default=task.candidate_ids[0]) for grades in task.relevance]
    return score_queries(task, candidates[[place[one] for one in best]], candidates)


@pytest.mark.parametrize(
    ("name", "change", "what", "score"),
    [
        ("UCF101", {"pos_text": "Juggling"}, "its class is none of the task's, and competes with them", 1),
        ("SmthSmthV2", {"pos_text": "resting"}, WRONG, 0),
        ("NExTQA", {"answer": 5}, WRONG, 0),
        ("Video-MME", {"answer": "E"}, WRONG, 0),
        ("Video-MME", {"options": ["A. yes", "B. ..", "C. no", "D. never"]}, EMPTY, 1),
        ("EgoSchema", {"answer": ""}, WRONG, 0),
        ("ActivityNetQA", {"answer": "maybe"}, WRONG, 0),
        ("DiDeMo", {"caption": " "}, EMPTY, 1),
        ("MSVD", {"caption": []}, EMPTY, 1),
        ("MomentSeeker", {"input_frames": "clip.avi"}, TEXT_ALONE, 1),
        ("MomentSeeker", {"positive_frames": []}, WRONG, 0),
        ("MomentSeeker", {"negative_frames": None}, None, 1),
        ("GQA", {"qry_text": "<|image_1|>", "qry_img_path": None}, EMPTY, 1),
        ("GQA", {"tgt_text": ["a", " ", None]}, EMPTY, 1),
    ],
)
def test_an_odd_row_is_scored_and_told(name, change, what, score, copy, rows_of, caplog):
    rows = rows_of(name)
    copy.rows(name, [rows[0] | change, *rows[1:]])
    task = copy.load(name)
    assert len(task.queries) == 3
    assert perfect_scores(task).metrics["hit@1"].tolist() == [score, 1, 1]
    assert task.data.get("odd_rows") == ({what: 1} if what else None)
    assert what is None or f"{name}: 1 odd rows or videos (" in caplog.text and what in caplog.text


def test_a_model_embeds_odd_rows(copy, rows_of, tiny_checkpoint):
    from mmemb_r1 import MMEmbR1

    rows = rows_of("Video-MME")
    copy.rows("Video-MME", [rows[0] | {"options": ["A. yes", "B. ..", "C. no", "D. never"]}, *rows[1:]])
    rows = rows_of("DiDeMo")
    copy.rows("DiDeMo", [rows[0] | {"caption": ""}, *rows[1:]])
    model = MMEmbR1(str(tiny_checkpoint), device="cpu")
    (choices,), (search,) = ([copy.load(name)] for name in ("Video-MME", "DiDeMo"))
    assert choices.candidates[1] == {"text": ""} and search.queries[0] == {"text": ""}
    for values, prompt in ((choices.candidates[:4], None), (search.queries, search.query_prompt)):
        assert np.isfinite(model.encode(values, prompt=prompt, reasoning="never")).all()


def test_a_class_of_one_row_competes_in_all(copy, rows_of):
    rows = rows_of("UCF101")
    copy.rows("UCF101", [rows[0] | {"pos_text": "Juggling"}, *rows[1:]])
    task = copy.load("UCF101")
    assert len(task.candidate_ids) == 102 and task.pools is None
    assert task.relevance[0] == {"Juggling": 1.0}


def test_a_video_of_one_frame_is_shown_twice(copy, miniature):
    task = miniature("HMDB51")
    for number in range(2, 11):
        (copy.root / task.media / "1x" / f"frame_{number}.jpg").unlink()
    loaded = copy.load("HMDB51")
    assert [len(query["video"]) for query in loaded.queries] == [8, 2, 8]
    assert len(set(loaded.queries[1]["video"])) == 1
    assert loaded.data["odd_rows"] == {"a video of one frame, which is shown twice": 1}
    one = copy.load("HMDB51", num_frames=1)  # as it was asked for
    assert [len(query["video"]) for query in one.queries] == [1, 1, 1] and "odd_rows" not in one.data


def test_a_shown_video_without_frames_leaves_the_text(copy, miniature):
    task = miniature("MomentSeeker")
    rows = [
        {"query": "x", "input_frames": "void.mp4", "positive_frames": [{"output_path": "movie/1.0.mp4"}],
         "negative_frames": [{"output_path": "movie/2.0.mp4"}]},
    ]  # fmt: skip
    copy.rows("MomentSeeker", rows)
    with pytest.raises(ValueError, match="^MomentSeeker: the folder .*/void of a video's frames is missing"):
        copy.load("MomentSeeker")
    (copy.root / task.media / "video_frames" / "void").mkdir()
    loaded = copy.load("MomentSeeker")
    assert loaded.queries[0].keys() == {"instruction", "text", "video"} - {"video"}
    assert list(loaded.data["odd_rows"]) == ["the video it shows has no frames: its text asks alone"]


@pytest.mark.parametrize(
    ("config", "rows", "what", "score"),
    [
        ("qrels", [(0, 0, 1), (1, 1, 1), (2, 2, 0)], WRONG, [1, 1, 0]),
        ("queries", [(0, "a"), (1, ""), (2, "c")], EMPTY, [1, 1, 1]),
    ],
)
def test_odd_questions_about_pages(config, rows, what, score, copy, miniature):
    miniature("ViDoSeek-doc")
    columns = ("query-id", "query") if config == "queries" else ("query-id", "corpus-id", "score")
    copy.rows("ViDoSeek-doc", [dict(zip(columns, row, strict=True)) for row in rows], config)
    task = copy.load("ViDoSeek-doc")
    assert task.data["odd_rows"] == {what: 1}
    scored = perfect_scores(task)
    assert scored.metrics["hit@1"].tolist() == score
    if what == WRONG:
        assert {float(values[2]) for values in scored.metrics.values()} == {0.0}
        assert scored.rank.tolist() == [1, 1, 6] and np.isnan(scored.margin[2])
        assert scored.target_probability[2] == 0
        assert len(some_queries(task, [0, 2]).unanswerable) == 1

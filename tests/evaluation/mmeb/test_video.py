"""The video annotations: which frames are taken, and what each dataset's rows mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmemb_r1.evaluation.mmeb.media import evenly_spread
from mmemb_r1.evaluation.mmeb.video import LABELS


def names(frames):
    return [Path(frame).name for frame in frames]


@pytest.mark.parametrize(("count", "number"), [(64, 8), (9, 8), (8, 8), (3, 8), (64, 1), (100, 7)])
def test_frames_are_evenly_spread(count, number):
    kept = evenly_spread(range(count), number)
    assert len(kept) == min(count, number)
    assert kept == sorted(set(kept)) and kept[0] == 0
    if number > 1:
        assert kept[-1] == count - 1
        steps = {after - before for before, after in zip(kept, kept[1:], strict=False)}
        assert max(steps) - min(steps) <= 1


def test_momentseeker_keeps_all_frames(copy, miniature):
    """The benchmark's own evaluation takes what is in the folder, and not eight of them."""
    task = miniature("MomentSeeker")
    copy.frames(f"{task.media}/video_frames/movie_0.0", 20)
    kept = copy.load("MomentSeeker")
    assert names(kept.queries[2]["video"]) == [f"frame_{number}.jpg" for number in range(1, 21)]
    assert len(kept.candidates[0]["video"]) == 20 and kept.data["num_frames"] is None
    asked = copy.load("MomentSeeker", num_frames=4)
    assert names(asked.queries[2]["video"]) == [f"frame_{number}.jpg" for number in (1, 7, 13, 20)]
    assert asked.data["num_frames"] == 4


def test_frames_are_sorted_by_their_numbers(copy, miniature):
    miniature("HMDB51")
    frames = copy.load("HMDB51").queries[0]["video"]
    assert names(frames) == [f"frame_{number}.jpg" for number in (1, 2, 3, 4, 6, 7, 8, 10)]
    assert names(copy.load("HMDB51", num_frames=2).queries[0]["video"]) == ["frame_1.jpg", "frame_10.jpg"]
    assert copy.load("HMDB51", num_frames=2).data["digest"] != copy.load("HMDB51").data["digest"]


def test_other_files_are_no_frames(copy, miniature):
    task = miniature("HMDB51")
    (copy.root / task.media / "0x" / "frame_0.txt").write_text("notes")
    assert names(copy.load("HMDB51").queries[0]["video"])[0] == "frame_1.jpg"


def test_all_classes_compete(copy, miniature):
    miniature("Breakfast")
    task = copy.load("Breakfast")
    assert task.candidate_ids == list(LABELS["Breakfast"])
    assert task.candidates[0] == {"text": "cereal"}
    assert task.relevance[2] == {LABELS["Breakfast"][2]: 1.0}
    assert task.queries[0].keys() == {"video"}
    assert task.query_prompt == "Recognize the breakfast type that the person is cooking in the video."


def test_the_task_is_the_beginning_of_a_longer_table(copy, rows_of):
    rows = rows_of("SmthSmthV2")
    copy.rows("SmthSmthV2", rows * 334)
    task = copy.load("SmthSmthV2")
    assert len(task.queries) == 1000
    assert task.pools[7] == ["doing 0", "doing 1", "doing 2"]
    assert task.relevance[7] == {"doing 1": 1.0}


def test_nextqa(copy, miniature):
    miniature("NExTQA")
    task = copy.load("NExTQA")
    assert task.queries[1]["text"] == (
        "Question: what\nOptions:\n(A) NExTQA v1\n(B) NExTQA w1\n(C) NExTQA x1\n(D) NExTQA y1\n(E) NExTQA z1"
    )
    assert task.pools[1] == [f"NExTQA {letter}1" for letter in "vwxyz"]
    assert [list(one) for one in task.relevance] == [["NExTQA v0"], ["NExTQA w1"], ["NExTQA x2"]]
    assert task.query_prompt.startswith("Given a video and a question, select the most accurate answer")


def test_video_mme_and_egoschema(copy, miniature):
    for name in ("Video-MME", "EgoSchema"):
        miniature(name)
        task = copy.load(name)
        assert task.queries[2]["text"].startswith(f"Question: What?\nA. {name} v2")
        assert task.pools[2][:2] == [f"{name} v2", f"{name} w2"]
        assert [list(one) for one in task.relevance] == [[f"{name} v0"], [f"{name} w1"], [f"{name} x2"]]


def test_activitynetqa(copy, miniature):
    miniature("ActivityNetQA")
    task = copy.load("ActivityNetQA")
    assert task.queries[0]["text"] == "Question: is it? (A) yes; (B) no."
    assert task.candidate_ids == ["yes", "no"]
    assert [list(one) for one in task.relevance] == [["yes"], ["no"], ["no"]]


def test_mvbench(copy, miniature):
    miniature("MVBench")
    task = copy.load("MVBench")
    assert task.query_ids[:2] == ["episodic_reasoning/0", "action_sequence/0"]
    assert task.queries[1]["text"] == "Question: Where?\nOptions:\n(A) up\n(B) down\n(C) left"
    assert Path(task.queries[1]["video"][0]).parts[-3:] == ("action_sequence", "clip.mp4", "frame_1.jpg")
    assert set(task.candidate_ids) == {"(A) up", "(B) down", "(C) left"}
    assert all(list(one) == ["(B) down"] for one in task.relevance)


def test_mvbench_lacks_a_part(copy, miniature):
    miniature("MVBench")
    next(copy.dataset("MVBench").rglob("state_change/*")).unlink()
    with pytest.raises(ValueError, match="^MVBench: .* no files of the configuration 'state_change'.*'train'"):
        copy.load("MVBench")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("SmthSmthV2", {"neg_text": []}, r"it has no candidates \(neg_text\)"),
        ("Video-MME", {"options": []}, "it has no candidates"),
        ("MomentSeeker", {"positive_frames": [], "negative_frames": None}, "it has no clips"),
        ("MomentSeeker", {"positive_frames": [{"output_path": None}]}, "a clip has no output_path"),
    ],
)
def test_rows_that_say_nothing_are_refused(name, change, message, copy, rows_of):
    rows = rows_of(name)
    copy.rows(name, [rows[0] | change, *rows[1:]])
    with pytest.raises(ValueError, match=f"^{name}, query 0: .*{message}"):
        copy.load(name)


def test_a_text_searches_all_videos(copy, rows_of):
    rows = rows_of("DiDeMo")
    copy.rows("DiDeMo", [*rows, rows[0] | {"caption": "the same video again"}])
    task = copy.load("DiDeMo")
    assert task.pools is None
    assert task.candidate_ids == ["0x", "1x", "2x"]
    assert task.relevance[3] == task.relevance[0] == {"0x": 1.0}
    assert task.clusters[3] == task.clusters[0]
    assert task.queries[0] == {"text": "caption 0"}
    assert task.candidate_prompt == "Understand the content of the provided video."


def test_of_several_captions_the_first_asks(copy, miniature):
    miniature("VATEX")
    assert [query["text"] for query in copy.load("VATEX").queries] == ["caption 0", "caption 1", "caption 2"]


def test_moments(copy, miniature):
    miniature("QVHighlight")
    task = copy.load("QVHighlight")
    assert len(task.candidates) == 30
    assert task.pools[1] == [*(f"v1/negative_{number}" for number in range(9)), "v1/positive"]
    assert task.relevance[1] == {"v1/positive": 1.0}
    assert Path(task.queries[1]["video"][-1]).parts[-3:] == ("v1", "query", "frame_12.jpg")


def test_a_moment_without_its_clip_is_refused(copy, miniature, tmp_path):
    task = miniature("QVHighlight")
    (copy.root / task.media / "v0" / "positive").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"QVHighlight: the folder .*/v0 holds no clip that is called positive"):
        copy.load("QVHighlight")


def test_a_missing_query_video_is_named(copy, miniature, tmp_path):
    task = miniature("QVHighlight")
    (copy.root / task.media / "v0" / "query").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=f"QVHighlight: the folder {copy.root / task.media / 'v0' / 'query'} of"):
        copy.load("QVHighlight")


def test_momentseeker_asks_in_three_ways(copy, miniature):
    miniature("MomentSeeker")
    task = copy.load("MomentSeeker")
    text, image, video = task.queries
    assert text == {"instruction": "Find the clip that corresponds to the given text:", "text": "moment 0"}
    assert Path(image["image"]).name == "query_shown.jpg" and "text and image" in image["instruction"]
    assert Path(video["video"][0]).parts[-3:-1] == ("video_frames", "movie_0.0")
    assert "video segment" in video["instruction"]
    assert list(task.relevance[1]) == ["video_frames/movie_1.0", "video_frames/movie_2.0"]
    assert len(task.candidates) == 4

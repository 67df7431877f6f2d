"""The image annotations: what becomes of their texts, placeholders and candidates."""

from __future__ import annotations

import pytest


def test_queries_have_the_instruction_apart_from_the_text(copy, miniature):
    miniature("GQA")
    task = copy.load("GQA")
    assert task.query_prompt is None and task.candidate_prompt is None
    assert task.queries[1] == {
        "instruction": "Answer the question.",
        "text": "question 1",
        "image": str(copy.root / "image-tasks/GQA/1.jpg"),
    }
    assert task.candidates == [{"text": f"answer {number}"} for number in range(3)]
    assert task.pools == [["answer 0", "answer 1", "answer 2"], ["answer 1", "answer 2", "answer 0"],
                          ["answer 2", "answer 0", "answer 1"]]  # fmt: skip
    assert [dict(one) for one in task.relevance] == [{f"answer {number}": 1.0} for number in range(3)]


def test_pictures_as_candidates_bring_their_instruction(copy, miniature):
    miniature("NIGHTS")
    task = copy.load("NIGHTS")
    assert task.candidate_ids == ["NIGHTS/0.jpg", "NIGHTS/1.jpg", "NIGHTS/2.jpg"]
    assert task.candidates[2] == {
        "instruction": "Represent the given image.",
        "image": str(copy.root / "image-tasks/NIGHTS/2.jpg"),
    }


def test_two_objects_of_one_picture_are_two_candidates(copy, rows_of):
    rows = rows_of("RefCOCO-Matching")
    path = rows[0]["tgt_img_path"][0]
    rows[0] |= {"tgt_text": ['"left dog"', '"right dog"', '"left dog"'], "tgt_img_path": [path, path, path]}
    copy.rows("RefCOCO-Matching", rows)
    task = copy.load("RefCOCO-Matching")
    assert task.pools[0] == [f'{path}:"left dog"', f'{path}:"right dog"']
    assert task.candidates[1]["text"] == '"right dog"'
    assert task.data["merged_candidates"] == 1


def test_equal_candidates_are_one(copy, rows_of):
    """Two classes of ImageNet have the name of a third: the truth must not compete with itself."""
    rows = rows_of("ImageNet-1K")
    rows[0]["tgt_text"] = ["crane", "maillot", "crane", " maillot "]
    rows[1]["tgt_text"] = ["maillot", "crane"]
    copy.rows("ImageNet-1K", rows)
    task = copy.load("ImageNet-1K")
    assert task.pools[:2] == [["crane", "maillot"], ["maillot", "crane"]]
    assert list(task.relevance[0]) == ["crane"]
    assert task.data["merged_candidates"] == 2
    assert len(task.candidates) == len(set(task.candidate_ids)) == 5


def test_the_same_picture_under_another_instruction_is_another_candidate(copy, rows_of):
    rows = rows_of("CIRR")
    rows[2]["tgt_inst"] = "<|image_1|> Another one."
    copy.rows("CIRR", rows)
    task = copy.load("CIRR")
    assert len(task.candidates) == 6
    assert task.candidate_ids[3] == "CIRR/2.jpg #2"
    assert task.relevance[2] == {"CIRR/2.jpg #2": 1.0}


def test_a_text_alone_may_ask(copy, rows_of):
    rows = rows_of("VisDial")
    for row in rows:
        row["qry_img_path"] = ""
    copy.rows("VisDial", rows)
    task = copy.load("VisDial")
    assert task.queries[0] == {"instruction": "Answer the question.", "text": "question 0"}
    assert len(set(task.clusters)) == 3


def test_questions_about_one_picture_are_one_cluster(copy, rows_of):
    rows = rows_of("GQA")
    rows[1]["qry_img_path"] = rows[0]["qry_img_path"]
    copy.rows("GQA", rows)
    assert copy.load("GQA").clusters == ["GQA/GQA/0.jpg", "GQA/GQA/0.jpg", "GQA/GQA/2.jpg"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("GQA", {"tgt_text": []}, r"it has no candidates \(tgt_text\)"),
        ("NIGHTS", {"tgt_img_path": ["NIGHTS/0.jpg"]}, "it has 1 pictures .* and 3 texts"),
        ("NIGHTS", {"tgt_img_path": ["NIGHTS/0.jpg", "", "NIGHTS/2.jpg"]}, "each needs a path"),
        ("NIGHTS", {"tgt_img_path": [], "tgt_text": []}, "it has 0 pictures"),
    ],
)
def test_rows_that_say_nothing_are_refused(name, change, message, copy, rows_of):
    rows = rows_of(name)
    copy.rows(name, [*rows[:2], rows[2] | change])
    with pytest.raises(ValueError, match=f"^{name}, query 2: .*{message}.*not what MMEB-V2 holds"):
        copy.load(name)


def test_no_rows(copy, rows_of):
    import pyarrow.parquet

    rows_of("GQA")
    file = next(copy.dataset("GQA").rglob("*.parquet"))
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(file).slice(0, 0), file)
    with pytest.raises(ValueError, match="^GQA: its annotations in .* have no rows"):
        copy.load("GQA")
